package agent

import (
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
	etcd     Etcd
	wished   *rollout.Ready
	skew     time.Duration // of the last switch
	prepared time.Duration // the last prepare took
	asked    rollout.Nonce // the prepare that is timed
	askedAt  time.Time

	jobs     chan *work
	building *work // nil while the worker has nothing to do

	confirms   sync.WaitGroup
	confirming bool
	confirmAt  time.Time // not before

	twin      bool // the name is another's, or was until it crashed
	saved     memory
	savedKeep map[version.Digest]bool
	logged    string
}

// work is a job for the worker, with what to build on.
type work struct {
	job
	ctx      context.Context
	cancel   context.CancelFunc
	previous *engine.Engine
	tried    <-chan struct{}
}

func newLoop(a *Agent) *loop {
	now := time.Now()
	p := &loop{
		Agent: a, core: newCore(a.o.Who.Instance, a.o.Who.Group), engines: map[version.Digest]*engine.Engine{},
		events: make(chan func(), 16), jobs: make(chan *work), started: now, etcd: Etcd{Since: now},
	}
	who := a.o.Who
	who.Started = now.UTC()
	p.link = &link{
		store: a.deps.Store, who: who, ttl: a.o.LeaseTTL, every: a.o.ReportEvery, log: a.log, counts: a.o.Counts, progress: a.progress.Load,
		leave: a.leave, changed: make(chan struct{}),
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
		p.log.Error("a digest is quarantined: it crashed this process twice; the last good revision is served instead", "digest", d.Short())
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wake := p.act(ctx)
		timer.Reset(max(0, time.Until(wake)))
		select {
		case f := <-p.events:
			f()
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
	plan := p.core.plan(now)
	for plan.swap != nil {
		p.swap(plan.swap)
		now = time.Now()
		plan = p.core.plan(now)
	}
	p.drop(plan.keep)
	p.steer(ctx, plan, now)
	p.time(now)
	p.confirm(ctx, plan.confirm, now)
	p.remember(plan.keep)
	p.say(plan.ready, now)

	wake := now.Add(staleSweep)
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(wake) {
			wake = t
		}
	}
	sooner(plan.wake)
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
	if p.twin || (p.etcd.Reachable && p.etcd.Error == "") {
		return
	}
	p.core.outOfReach(p.etcd.Reachable)
	if p.core.remembered() != nil {
		p.log.Warn("etcd does not let this instance join, serving what is remembered on disk", "timeout", p.o.JoinTimeout, "error", p.etcd.Error)
	} else {
		p.log.Warn("etcd does not let this instance join and nothing is remembered on disk: nothing is served", "timeout", p.o.JoinTimeout, "error", p.etcd.Error)
	}
}

// swap serves s: the switch itself comes before anything that could be slow.
func (p *loop) swap(s *serving) {
	began := time.Now()
	from := p.core.serving
	v := &engine.Serving{
		Fleet: p.core.fleet, Group: p.core.group, Instance: p.core.instance, Epoch: s.Epoch,
		Stable: p.engines[s.stable.Digest],
	}
	if c := s.candidate; c != nil {
		v.Candidate, v.Permyriad, v.Salt, v.Key = p.engines[c.Digest], c.Permyriad, c.Salt, c.Key
	}
	p.deps.Switch.Swap(v)
	done := time.Now()
	p.core.switched(s, done)

	ctx := context.Background()
	p.metrics.switches.Add(ctx, 1, p.metrics.attrs)
	p.metrics.swap.Record(ctx, done.Sub(began).Seconds(), p.metrics.attrs)
	if from != nil && s.source == SourceEtcd {
		p.skew = done.Sub(s.Instant)
		p.metrics.skew.Record(ctx, p.skew.Seconds(), p.metrics.attrs)
	}
	args := []any{"epoch", s.Epoch, "revision", s.main().Number, "digest", s.main().Digest.Short(), "source", s.source}
	if from != nil {
		args = append(args, "skew", p.skew)
	}
	if s.Override != nil {
		args = append(args, "override", s.Override.Why)
	}
	if s.fallback {
		p.log.Error("switched to the last good revision: the epoch's own is quarantined here", args...)
		return
	}
	p.log.Info("switched", args...)
}

// drop lets go of the engines that nobody asks for any more. Requests under
// way on them are not affected: they hold what they need.
func (p *loop) drop(keep map[version.Digest]bool) {
	dropped := false
	for d := range p.engines {
		if !keep[d] {
			delete(p.engines, d)
			p.core.dropped(d)
			dropped = true
		}
	}
	// While something is compiled, what it took out of the library is not yet
	// known to be in use.
	if dropped && p.building == nil {
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
	if len(plan.build) == 0 {
		p.try(nil)
		p.progress.Store(p.waiting(now))
		return
	}
	w := &work{job: plan.build[0], previous: p.base(), tried: p.try(&plan.build[0].Digest)}
	w.ctx, w.cancel = context.WithCancel(ctx)
	p.stage(w.job, StageFetching)
	select {
	case p.jobs <- w: // the worker waits for it
		p.building = w
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
	if t != nil && wanted[0].nonce == t.Nonce && w.nonce != t.Nonce && wanted[0].Digest != w.Digest {
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

func (p *loop) stage(j job, stage string) {
	p.progress.Store(&rollout.Progress{Nonce: j.nonce, Digest: j.Digest, Stage: stage, Since: time.Now().UTC()})
}

// try has the trials open of what is compiled, is about to be served and is
// served.
func (p *loop) try(compiling *version.Digest) <-chan struct{} {
	on := map[version.Digest]bool{}
	if compiling != nil {
		on[*compiling] = true
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
	return p.disk.try(on)
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
func (p *loop) builds(ctx context.Context) {
	b := &builder{
		snapshots: p.deps.Snapshots, disk: p.disk, cache: p.deps.Cache, library: p.deps.Library,
		capabilities: p.o.Capabilities, options: p.o.Compile, timeout: p.o.BuildTimeout,
	}
	for {
		select {
		case w := <-p.jobs:
			e, err := b.build(w.ctx, w.Ref, w.previous, w.tried, func(stage string) { p.stage(w.job, stage) })
			superseded := w.ctx.Err() != nil
			w.cancel()
			p.tell(ctx, func() { p.built(w.job, e, err, superseded) })
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
		p.core.built(j.Digest)
	case superseded:
	case errors.As(err, &r):
		p.core.refused(j, err.Error(), true, time.Now())
		p.metrics.refused.Add(context.Background(), 1, p.metrics.attrs)
		p.log.Error("a digest cannot be held", "revision", j.Number, "digest", j.Digest.Short(), "nonce", j.nonce, "error", line(err.Error()))
	default:
		p.core.refused(j, err.Error(), false, time.Now())
		p.log.Warn("a digest could not be fetched, trying again", "revision", j.Number, "digest", j.Digest.Short(), "error", line(err.Error()))
	}
	p.keepUsed()
}

// keepUsed lets the library close what no engine uses any more.
func (p *loop) keepUsed() {
	engines := make([]*engine.Engine, 0, len(p.engines))
	for _, d := range sortedDigests(p.engines) {
		engines = append(engines, p.engines[d])
	}
	p.deps.Library.Keep(engines...)
}

// time measures prepares, and proves what was served well for long enough.
func (p *loop) time(now time.Time) {
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
	if ready != nil && !ready.Refused {
		r.Nonce = ready.Nonce
	}
	p.link.set(wish{
		state: p.state, ready: ready, report: r, serving: p.core.serving != nil,
		init: p.state.At > 0 && p.state.FleetID == "" && p.core.floor == 0 && len(p.core.good) == 0,
	})
}
