package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"routerd.dev/internal/agent"
	"routerd.dev/internal/controller"
	"routerd.dev/internal/engine"
	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// The budget of a compile is routerd's default.
const (
	compilePercent = 50
	compileMemory  = 1 << 30
	compileLeeway  = 512 << 20
)

// fleetOptions say how many agents, and whether their state directories are in
// memory: each of many machines has a disk of its own, here they would share one,
// and with etcd.
type fleetOptions struct {
	agents int
	memory bool
}

// A fleet is agents of one group in this process, each with a connection to
// etcd, a cache, a state directory and a front of its own, and a controller.
// etcd is a process of its own, and waits for the disk as a real one does.
type fleet struct {
	agents  []*agent.Agent
	store   *store.Store // the publisher's
	fetched atomic.Int64 // bytes that agents fetched

	dir     string
	states  string // state directories; under dir, or in memory
	etcd    *child
	stores  []*store.Store
	end     context.CancelFunc
	running sync.WaitGroup

	mu   sync.Mutex
	trip *trip // nil between trips
}

// memoryDir is where Linux keeps files in memory.
const memoryDir = "/dev/shm"

// newFleet returns a fleet whose agents have all joined. Who gets one closes it.
func newFleet(ctx context.Context, b *bench, o fleetOptions) (f *fleet, err error) {
	f = &fleet{end: func() {}}
	defer func() {
		if err != nil {
			f, err = nil, f.close(err)
		}
	}()
	if f.dir, err = os.MkdirTemp(b.dir, "fleet-"); err != nil {
		return f, err
	}
	f.states = f.dir
	if o.memory {
		if f.states, err = os.MkdirTemp(memoryDir, "routerd-bench-"); err != nil {
			return f, err
		}
	}
	if f.etcd, err = b.startChild(ctx, "etcd", etcdSpec{Dir: filepath.Join(f.dir, "etcd")}); err != nil {
		return f, err
	}
	if f.store, err = f.open(); err != nil {
		return f, err
	}
	if _, _, err := f.store.Init(ctx); err != nil {
		return f, err
	}
	background, end := context.WithCancel(context.WithoutCancel(ctx))
	f.end = end
	if err := f.control(background); err != nil {
		return f, err
	}
	for n := range o.agents {
		if err := f.join(background, n); err != nil {
			return f, err
		}
	}
	return f, f.until(ctx, func(v *rollout.View) bool { return len(v.Instances) == o.agents })
}

func (f *fleet) open() (*store.Store, error) {
	s, err := store.Open(store.Config{Endpoints: []string{f.etcd.Address}})
	if err == nil {
		f.stores = append(f.stores, s)
	}
	return s, err
}

func (f *fleet) control(ctx context.Context) error {
	s, err := f.open()
	if err != nil {
		return err
	}
	c, err := controller.New(watched{controller.Of(s), f}, controller.Options{ID: "bench"})
	if err != nil {
		return err
	}
	f.running.Go(func() { _ = c.Run(ctx) }) // it returns nil
	return nil
}

func (f *fleet) join(ctx context.Context, n int) error {
	s, err := f.open()
	if err != nil {
		return err
	}
	name := fmt.Sprintf("i%02d", n)
	a, err := agent.New(agent.Deps{
		Store: s, Snapshots: weighed{s, &f.fetched}, Switch: front{engine.NewSwitch(engine.FrontOptions{}), f},
		Library: engine.NewLibrary(proxy.Options{}, middleware.Env{}), Cache: version.NewCache(4096),
	}, agent.Options{
		Who:          rollout.Instance{Instance: name, Group: "main", Address: "127.0.0.1:0", Version: "bench"},
		StateDir:     filepath.Join(f.states, name),
		Compile:      engine.Options{Budget: engine.Budget{Memory: compileMemory, Percent: compilePercent}},
		Capabilities: engine.Capabilities(),
	})
	if err != nil {
		return err
	}
	f.agents = append(f.agents, a)
	f.running.Go(func() { _ = a.Run(ctx) }) // without a twin it cannot fail
	return nil
}

// close ends everything, and joins what went wrong with err.
func (f *fleet) close(err error) error {
	f.end()
	f.running.Wait()
	for _, s := range f.stores {
		err = errors.Join(err, s.Close())
	}
	return errors.Join(err, f.etcd.stop(), os.RemoveAll(f.states), os.RemoveAll(f.dir))
}

// patience bounds every wait.
const patience = 60 * time.Second

// until waits for the records to be as wanted.
func (f *fleet) until(ctx context.Context, done func(*rollout.View) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		v, err := f.store.View(ctx)
		if err != nil {
			return err
		}
		if done(v) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the fleet: %w", ctx.Err())
		}
	}
}

// publish has the whole fleet switch to table and returns when it has, and is
// at rest again.
func (f *fleet) publish(ctx context.Context, table *route.Table) (*trip, error) {
	snap, err := version.Encode(table)
	if err != nil {
		return nil, err
	}
	runtime.GC() // making the snapshot left garbage that is not the agents'
	known, err := f.store.Fleet(ctx)
	if err != nil {
		return nil, err
	}
	return f.travel(ctx, snap.Digest, func() error {
		_, err := f.store.Publish(ctx, store.PublishRequest{
			Snapshot: snap, Parent: known.Target, Author: "bench", Intent: &rollout.Intent{Kind: rollout.IntentSwitch},
		})
		return err
	})
}

// rollback has the whole fleet go back to what it served before.
func (f *fleet) rollback(ctx context.Context) (*trip, error) {
	v, err := f.store.View(ctx)
	if err != nil {
		return nil, err
	}
	back := v.Groups["main"].Back
	if len(back) == 0 {
		return nil, errors.New("nothing was served before")
	}
	return f.travel(ctx, back[0].Digest, func() error {
		_, err := f.store.PutIntent(ctx, rollout.Intent{Kind: rollout.IntentRollback, By: "bench"}, nil, v.Fleet.Target)
		return err
	})
}

// travel asks for a switch and follows it.
func (f *fleet) travel(ctx context.Context, to version.Digest, ask func() error) (*trip, error) {
	t := &trip{to: to, missing: len(f.agents), done: make(chan struct{})}
	f.mu.Lock()
	f.trip = t
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.trip = nil
		f.mu.Unlock()
	}()
	t.began, t.cpuAtBegin = time.Now(), cpu()
	if err := ask(); err != nil {
		return nil, err
	}
	answered, used := time.Now(), cpu()
	f.mu.Lock()
	t.published, t.cpuAtPublished = answered, used
	f.mu.Unlock()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-t.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timeout.C:
		return nil, f.stuck(t)
	}
	err := f.until(ctx, func(v *rollout.View) bool { return len(v.Rollouts)+len(v.Intents)+len(v.Prepares) == 0 })
	// Reports and state directories are written once it is over, and calm: the next
	// switch is not to pay for them.
	time.Sleep(400 * time.Millisecond)
	return t, err
}

// stuck says who does not serve what it should.
func (f *fleet) stuck(t *trip) error {
	for _, a := range f.agents {
		if s := a.Status(); s.Serving == nil || s.Serving.Digest != t.to {
			return fmt.Errorf("%s does not serve %s after %s; its ready key says %q; refused: %+v", s.Instance, t.to.Short(), patience, s.Ready, s.Refused)
		}
	}
	return fmt.Errorf("the switch to %s was not seen", t.to.Short())
}

// front is what an agent switches; the fleet is told when it did.
type front struct {
	*engine.Switch
	fleet *fleet
}

func (s front) Swap(v *engine.Serving) {
	s.Switch.Swap(v)
	s.fleet.swapped(v.Stable.Ref().Digest, time.Now())
}

// weighed counts the bytes of what is fetched.
type weighed struct {
	*store.Store
	bytes *atomic.Int64
}

func (w weighed) Manifest(ctx context.Context, d version.Digest) ([]byte, error) {
	b, err := w.Store.Manifest(ctx, d)
	w.bytes.Add(int64(len(b)))
	return b, err
}

func (w weighed) Chunk(ctx context.Context, d version.Digest) ([]byte, error) {
	b, err := w.Store.Chunk(ctx, d)
	w.bytes.Add(int64(len(b)))
	return b, err
}

// watched is a controller's source that tells the fleet what is written.
type watched struct {
	controller.Source
	fleet *fleet
}

func (w watched) Campaign(ctx context.Context, id string, ttl time.Duration) (controller.Term, error) {
	t, err := w.Source.Campaign(ctx, id, ttl)
	if err != nil {
		return nil, err
	}
	return watchedTerm{t, w.fleet}, nil
}

func (w watched) View(ctx context.Context) (*rollout.View, error) {
	began := time.Now()
	v, err := w.Source.View(ctx)
	w.fleet.looked(time.Since(began))
	return v, err
}

type watchedTerm struct {
	controller.Term
	fleet *fleet
}

func (w watchedTerm) Apply(ctx context.Context, at *rollout.View, c rollout.Change) error {
	began := time.Now()
	err := w.Term.Apply(ctx, at, c)
	w.fleet.applied(c, began, time.Now(), err)
	return err
}
