package store

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
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/route"
	"routerd.dev/internal/version"
)

// shared is the etcd that all tests use, each under a prefix of its own.
// Tests that stop, fill or lock one start another.
var shared *etcd

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // etcd's gateway speaks when it is closed
	dir, err := os.MkdirTemp("", "store-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	shared = &etcd{dir: dir}
	if err := shared.start(); err != nil {
		fmt.Fprintln(os.Stderr, "start etcd:", err)
		os.Exit(1)
	}
	code := m.Run()
	shared.stop()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// etcd is one member on unix sockets below dir.
type etcd struct {
	dir    string
	quota  int64
	change func(*embed.Config)
	e      *embed.Etcd
}

func (e *etcd) endpoint() string { return "unix://" + filepath.Join(e.dir, "c") }

func (e *etcd) start() error {
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(e.dir, "data")
	cfg.LogLevel = "panic"
	cfg.LogOutputs = []string{filepath.Join(e.dir, "log")}
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.QuotaBackendBytes = e.quota
	cfg.UnsafeNoFsync = true
	client, peer := unixURL(e.dir, "c"), unixURL(e.dir, "p")
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	if e.change != nil {
		e.change(cfg)
	}
	var err error
	if e.e, err = embed.StartEtcd(cfg); err != nil {
		return err
	}
	select {
	case <-e.e.Server.ReadyNotify():
		return nil
	case err := <-e.e.Err():
		return err
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

func unixURL(dir, name string) url.URL {
	return url.URL{Scheme: "unix", Path: filepath.Join(dir, name)}
}

// own starts an etcd that only this test uses.
func own(t *testing.T, quota int64) *etcd {
	t.Helper()
	dir, err := os.MkdirTemp("", "store-own-") // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	e := &etcd{dir: dir, quota: quota}
	if err := e.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.stop)
	return e
}

var prefixes atomic.Int64

// open returns a store of the shared etcd under an own, empty prefix.
func open(t testing.TB) *Store {
	t.Helper()
	return openAt(t, Config{Prefix: fmt.Sprintf("/%s/%d/", t.Name(), prefixes.Add(1))})
}

// again returns another store of the same fleet, as another process has it.
func again(t *testing.T, s *Store) *Store {
	t.Helper()
	return openAt(t, Config{Prefix: s.Prefix(), Endpoints: s.Endpoints()})
}

func openAt(t testing.TB, cfg Config) *Store {
	t.Helper()
	if cfg.Endpoints == nil {
		cfg.Endpoints = []string{shared.endpoint()}
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// fleet returns a store with an initialized fleet.
func fleet(t *testing.T) *Store {
	t.Helper()
	s := open(t)
	if _, _, err := s.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// raw returns a client of the store's etcd, for what others do to it.
func raw(t testing.TB, s *Store) *clientv3.Client {
	t.Helper()
	c, err := s.etcd(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func rawPut(t *testing.T, s *Store, key, value string) {
	t.Helper()
	if _, err := raw(t, s).Put(t.Context(), s.key(key), value); err != nil {
		t.Fatal(err)
	}
}

func rawDelete(t *testing.T, s *Store, key string, opts ...clientv3.OpOption) {
	t.Helper()
	if _, err := raw(t, s).Delete(t.Context(), s.key(key), opts...); err != nil {
		t.Fatal(err)
	}
}

func rawGet(t *testing.T, s *Store, key string) string {
	t.Helper()
	resp, err := raw(t, s).Get(t.Context(), s.key(key))
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

// revision returns etcd's revision.
func revision(t *testing.T, s *Store) int64 {
	t.Helper()
	resp, err := raw(t, s).Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

// snapshot returns a table that differs from that of other words.
func snapshot(t testing.TB, words ...string) *version.Snapshot {
	t.Helper()
	table := &route.Table{}
	for i, w := range words {
		table.Modules = append(table.Modules, &route.Module{
			Name: fmt.Sprintf("m%d", i),
			Routes: []route.Route{{
				Name: "r", Path: "/" + w,
				Action: route.Action{Respond: &route.Respond{Status: 200, Body: strings.Repeat(w, 10)}},
			}},
		})
	}
	route.Normalize(table)
	s, err := version.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func publish(t *testing.T, s *Store, words ...string) version.Revision {
	t.Helper()
	return publishOn(t, s, target(t, s), &rollout.Intent{Kind: rollout.IntentSwitch}, words...)
}

func publishOn(t *testing.T, s *Store, parent version.Ref, i *rollout.Intent, words ...string) version.Revision {
	t.Helper()
	p, err := s.Publish(t.Context(), PublishRequest{Snapshot: snapshot(t, words...), Parent: parent, Author: "ann", Message: "words", Intent: i})
	if err != nil {
		t.Fatal(err)
	}
	return p.Revision
}

func target(t *testing.T, s *Store) version.Ref {
	t.Helper()
	f, err := s.Fleet(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return f.Target
}

func view(t *testing.T, s *Store) *rollout.View {
	t.Helper()
	v, err := s.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func campaign(t *testing.T, s *Store, id string) *Term {
	t.Helper()
	term, err := s.Campaign(t.Context(), id, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = term.Resign(context.Background()) })
	return term
}

func join(t *testing.T, s *Store, group, instance string) *Membership {
	t.Helper()
	m, err := s.Join(t.Context(), rollout.Instance{Instance: instance, Group: group, Boot: "boot-" + instance, Address: "10.0.0.1:80"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Leave(context.Background()) })
	return m
}

// ready joins and registers as holding nonce.
func ready(t *testing.T, s *Store, group, instance string, nonce rollout.Nonce) *Membership {
	t.Helper()
	m := join(t, s, group, instance)
	st, err := s.Group(t.Context(), group)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Admit(t.Context(), st, nonce); err != nil {
		t.Fatal(err)
	}
	return m
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// states runs WatchGroup and returns what it tells.
func states(t *testing.T, s *Store, group string, o WatchOptions) <-chan GroupState {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ch, done := make(chan GroupState, 1000), make(chan struct{})
	go func() {
		defer close(done)
		_ = s.WatchGroup(ctx, group, o, func(g GroupState) { ch <- g })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return ch
}

// await returns the first state for which ok holds.
func await(t *testing.T, ch <-chan GroupState, what string, ok func(GroupState) bool) GroupState {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		select {
		case g := <-ch:
			if ok(g) {
				return g
			}
		case <-limit:
			t.Fatalf("no state in which %s", what)
		}
	}
}

// eventually waits until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("never: %s", what)
		}
	}
}

// dump returns all keys and values of the fleet with their mod revisions.
func dump(t *testing.T, s *Store) map[string]string {
	t.Helper()
	resp, err := raw(t, s).Get(t.Context(), s.Prefix(), clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, kv := range resp.Kvs {
		all[s.name(string(kv.Key), "")] = fmt.Sprintf("%s @%d", kv.Value, kv.ModRevision)
	}
	return all
}

// unchanged fails if f wrote anything under the prefix.
func unchanged(t *testing.T, s *Store, f func()) {
	t.Helper()
	before := dump(t, s)
	f()
	if diff := cmp.Diff(before, dump(t, s)); diff != "" {
		t.Errorf("something was written:\n%s", diff)
	}
}

func wantErr(t *testing.T, err, want error, words ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}
