package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// tick is how long an exchange waits for its upstream before it sets up what a
// fast one never needs: notice of the client's going away, exact deadlines.
// Until then deadlines that are left from earlier exchanges of the connection
// do.
const tick = int64(200 * time.Millisecond)

// fill reads once into c's buffer, which has room. It waits as long as limit
// says, and for as long as the client is there.
func (x *exchange) fill() *failure {
	c := x.c
	for empty := 0; ; {
		x.armRead(x.lib.now())
		n, err := c.nc.Read(c.buf[c.w:])
		if n > 0 {
			c.w += n
			x.got = true
			return nil
		}
		switch {
		case err == nil:
			if empty++; empty > 100 {
				return x.broken(io.ErrNoProgress)
			}
		case isTimeout(err):
			if fail := x.waited(); fail != nil {
				return fail
			}
		default:
			if err == io.EOF {
				x.eof = true
				err = io.ErrUnexpectedEOF
			}
			return x.broken(fmt.Errorf("read response: %w", err))
		}
	}
}

// waited is called when a read timed out. nil: wait on.
func (x *exchange) waited() *failure {
	if x.ctx.Err() != nil {
		return x.broken(nil)
	}
	at, why := x.limit()
	if x.lib.now() >= at {
		if why != errNoContinue {
			return &failure{KindTimeout, why}
		}
		x.goAhead()
	}
	if x.unwatch == nil {
		x.unwatch = context.AfterFunc(x.ctx, x.c.kill)
	}
	if x.wrote {
		// It is not the client that is waited for. On HTTP/2 a write deadline
		// that passes resets the stream even so.
		x.armDown()
	}
	return nil
}

// limit is when the present wait ends, and what that means.
func (x *exchange) limit() (at int64, why error) {
	def, p := &x.u.def, x.upload
	switch {
	case x.waits == forContinue:
		at, why = x.since+int64(x.lib.o.ExpectTimeout), errNoContinue
	case p != nil && (!p.ended() || p.writing.Load()):
		at, why = max(x.since, p.progress.Load())+int64(def.IdleTimeout), errClientStalled
		if x.waits == forBody || p.writing.Load() {
			why = errUpstreamStalled
		}
	case x.waits == forBody:
		at, why = x.since+int64(def.IdleTimeout), errUpstreamStalled
	default:
		sent := x.since
		if p != nil {
			sent = max(sent, p.progress.Load())
		}
		at, why = sent+int64(def.ResponseTimeout), errNoResponse
	}
	if x.deadline > 0 && x.deadline < at {
		at = x.deadline
		if why != errClientStalled { // who is still sending used the time up
			why = errOverall
		}
	}
	return at, why
}

// armRead sees to it that reads time out at the limit or somewhat earlier; then
// waited is asked. So a busy connection's deadline is hardly ever set anew.
func (x *exchange) armRead(now int64) {
	at, _ := x.limit()
	early := now + (at-now)/8*7
	if x.unwatch == nil && at > now+tick {
		at, early = now+tick, now+tick/2
	}
	if c := x.c; c.readArm > at || c.readArm < early {
		c.readArm = at
		_ = c.nc.SetReadDeadline(x.lib.at(at))
	}
}

// armWrite sees to it that writes time out after idle, or up to an eighth later.
func (c *conn) armWrite(l *Library, idle int64) {
	if now := l.now(); c.writeArm < now+idle || c.writeArm > now+idle+idle/8 {
		c.writeArm = now + idle + idle/8
		_ = c.nc.SetWriteDeadline(l.at(c.writeArm))
	}
}

// broken says why the connection failed: for an error of its own, or
// because somebody killed it.
func (x *exchange) broken(err error) *failure {
	if p := x.upload; p != nil {
		if fail := p.failed.Load(); fail != nil {
			return fail
		}
	}
	switch cause := context.Cause(x.ctx); {
	case errors.Is(cause, context.DeadlineExceeded):
		return &failure{KindTimeout, cause}
	case cause != nil:
		return &failure{KindClientGone, cause}
	case isTimeout(err):
		return &failure{KindTimeout, err}
	}
	return &failure{KindUpstreamReset, err}
}
