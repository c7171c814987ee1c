package agent

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/engine"
	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// counting counts what is logged as an error.
type counting struct {
	mu     sync.Mutex
	errors int
}

func (c *counting) Enabled(context.Context, slog.Level) bool { return true }
func (c *counting) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c *counting) WithGroup(string) slog.Handler            { return c }
func (c *counting) Handle(_ context.Context, r slog.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Level >= slog.LevelError {
		c.errors++
	}
	return nil
}

// noStore is an etcd that never answers.
type noStore struct{ Store }

func (noStore) Group(ctx context.Context, _ string) (store.GroupState, error) {
	<-ctx.Done()
	return store.GroupState{}, ctx.Err()
}

type swaps struct {
	at     []time.Time
	epochs []int64
}

func (s *swaps) Swap(v *engine.Serving) {
	s.at = append(s.at, time.Now())
	s.epochs = append(s.epochs, v.Epoch)
}

func (*swaps) Keys() (stable, candidate analysis.KeySet) { return stable, candidate }
func (*swaps) TokenCounts() engine.TokenCounts           { return engine.TokenCounts{} }

// inBubble runs a loop that serves epoch 1 and holds revisions 1 to 3, without
// etcd and disk; the clock is the bubble's.
func inBubble(t *testing.T, f func(p *loop, see func(record), sw *swaps)) {
	synctest.Test(t, func(t *testing.T) {
		sw := &swaps{}
		a, err := New(Deps{
			Store: noStore{}, Snapshots: &store.Store{}, Switch: sw,
			Library: engine.NewLibrary(proxy.Options{}, middleware.Env{}), Cache: version.NewCache(1),
		}, Options{Who: rollout.Instance{Instance: "me", Group: "g"}})
		if err != nil {
			t.Fatal(err)
		}
		p := newLoop(a)
		p.core.admitted = true
		for n := 1; n <= 3; n++ {
			p.core.built(ref(n).Digest)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		see := func(r record) {
			p.tell(ctx, func() { p.core.saw(r, time.Now()) })
			synctest.Wait()
		}
		wg.Go(func() { p.run(ctx) })
		see(assigned(1, 1, time.Now()))
		if len(sw.epochs) != 1 {
			t.Fatalf("epochs %v", sw.epochs)
		}
		f(p, see, sw)
		cancel()
		wg.Wait()
	})
}

// assigned is the record of a commit of revision 1 to 3, all of whose sets are
// the same.
func assigned(epoch int64, stable int, instant time.Time) record {
	return record{at: epoch, fleet: "f", assignment: &rollout.Assignment{
		Group: "g", Epoch: epoch, Nonce: "n", Stable: ref(stable), Set: []version.Ref{ref(1), ref(2), ref(3)},
		Instant: instant.UTC().Round(0),
	}}
}

func TestSwitchAtTheInstant(t *testing.T) {
	for _, c := range []struct{ lead, want time.Duration }{
		{10 * time.Millisecond, 10 * time.Millisecond},
		{time.Hour, rollout.MaxLead}, // a clock that is wrong delays at most so much
		{-time.Hour, 0},
		{0, 0},
	} {
		inBubble(t, func(_ *loop, see func(record), sw *swaps) {
			now := time.Now()
			see(assigned(2, 2, now.Add(c.lead)))
			time.Sleep(rollout.MaxLead) // the bubble's
			synctest.Wait()
			if len(sw.at) != 2 || sw.at[1].Sub(now) != c.want {
				t.Errorf("lead %v: switched %v, want after %v", c.lead, sw.at, c.want)
			}
		})
	}
}

func TestNewerEpochCancelsTheWait(t *testing.T) {
	inBubble(t, func(_ *loop, see func(record), sw *swaps) {
		now := time.Now()
		see(assigned(2, 2, now.Add(50*time.Millisecond)))
		time.Sleep(20 * time.Millisecond)
		see(assigned(3, 3, now.Add(30*time.Millisecond)))
		time.Sleep(time.Second)
		synctest.Wait()
		if len(sw.epochs) != 2 || sw.epochs[1] != 3 || sw.at[1].Sub(now) != 30*time.Millisecond {
			t.Errorf("epochs %v at %v", sw.epochs, sw.at)
		}
	})
}

func TestRepeatedRecordDoesNotBeginTheWaitAnew(t *testing.T) {
	inBubble(t, func(_ *loop, see func(record), sw *swaps) {
		now := time.Now()
		r := assigned(2, 2, now.Add(time.Hour))
		see(r)
		time.Sleep(rollout.MaxLead / 2)
		again := *r.assignment
		r.assignment = &again
		see(r)
		time.Sleep(rollout.MaxLead / 2)
		synctest.Wait()
		if len(sw.at) != 2 || sw.at[1].Sub(now) != rollout.MaxLead {
			t.Errorf("switched at %v", sw.at)
		}
	})
}

// TestSlowDiskDoesNotDelayTheSwitch has a writer whose disk never ends a write.
func TestSlowDiskDoesNotDelayTheSwitch(t *testing.T) {
	inBubble(t, func(p *loop, see func(record), sw *swaps) {
		p.tell(context.Background(), func() { // nobody runs it
			p.Agent.disk = newWriter(&disk{root: "/nonexistent", group: "g", log: p.log}, "v", p.log)
		})
		now := time.Now()
		see(assigned(2, 2, now.Add(10*time.Millisecond)))
		time.Sleep(time.Second)
		synctest.Wait()
		if len(sw.at) != 2 || sw.at[1].Sub(now) != 10*time.Millisecond {
			t.Errorf("switched at %v", sw.at)
		}
		p.Agent.disk.mu.Lock()
		defer p.Agent.disk.mu.Unlock()
		if m := p.Agent.disk.next; m == nil || m.Served != 2 {
			t.Errorf("nothing waits to be written: %+v", m)
		}
	})
}
