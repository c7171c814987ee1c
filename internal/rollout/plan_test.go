package rollout

import (
	"slices"
	"strings"
	"testing"
	"time"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/version"
)

// sharing returns the view of a fleet in which rollout r1 gives revision 2 a
// share of group main, and is at step, changed by edit.
func sharing(t *testing.T, step PlanStep, edit func(*View, *Rollout)) *View {
	t.Helper()
	p := &player{w: newWorld(), t: t}
	p.fleet([]string{"main=a,b,c,d", "stable=2,1"})
	v := p.w.view()
	a := v.Groups["main"]
	a.Stable, a.Back = ref(1), nil
	a.Candidate, a.Rollout = &Candidate{Ref: ref(2), Permyriad: 2500, Salt: "salt", Key: "client"}, "r1"
	v.Groups["main"] = a
	plan := &Strategy{Name: "s", Waves: []Wave{{Groups: []string{"main"}, Steps: []PlanStep{shareStep(25), step, commitStep()}}}}
	r := Rollout{
		Intent: Intent{ID: "r1", Kind: IntentSwitch, To: ref(2), PrevTarget: ref(1), By: "op"},
		Phase:  PhaseRunning, Plan: plan, Cursor: Cursor{Step: 1, Since: epoch0, Epoch: 10}, Salt: "salt",
		Origin: map[string]version.Ref{"main": ref(1)}, Epochs: map[string]int64{"main": 10},
		Started: epoch0, Alive: epoch0.Add(time.Minute), Target: ref(2),
	}
	edit(v, &r)
	v.Rollouts = []Rollout{r}
	return v
}

func only(t *testing.T, c Change) Rollout {
	t.Helper()
	if len(c.Rollouts) != 1 {
		t.Fatalf("decided %s", dump(c))
	}
	return c.Rollouts[0]
}

// TestPlanOnAnotherClock: times that a controller named whose clock was an
// hour ahead do not make the next one wait for an hour.
func TestPlanOnAnotherClock(t *testing.T) {
	ahead := epoch0.Add(time.Hour)
	pause := PlanStep{Pause: &PauseStep{For: Duration(time.Minute)}}
	v := sharing(t, pause, func(_ *View, r *Rollout) { r.Cursor.Since, r.Alive = ahead, ahead })
	c, next := Step(v, epoch0)
	if r := only(t, c); !r.Cursor.Since.Equal(epoch0) || !r.Alive.Equal(epoch0.Add(time.Minute)) || next.After(epoch0.Add(time.Minute)) {
		t.Errorf("since %v, alive %v, next %v", r.Cursor.Since, r.Alive, next)
	}
	v = sharing(t, pause, func(v *View, r *Rollout) {
		r.Cursor.Step, r.Deadline = 2, ahead
		v.Ready["main"]["a"] = Ready{}
	})
	c, _ = Step(v, epoch0)
	if r := only(t, c); !r.Deadline.Equal(epoch0.Add(defaultPrepare)) {
		t.Errorf("deadline %v", r.Deadline)
	}
	back := func(committed time.Time) *View {
		return sharing(t, pause, func(v *View, r *Rollout) {
			r.Phase, r.Deadline = PhaseReturning, ahead
			r.Return = &Return{Decided: ahead, Committed: committed, To: map[string]int64{"main": 1}}
			v.Ready["main"]["a"] = Ready{}
		})
	}
	c, _ = Step(back(time.Time{}), epoch0)
	if r := only(t, c); !r.Deadline.Equal(epoch0.Add(rollbackWait)) {
		t.Errorf("the way back waits until %v", r.Deadline)
	}
	v = back(ahead)
	for n, rep := range v.Reports {
		rep.Serving = &Serving{Epoch: 9}
		v.Reports[n] = rep
	}
	c, _ = Step(v, epoch0)
	if r := only(t, c); !r.Deadline.Equal(epoch0.Add(returnReports)) {
		t.Errorf("reports are waited for until %v", r.Deadline)
	}
	v = sharing(t, analysisStep(), func(_ *View, r *Rollout) {
		r.Evidence, r.Judged = &analysis.Result{Verdict: analysis.Inconclusive}, ahead
	})
	c, _ = Step(v, epoch0)
	if r := only(t, c); !r.Judged.Equal(epoch0) {
		t.Errorf("judged at %v", r.Judged)
	}
}

// TestMeasuresThatCount: only what the present processes counted since the
// commit in force, of these two revisions, is compared.
func TestMeasuresThatCount(t *testing.T) {
	for _, c := range []struct {
		name  string
		edit  func(*Measure)
		fails bool
	}{
		{"as it is", func(*Measure) {}, true},
		{"of an earlier epoch", func(m *Measure) { m.Epoch-- }, false},
		{"of a later epoch", func(m *Measure) { m.Epoch++ }, false},
		{"of a process that is gone", func(m *Measure) { m.Boot = "other" }, false},
		{"of another revision", func(m *Measure) { m.New = ref(9).Digest }, false},
		{"of another group", func(m *Measure) { m.Group = "edge" }, false},
	} {
		v := sharing(t, analysisStep(), func(v *View, r *Rollout) {
			v.Measures = map[string]Measure{}
			for _, n := range []string{"a", "b"} {
				m := Measure{Instance: n, Group: "main", Boot: v.Instances[n].Boot, Epoch: 10, Old: ref(1).Digest, New: ref(2).Digest}
				m.Sample.All = analysis.Pair{Stable: counts(60000, 0), Candidate: counts(20000, 12000)}
				c.edit(&m)
				v.Measures[n] = m
			}
		})
		ch, _ := Step(v, epoch0.Add(10*time.Second))
		if r := only(t, ch); (r.Phase == PhaseReturning) != c.fails {
			t.Errorf("%s: %s: %s", c.name, r.Phase, r.Why)
		} else if c.fails && (r.Return.Evidence == nil || r.Return.Evidence.Verdict != analysis.Fail) {
			t.Errorf("%s: no evidence in %+v", c.name, r.Return)
		}
	}
}

// TestMeasuresOfWhoIsNotRegistered: an instance can say that it is of any
// group; etcd's roles let it have a ready key in its own only.
func TestMeasuresOfWhoIsNotRegistered(t *testing.T) {
	for _, registered := range []bool{false, true} {
		v := sharing(t, analysisStep(), func(v *View, r *Rollout) {
			v.Instances["x"] = Instance{Instance: "x", Group: "main", Boot: "x"}
			if registered {
				v.Ready["main"]["x"] = Ready{Instance: "x", Group: "main", Nonce: v.Groups["main"].Nonce}
			}
			m := Measure{Instance: "x", Group: "main", Boot: "x", Epoch: 10, Old: ref(1).Digest, New: ref(2).Digest}
			m.Sample.All = analysis.Pair{Stable: counts(60000, 0), Candidate: counts(20000, 12000)}
			v.Measures = map[string]Measure{"x": m}
		})
		ch, _ := Step(v, epoch0.Add(10*time.Second))
		if r := only(t, ch); (r.Phase == PhaseReturning) != registered {
			t.Errorf("registered %v: %s: %s", registered, r.Phase, r.Why)
		}
	}
}

// TestChecks: what becomes of a step by what a check answered, and only of the
// step that it was asked for.
func TestChecks(t *testing.T) {
	one := 1.0
	check := Check{Name: "web", FailureLimit: 1, ErrorLimit: 1, InconclusiveLimit: 1, Passes: 2}
	for _, c := range []struct {
		name string
		res  CheckResult
		edit func(*Checks, *Check)
		want opinion
	}{
		{"nothing yet", CheckResult{}, nil, opinion{waits: "check web has not passed yet"}},
		{"too few passes", CheckResult{Passed: 1}, nil, opinion{waits: "check web has not passed yet"}},
		{"enough", CheckResult{Passed: 2}, nil, opinion{}},
		{"one failure may be", CheckResult{Passed: 2, Failed: 1}, nil, opinion{}},
		{"two may not", CheckResult{Passed: 9, Failed: 2, Value: &one}, nil, opinion{failed: "check web failed 2 times in a row, last with 1"}},
		{"errors", CheckResult{Passed: 9, Errors: 2, Error: "refused"}, nil, opinion{holds: "check web cannot be asked: refused"}},
		{"an error may be", CheckResult{Passed: 9, Errors: 1}, nil, opinion{}},
		{"no value", CheckResult{Passed: 9, Inconclusive: 2}, nil, opinion{holds: "check web answers without a value"}},
		{"dry run", CheckResult{Failed: 9, Errors: 9}, func(_ *Checks, c *Check) { c.DryRun = true }, opinion{}},
		{"of another step", CheckResult{Failed: 9}, func(c *Checks, _ *Check) { c.Step = 0 }, opinion{waits: "check web has not passed yet"}},
		{"of another wave", CheckResult{Passed: 9}, func(c *Checks, _ *Check) { c.Wave = 1 }, opinion{waits: "check web has not passed yet"}},
		{"no number of passes stands for one", CheckResult{Passed: 1}, func(_ *Checks, c *Check) { c.Passes = 0 }, opinion{}},
	} {
		got, k := Checks{Rollout: "r1", Step: 1, Results: map[string]CheckResult{"web": c.res}}, check
		if c.edit != nil {
			c.edit(&got, &k)
		}
		v := &View{Checks: map[string]Checks{"r1": got}}
		d := &draft{v: v}
		if o := d.checked(&Rollout{Intent: Intent{ID: "r1"}, Cursor: Cursor{Step: 1}}, []Check{k}); o != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, o, c.want)
		}
	}
}

// TestQuarantined: a revision that crashed an instance twice goes back, unless
// an operator is to decide.
func TestQuarantined(t *testing.T) {
	for _, manual := range []bool{false, true} {
		v := sharing(t, PlanStep{Pause: &PauseStep{For: Duration(time.Minute)}}, func(v *View, r *Rollout) {
			r.Plan.ManualRollback = manual
			rep := v.Reports["b"]
			rep.Quarantined = []version.Digest{ref(2).Digest}
			v.Reports["b"] = rep
		})
		c, _ := Step(v, epoch0)
		if got := only(t, c).Phase == PhaseReturning; got == manual {
			t.Errorf("manual %v: %s", manual, dump(c.Rollouts))
		}
	}
}

// TestPresent: what is asked of others is asked while its step is under way, and
// only then.
func TestPresent(t *testing.T) {
	checks := []Check{{Name: "web"}}
	for _, s := range []PlanStep{{Analysis: &AnalysisStep{Checks: checks}}, {Bake: &BakeStep{Checks: checks}}} {
		r := sharing(t, s, func(*View, *Rollout) {}).Rollouts[0]
		if got := r.Present(); len(got.Checks()) != 1 || got.Kind() != s.Kind() {
			t.Errorf("present step is %+v", got)
		}
		r.Phase = PhaseReturning
		if got := r.Present(); got != nil || len(got.Checks()) > 0 {
			t.Errorf("%s, and its present step is %+v", r.Phase, got)
		}
	}
	if r := (&Rollout{Phase: PhaseRunning}); r.Present() != nil {
		t.Error("a rollout without a plan has a step")
	}
}

// TestInvalidPlan: a strategy that an older build stored and this one cannot
// play is refused, not begun.
func TestInvalidPlan(t *testing.T) {
	v := running(t, func(v *View) {
		v.Strategies = map[string]Strategy{"s": {Waves: []Wave{{Groups: []string{"*"}}}}}
		v.Intents[0].Strategy = "s"
	})
	c, _ := Step(v, epoch0)
	if r := only(t, c); r.Phase != PhaseRefused || !strings.Contains(r.Why, "waves[0].steps") {
		t.Errorf("%s: %s", r.Phase, r.Why)
	}
}

// TestAllAtOnceIsNoPlan: the name of the strategy without steps changes
// nothing, and nobody can store steps under it.
func TestAllAtOnceIsNoPlan(t *testing.T) {
	decide := func(name string) string {
		v := running(t, func(v *View) {
			v.Intents[0].Strategy = name
			v.Strategies = map[string]Strategy{AllAtOnce: {Name: AllAtOnce, Waves: []Wave{{Groups: []string{"*"}, Steps: []PlanStep{shareStep(1), commitStep()}}}}}
		})
		c, _ := Step(v, epoch0)
		if len(c.Groups) != 1 || only(t, c).Plan != nil {
			t.Fatalf("%q: %s", name, dump(c))
		}
		return strings.ReplaceAll(dump(c), `"strategy":"all-at-once",`, "")
	}
	if a, b := decide(""), decide(AllAtOnce); a != b {
		t.Errorf("they differ:\n%s\n%s", a, b)
	}
}

// TestMostUnready: however much a plan allows, one instance stays.
func TestMostUnready(t *testing.T) {
	for _, c := range []struct {
		q    Quantity
		n    int
		want int
	}{{"", 5, 1}, {"2", 5, 2}, {"50%", 5, 3}, {"100%", 5, 4}, {"9", 5, 4}, {"", 1, 0}, {"", 0, 0}} {
		if got := maxUnready(&Strategy{MaxUnready: c.q}, c.n); got != c.want {
			t.Errorf("%q of %d is %d, want %d", c.q, c.n, got, c.want)
		}
	}
}

// TestSharesCarryOver: a share keeps who are testers, ends the canary
// instances, and its salt and key stay while it grows.
func TestSharesCarryOver(t *testing.T) {
	testers := &Match{Header: "X-Test"}
	v := sharing(t, PlanStep{Share: &ShareStep{Percent: 40}}, func(v *View, r *Rollout) {
		a := v.Groups["main"]
		a.Candidate = &Candidate{Ref: ref(2), Instances: []string{"a"}, Match: testers}
		v.Groups["main"] = a
		r.Canaries = map[string]Canary{"a": {Boot: v.Instances["a"].Boot}}
	})
	c, _ := Step(v, epoch0)
	want := Candidate{Ref: ref(2), Permyriad: 4000, Salt: "salt", Key: "client", Match: testers}
	if len(c.Groups) != 1 || !equal(*c.Groups[0].Candidate, want) || only(t, c).Canaries != nil {
		t.Errorf("decided %s", dump(c))
	}
	if a := c.Groups[0]; a.Nonce != v.Groups["main"].Nonce || c.Ready["main"] != a.Nonce || !slices.Equal(a.Set, v.Groups["main"].Set) {
		t.Errorf("not under the nonce in force: %s", dump(c))
	}
}

// TestPlanWaitsBehindIntents: while an intent waits nothing is committed, or
// an abort that etcd took would lose.
func TestPlanWaitsBehindIntents(t *testing.T) {
	for _, waits := range []bool{false, true} {
		v := running(t, func(v *View) {
			v.Strategies = map[string]Strategy{"s": {Waves: []Wave{{Groups: []string{"*"}, Steps: []PlanStep{shareStep(1), commitStep()}}}}}
			v.Intents[0].Strategy = "s"
			if waits {
				v.Intents = append(v.Intents, Intent{ID: "r2", Kind: IntentAbort, By: "op"})
			}
		})
		if c, _ := Step(v, epoch0); len(c.Groups) > 0 == waits {
			t.Errorf("an intent waits: %v, and decided %s", waits, dump(c))
		}
	}
}

// TestOneApprovalForOnePause: what was approved for one pause is not for the
// next.
func TestOneApprovalForOnePause(t *testing.T) {
	ask := PlanStep{Pause: &PauseStep{Approval: true}}
	v := sharing(t, ask, func(_ *View, r *Rollout) {
		w := &r.Plan.Waves[0]
		w.Steps = slices.Insert(w.Steps, 2, ask)
		r.Cursor.Approved = true
	})
	c, _ := Step(v, epoch0)
	if r := only(t, c); r.Cursor.Step != 2 || r.Cursor.Approved {
		t.Errorf("at %+v", r.Cursor)
	}
}

// TestConfirmedStaysConfirmed: what confirms a rollout that goes back otherwise
// outlives the steps that are left, and approves none of their pauses.
func TestConfirmedStaysConfirmed(t *testing.T) {
	approval := PlanStep{Pause: &PauseStep{Approval: true}}
	for _, next := range []PlanStep{bakeStep(0), {Pause: &PauseStep{For: Duration(time.Second)}}, approval} {
		v := sharing(t, approval, func(v *View, r *Rollout) {
			r.Plan.Waves[0].Steps = []PlanStep{commitStep(), bakeStep(0), next, approval, approval}
			r.Revert, r.Cursor.Confirmed = time.Hour, true
			a := v.Groups["main"]
			a.Stable, a.Candidate = ref(2), nil
			v.Groups["main"] = a
		})
		now := epoch0
		for range 20 {
			c, _ := Step(v, now)
			now = now.Add(time.Second)
			if len(c.Rollouts) > 0 {
				v.Rollouts = c.Rollouts
			}
			if r := v.Rollouts[0]; r.Phase == PhaseRunning && r.step().Pause != nil && r.Cursor.Step < 4 {
				r.Cursor.Approved = r.step().Pause.Approval
				v.Rollouts = []Rollout{r}
			}
		}
		if r := v.Rollouts[0]; r.Phase != PhaseDone {
			t.Errorf("%s: %s at %+v: %s", next.Kind(), r.Phase, r.Cursor, r.Why)
		}
	}
	v := sharing(t, approval, func(_ *View, r *Rollout) { r.Cursor.Confirmed = true })
	c, _ := Step(v, epoch0)
	if r := only(t, c); r.Cursor.Step != 1 {
		t.Errorf("a pause was approved by what confirmed the rollout: %+v", r.Cursor)
	}
}

// TestLeastGrace: a grace that no controller could keep does not have each look
// find the rollout left alone.
func TestLeastGrace(t *testing.T) {
	v := sharing(t, PlanStep{Pause: &PauseStep{For: Duration(time.Minute)}}, func(_ *View, r *Rollout) {
		r.Plan.ControllerGrace = Duration(time.Millisecond)
		r.Alive = epoch0
	})
	for i := range 5 {
		c, _ := Step(v, epoch0.Add(time.Duration(i)*time.Second))
		if len(c.Rollouts) > 0 {
			v.Rollouts = c.Rollouts
		}
		if r := v.Rollouts[0]; r.Hold != nil {
			t.Fatalf("held: %s", r.Hold.Why)
		}
	}
}

// TestPinnedIsNotBack: of an instance that is pinned to what was taken back
// nobody says that it serves what the others went back to.
func TestPinnedIsNotBack(t *testing.T) {
	for _, pinned := range []int64{0, 1, 2} {
		v := sharing(t, PlanStep{Pause: &PauseStep{Approval: true}}, func(v *View, r *Rollout) {
			r.Phase, r.Deadline = PhaseReturning, epoch0.Add(returnReports)
			r.Return = &Return{Why: "worse", Decided: epoch0, Committed: epoch0, To: map[string]int64{"main": 1}}
			a := v.Groups["main"]
			a.Candidate = nil
			v.Groups["main"] = a
			for n, rep := range v.Reports {
				rep.Serving = &Serving{Epoch: a.Epoch, Digest: ref(1).Digest}
				v.Reports[n] = rep
			}
			if pinned > 0 {
				rep := v.Reports["b"]
				rep.Pinned, rep.Serving = ref(pinned).Digest, &Serving{Epoch: a.Epoch, Digest: ref(pinned).Digest}
				v.Reports["b"] = rep
			}
		})
		c, _ := Step(v, epoch0)
		r := only(t, c)
		if r.Phase != PhaseRolledBack || r.Return.Over.IsZero() != (pinned == 2) || strings.Contains(r.Why, "pinned to something else: b") != (pinned == 2) {
			t.Errorf("pinned to %d: %s, over %v: %s", pinned, r.Phase, r.Return.Over, r.Why)
		}
	}
}
