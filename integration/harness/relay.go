package harness

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// String is the cut in a scenario's words.
func (c Cut) String() string {
	return [...]string{"cut both ways", "cut one way in", "cut one way out", "half-open", "refused", "slow"}[c]
}

// slow is how long CutSlow holds what is sent, in each direction.
const slow = 100 * time.Millisecond

// A Relay carries connections to another address, until it is told to break
// them: what was connected may stay connected with nothing coming through, in
// either direction or one, as with a network that drops packets.
//
// It can hold what is sent, not what the kernel says: a connection to it is
// always made, and while it cannot be carried on nothing is heard on it; one
// that is refused is reset as soon as it is made.
type Relay struct {
	Addr string

	to   string // the node that is carried to, in the words of net
	addr string // where it is
	net  *wires
	from func(net.Conn) string // the node that dialled
	wg   sync.WaitGroup
}

// StartRelay listens on a free address and carries what connects to to.
func StartRelay(t testing.TB, to string) *Relay {
	t.Helper()
	return startRelay(t, newWires(), "there", to, func(net.Conn) string { return "" })
}

func startRelay(t testing.TB, w *wires, node, addr string, from func(net.Conn) string) *Relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen for a relay to %s: %v", node, err)
	}
	r := &Relay{Addr: l.Addr().String(), to: node, addr: addr, net: w, from: from}
	r.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.carry(in.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.net.end(r)
		r.wg.Wait()
	})
	return r
}

// Cut breaks what the relay carries, as seen by who is behind it: CutIn loses
// what is sent to it. A second cut replaces the first.
func (r *Relay) Cut(how Cut) { r.net.cut(r.to, how) }

// Mend lets everything through again, also what was sent meanwhile.
func (r *Relay) Mend() { r.net.mend(r.to) }

// Silence stops everything, until Resume.
func (r *Relay) Silence() { r.Cut(CutBoth) }

// Resume lets everything through again, also what was sent meanwhile.
func (r *Relay) Resume() { r.Mend() }

func (r *Relay) carry(in *net.TCPConn) {
	from := ""
	if !r.net.refuses(r.to) { // who is refused dials again and again: it is not asked who it is
		from = r.from(in)
	}
	l := r.net.add(r, from, in)
	defer r.net.drop(l)
	// It takes packets in both directions to make a connection.
	if !r.net.await(l, onward, back) {
		return
	}
	c, err := net.DialTimeout("tcp", r.addr, 10*time.Second)
	if err != nil {
		l.reset()
		return
	}
	out := c.(*net.TCPConn)
	if !r.net.reached(l, out) {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { r.net.pump(l, onward, out, in) })
	wg.Go(func() { r.net.pump(l, back, in, out) })
	wg.Wait()
}

// A direction is one of the two in which a connection carries bytes.
type direction int

const (
	onward direction = iota // from who dialled
	back
)

// A link is one connection that a relay carries.
type link struct {
	relay    *Relay
	from, to string
	born     int // its place among connections and cuts
	in       *net.TCPConn
	ctx      context.Context // ends with the connection
	cancel   context.CancelFunc

	mu  sync.Mutex
	out *net.TCPConn // nil until it is reached
}

// reset ends the connection so that both sides see it reset.
func (l *link) reset() {
	l.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range []*net.TCPConn{l.in, l.out} {
		if c != nil {
			_ = c.SetLinger(0) // fails on what is closed, which is what is wanted
			c.Close()
		}
	}
}

// wires are the connections between nodes, by whatever relays, and how each
// node is cut off.
type wires struct {
	mu      sync.Mutex
	cuts    map[string]cutting
	links   map[*link]bool
	ended   map[*Relay]bool
	next    int
	changed chan struct{} // closed at each change of cuts
}

// A cutting is how a node is cut off, and since when among connections.
type cutting struct {
	how  Cut
	born int
}

func newWires() *wires {
	return &wires{cuts: map[string]cutting{}, links: map[*link]bool{}, ended: map[*Relay]bool{}, changed: make(chan struct{})}
}

func (w *wires) cut(node string, how Cut) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next++
	w.cuts[node] = cutting{how: how, born: w.next}
	w.change()
	if how != CutRefuse {
		return
	}
	for l := range w.links {
		if l.from == node || l.to == node {
			l.reset()
		}
	}
}

func (w *wires) mend(node string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.cuts, node)
	w.change()
}

func (w *wires) change() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// end resets what a relay carries and whatever it will accept yet.
func (w *wires) end(r *Relay) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended[r] = true
	for l := range w.links {
		if l.relay == r {
			l.reset()
		}
	}
}

// add notes a connection, which is reset at once when it is refused.
func (w *wires) add(r *Relay, from string, in *net.TCPConn) *link {
	ctx, cancel := context.WithCancel(context.Background())
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next++
	l := &link{relay: r, from: from, to: r.to, born: w.next, in: in, ctx: ctx, cancel: cancel}
	w.links[l] = true
	if w.ended[r] || w.refused(l.from) || w.refused(l.to) {
		l.reset()
	}
	return l
}

func (w *wires) refuses(node string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.refused(node)
}

func (w *wires) refused(node string) bool {
	c, ok := w.cuts[node]
	return ok && c.how == CutRefuse
}

// reached notes the other end of a connection; false when it was reset meanwhile.
func (w *wires) reached(l *link, out *net.TCPConn) bool {
	l.mu.Lock()
	l.out = out
	l.mu.Unlock()
	if l.ctx.Err() != nil {
		l.reset()
		return false
	}
	return true
}

// drop closes a connection that is carried no more.
func (w *wires) drop(l *link) {
	w.mu.Lock()
	delete(w.links, l)
	w.mu.Unlock()
	l.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.in.Close()
	if l.out != nil {
		l.out.Close()
	}
}

// await waits until bytes may pass in the directions; false when the connection
// was reset. What is slow waits its time.
func (w *wires) await(l *link, ds ...direction) bool {
	waited := false
	for {
		w.mu.Lock()
		changed := w.changed
		held, late := false, false
		for _, d := range ds {
			h, s := w.state(l, d)
			held, late = held || h, late || s
		}
		w.mu.Unlock()
		if l.ctx.Err() != nil {
			return false
		}
		switch {
		case held:
			select {
			case <-changed:
			case <-l.ctx.Done():
			}
		case late && !waited:
			waited = true
			select {
			case <-time.After(slow * time.Duration(len(ds))):
			case <-l.ctx.Done():
			}
		default:
			return true
		}
	}
}

// state tells whether bytes of a connection are held in a direction, or slow.
func (w *wires) state(l *link, d direction) (held, late bool) {
	for _, end := range []struct {
		node  string
		sends bool
	}{{l.from, d == onward}, {l.to, d == back}} {
		c, ok := w.cuts[end.node]
		if !ok {
			continue
		}
		switch c.how {
		case CutBoth:
			held = true
		case CutIn:
			held = held || !end.sends
		case CutOut:
			held = held || end.sends
		case CutOpen:
			held = held || l.born < c.born
		case CutSlow:
			late = true
		case CutRefuse: // it was reset
		}
	}
	return held, late
}

// pump carries the bytes of one direction, and its end. An end is told as
// bytes are: who is cut off does not hear that the other side is gone.
func (w *wires) pump(l *link, d direction, dst, src *net.TCPConn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if !w.await(l, d) {
			return
		}
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				if w.await(l, 1-d) {
					l.reset()
				}
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			if dst.CloseWrite() != nil {
				l.reset()
			}
			return
		case err != nil:
			l.reset()
			return
		}
	}
}
