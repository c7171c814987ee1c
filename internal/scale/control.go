package main

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"routerd.dev/internal/controller"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// controllerSpec is the fleet's controller.
type controllerSpec struct{ Endpoints []string }

// Deeds are what a controller did since it was last asked.
type Deeds struct {
	Views   int           // how often it read everything
	Viewing time.Duration // how long that took in all
	Lost    int           // writes that came too late
	Asked   time.Time     // when all instances were asked to prepare; the newest
	Commits []Commit
}

// A Commit is one written by the controller.
type Commit struct {
	To      version.Digest
	Written time.Time // when etcd had answered
	Took    time.Duration
	Instant time.Time // that it names
}

// observed is a controller's source that notes what it does.
type observed struct {
	controller.Source
	mu    sync.Mutex
	deeds Deeds
}

func serveController(ctx context.Context, with json.RawMessage) (*servant, error) {
	var o controllerSpec
	if err := json.Unmarshal(with, &o); err != nil {
		return nil, err
	}
	s, err := store.Open(store.Config{Endpoints: o.Endpoints})
	if err != nil {
		return nil, err
	}
	src := &observed{Source: controller.Of(s)}
	c, err := controller.New(src, controller.Options{ID: "scale"})
	if err != nil {
		return nil, err
	}
	ctx, end := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() { _ = c.Run(ctx) }) // it returns nil
	return &servant{
		answer: func(_ context.Context, ask string, _ json.RawMessage) (any, error) {
			if ask != "deeds" {
				return nil, unknown(ask)
			}
			src.mu.Lock()
			defer src.mu.Unlock()
			d := src.deeds
			src.deeds = Deeds{}
			return d, nil
		},
		stop: func() {
			end()
			running.Wait()
			_ = s.Close() // the process ends
		},
	}, nil
}

func (o *observed) View(ctx context.Context) (*rollout.View, error) {
	began := time.Now()
	v, err := o.Source.View(ctx)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.deeds.Views++
	o.deeds.Viewing += time.Since(began)
	return v, err
}

func (o *observed) Campaign(ctx context.Context, id string, ttl time.Duration) (controller.Term, error) {
	t, err := o.Source.Campaign(ctx, id, ttl)
	if err != nil {
		return nil, err
	}
	return observedTerm{t, o}, nil
}

type observedTerm struct {
	controller.Term
	of *observed
}

func (t observedTerm) Apply(ctx context.Context, at *rollout.View, c rollout.Change) error {
	began := time.Now()
	err := t.Term.Apply(ctx, at, c)
	now := time.Now()
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	if err != nil {
		t.of.deeds.Lost++
		return err
	}
	for _, p := range c.Prepares {
		if p.First == "" {
			t.of.deeds.Asked = now
		}
	}
	for _, a := range c.Groups {
		if !a.Stable.IsZero() {
			t.of.deeds.Commits = append(t.of.deeds.Commits, Commit{To: a.Stable.Digest, Written: now, Took: now.Sub(began), Instant: a.Instant})
		}
	}
	return nil
}
