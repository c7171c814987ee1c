//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"routerd.dev/integration/harness"
	"routerd.dev/internal/agent"
	"routerd.dev/internal/engine"
	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// stormScenarios have very many come at once.
func stormScenarios() []harness.Scenario {
	return []harness.Scenario{{
		Name: "a hundred agents reconnecting at once", Bound: recovery, World: faulted,
		Run: func(t *testing.T, w *harness.World) { reconnectAtOnce(t, w, 100) },
	}}
}

// stormGroup is the group of those who come at once.
const stormGroup = "storm"

// A crowd is agents in this process, each with a connection of its own to one
// of the world's etcd members, through a relay. They serve nobody and remember
// nothing.
type crowd struct {
	agents []*agent.Agent
	stores []*store.Store
	relays []*harness.Relay
	end    context.CancelFunc
	wg     sync.WaitGroup
}

// reconnectAtOnce has a crowd join beside the fleet, cuts all its connections
// until every one has noticed, and lets them all come back at the same moment.
func reconnectAtOnce(t *testing.T, w *harness.World, n int) {
	began := time.Now()
	since := func() time.Duration {
		d := time.Since(began)
		began = began.Add(d)
		return d.Round(10 * time.Millisecond)
	}
	c := gather(t, w, n)
	harness.Until(t, time.Minute, "the crowd has joined", c.are(present)) // and compiled all there is, in one process
	joined := since()
	follows(t, w, c)

	since()
	for _, r := range c.relays {
		r.Cut(harness.CutRefuse)
	}
	harness.Until(t, detection, "every one has noticed", c.are(cutOff))
	noticed := since()
	for _, r := range c.relays {
		r.Mend()
	}
	harness.Until(t, recovery, "every one is back", c.are(present))
	back := since()
	follows(t, w, c)
	t.Logf("%d agents: joined after %v, noticed the cut after %v, back after %v", n, joined, noticed, back)

	c.leave()
	harness.Until(t, recovery, "the crowd's group is retired", func() error { // who could not say goodbye in time is there until its lease ends
		_, err := w.Routectl("", "retire", stormGroup)
		return err
	})
}

// gather makes n agents and runs them until the test ends.
func gather(t *testing.T, w *harness.World, n int) *crowd {
	t.Helper()
	c := &crowd{}
	t.Cleanup(func() { c.leave() })
	cfg := w.ConfigAs(t, "root")
	for _, e := range w.Endpoints {
		c.relays = append(c.relays, harness.StartRelay(t, strings.TrimPrefix(e, "https://")))
	}
	ctx, end := context.WithCancel(context.Background())
	c.end = end
	cache := version.NewCache(4096)
	for i := range n {
		s, err := store.Open(store.Config{
			Endpoints: []string{"https://" + c.relays[i%len(c.relays)].Addr}, TLS: cfg.TLS, Username: cfg.Username, Password: cfg.Password,
		})
		if err != nil {
			t.Fatal(err)
		}
		c.stores = append(c.stores, s)
		name := fmt.Sprintf("%s-%03d", stormGroup, i)
		a, err := agent.New(agent.Deps{
			Store: s, Snapshots: s, Switch: engine.NewSwitch(engine.FrontOptions{}),
			Library: engine.NewLibrary(proxy.Options{}, middleware.Env{}), Cache: cache,
		}, agent.Options{
			Who:   rollout.Instance{Instance: name, Group: stormGroup, Address: "127.0.0.1:0", Version: "storm"},
			Watch: store.WatchOptions{Reread: 2 * time.Second, Silence: time.Second}, // so that it is soon noticed
		})
		if err != nil {
			t.Fatal(err)
		}
		c.agents = append(c.agents, a)
		c.wg.Go(func() { _ = a.Run(ctx) }) // without a twin it cannot fail
	}
	return c
}

// leave has all agents give their leases back and end. It may be called again.
func (c *crowd) leave() {
	if c.end == nil {
		return
	}
	c.end()
	c.wg.Wait()
	for _, s := range c.stores {
		_ = s.Close() // nobody uses it any more
	}
	c.end = nil
}

// are returns nil when all agents are so.
func (c *crowd) are(so func(agent.Status) error) func() error {
	return func() error {
		var wrong []error
		for _, a := range c.agents {
			st := a.Status()
			if err := so(st); err != nil {
				wrong = append(wrong, fmt.Errorf("%s: %w", st.Instance, err))
			}
		}
		if len(wrong) > 0 {
			return fmt.Errorf("%d are not, the first: %w", len(wrong), wrong[0])
		}
		return nil
	}
}

func present(st agent.Status) error {
	if !st.Joined || !st.Etcd.Reachable || st.Stale != "" || st.Frozen != "" || st.Serving == nil {
		return fmt.Errorf("joined: %v, stale: %q, frozen: %q, serving: %+v, etcd: %+v", st.Joined, st.Stale, st.Frozen, st.Serving, st.Etcd)
	}
	return nil
}

func cutOff(st agent.Status) error {
	if st.Etcd.Reachable {
		return errors.New("it hears etcd")
	}
	return nil
}

// follows publishes, and waits until the whole crowd serves it.
func follows(t *testing.T, w *harness.World, c *crowd) {
	t.Helper()
	if err := w.Publish("--wait", "--timeout", "1m"); err != nil {
		t.Fatal(err)
	}
	st, err := w.Status()
	if err != nil {
		t.Fatal(err)
	}
	harness.Until(t, time.Minute, "the crowd serves the target", c.are(func(s agent.Status) error {
		if s.Serving == nil || s.Serving.Digest != st.Target.Digest {
			return fmt.Errorf("it serves %+v, the target is revision %d", s.Serving, st.Target.Number)
		}
		return nil
	}))
}
