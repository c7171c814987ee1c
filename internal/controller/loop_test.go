package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// A script is a Source whose answers a test writes.
type script struct {
	mu        sync.Mutex
	view      func() (*rollout.View, error)
	apply     func(rollout.Change) error
	put       func(context.Context, rollout.Checks) error
	gc        func() (store.Collected, error)
	wake      func(store.Wake)
	views     []time.Time
	campaigns int
	resigned  int
	done      chan struct{}
}

func (s *script) Campaign(ctx context.Context, _ string, _ time.Duration) (Term, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.campaigns++
	s.done = make(chan struct{})
	return &scriptTerm{s: s, done: s.done}, ctx.Err()
}

func (s *script) View(context.Context) (*rollout.View, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.views = append(s.views, time.Now())
	return s.view()
}

func (s *script) Watch(ctx context.Context, wake func(store.Wake)) error {
	s.mu.Lock()
	s.wake = wake
	s.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

func (s *script) GC(context.Context, string, store.KeepPolicy) (store.Collected, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gc()
}

type scriptTerm struct {
	s    *script
	done chan struct{}
}

func (t *scriptTerm) Apply(_ context.Context, _ *rollout.View, c rollout.Change) error {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	return t.s.apply(c)
}

func (t *scriptTerm) PutChecks(ctx context.Context, c rollout.Checks) error {
	t.s.mu.Lock()
	put := t.s.put
	t.s.mu.Unlock()
	if put == nil {
		return nil
	}
	return put(ctx, c)
}

func (t *scriptTerm) Done() <-chan struct{} { return t.done }

func (t *scriptTerm) Resign(context.Context) error {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	t.s.resigned++
	return nil
}

// looked returns how often the view was read since it was asked last.
func (s *script) looked() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.views
	s.views = nil
	return v
}

func (s *script) set(do func()) { s.mu.Lock(); defer s.mu.Unlock(); do() }

func quiet(at int64) func() (*rollout.View, error) {
	return func() (*rollout.View, error) { return &rollout.View{At: at, Fleet: rollout.Fleet{ID: "f"}}, nil }
}

// busy is a view that asks for a change.
func busy() (*rollout.View, error) {
	return &rollout.View{
		At: 7, Fleet: rollout.Fleet{ID: "f"},
		Instances: map[string]rollout.Instance{"a": {Instance: "a", Group: "main"}},
	}, nil
}

// run runs a controller on s in a bubble of its own time.
func run(t *testing.T, s *script, o Options, test func(stop func())) {
	synctest.Test(t, func(t *testing.T) {
		c, err := New(s, o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := c.Run(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		})
		stop := func() { cancel(); wg.Wait() }
		defer stop()
		synctest.Wait()
		test(stop)
	})
}

// TestWakes looks at once when something changed, not for what it saw, and
// again though nobody says anything.
func TestWakes(t *testing.T) {
	s := &script{view: quiet(10)}
	run(t, s, Options{}, func(stop func()) {
		if n := len(s.looked()); n != 1 {
			t.Fatalf("looked %d times at its election", n)
		}
		for _, w := range []struct {
			store.Wake
			want int
		}{
			{store.Wake{At: 9}, 0},
			{store.Wake{At: 10}, 0},
			{store.Wake{At: 11}, 1},
			{store.Wake{Err: errors.New("away")}, 0},
			{store.Wake{At: 12}, 1},
		} {
			s.wake(w.Wake)
			synctest.Wait()
			if n := len(s.looked()); n != w.want {
				t.Errorf("looked %d times after %+v", n, w.Wake)
			}
		}
		time.Sleep(2 * fresh)
		s.wake(store.Wake{At: 3}) // etcd was restored
		synctest.Wait()
		if n := len(s.looked()); n != 1 {
			t.Errorf("looked %d times after etcd went back", n)
		}
		time.Sleep(idle + time.Millisecond)
		if n := len(s.looked()); n != 1 {
			t.Errorf("looked %d times when idle", n)
		}
		stop()
		if s.resigned != 1 {
			t.Errorf("resigned %d times", s.resigned)
		}
	})
}

// TestWakesWhileItLooks keeps the newest of what came meanwhile: events of two
// keys overtake each other, and the last ready key's must not wait for the next
// look by time.
func TestWakesWhileItLooks(t *testing.T) {
	at := func(n int64) store.Wake { return store.Wake{At: n} }
	away := store.Wake{Err: errors.New("away")}
	for name, c := range map[string]struct {
		wakes []store.Wake
		want  int
	}{
		"its own write":                {[]store.Wake{at(99)}, 0},
		"etcd is away":                 {[]store.Wake{away}, 0},
		"in order":                     {[]store.Wake{at(99), at(100)}, 1},
		"overtaken":                    {[]store.Wake{at(100), at(99)}, 1},
		"then etcd is away":            {[]store.Wake{at(100), away}, 1},
		"etcd was away":                {[]store.Wake{away, at(100)}, 1},
		"its own write, etcd was away": {[]store.Wake{away, at(99)}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{view: quiet(98)}
			run(t, s, Options{}, func(func()) {
				s.looked()
				gate := make(chan struct{})
				s.set(func() { s.view = func() (*rollout.View, error) { <-gate; return quiet(99)() } })
				s.wake(at(99))
				synctest.Wait() // it looks
				for _, w := range c.wakes {
					s.wake(w)
				}
				close(gate)
				synctest.Wait()
				if n := len(s.looked()) - 1; n != c.want {
					t.Errorf("looked %d times more, want %d", n, c.want)
				}
				s.wake(at(98)) // what was taken is not kept
				synctest.Wait()
				if n := len(s.looked()); n != 0 {
					t.Errorf("looked %d times for what it has seen", n)
				}
			})
		})
	}
}

// TestInboxSignalsOnce: a wake-up that comes between the signal and the taking
// is taken with the one before it, and signals no second time.
func TestInboxSignalsOnce(t *testing.T) {
	i := newInbox()
	i.put(store.Wake{At: 1})
	<-i.ready
	i.put(store.Wake{At: 2})
	if w := i.take(); w.At != 2 {
		t.Errorf("took %+v", w)
	}
	select {
	case <-i.ready:
		t.Errorf("it signals, and there is %+v", i.take())
	default:
	}
}

// TestBackoff tries again with growing pauses, and at once when etcd is back.
func TestBackoff(t *testing.T) {
	s := &script{view: func() (*rollout.View, error) { return nil, store.ErrUnavailable }}
	run(t, s, Options{}, func(func()) {
		time.Sleep(time.Minute)
		at := s.looked()
		if n := len(at); n < 10 || n > 40 {
			t.Errorf("%d tries in a minute", n)
		}
		if d := at[len(at)-1].Sub(at[len(at)-2]); d < 2500*time.Millisecond || d > 5*time.Second {
			t.Errorf("last pause %v", d)
		}
		s.set(func() { s.view = quiet(5) })
		s.wake(store.Wake{At: 5})
		synctest.Wait()
		if n := len(s.looked()); n != 1 {
			t.Errorf("looked %d times when etcd was back", n)
		}
	})
}

// TestStale reads anew at once, but does not storm.
func TestStale(t *testing.T) {
	for _, cause := range []error{store.ErrStale, store.ErrNotReady} {
		left := 2
		s := &script{view: busy}
		s.apply = func(rollout.Change) error {
			if left--; left >= 0 {
				return fmt.Errorf("apply: %w", cause)
			}
			s.view = quiet(8)
			return nil
		}
		run(t, s, Options{}, func(func()) {
			if at := s.looked(); len(at) != 4 || at[3].Sub(at[0]) != 0 {
				t.Errorf("%v: read the view at %v", cause, at)
			}
		})
		left = 1 << 30
		s = &script{view: busy, apply: s.apply}
		run(t, s, Options{}, func(func()) {
			time.Sleep(time.Minute)
			if n := len(s.looked()); n > 1000 {
				t.Errorf("%v: %d tries in a minute", cause, n)
			}
		})
	}
}

// TestDeposed campaigns again, whether a write tells or the lease.
func TestDeposed(t *testing.T) {
	s := &script{view: busy}
	s.apply = func(rollout.Change) error {
		s.view = quiet(8)
		return store.ErrDeposed
	}
	run(t, s, Options{}, func(func()) {
		want := func(campaigns, resigned int) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.campaigns != campaigns || s.resigned != resigned {
				t.Errorf("%d campaigns, resigned %d times", s.campaigns, s.resigned)
			}
		}
		want(2, 1)
		s.set(func() { close(s.done) })
		synctest.Wait()
		want(3, 2)
	})
}

// TestDeadline acts at the time that Step names, though nothing happens: a
// rollback commits without its straggler after one second. It is measured.
func TestDeadline(t *testing.T) {
	ref := func(n int64) version.Ref { return version.Ref{Number: n, Digest: version.DigestOf([]byte{byte(n)})} }
	v := rollout.View{
		At: 7, Fleet: rollout.Fleet{ID: "f", Target: ref(2), Committed: ref(2)},
		Groups: map[string]rollout.Assignment{"main": {
			Group: "main", Epoch: 4, Nonce: "n", Set: []version.Ref{ref(2), ref(1)}, Stable: ref(2), Back: []version.Ref{ref(1)}, Ready: 1,
		}},
		Ready:   map[string]map[string]rollout.Ready{"main": {"a": {Instance: "a", Group: "main"}}},
		Intents: []rollout.Intent{{ID: "r1", Kind: rollout.IntentRollback, By: "ann"}},
	}
	var committed rollout.Assignment
	var at time.Time
	s := &script{view: func() (*rollout.View, error) { w := v; return &w, nil }}
	s.apply = func(c rollout.Change) error {
		v.At++
		v.Intents = nil
		v.Rollouts = nil
		for _, r := range c.Rollouts {
			if !r.Phase.Final() {
				v.Rollouts = append(v.Rollouts, r)
			}
		}
		for _, a := range c.Groups {
			v.Groups = map[string]rollout.Assignment{a.Group: a}
			committed, at = a, time.Now()
		}
		if c.Fleet != nil {
			v.Fleet = *c.Fleet
		}
		return nil
	}
	reader := metric.NewManualReader()
	meter := metric.NewMeterProvider(metric.WithReader(reader)).Meter("test")
	run(t, s, Options{Meter: meter}, func(func()) {
		began := time.Now()
		time.Sleep(3 * time.Second)
		s.mu.Lock()
		defer s.mu.Unlock()
		if committed.Override == nil || len(committed.Override.Instances) != 1 || at.Sub(began) != time.Second {
			t.Errorf("committed %+v after %v", committed, at.Sub(began))
		}
	})
	var rm metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &rm); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, sm := range rm.ScopeMetrics {
		for _, m := range sm.Metrics {
			seen[m.Name] = true
		}
	}
	for _, want := range []string{"routerd.controller.steps", "routerd.controller.step.duration", "routerd.controller.commit.duration", "routerd.rollout.prepare.duration", "routerd.rollout.ended", "routerd.controller.leading"} {
		if !seen[want] {
			t.Errorf("nothing measured as %s", want)
		}
	}
}
