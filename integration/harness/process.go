package harness

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A Process is one program of the test, which can be killed and started again
// with the same arguments. Its output is kept in a file across starts.
type Process struct {
	Name string
	Log  string // file with everything it wrote

	t    testing.TB
	path string
	args []string
	env  []string

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when the process of the moment has ended
	err  error         // how it ended; read after done
}

// Start runs a program and ends it with the test.
func Start(t testing.TB, name, dir, path string, env []string, args ...string) *Process {
	t.Helper()
	p := &Process{Name: name, Log: filepath.Join(dir, name+".log"), t: t, path: path, args: args, env: env}
	p.Start()
	t.Cleanup(p.Kill)
	return p
}

// Start starts the program again after Kill or Term.
func (p *Process) Start() {
	p.t.Helper()
	if err := p.launch(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *Process) launch() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	out, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", p.Name, err)
	}
	defer out.Close()
	cmd := exec.Command(p.path, p.args...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = notOrphaned()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.err = cmd.Wait()
	}()
	p.cmd, p.done = cmd, done
	return nil
}

// Pid is the process's id.
func (p *Process) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Pid
}

// Signal sends a signal to the process.
func (p *Process) Signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.cmd.Process.Signal(s)
}

// Kill ends the process at once (SIGKILL) and waits for its end.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.Ended()
}

// Exit waits for the process to end by itself and returns how it did; the
// error says when it has not ended within the time.
func (p *Process) Exit(within time.Duration) error {
	select {
	case <-p.Ended():
		return p.err
	case <-time.After(within):
		return fmt.Errorf("%s still runs after %v", p.Name, within)
	}
}

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// Tail returns the last lines the process wrote, for a failed test.
func (p *Process) Tail(lines int) string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return tail(string(b), lines)
}

// tail is the last lines of a text.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// The ports that FreeAddr gives are below those that the kernel gives to
// outgoing connections: otherwise one of the load's own could take one while
// its process is down.
const firstPort, ports = 12000, 20000

// nextPort is the one that FreeAddr tries next, counted from firstPort. The
// first is chosen at random, for test runs beside each other.
var nextPort = struct {
	sync.Mutex
	n int
}{n: rand.IntN(ports)}

// FreeAddr returns a loopback address that nobody listens on at this moment, and
// that it gave to nobody else: who was given one may start to listen much later.
func FreeAddr(t testing.TB) string {
	t.Helper()
	nextPort.Lock()
	defer nextPort.Unlock()
	var err error
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", firstPort+nextPort.n)
		nextPort.n = (nextPort.n + 1) % ports
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatalf("find a free port: %v", err)
	return ""
}

// folder makes a folder that is removed with the test. Its path is short,
// unlike that of t.TempDir, which has the test's name in it: instances make a
// socket in theirs, and a socket's path has 107 bytes at most.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "t")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove a test's folder: %v", err)
		}
	})
	return dir
}

// Until waits for a condition and fails the test with its last complaint when
// it does not hold in time.
func Until(t testing.TB, within time.Duration, what string, cond func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
		<-tick.C
	}
}

// Etcd is a cluster of real etcd members.
type Etcd struct {
	Members   []*Process
	Endpoints []string
}

// StartEtcd runs an etcd cluster of n members and waits until it answers.
func StartEtcd(t *testing.T, b Binaries, n int) *Etcd {
	t.Helper()
	e := &Etcd{}
	var cluster, peers []string
	for i := range n {
		peers = append(peers, FreeAddr(t))
		e.Endpoints = append(e.Endpoints, FreeAddr(t))
		cluster = append(cluster, fmt.Sprintf("etcd%d=http://%s", i, peers[i]))
	}
	dir := t.TempDir()
	for i := range n {
		name := fmt.Sprintf("etcd%d", i)
		e.Members = append(e.Members, Start(t, name, dir, b.EtcdPath, nil,
			"--name", name, "--data-dir", filepath.Join(dir, name), "--log-level", "error",
			"--listen-client-urls", "http://"+e.Endpoints[i], "--advertise-client-urls", "http://"+e.Endpoints[i],
			"--listen-peer-urls", "http://"+peers[i], "--initial-advertise-peer-urls", "http://"+peers[i],
			"--initial-cluster", strings.Join(cluster, ","), "--initial-cluster-state", "new",
			"--heartbeat-interval", "100", "--election-timeout", "1000"))
	}
	e.Await(t)
	return e
}

// Await waits until every member says that it is healthy.
func (e *Etcd) Await(t *testing.T) {
	t.Helper()
	Until(t, 30*time.Second, "etcd answers", func() error {
		for _, ep := range e.Endpoints {
			resp, err := http.Get("http://" + ep + "/health")
			if err != nil {
				return err
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s: %s", ep, resp.Status)
			}
		}
		return nil
	})
}
