package harness

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestNode is no test: it is what the nodes of TestProcesses run. A node
// listens, and answers each line of a connection: "hello" with its name, "ask
// ADDRESS" with what another node answers to hello.
func TestNode(t *testing.T) {
	name := os.Getenv("HARNESS_NODE")
	if name == "" {
		t.Skip("it is run by TestProcesses")
	}
	l, err := net.Listen("tcp", os.Getenv("HARNESS_LISTEN"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(name, "started")
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	go func() {
		<-asked
		fmt.Println(name, "asked to stop")
		os.Exit(0)
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer c.Close()
			for in := bufio.NewScanner(c); in.Scan(); {
				out := name
				if addr, ok := strings.CutPrefix(in.Text(), "ask "); ok {
					out = hello(addr, 200*time.Millisecond)
				}
				fmt.Fprintln(c, out)
			}
		}()
	}
}

// hello is what a node answers, or what comes instead.
func hello(addr string, within time.Duration) string { return say(addr, "hello", within) }

func say(addr, line string, within time.Duration) string {
	c, err := net.DialTimeout("tcp", addr, within)
	if err != nil {
		return "refused"
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return err.Error()
	}
	fmt.Fprintln(c, line)
	answer, err := bufio.NewReader(c).ReadString('\n')
	switch e, ok := err.(net.Error); {
	case ok && e.Timeout():
		return "silent"
	case err != nil:
		return "refused"
	}
	return strings.TrimSpace(answer)
}

func TestProcesses(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	g := NewProcesses(t, Binaries{RouterdPath: self, EtcdPath: self})
	run := func(name string) {
		t.Helper()
		g.Run(t, name, Program{Binary: "etcd", Args: []string{"-test.run=^TestNode$"}, Env: []string{
			"HARNESS_NODE=" + name, "HARNESS_LISTEN=" + g.Listen(name, 1),
		}})
	}
	up := func(name string) {
		t.Helper()
		Until(t, soon, name+" answers", func() error {
			if got := hello(g.Outside(name, 1), time.Second); got != name {
				return fmt.Errorf("it says %q", got)
			}
			return nil
		})
	}
	for _, n := range []string{"a", "b", "c"} {
		g.Place(t, n, 1)
	}
	for _, n := range []string{"a", "b", "c"} {
		run(n)
		up(n)
	}
	// asks has one node ask another, through its own relay or the common one.
	asks := func(from, to, through, want string) {
		t.Helper()
		line := "ask " + g.Inside(through, to, 1)
		if want != "silent" {
			// A slow machine is no cut.
			Until(t, soon, from+" asks "+to, func() error {
				if got := say(g.Outside(from, 1), line, soon); got != want {
					return fmt.Errorf("it hears %q", got)
				}
				return nil
			})
			return
		}
		if got := say(g.Outside(from, 1), line, soon); got != want {
			t.Errorf("%s asks %s (relay of %q): it hears %q, want %q", from, to, through, got, want)
		}
	}
	each := func(wants map[string]string) {
		t.Helper()
		for _, from := range []string{"a", "c"} {
			for _, through := range []string{from, ""} {
				asks(from, "b", through, wants[from])
			}
		}
	}
	each(map[string]string{"a": "b", "c": "b"})
	for _, how := range []Cut{CutBoth, CutIn, CutOut} {
		g.Cut(t, "c", how)
		each(map[string]string{"a": "b", "c": "silent"})
		up("c")
		g.Mend(t, "c")
		each(map[string]string{"a": "b", "c": "b"})
	}
	g.Cut(t, "c", CutRefuse)
	each(map[string]string{"a": "b", "c": "refused"})
	g.Mend(t, "c")
	g.Cut(t, "b", CutBoth)
	each(map[string]string{"a": "silent", "c": "silent"})
	up("b")
	g.Mend(t, "b")
	if g.Inside("a", "b", 1) == g.Outside("b", 1) || g.Inside("a", "b", 1) == g.Inside("", "b", 1) {
		t.Error("a reaches b as the test or as everybody does")
	}

	g.Pause(t, "b")
	asks("a", "b", "a", "silent")
	if !g.Running("b") {
		t.Error("a paused node is not running")
	}
	g.Resume(t, "b")
	asks("a", "b", "a", "b")

	if err := os.WriteFile(filepath.Join(g.Dir("b"), "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	g.Kill(t, "b")
	if g.Running("b") {
		t.Error("a killed node is running")
	}
	asks("a", "b", "a", "refused")
	g.Start(t, "b")
	up("b")
	g.Cut(t, "b", CutBoth) // the new process's dials are known, too
	asks("b", "a", "", "silent")
	g.Mend(t, "b")
	g.Pause(t, "b")
	g.Stop(t, "b")
	run("b")
	up("b")
	asks("a", "b", "", "b")
	if _, err := os.Stat(g.Path("b", "kept")); err != nil {
		t.Errorf("its folder does not last: %v", err)
	}
	if got, want := g.Log("b"), "b started\nb started\nb asked to stop\nb started\n"; got != want {
		t.Errorf("the log of b is %q, want %q", got, want)
	}
}

// A port given twice is one of two nodes that never starts.
func TestFreeAddrGivesNoneTwice(t *testing.T) {
	given := map[string]bool{}
	for range 2000 {
		addr := FreeAddr(t)
		if given[addr] {
			t.Fatalf("%s was given twice", addr)
		}
		given[addr] = true
	}
}
