package rollout

import (
	"slices"
	"testing"

	"routerd.dev/internal/version"
)

// TestWhomACommitNeedNotHold: who lacks what the commit does not go to, and
// lacked it before, and nobody else, as long as somebody holds what it goes to.
func TestWhomACommitNeedNotHold(t *testing.T) {
	lacks := func(ns ...int64) (ds []version.Digest) {
		for _, n := range ns {
			ds = append(ds, ref(n).Digest)
		}
		return ds
	}
	whole, late := Ready{Nonce: "n"}, Ready{}
	for _, c := range []struct {
		name  string
		says  []Ready
		waits bool
		late  []int // who is to be named
	}{
		{"all hold it", []Ready{whole, whole}, false, nil},
		{"nobody is there", nil, false, nil},
		{"one has not said anything", []Ready{whole, late}, true, []int{1}},
		{"one lacks what is for the way back", []Ready{whole, {Nonce: "n", Lacks: lacks(1)}}, false, []int{1}},
		{"all do", []Ready{{Nonce: "n", Lacks: lacks(1)}, {Nonce: "n", Lacks: lacks(1, 2)}}, false, []int{0, 1}},
		{"one lacks what is in force", []Ready{whole, {Nonce: "n", Lacks: lacks(2)}}, false, []int{1}},
		{"under another nonce", []Ready{whole, {Nonce: "o", Lacks: lacks(1)}}, true, []int{1}},
		{"one lacks what is new", []Ready{whole, {Nonce: "n", Lacks: lacks(1, 3)}}, true, []int{1}},
		{"one lacks what is new besides", []Ready{whole, {Nonce: "n", Lacks: lacks(4)}}, true, []int{1}},
		{"it refuses", []Ready{whole, {Nonce: "n", Lacks: lacks(1), Refused: true}}, true, []int{1}},
		{"out of traffic", []Ready{whole, {Nonce: "n", Evicted: true}}, false, []int{1}},
		{"out of traffic, and it lacks something", []Ready{whole, {Nonce: "n", Evicted: true, Lacks: lacks(2)}}, false, []int{1}},
		{"nobody would be left", []Ready{{Nonce: "n", Evicted: true}}, true, []int{0}},
		{"out of traffic, and holds what it goes to", []Ready{{Nonce: "n", Evicted: true, Lacks: lacks(2)}}, false, []int{0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := move{group: "g", from: Assignment{Nonce: "before", Stable: ref(2), Set: []version.Ref{ref(2), ref(1)}}, to: ref(3)}
			var named []string
			for i, said := range c.says {
				said.Instance = string(rune('a' + i))
				m.regs = append(m.regs, said)
				if slices.Contains(c.late, i) {
					named = append(named, said.Instance)
				}
			}
			d := newDraft(&View{Prepares: map[string]Prepare{"g": {Group: "g", Nonce: "n"}}}, epoch0)
			if got := d.waits(m); got != c.waits {
				t.Errorf("waits: %v", got)
			}
			if got := d.late(m); !slices.Equal(got, named) {
				t.Errorf("%v would be named, not %v", got, named)
			}
			if spared := d.sparedText([]move{m}); !c.waits && (spared == "") != (len(named) == 0) {
				t.Errorf("names %v and says why: %q", named, spared)
			}
		})
	}
}
