package agent

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

type groupState = store.GroupState

// A loop is the one goroutine that owns the core and the engines. All else
// tells it what happened; it decides by the core's plan and has others act.
type loop struct {
	*Agent
	core    *core
	engines map[version.Digest]*engine.Engine
	link    *link
	events  chan func()
	started time.Time

	state    groupState // newest read
	heard    time.Time  // when the watch said something last
	unwatch  func()     // ends the watch; nil before there is one
	etcd     Etcd
	wished   *rollout.Ready
	skew     time.Duration // of the last switch
	prepared time.Duration // the last prepare took
	asked    rollout.Nonce // the prepare that is timed
	askedAt  time.Time

	worker   *worker   // nil once builds hung in this process
	building *work     // nil while the worker has nothing to do
	lookAt   time.Time // for its signs of life: not before
	hung     int       // builds that were given up
	again    bool      // the core knows more than the plan that is carried out

	confirms   sync.WaitGroup
	confirming bool
	confirmAt  time.Time // not before

	meter *meter

	unpinned bool       // an order was taken back in this life: none on disk stands
	holding  chan error // tells whoever waits for core.pinning to be held
	nagAt    time.Time  // when the log is to say next that a pin is in force
	rereadAt time.Time  // not before, for clients' sake
	changed  bool       // engines came or went since the front end was told

	twin      bool // the name is another's, or was until it crashed
	saved     memory
	savedKeep map[version.Digest]bool

	broken      string // the record that cannot be read, and why; empty when all can
	brokenSince time.Time
}

func newLoop(a *Agent) *loop {
	now := time.Now()
	p := &loop{
		Agent: a, core: newCore(a.o.Who.Instance, a.o.Who.Group), engines: map[version.Digest]*engine.Engine{},
		events: make(chan func(), 16), started: now, etcd: Etcd{Since: now},
	}
	who := a.o.Who
	who.Started = now.UTC()
	p.link = &link{
		store: a.deps.Store, who: who, ttl: a.o.LeaseTTL, every: a.o.ReportEvery, log: a.log, counts: a.o.Counts, progress: a.progress.Load,
		leave: a.leave, changed: make(chan struct{}),
	}
	p.core.evictDelay = a.o.EvictDelay
	p.meter = &meter{
		compare: a.deps.Library.Counters.Compare, keys: a.deps.Switch.Keys, send: p.link.measure,
		every: a.o.MeasureEvery, log: a.log, changed: make(chan struct{}),
	}
	return p
}

// tell has f run on the loop's goroutine, or not at all once ctx has ended.
func (p *loop) tell(ctx context.Context, f func()) {
	select {
	case p.events <- f:
	case <-ctx.Done():
	}
}

// run is the loop. It starts by remembering, and ends with ctx.
func (p *loop) run(ctx context.Context) {
	m, quarantined := p.disk.load()
	p.core.remember(m, quarantined)
	p.saved = p.core.memory()
	for _, d := range quarantined {
		n := p.disk.crashes(d)
		p.core.notYet[d] = p.started.Add(lastResortPause(n))
		p.log.Error("a digest is quarantined: it crashed this process; the last good revision is served instead, or it after a while where there is none; routerd ctl forgive ends that",
			"digest", d.Short(), "crashes", n)
	}
	if pin, err := loadPin(p.o.StateDir, p.core.group); err != nil {
		p.log.Error("an order to pin this instance cannot be read: serving what the group is assigned", "err", err)
	} else {
		p.core.pin = pin
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wake := p.act(ctx)
		timer.Reset(max(0, time.Until(wake)))
		select {
		case f := <-p.events:
			f()
		case f := <-p.orders:
			f(p)
		case <-p.behind:
			p.reread(time.Now())
		case <-timer.C:
		case <-ctx.Done():
			if p.building != nil {
				p.building.cancel()
			}
			return
		}
	}
}

// act brings about what the core's plan says, the switch first, and returns
// when to look again.
func (p *loop) act(ctx context.Context) time.Time {
	now := time.Now()
	p.reach(now)
	p.checkBuild(ctx, now) // before the plan, which would list what is given up for the next worker
	plan := p.core.plan(now)
	for plan.swap != nil {
		p.swap(plan.swap)
		now = time.Now()
		plan = p.core.plan(now)
	}
	p.drop(plan.keep)
	p.hand()
	p.answerPin()
	lookWatch := p.checkWatch(now)
	p.steer(ctx, plan, now)
	p.clock(now)
	p.confirm(ctx, plan.confirm, now)
	p.remember(plan.keep)
	p.say(plan.ready, now)
	p.meter.follow(p.comparison())

	if p.again {
		p.again = false
		return now
	}
	wake := now.Add(staleSweep)
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(wake) {
			wake = t
		}
	}
	sooner(plan.wake)
	if p.building != nil {
		sooner(p.lookAt)
	}
	sooner(lookWatch)
	sooner(p.nag(now))
	if plan.confirm && !p.confirming {
		sooner(p.confirmAt)
	}
	if v := p.core.serving; v == nil && !p.core.fromDisk {
		if t := p.etcd.Since.Add(p.o.JoinTimeout); t.After(now) {
			sooner(t)
		}
	} else if v != nil {
		if t := v.since.Add(p.o.Healthy); t.After(now) {
			sooner(t)
		}
	}
	return wake
}

// reach allows disk state once etcd did not answer for the join timeout.
func (p *loop) reach(now time.Time) {
	if p.core.serving != nil || p.core.fromDisk || p.etcd.Since.Add(p.o.JoinTimeout).After(now) {
		return
	}
	if p.twin || (p.etcd.Reachable && p.etcd.Error == "" && p.broken == "") {
		return
	}
	// A record that cannot be read tells nothing, as if etcd were away (I10).
	p.core.outOfReach(p.etcd.Reachable && p.broken == "")
	why := cmp.Or(p.broken, p.etcd.Error)
	if why == "" {
		why = "it has not answered yet"
	}
	if p.core.remembered() != nil {
		p.log.Warn("etcd does not let this instance join, serving what is remembered on disk", "timeout", p.o.JoinTimeout, "err", why)
	} else {
		p.log.Warn("etcd does not let this instance join and nothing is remembered on disk: nothing is served", "timeout", p.o.JoinTimeout, "err", why)
	}
}

// swap serves s: the switch itself comes before anything that could be slow.
func (p *loop) swap(s *serving) {
	began := time.Now()
	from := p.core.serving
	p.deps.Switch.Swap(p.serves(s))
	done := time.Now()
	p.core.switched(s, done)

	ctx := context.Background()
	p.metrics.switches.Add(ctx, 1, p.metrics.attrs)
	p.metrics.swap.Record(ctx, done.Sub(began).Seconds(), p.metrics.attrs)
	if from != nil && from.Epoch < s.Epoch && s.source == SourceEtcd {
		p.skew = done.Sub(s.Instant)
		p.metrics.skew.Record(ctx, p.skew.Seconds(), p.metrics.attrs)
	}
	args := []any{"epoch", s.Epoch, "revision", s.main().Number, "digest", s.main().Digest.Short(), "source", s.source}
	if from != nil && from.Epoch < s.Epoch {
		args = append(args, "skew", p.skew)
	}
	if s.Override != nil {
		args = append(args, "override", s.Override.Why)
	}
	if s.pinned {
		p.log.Error("switched: pinned, so the revision stays", args...)
		return
	}
	if s.fallback {
		p.log.Error("switched to the last good revision: the epoch's own is quarantined here", args...)
		return
	}
	p.log.Info("switched", args...)
}

// serves is what the front end is to know of s.
func (p *loop) serves(s *serving) *engine.Serving {
	v := &engine.Serving{
		Fleet: p.core.fleet, Group: p.core.group, Instance: p.core.instance, Epoch: s.Epoch,
		Stable: p.engines[s.stable.Digest].As(s.stable.Number),
	}
	if !s.pinned { // then nothing else may serve
		v.Held = maps.Clone(p.engines)
	}
	if c := s.candidate; c != nil {
		v.Candidate, v.Permyriad, v.Salt, v.Key = p.engines[c.Digest].As(c.Number), c.Permyriad, c.Salt, c.Key
		v.Match = engine.Match(matchOf(c))
	}
	p.changed = false
	return v
}

// hand tells the front end of engines that came or went since the switch: a
// client that is ahead is served by what is held. Nothing else changes for it.
func (p *loop) hand() {
	if p.changed && p.core.serving != nil {
		p.meter.keepKeys()
		p.deps.Switch.Swap(p.serves(p.core.serving))
	}
}

// reread has the group read linearizably, because a client knows more.
func (p *loop) reread(now time.Time) {
	if now.Before(p.rereadAt) || p.core.serving == nil {
		return
	}
	p.rereadAt = now.Add(rereadEvery)
	p.core.doubt = true
}

// drop lets go of the engines that nobody asks for any more. Requests under
// way on them are not affected: they hold what they need.
func (p *loop) drop(keep map[version.Digest]bool) {
	dropped := false
	for d := range p.engines {
		if !keep[d] {
			delete(p.engines, d)
			p.core.dropped(d)
			dropped, p.changed = true, true
		}
	}
	if dropped {
		p.keepUsed()
	}
}

// steer sees to it that the worker builds what is most urgent.
func (p *loop) steer(ctx context.Context, plan plan, now time.Time) {
	if w := p.building; w != nil {
		p.try(&w.Digest)
		if !p.worthwhile(w, plan.build) {
			w.cancel()
		}
		return
	}
	if p.worker == nil {
		plan.build = p.giveBack(plan.build, now)
	}
	if len(plan.build) == 0 {
		p.try(nil)
		p.progress.Store(p.waiting(now))
		return
	}
	w := &work{job: plan.build[0], previous: p.base(), tried: p.try(&plan.build[0].Digest)}
	w.ctx, w.cancel = context.WithCancel(ctx)
	w.said = progressOf(w.job, StageFetching)
	p.progress.Store(w.said)
	select {
	case p.worker.jobs <- w: // the worker waits for it
		p.building, p.lookAt = w, now.Add(hangLook)
	case <-ctx.Done():
		w.cancel()
	}
}

// worthwhile tells whether what is being built is still wanted, and nothing
// that is in force has to wait for it.
func (p *loop) worthwhile(w *work, wanted []job) bool {
	if len(wanted) == 0 {
		return false
	}
	t := p.core.target
	// One that failed before may fail for ever: it waits for what would come instead of it.
	urgent := t != nil && wanted[0].nonce == t.Nonce && !p.core.failed[wanted[0].Digest].permanent
	if urgent && w.nonce != t.Nonce && wanted[0].Digest != w.Digest {
		return false
	}
	return slices.ContainsFunc(wanted, func(j job) bool { return j.Digest == w.Digest })
}

// waiting is the progress of a prepare that is another instance's turn.
func (p *loop) waiting(now time.Time) *rollout.Progress {
	pr := p.core.prepare
	if pr == nil || p.core.asked(pr) || len(pr.Set) == 0 {
		return nil
	}
	if old := p.progress.Load(); old != nil && old.Nonce == pr.Nonce && old.Stage == StageWaiting {
		return old
	}
	return &rollout.Progress{Nonce: pr.Nonce, Digest: pr.Set[0].Digest, Stage: StageWaiting, Since: now.UTC()}
}

// try has the trials open of what is compiled, is about to be served and is
// served.
func (p *loop) try(compiling *version.Digest) <-chan struct{} {
	on := map[version.Digest]bool{}
	var built []version.Digest
	if compiling != nil {
		on[*compiling], built = true, []version.Digest{*compiling}
	}
	if v := p.core.serving; v != nil {
		for _, r := range v.refs() {
			on[r.Digest] = true
		}
	}
	if t := p.core.target; t != nil {
		for _, r := range p.core.choose(t).refs() {
			if p.core.held[r.Digest] {
				on[r.Digest] = true
			}
		}
	}
	return p.disk.try(on, built...)
}

// base is the engine to build on: most of a new revision is what is served.
func (p *loop) base() *engine.Engine {
	if v := p.core.serving; v != nil {
		return p.engines[v.stable.Digest]
	}
	for _, d := range sortedDigests(p.engines) {
		return p.engines[d]
	}
	return nil
}

// builds is the worker: one build at a time.
func (p *loop) builds(ctx context.Context, jobs <-chan *work) {
	b := &builder{
		snapshots: p.deps.Snapshots, disk: p.disk, cache: p.deps.Cache, library: p.deps.Library,
		capabilities: p.o.Capabilities, options: p.o.Compile, timeout: p.o.BuildTimeout,
	}
	for {
		select {
		case w := <-jobs:
			b.options.Budget.Beat = func() { w.beats.Add(1) }
			b.sign = w.lives
			e, err := b.build(w.ctx, w.Ref, w.previous, w.tried, func(stage string) { w.stage(p, stage) })
			superseded := w.ctx.Err() != nil
			w.cancel()
			p.tell(ctx, func() {
				if p.building == w {
					p.built(w.job, e, err, superseded)
				} else {
					p.keepUsed() // it was given up; what it took since is used by nobody
				}
			})
		case <-ctx.Done():
			return
		}
	}
}

// built takes what the worker made. What came too late is held only if it is
// still wanted; the next plan says.
func (p *loop) built(j job, e *engine.Engine, err error, superseded bool) {
	p.building = nil
	p.progress.Store(nil)
	var r refusal
	switch {
	case err == nil:
		p.engines[j.Digest] = e
		p.changed = true
		p.core.built(j.Digest)
	case superseded:
	case errors.As(err, &r):
		if r.shortage {
			p.core.lacks(j, err.Error(), time.Now())
		} else {
			p.core.refused(j, err.Error(), true, time.Now())
		}
		p.metrics.refused.Add(context.Background(), 1, p.metrics.attrs)
		p.log.Error("a digest cannot be held", "revision", j.Number, "digest", j.Digest.Short(), "nonce", j.nonce, "err", line(err.Error()))
	default:
		p.core.refused(j, err.Error(), false, time.Now())
		p.log.Warn("a digest could not be fetched, trying again", "revision", j.Number, "digest", j.Digest.Short(), "err", line(err.Error()))
	}
	p.keepUsed()
}

// keepUsed lets the library close what no engine uses any more. While something
// is built, what it took out of the library is not yet known to be in use: its
// end, or its being given up, brings the next call.
func (p *loop) keepUsed() {
	if p.building != nil {
		return
	}
	engines := make([]*engine.Engine, 0, len(p.engines))
	for _, d := range sortedDigests(p.engines) {
		engines = append(engines, p.engines[d])
	}
	p.deps.Library.Keep(engines...)
}

// clock measures prepares, and proves what was served well for long enough.
func (p *loop) clock(now time.Time) {
	if pr := p.core.prepare; pr != nil && p.core.asked(pr) {
		if p.asked != pr.Nonce {
			p.asked, p.askedAt = pr.Nonce, now
		}
		if !p.askedAt.IsZero() && p.core.holdsSet(pr.Set) {
			p.prepared, p.askedAt = now.Sub(p.askedAt), time.Time{}
			p.metrics.prepare.Record(context.Background(), p.prepared.Seconds(), p.metrics.attrs)
			p.log.Info("prepared", "nonce", pr.Nonce, "took", p.prepared)
		}
	}
	if v := p.core.serving; v != nil && now.Sub(v.since) >= p.o.Healthy {
		var ds []version.Digest
		for _, r := range v.refs() {
			ds = append(ds, r.Digest)
		}
		if p.disk.prove(ds...) {
			p.saved = memory{} // what is proven is remembered, too
			p.core.forgive(ds...)
		}
	}
}

// remember hands the disk what is to outlive the process, when it changed.
func (p *loop) remember(keep map[version.Digest]bool) {
	if p.disk == nil {
		return
	}
	m := p.core.memory()
	if m.equal(p.saved) && maps.Equal(keep, p.savedKeep) {
		return
	}
	p.saved, p.savedKeep = m, maps.Clone(keep)
	p.disk.remember(m, maps.Clone(keep))
}

// say publishes the status, and has the link tell etcd.
func (p *loop) say(ready *rollout.Ready, now time.Time) {
	p.wished = ready
	s := p.snapshot(now)
	p.status.Store(&s)
	r := s.report()
	if ready != nil && ready.Whole() {
		r.Nonce = ready.Nonce
	}
	p.link.set(wish{
		state: p.state, ready: ready, report: r, serving: p.core.serving != nil, out: p.core.asking || p.core.own,
		init: p.state.At > 0 && p.state.FleetID == "" && p.core.floor == 0 && len(p.core.good) == 0,
	})
}
