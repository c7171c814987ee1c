package controller

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

// A leader is a controller during one term.
type leader struct {
	c     *Controller
	term  Term
	asker *asker

	historyLimit atomic.Int64 // of the newest view

	seen int64     // etcd's revision at which nothing was left to do
	at   time.Time // when that was
}

// fresh is how long a wake-up about something seen already is ignored. Not
// for longer: a restored etcd has lower revisions.
const fresh = time.Second

// knows tells whether w calls for nothing: it is about the leader's own last
// write, mostly, or says that etcd does not answer, which the next step finds out.
func (l *leader) knows(w store.Wake) bool {
	return w.Err != nil || w.At > 0 && w.At <= l.seen && time.Since(l.at) < fresh
}

// drain steps until nothing is left to do, and returns when to look again.
func (l *leader) drain(ctx context.Context) (time.Time, error) {
	for lost := 0; ; {
		next, done, err := l.step(ctx)
		switch {
		case err == nil && done:
			return next, nil
		case err == nil:
			lost = 0
		case !errors.Is(err, store.ErrStale) && !errors.Is(err, store.ErrNotReady):
			return time.Time{}, err
		default:
			// Somebody was quicker, and nothing was written: read anew. At once
			// at first; with pauses when it goes on, so as not to storm etcd.
			if lost++; lost > 3 {
				pause(ctx, backoff(lost-3, 250*time.Millisecond))
			}
			if lost > 20 {
				return time.Time{}, err
			}
		}
	}
}

// step does one thing. It tells done when there was nothing to do.
func (l *leader) step(ctx context.Context) (next time.Time, done bool, err error) {
	began := time.Now()
	v, err := l.c.src.View(ctx)
	if err != nil {
		l.c.m.stepped(ctx, began, "unread")
		return next, false, fmt.Errorf("read view: %w", err)
	}
	v.Seed = rand.Text()
	l.historyLimit.Store(int64(v.Fleet.Settings.HistoryLimit))
	l.c.m.seen(ctx, v)
	l.asker.see(ctx, v)
	change, next, err := decide(v)
	if err != nil {
		l.c.m.stepped(ctx, began, "failed")
		return next, false, err
	}
	if change.IsZero() {
		l.seen, l.at = v.At, time.Now()
		l.c.m.stepped(ctx, began, "nothing")
		return next, true, nil
	}
	writing := time.Now()
	err = l.term.Apply(ctx, v, change)
	l.c.m.stepped(ctx, began, outcome(err))
	if err != nil {
		return next, false, fmt.Errorf("carry out step at %d: %w", v.At, err)
	}
	l.c.tell(ctx, v, change)
	l.c.m.applied(ctx, change, writing)
	return next, false, nil
}

// decide keeps a defect in Step from taking the router down with it, which
// serves in the same process.
func decide(v *rollout.View) (c rollout.Change, next time.Time, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("decide at %d: panic: %v\n%s", v.At, p, debug.Stack())
		}
	}()
	c, next = rollout.Step(v, time.Now())
	return c, next, nil
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "applied"
	case errors.Is(err, store.ErrStale):
		return "stale"
	case errors.Is(err, store.ErrNotReady):
		return "not-ready"
	case errors.Is(err, store.ErrDeposed):
		return "deposed"
	default:
		return "failed"
	}
}

// An inbox keeps the newest wake-up until it is taken: those that come while a
// step is under way become one. The newest is the one about the highest
// revision, not the last, since events of different keys overtake each other.
// One that says that etcd does not answer is about none.
type inbox struct {
	ready chan struct{} // holds one while there is something to take
	mu    sync.Mutex
	w     store.Wake
}

func newInbox() *inbox { return &inbox{ready: make(chan struct{}, 1)} }

func (i *inbox) put(w store.Wake) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if w.At >= i.w.At {
		i.w = w
	}
	select {
	case i.ready <- struct{}{}:
	default:
	}
}

// take is called by who received from ready.
func (i *inbox) take() store.Wake {
	i.mu.Lock()
	defer i.mu.Unlock()
	select {
	case <-i.ready: // one that came in between is taken with it
	default:
	}
	w := i.w
	i.w = store.Wake{} // else a restored etcd's lower revisions would not count
	return w
}

// backoff is the pause after the try-th failure in a row: it doubles up to
// most, and is spread so that controllers do not come back together.
func backoff(try int, most time.Duration) time.Duration {
	d := min(50*time.Millisecond<<min(try, 10), most)
	return d/2 + mrand.N(d/2+1)
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
