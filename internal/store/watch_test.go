package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
)

func epoch(n int64) func(GroupState) bool {
	return func(g GroupState) bool { return g.Assignment != nil && g.Assignment.Epoch == n && g.Err == nil }
}

func assignment(n int) string { return fmt.Sprintf(`{"group":"main","epoch":%d}`, n) }

// Long bounds, so that nothing but the watch itself can bring the news.
var patient = WatchOptions{Reread: time.Hour, Silence: time.Hour}

func TestWatchTellsTheCurrentStateFirst(t *testing.T) {
	s := fleet(t)
	ch := states(t, s, "main", patient)
	g := <-ch
	f, err := s.Format(t.Context())
	must(t, err)
	if !g.Missing() || g.FleetID != f.FleetID || g.Prepare != nil || g.Err != nil || g.Group != "main" {
		t.Errorf("first state %+v", g)
	}
	rawPut(t, s, "groups/main", assignment(1))
	if g = await(t, ch, "epoch is 1", epoch(1)); g.AssignmentMod != g.At {
		t.Errorf("state %+v", g)
	}
	if g := <-states(t, s, "main", patient); g.Assignment == nil || g.Missing() {
		t.Errorf("first state %+v", g)
	}
}

// A commit ends the prepare in its own transaction. Nobody may see the prepare
// gone and the commit not yet there: it would look like a withdrawal.
func TestWatchTellsCommitAndItsPrepareTogether(t *testing.T) {
	s := fleet(t)
	term := campaign(t, s, "c1")
	ch := states(t, s, "main", patient)
	<-ch
	for n := int64(1); n <= 50; n++ {
		nonce := rollout.Nonce(fmt.Sprintf("n%d", n))
		must(t, term.Apply(t.Context(), view(t, s), rollout.Change{Prepares: []rollout.Prepare{{Group: "main", Nonce: nonce}}}))
		await(t, ch, "it is prepared", func(g GroupState) bool { return g.Prepare != nil && g.Prepare.Nonce == nonce })
		must(t, term.Apply(t.Context(), view(t, s), rollout.Change{
			Groups: []rollout.Assignment{{Group: "main", Epoch: n, Nonce: nonce}}, Withdraw: []string{"main"},
		}))
		await(t, ch, "it is committed", func(g GroupState) bool {
			done := epoch(n)(g)
			if g.Prepare == nil && !done {
				t.Fatalf("prepare %d is gone and epoch is not %d: %+v", n, n, g)
			}
			return done && g.Prepare == nil
		})
	}
}

func TestWatchReportsUnreadableRecord(t *testing.T) {
	s := fleet(t)
	ch := states(t, s, "main", patient)
	<-ch
	rawPut(t, s, "groups/main", `{"group":`)
	g := <-ch
	if g.Assignment != nil || g.Missing() || len(g.Broken) != 1 || !strings.HasSuffix(g.Broken[0].Key, "groups/main") {
		t.Errorf("state %+v", g)
	}
	rawPut(t, s, "groups/main", `{"group":"other"}`)
	if g = <-ch; g.Assignment != nil || len(g.Broken) != 1 {
		t.Errorf("state %+v", g)
	}
	rawPut(t, s, "groups/main", assignment(1))
	if g = <-ch; !epoch(1)(g) || len(g.Broken) != 0 {
		t.Errorf("state %+v", g)
	}
}

func TestI10_WatchTellsOfAWipe(t *testing.T) {
	s := fleet(t)
	rawPut(t, s, "groups/main", assignment(4))
	ch := states(t, s, "main", patient)
	await(t, ch, "epoch is 4", epoch(4))
	rawDelete(t, s, "", clientv3.WithPrefix())
	await(t, ch, "everything is gone", func(g GroupState) bool { return g.Missing() && g.FleetID == "" && g.Err == nil })
}

// Nothing tells of a new format but reading it again.
func TestI10_WatchTellsOfAnotherFleet(t *testing.T) {
	s := fleet(t)
	ch := states(t, s, "main", WatchOptions{Reread: 50 * time.Millisecond})
	<-ch
	rawPut(t, s, "format", `{"layout":1,"fleet":"another"}`)
	await(t, ch, "the fleet is another", func(g GroupState) bool { return g.FleetID == "another" })
}

// laggard has its first read so far back that it is compacted when the watch
// begins.
type laggard struct {
	*groupWatch
	at int64
}

func (l *laggard) read(ctx context.Context) (int64, bool, error) {
	at, news, err := l.groupWatch.read(ctx)
	if l.at > 0 {
		at, l.at = l.at, 0
	}
	return at, news, err
}

func TestWatchSurvivesCompaction(t *testing.T) {
	s := fleet(t)
	old := revision(t, s)
	rawPut(t, s, "groups/main", assignment(1))
	rawPut(t, s, "groups/main", assignment(2))
	if _, err := raw(t, s).Compact(t.Context(), revision(t, s)); err != nil {
		t.Fatal(err)
	}
	// The compaction is one that a watch from there does not survive.
	resp := <-raw(t, s).Watch(t.Context(), s.key("groups/main"), clientv3.WithRev(old))
	if !errors.Is(resp.Err(), rpctypes.ErrCompacted) {
		t.Fatalf("watch says %v", resp.Err())
	}
	ctx, cancel := context.WithCancel(t.Context())
	ch, done := make(chan GroupState, 100), make(chan struct{})
	w := &laggard{&groupWatch{s: s, group: "main", fn: func(g GroupState) { ch <- g }}, old}
	go func() {
		defer close(done)
		_ = s.follow(ctx, patient, w.watched(), w)
	}()
	t.Cleanup(func() { cancel(); <-done })
	await(t, ch, "epoch is 2", epoch(2))
	rawPut(t, s, "groups/main", assignment(3))
	await(t, ch, "epoch is 3", epoch(3))
}

func TestWatchSurvivesRestartAndSaysStale(t *testing.T) {
	e := own(t, 0)
	s := openAt(t, Config{Endpoints: []string{e.endpoint()}, Timeout: time.Second})
	if _, _, err := s.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	rawPut(t, s, "groups/main", assignment(1))
	ch := states(t, s, "main", WatchOptions{Reread: 200 * time.Millisecond, Silence: 200 * time.Millisecond})
	wakes := make(chan Wake, 10_000)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = s.Watch(ctx, WatchOptions{Reread: 200 * time.Millisecond, Silence: 200 * time.Millisecond}, func(w Wake) { wakes <- w })
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	await(t, ch, "epoch is 1", epoch(1))
	e.stop()
	g := await(t, ch, "it is stale", func(g GroupState) bool { return g.Err != nil })
	if g.Assignment == nil || g.Assignment.Epoch != 1 || g.StaleSince.IsZero() || !errors.Is(g.Err, ErrUnavailable) {
		t.Errorf("stale state %+v", g)
	}
	for w := range wakes {
		if w.Err != nil {
			break
		}
	}
	must(t, e.start())
	g = await(t, ch, "it is fresh", func(g GroupState) bool { return g.Err == nil })
	if !g.StaleSince.IsZero() || g.Assignment == nil {
		t.Errorf("fresh state %+v", g)
	}
	for w := range wakes {
		if w.Err == nil {
			break
		}
	}
	rawPut(t, s, "groups/main", assignment(2))
	await(t, ch, "epoch is 2", epoch(2))
}

// etcd comes back from an older copy: the watch waits for a revision that is
// far in the future, and only reading tells.
func TestI10_WatchTellsOfARestoredCopy(t *testing.T) {
	e := own(t, 0)
	s := openAt(t, Config{Endpoints: []string{e.endpoint()}, Timeout: time.Second})
	if _, _, err := s.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	rawPut(t, s, "groups/main", assignment(1))
	e.stop()
	must(t, os.CopyFS(filepath.Join(e.dir, "copy"), os.DirFS(filepath.Join(e.dir, "data"))))
	must(t, e.start())
	for n := 2; n <= 20; n++ {
		rawPut(t, s, "groups/main", assignment(n))
	}
	ch := states(t, s, "main", WatchOptions{Reread: 100 * time.Millisecond, Silence: time.Hour})
	high := await(t, ch, "epoch is 20", epoch(20))
	e.stop()
	must(t, os.RemoveAll(filepath.Join(e.dir, "data")))
	must(t, os.Rename(filepath.Join(e.dir, "copy"), filepath.Join(e.dir, "data")))
	must(t, e.start())
	g := await(t, ch, "epoch is 1 again", epoch(1))
	if g.At >= high.At {
		t.Errorf("at %d, and was at %d", g.At, high.At)
	}
	rawPut(t, s, "groups/main", assignment(2))
	await(t, ch, "epoch is 2", epoch(2))
}

// farsighted has its first read in the distant future, as after etcd went back
// under a watch that nothing disturbed.
type farsighted struct {
	*groupWatch
	reads chan struct{}
	n     int
}

func (f *farsighted) read(ctx context.Context) (int64, bool, error) {
	at, news, err := f.groupWatch.read(ctx)
	if f.n++; f.n == 1 {
		at += 1 << 40
	}
	f.reads <- struct{}{}
	return at, news, err
}

func TestI10_WatchDoesNotWaitForADistantFuture(t *testing.T) {
	s := fleet(t)
	ctx, cancel := context.WithCancel(t.Context())
	ch, done := make(chan GroupState, 100), make(chan struct{})
	w := &farsighted{groupWatch: &groupWatch{s: s, group: "main", fn: func(g GroupState) { ch <- g }}, reads: make(chan struct{}, 100)}
	go func() {
		defer close(done)
		_ = s.follow(ctx, WatchOptions{Reread: 2 * time.Second, Silence: time.Hour}, w.watched(), w)
	}()
	t.Cleanup(func() { cancel(); <-done })
	for range 3 { // the first, the one that finds out, and the one of the new watch
		<-w.reads
	}
	began := time.Now()
	rawPut(t, s, "groups/main", assignment(1))
	await(t, ch, "epoch is 1", epoch(1))
	if took := time.Since(began); took > time.Second {
		t.Errorf("it was read, not told: %v", took)
	}
}

func TestWatchWithoutEtcdSaysStale(t *testing.T) {
	s := openAt(t, Config{Endpoints: []string{"unix://" + filepath.Join(t.TempDir(), "nobody")}, Timeout: 100 * time.Millisecond})
	before := time.Now()
	g := <-states(t, s, "main", WatchOptions{})
	if g.Err == nil || g.At != 0 || g.Missing() || g.StaleSince.Before(before) || g.Group != "main" {
		t.Errorf("state %+v", g)
	}
}

// A connection that swallows everything: the watchdog makes another.
func TestWatchSurvivesASilentConnection(t *testing.T) {
	p := newBlackhole(t, strings.TrimPrefix(shared.endpoint(), "unix://"), "")
	s := openAt(t, Config{Prefix: "/" + t.Name() + "/", Endpoints: []string{"unix://" + p.path}, Timeout: time.Second})
	direct := again(t, openAt(t, Config{Prefix: s.Prefix()}))
	if _, _, err := direct.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	ch := states(t, s, "main", WatchOptions{Reread: time.Hour, Silence: 100 * time.Millisecond})
	<-ch
	first := raw(t, s)
	p.swallow()
	rawPut(t, direct, "groups/main", assignment(1))
	await(t, ch, "epoch is 1", epoch(1))
	if raw(t, s) == first {
		t.Error("the client is the same still")
	}
}

// The watch works for all that it can tell, and yet keeps quiet: the re-read
// bounds how stale an instance is.
func TestRereadBoundsStaleness(t *testing.T) {
	s := fleet(t)
	ctx, cancel := context.WithCancel(t.Context())
	ch, done := make(chan GroupState, 100), make(chan struct{})
	w := &groupWatch{s: s, group: "main", fn: func(g GroupState) { ch <- g }}
	deaf := []watched{{key: s.key("nothing")}}
	go func() {
		defer close(done)
		_ = s.follow(ctx, WatchOptions{Reread: 50 * time.Millisecond, Silence: time.Hour}, deaf, w)
	}()
	t.Cleanup(func() { cancel(); <-done })
	<-ch
	rawPut(t, s, "groups/main", assignment(1))
	await(t, ch, "epoch is 1", epoch(1))
}

func TestWakesForWhatAControllerDecidesOn(t *testing.T) {
	s := fleet(t)
	wakes := make(chan Wake, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Watch(ctx, patient, func(w Wake) { wakes <- w }) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	<-wakes
	for _, key := range []string{"fleet", "groups/a", "prepare/a", "ready/a/b", "instances/b", "intents/x", "checks/r"} {
		at := revision(t, s)
		rawPut(t, s, "reports/b", "{}")  // wakes nobody
		rawPut(t, s, "measures/b", "{}") // nor does this
		rawPut(t, s, key, "{}")
		select {
		case w := <-wakes:
			if w.At != at+3 || w.Err != nil {
				t.Errorf("%s: wake %+v, want at %d", key, w, at+3)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s wakes nobody", key)
		}
	}
}

// The events of one call come of several watches: only those of one key are in order.
func TestWakeIsAboutTheNewestEvent(t *testing.T) {
	var got []Wake
	w := &wakeWatch{fn: func(w Wake) { got = append(got, w) }}
	at := func(n int64) *clientv3.Event { return &clientv3.Event{Kv: &mvccpb.KeyValue{ModRevision: n}} }
	for _, events := range [][]*clientv3.Event{{at(99), at(100)}, {at(100), at(99)}, {at(98), at(100), at(97)}, nil} {
		if w.event(events) {
			t.Error("it asks for a read")
		}
	}
	if want := []Wake{{At: 100}, {At: 100}, {At: 100}}; !slices.Equal(got, want) {
		t.Errorf("wakes %v, want %v", got, want)
	}
}

// blackhole passes connections on to a unix socket until told to swallow
// what those do that it has; new ones pass.
type blackhole struct {
	path, to string
	marker   []byte // what a client sends that makes its connection swallow the answers, once
	seen     atomic.Bool
	l        net.Listener
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns []*hole
}

type hole struct {
	in, out net.Conn
	mu      sync.Mutex
	closed  bool
}

func newBlackhole(t *testing.T, to, marker string) *blackhole {
	t.Helper()
	dir, err := os.MkdirTemp("", "store-hole-")
	must(t, err)
	b := &blackhole{path: filepath.Join(dir, "s"), to: to, marker: []byte(marker)}
	b.l, err = net.Listen("unix", b.path)
	must(t, err)
	b.wg.Go(b.accept)
	t.Cleanup(func() {
		_ = b.l.Close()
		b.mu.Lock()
		for _, h := range b.conns {
			_, _ = h.in.Close(), h.out.Close()
		}
		b.mu.Unlock()
		b.wg.Wait()
		_ = os.RemoveAll(dir)
	})
	return b
}

func (b *blackhole) accept() {
	for {
		in, err := b.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("unix", b.to)
		if err != nil {
			_ = in.Close()
			continue
		}
		h := &hole{in: in, out: out}
		b.mu.Lock()
		b.conns = append(b.conns, h)
		b.mu.Unlock()
		b.wg.Go(func() { b.copy(h, in, out, nil) })
		b.wg.Go(func() { b.copy(h, out, in, b.marker) })
	}
}

func (b *blackhole) copy(h *hole, to io.WriteCloser, from io.Reader, marker []byte) {
	defer func() { _ = to.Close() }()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		h.mu.Lock()
		swallowed := h.closed
		if len(marker) > 0 && bytes.Contains(buf[:n], marker) && b.seen.CompareAndSwap(false, true) {
			h.closed = true
		}
		h.mu.Unlock()
		if !swallowed {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
}

// cut ends the connections that swallow.
func (b *blackhole) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range b.conns {
		h.mu.Lock()
		if h.closed {
			_, _ = h.in.Close(), h.out.Close()
		}
		h.mu.Unlock()
	}
}

func (b *blackhole) swallow() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range b.conns {
		h.mu.Lock()
		h.closed = true
		h.mu.Unlock()
	}
}

// Events that were on their way while the state was read again are older than
// what was read.
func TestWatchDoesNotGoBackToOldEvents(t *testing.T) {
	s := fleet(t)
	rawPut(t, s, "groups/main", assignment(1))
	resp, err := raw(t, s).Get(t.Context(), s.key("groups/main"))
	must(t, err)
	rawPut(t, s, "groups/main", assignment(2))
	var last GroupState
	w := &groupWatch{s: s, group: "main", fn: func(g GroupState) { last = g }}
	if _, _, err := w.read(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w.event([]*clientv3.Event{{Type: clientv3.EventTypePut, Kv: resp.Kvs[0]}}) {
		t.Error("an old event asks for a read")
	}
	if !epoch(2)(last) {
		t.Errorf("state %+v", last)
	}
}
