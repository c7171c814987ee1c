package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/integration/history"
	"routerd.dev/internal/agent"
)

// WorldOptions say which world a scenario needs. Scenarios with equal options
// share one, so that not each has to start a fleet.
type WorldOptions struct {
	Groups      string // group of each instance, separated by spaces; "" for "main main main edge edge"
	Controllers int    // how many instances, from the first, stand for election; 0 for 2
	Etcds       int    // etcd members; 0 for 3
	Args        string // further flags of each instance, separated by spaces
	Passwords   bool   // etcd users by password, not by client certificate
	SmallDisk   int64  // bytes of each instance's state folder, a file system of its own; 0 for no limit
	EtcdArgs    string // further flags of each etcd member
}

func (o WorldOptions) withDefaults() WorldOptions {
	if o.Groups == "" {
		o.Groups = "main main main edge edge"
	}
	if o.Controllers == 0 {
		o.Controllers = 2
	}
	if o.Etcds == 0 {
		o.Etcds = 3
	}
	return o
}

// A World is a fleet on a ground under load, and everything that was seen of it.
//
// Its etcd asks for client certificates and knows who may do what, as `routectl etcd
// setup` makes it; each instance has its own certificate.
type World struct {
	Ground
	*Fleet
	Options  WorldOptions
	Etcd     *Etcd
	Upstream *Upstream
	Recorder *Recorder

	mu      sync.Mutex
	mark    int
	members []string
	acked   []history.Ack
	skewed  map[string]bool
	vault   vault
}

// A Scenario is one fault, and within what time everything must be well again.
type Scenario struct {
	// Name is the fault in a few words, and of the subtest: "controller killed".
	Name string
	// Bound is the most time between the fault's end (the return of Run) and
	// the fleet being one again: every instance registered, serving its group's
	// epoch and the target, nothing stale or frozen, nothing under way.
	Bound time.Duration
	// Short scenarios are part of CI; the others run in make soak and by name.
	Short bool
	// World is what it needs.
	World WorldOptions
	// Ground is the only kind it can run on, and Why; empty for both.
	Ground, Why string
	// Run makes the fault under load, looks at what is particular to it, ends
	// the fault, and returns. What every fault must leave alone (no request fails at an
	// instance that is not itself down, I1 to I5, I9, I10, I12) is the runner's to check.
	Run func(t *testing.T, w *World)
}

// Ports of the nodes of a world.
const (
	HTTPPort, AdminPort          = 8080, 9080
	EtcdClientPort, EtcdPeerPort = 2379, 2380
)

// settle is the most time a world's own steps take on a loaded machine.
const settle = time.Minute

// NewWorld runs etcd members and instances on a ground, publishes first
// revisions, and returns when every instance serves them. All of it ends with t.
func NewWorld(t *testing.T, b Binaries, g Ground, o WorldOptions) *World {
	t.Helper()
	w := &World{
		Ground: g, Fleet: &Fleet{Bin: b}, Options: o.withDefaults(), Etcd: &Etcd{},
		vault: vault{dir: t.TempDir(), passwords: o.Passwords},
	}
	w.placeAll(t)
	w.CtlArgs = w.vault.flags(operatorUser)
	w.issue(t, slices.Concat(w.nodes(), []string{rootUser, operatorUser, publisherUser, readerUser}), false)
	host := "127.0.0.1"
	if h, ok := g.(interface{ HostAddr() string }); ok {
		host = h.HostAddr() // where a container reaches the test
	}
	w.Upstream = StartUpstreamAt(t, host)
	t.Cleanup(func() { w.tell(t) })
	w.StartEtcd(t)
	if _, err := w.Routectl("", "init"); err != nil { // instances may not
		t.Fatal(err)
	}
	for n := range w.Instances {
		w.runInstance(t, n)
	}
	w.UntilJoined(t, settle)
	if _, err := w.Routectl(Ballast(300), "publish", "-f", "-", "-m", "ballast", "--wait"); err != nil {
		t.Fatal(err)
	}
	if err := w.Publish("--wait"); err != nil {
		t.Fatal(err)
	}
	w.UntilConverged(t, settle)
	return w
}

// placeAll makes room for every node, so that all addresses are known.
func (w *World) placeAll(t testing.TB) {
	t.Helper()
	for n := range w.Options.Etcds {
		e := fmt.Sprintf("etcd%d", n)
		w.Place(t, e, EtcdClientPort, EtcdPeerPort)
		w.members = append(w.members, e)
		w.Endpoints = append(w.Endpoints, "https://"+w.Outside(e, EtcdClientPort))
	}
	w.Etcd.Endpoints = w.Endpoints
	for n, group := range strings.Fields(w.Options.Groups) {
		name := fmt.Sprintf("%s-%d", group, n)
		w.Place(t, name, HTTPPort, AdminPort)
		state := filepath.Join(w.Dir(name), "state")
		if err := os.Mkdir(state, 0o700); err != nil {
			t.Fatal(err)
		}
		if size := w.Options.SmallDisk; size > 0 {
			mountSmall(t, state, size)
		}
		w.Instances = append(w.Instances, &Instance{
			Instance: name, Group: group, StateDir: state,
			HTTP: w.Outside(name, HTTPPort), Admin: w.Outside(name, AdminPort),
			Output: func() string { return w.Log(name) },
		})
	}
}

// mountSmall puts a file system of its own, in memory, on a folder.
func mountSmall(t testing.TB, dir string, size int64) {
	t.Helper()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%d,mode=0700", size), "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount a small file system on %s (this needs root): %v: %s", dir, err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("unmount %s: %v: %s", dir, err, out)
		}
	})
}

// StartEtcd runs every member for the first time, with nothing in their
// folders, and sets up who may do what.
func (w *World) StartEtcd(t testing.TB) {
	t.Helper()
	for _, e := range w.members {
		w.Run(t, e, w.EtcdProgram(e))
	}
	w.SetUpAccess(t)
	w.AwaitEtcd(t)
}

// EtcdProgram is what a member of the cluster runs.
func (w *World) EtcdProgram(e string) Program {
	var cluster []string
	for _, m := range w.members {
		cluster = append(cluster, m+"=https://"+w.Inside("", m, EtcdPeerPort))
	}
	args := []string{
		"--name", e, "--data-dir", w.Path(e, "data"), "--log-level", "error",
		"--listen-client-urls", "https://" + w.Listen(e, EtcdClientPort), "--advertise-client-urls", "https://" + w.Outside(e, EtcdClientPort),
		"--listen-peer-urls", "https://" + w.Listen(e, EtcdPeerPort), "--initial-advertise-peer-urls", "https://" + w.Inside("", e, EtcdPeerPort),
		"--initial-cluster", strings.Join(cluster, ","), "--initial-cluster-state", "new",
		"--heartbeat-interval", "100", "--election-timeout", "1000",
	}
	args = append(args, w.etcdSecurity(e)...)
	return Program{Binary: "etcd", Args: append(args, strings.Fields(w.Options.EtcdArgs)...)}
}

func (w *World) runInstance(t testing.TB, n int) {
	t.Helper()
	w.Run(t, w.Instances[n].Instance, w.InstanceProgram(w.Instances[n]))
}

// InstanceProgram is what an instance runs.
func (w *World) InstanceProgram(i *Instance) Program {
	var endpoints []string
	for _, e := range w.members {
		endpoints = append(endpoints, "https://"+w.Inside(i.Instance, e, EtcdClientPort))
	}
	args := []string{
		"serve", "--group", i.Group, "--instance", i.Instance,
		"--http", w.Listen(i.Instance, HTTPPort), "--admin", w.Listen(i.Instance, AdminPort), "--admin-pprof",
		"--state-dir", w.Path(i.Instance, "state"), "--endpoints", strings.Join(endpoints, ","),
		"--response-headers", "--log-format", "json", "--log-level", "debug",
	}
	args = append(args, w.instanceSecurity(i)...)
	if slices.Index(w.Instances, i) < w.Options.Controllers {
		args = append(args, "--controller")
	}
	return Program{Binary: "routerd", Args: append(args, strings.Fields(w.Options.Args)...)}
}

// tell shows what the nodes said last when the test failed.
func (w *World) tell(t testing.TB) {
	if !t.Failed() {
		return
	}
	for _, name := range w.nodes() {
		t.Logf("the end of %s's log:\n%s", name, tail(w.Log(name), 25))
	}
}

// Publish publishes the next mark; the revision's message is the mark.
func (w *World) Publish(args ...string) error {
	w.mu.Lock()
	w.mark++
	mark := w.mark
	w.mu.Unlock()
	out, err := w.RoutectlAs(publisherUser, Marked(mark, w.Upstream.URL), append([]string{"publish", "-o", "json", "-f", "-", "-m", fmt.Sprint(mark)}, args...)...)
	if err == nil {
		err = w.acknowledged(fmt.Sprint(mark), out)
	}
	return err
}

// Members are the names of the etcd members.
func (w *World) Members() []string { return slices.Clone(w.members) }

// Instance is the instance with a name; it panics when there is none.
func (w *World) Instance(name string) *Instance {
	for _, i := range w.Instances {
		if i.Instance == name {
			return i
		}
	}
	panic("no instance " + name)
}

// Controller is the instance that is elected; it waits until one is.
func (w *World) Controller(t testing.TB) *Instance {
	t.Helper()
	var who string
	Until(t, settle, "a controller is elected", func() error {
		st, err := w.Status()
		if err == nil && st.Controller == "" {
			err = errors.New("none is")
		}
		who = st.Controller
		return err
	})
	return w.Instance(who)
}

// Other is the last instance that is none of these.
func (w *World) Other(t testing.TB, not ...*Instance) *Instance {
	t.Helper()
	for _, i := range slices.Backward(w.Instances) {
		if !slices.Contains(not, i) {
			return i
		}
	}
	t.Fatal("the world has no other instance")
	return nil
}

// Leader is the etcd member that leads; it waits until one does.
func (w *World) Leader(t testing.TB) string {
	t.Helper()
	c := w.Client(t)
	defer c.Close()
	var who string
	Until(t, settle, "etcd has a leader", func() error {
		var err error
		for n, ep := range w.Endpoints {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			st, e := c.Status(ctx, ep)
			cancel()
			if e == nil && st.Leader == st.Header.MemberId {
				who = w.members[n]
				return nil
			}
			err = errors.Join(err, e)
		}
		return fmt.Errorf("no member says that it leads: %w", err)
	})
	return who
}

// Client is a client of etcd with the rights of its root; close it.
func (w *World) Client(t testing.TB) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(w.ConfigAs(t, rootUser))
	if err != nil {
		t.Fatalf("connect to etcd: %v", err)
	}
	return c
}

// ClientConfig is that of a client of etcd that may only look at the fleet.
func (w *World) ClientConfig() clientv3.Config {
	cfg, err := w.configAs(readerUser)
	if err != nil {
		panic(err) // the world made what it is about
	}
	return cfg
}

// AwaitEtcd waits until every member answers with a linearizable read.
func (w *World) AwaitEtcd(t testing.TB) {
	t.Helper()
	for n, e := range w.members {
		cfg := w.ConfigAs(t, rootUser)
		cfg.Endpoints = w.Endpoints[n : n+1]
		Until(t, settle, e+" answers", func() error { return readOnce(cfg) })
	}
}

// Down notes that from now on requests to an instance may fail, until Back.
func (w *World) Down(name string) { w.Instance(name).Down() }

// Back notes that an instance serves again: from now on no request to it may fail.
func (w *World) Back(name string) { w.Instance(name).Back() }

// Crash kills an instance with SIGKILL; requests to it are excused until Revive.
func (w *World) Crash(t testing.TB, name string) {
	t.Helper()
	w.Down(name)
	w.Kill(t, name)
}

// Revive starts a killed instance again and returns how long it did not serve
// after its start.
func (w *World) Revive(t testing.TB, name string) time.Duration {
	t.Helper()
	start := time.Now()
	w.Start(t, name)
	w.UntilServes(t, name)
	w.Back(name)
	return time.Since(start)
}

// Freeze pauses an instance; requests to it are excused until Thaw.
func (w *World) Freeze(t testing.TB, name string) {
	t.Helper()
	w.Down(name)
	w.Pause(t, name)
}

// Thaw lets a paused instance go on, and waits until it answers.
func (w *World) Thaw(t testing.TB, name string) {
	t.Helper()
	w.Resume(t, name)
	w.UntilServes(t, name)
	w.Back(name)
}

// UntilServes waits until an instance says that it is ready and answers a
// request.
func (w *World) UntilServes(t testing.TB, name string) {
	t.Helper()
	i := w.Instance(name)
	Until(t, settle, name+" serves", func() error {
		if _, err := i.Ready(); err != nil {
			return err
		}
		c, err := net.DialTimeout("tcp", i.HTTP, time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(c, "GET /own HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			return err
		}
		b, err := io.ReadAll(c)
		if err == nil && !strings.HasPrefix(string(b), "HTTP/1.1 200 ") {
			err = fmt.Errorf("it answers %.60q", b)
		}
		return err
	})
}

// UntilStatus waits until an instance's own status is as cond wants it.
func (w *World) UntilStatus(t testing.TB, within time.Duration, name, what string, cond func(agent.Status) error) {
	t.Helper()
	i := w.Instance(name)
	Until(t, within, name+" "+what, func() error {
		st, err := i.Status()
		if err != nil {
			return err
		}
		return cond(st)
	})
}

// UntilStale waits until an instance says that what it knows may be old. It
// must serve nonetheless.
func (w *World) UntilStale(t testing.TB, within time.Duration, name string) {
	t.Helper()
	w.UntilStatus(t, within, name, "says that it is stale", func(st agent.Status) error {
		if st.Stale == "" || st.Serving == nil {
			return fmt.Errorf("stale: %q, serving %v, etcd %+v", st.Stale, st.Serving, st.Etcd)
		}
		return nil
	})
}

// UntilFrozen waits until an instance says that it is frozen, and why
// contains why. It must serve nonetheless.
func (w *World) UntilFrozen(t testing.TB, within time.Duration, name, why string) {
	t.Helper()
	w.UntilStatus(t, within, name, "says that it is frozen", func(st agent.Status) error {
		if !strings.Contains(st.Frozen, why) || st.Frozen == "" || st.Serving == nil {
			return fmt.Errorf("frozen: %q, serving %v, etcd %+v", st.Frozen, st.Serving, st.Etcd)
		}
		return nil
	})
}

// UntilJoined waits until every instance is registered, and fails at once for
// one whose program has ended.
func (w *World) UntilJoined(t testing.TB, within time.Duration) {
	t.Helper()
	for _, i := range w.Instances {
		Until(t, within, i.Instance+" tells its status", func() error {
			_, err := i.Status()
			if err != nil && !w.Running(i.Instance) {
				t.Fatalf("%s has ended: %s", i.Instance, tail(w.Log(i.Instance), 3))
			}
			return err
		})
		w.UntilStatus(t, within, i.Instance, "has joined", func(st agent.Status) error {
			if !st.Joined {
				return fmt.Errorf("etcd: %+v", st.Etcd)
			}
			return nil
		})
	}
}

// Converged is the fleet's, and asks the instances themselves, too: what etcd
// says of them may be of before the fault.
func (w *World) Converged() error {
	for _, i := range w.Instances {
		st, err := i.Status()
		switch {
		case err != nil:
			return err
		case !st.Joined || st.Stale != "" || st.Frozen != "":
			return fmt.Errorf("%s: joined: %v, stale: %q, frozen: %q, etcd: %+v", i.Instance, st.Joined, st.Stale, st.Frozen, st.Etcd)
		}
	}
	return w.Fleet.Converged()
}

// UntilConverged waits until the fleet is one, and returns how long that took.
func (w *World) UntilConverged(t testing.TB, within time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	Until(t, within, "the fleet is one", w.Converged)
	return time.Since(start)
}

// Epoch is what an instance serves now.
func (w *World) Epoch(t testing.TB, name string) int64 {
	t.Helper()
	r, err := w.Instance(name).Ready()
	if err != nil {
		t.Fatal(err)
	}
	return r.Epoch
}
