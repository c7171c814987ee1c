package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"
	tcnetwork "github.com/testcontainers/testcontainers-go/network"
)

// containers is a ground of containers on two private networks. Nodes reach each
// other over the first, which is what Cut breaks; the test reaches them over the
// second, so that a cut leaves it whole. Every node is on both.
//
// Nobody outside of the machine is reached: the networks have no way out, and
// the image is nothing but our own static binaries.
type containers struct {
	t       testing.TB // of the world, which outlives its scenarios
	docker  *testcontainers.DockerProvider
	image   string
	root    string
	control lan
	front   lan
	boxes   map[string]*box

	mu sync.Mutex // holds what Log reads: the load may ask for it
}

// A lan is one network.
type lan struct {
	*testcontainers.DockerNetwork
	subnet netip.Prefix
}

// address is that of the n-th node; the first of a subnet is the machine's own.
func (l lan) address(n int) netip.Addr {
	a := l.subnet.Addr().Next()
	for range n {
		a = a.Next()
	}
	return a
}

// A box is a node: its place, and its container.
type box struct {
	number int
	dir    string
	c      *testcontainers.DockerContainer // nil before it was first run
	before string                          // log of the containers before this one
	cut    *Cut
	silent []pair // with CutOpen: what was connected when it began
}

// NewContainers returns a ground of containers, which are removed at the end of
// the test, with networks and image. Where no Docker engine is the test is skipped,
// but where CI is set it fails.
func NewContainers(t testing.TB, b Binaries) Ground {
	t.Helper()
	g := &containers{t: t, docker: engine(t), root: t.TempDir(), boxes: map[string]*box{}}
	g.image = g.build(t, b)
	g.control, g.front = g.connect(t), g.connect(t)
	t.Cleanup(g.remove)
	return g
}

// engine is the Docker engine.
func engine(t testing.TB) *testcontainers.DockerProvider {
	t.Helper()
	// No container is started to clean up: what is made here is removed here.
	err := os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
	var p *testcontainers.DockerProvider
	if err == nil {
		quiet := tclog.NewNoopLogger() // what goes wrong is returned
		tclog.SetDefault(quiet)
		p, err = testcontainers.NewDockerProvider(testcontainers.WithLogger(quiet))
	}
	if err == nil {
		t.Cleanup(func() { p.Close() })
		err = p.Health(t.Context())
	}
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("CI needs a Docker engine: %v", err)
	default:
		t.Skipf("no Docker engine, nothing was tested: %v", err)
	}
	return p
}

// build makes an image of nothing but the static binaries; no other is pulled.
func (g *containers) build(t testing.TB, b Binaries) (tag string) {
	t.Helper()
	dir := t.TempDir()
	for _, path := range []string{b.RouterdPath, b.EtcdPath} {
		// A link, or else the image's context is copied twice.
		if err := os.Link(path, filepath.Join(dir, filepath.Base(path))); err == nil {
			continue
		}
		data, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(path)), data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY routerd etcd /\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tag, err := g.docker.BuildImage(t.Context(), &testcontainers.ContainerRequest{
		FromDockerfile: testcontainers.FromDockerfile{Context: dir, Repo: "routerd-integration"},
	})
	if err != nil {
		t.Fatalf("build the image: %v", err)
	}
	t.Cleanup(func() {
		if _, err := g.docker.Client().ImageRemove(context.Background(), tag, client.ImageRemoveOptions{Force: true, PruneChildren: true}); err != nil {
			t.Errorf("remove the image: %v", err)
		}
	})
	return tag
}

// connect makes a private network. Its subnet is ours to choose, so that nodes
// keep their addresses whatever is started again; one that is taken is no reason to
// give up.
func (g *containers) connect(t testing.TB) lan {
	t.Helper()
	var err error
	for range 20 {
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(64 + rand.IntN(128)), byte(rand.IntN(256)), 0}), 24)
		var n *testcontainers.DockerNetwork
		n, err = tcnetwork.New(t.Context(), tcnetwork.WithInternal(), tcnetwork.WithIPAM(&network.IPAM{
			Config: []network.IPAMConfig{{Subnet: subnet, Gateway: subnet.Addr().Next()}},
		}))
		if err == nil {
			t.Cleanup(func() { removeNetwork(t, n) })
			return lan{DockerNetwork: n, subnet: subnet}
		}
	}
	t.Fatalf("make a private network: %v", err)
	return lan{}
}

// removeNetwork removes a network once its containers are gone. Docker 20.10 now
// and then keeps an endpoint of one that no longer exists, until it is restarted
// itself; such a network stays behind, which is said, and is nothing a fleet did.
func removeNetwork(t testing.TB, n *testcontainers.DockerNetwork) {
	t.Helper()
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for end := time.Now().Add(10 * time.Second); ; <-again.C {
		err := n.Remove(context.Background())
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Logf("network %s stays behind: %v", n.Name, err)
			return
		}
	}
}

func (g *containers) Kind() string { return "containers" }

// HostAddr is where nodes reach what the test itself runs.
func (g *containers) HostAddr() string { return g.front.address(0).String() }

func (g *containers) Place(t testing.TB, node string, _ ...int) {
	t.Helper()
	if g.boxes[node] != nil {
		t.Fatalf("%s is placed already", node)
	}
	b := &box{number: len(g.boxes) + 1, dir: filepath.Join(g.root, node)}
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		t.Fatalf("make the folder of %s: %v", node, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.boxes[node] = b
}

// box panics for a node that was not placed: the scenario is wrong.
func (g *containers) box(node string) *box {
	g.mu.Lock()
	defer g.mu.Unlock()
	b := g.boxes[node]
	if b == nil {
		panic(node + " is not placed")
	}
	return b
}

func (g *containers) Listen(_ string, port int) string { return fmt.Sprintf("0.0.0.0:%d", port) }

func (g *containers) Inside(_, to string, port int) string {
	return netip.AddrPortFrom(g.control.address(g.box(to).number), uint16(port)).String()
}

func (g *containers) Outside(node string, port int) string {
	return netip.AddrPortFrom(g.front.address(g.box(node).number), uint16(port)).String()
}

func (g *containers) Dir(node string) string { return g.box(node).dir }

func (g *containers) Path(_, file string) string { return "/node/" + file }

func (g *containers) Run(t testing.TB, node string, p Program) {
	t.Helper()
	b := g.box(node)
	if b.c != nil {
		if g.Running(node) {
			t.Fatalf("run %s: it is running", node)
		}
		log := g.Log(node)
		if err := testcontainers.TerminateContainer(b.c, testcontainers.StopTimeout(0)); err != nil {
			t.Fatalf("remove the former container of %s: %v", node, err)
		}
		g.mu.Lock()
		b.before, b.c = log, nil
		g.mu.Unlock()
	}
	request := testcontainers.CustomizeRequestOption(func(r *testcontainers.GenericContainerRequest) error {
		r.Networks = []string{g.front.Name}
		r.EndpointSettingsModifier = func(s map[string]*network.EndpointSettings) {
			s[g.front.Name].IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: g.front.address(b.number)}
		}
		// A request names the address in its first network only.
		r.LifecycleHooks = append(r.LifecycleHooks, testcontainers.ContainerLifecycleHooks{
			PostCreates: []testcontainers.ContainerHook{func(ctx context.Context, c testcontainers.Container) error {
				_, err := g.docker.Client().NetworkConnect(ctx, g.control.ID, client.NetworkConnectOptions{
					Container:      c.GetContainerID(),
					EndpointConfig: &network.EndpointSettings{IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: g.control.address(b.number)}},
				})
				return err
			}},
		})
		r.ConfigModifier = func(c *container.Config) {
			c.Hostname, c.Env = node, p.Env
			c.User = fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()) // whose the folder is
		}
		r.HostConfigModifier = func(h *container.HostConfig) {
			h.Binds = []string{b.dir + ":/node"}
			h.Memory, h.MemorySwap = p.Memory, p.Memory
			h.NetworkMode = container.NetworkMode(g.front.Name)
		}
		return nil
	})
	program := "/" + p.Binary
	if p.File != "" {
		program = g.Path(node, p.File)
	}
	c, err := testcontainers.Run(context.WithoutCancel(t.Context()), g.image, testcontainers.WithCmd(append([]string{program}, p.Args...)...), request)
	g.mu.Lock()
	b.c = c // to be removed even if it did not start
	g.mu.Unlock()
	if err != nil {
		t.Fatalf("run %s: %v", node, err)
	}
	g.again(t, node)
}

// remove removes every container.
func (g *containers) remove() {
	var wg sync.WaitGroup
	for node, b := range g.boxes {
		wg.Go(func() {
			if err := testcontainers.TerminateContainer(b.c, testcontainers.StopTimeout(0)); err != nil {
				g.t.Errorf("remove the container of %s: %v", node, err)
			}
		})
	}
	wg.Wait()
}

// alive is the box of a node, which must have been run.
func (g *containers) alive(t testing.TB, node string) *box {
	t.Helper()
	b := g.box(node)
	if b.c == nil {
		t.Fatalf("%s was never run", node)
	}
	return b
}

func (g *containers) Start(t testing.TB, node string) {
	t.Helper()
	id := g.alive(t, node).c.GetContainerID()
	Until(t, settle, "Docker starts "+node, func() error { // it may hold on to what it was for a moment
		_, err := g.docker.Client().ContainerStart(context.Background(), id, client.ContainerStartOptions{})
		return err
	})
	g.again(t, node)
}

func (g *containers) Kill(t testing.TB, node string) {
	t.Helper()
	g.end(t, node, "kill", func(ctx context.Context, id string) error {
		_, err := g.docker.Client().ContainerKill(ctx, id, client.ContainerKillOptions{Signal: "KILL"})
		return err
	})
}

func (g *containers) Stop(t testing.TB, node string) {
	t.Helper()
	g.end(t, node, "stop", func(ctx context.Context, id string) error {
		_, err := g.docker.Client().ContainerKill(ctx, id, client.ContainerKillOptions{Signal: "TERM"})
		return err
	})
}

// end does something to a container and waits until its process has ended.
func (g *containers) end(t testing.TB, node, what string, do func(ctx context.Context, id string) error) {
	t.Helper()
	id := g.alive(t, node).c.GetContainerID()
	ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
	defer cancel()
	wait := g.docker.Client().ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	if err := do(ctx, id); err != nil {
		t.Fatalf("%s %s: %v", what, node, err)
	}
	select {
	case <-wait.Result:
	case err := <-wait.Error:
		t.Fatalf("%s %s: it has not ended: %v", what, node, err)
	}
}

func (g *containers) Pause(t testing.TB, node string) {
	t.Helper()
	if _, err := g.docker.Client().ContainerPause(context.Background(), g.alive(t, node).c.GetContainerID(), client.ContainerPauseOptions{}); err != nil {
		t.Fatalf("pause %s: %v", node, err)
	}
}

func (g *containers) Resume(t testing.TB, node string) {
	t.Helper()
	if _, err := g.docker.Client().ContainerUnpause(context.Background(), g.alive(t, node).c.GetContainerID(), client.ContainerUnpauseOptions{}); err != nil {
		t.Fatalf("resume %s: %v", node, err)
	}
}

func (g *containers) Running(node string) bool {
	_, err := g.pid(node)
	return err == nil
}

var errNotRunning = errors.New("it is not running")

// pid is that of the node's process, as the machine counts.
func (g *containers) pid(node string) (int, error) {
	b := g.box(node)
	if b.c == nil {
		return 0, errNotRunning
	}
	info, err := b.c.Inspect(context.Background())
	switch {
	case err != nil:
		return 0, err
	case info.State == nil || !info.State.Running || info.State.Pid == 0:
		return 0, errNotRunning
	}
	return info.State.Pid, nil
}

func (g *containers) Log(node string) string {
	b := g.box(node)
	g.mu.Lock()
	before, c := b.before, b.c
	g.mu.Unlock()
	if c == nil {
		return before
	}
	r, err := c.Logs(context.Background())
	if err != nil {
		return before + err.Error()
	}
	defer r.Close()
	var said bytes.Buffer
	if _, err := io.Copy(&said, r); err != nil {
		said.WriteString(err.Error())
	}
	return before + said.String()
}

// Cut breaks the control network in the node's own network namespace, by
// address, so that the test's way, the front network, stays whole, also to an
// etcd member. It outlives the node: one that starts while it is cut off is cut
// off again some ten milliseconds after its start.
func (g *containers) Cut(t testing.TB, node string, how Cut) {
	t.Helper()
	b := g.alive(t, node)
	g.Mend(t, node)
	b.cut = &how
	if how == CutOpen {
		var err error
		if b.silent, err = g.connections(node); err != nil {
			t.Fatalf("see what %s is connected to: %v", node, err)
		}
	}
	g.again(t, node)
}

// again puts the node's cut into force, if it has one and runs.
func (g *containers) again(t testing.TB, node string) {
	t.Helper()
	b := g.box(node)
	if b.cut == nil || !g.Running(node) {
		return
	}
	if err := g.filter(node, rules(*b.cut, g.control.subnet.String(), b.silent)); err != nil {
		t.Fatalf("cut %s off: %v", node, err)
	}
}

func (g *containers) Mend(t testing.TB, node string) {
	t.Helper()
	b := g.box(node)
	if b.cut == nil {
		return
	}
	b.cut, b.silent = nil, nil
	if !g.Running(node) {
		return // its namespace went with it
	}
	if err := g.filter(node, nil); err != nil {
		t.Fatalf("mend the network of %s: %v", node, err)
	}
}

// netns runs a program in a node's network namespace.
func (g *containers) netns(node, stdin string, line ...string) (string, error) {
	pid, err := g.pid(node)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return command(ctx, stdin, append([]string{"nsenter", "-t", strconv.Itoa(pid), "-n"}, line...)...)
}
