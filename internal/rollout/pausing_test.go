package rollout

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/version"
)

// failing has every instance of main say that revision 2 fails, beside revision 1.
func failing(v *View) {
	v.Measures = make(map[string]Measure)
	for n := range v.Ready["main"] {
		m := Measure{Instance: n, Group: "main", Boot: v.Instances[n].Boot, Epoch: 10, Old: ref(1).Digest, New: ref(2).Digest}
		m.Sample.All = analysis.Pair{Stable: counts(60000, 0), Candidate: counts(20000, 12000)}
		v.Measures[n] = m
	}
}

// committed has main serve revision 2, beside which 1 was, and puts r's step
// after the commit.
func committed(v *View, r *Rollout) {
	a := v.Groups["main"]
	a.Stable, a.Candidate, a.Back, a.Against = ref(2), nil, []version.Ref{ref(1)}, ref(1)
	v.Groups["main"] = a
	w := &r.Plan.Waves[0]
	w.Steps[1], w.Steps[2], r.Cursor.Step = w.Steps[2], w.Steps[1], 2
}

// TestFailuresGoBack: what fails is taken back at whatever step it is compared,
// also while an operator holds the rollout; and in a pause nothing else follows
// from it.
func TestFailuresGoBack(t *testing.T) {
	const day = Duration(24 * time.Hour)
	steps := map[string]PlanStep{
		"pause":    {Pause: &PauseStep{For: day}},
		"approval": {Pause: &PauseStep{Approval: true, For: day}},
		"analysis": analysisStep(),
		"bake":     {Bake: &BakeStep{For: day}},
	}
	for name, step := range steps {
		for _, after := range []bool{false, true} {
			if after && name == "analysis" || !after && name == "bake" {
				continue
			}
			for how, edit := range map[string]func(*View, *Rollout){
				"":                  func(*View, *Rollout) {},
				"held":              func(_ *View, r *Rollout) { r.Hold = &Hold{By: "op", Why: "paused by op", Operator: true} },
				"approved":          func(_ *View, r *Rollout) { r.Cursor.Approved = true },
				"after a long time": func(_ *View, r *Rollout) { r.Cursor.Since = epoch0.Add(-time.Hour) },
			} {
				v := sharing(t, step, func(v *View, r *Rollout) {
					if after {
						committed(v, r)
					}
					failing(v)
					edit(v, r)
				})
				c, _ := Step(v, epoch0.Add(10*time.Second))
				r := only(t, c)
				if r.Phase != PhaseReturning || r.Return.Evidence == nil || r.Return.Evidence.Verdict != analysis.Fail {
					t.Errorf("%s %s, after the commit %v: %s: %s", name, how, after, r.Phase, r.Why)
				}
				if said := strings.Contains(r.Why, "during a pause "); said != (step.Pause != nil) {
					t.Errorf("%s %s, after the commit %v: %s", name, how, after, r.Why)
				}
			}
		}
	}
}

// TestPausesThatDoNotGoBack: when nothing serves, nothing may be judged, an
// operator is to decide, or nothing is wrong, a pause is a pause.
func TestPausesThatDoNotGoBack(t *testing.T) {
	for _, e := range []struct {
		name string
		edit func(*View, *Rollout)
		held bool
	}{
		{"unjudged", func(_ *View, r *Rollout) { r.step().Pause.Unjudged = true }, false},
		{"counted of another epoch", func(v *View, r *Rollout) {
			a := v.Groups["main"]
			a.Epoch, r.Epochs = 11, map[string]int64{"main": 11}
			v.Groups["main"] = a
		}, false},
		{"nothing counted", func(v *View, _ *Rollout) { v.Measures = nil }, false},
		{"nothing serves it", func(v *View, _ *Rollout) {
			a := v.Groups["main"]
			a.Candidate = nil
			v.Groups["main"] = a
		}, false},
		{"promoted in full, to be confirmed", func(v *View, r *Rollout) {
			committed(v, r)
			r.Full, r.Revert = true, time.Hour
		}, false},
		{"by hand", func(_ *View, r *Rollout) { r.Plan.ManualRollback = true }, true},
		{"no way back", func(v *View, r *Rollout) {
			committed(v, r)
			v.Condemned = map[version.Digest]Condemned{ref(1).Digest: {}}
		}, true},
	} {
		v := sharing(t, PlanStep{Pause: &PauseStep{For: Duration(time.Hour)}}, func(v *View, r *Rollout) {
			failing(v)
			e.edit(v, r)
		})
		c, next := Step(v, epoch0.Add(10*time.Second))
		r := only(t, c)
		if r.Phase != PhaseRunning || (r.Hold != nil) != e.held || next.IsZero() {
			t.Errorf("%s: %s: %s, held %+v", e.name, r.Phase, r.Why, r.Hold)
		}
		if !e.held && r.Why != "it pauses until 01:00:00" {
			t.Errorf("%s: %s", e.name, r.Why)
		}
	}
}

// TestPausesAreQuiet: what a pause finds is written now and then, the more seldom
// the longer it lasts, and why it pauses stays to be read.
func TestPausesAreQuiet(t *testing.T) {
	v := sharing(t, PlanStep{Pause: &PauseStep{Approval: true}}, func(v *View, _ *Rollout) {
		failing(v)
		for n, m := range v.Measures {
			m.Sample.All = analysis.Pair{Stable: counts(600, 0), Candidate: counts(200, 0)}
			v.Measures[n] = m
		}
	})
	now, written := epoch0, 0
	looks := func(d time.Duration) (n int) {
		for end := now.Add(d); now.Before(end); n++ {
			c, next := Step(v, now)
			if len(c.Rollouts) > 0 {
				was := v.Rollouts[0]
				v.Rollouts = c.Rollouts
				if r := v.Rollouts[0]; !reflect.DeepEqual(was.Evidence, r.Evidence) || !was.Judged.Equal(r.Judged) {
					written++
				}
			}
			if r := v.Rollouts[0]; !strings.HasPrefix(r.Why, "it waits for an approval") {
				t.Fatalf("at +%v: %s", now.Sub(epoch0), r.Why)
			}
			if !next.After(now) {
				next = now.Add(time.Millisecond) // a change calls for another look
			}
			now = next
		}
		return n
	}
	looks(10 * time.Minute)
	if most := 10*60/2 + 2; written > most || written < most/2 {
		t.Errorf("written %d times in ten minutes, want about %d", written, most)
	}
	written = 0
	looks(10 * time.Minute)
	if most := 10*60/10 + 2; written > most || written < most/2 {
		t.Errorf("written %d times in ten minutes later, want about %d", written, most)
	}
}

// TestJudgedBy: a pause judges by what its wave judges by next to it.
func TestJudgedBy(t *testing.T) {
	config := func(seconds float64) analysis.Config { return analysis.Config{MinSeconds: seconds} }
	judge := func(c analysis.Config) PlanStep { return PlanStep{Analysis: &AnalysisStep{Config: c}} }
	watch := func(c analysis.Config) PlanStep {
		return PlanStep{Bake: &BakeStep{For: Duration(time.Minute), Config: &c}}
	}
	pause := PlanStep{Pause: &PauseStep{Approval: true}}
	named := analysis.Config{MinSeconds: 3, Metrics: map[string]analysis.Metric{"latency": {MinEffect: 0.2}, "notFound": {Off: true}}}
	unnamed := analysis.Config{MinSeconds: 3, Metrics: map[string]analysis.Metric{"notFound": {Off: true}}}
	off := analysis.Config{Metrics: map[string]analysis.Metric{"latency": {Off: true}}}
	for _, e := range []struct {
		name  string
		steps []PlanStep
		at    int
		want  analysis.Config
	}{
		{"nothing judges", []PlanStep{shareStep(1), pause, commitStep()}, 1, analysis.Config{}},
		{"before", []PlanStep{shareStep(1), judge(config(1)), shareStep(2), pause, judge(config(2)), commitStep()}, 3, config(1)},
		{"after", []PlanStep{shareStep(1), pause, judge(config(1)), judge(config(2)), commitStep()}, 1, config(1)},
		{"latest before", []PlanStep{shareStep(1), judge(config(1)), judge(config(2)), pause, commitStep()}, 3, config(2)},
		{"only a bake", []PlanStep{shareStep(1), pause, commitStep(), watch(config(4))}, 1, config(4)},
		{"a bake after", []PlanStep{shareStep(1), judge(named), commitStep(), pause, watch(config(4))}, 3, config(4)},
		{"a bake before", []PlanStep{shareStep(1), judge(named), commitStep(), watch(config(4)), pause}, 4, config(4)},
		{"a bake that has none", []PlanStep{shareStep(1), judge(named), commitStep(), bakeStep(time.Minute), pause}, 4, analysis.Config{}},
		{"latency is for comparisons at the same time", []PlanStep{shareStep(1), judge(named), commitStep(), pause}, 3, unnamed},
		{"and off stays off", []PlanStep{shareStep(1), judge(off), commitStep(), pause}, 3, off},
		{"an analysis", []PlanStep{shareStep(1), judge(config(1)), commitStep()}, 1, config(1)},
		{"a bake", []PlanStep{commitStep(), watch(config(2))}, 1, config(2)},
		{"what does not judge", []PlanStep{shareStep(1), judge(config(1)), commitStep()}, 2, analysis.Config{}},
	} {
		r := Rollout{Phase: PhaseRunning, Plan: &Strategy{Waves: []Wave{{Steps: e.steps}}}, Cursor: Cursor{Step: e.at}}
		if got := r.JudgedBy(); !reflect.DeepEqual(got, e.want) {
			t.Errorf("%s: %+v, want %+v", e.name, got, e.want)
		}
	}
	if _, ok := named.Metrics["latency"]; !ok {
		t.Error("a strategy was changed")
	}
	if got := (&Rollout{}).JudgedBy(); !reflect.DeepEqual(got, analysis.Config{}) {
		t.Errorf("a rollout without a plan judges by %+v", got)
	}
}

// TestWhatNobodyApprovedInTime goes back, also where it fails and must not go back
// for that.
func TestWhatNobodyApprovedInTime(t *testing.T) {
	v := sharing(t, PlanStep{Pause: &PauseStep{Approval: true, For: Duration(time.Hour)}}, func(v *View, r *Rollout) {
		failing(v)
		r.Plan.ManualRollback, r.Alive = true, epoch0.Add(2*time.Hour)
	})
	c, _ := Step(v, epoch0.Add(time.Minute))
	if r := only(t, c); r.Phase != PhaseRunning || r.Hold == nil {
		t.Errorf("in time: %s, %+v", r.Phase, r.Hold)
	}
	c, _ = Step(v, epoch0.Add(time.Hour))
	if r := only(t, c); r.Phase != PhaseReturning || !strings.Contains(r.Why, "nobody approved it within 1h") {
		t.Errorf("too late: %s: %s", r.Phase, r.Why)
	}
}

// TestIdleBakesAreQuiet: a bake that waits for somebody to ask is looked at less
// often after a while.
func TestIdleBakesAreQuiet(t *testing.T) {
	for after, want := range map[time.Duration]time.Duration{6 * time.Minute: watchEvery, time.Hour: waitLater} {
		v := sharing(t, PlanStep{Bake: &BakeStep{For: Duration(5 * time.Minute)}}, func(v *View, r *Rollout) {
			committed(v, r)
			r.Alive = epoch0.Add(2 * time.Hour)
		})
		now := epoch0.Add(after)
		c, next := Step(v, now)
		if r := only(t, c); r.Hold == nil || !strings.Contains(r.Hold.Why, "nobody asked") {
			t.Errorf("after %v: %+v", after, r.Hold)
		}
		v.Rollouts[0] = only(t, c)
		if c, again := Step(v, now.Add(want)); !c.IsZero() || next.Sub(now) > want || again.Sub(now) != 2*want {
			t.Errorf("after %v: looked again after %v, then %v, and decided %s", after, next.Sub(now), again.Sub(now), dump(c))
		}
	}
}
