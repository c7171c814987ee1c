package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestI11_EarlyEndNeverLooksComplete(t *testing.T) {
	long := strings.Repeat("x", 100<<10)
	for name, answer := range map[string]string{
		"length":                  "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
		"length, nothing":         "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
		"length, large":           "HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + long,
		"chunked, within":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhello",
		"chunked, between":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"chunked, nothing":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		"chunked, no final line":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
		"chunked, large":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n19001\r\n" + long,
		"chunk without CRLF":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n",
		"chunk with bare LF":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n",
		"chunk size not hex":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
		"chunk size signed":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
		"chunk size empty":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n",
		"chunk size overflows":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
		"chunk extension endless": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;" + long + "\r\nhello\r\n0\r\n\r\n",
		"trailer folded":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n c\r\n\r\n",
		"trailers endless":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n" + strings.Repeat("A: b\r\n", 300) + "\r\n",
	} {
		for _, proto := range []string{"HTTP/1.1", "HTTP/1.0"} {
			t.Run(name+" "+proto, func(t *testing.T) {
				u := newRaw(t, once(answer))
				b := newBench(t, to(u.url()), Options{}).start()
				c, err := net.Dial("tcp", b.front.Listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				fmt.Fprintf(c, "GET / %s\r\nHost: h\r\n\r\n", proto)
				res, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err == nil {
					var n int64
					if n, err = io.Copy(io.Discard, res.Body); err == nil {
						t.Errorf("client got a complete response: %d, %d bytes", res.StatusCode, n)
					}
				}
				if r := b.result(0); r.Kind != KindUpstreamReset && r.Kind != KindBadResponse || r.Err == nil || r.Status != 200 {
					t.Errorf("result %+v", r)
				}
			})
		}
	}
}

func TestI11_EarlyEndOverHTTP2(t *testing.T) {
	u := newRaw(t, once("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"))
	b := newBench(t, to(u.url()), Options{})
	b.front.EnableHTTP2 = true
	b.front.StartTLS()
	res, err := b.front.Client().Get(b.front.URL)
	if err == nil {
		_, err = io.ReadAll(res.Body)
		res.Body.Close()
	}
	if err == nil {
		t.Error("complete response")
	}
}

func TestBadHeadsAre502(t *testing.T) {
	for name, answer := range map[string]string{
		"nothing":          "",
		"part of a head":   "HTTP/1.1 200 OK\r\nContent-Le",
		"garbage":          "\x00\x01\x02 hello\r\n\r\n",
		"length, chunked":  "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"bare LF":          "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
		"10 MB":            "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 10<<20) + "\r\n\r\n",
		"10 MB of fields":  "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 10<<20/6) + "\r\n",
		"101 for nothing":  "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
		"endless 1xx":      strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 1000) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"early end of 1xx": "HTTP/1.1 103 Early Hints\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			u := newRaw(t, once(answer))
			b := newBench(t, to(u.url()), Options{}).start()
			res, body, err := get(t, b.front.URL)
			if err != nil || res.StatusCode != 502 || body != "Bad Gateway\n" {
				t.Fatalf("%v %q %v", res, body, err)
			}
			if r := b.result(0); r.Kind != KindUpstreamReset && r.Kind != KindBadResponse || r.Status != 502 || r.Attempts != 1 {
				t.Errorf("result %+v", r)
			}
		})
	}
}

// A response comes through whole wherever it is cut into packets.
func TestResponsesCutAtEveryByte(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n6\r\n world\r\n0\r\nX-T: t\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 11\r\n\r\nhello world",
	} {
		step := 0
		next := make(chan struct{})
		u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
			for cut := 0; ; cut++ {
				if _, err := http.ReadRequest(br); err != nil {
					return
				}
				if cut == len(answer) { // the last: every byte by itself
					for i := range len(answer) {
						io.WriteString(c, answer[i:i+1])
					}
					continue
				}
				io.WriteString(c, answer[:cut])
				<-next
				io.WriteString(c, answer[cut:])
			}
		})
		b := newBench(t, to(u.url()), Options{}).start()
		client := b.front.Client()
		for ; step <= len(answer); step++ {
			if step < len(answer) {
				go func() {
					// Let the first part be waited on alone, most of the time.
					time.AfterFunc(200*time.Microsecond, func() { next <- struct{}{} })
				}()
			}
			res, err := client.Get(b.front.URL)
			if err != nil {
				t.Fatalf("cut at %d: %v", step, err)
			}
			body, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || string(body) != "hello world" || res.Header.Get("X-A") != "b" {
				t.Fatalf("cut at %d: %q, %v, %v", step, body, res.Header, err)
			}
			if strings.Contains(answer, "X-T") && res.Trailer.Get("X-T") != "t" {
				t.Fatalf("cut at %d: trailers %v", step, res.Trailer)
			}
		}
		if u.conns() != 1 {
			t.Errorf("%d connections", u.conns())
		}
	}
}

func TestTimeouts(t *testing.T) {
	hold := func(answer string) func(int, net.Conn, *bufio.Reader) {
		return func(_ int, c net.Conn, br *bufio.Reader) {
			if _, err := http.ReadRequest(br); err == nil {
				io.WriteString(c, answer)
				io.Copy(io.Discard, br)
			}
		}
	}
	drip := func(_ int, c net.Conn, br *bufio.Reader) {
		// A slow loris: always another byte, never a head.
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nX: ")
		for tick := time.NewTicker(time.Millisecond); err == nil; <-tick.C {
			_, err = io.WriteString(c, "x")
		}
	}
	for _, tc := range []struct {
		name   string
		script func(int, net.Conn, *bufio.Reader)
		edit   func(*bench)
		status int
		err    error
	}{
		{"no head", hold(""), func(b *bench) { b.up.def.ResponseTimeout = 30 * time.Millisecond }, 504, errNoResponse},
		{"no head, longer than a tick", hold(""), func(b *bench) { b.up.def.ResponseTimeout = 700 * time.Millisecond }, 504, errNoResponse},
		{"slow loris", drip, func(b *bench) { b.up.def.ResponseTimeout = 50 * time.Millisecond }, 504, errNoResponse},
		{"overall", hold(""), func(b *bench) { b.edit = func(_ *http.Request, f *Forward) { f.Timeout = 30 * time.Millisecond } }, 504, errOverall},
		{"body stalls", hold("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"), func(b *bench) { b.up.def.IdleTimeout = 30 * time.Millisecond }, 200, errUpstreamStalled},
		{"large body stalls", hold("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhello"), func(b *bench) { b.up.def.IdleTimeout = 600 * time.Millisecond }, 200, errUpstreamStalled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := newRaw(t, tc.script)
			b := newBench(t, to(u.url()), Options{})
			tc.edit(b)
			b.start()
			res, _, err := get(t, b.front.URL)
			r := b.result(0)
			if r.Status != tc.status || r.Kind != KindTimeout || !errors.Is(r.Err, tc.err) {
				t.Errorf("result %+v", r)
			}
			if tc.status != 200 && (err != nil || res.StatusCode != tc.status) {
				t.Errorf("got %v, %v", res, err)
			}
			if tc.status == 200 && err == nil {
				t.Error("a stalled body looked complete")
			}
		})
	}
}

// A client that goes away while the upstream thinks takes the upstream's
// connection with it.
func TestClientGoneCancelsTheUpstream(t *testing.T) {
	for i, answer := range []string{"", "", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhello"} {
		asked, gone := make(chan struct{}), make(chan struct{})
		u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			io.WriteString(c, answer)
			close(asked)
			io.Copy(io.Discard, br)
			close(gone)
		})
		b := newBench(t, to(u.url()), Options{}).start()
		c, err := net.Dial("tcp", b.front.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		<-asked
		if i > 0 { // once without, that is: noticed at the first tick, and by the watch it sets
			slow := time.NewTimer(2 * time.Duration(tick))
			<-slow.C
		}
		c.Close()
		<-gone
		if r := b.result(0); r.Kind != KindClientGone || answer == "" && r.Status != statusClientGone {
			t.Errorf("result %+v", r)
		}
	}
}

// A client that takes nothing does not hold the exchange for longer than IdleTimeout.
func TestClientThatReadsNothing(t *testing.T) {
	for _, head := range []string{"Content-Length: 1000000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n3b9aca00\r\n"} {
		u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n"+head)
			for buf := make([]byte, 64<<10); err == nil; {
				_, err = c.Write(buf)
			}
		})
		b := newBench(t, to(u.url()), Options{})
		b.up.def.IdleTimeout = 100 * time.Millisecond
		b.start()
		c, err := net.Dial("tcp", b.front.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		if r := b.result(0); r.Kind != KindTimeout || !errors.Is(r.Err, errClientStalled) {
			t.Errorf("result %+v", r)
		}
		c.Close()
	}
}

// A body that breaks off on its way up never looks complete to the upstream,
// and the client's connection is not used on.
func TestUploadThatBreaksOff(t *testing.T) {
	for name, in := range map[string]string{
		"small":   "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhello",
		"large":   "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\nhello",
		"chunked": "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"bad":     "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			complete := make(chan bool, 1)
			u := newRaw(t, func(_ int, _ net.Conn, br *bufio.Reader) {
				r, err := http.ReadRequest(br)
				if err != nil {
					return
				}
				_, err = io.ReadAll(r.Body)
				complete <- err == nil
			})
			b := newBench(t, to(u.url()), Options{}).start()
			c, err := net.Dial("tcp", b.front.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, in)
			c.(*net.TCPConn).CloseWrite()
			if r := b.result(0); r.Kind != KindClientGone {
				t.Errorf("result %+v", r)
			}
			if name != "small" && <-complete {
				t.Error("the upstream saw a complete body")
			}
		})
	}
}

// A body that somebody replaced by one that is too short or too long does not get
// out of step with the Content-Length that was sent.
func TestReplacedBodies(t *testing.T) {
	for _, n := range []int{5, 50000} {
		for _, told := range []int64{10, 40000} {
			u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
				r, err := http.ReadRequest(br)
				if err != nil {
					return
				}
				if _, err := io.Copy(io.Discard, r.Body); err == nil {
					if rest, _ := io.ReadAll(br); len(rest) > 0 {
						t.Errorf("%d bytes behind the request", len(rest))
					}
				}
			})
			b := newBench(t, to(u.url()), Options{})
			b.up.def.ResponseTimeout = 50 * time.Millisecond
			b.edit = func(r *http.Request, _ *Forward) {
				r.Method, r.ContentLength, r.Body = "POST", told, io.NopCloser(strings.NewReader(strings.Repeat("x", n)))
			}
			b.start()
			get(t, b.front.URL)
			if r := b.result(0); int64(n) < told && r.Kind != KindClientGone {
				t.Errorf("%d bytes for %d: %+v", n, told, r)
			}
		}
	}
}

// A client that stops sending is told so; an upstream that stops taking is named.
func TestUploadsThatStall(t *testing.T) {
	for _, tc := range []struct {
		name   string
		send   int
		status int
		err    error
	}{{"client", 1000, 408, errClientStalled}, {"upstream", 32 << 20, 504, errUpstreamStalled}} {
		t.Run(tc.name, func(t *testing.T) {
			end := make(chan struct{})
			defer close(end)
			u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
				if _, err := http.ReadRequest(br); err == nil {
					<-end
				}
			})
			b := newBench(t, to(u.url()), Options{})
			b.up.def.IdleTimeout = 100 * time.Millisecond
			b.start()
			c, err := net.Dial("tcp", b.front.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n")
			sent := make(chan struct{})
			go func() { defer close(sent); c.Write(make([]byte, tc.send)) }()
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || res.StatusCode != tc.status {
				t.Errorf("%v, %v", res, err)
			}
			if r := b.result(0); r.Kind != KindTimeout || r.Err != tc.err || r.Status != tc.status {
				t.Errorf("%+v", r)
			}
			c.Close()
			<-sent
		})
	}
}

// No connection to be had: the answer comes while the client still sends, and
// the rest of its body is not taken for a request.
func TestErrorWhileTheBodyIsUnread(t *testing.T) {
	b := newBench(t, to("http://"+closedPort(t)), Options{}).start()
	for _, framing := range []string{"Content-Length: 1000000", "Content-Length: 20000", "Transfer-Encoding: chunked", "Content-Length: 10\r\nExpect: 100-continue"} {
		c, err := net.Dial("tcp", b.front.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: h\r\n%s\r\n\r\n", framing)
		br := bufio.NewReader(c)
		res, err := http.ReadResponse(br, nil)
		if err != nil || res.StatusCode != 502 || !res.Close {
			t.Fatalf("%s: %v, %v", framing, res, err)
		}
		io.Copy(io.Discard, res.Body)
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		if res, err := http.ReadResponse(br, nil); err == nil {
			t.Errorf("%s: body answered as a request: %d", framing, res.StatusCode)
		}
		c.Close()
	}
}

func TestTooLargeBodyIs413(t *testing.T) {
	u := newRaw(t, always("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
	b := newBench(t, to(u.url()), Options{})
	inner := b.front.Config.Handler
	b.front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 100)
		inner.ServeHTTP(w, r)
	})
	b.start()
	for i, n := range []int{200, 100000} {
		res, err := http.Post(b.front.URL, "text/plain", io.MultiReader(strings.NewReader(strings.Repeat("x", n))))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 413 || b.result(i).Kind != KindTooLarge {
			t.Errorf("%d bytes: %d, %+v", n, res.StatusCode, b.result(i))
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// A canned connection takes anything and answers with what was put in it, in
// pieces of the given sizes, then ends.
type canned struct {
	b     []byte
	sizes []byte
}

func (c *canned) Read(p []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := len(c.b)
	if len(c.sizes) > 0 {
		n, c.sizes = int(c.sizes[0])+1, c.sizes[1:]
	}
	n = copy(p, c.b[:min(n, len(c.b))])
	c.b = c.b[n:]
	return n, nil
}
func (*canned) Write(p []byte) (int, error)      { return len(p), nil }
func (*canned) Close() error                     { return nil }
func (*canned) LocalAddr() net.Addr              { return nil }
func (*canned) RemoteAddr() net.Addr             { return nil }
func (*canned) SetDeadline(time.Time) error      { return nil }
func (*canned) SetReadDeadline(time.Time) error  { return nil }
func (*canned) SetWriteDeadline(time.Time) error { return nil }

// FuzzResponse: whatever an upstream sends, however it is cut, either the exchange
// fails or the client gets what net/http would have read.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		ok,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nX-T: t\r\n\r\n",
		"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.0 200 OK\r\nX: y\r\n\r\nto the end",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n00a\r\n0123456789\r\n000\r\n\r\n",
	} {
		f.Add([]byte(s), []byte{3, 20, 1, 1, 9})
	}
	f.Fuzz(func(t *testing.T, answer, sizes []byte) {
		l := NewLibrary(Options{Dial: func(context.Context, string, string) (net.Conn, error) {
			return &canned{bytes.Clone(answer), bytes.Clone(sizes)}, nil
		}})
		u, err := l.Upstream(to("http://a"))
		if err != nil {
			t.Fatal(err)
		}
		fw := Forward{Target: "/"}
		rec := httptest.NewRecorder()
		func() {
			defer func() {
				if p := recover(); p != nil && p != http.ErrAbortHandler {
					panic(p)
				}
			}()
			u.Forward(rec, httptest.NewRequest("GET", "/", nil), &fw)
		}()
		if fw.Result.Kind != KindNone {
			return
		}
		br := bufio.NewReader(bytes.NewReader(answer))
		res, err := http.ReadResponse(br, nil)
		for err == nil && res.StatusCode < 200 {
			res, err = http.ReadResponse(br, nil)
		}
		if err != nil {
			return
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			return
		}
		if fw.Result.Status != res.StatusCode || !bytes.Equal(rec.Body.Bytes(), body) {
			t.Fatalf("%d %q, net/http %d %q", fw.Result.Status, rec.Body, res.StatusCode, body)
		}
	})
}
