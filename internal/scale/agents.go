package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"routerd.dev/internal/agent"
	"routerd.dev/internal/engine"
	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// group is the one all instances are of: the largest that a commit has to wait for.
const group = "main"

// agentsSpec are the agents of one process.
type agentsSpec struct {
	Endpoints []string
	First, N  int
	States    string // where state directories are
}

// agents are many instances in one process. Each has a connection to etcd, a
// library, a switch and a state directory of its own; decoded modules they share.
type agents struct {
	all     []*simulated
	stores  []*store.Store
	running sync.WaitGroup
	end     context.CancelFunc
	ctx     context.Context
}

// A simulated is one instance: an agent with nobody to serve.
type simulated struct {
	*agent.Agent

	mu     sync.Mutex
	joined time.Time                    // newest
	swaps  map[version.Digest]time.Time // when it began to serve each, at last
	now    version.Digest
}

// serveAgents makes agents; "go" starts them.
func serveAgents(ctx context.Context, with json.RawMessage) (*servant, error) {
	var o agentsSpec
	if err := json.Unmarshal(with, &o); err != nil {
		return nil, err
	}
	debug.SetGCPercent(400) // many heaps in one process: memory is cheaper here than processors
	a := &agents{}
	a.ctx, a.end = context.WithCancel(context.WithoutCancel(ctx))
	cache := version.NewCache(4096)
	for n := range o.N {
		if err := a.add(o, fmt.Sprintf("i%04d", o.First+n), cache); err != nil {
			a.stop()
			return nil, err
		}
	}
	return &servant{answer: a.answer, stop: a.stop}, nil
}

func (a *agents) add(o agentsSpec, name string, cache *version.Cache) error {
	s, err := store.Open(store.Config{Endpoints: o.Endpoints})
	if err != nil {
		return err
	}
	a.stores = append(a.stores, s)
	i := &simulated{swaps: map[version.Digest]time.Time{}}
	i.Agent, err = agent.New(agent.Deps{
		Store: joins{s, i}, Snapshots: s, Switch: front{engine.NewSwitch(engine.FrontOptions{}), i},
		Library: engine.NewLibrary(proxy.Options{}, middleware.Env{}), Cache: cache,
	}, agent.Options{
		Who:      rollout.Instance{Instance: name, Group: group, Address: "127.0.0.1:0", Version: "scale"},
		StateDir: filepath.Join(o.States, name), Capabilities: engine.Capabilities(),
	})
	a.all = append(a.all, i)
	return err
}

func (a *agents) stop() {
	a.end()
	a.running.Wait()
	for _, s := range a.stores {
		_ = s.Close() // the process ends
	}
}

// awaited is what every agent has to reach.
type awaited struct {
	Since   time.Time      // joined after it, or
	Digest  version.Digest // serves it
	Timeout time.Duration
}

// reached says when each agent did, in Unix nanoseconds.
type reached []int64

func (a *agents) answer(ctx context.Context, ask string, with json.RawMessage) (any, error) {
	switch ask {
	case "go":
		for _, i := range a.all {
			a.running.Go(func() { _ = i.Run(a.ctx) }) // without a twin it cannot fail
		}
		return time.Now(), nil
	case "await":
		var w awaited
		if err := json.Unmarshal(with, &w); err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, w.Timeout)
		defer cancel()
		return a.await(ctx, w)
	}
	return nil, unknown(ask)
}

// await returns when all agents have reached it.
func (a *agents) await(ctx context.Context, w awaited) (reached, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	at := make(reached, len(a.all))
	for missing := 0; missing < len(a.all); {
		i := a.all[missing]
		if t := i.when(w); !t.IsZero() {
			at[missing] = t.UnixNano()
			missing++
			continue
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s := i.Status()
			return nil, fmt.Errorf("%s is not there after %v: joined %v, serving %+v, ready %q, stale %q, etcd %+v", s.Instance, w.Timeout, s.Joined, s.Serving, s.Ready, s.Stale, s.Etcd)
		}
	}
	return at, nil
}

// when tells when the agent reached what is awaited; zero for not yet.
func (i *simulated) when(w awaited) time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case !w.Since.IsZero() && i.joined.After(w.Since):
		return i.joined
	case w.Since.IsZero() && i.now == w.Digest:
		return i.swaps[w.Digest]
	}
	return time.Time{}
}

// joins is a store that notes when its instance joined.
type joins struct {
	*store.Store
	of *simulated
}

func (j joins) Join(ctx context.Context, who rollout.Instance, ttl time.Duration) (*store.Membership, error) {
	m, err := j.Store.Join(ctx, who, ttl)
	if err == nil {
		j.of.mu.Lock()
		j.of.joined = time.Now()
		j.of.mu.Unlock()
	}
	return m, err
}

// front is what an agent switches, and notes when.
type front struct {
	*engine.Switch
	of *simulated
}

func (f front) Swap(v *engine.Serving) {
	f.Switch.Swap(v)
	now := time.Now()
	if v.Stable == nil { // nothing was published yet
		return
	}
	f.of.mu.Lock()
	defer f.of.mu.Unlock()
	if d := v.Stable.Ref().Digest; d != f.of.now {
		f.of.now, f.of.swaps[d] = d, now
	}
}
