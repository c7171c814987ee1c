package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"

	"routerd.dev/internal/route"
)

// Each event reaches the client before the next is made: nothing is held back
// while the upstream pauses, whatever the framing.
func TestEventsAreNotHeldBack(t *testing.T) {
	for name, head := range map[string]string{
		"chunked": "Transfer-Encoding: chunked\r\n",
		"to end":  "",
		"length":  "Content-Length: 40\r\n",
		"long":    "Content-Length: 100000\r\n",
	} {
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " h2=", h2), func(t *testing.T) {
				seen := make(chan struct{})
				u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
					if _, err := http.ReadRequest(br); err != nil {
						return
					}
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"+head+"\r\n")
					<-seen
					for i := range 10 {
						if name == "chunked" {
							fmt.Fprintf(c, "4\r\nev%d\n\r\n", i)
						} else {
							fmt.Fprintf(c, "ev%d\n", i)
						}
						<-seen
					}
				})
				b := newBench(t, to(u.url()), Options{})
				if b.front.EnableHTTP2 = h2; h2 {
					b.front.StartTLS()
				} else {
					b.start()
				}
				res, err := b.front.Client().Get(b.front.URL)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				seen <- struct{}{} // the head alone
				br := bufio.NewReader(res.Body)
				for i := range 10 {
					line, err := br.ReadString('\n')
					if err != nil || line != fmt.Sprintf("ev%d\n", i) {
						t.Fatalf("%q, %v", line, err)
					}
					seen <- struct{}{}
				}
			})
		}
	}
}

// The upstream answers each piece of the upload before the next is sent.
func TestUploadAndResponseAtOnce(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprint("h2=", h2), func(t *testing.T) {
			u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
				for {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
					buf := make([]byte, 100)
					for {
						n, err := r.Body.Read(buf)
						if n > 0 {
							fmt.Fprintf(c, "%x\r\n%s\r\n", n, buf[:n])
						}
						if err != nil {
							break
						}
					}
					io.WriteString(c, "0\r\n\r\n")
				}
			})
			b := newBench(t, to(u.url()), Options{})
			if b.front.EnableHTTP2 = h2; h2 {
				b.front.StartTLS()
			} else {
				b.start()
			}
			for range 2 {
				pr, pw := io.Pipe()
				req, _ := http.NewRequest("POST", b.front.URL, pr)
				res, err := b.front.Client().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 5)
				for i := range 20 {
					fmt.Fprintf(pw, "no %02d", i)
					if _, err := io.ReadFull(res.Body, buf); err != nil || string(buf) != fmt.Sprintf("no %02d", i) {
						t.Fatalf("%q, %v", buf, err)
					}
				}
				pw.Close()
				if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
					t.Fatalf("%q, %v", rest, err)
				}
				res.Body.Close()
			}
			if r := b.result(1); r.Kind != KindNone || r.BytesIn != 100 || r.BytesOut != 100 {
				t.Errorf("%+v", r)
			}
			if u.conns() != 1 {
				t.Errorf("%d upstream connections: both ways ended in order, so one does", u.conns())
			}
		})
	}
}

// An upstream that answers without reading the body is heard at once; the client's
// unfinished body does not become the next request.
func TestEarlyResponseWhileUploading(t *testing.T) {
	for name, framing := range map[string]string{"length": "Content-Length: 1000000", "chunked": "Transfer-Encoding: chunked"} {
		for _, after := range []string{"close", "keep"} {
			t.Run(name+" "+after, func(t *testing.T) {
				u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
					for {
						line, err := br.ReadString('\n')
						if err != nil {
							return
						}
						if line == "\r\n" {
							break
						}
					}
					io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nmuch")
					if after == "keep" {
						io.Copy(io.Discard, br)
					}
				})
				b := newBench(t, to(u.url()), Options{}).start()
				c, err := net.Dial("tcp", b.front.Listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: h\r\n%s\r\n\r\n", framing)
				br := bufio.NewReader(c)
				res, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				if err != nil || res.StatusCode != 413 || string(body) != "much" || !res.Close {
					t.Fatalf("%d %q %v, close %v", res.StatusCode, body, err, res.Close)
				}
				io.WriteString(c, "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")
				if res, err := http.ReadResponse(br, nil); err == nil {
					t.Errorf("the body was taken for a request: %d", res.StatusCode)
				}
				if r := b.result(0); r.Kind != KindNone || r.Status != 413 {
					t.Errorf("%+v", r)
				}
				if s := b.lib.Stats(); s.Idle != 0 {
					t.Errorf("%+v: the upstream still waits for the body", s)
				}
			})
		}
	}
}

func TestContinueIsTheUpstreams(t *testing.T) {
	u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if r.Header.Get("Expect") != "100-continue" {
				io.WriteString(c, "HTTP/1.1 500 No Expect\r\nContent-Length: 0\r\n\r\n")
				return
			}
			switch r.URL.Path {
			case "/no":
				io.WriteString(c, "HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
				return
			case "/yes":
				io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
			case "/silent": // waits for the body, as HTTP/1.0 does
			}
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
	})
	b := newBench(t, to(u.url()), Options{ExpectTimeout: 1e9}).start()
	for _, tc := range []struct{ path, want string }{
		{"/yes", "HTTP/1.1 100 Continue|HTTP/1.1 200 OK"},
		{"/no", "HTTP/1.1 417 Expectation Failed"},
		{"/silent", "HTTP/1.1 100 Continue|HTTP/1.1 200 OK"},
	} {
		c, err := net.Dial("tcp", b.front.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", tc.path)
		br := textproto.NewReader(bufio.NewReader(c))
		var got []string
		for {
			line, err := br.ReadLine()
			if err != nil {
				break
			}
			h, _ := br.ReadMIMEHeader()
			got = append(got, line)
			if strings.Contains(line, "100") {
				io.WriteString(c, "hello")
				continue
			}
			if line == "HTTP/1.1 200 OK" {
				body := make([]byte, 5)
				if io.ReadFull(br.R, body); string(body) != "hello" || h.Get("Content-Length") != "5" {
					t.Errorf("%s: body %q", tc.path, body)
				}
			}
			break
		}
		c.Close()
		if s := strings.Join(got, "|"); s != tc.want {
			t.Errorf("%s: %s, want %s", tc.path, s, tc.want)
		}
	}
}

func TestInformationalHeadsAndTrailers(t *testing.T) {
	u := newRaw(t, always("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"+
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Told, Content-Length\r\nX-A: b\r\n\r\n5\r\nhello\r\n0\r\nX-Told: 1\r\nX-Untold: 2\r\nContent-Length: 9\r\nSet-Cookie: evil\r\n\r\n"))
	for _, h2 := range []bool{false, true} {
		b := newBench(t, to(u.url()), Options{})
		b.edit = func(_ *http.Request, f *Forward) {
			f.OnHead = func(status int, h http.Header) { h.Set("X-Status", fmt.Sprint(status)) }
		}
		inner := b.front.Config.Handler
		b.front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Set-Before", "1") // is of the final head only
			inner.ServeHTTP(w, r)
		})
		if b.front.EnableHTTP2 = h2; h2 {
			b.front.StartTLS()
		} else {
			b.start()
		}
		var infos []string
		req, _ := http.NewRequest("GET", b.front.URL, nil)
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				infos = append(infos, fmt.Sprint(code, h))
				return nil
			},
		}))
		res, err := b.front.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || string(body) != "hello" {
			t.Fatalf("%q, %v", body, err)
		}
		if got := fmt.Sprint(infos); got != "[103 map[Link:[</a>; rel=preload]]]" {
			t.Errorf("h2=%v: 1xx %s", h2, got)
		}
		if got := fmt.Sprint(res.Trailer); got != "map[X-Told:[1] X-Untold:[2]]" {
			t.Errorf("h2=%v: trailers %s", h2, got)
		}
		if res.Header.Get("X-Status") != "200" || res.Header.Get("X-A") != "b" || res.Header.Get("X-Set-Before") != "1" || res.Header.Get("Link") != "" {
			t.Errorf("h2=%v: %v", h2, res.Header)
		}
	}
}

// What w holds before stays; fields of the same name are added to.
func TestFieldsThatWereSetBefore(t *testing.T) {
	u := newRaw(t, always("HTTP/1.1 200 OK\r\nX-A: up\r\nVary: b\r\nVary: c\r\nContent-Length: 0\r\n\r\n"))
	b := newBench(t, to(u.url()), Options{Via: "routerd"})
	inner := b.front.Config.Handler
	b.front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Vary", "a")
		w.Header().Set("X-B", "front")
		inner.ServeHTTP(w, r)
	})
	b.start()
	res, _, err := get(t, b.front.URL)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(res.Header["Vary"], res.Header["X-A"], res.Header["X-B"], res.Header["Via"]); got != "[a b c] [up] [front] [1.1 routerd]" {
		t.Error(got)
	}
}

// OnHead sees this package's own answers too, and a panic of it leaves nothing behind.
func TestOnHead(t *testing.T) {
	u := newRaw(t, always("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"))
	b := newBench(t, to(u.url()), Options{})
	b.front.Config.ErrorLog = discardLog()
	b.edit = func(_ *http.Request, f *Forward) {
		f.OnHead = func(int, http.Header) { panic("of a middleware") }
	}
	b.start()
	if res, _, err := get(t, b.front.URL); err == nil {
		t.Errorf("answered %d", res.StatusCode)
	}
	if s := b.lib.Stats(); s.Idle != 0 {
		t.Errorf("%+v: the connection was in the middle of a response", s)
	}

	down := newBench(t, to("http://"+closedPort(t)), Options{})
	down.edit = func(_ *http.Request, f *Forward) {
		f.OnHead = func(status int, h http.Header) { h.Set("X-Status", fmt.Sprint(status)) }
	}
	down.start()
	res, _, err := get(t, down.front.URL)
	if err != nil || res.StatusCode != 502 || res.Header.Get("X-Status") != "502" {
		t.Errorf("%v, %v", res, err)
	}
	if r := down.result(0); r.Kind != KindConnect {
		t.Errorf("%+v", r)
	}
}

func TestHeadOfHTTP2Front(t *testing.T) {
	u := newCatcher(t)
	def := to(u.url())
	def.HostMode = route.HostTarget
	b := newBench(t, def, Options{})
	b.front.EnableHTTP2 = true
	b.front.StartTLS()
	res, err := b.front.Client().Get(b.front.URL + "/x?y")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	got := withoutHops(t, lines(<-u.got))
	want := fmt.Sprintf("GET /x?y HTTP/1.1|Accept-Encoding: gzip|Host: %s|User-Agent: Go-http-client/2.0|X-Forwarded-For: 127.0.0.1|X-Forwarded-Host: %s|X-Forwarded-Proto: https",
		u.ln.Addr(), b.front.Listener.Addr())
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}
