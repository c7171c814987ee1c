package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// endpoint is the etcd that all tests use, each under a prefix of its own.
var endpoint string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		log.SetOutput(io.Discard) // etcd's gateway speaks when it is closed
		dir, err := os.MkdirTemp("", "controller-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		stop, err := startEtcd(dir)
		if err != nil {
			fmt.Fprintln(os.Stderr, "start etcd:", err)
			return 1
		}
		code := m.Run()
		stop()
		if err := goleak.Find(); err != nil && code == 0 {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	}())
}

func startEtcd(dir string) (func(), error) {
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(dir, "data")
	cfg.LogLevel, cfg.LogOutputs = "panic", []string{filepath.Join(dir, "log")}
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.UnsafeNoFsync = true
	client, peer := url.URL{Scheme: "unix", Path: filepath.Join(dir, "c")}, url.URL{Scheme: "unix", Path: filepath.Join(dir, "p")}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	endpoint = client.String()
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		return nil, err
	}
	return func() { e.Close(); <-e.Server.StopNotify() }, nil
}

var prefixes atomic.Int64

// A fleet is a prefix with instances that do what an agent does, without
// engines.
type fleet struct {
	*store.Store
	t      *testing.T
	prefix string

	mu     sync.Mutex
	serves map[string]rollout.Assignment
	epochs map[string][]int64 // as an instance served them
	slow   map[string]time.Duration
	bad    map[string]string // instance → why it refuses what is prepared
	cond   *sync.Cond
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{
		t: t, prefix: fmt.Sprintf("/c%d/", prefixes.Add(1)),
		serves: map[string]rollout.Assignment{}, epochs: map[string][]int64{}, bad: map[string]string{}, slow: map[string]time.Duration{},
	}
	f.cond = sync.NewCond(&f.mu)
	f.Store = f.open()
	if _, _, err := f.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f
}

// open returns a store of its own, as another process has it.
func (f *fleet) open() *store.Store {
	f.t.Helper()
	s, err := store.Open(store.Config{Endpoints: []string{endpoint}, Prefix: f.prefix})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = s.Close() })
	return s
}

// during runs do until the test ends, and waits for it.
func (f *fleet) during(do func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { do(ctx) })
	stop = func() { cancel(); wg.Wait() }
	f.t.Cleanup(stop)
	return stop
}

// instance takes part until the test ends or it is stopped.
func (f *fleet) instance(name, group string) (stop func()) {
	return f.during(func(ctx context.Context) {
		m, err := f.Join(ctx, rollout.Instance{Instance: name, Group: group, Boot: name + "-boot"}, 0)
		if err != nil {
			f.t.Error(err)
			return
		}
		defer func() {
			clean, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_ = m.Leave(clean)
		}()
		admitted := false
		_ = f.WatchGroup(ctx, group, store.WatchOptions{}, func(st store.GroupState) {
			if err := f.react(ctx, m, name, st, &admitted); err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrStale) {
				f.t.Errorf("%s: %v", name, err)
			}
		})
	})
}

func (f *fleet) react(ctx context.Context, m *store.Membership, name string, st store.GroupState, admitted *bool) error {
	a := st.Assignment
	if a == nil || st.Err != nil {
		return nil
	}
	if !*admitted {
		if err := m.Admit(ctx, st, a.Nonce); err != nil {
			return err
		}
		*admitted = true
	}
	f.serve(name, *a)
	says := rollout.Ready{Nonce: a.Nonce}
	if p := st.Prepare; p != nil && (p.First == "" || p.First == name) {
		f.mu.Lock()
		d, why := f.slow[name], f.bad[name]
		f.mu.Unlock()
		if d > 0 {
			pause(ctx, d)
		}
		says = rollout.Ready{Nonce: p.Nonce, Refused: why != "", Why: why}
	}
	return m.Put(ctx, says)
}

func (f *fleet) serve(name string, a rollout.Assignment) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.serves[name].Epoch; a.Epoch < old {
		f.t.Errorf("I3: %s serves epoch %d after %d", name, a.Epoch, old)
	} else if a.Epoch > old {
		f.epochs[name] = append(f.epochs[name], a.Epoch)
	}
	f.serves[name] = a
	f.cond.Broadcast()
}

// await returns when ok holds of what each instance serves.
func (f *fleet) await(what string, ok func(map[string]rollout.Assignment) bool) {
	f.t.Helper()
	late := time.AfterFunc(20*time.Second, func() { f.mu.Lock(); f.cond.Broadcast(); f.mu.Unlock() })
	defer late.Stop()
	deadline := time.Now().Add(20 * time.Second)
	f.mu.Lock()
	defer f.mu.Unlock()
	for !ok(f.serves) {
		if time.Now().After(deadline) {
			f.t.Fatalf("not in time: %s; instances serve %v", what, f.serves)
		}
		f.cond.Wait()
	}
}

// all tells whether each of names serves the revision.
func all(rev version.Ref, names ...string) func(map[string]rollout.Assignment) bool {
	return func(m map[string]rollout.Assignment) bool {
		for _, n := range names {
			if m[n].Stable.Digest != rev.Digest {
				return false
			}
		}
		return true
	}
}

func (f *fleet) publish(word string) (version.Ref, string) {
	f.t.Helper()
	fl, err := f.Fleet(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	table := &route.Table{Modules: []*route.Module{{
		Name: "m", Routes: []route.Route{{Name: "r", Path: "/" + word, Action: route.Action{Respond: &route.Respond{Status: 200, Body: strings.Repeat(word, 5)}}}},
	}}}
	route.Normalize(table)
	snap, err := version.Encode(table)
	if err != nil {
		f.t.Fatal(err)
	}
	p, err := f.Publish(f.t.Context(), store.PublishRequest{Snapshot: snap, Parent: fl.Target, Author: "ann", Message: word, Intent: &rollout.Intent{Kind: rollout.IntentSwitch}})
	if err != nil {
		f.t.Fatal(err)
	}
	return p.Revision.Ref(), p.Intent.ID
}

func (f *fleet) target() version.Ref {
	f.t.Helper()
	fl, err := f.Fleet(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return fl.Target
}

// ended waits until the rollout is final and returns it.
func (f *fleet) ended(id string) rollout.Rollout {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	for {
		r, err := f.Rollout(ctx, id)
		switch {
		case err != nil && !errors.Is(err, store.ErrNotFound):
			f.t.Fatalf("rollout %s does not end: %v", id, err)
		case err == nil && r.Phase.Final():
			return r
		}
		pause(ctx, 5*time.Millisecond)
	}
}

// control runs a controller until the test ends or it is stopped.
func (f *fleet) control(src Source, o Options) (stop func()) {
	f.t.Helper()
	if o.TTL == 0 {
		o.TTL = time.Second
	}
	c, err := New(src, o)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.during(func(ctx context.Context) {
		if err := c.Run(ctx); err != nil {
			f.t.Errorf("run: %v", err)
		}
	})
}
