package agent

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

const (
	leaveTimeout = 2 * time.Second // for giving the lease back; then it ends by itself
	settle       = 25 * time.Millisecond
	minBackoff   = 100 * time.Millisecond
	maxBackoff   = 5 * time.Second
)

// A wish is what the loop wants etcd to know. The newest one counts.
type wish struct {
	state   store.GroupState // as read; what an admission is based on
	ready   *rollout.Ready   // nil: say nothing
	report  rollout.Report
	init    bool // make a fleet: there is none, and this instance never served one
	out     bool // ready.Evicted is its own wish: as the group's floor allows
	serving bool
}

// A link keeps the instance registered and says there what the loop wishes.
// Its goroutines are the only ones that write to etcd, so etcd's slowness
// delays nothing else.
type link struct {
	store    Store
	who      rollout.Instance
	ttl      time.Duration
	every    time.Duration
	log      *slog.Logger
	counts   func() (int64, int64)
	progress func() *rollout.Progress
	tell     func(func(*loop)) // runs on the loop's goroutine
	leave    <-chan struct{}   // closed to give the lease back

	mu      sync.Mutex
	current *store.Membership // nil while there is none
	wish    wish
	changed chan struct{} // closed and replaced with each wish
}

func (l *link) set(w wish) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if reflect.DeepEqual(l.wish, w) {
		return
	}
	l.wish = w
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *link) get() (wish, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wish, l.changed
}

// measure writes what was counted, if the instance is registered.
func (l *link) measure(ctx context.Context, r rollout.Measure) error {
	l.mu.Lock()
	m := l.current
	l.mu.Unlock()
	if m == nil {
		return errors.New("not registered")
	}
	return m.Measure(ctx, r)
}

func (l *link) registered(m *store.Membership) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current = m
}

// run joins, and joins again whenever the membership is lost, until ctx ends
// or the lease is to be given back. Its error is fatal: the instance's name is
// another's.
func (l *link) run(ctx context.Context) error {
	var twin time.Time // until when the name's other holder may be a dead process
	for try := 0; ; {
		if !l.reached(ctx) {
			return nil
		}
		m, err := l.store.Join(ctx, l.who, l.ttl)
		if err == nil {
			try, twin = 0, time.Time{}
			if over := l.member(ctx, m); over {
				return nil
			}
			if !l.pause(ctx, jitter(minBackoff)) {
				return nil
			}
			continue
		}
		most := maxBackoff
		var t *store.TwinError
		if errors.As(err, &t) {
			most = time.Second // the name is free as soon as a lease ends
		} else {
			twin = time.Time{} // an etcd that was away gives every lease its whole time again, also a dead process's
		}
		if w, _ := l.get(); t != nil && !w.serving {
			// A former life of this instance holds the name until its lease
			// ends. One who renews it is alive.
			now := time.Now()
			if twin.IsZero() {
				twin = now.Add(max(t.Expires, l.ttl) + time.Second)
				l.log.Warn("the instance name is taken, waiting for its lease to end", "err", err)
			} else if now.After(twin) {
				return err
			}
		}
		l.tell(func(p *loop) { p.joinFailed(err) })
		if !l.pause(ctx, jitter(min(minBackoff<<min(try, 10), most))) {
			return nil
		}
		try++
	}
}

// pause waits; false when the link is to end.
func (l *link) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-l.leave:
	}
	return false
}

// reached waits until etcd was read once, and makes the fleet if the loop
// wishes; false when the link is to end.
func (l *link) reached(ctx context.Context) bool {
	for {
		w, changed := l.get()
		if w.init {
			f, created, err := l.store.Init(ctx)
			if err == nil {
				if created {
					l.log.Info("made an empty fleet", "fleet", f.FleetID)
				}
				l.tell(func(p *loop) { p.core.doubt = true }) // read again
			} else {
				l.tell(func(p *loop) { p.joinFailed(err) })
				if !l.pause(ctx, jitter(maxBackoff/5)) {
					return false
				}
				continue
			}
		} else if w.state.At > 0 {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		case <-l.leave:
			return false
		}
	}
}

// member says what is wished under one membership until that is lost; true
// when the link is to end.
func (l *link) member(ctx context.Context, m *store.Membership) (over bool) {
	l.registered(m)
	defer l.registered(nil)
	l.tell(func(p *loop) { p.joined() })
	mctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { l.report(mctx, m) })
	wg.Go(func() { l.say(mctx, m) })
	select {
	case <-m.Lost():
	case <-ctx.Done():
		over = true
	case <-l.leave:
		over = true
	}
	cancel()
	wg.Wait()
	end, done := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer done()
	if err := m.Leave(end); err != nil {
		l.log.Warn("the lease could not be given back, it ends by itself", "err", err)
	}
	l.tell(func(p *loop) { p.lost(over) })
	return over
}

// say keeps the ready key at what is wished. A nonce is first said by
// admission, based on what the loop knew when it wished it.
func (l *link) say(ctx context.Context, m *store.Membership) {
	var said *rollout.Ready
	admitted := false
	pause := firstPause
	for ctx.Err() == nil {
		w, changed := l.get()
		var again <-chan time.Time
		r := w.ready
		if r == nil && said != nil {
			r = &rollout.Ready{} // what was said holds no more
		}
		if r != nil && (said == nil || !said.Equal(r)) {
			admit := !admitted && r.Nonce != "" && !r.Refused && !r.Evicted
			var err error
			out := w.out && r.Evicted && (said == nil || !said.Evicted) // else it has its place already
			if out {
				r = &rollout.Ready{Instance: r.Instance, Group: r.Group, Nonce: r.Nonce, Evicted: true} // the rest follows
			}
			switch {
			case admit:
				err = m.Admit(ctx, w.state, r.Nonce, r.Lacks...)
			case out:
				err = m.StepOut(ctx, r.Nonce)
			default:
				err = m.Put(ctx, *r)
			}
			switch {
			case err == nil:
				said, admitted, pause = r, admitted || admit, firstPause
				l.tell(func(p *loop) { p.said(*r, admit, out) })
			case errors.Is(err, store.ErrFloor):
				l.tell(func(p *loop) { p.floor(err) }) // it wishes something else then
				again = time.After(jitter(longestPause))
			case ctx.Err() != nil, errors.Is(err, store.ErrLostMembership):
				return // Lost says so too
			default:
				if errors.Is(err, store.ErrStale) {
					l.tell(func(p *loop) { p.core.doubt = true }) // read again
				} else {
					l.log.Warn("readiness could not be written, trying again", "err", err)
					said = nil // it may have been written all the same
				}
				again = time.After(jitter(pause))
				pause = min(2*pause, longestPause)
			}
			if err == nil {
				continue
			}
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
		}
	}
}

// pace is how often to report when nothing changes: in a group of thousands
// less often, or reports would be most of what etcd does.
func (l *link) pace(w wish) time.Duration {
	a := w.state.Assignment
	if a == nil {
		return l.every
	}
	return max(l.every, measureShare*time.Duration(a.Ready))
}

// report tells how the instance is: at once when what it serves changed, soon
// after other changes, which come in crowds, and every few seconds.
func (l *link) report(ctx context.Context, m *store.Membership) {
	var last rollout.Report
	var changedAt time.Time
	next := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		w, changed := l.get()
		r := w.report
		due := next
		if !reflect.DeepEqual(r, last) {
			if changedAt.IsZero() {
				changedAt = time.Now()
			}
			if due = changedAt.Add(settle); r.Frozen != last.Frozen || !reflect.DeepEqual(r.Serving, last.Serving) {
				due = changedAt
			}
		}
		if wait := time.Until(due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-changed:
			case <-timer.C:
			case <-ctx.Done():
				return
			}
			continue
		}
		sent := r
		sent.Preparing = l.progress() // alone it is not worth a write
		sent.Time = time.Now().UTC()
		sent.Requests, sent.Errors = l.counts()
		err := m.Report(ctx, sent)
		switch {
		case ctx.Err() != nil, errors.Is(err, store.ErrLostMembership):
			return
		case err != nil:
			l.log.Debug("report could not be written", "err", err)
			if !l.pause(ctx, jitter(longestPause)) {
				return
			}
		default:
			last, changedAt = r, time.Time{}
			next = time.Now().Add(jitter(l.pace(w)))
		}
	}
}
