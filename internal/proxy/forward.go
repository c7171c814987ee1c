package proxy

import (
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// A Forward says how one request is sent upstream. Its zero values are safe:
// nothing the client claims about itself is believed.
type Forward struct {
	// Target is the raw path and query as they are forwarded, byte for byte. It
	// begins with '/'; a control character, space or '#' in it is refused with
	// 400.
	Target string

	// Host is the Host for an upstream with route.HostClient; empty stands for
	// the request's. X-Forwarded-Host always names the request's.
	Host string

	Client, Peer netip.Addr // Peer goes into X-Forwarded-For, an invalid one does not; Client is for the caller's use
	Scheme       string     // "http" or "https", for X-Forwarded-Proto; empty: by the request's TLS
	TrustedPeer  bool       // X-Forwarded-* and Forwarded of the request are kept and appended to
	Scrubbed     bool       // Scrub was called on the request's header; X-Forwarded-* fields but For, Host and Proto are middlewares' and kept

	Timeout time.Duration // for the whole exchange; 0 for none. A tunnel is free of it

	// OnHead is called once, right before the response head is written, also
	// for answers of this package such as 502 and for 101; not for other 1xx.
	// It may edit h.
	OnHead func(status int, h http.Header)

	// TraceInject adds fields such as traceparent to those sent upstream; they
	// replace the client's of the same name. h is not kept.
	TraceInject func(h http.Header)

	// Result is set before Forward returns, and before it panics.
	Result Result
}

// statusClientGone is what Result.Status says when nobody was left to answer.
const statusClientGone = 499

// Forward sends r to one of u's targets and the response to w, streaming both.
// It answers 400, 408, 413, 502, 504 or 508 itself when nothing was sent yet. A
// response that cannot be completed ends in panic(http.ErrAbortHandler), so
// that it never looks complete (I11), and so does an exchange whose client went
// away; f.Result is set then too. The returned Result is f.Result.
//
// For large bodies to be spliced, w must be net/http's own ResponseWriter or
// pass io.ReaderFrom on to it. Flushing, deadlines and hijacking go
// through http.ResponseController, so wrappers need Unwrap.
func (u *Upstream) Forward(w http.ResponseWriter, r *http.Request, f *Forward) Result {
	x := u.lib.spare.Get().(*exchange)
	x.begin(u, w, r, f)
	defer x.end()
	if fail := x.run(); fail != nil {
		x.fail(fail)
	}
	return f.Result
}

// begin takes the request in. The rest of x is as newExchange or end left it.
func (x *exchange) begin(u *Upstream, w http.ResponseWriter, r *http.Request, f *Forward) {
	f.Result = Result{}
	x.u, x.w, x.r, x.f, x.ctx = u, w, r, f, r.Context()
	if f.Timeout > 0 {
		x.deadline = x.lib.now() + int64(f.Timeout)
	}
}

// end lets go of everything, also when OnHead or w panicked.
func (x *exchange) end() {
	if x.c != nil {
		x.drop()
	}
	if x.upload != nil {
		x.endUpload()
	}
	*x = exchange{
		lib:    x.lib,
		shard:  x.shard,
		out:    x.out[:0],
		small:  x.small,
		listed: x.listed[:0],
		tried:  x.tried[:0],
	}
	if cap(x.out) > 2*largeBuffer {
		x.out = nil
	}
	x.lib.spare.Put(x)
}

// fail answers for a failed exchange, or cuts off what cannot be completed.
func (x *exchange) fail(fail *failure) {
	res := &x.f.Result
	res.Kind, res.Err = fail.kind, fail.err
	if x.c != nil {
		x.drop()
	}
	if x.upload != nil {
		x.endUpload()
	}
	if fail.kind == KindClientGone || x.wrote {
		if !x.wrote {
			res.Status = statusClientGone
		}
		x.abort()
	}
	x.deadline = 0 // may have passed; the answer has time to be taken
	status := fail.status()
	h := x.w.Header()
	text := http.StatusText(status) + "\n"
	h["Content-Type"] = []string{"text/plain; charset=utf-8"}
	h["Content-Length"] = []string{strconv.Itoa(len(text))}
	h["X-Content-Type-Options"] = []string{"nosniff"}
	if x.unread() && x.r.ProtoMajor == 1 {
		// net/http shall neither wait for the body before it answers, nor take
		// what is left of it for a request.
		h["Connection"] = []string{"close"}
		x.linger()
	}
	x.writeHead(status, h)
	if x.r.Method != http.MethodHead {
		n, _ := x.w.Write([]byte(text))
		res.BytesOut += int64(n)
	}
}

// abort ends a response so that it looks incomplete. To a client of HTTP/1.0
// the end of the connection is the end of a body without a length, so there it
// is reset; under TLS without the close_notify that would make the end one in order.
func (x *exchange) abort() {
	if x.wrote && !x.r.ProtoAtLeast(1, 1) {
		if nc, _, err := x.control().Hijack(); err == nil {
			if t, ok := nc.(interface{ NetConn() net.Conn }); ok {
				nc = t.NetConn()
			}
			if l, ok := nc.(interface{ SetLinger(sec int) error }); ok {
				_ = l.SetLinger(0)
			}
			_ = nc.Close()
		}
	}
	panic(http.ErrAbortHandler)
}

// writeHead shows the head to OnHead and hands it on.
func (x *exchange) writeHead(status int, h http.Header) {
	if x.f.OnHead != nil {
		x.f.OnHead(status, h)
	}
	x.f.Result.Status = status
	x.wrote, x.pending = true, true
	x.armDown()
	x.w.WriteHeader(status)
}
