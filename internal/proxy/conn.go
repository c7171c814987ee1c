package proxy

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"syscall"
	"time"
)

// Sizes of buffers. A connection keeps the small one; the large ones are
// shared and borrowed for bodies.
const (
	smallBuffer = 4 << 10
	largeBuffer = 32 << 10
)

// A conn is one connection to a target. It belongs to one exchange, or lies
// idle in its target's pool.
type conn struct {
	target *target
	nc     net.Conn        // what is read and written: TLS, or the socket itself
	raw    net.Conn        // the socket; closing it ends everything at once
	tcp    *net.TCPConn    // raw, when it is one
	tls    *tls.Conn       // nc, when it is one
	ctl    syscall.RawConn // of raw, for looking without reading; may be nil

	buf   []byte // buf[r:w] was read and not used
	r, w  int
	small []byte
	large *[largeBuffer]byte // buf's array, when borrowed

	head      head  // the last one; its text is compared with the next before parsing
	readArm   int64 // when reads time out; see exchange.arm
	writeArm  int64 // likewise writes
	idleSince int64
	reused    bool // came from the pool

	peek   func(fd uintptr)
	peekB  [1]byte
	peekN  int
	peekOK bool // peekN is valid: data, or 0 for the end; otherwise nothing is there
}

func newConn(t *target, raw net.Conn) *conn {
	c := &conn{target: t, nc: raw, raw: raw, small: make([]byte, smallBuffer)}
	c.buf = c.small
	c.tcp, _ = raw.(*net.TCPConn)
	if sc, ok := raw.(syscall.Conn); ok {
		c.ctl, _ = sc.SyscallConn()
	}
	c.peek = func(fd uintptr) { c.peekN, c.peekOK = peekFD(fd, c.peekB[:]) }
	return c
}

// readable tells whether a read of the socket would return at once, with data
// or an end; known is false when that cannot be told.
func (c *conn) readable() (ready, known bool) {
	if c.ctl == nil || c.ctl.Control(c.peek) != nil {
		return false, false
	}
	return c.peekOK, true
}

// connected tells whether the socket still has a peer, be it one that sends no
// more: a reset and TCP's own timeout end that, and so does kill.
func (c *conn) connected() bool {
	var is bool
	return c.ctl != nil && c.ctl.Control(func(fd uintptr) { is = hasPeer(fd) }) == nil && is
}

// quiet tells whether an idle connection may carry another request: it is open
// and nothing was sent on it that nobody asked for, which would be taken for
// the next response.
func (c *conn) quiet() bool {
	if c.tls != nil {
		// What TLS has read already does not show on the socket. A deadline in
		// the past gives just that.
		if c.nc.SetReadDeadline(longAgo()) != nil {
			return false
		}
		c.readArm = 0
		if n, err := c.nc.Read(c.buf[:1]); n > 0 || !isTimeout(err) {
			return false
		}
	}
	ready, known := c.readable()
	return !ready && (known || c.ctl == nil)
}

// kill closes the socket, from any goroutine: whoever reads or writes gets an
// error at once, and no later deadline undoes it.
func (c *conn) kill() { _ = c.raw.Close() }

// unused is the data that was read and not used.
func (c *conn) unused() []byte { return c.buf[c.r:c.w] }

// room makes room in buf to read into by moving what is unused, and tells
// whether there is any.
func (c *conn) room() bool {
	if c.r == c.w {
		c.r, c.w = 0, 0
	} else if c.r > 0 && c.w == len(c.buf) {
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	}
	return c.w < len(c.buf)
}

// grow doubles buf, for a head that does not fit.
func (c *conn) grow() {
	b := make([]byte, 2*len(c.buf))
	c.w = copy(b, c.unused())
	c.r = 0
	c.buf = b
}

// borrow reads on into a large buffer of the library.
func (c *conn) borrow(l *Library) {
	if len(c.buf) >= largeBuffer {
		return
	}
	c.large = l.borrow()
	c.w = copy(c.large[:], c.unused())
	c.r = 0
	c.buf = c.large[:]
}

// shrink puts the small buffer back in place. What was unused is dropped.
func (c *conn) shrink(l *Library) {
	c.buf, c.r, c.w = c.small, 0, 0
	if c.large != nil {
		l.buffers.Put(c.large)
		c.large = nil
	}
}

func longAgo() time.Time { return time.Unix(1, 0) }

// isTimeout tells whether err is of a deadline that was set here. TCP's own timeout
// is none: it says Timeout, too, but the connection is dead, and whoever reads it
// again is told of an end in order (I11).
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
