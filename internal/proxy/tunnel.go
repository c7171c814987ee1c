package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// A tunnel is what is left of an exchange after 101: two connections, and bytes
// both ways. It outlives every switch, and ends with either side or the
// Library.
type tunnel struct {
	up   *conn
	down net.Conn
	once sync.Once
}

// cut closes both sides; copies end at once.
func (t *tunnel) cut() {
	t.once.Do(func() {
		t.up.kill()
		_ = t.down.Close()
	})
}

// tunnel takes the client's connection over and copies both ways until both
// have ended, one has failed, or one has ended and the other moves nothing for
// IdleTimeout to twice that. nil is returned after an orderly end.
func (x *exchange) tunnel() *failure {
	h := &x.c.head
	if !strings.EqualFold(h.upgrade, x.upgrade) {
		return &failure{KindBadResponse, fmt.Errorf("response: 101 to %.40q, asked for %.40q", h.upgrade, x.upgrade)}
	}
	if x.unwatch != nil {
		unharmed := x.unwatch()
		x.unwatch = nil
		if !unharmed {
			return x.broken(nil)
		}
	}
	to := x.w.Header()
	x.copyFields(to, h)
	delete(to, "Content-Length")
	if to["Content-Type"] == nil {
		delete(to, "Content-Type")
	}
	if x.f.OnHead != nil {
		x.f.OnHead(h.status, to)
	}
	to["Connection"] = []string{"Upgrade"}
	to["Upgrade"] = []string{h.upgrade}

	down, brw, err := x.control().Hijack()
	if err != nil {
		return &failure{KindRequest, fmt.Errorf("take over the client's connection: %w", err)}
	}
	x.wrote = true
	x.f.Result.Status = h.status
	x.f.Result.Upgraded = true
	t := &tunnel{up: x.c, down: down}
	defer t.cut()
	if !x.lib.enter(t) {
		return &failure{KindUpstreamReset, errors.New("library is closed")}
	}
	defer x.lib.leave(t)
	_ = x.c.raw.SetDeadline(time.Time{})
	_ = down.SetDeadline(time.Time{})

	var b bytes.Buffer
	b.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	_ = to.Write(&b)
	b.WriteString("\r\n")
	b.Write(x.c.unused())
	if _, err := down.Write(b.Bytes()); err != nil {
		return x.clientBroken(err)
	}
	early, _ := brw.Reader.Peek(brw.Reader.Buffered())
	return x.pump(t, early)
}

func (l *Library) enter(t *tunnel) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.tunnels[t] = struct{}{}
	}
	return !l.closed
}

func (l *Library) leave(t *tunnel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.tunnels, t)
}

// pump copies both ways. early was read from the client already.
func (x *exchange) pump(t *tunnel, early []byte) *failure {
	idle := x.u.def.IdleTimeout
	res := &x.f.Result
	res.BytesOut = int64(len(x.c.unused()))
	var wg sync.WaitGroup
	var in int64
	var inErr error
	wg.Add(1)
	go func() {
		defer wg.Done()
		if len(early) > 0 {
			var n int
			n, inErr = t.up.nc.Write(early)
			in = int64(n)
		}
		if inErr == nil {
			var n int64
			n, inErr = copyHalf(t.up.nc, t.down, idle)
			in += n
		}
		t.halfClose(t.up.nc, t.down, inErr, idle)
	}()
	out, outErr := copyHalf(t.down, t.up.nc, idle)
	t.halfClose(t.down, t.up.nc, outErr, idle)
	wg.Wait()
	res.BytesIn += in
	res.BytesOut += out
	switch {
	case outErr == nil && inErr == nil:
		return nil
	case errors.Is(outErr, net.ErrClosed) || outErr == nil:
		return x.tunnelFailure(KindClientGone, inErr)
	default:
		return x.tunnelFailure(KindUpstreamReset, outErr)
	}
}

// copyHalf copies until src ends. Where halfClose set a deadline, that is renewed
// for as long as something moved before it came.
func copyHalf(dst, src net.Conn, idle time.Duration) (n int64, err error) {
	for {
		moved, err := io.Copy(dst, src)
		n += moved
		if moved == 0 || !isTimeout(err) {
			return n, err
		}
		_ = src.SetReadDeadline(time.Now().Add(idle))
	}
}

// halfClose tells dst that src has ended, and gives the other direction idle
// to move something or end too. After an error, or where half cannot be closed, all ends.
func (t *tunnel) halfClose(dst, src net.Conn, err error, idle time.Duration) {
	cw, ok := dst.(interface{ CloseWrite() error })
	if err != nil || !ok || cw.CloseWrite() != nil {
		t.cut()
		return
	}
	_ = dst.SetReadDeadline(time.Now().Add(idle))
}

// tunnelFailure records how a tunnel failed. There is nothing to answer or cut
// off any more: the connection is not net/http's.
func (x *exchange) tunnelFailure(kind ErrKind, err error) *failure {
	x.f.Result.Kind, x.f.Result.Err = kind, err
	return nil
}
