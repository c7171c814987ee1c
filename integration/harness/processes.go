package harness

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// processes is a ground of plain processes on loopback, for machines without
// containers. Nodes reach each other through relays, which break what is cut;
// the test reaches a node directly, so that no cut is in its way.
type processes struct {
	t    testing.TB // of the world, which outlives its scenarios
	bin  Binaries
	root string
	net  *wires

	mu     sync.Mutex
	nodes  map[string]*place
	relays map[way]*Relay
}

// A place is a node and where it is.
type place struct {
	dir    string
	listen map[int]string
	p      *Process // nil before it was first run
	paused bool
}

// A way is from one node to another's port.
type way struct {
	from, to string
	port     int
}

// NewProcesses returns a ground of processes, which end with the test.
func NewProcesses(t testing.TB, b Binaries) Ground {
	t.Helper()
	g := &processes{t: t, bin: b, root: folder(t), net: newWires(), nodes: map[string]*place{}, relays: map[way]*Relay{}}
	t.Cleanup(func() {
		for _, n := range g.nodes {
			if n.p != nil {
				n.p.Kill()
			}
		}
	})
	return g
}

func (g *processes) Kind() string { return "processes" }

func (g *processes) Place(t testing.TB, node string, ports ...int) {
	t.Helper()
	n := &place{dir: filepath.Join(g.root, node), listen: map[int]string{}}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		t.Fatalf("make the folder of %s: %v", node, err)
	}
	for _, p := range ports {
		n.listen[p] = FreeAddr(t)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.nodes[node] != nil {
		t.Fatalf("%s is placed already", node)
	}
	g.nodes[node] = n
}

// node panics for one that was not placed: the scenario is wrong.
func (g *processes) node(node string) *place {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.nodes[node]
	if n == nil {
		panic(node + " is not placed")
	}
	return n
}

func (g *processes) Listen(node string, port int) string {
	addr := g.node(node).listen[port]
	if addr == "" {
		panic(fmt.Sprintf("%s is placed without port %d", node, port))
	}
	return addr
}

func (g *processes) Inside(from, to string, port int) string {
	w := way{from: from, to: to, port: port}
	addr := g.Listen(to, port)
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.relays[w]
	if r == nil {
		who := func(net.Conn) string { return from }
		if from == "" {
			who = g.dialled
		}
		r = startRelay(g.t, g.net, to, addr, who)
		g.relays[w] = r
	}
	return r.Addr
}

func (g *processes) Outside(node string, port int) string { return g.Listen(node, port) }

func (g *processes) Dir(node string) string { return g.node(node).dir }

func (g *processes) Path(node, file string) string { return filepath.Join(g.node(node).dir, file) }

func (g *processes) Run(t testing.TB, node string, p Program) {
	t.Helper()
	n := g.node(node)
	path := map[string]string{"routerd": g.bin.RouterdPath, "etcd": g.bin.EtcdPath}[p.Binary]
	if p.File != "" {
		path = g.Path(node, p.File)
	}
	switch {
	case path == "":
		t.Fatalf("run %s: there is no program %q", node, p.Binary)
	case p.Memory != 0:
		t.Fatalf("run %s: processes have no limit of memory; the scenario needs the ground of containers", node)
	case g.Running(node):
		t.Fatalf("run %s: it is running", node)
	}
	g.launch(t, n, &Process{Name: node, Log: filepath.Join(g.root, node+".log"), t: g.t, path: path, args: p.Args, env: p.Env})
}

func (g *processes) Start(t testing.TB, node string) {
	t.Helper()
	n := g.node(node)
	switch {
	case n.p == nil:
		t.Fatalf("start %s: it was never run", node)
	case g.Running(node):
		t.Fatalf("start %s: it is running", node)
	}
	g.launch(t, n, n.p)
}

func (g *processes) launch(t testing.TB, n *place, p *Process) {
	t.Helper()
	n.paused = false
	// Nobody asks who dialled before the new process's id is known.
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := p.launch(); err != nil {
		t.Fatal(err)
	}
	n.p = p
}

// alive is the process of a node, which must run.
func (g *processes) alive(t testing.TB, node string) *place {
	t.Helper()
	if !g.Running(node) {
		t.Fatalf("%s is not running", node)
	}
	return g.node(node)
}

func (g *processes) Kill(t testing.TB, node string) {
	t.Helper()
	g.alive(t, node).p.Kill()
}

// stopWithin is the most that a node takes to end when it is asked to:
// routerd gives requests half a minute to finish.
const stopWithin = time.Minute

func (g *processes) Stop(t testing.TB, node string) {
	t.Helper()
	n := g.alive(t, node)
	n.p.Signal(syscall.SIGTERM)
	if n.paused {
		g.Resume(t, node)
	}
	select {
	case <-n.p.Ended():
	case <-time.After(stopWithin):
		t.Fatalf("%s still runs %v after SIGTERM", node, stopWithin)
	}
}

func (g *processes) Pause(t testing.TB, node string) {
	t.Helper()
	n := g.alive(t, node)
	n.p.Signal(syscall.SIGSTOP)
	n.paused = true
}

func (g *processes) Resume(t testing.TB, node string) {
	t.Helper()
	n := g.alive(t, node)
	n.p.Signal(syscall.SIGCONT)
	n.paused = false
}

func (g *processes) Running(node string) bool {
	n := g.node(node)
	if n.p == nil {
		return false
	}
	select {
	case <-n.p.Ended():
		return false
	default:
		return true
	}
}

func (g *processes) Log(node string) string {
	b, err := os.ReadFile(filepath.Join(g.root, node+".log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (g *processes) Cut(t testing.TB, node string, how Cut) {
	t.Helper()
	g.node(node)
	g.net.cut(node, how)
}

func (g *processes) Mend(t testing.TB, node string) {
	t.Helper()
	g.node(node)
	g.net.mend(node)
}
