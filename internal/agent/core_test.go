package agent

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

func ref(n int) version.Ref {
	return version.Ref{Number: int64(n), Digest: version.DigestOf([]byte(fmt.Sprint(n)))}
}

// history is what one etcd says, revision by revision: assignments whose epochs
// grow and prepares between them.
func history(t *rapid.T) []record {
	var h []record
	a := rollout.Assignment{Group: "g"}
	nonce := 0
	var prep *rollout.Prepare
	for at := range rapid.IntRange(1, 25).Draw(t, "revisions") {
		switch rapid.IntRange(0, 3).Draw(t, "what") {
		case 0, 1: // commit, of what was prepared or of another share in force
			a.Epoch += int64(rapid.IntRange(1, 2).Draw(t, "step"))
			if prep != nil {
				a.Nonce, a.Set, a.Stable = prep.Nonce, prep.Set, prep.Set[0]
			} else {
				nonce++
				a.Nonce, a.Stable = rollout.Nonce(fmt.Sprint("c", nonce)), ref(rapid.IntRange(1, 5).Draw(t, "stable"))
				a.Set = []version.Ref{a.Stable, ref(rapid.IntRange(1, 5).Draw(t, "back"))}
			}
			prep = nil
		case 2:
			nonce++
			set := []version.Ref{ref(rapid.IntRange(1, 5).Draw(t, "new"))}
			if !a.Stable.IsZero() {
				set = append(set, a.Stable)
			}
			prep = &rollout.Prepare{
				Group: "g", Nonce: rollout.Nonce(fmt.Sprint("p", nonce)), Set: set,
				First: rapid.SampledFrom([]string{"", "me", "other"}).Draw(t, "first"),
				Evict: rapid.SampledFrom([][]string{nil, {"me"}, {"other"}}).Draw(t, "evict"),
			}
		case 3:
			prep = nil
		}
		r := record{at: int64(at + 1), fleet: "f", prepare: prep}
		if a.Epoch > 0 {
			c := a
			r.assignment = &c
		}
		h = append(h, r)
	}
	return h
}

// TestI3_Laws delivers a history in any order, with losses and repetitions,
// and lets builds succeed or fail in between.
func TestI3_Laws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := history(t)
		now := time.Unix(1000, 0)
		c := newCore("me", "g")
		if rapid.Bool().Draw(t, "quarantine") {
			c.quarantined[ref(rapid.IntRange(1, 5).Draw(t, "bad")).Digest] = true
		}
		var epoch int64
		served := map[int64]rollout.Nonce{}
		for range rapid.IntRange(1, 80).Draw(t, "events") {
			switch rapid.IntRange(0, 8).Draw(t, "event") {
			case 7: // an operator pins what is held
				if held := sortedDigests(c.held); len(held) > 0 {
					c.pin = &Pin{Ref: version.Ref{Number: 9, Digest: rapid.SampledFrom(held).Draw(t, "pin")}}
				}
			case 8:
				c.pin = nil
			case 0, 1, 2:
				c.saw(rapid.SampledFrom(h).Draw(t, "record"), now)
			case 3: // what etcd says at last, read linearizably
				r := h[len(h)-1]
				r.confirmed, r.after = true, c.records
				c.saw(r, now)
			case 4:
				if p := c.plan(now); len(p.build) > 0 {
					j := p.build[0]
					switch rapid.IntRange(0, 3).Draw(t, "build") {
					case 0:
						c.refused(j, "bad", true, now)
					case 1:
						c.refused(j, "etcd is away", false, now)
					default:
						c.built(j.Digest)
					}
				}
			case 5:
				now = now.Add(time.Duration(rapid.IntRange(1, 500).Draw(t, "ms")) * time.Millisecond)
			case 6:
				c.admitted = c.ready() != nil && c.ready().Nonce != ""
			}
			p := c.plan(now)
			for d := range c.held {
				if !p.keep[d] {
					c.dropped(d)
				}
			}
			if s := p.swap; s != nil {
				if s.Epoch < epoch || s.Epoch == epoch && s.pinned == c.serving.pinned && s.stable == c.serving.stable {
					t.Fatalf("epoch %d after %d", s.Epoch, epoch)
				}
				if s.pinned != c.obeysPin() || s.pinned && s.stable.Digest != c.pin.Digest {
					t.Fatalf("pinned to %+v, %+v is served", c.pin, s.choice)
				}
				for _, r := range s.refs() {
					if !c.held[r.Digest] {
						t.Fatalf("serves %v, which is not held", r)
					}
					if c.quarantined[r.Digest] && slices.ContainsFunc(c.ways(&s.Assignment), func(w version.Ref) bool {
						return !c.quarantined[w.Digest] && c.held[w.Digest]
					}) {
						t.Fatalf("serves %v, which is quarantined", r)
					}
				}
				c.switched(s, now)
				epoch = s.Epoch
				if n, ok := served[epoch]; ok && n != s.Nonce {
					t.Fatalf("two assignments of epoch %d", epoch)
				}
				served[epoch] = s.Nonce
			}
			if c.serving != nil && !c.holds(c.serving.refs()) {
				t.Fatal("dropped what it serves")
			}
			checkReady(t, c)
			if !c.evicted.IsZero() && (c.serving == nil || c.pin != nil || c.frozen != "") {
				t.Fatal("evicted, though it serves nothing, is pinned or frozen")
			}
		}
		if c.frozen != "" {
			t.Fatalf("frozen though etcd never went back: %s", c.frozen)
		}
		settled(t, c, h[len(h)-1], now)
	})
}

// checkReady holds a nonce against what is held.
func checkReady(t *rapid.T, c *core) {
	r := c.ready()
	if r == nil || r.Nonce == "" || r.Refused {
		return
	}
	if r.Evicted {
		named := c.prepare != nil && c.prepare.Nonce == r.Nonce && slices.Contains(c.prepare.Evict, c.instance)
		if c.evicted.IsZero() && !c.asking && c.serving != nil || !named && r.Lacks == nil && (c.target == nil || c.target.Nonce != r.Nonce) {
			t.Fatalf("says %+v, and is in traffic or was not told to go", r)
		}
		if r.Lacks == nil {
			return
		}
	}
	var set []version.Ref
	switch {
	case c.prepare != nil && c.prepare.Nonce == r.Nonce:
		set = c.prepare.Set
	case c.target != nil && c.target.Nonce == r.Nonce:
		set = c.target.Set
	default:
		t.Fatalf("ready for %q, which nobody asked for", r.Nonce)
	}
	for _, d := range r.Lacks {
		if c.held[d] || !c.inForce(d) || !c.failed[d].permanent && !c.quarantined[d] {
			t.Fatalf("says that it lacks %s: %+v", d.Short(), r)
		}
	}
	for _, x := range set {
		if !c.held[x.Digest] && !c.quarantined[x.Digest] && !slices.Contains(r.Lacks, x.Digest) {
			t.Fatalf("ready for %q without %v", r.Nonce, x)
		}
	}
	if c.frozen != "" {
		t.Fatal("ready while frozen")
	}
}

// settled tells the truth last: then the instance comes to serve it.
func settled(t *rapid.T, c *core, last record, now time.Time) {
	last.confirmed, last.after = true, c.records
	c.saw(last, now)
	for range 40 {
		p := c.plan(now)
		switch {
		case p.swap != nil:
			c.switched(p.swap, now)
		case len(p.build) > 0:
			c.built(p.build[0].Digest)
		case !p.wake.IsZero():
			now = p.wake
		}
		c.admitted = c.admitted || (c.ready() != nil && c.ready().Nonce != "")
	}
	a := last.assignment
	if a == nil {
		return
	}
	if c.serving == nil || c.serving.Epoch != a.Epoch {
		t.Fatalf("epoch %d is committed, %+v is served", a.Epoch, c.serving)
	}
	if r := c.ready(); r == nil || r.Evicted || !c.evicted.IsZero() || (r.Nonce != a.Nonce && (last.prepare == nil || r.Nonce != last.prepare.Nonce)) {
		t.Fatalf("settled, and ready is %+v", r)
	}
}

// TestI3_RepeatedAndReorderedRecordsChangeNothing compares what is planned
// before and after a record that was seen already.
func TestI3_RepeatedAndReorderedRecordsChangeNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := history(t)
		now := time.Unix(1000, 0)
		c := newCore("me", "g")
		c.admitted = true
		n := rapid.IntRange(1, len(h)).Draw(t, "seen")
		for _, r := range h[:n] {
			c.saw(r, now)
			for p := c.plan(now); len(p.build) > 0; p = c.plan(now) {
				c.built(p.build[0].Digest)
			}
			if s := c.plan(now).swap; s != nil {
				c.switched(s, now)
			}
		}
		before := c.plan(now)
		c.saw(rapid.SampledFrom(h[:n]).Draw(t, "again"), now.Add(time.Hour))
		after := c.plan(now)
		after.confirm = before.confirm // asking again is allowed
		if !reflect.DeepEqual(before, after) {
			t.Fatalf("changed:\n%+v\n%+v", before, after)
		}
	})
}

func TestOvertakenReadIsVoid(t *testing.T) {
	c := newCore("me", "g")
	now := time.Unix(1000, 0)
	c.admitted = true
	at := func(at, epoch int64) record {
		return record{at: at, fleet: "f", assignment: &rollout.Assignment{Group: "g", Epoch: epoch, Nonce: rollout.Nonce(fmt.Sprint(epoch)), Stable: ref(1), Set: []version.Ref{ref(1)}}}
	}
	c.built(ref(1).Digest)
	c.saw(at(10, 5), now)
	c.switched(c.plan(now).swap, now)
	c.saw(at(9, 4), now)
	if !c.plan(now).confirm || c.frozen != "" {
		t.Fatal("a reordered record must be doubted, and not believed")
	}
	asked := c.records
	c.saw(at(12, 6), now)
	old := at(11, 4)
	old.confirmed, old.after = true, asked
	c.saw(old, now)
	if c.frozen != "" || c.target.Epoch != 6 {
		t.Fatalf("an overtaken read was believed: %q, epoch %d", c.frozen, c.target.Epoch)
	}
}

func TestChooseMapsCandidatesToThisInstance(t *testing.T) {
	a := &rollout.Assignment{Stable: ref(1), Back: []version.Ref{ref(3)}, Candidate: &rollout.Candidate{Ref: ref(2), Permyriad: 500, Salt: "s", Key: "cookie:u"}}
	c := newCore("me", "g")
	if ch := c.choose(a); ch.candidate == nil || ch.candidate.Permyriad != 500 || ch.main() != ref(1) {
		t.Errorf("share: %+v", ch)
	}
	a.Candidate.Instances = []string{"other", "me"}
	if ch := c.choose(a); ch.candidate == nil || ch.candidate.Permyriad != 10000 || ch.main() != ref(2) {
		t.Errorf("named: %+v", ch)
	}
	a.Candidate.Instances = []string{"other"}
	if ch := c.choose(a); ch.candidate != nil || ch.main() != ref(1) {
		t.Errorf("not named: %+v", ch)
	}
	c.quarantined[ref(1).Digest] = true
	if ch := c.choose(a); !ch.fallback || ch.main() != ref(3) {
		t.Errorf("quarantined stable: %+v", ch)
	}
	a.Candidate.Match = &rollout.Match{Header: "X-Tester"}
	if ch := c.choose(a); ch.candidate == nil || ch.candidate.Permyriad != 0 || ch.main() != ref(3) {
		t.Errorf("testers, on an instance that is not named: %+v", ch)
	}
	a.Candidate.Instances, a.Candidate.Match = []string{"me"}, nil
	c.quarantined[ref(2).Digest] = true
	if ch := c.choose(a); ch.candidate != nil {
		t.Errorf("quarantined candidate: %+v", ch)
	}
}

func TestUrgentComesFirst(t *testing.T) {
	c := newCore("me", "g")
	now := time.Unix(1000, 0)
	c.saw(record{
		at: 1, fleet: "f",
		assignment: &rollout.Assignment{Group: "g", Epoch: 1, Nonce: "n", Stable: ref(1), Set: []version.Ref{ref(4), ref(1)}},
		prepare:    &rollout.Prepare{Group: "g", Nonce: "p", Set: []version.Ref{ref(5), ref(1)}},
	}, now)
	var got []int64
	for _, j := range c.plan(now).build {
		got = append(got, j.Number)
	}
	if !slices.Equal(got, []int64{1, 4, 5}) {
		t.Errorf("order %v", got)
	}
}

func TestReasonsAreOneBoundedLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		got := line(rapid.String().Draw(t, "why"))
		for _, r := range got {
			if r < ' ' {
				t.Fatalf("%q", got)
			}
		}
		if len(got) > maxWhy {
			t.Fatalf("%d bytes", len(got))
		}
	})
}

func TestI10_AnotherFleetIsNotFollowed(t *testing.T) {
	for _, fleet := range []string{"other", ""} {
		c := newCore("me", "g")
		now := time.Unix(1000, 0)
		c.admitted = true
		c.built(ref(1).Digest)
		c.built(ref(2).Digest)
		r := assigned(1, 1, now)
		c.saw(r, now)
		c.switched(c.plan(now).swap, now)

		r = assigned(9, 2, now) // all else about it is as it should be
		r.fleet = fleet
		c.saw(r, now)
		if p := c.plan(now); !p.confirm || p.swap != nil {
			t.Fatalf("fleet %q: %+v", fleet, p)
		}
		r.confirmed, r.after = true, c.records
		c.saw(r, now)
		if p := c.plan(now); c.frozen == "" || p.swap != nil || p.ready.Nonce != "" {
			t.Fatalf("fleet %q: frozen %q, %+v", fleet, c.frozen, p)
		}
	}
}

// Before anything was published a group's set holds nothing, and holding
// nothing is being ready for it: otherwise the first commit would not wait for
// the instances that are there.
func TestAnInstanceIsReadyForTheEmptySet(t *testing.T) {
	now := time.Unix(1000, 0)
	c := newCore("me", "g")
	c.saw(record{at: 1, fleet: "f", assignment: &rollout.Assignment{Group: "g", Epoch: 1, Nonce: "n0", Set: []version.Ref{{}}}}, now)
	p := c.plan(now)
	if p.ready == nil || p.ready.Nonce != "n0" {
		t.Errorf("ready %+v, want n0", p.ready)
	}
	if p.swap != nil || len(p.build) > 0 || c.behind(now) != "" {
		t.Errorf("plan %+v, behind %q: there is nothing to serve yet", p, c.behind(now))
	}
}

// A watch that began before the fleet was made, or restored, tells of
// assignments without a fleet id. Taking them up would make another fleet of
// the next record that has one.
func TestAnAssignmentWithoutAFleetIsNoReason(t *testing.T) {
	now := time.Unix(1000, 0)
	a := &rollout.Assignment{Group: "g", Epoch: 3, Recovered: 3, Nonce: "n", Set: []version.Ref{ref(1)}, Stable: ref(1)}
	for _, served := range []int64{0, 2} {
		c := newCore("me", "g")
		if served > 0 {
			c.fleet, c.floor = "f", served
		}
		c.saw(record{at: 5, assignment: a}, now)
		if c.target != nil || c.frozen != "" {
			t.Fatalf("served %d: target %+v, frozen %q", served, c.target, c.frozen)
		}
		if !c.plan(now).confirm {
			t.Errorf("served %d: not read again", served)
		}
		c.saw(record{at: 5, fleet: "f", assignment: a, confirmed: true, after: c.records}, now)
		if c.fleet != "f" || c.target != a || c.frozen != "" {
			t.Errorf("served %d: fleet %q, target %+v, frozen %q", served, c.fleet, c.target, c.frozen)
		}
	}
}
