package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/engine"
	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// shared is the etcd of the tests that do not stop theirs.
var shared *etcd

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // etcd's gateway speaks when it is closed
	var err error
	if shared, err = newEtcd(); err != nil {
		fmt.Fprintln(os.Stderr, "start etcd:", err)
		os.Exit(1)
	}
	code := m.Run()
	shared.stop()
	_ = os.RemoveAll(shared.dir)
	if err := goleak.Find(goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon")); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// etcd is one member on unix sockets.
type etcd struct {
	dir string
	e   *embed.Etcd
}

func newEtcd() (*etcd, error) {
	dir, err := os.MkdirTemp("", "agent-etcd-") // t.TempDir's names are too long for a socket
	if err != nil {
		return nil, err
	}
	e := &etcd{dir: dir}
	return e, e.start()
}

func ownEtcd(t *testing.T) *etcd {
	t.Helper()
	e, err := newEtcd()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.stop(); _ = os.RemoveAll(e.dir) })
	return e
}

func (e *etcd) start() error {
	unix := func(name string) []url.URL {
		return []url.URL{{Scheme: "unix", Path: filepath.Join(e.dir, name)}}
	}
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(e.dir, "data")
	cfg.LogLevel = "panic"
	cfg.LogOutputs = []string{filepath.Join(e.dir, "log")}
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.UnsafeNoFsync = true
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = unix("c"), unix("c")
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = unix("p"), unix("p")
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	var err error
	if e.e, err = embed.StartEtcd(cfg); err != nil {
		return err
	}
	select {
	case <-e.e.Server.ReadyNotify():
		return nil
	case <-time.After(30 * time.Second):
		return fmt.Errorf("not ready")
	}
}

func (e *etcd) stop() {
	if e.e != nil {
		e.e.Close()
		<-e.e.Server.StopNotify()
		e.e = nil
	}
}

var prefixes atomic.Int64

// A fleet is a prefix in etcd, with the test as its controller.
type fleet struct {
	t      *testing.T
	etcd   *etcd
	prefix string
	store  *store.Store
	raw    *clientv3.Client
	number int64
	slow   func(Snapshots) Snapshots // nil: as etcd is
	wrap   func(*store.Store) Store  // nil: as it is
}

func newFleet(t *testing.T, e *etcd) *fleet {
	t.Helper()
	f := &fleet{t: t, etcd: e, prefix: fmt.Sprintf("/%s/%d/", t.Name(), prefixes.Add(1))}
	f.store = f.open()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + filepath.Join(e.dir, "c")}, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	f.raw = c
	return f
}

func initFleet(t *testing.T, e *etcd) *fleet {
	t.Helper()
	f := newFleet(t, e)
	if _, _, err := f.store.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fleet) open() *store.Store {
	f.t.Helper()
	s, err := store.Open(store.Config{
		Endpoints: []string{"unix://" + filepath.Join(f.etcd.dir, "c")}, Prefix: f.prefix,
		DialTimeout: time.Second, Timeout: time.Second,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = s.Close() })
	return s
}

// table answers / with body; more routes make it different in kind.
func table(body string, more ...route.Route) *route.Table {
	m := &route.Module{Name: "m", Routes: append([]route.Route{{
		Name: "root", Path: "/", Action: route.Action{Respond: &route.Respond{Body: body}},
	}}, more...)}
	t := &route.Table{Modules: []*route.Module{m}}
	route.Normalize(t)
	return t
}

// publish puts a snapshot's pieces and returns the next revision's ref.
func (f *fleet) publish(t *route.Table) version.Ref {
	f.t.Helper()
	s, err := version.Encode(t)
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.store.PutSnapshot(f.t.Context(), s); err != nil {
		f.t.Fatal(err)
	}
	f.number++
	return version.Ref{Number: f.number, Digest: s.Digest}
}

func (f *fleet) put(key string, v any) {
	f.t.Helper()
	b, ok := v.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(v); err != nil {
			f.t.Fatal(err)
		}
	}
	if _, err := f.raw.Put(f.t.Context(), f.prefix+key, string(b)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) delete(key string, o ...clientv3.OpOption) {
	f.t.Helper()
	if _, err := f.raw.Delete(f.t.Context(), f.prefix+key, o...); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) get(key string) string {
	f.t.Helper()
	r, err := f.raw.Get(f.t.Context(), f.prefix+key)
	if err != nil {
		f.t.Fatal(err)
	}
	if len(r.Kvs) == 0 {
		return ""
	}
	return string(r.Kvs[0].Value)
}

// commit puts an assignment whose set is stable and back, in group g.
func (f *fleet) commit(epoch int64, nonce rollout.Nonce, stable version.Ref, back ...version.Ref) rollout.Assignment {
	f.t.Helper()
	a := rollout.Assignment{
		Group: "g", Epoch: epoch, Nonce: nonce, Set: append([]version.Ref{stable}, back...), Stable: stable, Back: back,
		Instant: time.Now().Add(5 * time.Millisecond).UTC(),
	}
	f.put("groups/g", a)
	return a
}

func (f *fleet) prepare(nonce rollout.Nonce, first string, set ...version.Ref) {
	f.t.Helper()
	f.put("prepare/g", rollout.Prepare{Group: "g", Nonce: nonce, First: first, Set: set})
}

func (f *fleet) report(instance string) (r rollout.Report) {
	f.t.Helper()
	if s := f.get("reports/" + instance); s != "" {
		if err := json.Unmarshal([]byte(s), &r); err != nil {
			f.t.Fatal(err)
		}
	}
	return r
}

func (f *fleet) awaitReady(instance, want string) {
	f.t.Helper()
	eventually(f.t, func() string {
		if got := f.get("ready/g/" + instance); got != want {
			return fmt.Sprintf("ready/g/%s is %q, want %q", instance, got, want)
		}
		return ""
	})
}

// eventually waits until cond has nothing to complain about.
func eventually(t *testing.T, cond func() string) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		why := cond()
		if why == "" {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(why)
		}
	}
}

// A member is one agent with its front end, which keeps what was swapped in.
type member struct {
	*Agent
	t     *testing.T
	front *engine.Switch
	end   context.CancelFunc
	done  chan error

	mu      sync.Mutex
	swapped []engine.Serving
}

func (m *member) Swap(s *engine.Serving) {
	m.front.Swap(s)
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := len(m.swapped); n == 0 || m.swapped[n-1].Epoch != s.Epoch || m.swapped[n-1].Stable != s.Stable || m.swapped[n-1].Candidate != s.Candidate {
		m.swapped = append(m.swapped, *s) // else only what is held changed
	}
}

func (m *member) Keys() (stable, candidate analysis.KeySet) { return m.front.Keys() }
func (m *member) TokenCounts() engine.TokenCounts           { return m.front.TokenCounts() }

// epochs are those that were served, in order.
func (m *member) epochs() []int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	var es []int64
	for _, s := range m.swapped {
		es = append(es, s.Epoch)
	}
	return es
}

func (m *member) body() string {
	w := httptest.NewRecorder()
	m.front.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != 200 {
		return fmt.Sprint("status ", w.Code)
	}
	return w.Body.String()
}

// stop ends the agent as a signal does.
func (m *member) stop() {
	m.t.Helper()
	m.end()
	select {
	case err := <-m.done:
		if err != nil {
			m.t.Errorf("run: %v", err)
		}
	case <-time.After(20 * time.Second):
		m.t.Fatal("the agent does not end")
	}
	m.done <- nil
}

func (m *member) await(why string, cond func(Status) bool) Status {
	m.t.Helper()
	var s Status
	eventually(m.t, func() string {
		if s = m.Status(); cond(s) {
			return ""
		}
		b, _ := json.Marshal(s)
		return fmt.Sprintf("%s: not %s: %s", m.o.Who.Instance, why, b)
	})
	return s
}

func (m *member) awaitEpoch(epoch int64) Status {
	m.t.Helper()
	return m.await(fmt.Sprintf("serving epoch %d", epoch), func(s Status) bool { return s.Serving != nil && s.Serving.Epoch == epoch })
}

// options are a member's; tests change them before start.
func (f *fleet) options(name string) Options {
	o := Options{
		Who:         rollout.Instance{Instance: name, Group: "g", Address: "127.0.0.1:0", Version: "test"},
		JoinTimeout: 300 * time.Millisecond, LeaseTTL: time.Second, ReportEvery: 100 * time.Millisecond,
		Watch: store.WatchOptions{Reread: 500 * time.Millisecond, Silence: 500 * time.Millisecond},
	}
	if os.Getenv("AGENT_TEST_LOG") != "" {
		o.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return o
}

func (f *fleet) start(o Options) *member {
	f.t.Helper()
	m := &member{t: f.t, front: engine.NewSwitch(engine.FrontOptions{}), done: make(chan error, 1)}
	s := f.open()
	var snapshots Snapshots = s
	if f.slow != nil {
		snapshots = f.slow(s)
	}
	var records Store = s
	if f.wrap != nil {
		records = f.wrap(s)
	}
	var err error
	m.Agent, err = New(Deps{
		Store: records, Snapshots: snapshots, Switch: m, Library: engine.NewLibrary(proxy.Options{}, middleware.Env{}), Cache: version.NewCache(100),
	}, o)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.end = cancel
	go func() { m.done <- m.Run(ctx) }()
	f.t.Cleanup(func() { m.end(); <-m.done })
	return m
}

func (f *fleet) join(name string) *member { return f.start(f.options(name)) }

// bareLoop is a loop that runs nothing.
func bareLoop(t *testing.T, o Options) *loop {
	t.Helper()
	a, err := New(Deps{
		Store: &store.Store{}, Snapshots: &store.Store{}, Switch: &member{front: engine.NewSwitch(engine.FrontOptions{})},
		Library: engine.NewLibrary(proxy.Options{}, middleware.Env{}), Cache: version.NewCache(1),
	}, o)
	if err != nil {
		t.Fatal(err)
	}
	return newLoop(a)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func holdsAll(s Status, refs ...version.Ref) bool {
	return !slices.ContainsFunc(refs, func(r version.Ref) bool { return !slices.Contains(s.Holds, r.Digest) })
}

func hasPrefix(s, prefix string) string {
	if strings.HasPrefix(s, prefix) {
		return ""
	}
	return fmt.Sprintf("%q does not begin with %q", s, prefix)
}
