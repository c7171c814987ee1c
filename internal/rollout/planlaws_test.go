package rollout

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
	"routerd.dev/internal/analysis"
)

// drawStrategy makes a strategy that Validate finds nothing wrong with.
func drawStrategy(t *rapid.T, name string) Strategy {
	s := Strategy{
		Name:             name,
		Straggler:        rapid.SampledFrom([]Straggler{"", StragglerAbort, StragglerEvict}).Draw(t, "straggler"),
		OnControllerLoss: rapid.SampledFrom([]Loss{"", LossHold, LossRollback}).Draw(t, "loss"),
		ManualRollback:   rapid.IntRange(0, 4).Draw(t, "manual") == 0,
		MaxUnready:       rapid.SampledFrom([]Quantity{"", "1", "50%", "100%"}).Draw(t, "unready"),
	}
	for _, groups := range rapid.SampledFrom([][][]string{
		{{"*"}},
		{{"canary"}, {"*"}},
		{{"*"}, {"canary"}},
		{{"canary", "*"}},
		{{"main"}, {"edge", "canary"}, {"*"}},
	}).Draw(t, "waves") {
		w := Wave{Groups: groups, Steps: drawSteps(t), OneByOne: rapid.IntRange(0, 3).Draw(t, "one by one") == 0}
		s.Waves = append(s.Waves, w)
	}
	return s
}

func drawSteps(t *rapid.T) []PlanStep {
	var out []PlanStep
	maybe := func(part int, what string) bool { return rapid.IntRange(1, part).Draw(t, what) == 1 }
	wait := func() {
		if maybe(4, "pause") {
			serves := slices.ContainsFunc(out, func(s PlanStep) bool { return s.changes() })
			out = append(out, PlanStep{Pause: &PauseStep{For: Duration(30 * time.Second), Unjudged: serves && maybe(3, "unjudged")}})
		}
		if maybe(6, "approval") {
			out = append(out, PlanStep{Pause: &PauseStep{Approval: true, For: Duration(time.Minute), Otherwise: rapid.SampledFrom([]Otherwise{"", OtherwiseContinue}).Draw(t, "otherwise")}})
		}
	}
	watch := func() {
		if maybe(2, "analysis") {
			out = append(out, PlanStep{Analysis: &AnalysisStep{Config: analysis.Config{MinSeconds: 10}, InconclusiveLimit: Duration(90 * time.Second)}})
		}
		wait()
	}
	wait()
	if maybe(4, "match") {
		out = append(out, PlanStep{Match: &MatchStep{Match{Header: "X-Test"}}})
		wait()
	}
	if maybe(2, "canary") {
		q := rapid.SampledFrom([]Quantity{"1", "2", "50%", "100%"}).Draw(t, "quantity")
		out = append(out, PlanStep{Canary: &CanaryStep{Instances: q}})
		watch()
	}
	share := 0.0
	for range rapid.IntRange(0, 3).Draw(t, "shares") {
		share = min(share+float64(rapid.IntRange(1, 4000).Draw(t, "more"))/100, 100)
		out = append(out, PlanStep{Share: &ShareStep{Percent: math.Round(share*100) / 100}})
		watch()
	}
	out = append(out, commitStep())
	wait()
	if maybe(2, "bake") {
		out = append(out, bakeStep(20*time.Second))
	}
	return out
}

// planActions is what may happen to rollouts with plans, and to those who serve
// them.
func (m *machine) planActions() map[string]func(*rapid.T) {
	w := m.w
	one := func(t *rapid.T) *inst { return w.fleetOf[rapid.SampledFrom(w.names()).Draw(t, "instance")] }
	order := func(k IntentKind) func(*rapid.T) {
		return func(t *rapid.T) {
			m.ids++
			in := Intent{ID: fmt.Sprintf("r%d", m.ids), Kind: k, Full: rapid.IntRange(0, 5).Draw(t, "full") == 0}
			if rapid.Bool().Draw(t, "named") {
				in.Rollout = fmt.Sprintf("r%d", rapid.IntRange(1, m.ids).Draw(t, "rollout"))
			}
			w.ask(in)
		}
	}
	return map[string]func(*rapid.T){
		"strategy": func(t *rapid.T) {
			s := drawStrategy(t, "s")
			if p := s.Validate(); len(p) > 0 {
				t.Fatalf("%q in %s", p, dump(s))
			}
			w.strategies["s"] = s
		},
		"plan": func(t *rapid.T) {
			if _, ok := w.strategies["s"]; !ok {
				t.Skip("no strategy")
			}
			m.ids++
			m.revs++
			w.publish(m.revs)
			if rapid.IntRange(0, 5).Draw(t, "fault") == 0 {
				w.bad[fmt.Sprintf("i%d/%d", rapid.IntRange(0, 3).Draw(t, "who"), m.revs)] = "does not compile"
			}
			in := Intent{ID: fmt.Sprintf("r%d", m.ids), Kind: IntentSwitch, To: ref(m.revs), Strategy: "s"}
			in.Supersede = rapid.IntRange(0, 3).Draw(t, "supersede") == 0
			if rapid.IntRange(0, 3).Draw(t, "revert") == 0 {
				in.Revert = 10 * time.Minute
			}
			if rapid.IntRange(0, 4).Draw(t, "scope") == 0 {
				in.Groups = []string{"main"}
			}
			w.ask(in)
		},
		// One event that brings a rollout forward, or random runs would seldom get far.
		"turn": func(*rapid.T) {
			w.step(func(Change) {})
			for _, n := range w.names() {
				if i := w.fleetOf[n]; i.up {
					w.look(i)
					w.act(i)
					w.look(i)
				}
			}
			w.step(func(Change) {})
		},
		"promote": order(IntentPromote),
		"pause":   order(IntentPause),
		"resume":  order(IntentResume),
		"approve": order(IntentApprove),
		"slow":    func(t *rapid.T) { i := one(t); i.slow = !i.slow },
		"measure": func(t *rapid.T) {
			bad := uint64(0)
			if rapid.IntRange(0, 4).Draw(t, "bad") == 0 {
				bad = 40000
			}
			for _, n := range w.names() {
				w.measure(w.fleetOf[n], 90000, 0, 90000, bad)
			}
		},
		"seconds": func(t *rapid.T) {
			for range rapid.IntRange(1, 7).Draw(t, "tens") {
				w.now = w.now.Add(10 * time.Second)
				w.step(func(Change) {})
			}
		},
		"bake": func(t *rapid.T) { w.baked[ref(rapid.Int64Range(1, m.revs).Draw(t, "revision")).Digest] = true },
	}
}

// TestModelPlans adds rollouts with plans, their operators, and instances that
// are slow and are evicted, to the schedules of TestModel. Its laws are those of
// the world: see check, checkPlans and checkCandidate.
func TestModelPlans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		acts := m.actions()
		maps.Copy(acts, m.planActions())
		// Most schedules are to come far: what brings a rollout forward comes often.
		for _, again := range []string{"1", "2", "3", "4"} {
			acts["turn"+again], acts["seconds"+again], acts["measure"+again] = acts["turn"], acts["seconds"], acts["measure"]
		}
		acts["strategy"](t)
		for range rapid.IntRange(1, 6).Draw(t, "runs") {
			m.ids++
			m.revs++
			w := m.w
			w.publish(m.revs)
			w.ask(Intent{ID: fmt.Sprintf("r%d", m.ids), Kind: IntentSwitch, To: ref(m.revs), Strategy: "s", Supersede: rapid.Bool().Draw(t, "supersede")})
			acts["turn"](t)
			acts["turn"](t)
			t.Repeat(acts)
			if rapid.Bool().Draw(t, "another") {
				acts["strategy"](t)
			}
		}
		m.endPlans(t)
		m.ends(t)
		for _, g := range sorted(m.w.groups) {
			if c := m.w.groups[g].Candidate; c != nil {
				t.Fatalf("%s has candidate %d, and no rollout is in progress", g, c.Number)
			}
		}
	})
}

// endPlans ends what waits for an operator.
func (m *machine) endPlans(t *rapid.T) {
	w := m.w
	w.poison = map[string]bool{}
	for _, n := range w.names() {
		w.fleetOf[n].slow = false
		if i := w.fleetOf[n]; !i.up {
			w.start(n, i.group)
		}
	}
	w.settle()
	w.ids(m, IntentAbort, "")
	for range 3 {
		w.settle()
		w.now = w.now.Add(20 * time.Second)
	}
	w.settle()
	for _, r := range w.view().Rollouts {
		if r.Plan != nil {
			t.Fatalf("rollout %s was aborted and is %s: %s, held: %+v", r.ID, r.Phase, r.Why, r.Hold)
		}
	}
}

// TestPlanEnds: without faults and with good numbers each plan ends by itself,
// with every group where it was to go, and looks only when time or data call
// for it.
func TestPlanEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, s := fleetAt(t, 1), drawStrategy(t, "s")
		s.ManualRollback = false
		for i := range s.Waves {
			s.Waves[i].Steps = slices.DeleteFunc(s.Waves[i].Steps, func(s PlanStep) bool { return s.Pause != nil && s.Pause.Approval })
		}
		w.strategies["s"] = s
		w.publish(2)
		w.ask(Intent{ID: "r1", Kind: IntentSwitch, To: ref(2), Strategy: "s"})
		w.play(t, func(i *inst) { w.measure(i, 90000, 0, 90000, 0) })
		r := w.rollouts["r1"]
		// A group of one has no canary, and what has no data does not pass.
		if r.Phase != PhaseDone && r.Evidence.Verdict == analysis.Inconclusive && w.loneIn(r) {
			return
		}
		if r.Phase != PhaseDone || !w.baked[ref(2).Digest] {
			t.Fatalf("%s: %s, evidence %+v", r.Phase, r.Why, r.Evidence)
		}
		for g, a := range w.groups {
			if a.Stable != ref(2) || a.Candidate != nil || w.fleet.Committed != ref(2) {
				t.Fatalf("%s serves %+v", g, a)
			}
		}
	})
}

// loneIn tells that a wave of r has only groups of one instance.
func (w *world) loneIn(r Rollout) bool {
	return slices.ContainsFunc(r.Plan.Waves, func(x Wave) bool {
		return !slices.ContainsFunc(x.Groups, func(g string) bool { return len(w.ready[g]) > 1 })
	})
}

// TestPlanGoesBack: whenever the candidate does worse in a plan that compares,
// every group is where it was, the target too, and nothing is half way.
func TestPlanGoesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, s := fleetAt(t, 1), drawStrategy(t, "s")
		s.ManualRollback = false
		w.strategies["s"] = s
		w.publish(2)
		w.ask(Intent{ID: "r1", Kind: IntentSwitch, To: ref(2), Strategy: "s"})
		w.play(t, func(i *inst) { w.measure(i, 90000, 0, 90000, 60000) })
		r := w.rollouts["r1"]
		watched := slices.ContainsFunc(r.Plan.Waves, func(w Wave) bool {
			return slices.ContainsFunc(w.Steps, func(s PlanStep) bool { return s.Analysis != nil || s.Bake != nil }) || pausesAfterCommit(w)
		})
		switch {
		case r.Phase == PhaseDone && !watched:
		case r.Phase == PhaseRolledBack:
			for g, a := range w.groups {
				if a.Stable != ref(1) || a.Candidate != nil || w.fleet.Committed != ref(1) || w.fleet.Target != ref(1) {
					t.Fatalf("%s serves %+v, target %d", g, a, w.fleet.Target.Number)
				}
			}
			if r.Return.Over.IsZero() || r.Return.Over.Sub(r.Return.Decided) > returnReports {
				t.Fatalf("back at %+v", r.Return)
			}
		case r.Phase == PhaseAborted && len(r.Epochs) == 0: // Nobody approved it before there was anything to compare.
		default:
			t.Fatalf("%s: %s", r.Phase, r.Why)
		}
	})
}

// pausesAfterCommit tells that a pause judges what w committed.
func pausesAfterCommit(w Wave) bool {
	i := slices.IndexFunc(w.Steps, func(s PlanStep) bool { return s.Commit != nil })
	return slices.ContainsFunc(w.Steps[i:], func(s PlanStep) bool { return s.Pause != nil && !s.Pause.Unjudged })
}

func fleetAt(t *rapid.T, n int64) *world {
	w := newWorld()
	w.fleet.Target, w.fleet.Committed = ref(n), ref(n)
	w.served[ref(n).Digest] = true
	w.publish(n)
	most := map[string]int{"canary": 2, "edge": 2, "main": 4}
	for _, g := range sorted(most) {
		for i := range rapid.IntRange(1, most[g]).Draw(t, g) {
			w.start(fmt.Sprintf("%s%d", g, i), g)
		}
	}
	w.settle()
	return w
}

// play runs a fleet without faults until no rollout is in progress, or nothing
// calls for another step. Whatever Step does not ask to be stepped for, it is
// not.
func (w *world) play(t *rapid.T, count func(*inst)) {
	for range 5000 {
		for {
			before := w.rev
			next := w.step(func(Change) {})
			moved := w.rev != before
			for _, n := range w.names() {
				i := w.fleetOf[n]
				was := fmt.Sprint(i.epoch, w.ready[i.group][n])
				w.look(i)
				w.act(i)
				w.look(i)
				moved = moved || was != fmt.Sprint(i.epoch, w.ready[i.group][n])
			}
			if moved {
				continue
			}
			if len(w.view().Rollouts) == 0 {
				if len(w.broken) > 0 {
					t.Fatalf("broken: %q", w.broken)
				}
				return
			}
			if next.IsZero() || !next.After(w.now) {
				t.Fatalf("it is stuck: looks again at %v, now %v: %s", next, w.now, dump(w.view().Rollouts))
			}
			w.now = next
			for _, n := range w.names() {
				count(w.fleetOf[n])
			}
			break
		}
	}
	t.Fatalf("it does not end: %s", dump(w.view().Rollouts))
}

// TestCanariesStay: who is a canary instance stays one when others come and go,
// an instance that comes changes the choice by at most itself, and it is never
// all.
func TestCanariesStay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := &draft{v: &View{}}
		r := &Rollout{Intent: Intent{ID: "r1"}, Salt: rapid.String().Draw(t, "salt")}
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z]{1,3}[0-9]{1,3}`), 2, 30, rapid.ID).Draw(t, "names")
		s := &CanaryStep{Instances: rapid.SampledFrom([]Quantity{"1", "3", "10%", "50%", "100%"}).Draw(t, "quantity")}
		choose := func(names, had []string) []string {
			m := move{from: Assignment{Rollout: "r1"}}
			if len(had) > 0 {
				m.from.Candidate = &Candidate{Instances: had}
			}
			for _, n := range slices.Sorted(slices.Values(names)) {
				m.regs = append(m.regs, Ready{Instance: n})
			}
			return d.chooseCanaries(r, m, s)
		}
		got := choose(names, nil)
		if len(got) == 0 || len(got) >= len(names) {
			t.Fatalf("%d of %d", len(got), len(names))
		}
		fewer := choose(names[:len(names)-1], nil)
		grown := choose(names, fewer)
		for _, n := range fewer {
			if !slices.Contains(grown, n) {
				t.Fatalf("%s is swapped: %v after %v", n, grown, fewer)
			}
		}
		if k := slices.DeleteFunc(slices.Clone(got), func(n string) bool { return slices.Contains(fewer, n) }); len(k) > 2 {
			t.Fatalf("one more instance changes %v", k)
		}
	})
}

// TestPlanOrder: what is decided of plans does not depend on the order of maps,
// nor on the way through etcd.
func TestPlanOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		acts := m.actions()
		maps.Copy(acts, m.planActions())
		acts[""] = func(t *rapid.T) {
			v := m.w.view()
			c1, n1 := Step(v, m.w.now)
			c2, n2 := Step(shuffled(t, v), m.w.now)
			if a, b := dump(c1), dump(c2); a != b || !n1.Equal(n2) {
				t.Fatalf("decided differently:\n%s\n%s", a, b)
			}
		}
		t.Repeat(acts)
	})
}

// TestStepIsQuiet: what was decided is not decided again: right after its
// change, and a moment later, there is nothing to write, whatever is measured.
func TestStepIsQuiet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := fleetAt(t, 1)
		s := drawStrategy(t, "s")
		w.strategies["s"] = s
		w.publish(2)
		w.ask(Intent{ID: "r1", Kind: IntentSwitch, To: ref(2), Strategy: "s"})
		for range 40 {
			w.step(func(Change) {})
			for _, n := range w.names() {
				w.look(w.fleetOf[n])
				w.act(w.fleetOf[n])
				w.measure(w.fleetOf[n], 1000, 3, uint64(rapid.IntRange(0, 50000).Draw(t, "n")), 0)
			}
			next := w.step(func(Change) {})
			for range 5 {
				w.now = w.now.Add(time.Millisecond)
				if !next.IsZero() && !w.now.Before(next) {
					break
				}
				if c, _ := Step(w.view(), w.now); !c.IsZero() {
					t.Fatalf("a moment later, before %v: %s", next, dump(c))
				}
			}
			w.now = w.now.Add(time.Second)
		}
	})
}
