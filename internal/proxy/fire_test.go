package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// wrapBodies puts a reader around each request's body, as limits and tracing do:
// net/http does not know its own body then.
func wrapBodies(b *bench) {
	inner := b.front.Config.Handler
	b.front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 1<<30)
		inner.ServeHTTP(w, r)
	})
}

// A final answer instead of 100 Continue reaches a client that holds its body back,
// also where net/http would first read that body.
func TestAnswerInsteadOfContinue(t *testing.T) {
	for name, answer := range map[string]string{
		"large":  "HTTP/1.1 401 No\r\nContent-Length: 8192\r\n\r\n" + strings.Repeat("x", 8192),
		"pauses": "HTTP/1.1 401 No\r\nContent-Length: 8192\r\n\r\nx",
	} {
		t.Run(name, func(t *testing.T) {
			seen := make(chan struct{})
			u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
				if err := skipHead(br); err != nil {
					return
				}
				io.WriteString(c, answer)
				<-seen
				if name == "pauses" {
					io.WriteString(c, strings.Repeat("x", 8191))
				}
				io.Copy(io.Discard, br)
			})
			b := newBench(t, to(u.url()), Options{ExpectTimeout: time.Minute})
			wrapBodies(b)
			b.start()
			c := dialFront(t, b)
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\nExpect: 100-continue\r\n\r\n")
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			close(seen)
			if err != nil {
				t.Fatalf("no answer: %v", err)
			}
			n, err := io.Copy(io.Discard, res.Body)
			if err != nil || n != 8192 || res.StatusCode != 401 || !res.Close {
				t.Errorf("%d, %d bytes, close %v, %v", res.StatusCode, n, res.Close, err)
			}
			if r := b.soon(0); r.Kind != KindNone || r.Status != 401 {
				t.Errorf("%+v", r)
			}
		})
	}
}

// 100 and other 1xx heads that come at once go down one after another, none with
// the fields of the final head.
func TestContinueAmongOtherHeads(t *testing.T) {
	u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n"+strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n", 5))
			io.Copy(io.Discard, r.Body)
			io.WriteString(c, ok)
		}
	})
	b := newBench(t, to(u.url()), Options{ExpectTimeout: time.Minute})
	inner := b.front.Config.Handler
	b.front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Set-Before", "1")
		inner.ServeHTTP(w, r)
	})
	b.start()
	c := dialFront(t, b)
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	br := bufio.NewReader(c)
	for range 50 {
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
		var got []string
		for {
			res, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatalf("after %v: %v", got, err)
			}
			got = append(got, fmt.Sprint(res.StatusCode, " ", res.Header.Get("X-Set-Before"), res.Header.Get("Link")))
			if res.StatusCode == 100 {
				io.WriteString(c, "hello")
			}
			if res.StatusCode >= 200 {
				io.Copy(io.Discard, res.Body)
				break
			}
		}
		if s := strings.Join(got, "|"); s != "100 "+strings.Repeat("|103 a", 5)+"|200 1" {
			t.Fatal(s)
		}
	}
}

// A dying connection gives its reader TCP's own timeout once, and an end in order
// from then on.
type dying struct {
	net.Conn
	told bool
}

func (d *dying) Read(b []byte) (int, error) {
	if d.told {
		return 0, io.EOF
	}
	n, err := d.Conn.Read(b)
	if err == io.EOF {
		d.told = true
		err = &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ETIMEDOUT)}
	}
	return n, err
}

func TestI11_DeadUpstreamIsNoEnd(t *testing.T) {
	u := newRaw(t, once("HTTP/1.1 200 OK\r\n\r\nhello"))
	b := newBench(t, to(u.url()), Options{})
	b.lib.o.Dial = dialWith(func(c net.Conn) net.Conn { return &dying{Conn: c} })
	b.start()
	if _, body, err := get(t, b.front.URL); err == nil {
		t.Errorf("%q looked complete", body)
	}
	if r := b.soon(0); r.Kind != KindUpstreamReset || !errors.Is(r.Err, syscall.ETIMEDOUT) {
		t.Errorf("%+v", r)
	}
}

// A reset that the upload met is no end of the response either: the kernel tells of
// it once.
func TestI11_ResetInUploadIsNoEnd(t *testing.T) {
	const rounds = 40
	reset := make(chan struct{}, rounds)
	u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
		if err := skipHead(br); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nhello")
		<-reset
		_ = c.(*net.TCPConn).SetLinger(0)
	})
	b := newBench(t, to(u.url()), Options{}).start()
	for i := range rounds {
		c := dialFront(t, b)
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n")
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for buf := make([]byte, 64<<10); ; {
				if _, err := c.Write(buf); err != nil {
					return
				}
			}
		}()
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		reset <- struct{}{}
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
		}
		if r := b.soon(i); err == nil || r.Kind != KindUpstreamReset {
			t.Fatalf("%d: %v, %+v", i, err, r)
		}
		c.Close()
		<-sent
	}
}

// An upstream that ends its response in order while the client still sends, and
// then takes no more, has answered.
func TestOrderlyEndWhileUploading(t *testing.T) {
	u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
		if err := skipHead(br); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nhello")
		_ = c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, br)
	})
	b := newBench(t, to(u.url()), Options{}).start()
	c := dialFront(t, b)
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\nabc")
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(res.Body); err != nil || string(body) != "hello" {
		t.Errorf("%q, %v", body, err)
	}
	if r := b.soon(0); r.Kind != KindNone {
		t.Errorf("%+v", r)
	}
}

// On HTTP/2, too, a small body that never comes is the client's fault.
func TestSmallBodyThatStallsOverHTTP2(t *testing.T) {
	u := answers(t, ok)
	b := newBench(t, to(u.url()), Options{})
	b.up.def.IdleTimeout = 100 * time.Millisecond
	b.front.EnableHTTP2 = true
	b.front.StartTLS()
	body, w := io.Pipe()
	defer w.Close()
	go io.WriteString(w, "abc")
	req, err := http.NewRequest("POST", b.front.URL, body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = 10
	res, err := b.front.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if r := b.soon(0); res.StatusCode != 408 || r.Kind != KindTimeout || r.Err != errClientStalled {
		t.Errorf("%d, %+v", res.StatusCode, r)
	}
}

// To a client of HTTP/1.0 the end of a TLS session is the end of a body, so it is
// not told of one.
func TestI11_EarlyEndOverTLSToHTTP10(t *testing.T) {
	u := newRaw(t, once("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"))
	b := newBench(t, to(u.url()), Options{})
	b.front.StartTLS()
	c, err := tls.Dial("tcp", b.front.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET / HTTP/1.0\r\nHost: h\r\n\r\n")
	got, err := io.ReadAll(c)
	if err == nil {
		t.Errorf("%q ended in order", got)
	}
}

// dialWith opens real connections and hands them through wrap.
func dialWith(wrap func(net.Conn) net.Conn) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return wrap(c), nil
	}
}

// A tunnel of which one half ended lives on for as long as the other moves.
func TestTunnelOutlivesIdleAfterOneHalf(t *testing.T) {
	const lines = 30
	u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
		if err := skipHead(br); err != nil {
			return
		}
		io.WriteString(c, switching)
		io.Copy(io.Discard, br)
		for range lines {
			<-time.After(100 * time.Millisecond)
			if _, err := io.WriteString(c, "line\n"); err != nil {
				return
			}
		}
	})
	b := newBench(t, to(u.url()), Options{})
	b.up.def.IdleTimeout = time.Second
	b.start()
	c, br, _ := upgraded(t, b, "")
	c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(br); err != nil || len(got) != 5*lines {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if r := b.soon(0); r.Kind != KindNone || r.BytesOut != 5*lines {
		t.Errorf("%+v", r)
	}
}

// A half that moves nothing after the other ended is cut.
func TestTunnelHalfThatMovesNothing(t *testing.T) {
	end := make(chan struct{})
	u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
		if err := skipHead(br); err != nil {
			return
		}
		io.WriteString(c, switching+"line\n")
		<-end
	})
	defer close(end)
	b := newBench(t, to(u.url()), Options{})
	b.up.def.IdleTimeout = 100 * time.Millisecond
	b.start()
	c, _, _ := upgraded(t, b, "")
	c.(*net.TCPConn).CloseWrite()
	if r := b.soon(0); !r.Upgraded || r.Kind == KindNone {
		t.Errorf("%+v", r)
	}
}

// A target is blamed for not taking a connection only after all the time it has a
// right to, not for what a slow client left of the request's.
func TestSlowClientsMarkNoTarget(t *testing.T) {
	for name, tc := range map[string]struct {
		connect, overall time.Duration
		down             int
	}{
		"too little time": {time.Minute, 100 * time.Millisecond, 0},
		"enough":          {100 * time.Millisecond, time.Minute, 1},
	} {
		t.Run(name, func(t *testing.T) {
			def := to("http://a.test")
			def.ConnectTimeout = tc.connect
			b := newBench(t, def, Options{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}})
			b.edit = func(_ *http.Request, f *Forward) { f.Timeout = tc.overall }
			b.start()
			io.WriteString(dialFront(t, b), "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
			if r := b.soon(0); r.Kind != KindTimeout || r.Status != 504 {
				t.Errorf("%+v", r)
			}
			if s := b.lib.Stats(); s.Down != tc.down {
				t.Errorf("%+v", s)
			}
		})
	}
	t.Run("none left", func(t *testing.T) {
		b := newBench(t, to("http://a.test"), Options{Dial: func(context.Context, string, string) (net.Conn, error) {
			t.Error("dialled")
			return nil, errors.New("no")
		}})
		b.edit = func(_ *http.Request, f *Forward) { f.Timeout = time.Nanosecond }
		b.start()
		io.WriteString(dialFront(t, b), "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		if r := b.soon(0); r.Kind != KindTimeout || r.Err != errOverall {
			t.Errorf("%+v", r)
		}
	})
}

// The route's Timeout ends a request that the upstream does not take, however
// long an idle connection may be.
func TestTimeoutBoundsTheRequestsWrite(t *testing.T) {
	end := make(chan struct{})
	defer close(end)
	u := newRaw(t, func(int, net.Conn, *bufio.Reader) { <-end })
	b := newBench(t, to(u.url()), Options{})
	b.up.def.IdleTimeout = time.Minute
	b.lib.o.Dial = dialWith(func(c net.Conn) net.Conn { return &stuck{Conn: c} })
	b.edit = func(_ *http.Request, f *Forward) { f.Timeout = 200 * time.Millisecond }
	b.start()
	io.WriteString(dialFront(t, b), "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	if r := b.soon(0); r.Kind != KindTimeout || r.Status != 504 {
		t.Errorf("%+v", r)
	}
}

// A stuck connection takes as much as its socket has room for, and then waits: a
// write fills it up first.
type stuck struct{ net.Conn }

func (s *stuck) Write(b []byte) (int, error) {
	for {
		if _, err := s.Conn.Write(make([]byte, 1<<20)); err != nil {
			return 0, err
		}
	}
}

// A client that is still sending when the route's Timeout ends used it up itself.
func TestSlowUploadThatMeetsTheTimeout(t *testing.T) {
	u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) { io.Copy(io.Discard, br) })
	b := newBench(t, to(u.url()), Options{})
	b.edit = func(_ *http.Request, f *Forward) { f.Timeout = 500 * time.Millisecond }
	b.start()
	c := dialFront(t, b)
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\nabc")
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != 408 {
		t.Errorf("%v, %v", res, err)
	}
	if r := b.soon(0); r.Kind != KindTimeout || r.Err != errClientStalled {
		t.Errorf("%+v", r)
	}
}

// Who reset a connection in the middle of a large body is told apart.
func TestResetsWhileSplicing(t *testing.T) {
	for _, who := range []string{"client", "upstream"} {
		t.Run(who, func(t *testing.T) {
			const rounds = 30
			reset := make(chan struct{}, rounds)
			u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
				if err := skipHead(br); err != nil {
					return
				}
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
				buf := make([]byte, 64<<10)
				for {
					select {
					case <-reset:
						_ = c.(*net.TCPConn).SetLinger(0)
						return
					default:
					}
					if _, err := c.Write(buf); err != nil {
						return
					}
				}
			})
			b := newBench(t, to(u.url()), Options{}).start()
			for i := range rounds {
				c := dialFront(t, b)
				io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
				if _, err := io.CopyN(io.Discard, c, 2<<20); err != nil {
					t.Fatal(err)
				}
				want := KindClientGone
				if who == "client" {
					_ = c.(*net.TCPConn).SetLinger(0)
					c.Close()
				} else {
					want = KindUpstreamReset
					reset <- struct{}{}
					io.Copy(io.Discard, c)
				}
				if r := b.soon(i); r.Kind != want {
					t.Fatalf("%d: %+v", i, r)
				}
			}
		})
	}
}
