package rollout

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"routerd.dev/internal/version"
)

// doPlan carries out the commands of transcripts that are about strategies:
//
//	strategy NAME [evict] [manual] [loss=rollback] [grace=D] [unready=N] GROUPS: STEP… [| GROUPS: STEP…]
//	    steps: canary=N share=P[@KEY] match=HEADER analysis[=LIMIT][+CHECK] pause=D[,unjudged]
//	           approval[=D[,continue]] commit bake[=D][/REQUESTS][+CHECK]
//	settings strategy=NAME firstuse=NAME
//	needs N CAPABILITY…                           what revision N needs
//	promote [ID] [full], pause [ID], resume [ID], approve [ID]
//	measure A,B|* OLD[/ERRORS] NEW[/ERRORS]       what they count beside each other
//	check ID NAME passed|failed|errors|empty=N    what a check answered
//	slow A, quick A                               never, or again, gets done with a prepare
//	none A                                        A says that it holds nothing
//	condemn N, baked N
func (p *player) doPlan(f []string, opt map[string]string, out *bytes.Buffer) bool {
	w := p.w
	args := f[1:]
	switch f[0] {
	case "strategy":
		s := p.strategy(args)
		for _, x := range s.Validate() {
			p.t.Fatalf("strategy %s: %s", s.Name, x)
		}
		w.strategies[s.Name] = s
	case "settings":
		w.fleet.Settings.Strategy, w.fleet.Settings.FirstUse = opt["strategy"], opt["firstuse"]
		w.move()
	case "needs":
		n := p.number(args[0])
		w.publish(n)
		r := w.revisions[n]
		r.Needs = args[1:]
		w.revisions[n] = r
	case "promote", "pause", "resume", "approve":
		_, full := opt["full"]
		id := ""
		if len(args) > 0 {
			id = args[0]
		}
		p.ids++
		w.ask(Intent{ID: fmt.Sprintf("r%d", p.ids), Kind: IntentKind(f[0]), Rollout: id, Full: full})
	case "measure":
		names := strings.Split(args[0], ",")
		if args[0] == "*" {
			names = w.names()
		}
		oldN, oldBad := p.pair(args[1])
		newN, newBad := p.pair(args[2])
		for _, n := range names {
			w.measure(w.fleetOf[n], oldN, oldBad, newN, newBad)
		}
	case "check":
		p.check(args, opt)
	case "slow", "quick":
		w.fleetOf[args[0]].slow = f[0] == "slow"
	case "none":
		i := w.fleetOf[args[0]]
		w.ready[i.group][i.name] = Ready{Instance: i.name, Group: i.group}
		w.bump()
	case "condemn":
		d := ref(p.number(args[0])).Digest
		w.condemned[d] = Condemned{Digest: d}
	case "baked":
		w.baked[ref(p.number(args[0])).Digest] = true
	default:
		return false
	}
	return true
}

func (p *player) pair(s string) (n, bad uint64) {
	a, b, _ := strings.Cut(s, "/")
	n = uint64(p.number(a))
	if b != "" {
		bad = uint64(p.number(b))
	}
	return n, bad
}

func (p *player) duration(s string) Duration {
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		p.t.Fatal(err)
	}
	return Duration(d)
}

func (p *player) check(args []string, opt map[string]string) {
	r := p.w.rollouts[args[0]]
	c := p.w.checks[r.ID]
	if c.Wave != r.Cursor.Wave || c.Step != r.Cursor.Step || c.Results == nil {
		c = Checks{Rollout: r.ID, Wave: r.Cursor.Wave, Step: r.Cursor.Step, Results: map[string]CheckResult{}}
	}
	n := func(s string) int { v, _ := strconv.Atoi(s); return v }
	c.Results[args[1]] = CheckResult{
		Asked: p.w.now, Passed: n(opt["passed"]), Failed: n(opt["failed"]), Errors: n(opt["errors"]), Inconclusive: n(opt["empty"]),
		Error: map[bool]string{true: "connection refused"}[opt["errors"] != ""],
	}
	p.w.checks[r.ID] = c
}

func (p *player) strategy(args []string) Strategy {
	s := Strategy{Name: args[0]}
	var w *Wave
	for _, a := range args[1:] {
		k, v, _ := strings.Cut(a, "=")
		switch {
		case a == "evict":
			s.Straggler = StragglerEvict
		case a == "manual":
			s.ManualRollback = true
		case k == "loss":
			s.OnControllerLoss = Loss(v)
		case k == "grace":
			s.ControllerGrace = p.duration(v)
		case k == "unready":
			s.MaxUnready = Quantity(v)
		case a == "onebyone":
			w.OneByOne = true
		case a == "|":
		case strings.HasSuffix(a, ":"):
			s.Waves = append(s.Waves, Wave{Groups: strings.Split(strings.TrimSuffix(a, ":"), ",")})
			w = &s.Waves[len(s.Waves)-1]
		default:
			w.Steps = append(w.Steps, p.planStep(a))
		}
	}
	return s
}

func (p *player) planStep(a string) PlanStep {
	one, hundred := 1.0, 100.0
	a, check, asks := strings.Cut(a, "+")
	var checks []Check
	if asks {
		checks = []Check{{Name: check, Web: &WebCheck{URL: "http://check.example/"}, Min: &one, Max: &hundred, FailureLimit: 1, ErrorLimit: 2, InconclusiveLimit: 2, Passes: 2}}
	}
	k, v, _ := strings.Cut(a, "=")
	switch k {
	case "canary":
		return PlanStep{Canary: &CanaryStep{Instances: Quantity(v)}}
	case "share":
		v, key, _ := strings.Cut(v, "@")
		f, err := strconv.ParseFloat(v, 64)
		if err != nil {
			p.t.Fatal(err)
		}
		return PlanStep{Share: &ShareStep{Percent: f, Key: key}}
	case "match":
		return PlanStep{Match: &MatchStep{Match{Header: v}}}
	case "analysis":
		return PlanStep{Analysis: &AnalysisStep{InconclusiveLimit: p.duration(v), Checks: checks}}
	case "pause":
		v, unjudged := strings.CutSuffix(v, ",unjudged")
		return PlanStep{Pause: &PauseStep{For: p.duration(v), Unjudged: unjudged}}
	case "approval":
		v, other, _ := strings.Cut(v, ",")
		return PlanStep{Pause: &PauseStep{Approval: true, For: p.duration(v), Otherwise: Otherwise(other)}}
	case "commit":
		return PlanStep{Commit: &CommitStep{}}
	}
	k, n, _ := strings.Cut(a, "/")
	if name, v, _ := strings.Cut(k, "="); name == "bake" {
		b := &BakeStep{For: p.duration(v), Checks: checks}
		if n != "" {
			b.Requests = uint64(p.number(n))
		}
		return PlanStep{Bake: b}
	}
	p.t.Fatalf("no step %q", a)
	return PlanStep{}
}

// candidateText is what an assignment says beside its stable revision.
func candidateText(a Assignment) string {
	s := ""
	if c := a.Candidate; c != nil {
		s += fmt.Sprintf(", candidate %d", c.Number)
		if c.Permyriad > 0 {
			s += fmt.Sprintf(" for %v%% by %s", float64(c.Permyriad)/100, c.Key)
		}
		if len(c.Instances) > 0 {
			s += fmt.Sprintf(" on %v", c.Instances)
		}
		if c.Match != nil {
			s += " for testers with " + c.Match.Header
		}
	}
	if a.Against != (version.Ref{}) {
		s += fmt.Sprintf(", against %d", a.Against.Number)
	}
	return s
}

// place tells where in its plan a rollout is.
func place(r Rollout) string {
	if r.Plan == nil || r.Phase.Final() {
		return ""
	}
	if r.Cursor.Wave >= len(r.Plan.Waves) || r.Phase == PhaseReturning {
		return ""
	}
	w := r.Plan.Waves[r.Cursor.Wave]
	s := fmt.Sprintf(", wave %d %v", r.Cursor.Wave, w.Groups)
	if r.Phase == PhaseRunning {
		s += fmt.Sprintf(" at step %d, %s", r.Cursor.Step, w.Steps[r.Cursor.Step].Kind())
	}
	return s
}

func (p *player) printPlan(out *bytes.Buffer, c Change, r Rollout) {
	if r.Hold != nil {
		kind := "until that ends"
		if r.Hold.Operator {
			kind = "for an operator"
		}
		fmt.Fprintf(out, "    held %s by %s: %s\n", kind, r.Hold.By, masked(r, r.Hold.Why))
	}
	if ret := r.Return; ret != nil && r.Phase.Final() {
		took := "unknown"
		if !ret.Over.IsZero() {
			took = ret.Over.Sub(ret.Decided).String()
		}
		fmt.Fprintf(out, "    back to %v, by %s, %s after the decision\n", ret.To, ret.By, took)
		if ret.Evidence != nil {
			fmt.Fprintf(out, "    with evidence: %s\n", ret.Evidence.Verdict)
		}
	}
	if r.Plan != nil && r.Phase == PhaseDone {
		for _, d := range c.Bake {
			fmt.Fprintf(out, "    baked %s\n", p.name(d))
		}
	}
	if r.Note != "" && slices.Contains([]Phase{PhaseFirst, PhaseDone}, r.Phase) {
		fmt.Fprintf(out, "    note: %s\n", r.Note)
	}
}

// run lets time pass until end, and tells the changes that say something new.
func (p *player) run(out *bytes.Buffer, end time.Time) {
	for {
		next := p.w.step(func(c Change) {
			var b bytes.Buffer
			p.print(&b, c)
			only := len(c.Groups)+len(c.Prepares)+len(c.Withdraw)+len(c.Done) == 0 && c.Fleet == nil
			if s := b.String(); !only || s != p.told {
				fmt.Fprintf(out, "at +%v: %s", p.w.now.Sub(epoch0), s)
				p.told = s
			}
		})
		if !p.w.now.Before(end) {
			return
		}
		if next.IsZero() || next.After(end) {
			next = end
		}
		if !next.After(p.w.now) {
			p.t.Fatalf("it asks to be stepped at %v, now", next)
		}
		p.w.now = next
	}
}

// saidOf is why r stands where it stands, without what package analysis says:
// that is for its own tests.
func saidOf(r Rollout) string { return masked(r, r.Why) }

func masked(r Rollout, why string) string {
	if r.Evidence == nil || r.Evidence.Why == "" {
		return why
	}
	return strings.ReplaceAll(why, strings.TrimPrefix(r.Evidence.Why, string(r.Evidence.Verdict)+": "), "(evidence)")
}
