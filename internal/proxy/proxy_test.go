package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"routerd.dev/internal/route"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A bench is a front that forwards all it gets to upstreams of the test.
type bench struct {
	t     testing.TB
	lib   *Library
	up    *Upstream
	front *httptest.Server
	edit  func(r *http.Request, f *Forward)

	mu      sync.Mutex
	results []Result
	arrived *sync.Cond
}

func newBench(t testing.TB, def route.Upstream, o Options) *bench {
	t.Helper()
	b := &bench{t: t, lib: NewLibrary(o)}
	b.arrived = sync.NewCond(&b.mu)
	up, err := b.lib.Upstream(def)
	if err != nil {
		t.Fatal(err)
	}
	b.up = up
	b.front = httptest.NewUnstartedServer(http.HandlerFunc(b.serve))
	b.front.Config.ErrorLog = nil
	t.Cleanup(func() {
		b.front.Close()
		if err := b.lib.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) start() *bench { b.front.Start(); return b }

func (b *bench) serve(w http.ResponseWriter, r *http.Request) {
	peer, _ := netip.ParseAddrPort(r.RemoteAddr)
	f := &Forward{Target: r.RequestURI, Peer: peer.Addr()}
	if b.edit != nil {
		b.edit(r, f)
	}
	defer func() {
		b.mu.Lock()
		b.results = append(b.results, f.Result)
		b.arrived.Broadcast()
		b.mu.Unlock()
	}()
	b.up.Forward(w, r, f)
}

// result waits for the n-th exchange to have ended.
func (b *bench) result(n int) Result {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.results) <= n {
		b.arrived.Wait()
	}
	return b.results[n]
}

func to(urls ...string) route.Upstream {
	def := route.Upstream{Name: "u"}
	for _, u := range urls {
		def.Targets = append(def.Targets, route.Target{URL: u, Weight: 1})
	}
	return def
}

// A raw is an upstream of bytes: it hands each connection to the next script.
type raw struct {
	ln net.Listener
	wg sync.WaitGroup
	mu sync.Mutex
	n  int
	cs []net.Conn
}

// newRaw serves connection i with script(i, c).
func newRaw(t testing.TB, script func(i int, c net.Conn, br *bufio.Reader)) *raw {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &raw{ln: ln}
	u.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			u.mu.Lock()
			i := u.n
			u.n++
			u.cs = append(u.cs, c)
			u.mu.Unlock()
			u.wg.Go(func() {
				defer c.Close()
				script(i, c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		u.mu.Lock()
		for _, c := range u.cs {
			c.Close()
		}
		u.mu.Unlock()
		u.wg.Wait()
	})
	return u
}

func (u *raw) url() string { return "http://" + u.ln.Addr().String() }

func (u *raw) conns() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.n
}

// always answers every request on every connection with the same bytes.
func always(answer string) func(int, net.Conn, *bufio.Reader) {
	return func(_ int, c net.Conn, br *bufio.Reader) {
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			io.WriteString(c, answer)
		}
	}
}

// once answers one request and closes.
func once(answer string) func(int, net.Conn, *bufio.Reader) {
	return func(_ int, c net.Conn, br *bufio.Reader) {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		io.Copy(io.Discard, r.Body)
		io.WriteString(c, answer)
	}
}

func get(t testing.TB, url string) (*http.Response, string, error) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := c.Get(url)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, string(body), err
}

// eventually waits for a condition that other goroutines bring about.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	end := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
		<-tick.C
	}
}

func TestFramingOfResponses(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 20<<10) // 320 KiB: past every buffer
	chunked := func(s string, step int) string {
		var b strings.Builder
		for len(s) > 0 {
			n := min(step, len(s))
			fmt.Fprintf(&b, "%x\r\n%s\r\n", n, s[:n])
			s = s[n:]
		}
		return b.String() + "0\r\n\r\n"
	}
	for _, tc := range []struct {
		name, answer, method string
		status               int
		body                 string
		length               int64
		reuse                bool
	}{
		{"length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "GET", 200, "hello", 5, true},
		{"same length twice", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "GET", 200, "hello", 5, true},
		{"length 0", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "GET", 200, "", 0, true},
		{"no reason", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "GET", 200, "", 0, true},
		{"large", "HTTP/1.1 200 OK\r\nContent-Length: " + fmt.Sprint(len(big)) + "\r\n\r\n" + big, "GET", 200, big, int64(len(big)), true},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked("hello", 2), "GET", 200, "hello", -2, true},
		{"chunked large", "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n" + chunked(big, 50000), "GET", 200, big, -1, true},
		{"chunk extension", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0 \r\n\r\n", "GET", 200, "hello", -2, true},
		{"to the end", "HTTP/1.1 200 OK\r\n\r\nhello", "GET", 200, "hello", -2, false},
		{"to the end, large", "HTTP/1.1 200 OK\r\n\r\n" + big, "GET", 200, big, -1, false},
		{"close", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", "GET", 200, "hello", 5, false},
		{"1.0", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", "GET", 200, "hello", 5, false},
		{"1.0 keep-alive", "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 5\r\n\r\nhello", "GET", 200, "hello", 5, true},
		{"one byte too many", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello!", "GET", 200, "hello", 5, false},
		{"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD", 200, "", 5, true},
		{"HEAD chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HEAD", 200, "", -1, true},
		{"204", "HTTP/1.1 204 No Content\r\n\r\n", "GET", 204, "", 0, true},
		{"304", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nEtag: \"x\"\r\n\r\n", "GET", 304, "", -2, true},
		{"999", "HTTP/1.1 999 Denied\r\nContent-Length: 0\r\n\r\n", "GET", 999, "", 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			script := always(tc.answer)
			if !tc.reuse {
				script = once(tc.answer)
			}
			u := newRaw(t, script)
			b := newBench(t, to(u.url()), Options{}).start()
			for range 2 {
				req, _ := http.NewRequest(tc.method, b.front.URL+"/", nil)
				res, err := b.front.Client().Transport.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || res.StatusCode != tc.status || string(body) != tc.body {
					t.Fatalf("got %d, %d bytes, %v", res.StatusCode, len(body), err)
				}
				if tc.length != -2 && res.ContentLength != tc.length {
					t.Errorf("Content-Length %d, want %d", res.ContentLength, tc.length)
				}
				if ct, ok := res.Header["Content-Type"]; ok {
					t.Errorf("Content-Type %q was made up", ct)
				}
			}
			want := 2
			if tc.reuse {
				want = 1
			}
			if got := u.conns(); got != want {
				t.Errorf("%d connections, want %d", got, want)
			}
			if r := b.result(1); r.Kind != KindNone || r.Status != tc.status || r.BytesOut != int64(len(tc.body)) {
				t.Errorf("result %+v", r)
			}
		})
	}
}
