package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"routerd.dev/internal/route"
)

// catcher is an upstream that keeps the requests it gets, to the byte.
type catcher struct {
	*raw
	got chan string
}

func newCatcher(t testing.TB) *catcher {
	c := &catcher{got: make(chan string, 100)}
	c.raw = newRaw(t, func(_ int, nc net.Conn, br *bufio.Reader) {
		for {
			var b strings.Builder
			end := "\r\n\r\n"
			for !strings.HasSuffix(b.String(), end) {
				line, err := br.ReadString('\n')
				if err != nil {
					return
				}
				b.WriteString(line)
				if line == "Transfer-Encoding: chunked\r\n" {
					end = "\r\n0\r\n\r\n"
				}
			}
			c.got <- b.String()
			io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	return c
}

// send writes bytes to a front and returns the response's status, 0 for none.
func send(t testing.TB, addr, bytes string) int {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, bytes)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	res.Body.Close()
	return res.StatusCode
}

// lines splits a request and sorts its fields.
func lines(s string) []string {
	head, _, _ := strings.Cut(s, "\r\n\r\n")
	ls := strings.Split(head, "\r\n")
	slices.Sort(ls[1:])
	return ls
}

func TestRequestHeadIsForwarded(t *testing.T) {
	peer := netip.MustParseAddr("192.0.2.9")
	for _, tc := range []struct {
		name string
		in   string
		def  func(*route.Upstream)
		opt  Options
		edit func(r *http.Request, f *Forward)
		want string // request line and sorted fields
	}{
		{
			name: "plain", in: "GET /a%2Fb/../c?d=%zz&é HTTP/1.1\r\nHost: Example.com:81\r\nAccept: */*\r\nX-Multi: 1\r\nX-Multi: 2\r\n\r\n",
			edit: func(_ *http.Request, f *Forward) { f.Target = "/a%2Fb/../c?d=%zz&é" },
			want: "GET /a%2Fb/../c?d=%zz&é HTTP/1.1|Accept: */*|Host: Example.com:81|X-Forwarded-For: 192.0.2.9|X-Forwarded-Host: Example.com:81|X-Forwarded-Proto: http|X-Multi: 1|X-Multi: 2",
		},
		{
			name: "hop by hop", in: "GET / HTTP/1.1\r\nHost: h\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nProxy-Authorization: y\r\nTE: trailers, gzip\r\nUpgrade: h2c\r\n\r\n",
			want: "GET / HTTP/1.1|Connection: TE|Host: h|TE: trailers|X-Forwarded-For: 192.0.2.9|X-Forwarded-Host: h|X-Forwarded-Proto: http",
		},
		{
			name: "claims of a stranger", in: "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /e\r\nX_Forwarded_For: 1\r\nx-forwarded_proto: https\r\nX-Forwarded: 1\r\nForwarded: for=1\r\nX-Forward: kept\r\nX-Forwardedness: kept\r\n\r\n",
			want: "GET / HTTP/1.1|Host: h|X-Forward: kept|X-Forwarded-For: 192.0.2.9|X-Forwarded-Host: h|X-Forwarded-Proto: http|X-Forwardedness: kept",
		},
		{
			// It would open a way past the routes.
			name: "h2c", in: "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: websocket, h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
			want: "GET / HTTP/1.1|Host: h|X-Forwarded-For: 192.0.2.9|X-Forwarded-Host: h|X-Forwarded-Proto: http",
		},
		{
			name: "claims of a trusted peer", in: "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\nX-Forwarded-Host: front\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /e\r\nForwarded: for=1\r\n\r\n",
			edit: func(_ *http.Request, f *Forward) { f.TrustedPeer = true },
			want: "GET / HTTP/1.1|Forwarded: for=1|Host: h|X-Forwarded-For: 1.1.1.1, 2.2.2.2, 192.0.2.9|X-Forwarded-Host: front|X-Forwarded-Prefix: /e|X-Forwarded-Proto: https",
		},
		{
			name: "a middleware's field that the client lists", in: "GET / HTTP/1.1\r\nHost: h\r\nConnection: X-User\r\nX-User: client\r\nX-Forwarded-Prefix: /client\r\n\r\n",
			edit: func(r *http.Request, f *Forward) {
				Scrub(r.Header, false)
				f.Scrubbed = true
				r.Header.Set("X-User", "checked")
				r.Header.Set("X-Forwarded-Prefix", "/checked")
			},
			want: "GET / HTTP/1.1|Host: h|X-Forwarded-For: 192.0.2.9|X-Forwarded-Host: h|X-Forwarded-Prefix: /checked|X-Forwarded-Proto: http|X-User: checked",
		},
		{
			name: "literal host", in: "GET / HTTP/1.1\r\nHost: h\r\n\r\n", def: func(d *route.Upstream) { d.HostMode, d.Host = route.HostLiteral, "inner.example" },
			want: "GET / HTTP/1.1|Host: inner.example|X-Forwarded-For: 192.0.2.9|X-Forwarded-Host: h|X-Forwarded-Proto: http",
		},
		{
			name: "scheme, host, trace", in: "GET / HTTP/1.1\r\nHost: h\r\nTraceparent: client\r\n\r\n",
			edit: func(_ *http.Request, f *Forward) {
				f.Scheme, f.Host = "https", "other:8443"
				f.TraceInject = func(h http.Header) { h.Set("Traceparent", "ours") }
			},
			want: "GET / HTTP/1.1|Host: other:8443|Traceparent: ours|X-Forwarded-For: 192.0.2.9|X-Forwarded-Host: h|X-Forwarded-Proto: https",
		},
		{
			name: "via", in: "GET / HTTP/1.1\r\nHost: h\r\nVia: 1.0 a\r\n\r\n", opt: Options{Via: "routerd"},
			want: "GET / HTTP/1.1|Host: h|Via: 1.0 a, 1.1 routerd|X-Forwarded-For: 192.0.2.9|X-Forwarded-Host: h|X-Forwarded-Proto: http",
		},
		{
			name: "post without a body", in: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
			want: "POST / HTTP/1.1|Content-Length: 0|Host: h|X-Forwarded-For: 192.0.2.9|X-Forwarded-Host: h|X-Forwarded-Proto: http",
		},
		{
			// net/http prefers chunked; what is forwarded has one framing.
			name: "length and chunked", in: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
			want: "POST / HTTP/1.1|Host: h|Transfer-Encoding: chunked|X-Forwarded-For: 192.0.2.9|X-Forwarded-Host: h|X-Forwarded-Proto: http",
		},
		{
			name: "folded", in: "GET / HTTP/1.1\r\nHost: h\r\nX-A: b\r\n c\r\n\r\n",
			want: "GET / HTTP/1.1|Host: h|X-A: b c|X-Forwarded-For: 192.0.2.9|X-Forwarded-Host: h|X-Forwarded-Proto: http",
		},
		{
			name: "1.0 without a host", in: "GET / HTTP/1.0\r\n\r\n",
			want: "GET / HTTP/1.1|Host: TARGET|X-Forwarded-For: 192.0.2.9|X-Forwarded-Proto: http",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := newCatcher(t)
			def := to(u.url())
			if tc.def != nil {
				tc.def(&def)
			}
			b := newBench(t, def, tc.opt)
			b.edit = func(r *http.Request, f *Forward) {
				f.Peer = peer
				if tc.edit != nil {
					tc.edit(r, f)
				}
			}
			b.start()
			if status := send(t, b.front.Listener.Addr().String(), tc.in); status != 200 {
				t.Fatalf("status %d: %+v", status, b.result(0))
			}
			want := strings.ReplaceAll(tc.want, "TARGET", u.ln.Addr().String())
			if got := withoutHops(t, lines(<-u.got)); got != want {
				t.Errorf("\n got %s\nwant %s", got, want)
			}
		})
	}
}

func TestI8_TargetIsForwardedAsItIsOrNotAtAll(t *testing.T) {
	u := newCatcher(t)
	b := newBench(t, to(u.url()), Options{})
	targets := []string{"/a b", "/a\r\nX: y", "/a\nb", "/a\tb", "/a#b", "a", "", "*", "http://x/", "/\x00", "/\x7f", " /a"}
	ok := []string{"/", "//", "/%2e%2e/%2F", "/a/../b", "/é", "/?", "/a?b?c", "/;x", `/\`, "/%"}
	i := 0
	all := append(slices.Clone(targets), ok...)
	b.edit = func(_ *http.Request, f *Forward) { f.Target = all[i] }
	b.start()
	for ; i < len(all); i++ {
		res, _, err := get(t, b.front.URL)
		if err != nil {
			t.Fatal(err)
		}
		if i < len(targets) {
			if res.StatusCode != 400 || b.result(i).Kind != KindRequest {
				t.Errorf("%q: status %d", all[i], res.StatusCode)
			}
			continue
		}
		if line := lines(<-u.got)[0]; line != "GET "+all[i]+" HTTP/1.1" {
			t.Errorf("%q was forwarded as %q", all[i], line)
		}
	}
	if len(u.got) != 0 {
		t.Errorf("a refused request was sent: %q", <-u.got)
	}
}

// No field that a middleware sets can end a line, wherever its value came from.
func TestRequestCannotBeSplit(t *testing.T) {
	u := newCatcher(t)
	b := newBench(t, to(u.url()), Options{})
	edits := []func(r *http.Request, f *Forward){
		func(r *http.Request, _ *Forward) { r.Header.Set("X-A", "b\r\nX-C: d") },
		func(r *http.Request, _ *Forward) { r.Header.Set("X-A", "b\nX-C: d") },
		func(r *http.Request, _ *Forward) { r.Header.Set("X-A", "b\r") },
		func(r *http.Request, _ *Forward) { r.Header.Set("X-A", "b\x00") },
		func(r *http.Request, _ *Forward) { r.Header["X-A: b"] = []string{"c"} },
		func(r *http.Request, _ *Forward) { r.Header["X A"] = []string{"c"} },
		func(_ *http.Request, f *Forward) { f.Host = "h\r\nX: y" },
		func(_ *http.Request, f *Forward) { f.Host = "h/x" },
		func(_ *http.Request, f *Forward) { f.Host = "h x" },
		func(_ *http.Request, f *Forward) { f.Scheme = "a\r\nb" },
		func(r *http.Request, _ *Forward) { r.Method = "GET / HTTP/1.1\r\nX: y" },
		func(r *http.Request, _ *Forward) { r.Method = "CONNECT" },
		func(_ *http.Request, f *Forward) {
			f.TraceInject = func(h http.Header) { h["X"] = []string{"\r\n"} }
		},
	}
	i := 0
	b.edit = func(r *http.Request, f *Forward) { edits[i](r, f) }
	b.start()
	for ; i < len(edits); i++ {
		res, _, err := get(t, b.front.URL)
		if err != nil || res.StatusCode != 400 {
			t.Errorf("edit %d: %v, %+v", i, err, b.result(i))
		}
	}
	if len(u.got) != 0 {
		t.Errorf("sent: %q", <-u.got)
	}
}

func TestBodiesGoUpWithTheirFraming(t *testing.T) {
	u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			body, err := io.ReadAll(r.Body)
			s := fmt.Sprintf("%d %v %d %v %s", r.ContentLength, r.TransferEncoding, len(body), err, r.Trailer.Get("X-T"))
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(s), s)
		}
	})
	b := newBench(t, to(u.url()), Options{}).start()
	type readerOnly struct{ io.Reader }
	for i, n := range []int{1, maxReplay, maxReplay + 1, largeBuffer, 3*largeBuffer + 1, 1 << 20} {
		for _, chunked := range []bool{false, true} {
			var body io.Reader = strings.NewReader(strings.Repeat("x", n))
			want := fmt.Sprintf("%d [] %d <nil> ", n, n)
			if chunked {
				body = readerOnly{body}
				want = fmt.Sprintf("-1 [chunked] %d <nil> tail", n)
			}
			req, _ := http.NewRequest("POST", b.front.URL, body)
			if chunked {
				req.Trailer = http.Header{"X-T": {"tail"}}
			}
			res, err := b.front.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if string(got) != want {
				t.Errorf("%d bytes, chunked %v: got %q, want %q", n, chunked, got, want)
			}
			k := 2 * i
			if chunked {
				k++
			}
			if r := b.result(k); r.BytesIn != int64(n) || r.Kind != KindNone {
				t.Errorf("%d bytes: %+v", n, r)
			}
		}
	}
	if u.conns() != 1 {
		t.Errorf("%d connections, want 1: bodies that were sent whole leave it usable", u.conns())
	}
}
