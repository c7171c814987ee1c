package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"

	"routerd.dev/internal/route"
)

// Scrub takes out of a client's request header what may not pass through:
// fields that Connection lists, and, unless the peer is trusted, Forwarded and
// every X-Forwarded-*. Call it before middlewares add fields of their own, and
// set Forward.Scrubbed: then no client can have a middleware's field dropped by
// listing it. Upgrade requests stay what they are.
func Scrub(h http.Header, trustedPeer bool) {
	if conn := h["Connection"]; conn != nil {
		for _, name := range listed(nil, conn) {
			delete(h, name)
		}
		if upgradeOf(h) != "" {
			h["Connection"] = []string{"Upgrade"}
		} else {
			delete(h, "Connection")
		}
	}
	if trustedPeer {
		return
	}
	for name := range h {
		if claim(name) {
			delete(h, name)
		}
	}
}

// claim tells whether a field says something about the client that only a
// trusted proxy may say. Many servers take '_' for '-' and any case.
func claim(name string) bool {
	const x = "X-Forwarded"
	if name == "Forwarded" {
		return true
	}
	if len(name) < len(x) || name[0] != x[0] || len(name) > len(x) && name[len(x)] != '-' && name[len(x)] != '_' {
		return false
	}
	for i := 1; i < len(x); i++ {
		if b := name[i]; b|0x20 != x[i]|0x20 && (x[i] != '-' || b != '_') {
			return false
		}
	}
	return true
}

// listed appends the names that Connection lists, those left out that have a
// meaning of their own there.
func listed(dst []string, conn []string) []string {
	for _, v := range conn {
		if v == "keep-alive" || v == "close" {
			continue
		}
		for tok := range tokens(v) {
			switch name := textproto.CanonicalMIMEHeaderKey(tok); name {
			case "Close", "Keep-Alive", "Upgrade", "Te":
			default:
				dst = append(dst, name)
			}
		}
	}
	return dst
}

// upgradeOf returns the protocol that a request asks to change to, "" for none.
// Another version of HTTP or TLS is none: through it, requests could reach the
// upstream that no route was asked about.
func upgradeOf(h http.Header) string {
	up := h["Upgrade"]
	if len(up) != 1 || !hasToken(h["Connection"], "upgrade") {
		return ""
	}
	for tok := range tokens(up[0]) {
		proto, _, _ := strings.Cut(strings.ToLower(tok), "/")
		switch proto {
		case "h2", "h2c", "h3", "http", "tls":
			return ""
		}
	}
	return up[0]
}

func hasToken(values []string, want string) bool {
	for _, v := range values {
		for tok := range tokens(v) {
			if strings.EqualFold(tok, want) {
				return true
			}
		}
	}
	return false
}

// How a request's body is framed upstream.
type framing struct {
	length   int64 // with neither of the others: Content-Length, none when 0 and the method expects no body
	chunked  bool
	trailers bool // chunked, with trailers announced
}

func framingOf(r *http.Request) framing {
	switch {
	case r.Body == nil || r.Body == http.NoBody:
		return framing{}
	case r.ContentLength >= 0 && len(r.Trailer) == 0:
		return framing{length: r.ContentLength}
	default:
		return framing{chunked: true, trailers: len(r.Trailer) > 0}
	}
}

// appendHead appends the request head as t is to get it. The line ends are
// counted at the end, so that no value can bring one of its own.
func (x *exchange) appendHead(b []byte, t *target) ([]byte, error) {
	r, f := x.r, x.f
	if err := checkTarget(r.Method, f.Target); err != nil {
		return b, err
	}
	begin, lines := len(b), 1
	b = append(b, r.Method...)
	b = append(b, ' ')
	b = append(b, f.Target...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	host := x.hostFor(t)
	if !validHost(host) {
		return b, fmt.Errorf("invalid Host %.80q", host)
	}
	b = append(b, host...)
	b = append(b, "\r\n"...)
	lines++

	x.listed = listed(x.listed[:0], r.Header["Connection"])
	b, n, err := appendFields(b, r.Header, x.passes)
	if err != nil {
		return b, err
	}
	lines += n
	b, n = x.appendForwarded(b)
	lines += n
	if via := x.lib.o.Via; via != "" {
		b = appendField(b, "Via", strings.Join(append(slices.Clone(r.Header["Via"]), viaProto(r)+" "+via), ", "))
		lines++
	}
	if b, n, err = appendFields(b, x.trace, nil); err != nil {
		return b, err
	}
	lines += n
	hops := hopsOf(r.Header)
	if hops > maxHops {
		return b, errLoop
	}
	b = append(b, hopsField+": "...)
	b = strconv.AppendInt(b, int64(hops+1), 10)
	b = append(b, "\r\n"...)
	lines++
	b, n = x.appendFraming(b)
	lines += n
	b = append(b, "\r\n"...)
	lines++

	h := b[begin:]
	if bytes.Count(h, []byte{'\n'}) != lines || bytes.Count(h, []byte{'\r'}) != lines || bytes.IndexByte(h, 0) >= 0 {
		return b, errors.New("line end or NUL in a field")
	}
	return b, nil
}

// passes tells whether a field of the client goes upstream as it is.
func (x *exchange) passes(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length", "Host", "Expect", "Http2-Settings",
		"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", hopsField:
		return false
	case "Via":
		return x.lib.o.Via == ""
	}
	if len(x.listed) > 0 && slices.Contains(x.listed, name) {
		return false
	}
	if x.trace != nil && x.trace[name] != nil {
		return false
	}
	return x.f.TrustedPeer || x.f.Scrubbed || !claim(name)
}

func (x *exchange) hostFor(t *target) string {
	def := &x.u.def
	switch {
	case def.HostMode == route.HostLiteral && def.Host != "":
		return def.Host
	case def.HostMode == route.HostTarget:
		return t.authority
	case x.f.Host != "":
		return x.f.Host
	case x.r.Host != "":
		return x.r.Host
	default: // HTTP/1.0 needs none
		return t.authority
	}
}

// appendForwarded appends X-Forwarded-For, -Host and -Proto, and says how many
// lines these are. A trusted peer's are kept, and its address added.
func (x *exchange) appendForwarded(b []byte) (_ []byte, lines int) {
	r, f := x.r, x.f
	var before []string
	if f.TrustedPeer {
		before = r.Header["X-Forwarded-For"]
	}
	if len(before) > 0 || f.Peer.IsValid() {
		b = append(b, "X-Forwarded-For: "...)
		for i, v := range before {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = append(b, v...)
		}
		if f.Peer.IsValid() {
			if len(before) > 0 {
				b = append(b, ", "...)
			}
			b = f.Peer.Unmap().WithZone("").AppendTo(b)
		}
		b = append(b, "\r\n"...)
		lines++
	}
	host, proto := r.Host, f.Scheme
	if proto == "" {
		proto = "http"
		if r.TLS != nil {
			proto = "https"
		}
	}
	if f.TrustedPeer {
		if v := r.Header["X-Forwarded-Host"]; len(v) > 0 {
			host = v[0]
		}
		if v := r.Header["X-Forwarded-Proto"]; len(v) > 0 {
			proto = v[0]
		}
	}
	if host != "" {
		b = appendField(b, "X-Forwarded-Host", host)
		lines++
	}
	return appendField(b, "X-Forwarded-Proto", proto), lines + 1
}

// appendFraming appends what belongs to this connection alone.
func (x *exchange) appendFraming(b []byte) (_ []byte, lines int) {
	r := x.r
	if x.upgrade != "" {
		b = appendField(b, "Connection", "Upgrade")
		b = appendField(b, "Upgrade", x.upgrade)
		lines += 2
	} else if te := r.Header["Te"]; te != nil && hasToken(te, "trailers") {
		b = append(b, "Connection: TE\r\nTE: trailers\r\n"...)
		lines += 2
	}
	switch {
	case x.framing.chunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		lines++
		if x.framing.trailers {
			sep := "Trailer: "
			for name := range r.Trailer {
				if x.trailerPasses(name) {
					b = append(b, sep...)
					b = append(b, name...)
					sep = ", "
				}
			}
			if sep == ", " {
				b = append(b, "\r\n"...)
				lines++
			}
		}
	case x.framing.length > 0 || r.Method == "POST" || r.Method == "PUT" || r.Method == "PATCH":
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, x.framing.length, 10)
		b = append(b, "\r\n"...)
		lines++
	}
	if x.expect {
		b = append(b, "Expect: 100-continue\r\n"...)
		lines++
	}
	return b, lines
}

// appendFields appends the fields that pass, all when passes is nil, and says
// how many lines these are.
func appendFields(b []byte, h http.Header, passes func(name string) bool) (_ []byte, lines int, err error) {
	for name, values := range h {
		if len(values) == 0 || passes != nil && !passes(name) {
			continue
		}
		if !validToken(name) {
			return b, lines, fmt.Errorf("invalid field name %.80q", name)
		}
		for _, v := range values {
			b = appendField(b, name, v)
			lines++
		}
	}
	return b, lines, nil
}

func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

func viaProto(r *http.Request) string {
	if r.ProtoMajor == 2 {
		return "2"
	}
	return strconv.Itoa(r.ProtoMajor) + "." + strconv.Itoa(r.ProtoMinor)
}

// What routerd says of itself in responses begins with ownPrefix. hopsField
// counts in requests how often they came through it, so that an upstream that leads
// back ends in 508, not with all connections of the instance taken.
const (
	ownPrefix = "Routerd-"
	hopsField = ownPrefix + "Hops"
)

// hopsOf reads what this package wrote. A client that forges it can only have
// its own request refused.
func hopsOf(h http.Header) int {
	v := h[hopsField]
	if len(v) == 0 {
		return 0
	}
	n, err := strconv.ParseUint(v[len(v)-1], 10, 16)
	if err != nil {
		return 0
	}
	return int(n)
}

// checkTarget refuses what a server could read as something else than one
// request line: there '#' begins a fragment and white space ends the target.
func checkTarget(method, target string) error {
	if !validToken(method) || method == http.MethodConnect {
		return fmt.Errorf("method %.40q cannot be forwarded", method)
	}
	if target == "" || target[0] != '/' {
		return fmt.Errorf("target %.80q does not begin with '/'", target)
	}
	for i := range len(target) {
		if b := target[i]; b <= ' ' || b == 0x7f || b == '#' {
			return fmt.Errorf("character %q in target", b)
		}
	}
	return nil
}

// validHost refuses what cannot stand in an authority; line ends are among it.
func validHost(h string) bool {
	for i := range len(h) {
		switch b := h[i]; b {
		case '/', '?', '#', '@', '\\', ',':
			return false
		default:
			if b <= ' ' || b == 0x7f {
				return false
			}
		}
	}
	return h != ""
}

// trailerPasses tells whether a trailer field of the client's goes upstream:
// some servers take it for one of the head.
func (x *exchange) trailerPasses(name string) bool {
	return trailerAllowed(name) && name != hopsField && (x.f.TrustedPeer || !claim(name))
}

// trailerAllowed tells whether a field may come after the body: not what frames,
// routes or authenticates, nor what belongs to the connection (RFC 9110, 6.5.1).
func trailerAllowed(name string) bool {
	switch name {
	case "Content-Length", "Transfer-Encoding", "Trailer", "Host", "Connection", "Proxy-Connection", "Keep-Alive",
		"Te", "Upgrade", "Content-Encoding", "Content-Type", "Content-Range", "Cache-Control", "Expect", "Max-Forwards",
		"Pragma", "Range", "Authorization", "Proxy-Authorization", "Proxy-Authenticate", "Www-Authenticate", "Set-Cookie",
		"Cookie", "Age", "Date", "Expires", "Location", "Retry-After", "Vary", "Warning":
		return false
	}
	return validToken(name)
}
