package store

import (
	"strings"
	"testing"
	"time"

	"routerd.dev/internal/rollout"
)

// What was written without a lease, as by hand or from a backup, never ends by
// itself: it must not keep those out who would have to write there.

func TestElectionKeyWithoutALeaseIsNobodys(t *testing.T) {
	s := fleet(t)
	rawPut(t, s, keyLeader, "c0")
	term := campaign(t, s, "c1")
	if id, err := s.Leader(t.Context()); err != nil || id != "c1" {
		t.Errorf("leader %q, %v", id, err)
	}
	must(t, term.Apply(t.Context(), view(t, s), rollout.Change{Groups: []rollout.Assignment{{Group: "main", Epoch: 1}}}))
	must(t, term.Resign(t.Context()))
	if id, err := s.Leader(t.Context()); err != nil || id != "" {
		t.Errorf("leader %q, %v: the key does not end with the term", id, err)
	}
}

// One whose key was overwritten by hand is deposed by who comes then, though
// the key is as old as its term.
func TestI4_OverwrittenTermIsDeposed(t *testing.T) {
	s := fleet(t)
	old := campaign(t, s, "c1")
	rawPut(t, s, keyLeader, "by hand")
	campaign(t, s, "c2")
	unchanged(t, s, func() {
		c := rollout.Change{Groups: []rollout.Assignment{{Group: "main", Epoch: 1}}}
		wantErr(t, old.Apply(t.Context(), view(t, s), c), ErrDeposed, "c2")
	})
}

func TestInstanceWithoutABootIsNobodys(t *testing.T) {
	for _, value := range []string{`{}`, `null`, `{"a":"b"}`, `{"instance":"a","group":"main"}`} {
		s := fleet(t)
		rawPut(t, s, "instances/a", value)
		m := join(t, s, "main", "a")
		if i := view(t, s).Instances["a"]; i.Boot != "boot-a" {
			t.Errorf("%s: the instance is %+v", value, i)
		}
		must(t, m.Leave(t.Context()))
	}
}

// A commit compares the whole range of a group's ready keys. One that bears no
// name stops it, so whoever decides has to see it.
func TestNamelessReadyKeyIsSeen(t *testing.T) {
	s := fleet(t)
	rawPut(t, s, "groups/main", assignment(1))
	ready(t, s, "main", "a", "n1")
	rawPut(t, s, "ready/main/", "n0")
	term := campaign(t, s, "c1")
	v, broken, err := s.ViewBroken(t.Context())
	must(t, err)
	if len(broken) != 1 || broken[0].Key != s.key("ready/main/") || !strings.Contains(broken[0].Why, "delete it") {
		t.Errorf("broken %+v", broken)
	}
	if r, ok := v.Ready["main"][""]; !ok || r.Nonce != "n0" {
		t.Errorf("ready %+v: the commit is stopped by what is not there", v.Ready)
	}
	wantErr(t, term.Apply(t.Context(), v, commit("main")), ErrNotReady, "main")
}

func TestImpossibleRolloutsAreLeftOut(t *testing.T) {
	s := fleet(t)
	const plan = `"plan":{"name":"p","waves":[{"groups":["main"],"steps":[{"commit":{}}]}]}`
	good := map[string]string{
		"a": `{"id":"a","phase":"preparing"}`,
		"b": `{"id":"b","phase":"returning","return":{"why":"x"},` + plan + `,"cursor":{"wave":1,"step":0}}`,
		"c": `{"id":"c","phase":"running",` + plan + `}`,
	}
	bad := map[string]string{
		"r": `{"id":"r","phase":"returning",` + plan + `}`,
		"s": `{"id":"s","phase":"running",` + plan + `,"cursor":{"wave":-1,"step":0}}`,
		"t": `{"id":"t","phase":"running",` + plan + `,"cursor":{"wave":0,"step":1}}`,
		"u": `{"id":"u","phase":"running",` + plan + `,"cursor":{"wave":2,"step":0}}`,
		"v": `{"id":"v","phase":"running","plan":{"name":"p","waves":[{"groups":["main"]}]},"cursor":{"wave":0,"step":0}}`,
	}
	for _, rs := range []map[string]string{good, bad} {
		for id, value := range rs {
			rawPut(t, s, "rollouts/"+id, value)
		}
	}
	v, broken, err := s.ViewBroken(t.Context())
	must(t, err)
	for _, o := range v.Rollouts {
		if good[o.ID] == "" {
			t.Errorf("rollout %s is taken for one", o.ID)
		}
	}
	if len(v.Rollouts) != len(good) || len(broken) != len(bad) {
		t.Errorf("%d rollouts, broken: %v", len(v.Rollouts), broken)
	}
	rollout.Step(v, time.Now())
}

// What stands in etcd may have come past routectl.
func TestSettingsAreBoundOnReading(t *testing.T) {
	s := fleet(t)
	f, err := s.Format(t.Context())
	must(t, err)
	rawPut(t, s, keyFleet, `{"id":"`+f.FleetID+`","settings":{"maxUnready":"-1%","lead":-1000000000000000000,"prepareTimeout":-5,"historyLimit":-1,"strategy":"x"}}`)
	v, broken, err := s.ViewBroken(t.Context())
	must(t, err)
	if want := (rollout.Settings{Strategy: "x"}); v.Fleet.Settings != want {
		t.Errorf("settings %+v", v.Fleet.Settings)
	}
	if len(broken) != 4 || broken[0].Key != s.key(keyFleet) {
		t.Errorf("broken %v", broken)
	}
	// It says so when it is asked to change another of them.
	err = s.SetSettings(t.Context(), "ann", func(x *rollout.Settings) error { x.Lead = time.Millisecond; return nil })
	if err == nil || !strings.Contains(err.Error(), "prepareTimeout") {
		t.Errorf("%v", err)
	}
}

// A layout that this build does not know may keep everything elsewhere, or mean
// something else by it: nothing of it is followed.
func TestGroupOfAFutureLayoutHasNoFleet(t *testing.T) {
	s := fleet(t)
	f, err := s.Format(t.Context())
	must(t, err)
	rawPut(t, s, keyFormat, `{"layout":2,"fleet":"`+f.FleetID+`"}`)
	g, err := s.Group(t.Context(), "main")
	must(t, err)
	if g.FleetID != "" || len(g.Broken) != 1 || !strings.Contains(g.Broken[0].Why, "layout 2") {
		t.Errorf("state %+v", g)
	}
}
