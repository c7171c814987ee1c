package harness

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	never = 60 * time.Millisecond // what has not come by then does not come
	soon  = 10 * time.Second
)

// A wire is a relay between two nodes, "client" and "server", with both ends in
// the test's hands.
type wire struct {
	t        *testing.T
	net      *wires
	relay    *Relay
	accepted chan *net.TCPConn
}

func newWire(t *testing.T) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{t: t, net: newWires(), accepted: make(chan *net.TCPConn, 16)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.accepted <- c.(*net.TCPConn)
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	w.relay = startRelay(t, w.net, "server", l.Addr().String(), func(net.Conn) string { return "client" })
	return w
}

func (w *wire) dial() *net.TCPConn {
	w.t.Helper()
	c, err := net.Dial("tcp", w.relay.Addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// accept is the server's end of a connection; nil when none comes.
func (w *wire) accept(within time.Duration) *net.TCPConn {
	w.t.Helper()
	select {
	case c := <-w.accepted:
		w.t.Cleanup(func() { c.Close() })
		return c
	case <-time.After(within):
		return nil
	}
}

func (w *wire) connect() (client, server *net.TCPConn) {
	w.t.Helper()
	client = w.dial()
	if server = w.accept(soon); server == nil {
		w.t.Fatal("the server was not reached")
	}
	return client, server
}

func send(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

// heard is what one end got; an error other than that nothing came is part of it.
func heard(t *testing.T, c net.Conn, n int, within time.Duration) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, n)
	n, err := io.ReadFull(c, b)
	switch {
	case err == nil || errors.Is(err, os.ErrDeadlineExceeded):
		return string(b[:n])
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return string(b[:n]) + "(end)"
	case errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE):
		return string(b[:n]) + "(reset)"
	default:
		return err.Error()
	}
}

// Law: of an open connection each cut holds the bytes of the directions it
// names and no others; after Mend nothing that was sent is missing.
func TestCutOpenConnections(t *testing.T) {
	for _, c := range []struct {
		node   string
		how    Cut
		onward bool // whether the client is heard
		back   bool
	}{
		{"server", CutBoth, false, false},
		{"client", CutBoth, false, false},
		{"server", CutIn, false, true},
		{"client", CutIn, true, false},
		{"server", CutOut, true, false},
		{"client", CutOut, false, true},
		{"server", CutOpen, false, false},
		{"client", CutOpen, false, false},
		{"server", CutSlow, true, true},
		{"client", CutSlow, true, true},
		{"neighbour", CutBoth, true, true},
	} {
		t.Run(c.node+" "+c.how.String(), func(t *testing.T) {
			t.Parallel()
			w := newWire(t)
			client, server := w.connect()
			w.net.cut(c.node, c.how)
			for _, way := range []struct {
				from, to net.Conn
				passes   bool
			}{{client, server, c.onward}, {server, client, c.back}} {
				send(t, way.from, "one")
				want, within := "one", soon
				if !way.passes {
					want, within = "", never
				}
				if got := heard(t, way.to, 3, within); got != want {
					t.Errorf("while it lasts %q is heard, want %q", got, want)
				}
			}
			// So with the end of what is sent.
			for _, way := range []struct {
				from, to *net.TCPConn
				passes   bool
			}{{client, server, c.onward}, {server, client, c.back}} {
				if err := way.from.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				want, within := "(end)", soon
				if !way.passes {
					want, within = "", never
				}
				if got := heard(t, way.to, 3, within); got != want {
					t.Errorf("of the end %q is heard, want %q", got, want)
				}
			}
			w.net.mend(c.node)
			for _, way := range []struct {
				to     net.Conn
				passes bool
			}{{server, c.onward}, {client, c.back}} {
				want := "one(end)"
				if way.passes {
					want = "(end)"
				}
				if got := heard(t, way.to, 4, soon); got != want {
					t.Errorf("after the mend %q is heard, want %q", got, want)
				}
			}
		})
	}
}

// An end is told as bytes are: who is cut off does not hear that the other side
// is gone until the network is mended.
func TestCutHoldsTheEnd(t *testing.T) {
	for _, how := range []Cut{CutBoth, CutIn, CutOpen} {
		t.Run(how.String(), func(t *testing.T) {
			t.Parallel()
			w := newWire(t)
			client, server := w.connect()
			w.net.cut("server", how)
			client.Close()
			if got := heard(t, server, 1, never); got != "" {
				t.Errorf("while it lasts %q is heard", got)
			}
			w.net.mend("server")
			if got := heard(t, server, 1, soon); got != "(end)" {
				t.Errorf("after the mend %q is heard", got)
			}
		})
	}
}

// Law: while packets are lost in a direction no connection is made; it is when
// the network is mended, and what was said on it until then arrives.
func TestCutNewConnections(t *testing.T) {
	for _, node := range []string{"client", "server"} {
		for _, how := range []Cut{CutBoth, CutIn, CutOut} {
			t.Run(node+" "+how.String(), func(t *testing.T) {
				t.Parallel()
				w := newWire(t)
				w.net.cut(node, how)
				client := w.dial()
				send(t, client, "hello")
				if w.accept(never) != nil {
					t.Fatal("a connection was made")
				}
				w.net.mend(node)
				server := w.accept(soon)
				if server == nil {
					t.Fatal("no connection was made after the mend")
				}
				if got := heard(t, server, 5, soon); got != "hello" {
					t.Errorf("the server heard %q", got)
				}
			})
		}
		t.Run(node+" half-open", func(t *testing.T) {
			t.Parallel()
			w := newWire(t)
			old, _ := w.connect()
			w.net.cut(node, CutOpen)
			client, server := w.connect()
			send(t, client, "hello")
			send(t, server, "there")
			if got := heard(t, server, 5, soon) + heard(t, client, 5, soon); got != "hellothere" {
				t.Errorf("on a new connection %q was heard", got)
			}
			send(t, old, "hello")
			if got := heard(t, old, 1, never); got != "" {
				t.Errorf("on the old one %q was heard", got)
			}
		})
	}
}

// Law: a refused node's connections are reset at both ends, new ones too, and
// the server hears of none.
func TestCutRefuse(t *testing.T) {
	for _, node := range []string{"client", "server"} {
		t.Run(node, func(t *testing.T) {
			t.Parallel()
			w := newWire(t)
			client, server := w.connect()
			w.net.cut(node, CutRefuse)
			for _, c := range []net.Conn{client, server} {
				if got := heard(t, c, 1, soon); got != "(reset)" {
					t.Errorf("an open connection says %q", got)
				}
			}
			c, err := net.Dial("tcp", w.relay.Addr)
			if err == nil {
				defer c.Close()
				if got := heard(t, c, 1, soon); got != "(reset)" {
					t.Errorf("a new connection says %q", got)
				}
			}
			if w.accept(never) != nil {
				t.Error("a connection was made")
			}
			w.net.mend(node)
			w.connect()
		})
	}
}

// Law: what is slow takes at least its time in each direction, and nothing is
// missing or out of order.
func TestCutSlow(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	client, server := w.connect()
	w.net.cut("server", CutSlow)
	start := time.Now()
	send(t, client, "ping")
	if got := heard(t, server, 4, soon); got != "ping" {
		t.Fatalf("the server heard %q", got)
	}
	send(t, server, "pong")
	if got := heard(t, client, 4, soon); got != "pong" {
		t.Fatalf("the client heard %q", got)
	}
	if d := time.Since(start); d < 2*slow {
		t.Errorf("a round trip took %v", d)
	}
	want := strings.Repeat("0123456789", 20000)
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(client, want)
		sent <- err
	}()
	if got := heard(t, server, len(want), soon); got != want {
		t.Errorf("of %d bytes %d were heard in order", len(want), len(got))
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// A second cut replaces the first, and two nodes' cuts are both in force.
func TestCutsReplaceAndMeet(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	client, server := w.connect()
	w.net.cut("server", CutBoth)
	w.net.cut("server", CutOut)
	send(t, client, "a")
	if got := heard(t, server, 1, soon); got != "a" {
		t.Errorf("after the second cut the server heard %q", got)
	}
	w.net.cut("client", CutOut)
	send(t, client, "b")
	w.net.mend("server")
	if got := heard(t, server, 1, never); got != "" {
		t.Errorf("with the client cut the server heard %q", got)
	}
	w.net.mend("client")
	if got := heard(t, server, 1, soon); got != "b" {
		t.Errorf("after both mends the server heard %q", got)
	}
}

// Silence and Resume are a cut in both directions, seen from anywhere.
func TestSilence(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	r := StartRelay(t, w.relay.Addr)
	w.relay = r
	client, server := w.connect()
	r.Silence()
	r.Silence()
	send(t, client, "a")
	send(t, server, "b")
	if got := heard(t, server, 1, never) + heard(t, client, 1, never); got != "" {
		t.Errorf("while silent %q was heard", got)
	}
	r.Resume()
	if got := heard(t, server, 1, soon) + heard(t, client, 1, soon); got != "ab" {
		t.Errorf("after it %q was heard", got)
	}
}
