package simulate

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"routerd.dev/internal/rollout"
)

// How long things take. They are of the size that a fleet in one data center has.
const (
	watchTakes  = 5 * time.Millisecond
	joinTakes   = 20 * time.Millisecond
	writeTakes  = 3 * time.Millisecond
	defBuild    = 300 * time.Millisecond
	leaseTTL    = 10 * time.Second
	idleEvery   = 5 * time.Second // the controller looks, though nothing calls for it
	reportEvery = 2 * time.Second // measures go with it
	mostWait    = 100 * time.Millisecond
	maxEvents   = 5_000_000
)

// never is later than every simulation.
var never = start.Add(1000 * 24 * time.Hour)

// Run plays a scenario. The same scenario gives the same transcript.
func Run(s Scenario) Transcript {
	if err := s.validate(); err != nil {
		return Transcript{Error: err.Error()}
	}
	p := newPlayer(s)
	if err := p.warm(); err != nil {
		return Transcript{Error: err.Error()}
	}
	p.ask(rollout.Intent{ID: mainID, Kind: rollout.IntentSwitch, To: Ref(3), Strategy: p.s.Plan.Name, Revert: s.Revert, Straggler: s.Plan.Straggler})
	for n := 0; p.next(); n++ {
		if n == maxEvents {
			p.say("simulation", "ends: more happened than it can play")
			break
		}
	}
	return p.over()
}

// mainID names the rollout that a scenario is about.
const mainID = "r1"

// A player plays a scenario: it has each thing that may happen in a fleet
// happen when it is time.
type player struct {
	f     *Fleet
	s     Scenario
	until time.Time
	began time.Time // the fleet had come to rest before

	faults  []Fault // to come
	due     map[string]map[deedKind]appointment
	slow    map[string]float64
	forgets map[string]time.Time // when a dead instance's lease ends
	wakes   map[string]time.Time // when a dead instance starts again
	wake    time.Time            // the controller looks next; never while there is none
	elected time.Time            // the next controller is; never while there is one
	away    time.Time            // etcd answers again
	asked   int

	traffic client
	meters  map[string]*meter
	measure time.Time

	t     Transcript
	ended bool
}

// An appointment is when a process does something, unless what it is about
// changes before.
type appointment struct {
	at    time.Time
	about string
}

func newPlayer(s Scenario) *player {
	f := NewFleet(3)
	f.fleet.Settings = s.Settings
	if s.Known {
		f.served = f.served.with(Ref(3).Digest, true)
	}
	if len(s.Plan.Waves) == 0 {
		s.Plan = rollout.Strategy{Name: rollout.AllAtOnce, Straggler: s.Plan.Straggler}
	} else {
		if s.Plan.Name == "" {
			s.Plan.Name = "simulated"
		}
		f.strategies = f.strategies.with(s.Plan.Name, s.Plan)
	}
	if s.Build == 0 {
		s.Build = defBuild
	}
	until := s.Until
	if until == 0 {
		until = time.Hour
	}
	faults := slices.Clone(s.Faults)
	slices.SortStableFunc(faults, func(a, b Fault) int { return int(a.At - b.At) })
	for _, g := range sorted(s.Groups) {
		for n := range s.Groups[g] {
			f.Start(name(g, n+1), g)
		}
	}
	return &player{
		f: f, s: s, until: start.Add(until), began: start, faults: faults,
		due: map[string]map[deedKind]appointment{}, slow: map[string]float64{},
		forgets: map[string]time.Time{}, wakes: map[string]time.Time{}, elected: never, wake: start, measure: never,
		traffic: client{t: s.Traffic.withDefaults(), r: rand.New(rand.NewPCG(s.Seed, 1))}, meters: map[string]*meter{},
	}
}

// warm has the fleet serve revision 2, after revision 1: what goes on before
// a scenario begins takes no time.
func (p *player) warm() error {
	f := p.f
	if !f.rest(rollout.Step) {
		return errors.New("simulate: the fleet does not come to rest")
	}
	f.Ask(rollout.Intent{ID: "r0", Kind: rollout.IntentSwitch, To: Ref(2), Strategy: rollout.AllAtOnce})
	if !f.rest(rollout.Step) || f.ended.m["r0"].Phase != rollout.PhaseDone {
		return fmt.Errorf("simulate: the fleet does not serve revision 2: %s", f.ended.m["r0"].Why)
	}
	f.baked = f.baked.with(Ref(2).Digest, true)
	return nil
}

// rest does all that there is to do, at once; false when it does not end.
func (f *Fleet) rest(step stepFunc) bool {
	for range 100 * (len(f.procs) + 10) {
		if !f.settle(step) {
			return true
		}
	}
	return false
}

// settle does the first thing that can be done.
func (f *Fleet) settle(step stepFunc) bool {
	for _, p := range f.procs {
		for _, what := range own {
			if f.may(p, what) {
				f.do(deed{what, p.name})
				return true
			}
		}
	}
	if p, ok := f.read(step); ok {
		f.pending = &p
		_ = f.write()
		return true
	}
	return false
}

func (p *player) say(who, format string, a ...any) {
	p.t.Lines = append(p.t.Lines, Line{At: p.f.now.Sub(p.began), Who: who, What: fmt.Sprintf(format, a...)})
}

// next has the next thing happen; false when nothing is left to come.
func (p *player) next() bool {
	f := p.f
	p.arrange()
	who, what, at := p.earliest()
	events := []struct {
		at time.Time
		do func()
	}{
		{p.faultAt(), p.fault},
		{p.elected, p.elect},
		{p.later(at), func() { p.act(who, what) }},
		{p.later(p.wake), p.control},
		{p.later(p.measure), p.measureAll},
	}
	soonest := 0
	for i, e := range events {
		if e.at.Before(events[soonest].at) {
			soonest = i
		}
	}
	e := events[soonest]
	if !e.at.Before(never) || p.idle() {
		return false
	}
	if e.at.After(p.until) {
		f.now = p.until
		p.say("simulation", "ends")
		return false
	}
	if e.at.After(f.now) {
		f.now = e.at
	}
	e.do()
	return true
}

// idle tells whether the rollout ended, and all that followed from it came.
func (p *player) idle() bool {
	if !p.ended || len(p.faults) > 0 || len(p.f.intents)+len(p.f.rollouts) > 0 || p.f.pending != nil || len(p.wakes) > 0 {
		return false
	}
	for _, q := range p.f.procs {
		for _, what := range own {
			if what != deedReport && p.f.may(q, what) {
				return false
			}
		}
	}
	return true
}

// later puts off what needs etcd while that does not answer.
func (p *player) later(t time.Time) time.Time {
	if t.Before(p.away) && t.Before(never) {
		return p.away
	}
	return t
}

// arrange makes appointments for what processes may do now, and drops those
// for what they may not.
func (p *player) arrange() {
	for i, q := range p.f.procs {
		mine := p.due[q.name]
		if mine == nil {
			mine = map[deedKind]appointment{}
			p.due[q.name] = mine
		}
		for _, what := range own {
			if what == deedLookCommit || !p.f.may(q, what) {
				delete(mine, what)
				continue
			}
			about, takes := p.takes(q, what, i)
			if old, ok := mine[what]; !ok || old.about != about {
				mine[what] = appointment{p.f.now.Add(takes), about}
			}
		}
	}
}

// takes says how long something takes, and what it is about.
func (p *player) takes(q *process, what deedKind, i int) (string, time.Duration) {
	jitter := time.Duration(i%7) * time.Millisecond
	switch what {
	case deedLook:
		return "", watchTakes + jitter/2
	case deedJoin:
		return q.boot, joinTakes + jitter
	case deedBuild:
		j, _ := p.f.nextJob(q)
		takes := p.s.Build + p.s.Build/20*time.Duration(i%7)
		if by := p.slow[q.name]; by > 0 {
			takes = time.Duration(float64(takes) * by)
		}
		return fmt.Sprint(j), takes
	case deedServe:
		wait := min(max(q.want.Instant.Sub(p.f.now), 0), mostWait)
		return fmt.Sprint(q.want.Epoch), wait
	}
	return "", writeTakes + jitter/2
}

func (p *player) earliest() (who string, what deedKind, at time.Time) {
	at = never
	take := func(name string, kind deedKind, t time.Time) {
		if t.Before(at) {
			who, what, at = name, kind, t
		}
	}
	for _, q := range p.f.procs {
		for _, kind := range own {
			if x, ok := p.due[q.name][kind]; ok {
				t := x.at
				if kind != deedBuild && kind != deedServe {
					t = p.later(t)
				}
				take(q.name, kind, t)
			}
		}
		if t, ok := p.forgets[q.name]; ok {
			take(q.name, deedExpire, p.later(t))
		}
		if t, ok := p.wakes[q.name]; ok {
			take(q.name, deedRestart, t)
		}
	}
	return who, what, at
}

// act has an instance do what it is time for.
func (p *player) act(who string, what deedKind) {
	f := p.f
	_, before := f.find(who)
	j, _ := f.nextJob(before)
	delete(p.due[who], what)
	switch what {
	case deedExpire:
		delete(p.forgets, who)
		if before.up || !f.keysStand(before) {
			return
		}
		p.say(who, "is taken for dead: its lease ended")
	case deedRestart:
		delete(p.wakes, who)
		p.say(who, "starts again")
	}
	f.do(deed{what, who})
	_, q := f.find(who)
	switch {
	case what == deedBuild && !q.up:
		p.say(who, "dies of revision %d", j.number)
		p.forgets[who] = f.now.Add(leaseTTL)
		p.wakes[who] = f.now.Add(max(p.slowStart(who), time.Second))
	case what == deedSpeak && q.said.Refused:
		p.say(who, "refuses: %s", q.said.Why)
	case what == deedSpeak && q.said.Evicted:
		p.say(who, "takes itself out of traffic")
	case what == deedSpeak && q.said.Nonce != "":
		p.say(who, "holds %s", numbersText(q.holds))
	case what == deedServe:
		p.say(who, "serves %s", servesText(q))
		p.meter(q)
	case what == deedJoin:
		p.say(who, "joins group %s", q.group)
	}
	if what != deedReport && what != deedBuild && what != deedServe && what != deedLook {
		p.rouse()
	}
}

func (p *player) slowStart(who string) time.Duration {
	for _, x := range p.s.Faults {
		if x.Kind == FaultPoison && x.Instance == who {
			return x.For
		}
	}
	return 0
}

// rouse has the controller look soon.
func (p *player) rouse() {
	if p.elected.Equal(never) && p.f.pending == nil {
		p.wake = earlier(p.wake, p.f.now.Add(watchTakes))
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// control has the controller read and decide, or write what it decided.
func (p *player) control() {
	f := p.f
	if f.pending == nil {
		v := f.View()
		c, when := rollout.Step(v, f.now)
		p.wake = f.now.Add(idleEvery)
		if !c.IsZero() {
			f.pending = &pending{term: f.term, at: v.At, seed: v.Seed, change: c}
			p.wake = f.now.Add(writeTakes)
		} else if when.After(f.now) {
			p.wake = earlier(p.wake, when)
		}
		return
	}
	before, c := f.Clone(), f.pending.change
	p.wake = f.now.Add(watchTakes)
	if err := f.write(); err != nil {
		p.say("controller", "cannot write, and decides anew: %v", err)
		return
	}
	for _, what := range lines(before, &c) {
		p.say("controller", "%s", what)
	}
	if r, ok := f.ended.m[mainID]; ok && !p.ended {
		p.ended, p.t.Rollout, p.t.Took = true, r, f.now.Sub(p.began)
	}
}

// elect gives the fleet a controller again.
func (p *player) elect() {
	p.elected = never
	p.f.elect()
	p.say("controller", "another one is elected")
	p.wake = p.f.now
	if p.f.old == nil {
		return
	}
	if err := p.f.apply(p.f.old); err != nil {
		p.say("controller", "the former one cannot write: %v", err)
	}
	p.f.old = nil
}

// meter begins to count for what q serves now.
func (p *player) meter(q *process) {
	delete(p.meters, q.name)
	if p.f.compares(q) {
		p.meters[q.name] = &meter{epoch: q.serving.Epoch, since: p.f.now, last: p.f.now}
		p.measure = earlier(p.measure, p.f.now.Add(reportEvery))
	}
}

// measureAll has every instance that compares say what it counted.
func (p *player) measureAll() {
	f := p.f
	serving := map[string]int{}
	for _, q := range f.procs {
		if q.up && q.serving != nil && !q.away {
			serving[q.group]++
		}
	}
	p.measure = never
	for _, q := range f.procs {
		m := p.meters[q.name]
		if m == nil || !q.up || q.serving == nil || m.epoch != q.serving.Epoch {
			continue
		}
		p.measure = f.now.Add(reportEvery)
		p.traffic.count(m, q, serving[q.group], f.now)
		if !f.keysStand(q) {
			continue
		}
		a := q.serving
		x := rollout.Measure{
			Instance: q.name, Group: q.group, Boot: q.boot, Epoch: a.Epoch, Time: f.now, Since: m.since,
			Old: a.Stable.Digest, Sample: copySample(m.sample),
		}
		if a.Candidate != nil {
			x.New = a.Candidate.Digest
		} else {
			x.Old, x.New = a.Against.Digest, a.Stable.Digest
		}
		f.measures = f.measures.with(q.name, x)
		f.bump()
	}
}

// over puts the transcript together.
func (p *player) over() Transcript {
	t, f := p.t, p.f
	t.Over, t.Broken = p.ended, f.broken
	if !p.ended {
		t.Took = f.now.Sub(p.began)
		for _, r := range f.rollouts {
			if r.ID == mainID {
				t.Rollout = r
			}
		}
	}
	t.Serving = make(map[string]int64)
	for _, q := range f.procs {
		if q.up && q.serving != nil {
			t.Serving[q.name] = q.main().Number
		}
	}
	return t
}
