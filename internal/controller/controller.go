package controller

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"

	"routerd.dev/internal/check"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

// A Source is the etcd that a controller works on. Of makes one of a store.
type Source interface {
	// Campaign returns when id is elected, or with an error.
	Campaign(ctx context.Context, id string, ttl time.Duration) (Term, error)
	// View reads all records at one revision, linearizably.
	View(ctx context.Context) (*rollout.View, error)
	// Watch calls wake, one call after the other, when something may have
	// changed, until ctx ends.
	Watch(ctx context.Context, wake func(store.Wake)) error
	// GC deletes what nothing needs; it is safe beside everything else.
	GC(ctx context.Context, by string, keep store.KeepPolicy) (store.Collected, error)
}

// A Term is the time for which a controller was elected.
type Term interface {
	// Apply carries a change out or writes nothing; it fails with
	// store.ErrDeposed, store.ErrStale or store.ErrNotReady.
	Apply(ctx context.Context, at *rollout.View, c rollout.Change) error
	// PutChecks writes what checks answered, or nothing; it fails with
	// store.ErrDeposed, or store.ErrNotFound when the rollout is over. It makes
	// no Apply stale.
	PutChecks(ctx context.Context, c rollout.Checks) error
	// Done is closed when the term is known to have ended.
	Done() <-chan struct{}
	// Resign ends the term.
	Resign(ctx context.Context) error
}

// Of makes a Source of a store.
func Of(s *store.Store) Source { return etcd{s} }

type etcd struct{ *store.Store }

func (e etcd) Campaign(ctx context.Context, id string, ttl time.Duration) (Term, error) {
	t, err := e.Store.Campaign(ctx, id, ttl)
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (e etcd) Watch(ctx context.Context, wake func(store.Wake)) error {
	return e.Store.Watch(ctx, store.WatchOptions{}, wake)
}

// Options have a usable zero value.
type Options struct {
	ID     string        // stands in the election and in logs; "" for a random one
	TTL    time.Duration // how long a dead controller is waited for; 0 for the store's default
	Logger *slog.Logger  // nil for none
	Meter  metric.Meter  // nil for none

	// MaxBackoff bounds the pause after failures; 0 for 5 s.
	MaxBackoff time.Duration

	// Notify says whom to tell what becomes of rollouts.
	Notify NotifyOptions
}

// A Controller is one candidate for the election.
type Controller struct {
	src Source
	o   Options
	log *slog.Logger
	m   *meters
	n   *notifier
	ask func(context.Context, rollout.Check) (value float64, ok bool, err error)
}

// New returns a controller that works on src once it runs. It fails when the
// meter refuses an instrument, or a webhook's URL is none.
func New(src Source, o Options) (*Controller, error) {
	if o.ID == "" {
		o.ID = "controller-" + rand.Text()[:8]
	}
	if o.MaxBackoff <= 0 {
		o.MaxBackoff = 5 * time.Second
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	m, err := newMeters(o.Meter)
	if err != nil {
		return nil, err
	}
	log = log.With("controller", o.ID)
	n, err := newNotifier(o.Notify, log, m)
	if err != nil {
		return nil, err
	}
	return &Controller{src: src, o: o, log: log, m: m, n: n, ask: check.Ask}, nil
}

// Run campaigns and, whenever it is elected, moves the fleet, until ctx ends;
// then it resigns and returns nil. Trouble with etcd is logged and tried again,
// so that a router's traffic never depends on it.
func (c *Controller) Run(ctx context.Context) error {
	// What the last change did is told after the last term: so it ends last.
	telling, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { c.n.run(telling) })
	defer wg.Wait()
	defer stop()
	for try := 0; ctx.Err() == nil; {
		term, err := c.src.Campaign(ctx, c.o.ID, c.o.TTL)
		if ctx.Err() != nil && err != nil {
			return nil
		}
		if err != nil {
			c.log.Error("cannot campaign", "err", err)
			pause(ctx, backoff(try, c.o.MaxBackoff))
			try++
			continue
		}
		try = 0
		c.log.Info("elected")
		c.m.lead(ctx, 1)
		c.lead(ctx, term)
		c.m.lead(ctx, -1)
		c.resign(ctx, term)
	}
	return nil
}

// resign gives the term back also when ctx has ended, so that another
// controller need not wait for the lease.
func (c *Controller) resign(ctx context.Context, term Term) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := term.Resign(ctx); err != nil {
		c.log.Warn("cannot resign: the next controller waits for the lease to end", "err", err)
	}
}

// lead moves the fleet until the term or ctx ends.
func (c *Controller) lead(ctx context.Context, term Term) {
	ctx, stop := context.WithCancel(ctx)
	wakes := newInbox()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		if err := c.src.Watch(ctx, wakes.put); err != nil && ctx.Err() == nil {
			c.log.Error("watch ended", "err", err) // Looking again by time goes on.
		}
	})
	l := leader{c: c, term: term, asker: newAsker(c, term)}
	defer func() { c.m.seen(ctx, nil) }()
	defer l.asker.wg.Wait()
	defer stop()
	wg.Go(func() { l.collect(ctx) })
	timer := time.NewTimer(0) // Looks once at once.
	defer timer.Stop()
	for failed := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-term.Done():
			c.log.Warn("term ended: its lease is gone")
			return
		case <-wakes.ready:
			if l.knows(wakes.take()) {
				continue
			}
		case <-timer.C:
		}
		next, err := l.drain(ctx)
		wait := idle
		switch {
		case errors.Is(err, store.ErrDeposed):
			c.log.Warn("deposed", "err", err)
			return
		case err != nil && ctx.Err() != nil:
			return
		case err != nil:
			wait = backoff(failed, c.o.MaxBackoff)
			failed++
			c.log.Warn("cannot move the fleet, trying again", "err", err, "in", wait)
		default:
			failed = 0
			if !next.IsZero() {
				wait = min(max(time.Until(next), time.Millisecond), idle)
			}
		}
		timer.Reset(wait)
	}
}

// idle is how often it looks though nothing calls for it: reports wake nobody.
const idle = 5 * time.Second
