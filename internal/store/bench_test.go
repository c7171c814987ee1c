package store

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// populate fills a fleet with 50 instances in two groups and 200 ended
// rollouts, and returns its store.
func populate(b *testing.B) *Store {
	b.Helper()
	s := open(b)
	ctx := b.Context()
	if _, _, err := s.Init(ctx); err != nil {
		b.Fatal(err)
	}
	for i := range 50 {
		who := rollout.Instance{Instance: fmt.Sprint("i", i), Group: fmt.Sprint("g", i%2), Boot: "b", Address: "10.0.0.1:8080"}
		m, err := s.Join(ctx, who, time.Minute)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = m.Leave(context.Background()) })
		if err := m.Admit(ctx, GroupState{}, "n1"); err != nil {
			b.Fatal(err)
		}
		if err := m.Report(ctx, rollout.Report{Holds: make([]version.Digest, 3), Serving: &rollout.Serving{Epoch: 1}}); err != nil {
			b.Fatal(err)
		}
	}
	for i := range 200 {
		o := rollout.Rollout{Intent: rollout.Intent{ID: fmt.Sprintf("x%03d", i)}, Phase: rollout.PhaseDone}
		if _, err := raw(b, s).Put(ctx, s.key(dirEnded+o.ID), string(put("", o).ValueBytes())); err != nil {
			b.Fatal(err)
		}
	}
	return s
}

func BenchmarkView(b *testing.B) {
	s := populate(b)
	for b.Loop() {
		if _, err := s.View(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCommitToLastOf50 measures from the controller's Apply to the last
// of 50 followers, each with a client of its own.
func BenchmarkCommitToLastOf50(b *testing.B) {
	s := populate(b)
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	seen := make(chan int64, 10_000)
	for i := range 50 {
		own, err := Open(Config{Endpoints: s.Endpoints(), Prefix: s.Prefix()})
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			defer func() { _ = own.Close() }()
			_ = own.WatchGroup(ctx, fmt.Sprint("g", i%2), WatchOptions{}, func(g GroupState) {
				if g.Assignment != nil {
					seen <- g.Assignment.Epoch
				}
			})
		})
	}
	term, err := s.Campaign(ctx, "bench", 0)
	if err != nil {
		b.Fatal(err)
	}
	var applied, last time.Duration
	n := int64(0)
	for b.Loop() {
		n++
		v, err := s.View(ctx)
		if err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		if err := term.Apply(ctx, v, rollout.Change{
			Groups: []rollout.Assignment{{Group: "g0", Epoch: n}, {Group: "g1", Epoch: n}},
			Ready:  map[string]rollout.Nonce{"g0": "n1", "g1": "n1"},
		}); err != nil {
			b.Fatal(err)
		}
		applied += time.Since(began)
		for left := 50; left > 0; {
			if <-seen == n {
				left--
			}
		}
		last += time.Since(began)
	}
	b.ReportMetric(float64(applied.Microseconds())/float64(n), "apply-µs")
	b.ReportMetric(float64(last.Microseconds())/float64(n), "last-µs")
	_ = term.Resign(context.Background())
	cancel()
	wg.Wait()
}

func BenchmarkPublish(b *testing.B) {
	s := populate(b)
	snaps := []*version.Snapshot{snapshot(b, "a"), snapshot(b, "b")}
	var target version.Ref
	for i := 0; b.Loop(); i++ {
		p, err := s.Publish(b.Context(), PublishRequest{
			Snapshot: snaps[i%2], Parent: target, Intent: &rollout.Intent{Kind: rollout.IntentSwitch},
		})
		if err != nil {
			b.Fatal(err)
		}
		target = p.Revision.Ref()
	}
}
