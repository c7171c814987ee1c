package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"routerd.dev/internal/rollout"
)

// An Agent is one instance's part in its fleet.
type Agent struct {
	deps    Deps
	o       Options
	log     *slog.Logger
	metrics *metrics
	disk    *writer // nil without a state directory

	status   atomic.Pointer[Status]
	progress atomic.Pointer[rollout.Progress]
	draining atomic.Bool
	running  atomic.Bool

	orders chan func(*loop) // of whoever is not one of the loop's helpers
	behind chan struct{}    // what is known of the group may be old
	pins   chan struct{}    // holds one: orders to pin and unpin come one after the other
	over   chan struct{}    // closed once the loop has ended

	leaveOnce sync.Once
	leave     chan struct{} // closed by Leave
	left      chan struct{} // closed once the lease is given back, or Run has ended
}

// New checks the options and starts nothing. It touches neither etcd nor disk.
func New(deps Deps, o Options) (*Agent, error) {
	switch {
	case deps.Store == nil || deps.Snapshots == nil || deps.Switch == nil || deps.Library == nil || deps.Cache == nil:
		return nil, errors.New("new agent: a dependency is missing")
	case o.Who.Instance == "" || o.Who.Group == "":
		return nil, errors.New("new agent: the instance needs a name and a group")
	}
	o = o.withDefaults()
	m, err := newMetrics(o.Meter, o.Who.Group, o.Who.Instance)
	if err != nil {
		return nil, fmt.Errorf("new agent: make instruments: %w", err)
	}
	a := &Agent{
		deps: deps, o: o, metrics: m,
		log:   o.Logger.With("group", o.Who.Group, "instance", o.Who.Instance),
		leave: make(chan struct{}), left: make(chan struct{}),
		orders: make(chan func(*loop)), behind: make(chan struct{}, 1), pins: make(chan struct{}, 1), over: make(chan struct{}),
	}
	if o.StateDir != "" {
		a.disk = newWriter(&disk{root: o.StateDir, group: o.Who.Group, log: a.log}, o.Who.Version, a.log)
		a.disk.note = o.CrashNote
	}
	a.status.Store(&Status{Group: o.Who.Group, Instance: o.Who.Instance, Boot: o.Who.Boot, Holds: nil})
	return a, nil
}

func newBoot() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand crashes the program instead
	return hex.EncodeToString(b[:])
}

// Run takes part in the fleet until ctx ends, and then gives the lease back.
// Its one error is that the instance's name is another's (store.ErrTwin), found
// before anything was served; whatever else goes wrong is waited out. It is
// called once.
func (a *Agent) Run(ctx context.Context) error {
	if a.running.Swap(true) {
		return errors.New("run agent: it ran already")
	}
	registration, err := a.metrics.observe(a.Status, a.deps.Switch.TokenCounts)
	if err != nil {
		close(a.over)
		close(a.left)
		return fmt.Errorf("run agent: %w", err)
	}
	defer func() {
		if err := registration.Unregister(); err != nil {
			a.log.Warn("metrics stay registered", "err", err)
		}
	}()

	p := newLoop(a)
	var writes sync.WaitGroup
	disk, flushed := context.WithCancel(context.WithoutCancel(ctx))
	writes.Go(func() { a.disk.run(disk) })
	defer writes.Wait()
	defer flushed()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.link.tell = func(f func(*loop)) { p.tell(ctx, func() { f(p) }) }
	var wg sync.WaitGroup
	p.hire(ctx)
	wg.Go(func() { p.follow(ctx) })
	wg.Go(func() { p.scrub(ctx) })
	wg.Go(func() {
		defer close(a.left)
		if err := p.link.run(ctx); err != nil {
			cancel(err)
		}
	})
	wg.Go(func() { p.meter.run(ctx) })
	p.run(ctx)
	close(a.over)
	wg.Wait()
	p.dismiss()
	p.confirms.Wait()
	a.disk.stop()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("run agent: %w", err)
	}
	return nil
}

// Behind tells that a client saw a later epoch of this group than is served
// here: the group is read again at once, if that was not just done. It may be
// called as often as one likes, from any goroutine, and never waits.
func (a *Agent) Behind() {
	select {
	case a.behind <- struct{}{}:
	default:
	}
}

// Drain turns readiness off. Everything else goes on: an instance that drains
// still switches with its group.
func (a *Agent) Drain() { a.draining.Store(true) }

// Leave gives the lease back: the group counts this instance no more. It is
// called when the last request is done, before Run is told to end, and returns when
// etcd knows, when it cannot be told within two seconds, or when ctx ends.
func (a *Agent) Leave(ctx context.Context) error {
	a.draining.Store(true)
	a.leaveOnce.Do(func() { close(a.leave) })
	if !a.running.Load() {
		return nil
	}
	select {
	case <-a.left:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("leave: %w", ctx.Err())
	}
}

// staleSweep is how often the loop looks at the clock when nothing happens.
const staleSweep = 15 * time.Second

// rereadEvery is how often at most clients have the group read again.
const rereadEvery = 100 * time.Millisecond
