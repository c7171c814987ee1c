package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

const (
	maxReplay  = 16 << 10               // a body of known size up to this is read first and can be sent twice
	maxInfos   = 16                     // 1xx heads of one response
	maxHops    = 16                     // times that a request may have come through routerd before
	maxStalls  = 3                      // connects of one request that may run into their timeout
	maxDown    = 8                      // targets known to be down that one request tries
	lingerTime = 500 * time.Millisecond // for a client that still sends a body nobody wants
)

// What an exchange waits for.
type phase uint8

const (
	forHead     phase = iota // of a response
	forContinue              // 100, or any head
	forBody
)

// A failure is an error and the sort of it.
type failure struct {
	kind ErrKind
	err  error
}

var (
	errClientStalled   = errors.New("client stalled")
	errUpstreamStalled = errors.New("upstream stalled")
	errNoResponse      = errors.New("no response head in time")
	errOverall         = errors.New("exchange took too long")
	errNoContinue      = errors.New("no 100 Continue") // not a failure
	errLoop            = errors.New("the request goes round in a loop: an upstream leads back to routerd")
)

func (f *failure) status() int {
	switch {
	case f.err == errClientStalled:
		return http.StatusRequestTimeout
	case f.err == errLoop:
		return http.StatusLoopDetected
	case f.kind == KindRequest:
		return http.StatusBadRequest
	case f.kind == KindTooLarge:
		return http.StatusRequestEntityTooLarge
	case f.kind == KindTimeout:
		return http.StatusGatewayTimeout
	default:
		return http.StatusBadGateway
	}
}

// An exchange is one request and its response on their way. It is pooled.
type exchange struct {
	lib   *Library
	shard uint32 // of idle connections and turns; stays with the object, and so mostly with a processor

	u   *Upstream
	w   http.ResponseWriter
	r   *http.Request
	f   *Forward
	ctx context.Context

	c       *conn
	upload  *upload
	framing framing
	expect  bool   // the client waits for 100 Continue, the upstream is asked
	upgrade string // protocol asked for
	replay  bool   // the whole request is in out

	out    []byte // request head, and body when replay
	small  []byte // body when replay
	listed []string
	trace  http.Header
	tried  []*target

	deadline int64 // overall; 0 for none
	since    int64 // when the present wait began
	waits    phase
	got      bool // a byte came on this connection for this request
	eof      bool // the upstream ended the connection in order
	unwatch  func() bool

	wrote   bool  // the final head was handed to w
	pending bool  // something was handed to w and not flushed
	downArm int64 // when writes to the client time out

	limited io.LimitedReader
}

func newExchange(l *Library) *exchange {
	return &exchange{lib: l, shard: l.next.Add(1) & uint32(l.shards-1)}
}

// control returns a controller of w. It is inlined, and so not allocated.
func (x *exchange) control() *http.ResponseController { return http.NewResponseController(x.w) }

// run carries the exchange to its end. nil: the response is complete.
func (x *exchange) run() *failure {
	if fail := x.prepare(); fail != nil {
		return fail
	}
	if fail := x.reach(); fail != nil {
		return fail
	}
	if x.c.head.status == http.StatusSwitchingProtocols {
		return x.tunnel()
	}
	if fail := x.respond(); fail != nil {
		return fail
	}
	x.release()
	return nil
}

// prepare looks at the request, and reads its body when that is small.
func (x *exchange) prepare() *failure {
	r := x.r
	x.framing = framingOf(r)
	x.replay = !x.framing.chunked && x.framing.length == 0
	if x.replay {
		if r.ProtoMajor == 1 {
			x.upgrade = upgradeOf(r.Header)
		}
	} else {
		x.expect = r.ProtoAtLeast(1, 1) && hasToken(r.Header["Expect"], "100-continue")
	}
	if x.f.TraceInject != nil {
		x.trace = make(http.Header, 2)
		x.f.TraceInject(x.trace)
	}
	if n := x.framing.length; n > 0 && n <= maxReplay && !x.expect {
		if cap(x.small) < int(n) {
			x.small = make([]byte, max(int(n), 1<<10))
		}
		x.small = x.small[:n]
		if fail := x.readSmall(); fail != nil {
			return fail
		}
		x.replay = true
	}
	return nil
}

// readSmall reads a whole body into x.small. The client may pause for as long
// as a body of any size may; otherwise a few bytes that never come would hold the
// request forever. The deadline ends with the body.
func (x *exchange) readSmall() *failure {
	for got := 0; got < len(x.small); {
		at := x.lib.now() + int64(x.u.def.IdleTimeout)
		if x.deadline > 0 {
			at = min(at, x.deadline)
		}
		_ = x.control().SetReadDeadline(x.lib.at(at))
		n, err := x.r.Body.Read(x.small[got:])
		if got += n; err != nil && got < len(x.small) {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return clientFailure(err)
		}
	}
	return nil
}

// reach gets the head of a response, from whichever target takes the request.
func (x *exchange) reach() *failure {
	var last *failure
	for stalls, down := 0, 0; ; {
		t := x.u.pick(x.shard, x.tried)
		if t == nil {
			return last
		}
		if t.downUntil.Load() != 0 {
			// Many that are known to be down, or a few that swallow connects,
			// shall not hold a request for long.
			if down++; down > maxDown && last != nil {
				return last
			}
		}
		x.f.Result.Target = t.url
		fail, stale := x.try(t, false)
		for ; stale; fail, stale = x.try(t, true) {
			x.drop()
		}
		if fail == nil || x.c != nil || fail.kind == KindClientGone || fail.kind == KindRequest {
			return fail
		}
		// It took no connection.
		last = fail
		if fail.kind == KindTimeout {
			if stalls++; stalls == maxStalls {
				return fail
			}
		}
		x.tried = append(x.tried, t)
		if x.deadline > 0 && x.lib.now() >= x.deadline {
			return &failure{KindTimeout, errOverall}
		}
	}
}

// try sends the request to t and reads the head of the response. stale: the
// connection had been idle, was closed meanwhile, and the request may be sent
// again. Without a connection, x.c is nil.
func (x *exchange) try(t *target, fresh bool) (fail *failure, stale bool) {
	x.f.Result.Attempts++
	var err error
	if x.out, err = x.appendHead(x.out[:0], t); err != nil {
		return &failure{KindRequest, err}, false
	}
	if x.replay && x.framing.length > 0 {
		x.out = append(x.out, x.small...)
	}
	if x.deadline > 0 && x.lib.now() >= x.deadline {
		return &failure{KindTimeout, errOverall}, false
	}
	if fail := x.connect(t, fresh); fail != nil {
		return fail, false
	}
	x.got, x.eof = false, false
	x.c.armWrite(x.lib, int64(x.left(x.u.def.IdleTimeout)))
	if n, err := x.c.nc.Write(x.out); err != nil {
		return x.broken(fmt.Errorf("send request: %w", err)), x.mayRetry(n == 0)
	}
	x.since = x.lib.now()
	switch {
	case x.replay:
		x.waits = forHead
		x.f.Result.BytesIn = x.framing.length
	case x.expect:
		x.waits = forContinue
	default:
		x.waits = forHead
		x.startUpload()
	}
	if fail := x.finalHead(); fail != nil {
		return fail, fail.kind == KindUpstreamReset && x.mayRetry(false)
	}
	return nil, false
}

// mayRetry tells whether the request may be sent once more after its connection
// broke: only on one that may just have been closed for having been idle.
func (x *exchange) mayRetry(unsent bool) bool {
	return x.c.reused && !x.got && x.upload == nil && (unsent || idempotent(x.r)) && x.ctx.Err() == nil
}

func idempotent(r *http.Request) bool {
	switch r.Method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return r.Header["Idempotency-Key"] != nil || r.Header["X-Idempotency-Key"] != nil
}

// left is d, or what is left of the exchange's time when that is less.
func (x *exchange) left(d time.Duration) time.Duration {
	if x.deadline > 0 {
		d = min(d, time.Duration(x.deadline-x.lib.now()))
	}
	return d
}

// connect gives x a connection to t.
func (x *exchange) connect(t *target, fresh bool) *failure {
	if !fresh {
		if x.c = t.get(x.shard); x.c != nil {
			return nil
		}
	}
	c, err := t.dial(x.ctx, x.left(x.u.def.ConnectTimeout))
	switch {
	case err == nil:
		x.c = c
		return nil
	case x.ctx.Err() != nil:
		return &failure{KindClientGone, fmt.Errorf("connect: %w", context.Cause(x.ctx))}
	case dialTimeout(err):
		return &failure{KindTimeout, fmt.Errorf("connect: %w", err)}
	default:
		return &failure{KindConnect, fmt.Errorf("connect: %w", err)}
	}
}

// finalHead reads heads until one ends the waiting, and passes on those before.
func (x *exchange) finalHead() *failure {
	for range maxInfos {
		if fail := x.readHead(); fail != nil {
			return fail
		}
		switch h := &x.c.head; {
		case h.status >= 200:
			return nil
		case h.status == http.StatusSwitchingProtocols:
			if x.upgrade == "" || h.upgrade == "" {
				return &failure{KindBadResponse, errors.New("response: 101 that was not asked for")}
			}
			return nil
		case h.status == http.StatusContinue:
			if x.waits == forContinue {
				x.goAhead()
			}
		default:
			x.inform(h)
		}
	}
	return &failure{KindBadResponse, fmt.Errorf("response: more than %d heads of 1xx", maxInfos)}
}

// goAhead lets the client send its body. On HTTP/1 net/http would ask for it by
// itself when the upload first reads, in the middle of what inform writes.
func (x *exchange) goAhead() {
	x.waits = forHead
	x.since = x.lib.now()
	if x.r.ProtoMajor == 1 {
		x.writeInfo(http.StatusContinue, nil)
	}
	x.startUpload()
}

// inform passes a 1xx head on.
func (x *exchange) inform(h *head) {
	if x.r.ProtoAtLeast(1, 1) {
		x.writeInfo(h.status, h.fields)
	}
}

// writeInfo writes a 1xx head, with none of the fields that w holds for the final
// one.
func (x *exchange) writeInfo(status int, fields []field) {
	to := x.w.Header()
	kept := to.Clone()
	clear(to)
	for _, f := range fields {
		to[f.name] = append(to[f.name], f.value)
	}
	if x.r.ProtoMajor == 1 { // HTTP/2 would reset a stream whose final head comes after the deadline
		x.armDown()
	}
	x.w.WriteHeader(status)
	clear(to)
	for name, values := range kept {
		to[name] = values
	}
}

// readHead reads one head into x.c.head.
func (x *exchange) readHead() *failure {
	c, o := x.c, &x.lib.o
	for seen := 0; ; {
		if b := c.unused(); len(b) > 0 {
			// Heads of one upstream often repeat to the byte.
			if old := c.head.text; old != "" && len(b) >= len(old) && string(b[:len(old)]) == old {
				c.r += len(old)
				return nil
			}
			n, err := scanHead(b, seen)
			if err == nil && (n > o.MaxHeadBytes || n == 0 && len(b) >= o.MaxHeadBytes) {
				err = fmt.Errorf("longer than %d bytes", o.MaxHeadBytes)
			}
			if err == nil && n > 0 {
				err = c.head.parse(string(b[:n]), o.MaxHeadFields)
			}
			if err != nil {
				return &failure{KindBadResponse, fmt.Errorf("response head: %w", err)}
			}
			if n > 0 {
				c.r += n
				return nil
			}
			seen = len(b)
		}
		if !c.room() {
			c.grow()
		}
		if fail := x.fill(); fail != nil {
			return fail
		}
	}
}

// unread tells whether some of the request's body is still to come from the client.
func (x *exchange) unread() bool {
	if x.upload != nil {
		return !x.upload.drained.Load()
	}
	return !x.replay
}

func (p *upload) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// endUpload ends the upload and waits for it.
func (x *exchange) endUpload() {
	p := x.upload
	if !p.ended() {
		p.stop.Store(true)
		p.c.kill()
		if !p.drained.Load() {
			// Nothing but a deadline ends a read of the client's body.
			if x.control().SetReadDeadline(longAgo()) != nil {
				_ = x.r.Body.Close()
			}
		}
		<-p.done
	}
	x.f.Result.BytesIn = p.sent.Load()
}

// linger lets net/http read what a client still sends for a while, so that
// closing the connection does not destroy the response on its way.
func (x *exchange) linger() {
	_ = x.control().SetReadDeadline(time.Now().Add(lingerTime))
}

// drop closes the connection.
func (x *exchange) drop() {
	c := x.c
	x.c = nil
	if x.unwatch != nil {
		x.unwatch()
		x.unwatch = nil
	}
	c.kill()
	c.shrink(x.lib)
}

// release ends a complete exchange and keeps the connection, if it can carry another.
func (x *exchange) release() {
	c := x.c
	keep := c.head.reusable() && !x.eof && c.r == c.w && (x.replay || x.upload != nil)
	if p := x.upload; p != nil {
		if p.drained.Load() && !p.ended() {
			// The response overtook the return of the last write.
			t := time.NewTimer(lingerTime)
			select {
			case <-p.done:
			case <-t.C:
			}
			t.Stop()
		}
		x.endUpload()
		keep = keep && p.whole
	}
	if x.unread() && x.r.ProtoMajor == 1 {
		x.linger()
	}
	x.upload = nil
	if x.unwatch != nil {
		keep = x.unwatch() && keep
		x.unwatch = nil
	}
	if !keep {
		x.drop()
		return
	}
	x.c = nil
	c.shrink(x.lib)
	c.target.put(x.shard, c)
}
