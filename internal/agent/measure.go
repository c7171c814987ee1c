package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/engine"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

const (
	measuredRoutes = 100                  // changed routes told apart
	measureShare   = 5 * time.Millisecond // between measures for each instance of the group: 200 writes a second
	measureFresh   = 10 * time.Minute     // of an epoch; then it is measured less often
	measureLater   = 5 * time.Second      // so often
	measureAnyway  = 10 * time.Second     // written again though nothing was counted
	measureTimeout = 2 * time.Second      // for one write; the next has newer figures
)

// A comparison is what is counted from one switch to the next.
type comparison struct {
	epoch                int64
	since                time.Time
	old, new             version.Ref
	oldEngine, newEngine *engine.Engine // nil while not held: then nothing is counted
	before               bool           // old is what it was before the switch, not beside new
	byKey                bool           // clients' keys tell who gets which
	ready                int            // about how many instances measure
}

// comparison is what has to be measured now; nil for nothing. An instance that
// serves something else than it is assigned takes no part.
func (p *loop) comparison() *comparison {
	v := p.core.serving
	if v == nil || v.pinned || v.fallback || p.core.frozen != "" {
		return nil
	}
	c := &comparison{epoch: v.Epoch, since: v.since, ready: v.Ready}
	switch cand := v.Candidate; {
	case cand != nil && p.core.quarantined[cand.Digest]:
		return nil
	case cand != nil:
		c.old, c.new = v.Stable, cand.Ref
		c.byKey = len(cand.Instances) == 0 && cand.Permyriad > 0 && cand.Permyriad < 10000
	case !v.Against.IsZero():
		c.old, c.new, c.before = v.Against, v.Stable, true
	default:
		return nil
	}
	c.oldEngine, c.newEngine = p.engines[c.old.Digest], p.engines[c.new.Digest]
	return c
}

// sample is what was counted between two readings. Of what was there before
// the switch, everything since it was compiled counts.
func (c *comparison) sample(now, base *analysis.Sample) analysis.Sample {
	s := *now
	s.Routes = maps.Clone(now.Routes)
	if !c.before {
		s.Sub(base)
		return s
	}
	since := func(p, b analysis.Pair) analysis.Pair {
		p.Stable = b.Stable
		p.Candidate.Sub(&b.Candidate)
		return p
	}
	s.All, s.Rest = since(s.All, base.All), since(s.Rest, base.Rest)
	for name, p := range s.Routes {
		s.Routes[name] = since(p, base.Routes[name])
	}
	return s
}

// fold leaves at most so many routes apart.
func fold(s analysis.Sample, most int) analysis.Sample {
	names := slices.Sorted(maps.Keys(s.Routes))
	if len(names) <= most {
		return s
	}
	s.Routes = maps.Clone(s.Routes)
	for _, name := range names[most:] {
		p := s.Routes[name]
		s.Rest.Merge(&p)
		s.More++
		delete(s.Routes, name)
	}
	return s
}

// A meter tells etcd what is counted while there is something to compare. It
// works beside the loop, which never waits for it; what cannot be written in
// time is dropped, for the next measure says it too.
type meter struct {
	compare func(old, new *engine.Engine, most int) analysis.Sample
	keys    func() (stable, candidate analysis.KeySet)
	send    func(context.Context, rollout.Measure) error
	every   time.Duration
	log     *slog.Logger

	mu      sync.Mutex
	of      *comparison
	changed chan struct{} // closed and replaced with each comparison
	again   bool          // what was written is gone
	stable  analysis.KeySet
	cand    analysis.KeySet // these two: seen before the front end was told of other engines
}

// follow says what is to be compared from now on.
func (m *meter) follow(c *comparison) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c == m.of || (c != nil && m.of != nil && *c == *m.of) {
		return
	}
	m.of, m.stable, m.cand = c, analysis.KeySet{}, analysis.KeySet{}
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *meter) following() (*comparison, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.of, m.changed
}

// keepKeys remembers the keys seen so far: the front end is about to forget them.
func (m *meter) keepKeys() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.of == nil || !m.of.byKey {
		return
	}
	stable, cand := m.keys()
	m.stable.Merge(&stable)
	m.cand.Merge(&cand)
}

func (m *meter) seenKeys() (stable, cand analysis.KeySet) {
	m.mu.Lock()
	defer m.mu.Unlock()
	stable, cand = m.keys()
	stable.Merge(&m.stable)
	cand.Merge(&m.cand)
	return stable, cand
}

// resend has the next measure written in any case: the lease that the last one
// stood under is gone.
func (m *meter) resend() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.again = true
}

func (m *meter) takeAgain() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.again
	m.again = false
	return was
}

// run measures until ctx ends.
func (m *meter) run(ctx context.Context) {
	for ctx.Err() == nil {
		c, changed := m.following()
		of, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		if c != nil {
			wg.Go(func() { m.measure(of, c) })
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
		stop()
		wg.Wait()
	}
}

// measure writes what is counted of c until ctx ends. It counts from its first
// reading, which is just after the switch.
func (m *meter) measure(ctx context.Context, c *comparison) {
	base := m.read(c)
	every := max(m.every, measureShare*time.Duration(c.ready))
	var written analysis.Sample
	var writtenAt time.Time
	most := measuredRoutes
	timer := time.NewTimer(rand.N(every) + 1) // not the whole group at once
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		now := m.read(c)
		s := fold(c.sample(&now, &base), most)
		if c.byKey {
			s.StableKeys, s.CandidateKeys = m.seenKeys()
		}
		at := time.Now()
		if m.takeAgain() || writtenAt.IsZero() || s.All != written.All || at.Sub(writtenAt) >= measureAnyway {
			switch err := m.write(ctx, c, s, at); {
			case err == nil:
				written, writtenAt = s, at
			case errors.Is(err, store.ErrTooLarge) && most > 1:
				most /= 2
				fallthrough
			default:
				m.log.Debug("what was counted could not be written, the next time it is tried again", "epoch", c.epoch, "err", err)
				writtenAt = time.Time{}
			}
		}
		wait := every
		if at.Sub(c.since) >= measureFresh {
			wait = max(every, measureLater)
		}
		timer.Reset(wait)
	}
}

// read takes a reading of the counters.
func (m *meter) read(c *comparison) analysis.Sample {
	if c.oldEngine == nil || c.newEngine == nil {
		return analysis.Sample{}
	}
	return m.compare(c.oldEngine, c.newEngine, measuredRoutes)
}

func (m *meter) write(ctx context.Context, c *comparison, s analysis.Sample, at time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, measureTimeout)
	defer cancel()
	return m.send(ctx, rollout.Measure{
		Epoch: c.epoch, Time: at.UTC(), Since: c.since.UTC(), Old: c.old.Digest, New: c.new.Digest, Sample: s,
	})
}
