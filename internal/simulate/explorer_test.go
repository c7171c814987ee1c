package simulate

import (
	"encoding/json"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/rollout"
)

// bounds are how often each fault may still happen. A dead process may always
// start again.
type bounds struct {
	Deaths, Joins, Elections, Refusals, Lapses, Aborts, Rollbacks, Absences, Losses int8
	Total                                                                           int8 // of them all; 0 for no bound but theirs
}

// covers tells whether whatever may happen within o may happen within b.
func (b bounds) covers(o bounds) bool {
	return b.Deaths >= o.Deaths && b.Joins >= o.Joins && b.Elections >= o.Elections && b.Refusals >= o.Refusals &&
		b.Lapses >= o.Lapses && b.Aborts >= o.Aborts && b.Rollbacks >= o.Rollbacks && b.Absences >= o.Absences && b.Losses >= o.Losses && b.Total >= o.Total
}

func (b bounds) sum() int {
	return int(b.Deaths + b.Joins + b.Elections + b.Refusals + b.Lapses + b.Aborts + b.Rollbacks + b.Absences + b.Losses)
}

// A scene is what is explored: a fleet, what may befall it, and the step.
type scene struct {
	fleet  *Fleet
	left   bounds
	step   stepFunc
	joiner string // the group that an instance may join
	most   int    // states; 0 for no bound
	every  int32  // in which of the states maps are put in another order

	// coarse has an instance build when it speaks or switches, and report and
	// join at once: nobody can tell the difference before it does.
	coarse bool

	// tick is the least time that passes at once, and data has instances
	// measure: for plans. What an analysis finds is left open.
	tick time.Duration
	data bool

	// patient: time passes only when no living instance has something to do.
	// That one is too slow is explored without plans.
	patient bool
}

// A state is a fleet with what may still befall it.
type state struct {
	id   int32
	f    *Fleet
	left bounds
}

// A trace is how a state was reached first.
type trace struct {
	from int32
	by   uint16
}

type explorer struct {
	scene
	seeds   [2]maphash.Seed
	ids     map[[2]uint64]int32
	traces  []trace
	lefts   [][]bounds // with which a state was visited; none covers another
	spans   [][2]int32 // where in edges those of a state are
	labels  []string
	labelOf map[string]uint16
	queues  [][]*state // by how many faults happened, so that a counterexample has the fewest
	buf     []byte

	edges    []int32 // without faults
	waits    []bool  // an operator or data is waited for
	moves    int
	depth    int
	depths   []int32
	violated string
	at       int32
	last     string // what was done in that state
}

func explore(s scene) *explorer {
	if s.left.Total == 0 {
		s.left.Total = int8(s.left.sum())
	}
	x := &explorer{scene: s, seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, ids: map[[2]uint64]int32{}, labelOf: map[string]uint16{}}
	x.queues = make([][]*state, s.left.sum()+1)
	x.visit(s.fleet, s.left, -1, "start")
	for i := range x.queues {
		for head := 0; head < len(x.queues[i]) && x.violated == ""; head++ {
			at := x.queues[i][head]
			x.queues[i][head] = nil
			x.expand(at)
			if s.most > 0 && len(x.traces) > s.most {
				x.violated = "too many states"
			}
		}
		x.queues[i] = nil
	}
	return x
}

// visit returns the id of a state, which is queued unless more could happen
// when it was visited before.
func (x *explorer) visit(f *Fleet, left bounds, from int32, by string) int32 {
	x.buf = f.canonical(x.buf[:0])
	key := [2]uint64{maphash.Bytes(x.seeds[0], x.buf), maphash.Bytes(x.seeds[1], x.buf)}
	x.moves++
	id, ok := x.ids[key]
	if !ok {
		id = x.enter(key, from, by)
	}
	if len(f.broken) > 0 && x.violated == "" { // Also on a way to a state that others reach lawfully.
		x.violated, x.at, x.last = strings.Join(f.broken, "; "), from, by
	}
	if slices.ContainsFunc(x.lefts[id], func(b bounds) bool { return b.covers(left) }) {
		return id
	}
	x.lefts[id] = append(slices.DeleteFunc(x.lefts[id], left.covers), left)
	k := x.left.sum() - left.sum()
	x.queues[k] = append(x.queues[k], &state{id, f, left})
	return id
}

func (x *explorer) enter(key [2]uint64, from int32, by string) int32 {
	id := int32(len(x.traces))
	x.ids[key] = id
	label, ok := x.labelOf[by]
	if !ok {
		label = uint16(len(x.labels))
		x.labels = append(x.labels, by)
		x.labelOf[by] = label
	}
	d := int32(0)
	if from >= 0 {
		d = x.depths[from] + 1
	}
	x.traces = append(x.traces, trace{from, label})
	x.lefts = append(x.lefts, nil)
	x.spans = append(x.spans, [2]int32{-1, -1})
	x.waits = append(x.waits, false)
	x.depths = append(x.depths, d)
	x.depth = max(x.depth, int(d))
	return id
}

// path tells how state id was reached.
func (x *explorer) path(id int32) string {
	var steps []string
	for ; id >= 0; id = x.traces[id].from {
		steps = append(steps, x.labels[x.traces[id].by])
	}
	slices.Reverse(steps)
	return strings.Join(steps, "\n  ")
}

// expand visits whatever may come next.
func (x *explorer) expand(s *state) {
	f := s.f
	first := x.spans[s.id][0] < 0
	begin := len(x.edges)
	next := func(fault bool, by string, left bounds, do func(*Fleet)) {
		g := f.Clone()
		do(g)
		if x.coarse {
			g.hasten()
		}
		to := x.visit(g, left, s.id, by)
		if first && !fault && to != s.id {
			x.edges = append(x.edges, to)
		}
	}
	for _, p := range f.procs {
		for _, what := range x.deeds() {
			if f.may(p, what) {
				d := deed{what, p.name}
				next(what == deedRestart, d.String(), s.left, func(g *Fleet) { g.do(d) })
			}
		}
		x.faults(s, p, next)
	}
	x.controller(s, next)
	x.operator(s, next)
	if !first {
		return
	}
	x.spans[s.id] = [2]int32{int32(begin), int32(len(x.edges))}
	x.waits[s.id] = slices.ContainsFunc(f.rollouts, func(r rollout.Rollout) bool { return r.Hold != nil })
	if begin == len(x.edges) && x.violated == "" {
		if why := f.unfinished(); why != "" {
			x.violated, x.at = "it ends, but "+why, s.id
		}
	}
}

var (
	fineDeeds   = append(own[:len(own):len(own)], deedExpire, deedRestart)
	coarseDeeds = []deedKind{deedLook, deedSpeak, deedServe, deedExpire, deedRestart}
)

func (x *explorer) deeds() []deedKind {
	if x.coarse {
		return coarseDeeds
	}
	return fineDeeds
}

// hasten does what nobody can tell from its being done later: see scene.coarse.
// What is built is seen when the instance speaks, so it first says what it can
// say without. What it built and nobody wants any more by then is let go of.
func (f *Fleet) hasten() {
	for _, p := range f.procs {
		for _, what := range []deedKind{deedJoin, deedBuild, deedReport} {
			for {
				_, p := f.find(p.name)
				if what == deedJoin && p.up && !p.saw {
					f.look(p.name)
				}
				if _, p = f.find(p.name); !f.may(p, what) || what == deedBuild && f.maySpeak(p) {
					break
				}
				f.do(deed{what, p.name})
			}
		}
	}
}

type nextFunc = func(fault bool, by string, left bounds, do func(*Fleet))

func (x *explorer) faults(s *state, p *process, next nextFunc) {
	try := func(what deedKind, budget func(*bounds) *int8) {
		left := s.left
		if *budget(&left) == 0 || left.Total == 0 || !s.f.may(p, what) {
			return
		}
		*budget(&left)--
		left.Total--
		d := deed{what, p.name}
		next(true, d.String(), left, func(g *Fleet) { g.do(d) })
	}
	try(deedDie, func(b *bounds) *int8 { return &b.Deaths })
	try(deedLapse, func(b *bounds) *int8 { return &b.Lapses })
	if s.f.may(p, deedRestart) {
		x.losses(s, p.name, p.name+" restarts", s.left, p.group, next, func(g *Fleet) { g.do(deed{deedRestart, p.name}) })
	}
	if j, ok := s.f.nextJob(p); ok && !j.inForce {
		try(deedRefuse, func(b *bounds) *int8 { return &b.Refusals })
	} else if n, ok := s.f.unsaid(p); ok && x.coarse && s.left.Refusals > 0 && s.left.Total > 0 {
		left := s.left
		left.Refusals--
		left.Total--
		next(true, deed{deedRefuse, p.name}.String(), left, func(g *Fleet) { g.unbuild(p.name, n) })
	}
}

// losses are a start after which an instance cannot have one revision that is in force.
func (x *explorer) losses(s *state, name, what string, left bounds, group string, next nextFunc, start func(*Fleet)) {
	if left.Losses == 0 || left.Total == 0 {
		return
	}
	left.Losses--
	left.Total--
	for _, r := range s.f.groups.m[group].Set {
		next(true, fmt.Sprintf("%s, and cannot have revision %d", what, r.Number), left, func(g *Fleet) {
			start(g)
			g.alter(name, func(p *process) { p.lost |= 1 << uint(r.Number) })
		})
	}
}

// unsaid is what p built for a prepare, and did not say yet.
func (f *Fleet) unsaid(p *process) (int64, bool) {
	if !p.up || !p.asked() || p.said.Nonce == p.asks.Nonce || p.want == nil || contains(p.want.Set, p.asks.Set[0]) {
		return 0, false
	}
	_, refuses := f.refusing(p)
	return p.asks.Set[0].Number, !refuses
}

// unbuild has p refuse what it built too early.
func (f *Fleet) unbuild(name string, number int64) {
	f.alter(name, func(p *process) {
		p.holds &^= 1 << uint(number)
		p.failed = append(slices.Clip(p.failed), failure{number: number, nonce: p.asks.Nonce, why: "it does not compile"})
	})
}

func (x *explorer) controller(s *state, next nextFunc) {
	f := s.f
	if f.old != nil && x.violated == "" && f.refuses(f.old) == nil { // Whenever it wakes.
		x.violated, x.at = "I4: a deposed controller may write", s.id
	}
	left := s.left
	if f.pending != nil && left.Elections > 0 && left.Total > 0 { // One that is about nothing changes nothing.
		left.Elections--
		left.Total--
		next(true, deedNames[deedElect], left, func(g *Fleet) { g.elect() })
		g := f.Clone()
		if g.elect(); g.apply(g.old) == nil {
			next(true, deedNames[deedElect]+", and the deposed one writes", left, func(g *Fleet) { g.elect(); _ = g.apply(g.old) })
		}
	}
	if f.pending != nil {
		next(false, deedNames[deedWrite], s.left, func(g *Fleet) { _ = g.write() })
		return
	}
	v := f.view(fmt.Sprintf("n%d", f.seeds+1))
	c, when := x.step(v, f.now)
	x.ordered(s, c, when)
	if !c.IsZero() {
		p := &pending{term: f.term, at: v.At, seed: v.Seed, change: c}
		next(false, describe(c), s.left, func(g *Fleet) { g.seeds++; g.pending = p })
	}
	if !c.IsZero() {
		when = time.Time{} // When to look again is said when there is nothing to do.
	}
	for _, r := range f.rollouts {
		for _, t := range []time.Time{r.Deadline, r.Alive} {
			if t.After(f.now) && (when.IsZero() || t.Before(when)) {
				when = t
			}
		}
	}
	if when.After(f.now) && !(x.patient && x.busy(f)) {
		if least := f.now.Add(x.tick); when.Before(least) {
			when = least
		}
		next(false, "time passes", s.left, func(g *Fleet) { g.now = when })
	}
	if left := s.left; left.Absences > 0 && left.Total > 0 && len(f.rollouts) > 0 {
		left.Absences--
		left.Total--
		next(true, "no controller for long", left, func(g *Fleet) { g.elect(); g.now = g.now.Add(10 * time.Minute) })
	}
	if x.data {
		for _, worse := range []bool{false, true} {
			if g := f.Clone(); g.count(worse) {
				next(true, fmt.Sprintf("instances measure, worse: %v", worse), s.left, func(g *Fleet) { g.count(worse) })
			}
		}
	}
}

// busy tells whether a living instance has something to do.
func (x *explorer) busy(f *Fleet) bool {
	return slices.ContainsFunc(f.procs, func(p *process) bool {
		return slices.ContainsFunc(own[:], func(what deedKind) bool { return what != deedLookCommit && f.may(p, what) })
	})
}

// count has every instance that compares say that the new revision does as
// well as the old one, or much worse. It tells whether one does.
func (f *Fleet) count(worse bool) bool {
	any := false
	for _, p := range f.procs {
		if !f.may(p, deedMeasure) || p.serving.Epoch != f.groups.m[p.group].Epoch {
			continue
		}
		if m := f.measures.m[p.name]; m.Epoch == p.serving.Epoch && m.Boot == p.boot {
			continue
		}
		a := p.serving
		m := rollout.Measure{Instance: p.name, Group: p.group, Boot: p.boot, Epoch: a.Epoch, Since: start, Time: start}
		if m.Old, m.New = a.Stable.Digest, a.Stable.Digest; a.Candidate != nil {
			m.New = a.Candidate.Digest
		} else {
			m.Old = a.Against.Digest
		}
		one := analysis.Counts{Requests: 4000}
		one.Latency[40] = 4000
		pair := analysis.Pair{Stable: one, Candidate: one}
		if worse {
			pair.Candidate.Errors = 2000
		}
		m.Sample = analysis.Sample{All: pair, Routes: map[string]analysis.Pair{"m/r": pair}}
		f.measures = f.measures.with(p.name, m)
		f.bump()
		any = true
	}
	return any
}

// ordered holds that the order of maps changes no byte of what is decided, in
// some states.
func (x *explorer) ordered(s *state, c rollout.Change, when time.Time) {
	if s.id%max(x.every, 1) != 0 || x.violated != "" {
		return
	}
	f := s.f
	v := f.view(fmt.Sprintf("n%d", f.seeds+1))
	v.Groups, v.Prepares, v.Ready = maps.Clone(v.Groups), maps.Clone(v.Prepares), maps.Clone(v.Ready)
	v.Instances, v.Reports, v.Measures = maps.Clone(v.Instances), maps.Clone(v.Reports), maps.Clone(v.Measures)
	for g, m := range v.Ready {
		v.Ready[g] = maps.Clone(m)
	}
	again, at := x.step(v, f.now)
	one, err1 := json.Marshal(c)
	two, err2 := json.Marshal(again)
	if err1 != nil || err2 != nil || string(one) != string(two) || !when.Equal(at) {
		x.violated, x.at = "it decides differently when maps are in another order", s.id
	}
}

// describe says in one line what a change decides.
func describe(c rollout.Change) string {
	var out []string
	for _, p := range c.Prepares {
		what := strings.TrimSpace("prepare " + p.Group + " " + p.First)
		if len(p.Evict) > 0 {
			what += " without " + strings.Join(p.Evict, ", ")
		}
		out = append(out, what)
	}
	for _, g := range c.Withdraw {
		out = append(out, "withdraw "+g)
	}
	for _, a := range c.Groups {
		what := fmt.Sprintf("commit %s to %d at epoch %d", a.Group, a.Stable.Number, a.Epoch)
		if a.Override != nil {
			what += " over " + strings.Join(a.Override.Instances, ", ")
		}
		out = append(out, what)
	}
	for _, r := range c.Rollouts {
		out = append(out, fmt.Sprintf("%s is %s", r.ID, r.Phase))
	}
	return "controller decides: " + strings.Join(out, ", ")
}

func (x *explorer) operator(s *state, next nextFunc) {
	left := s.left
	if left.Joins > 0 && left.Total > 0 {
		left.Joins--
		left.Total--
		join := func(g *Fleet) { g.Start("z", x.joiner) }
		next(true, "z joins "+x.joiner, left, join)
		x.losses(s, "z", "z joins "+x.joiner, left, x.joiner, next, join)
	}
	ask := func(n *int8, in rollout.Intent) {
		if *n == 0 || left.Total == 0 {
			return
		}
		*n--
		left.Total--
		next(true, "operator asks for "+string(in.Kind), left, func(g *Fleet) { g.Ask(in) })
	}
	for _, r := range s.f.rollouts { // Once is enough: it is asked for by a plan.
		if step := r.Present(); step != nil && step.Pause != nil && len(s.f.intents) == 0 && !s.f.ended.has("approve") {
			next(true, "operator approves", s.left, func(g *Fleet) { g.Ask(rollout.Intent{ID: "approve", Kind: rollout.IntentApprove, Rollout: r.ID}) })
		}
	}
	left = s.left
	ask(&left.Aborts, rollout.Intent{ID: fmt.Sprintf("abort%d", s.left.Aborts), Kind: rollout.IntentAbort})
	left = s.left
	ask(&left.Rollbacks, rollout.Intent{ID: fmt.Sprintf("rollback%d", s.left.Rollbacks), Kind: rollout.IntentRollback})
}

// endless finds a state from which, though no fault comes, it may go on
// forever: one of a circle of states.
func (x *explorer) endless() (int32, bool) {
	const (
		unseen = iota
		open
		closed
	)
	color := make([]uint8, len(x.traces))
	begin := func(i int32) int32 { return max(x.spans[i][0], 0) }
	type frame struct{ id, at int32 }
	var stack []frame
	for root := range int32(len(x.traces)) {
		if color[root] != unseen {
			continue
		}
		stack = append(stack[:0], frame{root, begin(root)})
		color[root] = open
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if top.at >= x.spans[top.id][1] || x.waits[top.id] { // Waiting may take forever.
				color[top.id] = closed
				stack = stack[:len(stack)-1]
				continue
			}
			to := x.edges[top.at]
			top.at++
			switch color[to] {
			case open:
				return to, true
			case unseen:
				color[to] = open
				stack = append(stack, frame{to, begin(to)})
			}
		}
	}
	return 0, false
}

// unfinished says what is left over where nothing is left to do.
func (f *Fleet) unfinished() string {
	if len(f.intents) > 0 {
		return "an intent waits"
	}
	for _, r := range f.rollouts {
		if r.Hold == nil && r.Straggler != rollout.StragglerWait {
			return fmt.Sprintf("rollout %s is %s: %s", r.ID, r.Phase, r.Why)
		}
	}
	if len(f.rollouts) == 0 && len(f.prepares.m) > 0 {
		return "something is prepared"
	}
	for _, p := range f.procs {
		a := f.groups.m[p.group]
		cannot := p.lost&f.maskOf(p.choose(&a)) != 0
		if p.up && !cannot && !a.Stable.IsZero() && (p.serving == nil || p.serving.Epoch != a.Epoch) {
			return fmt.Sprintf("%s does not serve epoch %d", p.name, a.Epoch)
		}
		if r := f.ready.m[p.group][p.name]; p.up && r.Nonce != a.Nonce && len(f.rollouts) == 0 {
			return fmt.Sprintf("%s says %+v, its group %s", p.name, r, a.Nonce)
		}
	}
	return ""
}

// running is a fleet that serves revision 2, and 1 before it, made by the same deeds.
func running(t *testing.T, groups map[string][]string) *Fleet {
	t.Helper()
	f := NewFleet(4)
	for g, names := range groups {
		for _, n := range names {
			f.Start(n, g)
		}
	}
	f.calm(t)
	f.Ask(rollout.Intent{ID: "r0", Kind: rollout.IntentSwitch, To: Ref(2)})
	f.calm(t)
	return f
}

// calm does all that there is to do.
func (f *Fleet) calm(t *testing.T) {
	t.Helper()
	if why := ""; !f.rest(rollout.Step) {
		t.Fatal("the fleet does not come to rest")
	} else if why = f.unfinished(); why != "" || len(f.broken) > 0 {
		t.Fatalf("the fleet does not run: %s %v", why, f.broken)
	}
}

// verdict is what was found, with the shortest way there of those with the
// fewest faults; nothing when every law holds.
func (x *explorer) verdict() string {
	if x.violated == "" {
		if at, ok := x.endless(); ok {
			x.violated, x.at = "without faults it may go on forever", at
		}
	}
	if x.violated == "" {
		return ""
	}
	return strings.TrimSpace(x.violated + "\n  " + x.path(x.at) + "\n  " + x.last)
}
