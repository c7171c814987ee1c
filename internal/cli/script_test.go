package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"

	"routerd.dev/internal/cli"
	"routerd.dev/internal/daemon"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

// TestMain makes this binary routectl when a script runs it under that name.
func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // etcd's gateway speaks when it is closed
	testscript.Main(m, map[string]func(){"routectl": routectl})
}

func routectl() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(cli.Run(ctx, cli.OS(), os.Args[1:]))
}

// TestScripts runs testdata/*.txt, each against a fleet of its own: a prefix in
// one etcd. Besides testscript's own commands they use:
//
//	exits CODE routectl ARGS…     run it, and want this exit code
//	json PATH REGEXP              want this value in the JSON on stdout; "absent" for none
//	instance NAME GROUP           run a routerd, which stands for election; its admin listener is $ADMIN
//	follower NAME GROUP           run a routerd that does not
//	refuser NAME GROUP WHY        an instance that refuses whatever it is asked to prepare
//	sleeper NAME GROUP            an instance that never gets ready
//	stop-instance NAME            end one of these, and wait until it is gone
//	start NAME ARGS…              run routectl beside the script; it writes NAME.out and NAME.err
//	appears FILE REGEXP           wait until the file has this
//	interrupt NAME                as Ctrl-C would
//	ends CODE NAME                wait for its end, and want this exit code
//	forget-rollouts               delete every record of a rollout, as an etcd that went back
//	wipe                          delete every record, as an etcd that lost its disk
//	note-etcd                     note where etcd stands
//	same-etcd                     want that nothing was written to it since, and no lease taken
//	bare-etcd                     another etcd, where nobody has set up anything
//	secure-etcd FILE              another etcd, set up by the first routectl etcd setup of FILE; passwords are in pw/
//	etcdctl FILE                  carry out the commands of FILE, each one of etcdctl
func TestScripts(t *testing.T) {
	shared := startEtcd(t)
	docs, err := filepath.Abs(filepath.Join("..", "..", "docs"))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                "testdata",
		WorkdirRoot:        t.TempDir(), // testscript leaves an empty folder behind in its own
		RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			name := strings.TrimSuffix(filepath.Base(env.WorkDir), filepath.Ext(env.WorkDir))
			env.Setenv("ROUTECTL_ENDPOINTS", shared)
			env.Setenv("ROUTECTL_PREFIX", "/"+name)
			env.Setenv("ROUTECTL_AUTHOR", "ann")
			env.Setenv("DOCS", docs)
			env.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector sleeps a second at each exit
			f := &fleet{work: env.WorkDir, members: map[string]*member{}}
			env.Values["fleet"] = f
			env.Defer(f.stopAll)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":           exits,
			"json":            jsonValue,
			"instance":        func(ts *testscript.TestScript, _ bool, args []string) { ours(ts).serve(ts, args, true) },
			"follower":        func(ts *testscript.TestScript, _ bool, args []string) { ours(ts).serve(ts, args, false) },
			"refuser":         func(ts *testscript.TestScript, _ bool, args []string) { ours(ts).puppet(ts, args[:2], args[2]) },
			"sleeper":         func(ts *testscript.TestScript, _ bool, args []string) { ours(ts).puppet(ts, args, "") },
			"stop-instance":   func(ts *testscript.TestScript, _ bool, args []string) { ours(ts).stop(ts, args[0]) },
			"start":           func(ts *testscript.TestScript, _ bool, args []string) { ours(ts).background(ts, args) },
			"appears":         appears,
			"interrupt":       func(ts *testscript.TestScript, _ bool, args []string) { ours(ts).members[args[0]].stop() },
			"ends":            func(ts *testscript.TestScript, _ bool, args []string) { ours(ts).ends(ts, args) },
			"forget-rollouts": forgetRollouts,
			"wipe":            wipe,
			"note-etcd":       func(ts *testscript.TestScript, _ bool, _ []string) { ours(ts).noted = etcdState(ts) },
			"same-etcd":       sameEtcd,
			"bare-etcd":       bareEtcd,
			"secure-etcd":     secureEtcd,
			"etcdctl":         etcdctlFile,
		},
	})
}

// startEtcd runs a member on sockets of its own until the test ends.
func startEtcd(t testing.TB) (endpoint string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cli-etcd-") // short: a socket's path has at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(dir, "data")
	cfg.LogLevel, cfg.LogOutputs = "panic", []string{filepath.Join(dir, "log")}
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.UnsafeNoFsync = true
	cfg.BcryptCost = 4 // the least: with the race detector a usual one takes seconds
	socket := func(name string) []url.URL {
		return []url.URL{{Scheme: "unix", Host: "", Path: filepath.Join(dir, name)}}
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = socket("c"), socket("c")
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = socket("p"), socket("p")
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatalf("start etcd: %v", err)
	}
	t.Cleanup(func() { e.Server.HardStop(); e.Close() })
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		t.Fatalf("start etcd: %v", err)
	}
	return "unix://" + filepath.Join(dir, "c")
}

func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// jsonValue holds a value of the JSON on stdout, in compact form, against a
// regular expression that has to match all of it.
func jsonValue(ts *testscript.TestScript, _ bool, args []string) {
	var doc any
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	dec.UseNumber()
	ts.Check(dec.Decode(&doc))
	if _, err := dec.Token(); err != io.EOF {
		ts.Fatalf("stdout is not one JSON document")
	}
	got := "absent"
	if v, ok := at(doc, args[0]); ok {
		b, err := json.Marshal(v)
		ts.Check(err)
		got = strings.Trim(string(b), `"`)
	}
	if !regexp.MustCompile(`^(?:` + args[1] + `)$`).MatchString(got) {
		ts.Fatalf("%s is %s, want %s", args[0], got, args[1])
	}
}

// at follows a path such as instances[0].serving.epoch or [1].number; len at
// its end gives how many there are.
func at(v any, path string) (any, bool) {
	for _, key := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		switch x := v.(type) {
		case map[string]any:
			next, ok := x[key]
			if !ok {
				return nil, false
			}
			v = next
		case []any:
			if key == "len" {
				v = len(x)
				continue
			}
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(x) {
				return nil, false
			}
			v = x[i]
		default:
			return nil, false
		}
	}
	return v, true
}

// A fleet is the instances that one script runs.
type fleet struct {
	work    string
	mu      sync.Mutex
	members map[string]*member
	noted   string // where etcd stood
}

type member struct {
	stop func()
	done chan struct{}
	err  error
	code int // of a routectl
}

func ours(ts *testscript.TestScript) *fleet { return ts.Value("fleet").(*fleet) }

func (f *fleet) start(name string, run func(context.Context) error) *member {
	ctx, cancel := context.WithCancel(context.Background())
	m := &member{stop: cancel, done: make(chan struct{})}
	f.mu.Lock()
	f.members[name] = m
	f.mu.Unlock()
	go func() {
		defer close(m.done)
		m.err = run(ctx)
	}()
	return m
}

func (f *fleet) stopAll() {
	for _, m := range f.members {
		m.stop()
	}
	for _, m := range f.members {
		<-m.done
	}
}

func (f *fleet) stop(ts *testscript.TestScript, name string) {
	m := f.members[name]
	if m == nil {
		ts.Fatalf("there is no instance %s", name)
	}
	m.stop()
	<-m.done
	ts.Check(m.err)
	delete(f.members, name)
}

// serve runs a routerd and waits until it is registered.
func (f *fleet) serve(ts *testscript.TestScript, args []string, controller bool) {
	name, group := args[0], args[1]
	var cfg daemon.Config
	cfg.Flags(pflag.NewFlagSet("", pflag.ContinueOnError)) // for the defaults
	cfg.Instance, cfg.Group, cfg.Controller = name, group, controller
	cfg.HTTP, cfg.Admin = "127.0.0.1:0", "127.0.0.1:0"
	cfg.Endpoints, cfg.Prefix = []string{ts.Getenv("ROUTECTL_ENDPOINTS")}, ts.Getenv("ROUTECTL_PREFIX")
	cfg.EtcdUser, cfg.EtcdPassword = ts.Getenv("ROUTERD_ETCD_USER"), ts.Getenv("ROUTERD_ETCD_PASSWORD")
	cfg.StateDir = filepath.Join(f.work, ".state", name)
	cfg.LogLevel = "error"
	m := f.start(name, func(ctx context.Context) error { return daemon.Serve(ctx, cfg) })
	f.await(ts, m, func(v *rollout.View) bool {
		_, ok := v.Ready[group][name]
		ts.Setenv("ADMIN", v.Instances[name].Admin)
		return ok && v.Reports[name].Time != (time.Time{})
	})
}

// puppet runs an instance that is no router: it refuses what it is asked to
// prepare, saying why, or never gets ready.
func (f *fleet) puppet(ts *testscript.TestScript, args []string, why string) {
	name, group := args[0], args[1]
	s := open(ts)
	m := f.start(name, func(ctx context.Context) (err error) {
		defer func() { err = errors.Join(err, s.Close()) }()
		who, err := s.Join(ctx, rollout.Instance{Instance: name, Group: group, Boot: name, Address: "nowhere"}, 0)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, who.Leave(context.WithoutCancel(ctx))) }()
		if err := who.Put(ctx, rollout.Ready{}); err != nil {
			return err
		}
		if err := who.Report(ctx, rollout.Report{Time: time.Now()}); err != nil {
			return err
		}
		err = s.WatchGroup(ctx, group, store.WatchOptions{}, func(st store.GroupState) {
			p := st.Prepare
			if why == "" || p == nil || p.First != "" && p.First != name {
				return
			}
			_ = who.Put(ctx, rollout.Ready{Nonce: p.Nonce, Refused: true, Why: why}) // a lost race is asked again
		})
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	})
	f.await(ts, m, func(v *rollout.View) bool { _, ok := v.Ready[group][name]; return ok })
}

// await waits until the fleet's records say what is wanted.
func (f *fleet) await(ts *testscript.TestScript, m *member, want func(*rollout.View) bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s := open(ts)
	defer s.Close()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if v, err := s.View(ctx); err == nil && want(v) {
			return
		}
		select {
		case <-m.done:
			ts.Fatalf("the instance ended: %v", m.err)
		case <-ctx.Done():
			ts.Fatalf("the instance did not register")
		case <-tick.C:
		}
	}
}

// background runs routectl in this process, so that it can be interrupted
// at any moment of its life.
func (f *fleet) background(ts *testscript.TestScript, args []string) {
	out, err := os.Create(ts.MkAbs(args[0] + ".out"))
	ts.Check(err)
	talk, err := os.Create(ts.MkAbs(args[0] + ".err"))
	ts.Check(err)
	env := cli.Env{Stdin: strings.NewReader(""), Stdout: out, Stderr: talk, Getenv: ts.Getenv, Now: time.Now}
	var m *member
	started := make(chan struct{})
	m = f.start(args[0], func(ctx context.Context) error {
		<-started
		m.code = cli.Run(ctx, env, args[1:])
		return errors.Join(out.Close(), talk.Close())
	})
	close(started)
}

func (f *fleet) ends(ts *testscript.TestScript, args []string) {
	m := f.members[args[1]]
	<-m.done
	ts.Check(m.err)
	delete(f.members, args[1])
	if strconv.Itoa(m.code) != args[0] {
		ts.Fatalf("%s ended with %d, want %s; it said:\n%s", args[1], m.code, args[0], ts.ReadFile(args[1]+".err"))
	}
}

func appears(ts *testscript.TestScript, _ bool, args []string) {
	want := regexp.MustCompile(`(?m)` + args[1])
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !want.MatchString(ts.ReadFile(args[0])) {
		if time.Now().After(deadline) {
			ts.Fatalf("%s has no %q:\n%s", args[0], args[1], ts.ReadFile(args[0]))
		}
		<-tick.C
	}
}

// open is what a script itself sees: as its routectl does.
func open(ts *testscript.TestScript) *store.Store {
	password := ts.Getenv("ROUTECTL_PASSWORD")
	if path, isFile := strings.CutPrefix(password, "file:"); isFile {
		password = strings.TrimSpace(ts.ReadFile(path))
	}
	s, err := store.Open(store.Config{
		Endpoints: []string{ts.Getenv("ROUTECTL_ENDPOINTS")}, Prefix: ts.Getenv("ROUTECTL_PREFIX"),
		Username: ts.Getenv("ROUTECTL_USER"), Password: password,
	})
	ts.Check(err)
	return s
}

func forgetRollouts(ts *testscript.TestScript, _ bool, _ []string) {
	for _, dir := range []string{"intents/", "rollouts/", "ended/"} {
		ts.Check(etcdctl(ts.Getenv("ROUTECTL_ENDPOINTS"), "del", "--prefix=true", ts.Getenv("ROUTECTL_PREFIX")+"/"+dir))
	}
}

func wipe(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(etcdctl(ts.Getenv("ROUTECTL_ENDPOINTS"), "del", "--prefix=true", ts.Getenv("ROUTECTL_PREFIX")+"/"))
}

// etcdState is etcd's revision, which every write moves, and, where everybody may
// list them, its leases.
func etcdState(ts *testscript.TestScript) string {
	s := open(ts)
	defer s.Close()
	v, err := s.View(context.Background())
	ts.Check(err)
	state := fmt.Sprintf("revision %d", v.At)
	if ts.Getenv("ROUTECTL_USER") == "" {
		leases, err := etcdLeases(ts.Getenv("ROUTECTL_ENDPOINTS"))
		ts.Check(err)
		state += fmt.Sprintf(", leases %v", leases)
	}
	return state
}

func sameEtcd(ts *testscript.TestScript, _ bool, _ []string) {
	if now := etcdState(ts); now != ours(ts).noted {
		ts.Fatalf("etcd is at %s, and was at %s", now, ours(ts).noted)
	}
}

func bareEtcd(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Setenv("ROUTECTL_ENDPOINTS", startEtcd(&cleaner{ts: ts}))
}

// secureEtcd runs another etcd, and carries out the command of a document that
// sets up users and roles, by password.
func secureEtcd(ts *testscript.TestScript, _ bool, args []string) {
	bareEtcd(ts, false, nil)
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		if words := strings.Fields(line); len(words) > 3 && strings.Join(words[:3], " ") == "routectl etcd setup" {
			ts.Check(ts.Exec("routectl", append(words[1:], "--passwords", "pw", "--root-password", "secret")...))
			return
		}
	}
	ts.Fatalf("%s has no routectl etcd setup", args[0])
}

// etcdctlFile carries out every line of a file.
func etcdctlFile(ts *testscript.TestScript, _ bool, args []string) {
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "etcdctl" {
			ts.Fatalf("%s is no command of etcdctl", strings.TrimSpace(line))
		}
		if err := etcdctl(ts.Getenv("ROUTECTL_ENDPOINTS"), words[1:]...); err != nil {
			ts.Fatalf("%s: %v", strings.TrimSpace(line), err)
		}
	}
}

// A cleaner lets a script's etcd end with the script.
type cleaner struct {
	testing.TB
	ts *testscript.TestScript
}

func (c *cleaner) Helper()                      {}
func (c *cleaner) Cleanup(f func())             { c.ts.Defer(f) }
func (c *cleaner) Fatal(args ...any)            { c.ts.Fatalf("%s", fmt.Sprint(args...)) }
func (c *cleaner) Fatalf(f string, args ...any) { c.ts.Fatalf(f, args...) }
