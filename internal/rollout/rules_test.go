package rollout

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"routerd.dev/internal/version"
)

// TestLead: an instant leaves time for the last watcher, and is never more
// than 100 ms away.
func TestLead(t *testing.T) {
	for _, c := range []struct {
		s    Settings
		n    int
		want time.Duration
	}{
		{Settings{}, 0, 10 * time.Millisecond},
		{Settings{}, 1000, 60 * time.Millisecond},
		{Settings{}, 1 << 20, 100 * time.Millisecond},
		{Settings{Lead: time.Millisecond}, 1000, time.Millisecond},
		{Settings{Lead: time.Hour}, 1, 100 * time.Millisecond},
	} {
		if got := lead(c.s, c.n); got != c.want {
			t.Errorf("lead of %+v with %d instances is %v, not %v", c.s, c.n, got, c.want)
		}
	}
}

// TestBackNeverCondemned: a way back leads past what is condemned, and no set
// keeps it.
func TestBackNeverCondemned(t *testing.T) {
	p := &player{w: newWorld(), t: t}
	p.fleet([]string{"main=a,b", "stable=4,3,2,1"})
	w := p.w
	w.condemned[ref(3).Digest] = Condemned{Digest: ref(3).Digest}
	w.ask(Intent{ID: "r1", Kind: IntentRollback})
	w.settle()
	if a := w.groups["main"]; a.Stable != ref(2) || !slices.Equal(a.Back, []version.Ref{ref(1)}) {
		t.Errorf("went back to %d, and further to %v", a.Stable.Number, numbers(a.Back))
	}
	p = &player{w: newWorld(), t: t}
	p.fleet([]string{"main=a,b", "stable=4,3,2,1"})
	p.w.condemned = w.condemned
	p.w.publish(5)
	p.w.ask(Intent{ID: "r2", Kind: IntentSwitch, To: ref(5)})
	p.w.settle()
	if a := p.w.groups["main"]; a.Stable != ref(5) || has(a.Set, ref(3).Digest) || !has(a.Set, ref(2).Digest) {
		t.Errorf("serves %d of %v", a.Stable.Number, numbers(a.Set))
	}
	if broken := append(w.broken, p.w.broken...); len(broken) > 0 {
		t.Error(broken)
	}
}

// running returns the view of a fleet that serves 2 after 1, changed by edit.
func running(t *testing.T, edit func(*View)) *View {
	p := &player{w: newWorld(), t: t}
	p.fleet([]string{"main=a,b", "stable=2,1"})
	v := p.w.view()
	v.Intents = []Intent{{ID: "r1", Kind: IntentSwitch, To: ref(1), By: "op"}}
	edit(v)
	return v
}

// TestRefusedIsNotReady: an instance that refuses even the nonce in force is
// not ready for what is in its set.
func TestRefusedIsNotReady(t *testing.T) {
	v := running(t, func(v *View) {
		v.Ready["main"]["a"] = Ready{Instance: "a", Group: "main", Nonce: v.Groups["main"].Nonce, Refused: true}
	})
	if c, _ := Step(v, epoch0); len(c.Groups) > 0 {
		t.Errorf("committed %+v", c)
	}
}

// TestFrozen: either sign that etcd knows less than an instance stops the
// group, also one that etcd forgot; other trouble of an instance does not.
func TestFrozen(t *testing.T) {
	for _, c := range []struct {
		name   string
		report Report
		stops  bool
	}{
		{"says so", Report{Group: "main", Frozen: FrozenStoreWentBack + ": epoch 9"}, true},
		{"saw more", Report{Group: "main", HighestEpoch: 11}, true},
		{"saw as much", Report{Group: "main", HighestEpoch: 10}, false},
		{"of another group", Report{Group: "edge", HighestEpoch: 11}, false},
		{"stale", Report{Group: "main", Stale: "no etcd"}, false},
	} {
		v := running(t, func(v *View) { v.Reports["a"] = c.report })
		if ch, _ := Step(v, epoch0); len(ch.Groups) > 0 == c.stops {
			t.Errorf("%s: %+v", c.name, ch)
		}
		v = running(t, func(v *View) {
			v.Reports["a"] = c.report
			delete(v.Groups, "main")
		})
		if ch, _ := Step(v, epoch0); len(ch.Groups) > 0 && c.stops {
			t.Errorf("%s, and the group is forgotten: %+v", c.name, ch)
		}
	}
}

// TestRecoveredStays: an instance that was away while an operator recovered
// finds that also in later assignments.
func TestRecoveredStays(t *testing.T) {
	p := &player{w: newWorld(), t: t}
	p.fleet([]string{"main=a,b", "stable=2,1"})
	w := p.w
	saved := w.save()
	w.ask(Intent{ID: "r1", Kind: IntentRollback})
	w.settle()
	w.restore(saved)
	a, b := w.fleetOf["a"], w.fleetOf["b"]
	w.look(a)
	w.ask(Intent{ID: "r2", Kind: IntentRecover})
	w.step(func(Change) {})
	w.look(a)
	w.act(a)
	w.ask(Intent{ID: "r3", Kind: IntentSwitch, To: ref(1), AllowFewer: true})
	w.step(func(Change) {})
	b.frozen = true
	w.look(b)
	if g := w.groups["main"]; b.frozen || g.Rollout != "r3" {
		t.Errorf("b is frozen: %v at %+v", b.frozen, g)
	}
}

// TestSweep: a prepare that nobody stands for is withdrawn.
func TestSweep(t *testing.T) {
	v := running(t, func(v *View) {
		v.Intents = nil
		v.Prepares["main"] = Prepare{Group: "main", Nonce: "old", Rollout: "gone"}
	})
	if c, _ := Step(v, epoch0); !slices.Equal(c.Withdraw, []string{"main"}) {
		t.Errorf("decided %+v", c)
	}
}

// TestBackIsBounded: the way back lists what was stable, newest first, each
// once, and not for ever.
func TestBackIsBounded(t *testing.T) {
	a := Assignment{}
	for n := range int64(40) {
		to := ref(n%11 + 1)
		a.Back, a.Stable = pushed(a, to), to
		seen := map[version.Digest]bool{to.Digest: true}
		for _, b := range a.Back {
			if seen[b.Digest] {
				t.Fatalf("%v lists %d twice", numbers(a.Back), b.Number)
			}
			seen[b.Digest] = true
		}
		if len(a.Back) > maxBack || n > 0 && len(a.Back) == 0 {
			t.Fatalf("way back %v", numbers(a.Back))
		}
	}
}

// TestHundredGroups: as many groups as a fleet may have are committed by one
// change, and no more are made.
func TestHundredGroups(t *testing.T) {
	w := newWorld()
	for n := range MaxGroups + 5 {
		w.start(fmt.Sprintf("i%03d", n), fmt.Sprintf("g%03d", n))
	}
	w.publish(1)
	w.ask(Intent{ID: "r1", Kind: IntentSwitch, To: ref(1)})
	w.settle()
	if len(w.groups) != MaxGroups {
		t.Errorf("%d groups", len(w.groups))
	}
	w.publish(2)
	w.ask(Intent{ID: "r2", Kind: IntentSwitch, To: ref(2)})
	w.settle()
	if r := w.rollouts["r2"]; r.Phase != PhaseDone || len(r.Epochs) != MaxGroups {
		t.Errorf("%s, %d groups: %s", r.Phase, len(r.Epochs), r.Why)
	}
	if len(w.broken) > 0 {
		t.Error(w.broken)
	}
}

// TestNothingThere: no fleet, no decisions; and an empty view does not panic.
func TestNothingThere(t *testing.T) {
	v := &View{Seed: "s", Instances: map[string]Instance{"a": {Instance: "a", Group: "main"}}, Intents: []Intent{{ID: "r1", Kind: IntentSwitch, To: ref(1)}}}
	if c, next := Step(v, epoch0); !c.IsZero() || !next.IsZero() {
		t.Errorf("decided %+v for no fleet", c)
	}
	v.Fleet.ID = "f"
	for _, k := range []IntentKind{IntentSwitch, IntentRollback, IntentAbort, IntentRecover, IntentRetire, "dance"} {
		v.Intents[0].Kind = k
		Step(v, epoch0)
		v := &View{Fleet: v.Fleet, Intents: v.Intents, Seed: "s"}
		if c, _ := Step(v, epoch0); len(c.Done) != 1 || len(c.Rollouts) != 1 || !c.Rollouts[0].Phase.Final() {
			t.Errorf("%s on an empty fleet: %+v", k, c)
		}
	}
}

// BenchmarkStep decides the commit of 1,000 instances in 100 groups.
func BenchmarkStep(b *testing.B) {
	w := newWorld()
	for n := range 1000 {
		w.start(fmt.Sprintf("i%04d", n), fmt.Sprintf("g%03d", n%100))
	}
	w.publish(1)
	w.ask(Intent{ID: "r1", Kind: IntentSwitch, To: ref(1)})
	w.settle()
	w.publish(2)
	w.served[ref(2).Digest] = true
	w.ask(Intent{ID: "r2", Kind: IntentSwitch, To: ref(2)})
	w.step(func(Change) {})
	for _, n := range w.names() {
		w.look(w.fleetOf[n])
		w.act(w.fleetOf[n])
	}
	v := w.view()
	for b.Loop() {
		if c, _ := Step(v, w.now); len(c.Ready) != 100 {
			b.Fatalf("no commit: %+v", c)
		}
	}
}

// TestDeadlineOfAnotherClock: a rollback waits a second for stragglers, also
// when its deadline was named by a controller whose clock was an hour ahead.
func TestDeadlineOfAnotherClock(t *testing.T) {
	v := running(t, func(v *View) {
		v.Intents = nil
		v.Ready["main"]["a"] = Ready{Instance: "a", Group: "main"}
		v.Rollouts = []Rollout{{
			Intent: Intent{ID: "r1", Kind: IntentRollback}, Phase: PhaseCommitting, Deadline: epoch0.Add(time.Hour),
			Goals: map[string]version.Ref{"main": ref(1)},
		}}
	})
	c, next := Step(v, epoch0)
	if want := epoch0.Add(rollbackWait); len(c.Rollouts) != 1 || !c.Rollouts[0].Deadline.Equal(want) || !next.Equal(want) {
		t.Errorf("rollouts %+v, next %v, want %v", c.Rollouts, next, want)
	}
}

// TestOverrideOfThousands: an override names everyone who was late once, its
// reasons a few, so that it fits into a transaction; and it demands that
// nobody else said anything since.
func TestOverrideOfThousands(t *testing.T) {
	const groups, each = 50, 60
	v := running(t, func(v *View) {
		v.Intents = nil
		r := Rollout{
			Intent: Intent{ID: "r1", Kind: IntentRollback}, Phase: PhaseCommitting, Deadline: epoch0,
			Goals: map[string]version.Ref{},
		}
		like := v.Groups["main"]
		v.Groups = map[string]Assignment{}
		for g := range groups {
			a := like
			a.Group = fmt.Sprintf("group-%02d", g)
			v.Groups[a.Group], r.Goals[a.Group] = a, ref(1)
			v.Ready[a.Group] = map[string]Ready{}
			for i := range each {
				name := fmt.Sprintf("%s-instance-%03d", a.Group, i)
				v.Ready[a.Group][name] = Ready{}
				v.Reports[name] = Report{Instance: name, Group: a.Group, Stale: strings.Repeat("stale ", 1000)}
			}
		}
		v.Rollouts = []Rollout{r}
	})
	c, _ := Step(v, epoch0)
	if len(c.Groups) != groups || len(c.Settled) != groups || len(c.Ready) != 0 {
		t.Fatalf("%d groups, %d settled, %d ready", len(c.Groups), len(c.Settled), len(c.Ready))
	}
	for _, a := range c.Groups {
		if len(a.Override.Instances) != each || !strings.Contains(a.Override.Why, "and 2980 more") {
			t.Fatalf("override names %d, why %s", len(a.Override.Instances), a.Override.Why)
		}
	}
	if b, err := json.Marshal(c); err != nil || len(b) > 1<<20 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// TestEndlessReasonEndsTheRollout: what an instance says why it refuses does
// not make the transaction too large that ends the rollout.
func TestEndlessReasonEndsTheRollout(t *testing.T) {
	v := running(t, func(v *View) {
		v.Intents = nil
		v.Prepares = map[string]Prepare{"main": {Group: "main", Nonce: "n", Rollout: "r1"}}
		v.Ready["main"]["a"] = Ready{Instance: "a", Group: "main", Nonce: "n", Refused: true, Why: strings.Repeat("é", 1<<20)}
		v.Rollouts = []Rollout{{
			Intent: Intent{ID: "r1", Kind: IntentSwitch, To: ref(9)}, Phase: PhasePreparing, Nonces: map[string]Nonce{"main": "n"},
		}}
	})
	c, _ := Step(v, epoch0)
	if len(c.Rollouts) != 1 || c.Rollouts[0].Phase != PhaseRefused || !strings.HasPrefix(c.Rollouts[0].Why, "a refused it: é") {
		t.Fatalf("change %.2000v", c)
	}
	if b, err := json.Marshal(c); err != nil || len(b) > 64<<10 || !utf8.Valid(b) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
