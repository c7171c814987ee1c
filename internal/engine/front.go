package engine

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/route"
)

// A state is what one request needs, used again for later ones. Which shard of
// the counters it writes to stays with it, so that a processor writes mostly
// its own.
type state struct {
	front *Switch
	shard int

	w        http.ResponseWriter
	r        *http.Request
	counters *engineCounters // what outlives a switch holds these, not the engine
	head     Head
	passport passport
	decision Decision
	exchange middleware.Exchange
	forward  proxy.Forward
	record   Record
	ran      int  // middlewares whose Request was called, and whose Response still has to be
	begun    bool // a response head was written, or handed to be written
	who      struct{ route, revision, epoch, group, instance said }

	onHead func(status int, h http.Header) // begin and finishHead, made once
}

func newState(s *Switch, shard int) *state {
	st := &state{front: s, shard: shard}
	st.onHead = func(status int, h http.Header) {
		st.begun = true
		st.finishHead(status, h)
	}
	return st
}

// ServeHTTP serves one request by one revision (I1).
func (s *Switch) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	st := s.states.Get().(*state)
	st.begin(w, r)
	defer st.end()
	st.serve(s.serving.Load())
}

func (st *state) begin(w http.ResponseWriter, r *http.Request) {
	st.w, st.r = w, r
	st.ran, st.begun = 0, false
	st.record = Record{Context: r.Context(), Start: time.Now(), Method: r.Method, Host: r.Host, Proto: r.Proto, Scheme: "http"}
	if r.TLS != nil {
		st.record.Scheme = "https"
	}
}

// end says what became of the request, counts it and gives the state back. It
// is deferred: a panic that is no one's wish becomes a 500, or cuts the
// response off when it was begun, and http.ErrAbortHandler goes on to net/http
// (I11).
func (st *state) end() {
	v := recover()
	abort := false
	if v != nil {
		abort = st.recovered(v)
	}
	rec := &st.record
	rec.Duration = time.Since(rec.Start)
	if st.counters != nil {
		st.counters.count(rec, st.decision.entry, st.shard)
	}
	if o := st.front.options.Observer; o != nil {
		o.Request(rec)
	}
	front := st.front
	st.w, st.r, st.counters = nil, nil, nil
	st.head, st.passport, st.exchange, st.forward, st.record = Head{}, passport{}, middleware.Exchange{}, proxy.Forward{}, Record{}
	st.decision.entry, st.decision.Route = nil, nil
	front.states.Put(st)
	if abort {
		panic(http.ErrAbortHandler)
	}
}

// recovered tells whether the response must be cut off.
func (st *state) recovered(v any) (abort bool) {
	rec := &st.record
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		st.takeResult(&st.forward.Result)
		return true
	}
	rec.Panic, rec.Stack = v, debug.Stack()
	rec.Kind, rec.Err = "panic", fmt.Errorf("panic: %v", v)
	if st.begun {
		return true
	}
	st.ran = 0 // what panicked is not asked again
	clear(st.w.Header())
	st.answerError(http.StatusInternalServerError, "internal error")
	return false
}

func (st *state) serve(v *served) {
	peer := peerOf(st.r.RemoteAddr)
	client, trusted := clientOf(peer, st.r.Header["X-Forwarded-For"], st.front.options.TrustedProxies)
	// Before anything decides by the header: what the peer may not claim, and
	// what will not be forwarded, shall not choose the route either.
	proxy.Scrub(st.r.Header, trusted)
	st.takeTokens()
	path, query := target(st.r)
	st.head = Head{
		Method: st.r.Method, Host: route.FoldHost(st.r.Host), Path: st.merged(path), RawQuery: query,
		Header: st.r.Header, Client: client, Paths: st.front.options.Path,
	}
	rec := &st.record
	rec.Path, rec.Client, rec.Peer = path, client, peer
	if v == nil {
		st.front.unserved.Add(1)
		rec.Kind, rec.Err = "not-ready", errNotReady
		st.w.Header().Set("Retry-After", "1")
		st.answerError(http.StatusServiceUnavailable, "no revision is committed yet")
		return
	}
	rec.Epoch, rec.Group, rec.Instance = v.Epoch, v.Group, v.Instance
	e := st.choose(v)
	if e == nil {
		st.refuseBehind()
		return
	}
	st.counters = e.counters
	rec.Revision, rec.Candidate = e.ref, e != v.Stable && e == v.Candidate
	d := &st.decision
	e.Decide(&st.head, d)
	if d.Status != 0 {
		st.refuse(e, d)
		return
	}
	d.letGo()
	rec.Route = d.Name
	if most := st.front.options.MaxBody; most > 0 {
		if st.r.ContentLength > most {
			rec.Kind = "too-large"
			st.answerError(http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", most))
			return
		}
		if st.r.Body != nil && st.r.Body != http.NoBody {
			st.r.Body = http.MaxBytesReader(st.w, st.r.Body, most)
		}
	}
	st.carryOut(trusted)
}

// merged is a path as it is matched and forwarded: without runs of slashes,
// where the listener merges them (I8).
func (st *state) merged(path string) string {
	if st.front.options.Path.MergeSlashes {
		return route.MergeSlashes(path)
	}
	return path
}

const errNotReady = fault("no revision is committed yet")

// refuse answers what no route took.
func (st *state) refuse(e *Engine, d *Decision) {
	rec, h := &st.record, &st.head
	switch d.Status {
	case http.StatusMethodNotAllowed:
		rec.Kind = "method"
		st.w.Header().Set("Allow", strings.Join(e.Allow(h, d), ", "))
		st.answerError(d.Status, fmt.Sprintf("no route takes %s for %s", printable(h.Method), printable(h.Path)))
	case http.StatusBadRequest:
		rec.Kind, rec.Err = "bad-path", d.Fault
		st.answerError(d.Status, d.Fault.Error())
	default:
		rec.Kind = "no-route"
		st.answerError(d.Status, fmt.Sprintf("no route for %s %s", printable(h.Method), printable(h.Path)))
	}
}

// printable bounds and quotes what a client sent, for an error page.
func printable(s string) string {
	const most = 256
	if len(s) > most {
		s = s[:most] + "…"
	}
	q := strconv.QuoteToASCII(s)
	return q[1 : len(q)-1]
}

// carryOut runs the route's middlewares and its action.
func (st *state) carryOut(trusted bool) {
	e, x := st.decision.entry, &st.exchange
	*x = middleware.Exchange{
		Method: st.head.Method, Scheme: st.record.Scheme, Host: st.head.Host, Path: st.head.Path, RawQuery: st.head.RawQuery,
		Client: st.head.Client, Header: st.r.Header, Params: st.decision.Params, Route: e.name,
	}
	for _, m := range e.chain {
		st.ran++
		if m.Request == nil {
			continue
		}
		if a := m.Request(x); a != nil {
			st.answer(a.Status, a.Header, a.Body)
			return
		}
	}
	switch a := &e.route.Action; {
	case a.Proxy != nil:
		st.proxy(e, trusted)
	case a.Redirect != nil:
		st.redirect(e)
	default:
		st.answer(a.Respond.Status, a.Respond.Headers, a.Respond.Body)
	}
}

func (st *state) redirect(e *entry) {
	to, ok := e.location.build(st.exchange.Params)
	if !ok {
		st.record.Kind = "bad-path"
		st.answerError(http.StatusBadRequest, "the redirect would leave this host")
		return
	}
	st.w.Header().Set("Location", to)
	st.answer(e.route.Action.Redirect.Status, nil, "")
}

func (st *state) proxy(e *entry, trusted bool) {
	if e.upstream == nil {
		st.answerError(http.StatusServiceUnavailable, "this engine has no upstreams")
		return
	}
	x, f := &st.exchange, &st.forward
	if x.Path != st.head.Path {
		// A rewrite's result is held to the rules of a path that came.
		if err := route.CheckRewrite(x.Path, st.head.Paths); err != nil {
			st.record.Kind, st.record.Err = "bad-path", err
			st.answerError(http.StatusBadRequest, "rewritten "+err.Error())
			return
		}
		x.Path = st.merged(x.Path)
	}
	*f = proxy.Forward{
		Target: x.Path, Client: x.Client, Peer: st.record.Peer, Scheme: x.Scheme, TrustedPeer: trusted, Scrubbed: true,
		Timeout: e.route.Action.Proxy.Timeout, OnHead: st.onHead,
	}
	if x.RawQuery != "" {
		f.Target = x.Path + "?" + x.RawQuery
	}
	if x.Host != st.head.Host {
		f.Host = x.Host
	}
	if inject := st.front.options.Propagate; inject != nil {
		f.TraceInject = inject(st.r.Context())
	}
	e.upstream.Forward(st.w, st.r, f)
	st.takeResult(&f.Result)
}

func (st *state) takeResult(res *proxy.Result) {
	rec := &st.record
	rec.Status, rec.Upstream, rec.Attempts = res.Status, res.Target, res.Attempts
	rec.BytesIn, rec.BytesOut, rec.Upgraded = res.BytesIn, res.BytesOut, res.Upgraded
	if res.Kind != proxy.KindNone {
		rec.Kind, rec.Err = res.Kind.String(), res.Err
	}
}

// finishHead has the middlewares that saw the request see the response's head,
// innermost first, and says who served it.
func (st *state) finishHead(status int, h http.Header) {
	if x := &st.exchange; st.ran > 0 {
		for st.ran > 0 {
			st.ran--
			if m := st.decision.entry.chain[st.ran]; m.Response != nil {
				x.Status, x.ResponseHeader = status, h
				m.Response(x)
			}
		}
		noGuess(status, h)
	}
	st.stamp(h)
	rec := &st.record
	if !st.front.options.ResponseHeaders || rec.Revision.IsZero() {
		return
	}
	who := &st.who
	if rec.Route != "" {
		h["Routerd-Route"] = who.route.text(rec.Route)
	} else {
		delete(h, "Routerd-Route")
	}
	h["Routerd-Revision"] = who.revision.number(rec.Revision.Number)
	h["Routerd-Epoch"] = who.epoch.number(rec.Epoch)
	h["Routerd-Group"] = who.group.text(rec.Group)
	h["Routerd-Instance"] = who.instance.text(rec.Instance)
}

// noGuess keeps net/http from making up a Content-Type for a body that was left
// without one: the client is to be told what it is, or nothing.
func noGuess(status int, h http.Header) {
	if status < 200 || status == http.StatusNoContent || status == http.StatusNotModified {
		return // no body
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil
	}
}

// said is the value of a header field as it was said last: an answer that says
// the same shares it. Nobody writes into the values of a header, only replaces
// them.
type said []string

func (s *said) text(v string) []string {
	if len(*s) == 0 || (*s)[0] != v {
		*s = []string{v}
	}
	return *s
}

func (s *said) number(n int64) []string {
	var buf [20]byte
	v := strconv.AppendInt(buf[:0], n, 10)
	if len(*s) == 0 || (*s)[0] != string(v) {
		*s = []string{string(v)}
	}
	return *s
}

// answer sends a whole response of our own.
func (st *state) answer(status int, headers []route.Header, body string) {
	h := st.w.Header()
	for _, f := range headers {
		h.Add(f.Name, f.Value)
	}
	bodiless := status == http.StatusNoContent || status == http.StatusNotModified
	if !bodiless {
		if body != "" && h.Get("Content-Type") == "" {
			h.Set("Content-Type", "text/plain; charset=utf-8")
		}
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	st.finishHead(status, h)
	st.begun = true
	st.record.Status = status
	st.bound()
	st.w.WriteHeader(status)
	if body == "" || bodiless || st.r.Method == http.MethodHead {
		return
	}
	n, err := st.w.Write([]byte(body))
	st.record.BytesOut = int64(n)
	if err != nil && st.record.Err == nil {
		st.record.Kind, st.record.Err = proxy.KindClientGone.String(), err
	}
}

// bound sees to it that neither a client that takes no answer nor one that does
// not send the rest of its body holds the request: over HTTP/1 net/http reads
// that rest before it writes a head. It takes both deadlines off afterwards.
func (st *state) bound() {
	now, patience := time.Now(), st.front.patience
	rc := http.NewResponseController(st.w)
	if st.r.ProtoMajor == 1 && st.r.Body != nil && st.r.Body != http.NoBody {
		_ = rc.SetReadDeadline(now.Add(patience))
		patience *= 2 // writing may begin only when reading has ended
	}
	_ = rc.SetWriteDeadline(now.Add(patience))
}

// answerError sends an error page of one line.
func (st *state) answerError(status int, what string) {
	body := strconv.Itoa(status) + ": " + what
	if rev := st.record.Revision; !rev.IsZero() {
		body += " (revision " + strconv.FormatInt(rev.Number, 10) + ")"
	}
	h := st.w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	st.answer(status, nil, body+"\n")
}

// target gives the raw path and query that the client asked for, as it came.
// The host that an absolute-form target names is in r.Host already.
func target(r *http.Request) (path, query string) {
	uri := r.RequestURI
	if uri == "" { // not from a server
		uri = r.URL.RequestURI()
	}
	if uri != "" && uri[0] != '/' && uri != "*" {
		if _, rest, ok := strings.Cut(uri, "://"); ok {
			uri = "/"
			if i := strings.IndexAny(rest, "/?"); i >= 0 {
				uri = rest[i:]
			}
		}
	}
	path, query, _ = strings.Cut(uri, "?")
	if path == "" {
		path = "/"
	}
	return path, query
}

func peerOf(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// clientOf gives the address of who asks: the peer, or when that is a trusted
// proxy, the last address of X-Forwarded-For that is not one. trusted tells whether
// the peer is.
func clientOf(peer netip.Addr, forwarded []string, proxies []netip.Prefix) (client netip.Addr, trusted bool) {
	if len(proxies) == 0 || !contains(proxies, peer) {
		return peer, false
	}
	client = peer
	for i := len(forwarded) - 1; i >= 0; i-- {
		rest := forwarded[i]
		for more := true; more; {
			var text string
			at := strings.LastIndexByte(rest, ',')
			if more = at >= 0; more {
				text, rest = rest[at+1:], rest[:at]
			} else {
				text = rest
			}
			addr, ok := forwardedAddr(strings.TrimSpace(text))
			if !ok {
				return client, true // whoever is last known asked
			}
			client = addr
			if !contains(proxies, addr) {
				return client, true
			}
		}
	}
	return client, true
}

// forwardedAddr reads an address of X-Forwarded-For, which some proxies give
// with a port.
func forwardedAddr(s string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}
