package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// slow is a strategy that the fleet may have.
func slow(name string) rollout.Strategy {
	s, _ := rollout.Builtin("canary")
	s.Name = name
	return s
}

// running puts a rollout with a plan under way.
func running(t *testing.T, s *Store, term *Term, id string) {
	t.Helper()
	plan := slow("slow")
	must(t, term.Apply(t.Context(), view(t, s), rollout.Change{Rollouts: []rollout.Rollout{{
		Intent: rollout.Intent{ID: id, Kind: rollout.IntentSwitch}, Phase: rollout.PhaseRunning, Plan: &plan,
	}}}))
}

func audit(t *testing.T, s *Store) rollout.AuditEntry {
	t.Helper()
	entries, _, err := s.Audit(t.Context(), 1, "")
	must(t, err)
	e := entries[0]
	e.Time = time.Time{}
	return e
}

func TestStrategiesAreKept(t *testing.T) {
	s := fleet(t)
	must(t, s.PutStrategy(t.Context(), slow("slow"), "ann"))
	if e := audit(t, s); !cmp.Equal(e, rollout.AuditEntry{Who: "ann", What: "strategy", Why: "made slow"}) {
		t.Errorf("audit %+v", e)
	}
	all, err := s.Strategies(t.Context())
	must(t, err)
	want := map[string]rollout.Strategy{"slow": slow("slow")}
	if d := cmp.Diff(want, all); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(want, view(t, s).Strategies); d != "" {
		t.Error(d)
	}
	unchanged(t, s, func() { must(t, s.PutStrategy(t.Context(), slow("slow"), "ben")) })
	other := slow("slow")
	other.Description = "slower"
	must(t, s.PutStrategy(t.Context(), other, "ben"))
	if e := audit(t, s); e.Who != "ben" || e.Why != "replaced slow" {
		t.Errorf("audit %+v", e)
	}
	unchanged(t, s, func() {
		err := s.PutStrategy(t.Context(), slow("canary"), "ann")
		if err == nil || !strings.Contains(err.Error(), "built in") {
			t.Errorf("a built-in name: %v", err)
		}
		bad := slow("bad")
		bad.Waves[0].Steps = nil
		err = s.PutStrategy(t.Context(), bad, "ann")
		if err == nil || !strings.Contains(err.Error(), "waves[0].steps") {
			t.Errorf("an invalid one: %v", err)
		}
		bad = slow("bad")
		bad.Description = strings.Repeat("x", maxStrategy)
		wantErr(t, s.PutStrategy(t.Context(), bad, "ann"), ErrTooLarge)
		wantErr(t, s.DeleteStrategy(t.Context(), "other", "ann"), ErrNotFound)
		if err := s.DeleteStrategy(t.Context(), "canary", "ann"); err == nil {
			t.Error("a built-in one was deleted")
		}
	})
	must(t, s.DeleteStrategy(t.Context(), "slow", "ann"))
	if n := len(view(t, s).Strategies); n != 0 || audit(t, s).Why != "deleted slow" {
		t.Errorf("%d strategies", n)
	}
	empty := open(t)
	wantErr(t, empty.PutStrategy(t.Context(), slow("slow"), "ann"), ErrNotInitialized)
}

func TestStrategiesAreBounded(t *testing.T) {
	s := fleet(t)
	for i := range maxStrategies {
		rawPut(t, s, fmt.Sprintf("strategies/s%d", i), "{}")
	}
	unchanged(t, s, func() {
		wantErr(t, s.PutStrategy(t.Context(), slow("one-more"), "ann"), ErrTooLarge)
	})
	must(t, s.PutStrategy(t.Context(), slow("s7"), "ann"))
}

func TestDefaultStrategyStays(t *testing.T) {
	s := fleet(t)
	for name, set := range map[string]func(*rollout.Settings) *string{
		"strategy": func(x *rollout.Settings) *string { return &x.Strategy },
		"firstUse": func(x *rollout.Settings) *string { return &x.FirstUse },
	} {
		to := func(v string) error {
			return s.SetSettings(t.Context(), "ann", func(x *rollout.Settings) error { *set(x) = v; return nil })
		}
		unchanged(t, s, func() { wantErr(t, to("slow"), ErrNotFound, "slow") })
		must(t, s.PutStrategy(t.Context(), slow("slow"), "ann"))
		must(t, to("slow"))
		unchanged(t, s, func() { wantErr(t, s.DeleteStrategy(t.Context(), "slow", "ann"), ErrConflict, name) })
		must(t, to("linear"))
		must(t, s.DeleteStrategy(t.Context(), "slow", "ann"))
	}
}

// Whoever comes first, no setting names a strategy that is gone.
func TestDefaultAndDeletionExclude(t *testing.T) {
	s := fleet(t)
	for range 20 {
		must(t, s.SetSettings(t.Context(), "ann", func(x *rollout.Settings) error { x.Strategy = ""; return nil }))
		must(t, s.PutStrategy(t.Context(), slow("slow"), "ann"))
		var wg sync.WaitGroup
		var set, deleted error
		wg.Go(func() {
			set = s.SetSettings(t.Context(), "ann", func(x *rollout.Settings) error { x.Strategy = "slow"; return nil })
		})
		wg.Go(func() { deleted = again(t, s).DeleteStrategy(t.Context(), "slow", "ben") })
		wg.Wait()
		v := view(t, s)
		if _, ok := v.Strategies["slow"]; v.Fleet.Settings.Strategy == "slow" && !ok {
			t.Fatalf("the default is gone: %v, %v", set, deleted)
		}
		if (set == nil) == (deleted == nil) {
			t.Fatalf("set: %v, deleted: %v", set, deleted)
		}
	}
}

func TestSettingsAreChecked(t *testing.T) {
	s := fleet(t)
	boom := errors.New("not so")
	unchanged(t, s, func() {
		for name, edit := range map[string]func(*rollout.Settings) error{
			"lead is":           func(x *rollout.Settings) error { x.Lead = time.Second; return nil },
			"prepareTimeout is": func(x *rollout.Settings) error { x.PrepareTimeout = -1; return nil },
			"historyLimit is":   func(x *rollout.Settings) error { x.HistoryLimit = -1; return nil },
			"not so":            func(x *rollout.Settings) error { x.Lead = 1; return boom },
		} {
			if err := s.SetSettings(t.Context(), "ann", edit); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v", name, err)
			}
		}
		must(t, s.SetSettings(t.Context(), "ann", func(*rollout.Settings) error { return nil }))
	})
	must(t, s.SetSettings(t.Context(), "ann", func(x *rollout.Settings) error { x.HistoryLimit = 9; return nil }))
	if e := audit(t, s); e.What != "settings" || !strings.Contains(e.Why, `"historyLimit":9`) {
		t.Errorf("audit %+v", e)
	}
}

func TestMeasuresOfThoseRegistered(t *testing.T) {
	s := fleet(t)
	m := join(t, s, "main", "a")
	one := rollout.Measure{Epoch: 3, Sample: analysis.Sample{All: analysis.Pair{Stable: analysis.Counts{Requests: 7}}}}
	must(t, m.Measure(t.Context(), one))
	if n := len(view(t, s).Measures); n != 0 {
		t.Errorf("%d measures are read though there is nothing to compare", n)
	}
	term := campaign(t, s, "c1")
	running(t, s, term, "r")
	one.Instance, one.Group, one.Boot = "a", "main", "boot-a"
	rawPut(t, s, "measures/gone", `{"instance":"gone","group":"main","boot":"x"}`)
	if d := cmp.Diff(map[string]rollout.Measure{"a": one}, view(t, s).Measures); d != "" {
		t.Error(d)
	}
	rawPut(t, s, "measures/a", `{"instance":"a","group":"main","boot":"another"}`)
	if n := len(view(t, s).Measures); n != 0 {
		t.Error("the measure of another process counts")
	}
	rawPut(t, s, "measures/a", `{"instance":"a","group":"other","boot":"boot-a"}`)
	v, broken, err := s.ViewBroken(t.Context())
	must(t, err)
	if len(v.Measures) != 0 || len(broken) != 1 {
		t.Errorf("measures %+v, broken %v", v.Measures, broken)
	}
	must(t, m.Measure(t.Context(), one))
	must(t, m.Leave(t.Context()))
	if got := rawGet(t, s, "measures/a"); got != "" {
		t.Errorf("after the lease: %s", got)
	}
	wantErr(t, m.Measure(t.Context(), one), ErrLostMembership)
}

func TestMeasuresAreBounded(t *testing.T) {
	s := fleet(t)
	m := join(t, s, "main", "a")
	big := rollout.Measure{Sample: analysis.Sample{Routes: map[string]analysis.Pair{strings.Repeat("x", maxMeasure): {}}}}
	unchanged(t, s, func() { wantErr(t, m.Measure(t.Context(), big), ErrTooLarge) })
	running(t, s, campaign(t, s, "c1"), "r")
	rawPut(t, s, "measures/a", `{"instance":"a","group":"main","boot":"boot-a","old":"`+strings.Repeat(" ", maxMeasure)+`"}`)
	v, broken, err := s.ViewBroken(t.Context())
	must(t, err)
	if len(v.Measures) != 0 || len(broken) != 1 || !strings.Contains(broken[0].Why, "at most") {
		t.Errorf("broken %v", broken)
	}
}

func TestChecksAreBesideTheDecision(t *testing.T) {
	s := fleet(t)
	term := campaign(t, s, "c1")
	running(t, s, term, "r")
	v := view(t, s)
	c := rollout.Checks{Rollout: "r", Step: 1, Results: map[string]rollout.CheckResult{"x": {Passed: 1}}}
	must(t, term.PutChecks(t.Context(), c))
	must(t, term.PutChecks(t.Context(), c))
	// What was decided before the answer came is carried out all the same.
	r := v.Rollouts[0]
	r.Why = "waits"
	must(t, term.Apply(t.Context(), v, rollout.Change{Rollouts: []rollout.Rollout{r}}))
	v = view(t, s)
	if d := cmp.Diff(map[string]rollout.Checks{"r": c}, v.Checks); d != "" {
		t.Error(d)
	}
	r.Phase = rollout.PhaseDone
	must(t, term.Apply(t.Context(), v, rollout.Change{Rollouts: []rollout.Rollout{r}}))
	unchanged(t, s, func() { wantErr(t, term.PutChecks(t.Context(), c), ErrNotFound) })
	if got := rawGet(t, s, "checks/r"); got != "" {
		t.Errorf("left behind: %s", got)
	}
	rawPut(t, s, "checks/r", `{"rollout":"r"}`)
	if n := len(view(t, s).Checks); n != 0 {
		t.Error("the checks of a rollout that ended are read")
	}
}

// A controller that was stopped for longer than its lease writes nothing when
// it goes on.
func TestI4_DeposedTermPutsNoChecks(t *testing.T) {
	s := fleet(t)
	old := campaign(t, s, "c1")
	running(t, s, old, "r")
	c := rollout.Checks{Rollout: "r"}
	if _, err := raw(t, s).Revoke(t.Context(), old.lease.id); err != nil {
		t.Fatal(err)
	}
	unchanged(t, s, func() { wantErr(t, old.PutChecks(t.Context(), c), ErrDeposed, "nobody") })
	now := campaign(t, again(t, s), "c2")
	unchanged(t, s, func() { wantErr(t, old.PutChecks(t.Context(), c), ErrDeposed, "c2") })
	must(t, now.PutChecks(t.Context(), c))
	rawDelete(t, s, "", clientv3.WithPrefix())
	unchanged(t, s, func() { wantErr(t, now.PutChecks(t.Context(), c), ErrDeposed) })
}

// A write that was not answered and comes later than the next one is void.
func TestLateChecksAreVoid(t *testing.T) {
	e := own(t, 0)
	s := openAt(t, Config{Endpoints: []string{e.endpoint()}})
	_, _, err := s.Init(t.Context())
	must(t, err)
	term := campaign(t, s, "c1")
	running(t, s, term, "r")
	at := func(n int) rollout.Checks { return rollout.Checks{Rollout: "r", Step: n} }
	must(t, term.PutChecks(t.Context(), at(1)))
	mod := int64(0)
	resp, err := raw(t, s).Get(t.Context(), s.key("checks/r"))
	must(t, err)
	mod = resp.Kvs[0].ModRevision
	must(t, term.PutChecks(t.Context(), at(2)))
	// The late one compares what it found when it was sent.
	late, err := raw(t, s).Txn(t.Context()).If(unmoved(s.key("checks/r"), mod)).Then(put(s.key("checks/r"), at(1))).Commit()
	must(t, err)
	if late.Succeeded || view(t, s).Checks["r"].Step != 2 {
		t.Error("the late write was carried out")
	}
	// And one that came in between only makes it look again.
	if err := term.PutChecks(t.Context(), at(3)); err != nil || view(t, s).Checks["r"].Step != 3 {
		t.Errorf("put again: %v", err)
	}
}

func TestEvidenceIsBounded(t *testing.T) {
	s := fleet(t)
	r := &analysis.Result{Verdict: analysis.Fail}
	for i := range 200 {
		r.Findings = append(r.Findings, analysis.Finding{Route: fmt.Sprint("m/", i), Verdict: analysis.Pass})
	}
	r.Findings[150] = analysis.Finding{Route: "bad", Verdict: analysis.Fail, Effect: math.Inf(1), Evidence: math.NaN()}
	r.Findings[170] = analysis.Finding{Route: "tried", Verdict: analysis.Fail, DryRun: true}
	r.Findings[180] = analysis.Finding{Route: "unsure", Verdict: analysis.Inconclusive}
	mustApply(t, s, rollout.Change{Rollouts: []rollout.Rollout{{
		Intent: rollout.Intent{ID: "r"}, Phase: rollout.PhaseReturning, Evidence: r, Return: &rollout.Return{Evidence: r},
	}}})
	o := view(t, s).Rollouts[0]
	for _, got := range []*analysis.Result{o.Evidence, o.Return.Evidence} {
		var first []string
		for _, f := range got.Findings[:4] {
			first = append(first, f.Route)
		}
		if d := cmp.Diff([]string{"bad", "unsure", "tried", "m/0"}, first); d != "" || len(got.Findings) != analysis.MaxFindings {
			t.Errorf("%d findings: %s", len(got.Findings), d)
		}
		if got.Findings[0].Effect != math.MaxFloat64 {
			t.Errorf("effect %v", got.Findings[0].Effect)
		}
	}
	if len(r.Findings) != 200 || r.Findings[0].Route != "m/0" {
		t.Error("what was given was changed")
	}
}

func TestEvictedIsNotReady(t *testing.T) {
	s := fleet(t)
	ready(t, s, "main", "a", "n1")
	late := join(t, s, "main", "b")
	must(t, late.Put(t.Context(), rollout.Ready{Nonce: "n1", Evicted: true})) // also one that never held anything
	if r := view(t, s).Ready["main"]["b"]; !r.Evicted || r.Nonce != "n1" || r.Refused {
		t.Errorf("ready %+v", r)
	}
	term := campaign(t, s, "c1")
	wantErr(t, term.Apply(t.Context(), view(t, s), commit("main")), ErrNotReady)
}

func TestBakedAreMarked(t *testing.T) {
	s := fleet(t)
	rev := publish(t, s, "a")
	gone := version.DigestOf([]byte("gone"))
	mustApply(t, s, rollout.Change{Bake: []version.Digest{rev.Digest, gone}})
	if d := cmp.Diff(map[version.Digest]bool{rev.Digest: true, gone: true}, view(t, s).Baked); d != "" {
		t.Error(d)
	}
	gc(t, s)
	if d := cmp.Diff(map[version.Digest]bool{rev.Digest: true}, view(t, s).Baked); d != "" {
		t.Error(d)
	}
}

func TestPardon(t *testing.T) {
	s := fleet(t)
	d := version.DigestOf([]byte("bad"))
	unchanged(t, s, func() { wantErr(t, s.Pardon(t.Context(), d, "ann", "x"), ErrNotFound) })
	mustApply(t, s, rollout.Change{Condemn: []rollout.Condemned{{Digest: d, Why: "died"}}})
	must(t, s.Pardon(t.Context(), d, "ann", "the disk was full"))
	if n := len(view(t, s).Condemned); n != 0 {
		t.Error("it is condemned still")
	}
	if e := audit(t, s); !cmp.Equal(e, rollout.AuditEntry{Who: "ann", What: "pardon", Why: "the disk was full", To: version.Ref{Digest: d}}) {
		t.Errorf("audit %+v", e)
	}
}

func TestPins(t *testing.T) {
	s := fleet(t)
	one := publishOn(t, s, version.Ref{}, nil, "a")
	unchanged(t, s, func() {
		wantErr(t, s.Pin(t.Context(), 7, "x", "ann"), ErrNotFound)
		wantErr(t, s.Unpin(t.Context(), 1, "x", "ann"), ErrNotFound)
	})
	must(t, s.Pin(t.Context(), 1, "good", "ann"))
	if e := audit(t, s); e.What != "pin" || e.To != one.Ref() || e.Who != "ann" {
		t.Errorf("audit %+v", e)
	}
	publishOn(t, s, version.Ref{}, nil, "b")
	must(t, s.Pin(t.Context(), 2, "too", "ben"))
	pins, err := s.Pins(t.Context())
	must(t, err)
	if len(pins) != 2 || pins[0].Number != 1 || pins[0].Why != "good" || pins[0].By != "ann" || pins[0].Time.IsZero() || pins[1].Number != 2 {
		t.Errorf("pins %+v", pins)
	}
	must(t, s.Unpin(t.Context(), 1, "old", "ann"))
	if e := audit(t, s); e.What != "unpin" || e.Why != "old" {
		t.Errorf("audit %+v", e)
	}
	gc(t, s)
	if !collected(t, s, one.Digest) {
		t.Error("it is kept still")
	}
	wantErr(t, s.Pin(t.Context(), 1, "late", "ann"), ErrNotFound)
}

// While gc decides what to keep, nothing is pinned behind its back.
func TestPinWaitsForGC(t *testing.T) {
	s := fleet(t)
	publishOn(t, s, version.Ref{}, nil, "a")
	l, err := s.grant(t.Context(), "test", 0)
	must(t, err)
	_, err = s.lockGC(t.Context(), "test", "ann", l)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	unchanged(t, s, func() {
		if err := s.Pin(ctx, 1, "x", "ann"); err == nil {
			t.Error("pinned beside a gc")
		}
	})
	must(t, l.release(t.Context(), "test"))
	must(t, s.Pin(t.Context(), 1, "x", "ann"))
}

func TestHistoryLimit(t *testing.T) {
	s := fleet(t)
	for i := range 6 {
		publishOn(t, s, version.Ref{}, nil, fmt.Sprint("w", i))
	}
	must(t, s.Pin(t.Context(), 1, "first", "ann"))
	must(t, s.SetSettings(t.Context(), "ann", func(x *rollout.Settings) error { x.HistoryLimit = 4; return nil }))
	c, err := s.GC(t.Context(), "ann", KeepPolicy{})
	must(t, err)
	if c.Revisions != 1 || c.KeptRevisions != 5 {
		t.Errorf("collected %+v", c)
	}
	c, err = s.GC(t.Context(), "ann", KeepPolicy{Revisions: 2}) // who names a number gets it
	must(t, err)
	if c.KeptRevisions != 3 {
		t.Errorf("collected %+v", c)
	}
}

// The first use of a capability is judged by what the groups' revisions need.
func TestViewHasTheRevisionsOfGroups(t *testing.T) {
	s := fleet(t)
	var revs []version.Ref
	for i := range 5 {
		revs = append(revs, publishOn(t, s, version.Ref{}, nil, fmt.Sprint("w", i)).Ref())
	}
	lost := version.Ref{Number: 99, Digest: version.DigestOf([]byte("lost"))}
	mustApply(t, s, rollout.Change{Groups: []rollout.Assignment{
		{Group: "main", Epoch: 1, Stable: revs[0], Back: []version.Ref{revs[1], lost}},
		{Group: "other", Epoch: 1, Stable: revs[0], Candidate: &rollout.Candidate{Ref: revs[2]}},
	}})
	for range 2 { // read, then remembered
		v, broken, err := s.ViewBroken(t.Context())
		must(t, err)
		got := map[int64]version.Digest{}
		for n, r := range v.Revisions {
			got[n] = r.Digest
		}
		want := map[int64]version.Digest{1: revs[0].Digest, 2: revs[1].Digest, 3: revs[2].Digest}
		if d := cmp.Diff(want, got); d != "" || len(broken) != 0 {
			t.Errorf("%s, broken %v", d, broken)
		}
	}
	rawPut(t, s, fmt.Sprintf("revisions/%020d", 4), "{")
	rawPut(t, s, "groups/late", fmt.Sprintf(`{"group":"late","epoch":1,"stable":{"number":4,"digest":%q}}`, revs[3].Digest))
	if _, broken, err := s.ViewBroken(t.Context()); err != nil || len(broken) != 1 {
		t.Errorf("broken %v, %v", broken, err)
	}
}
