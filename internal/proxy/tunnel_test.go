package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// upgraded opens a tunnel through b and returns the client's end of it.
func upgraded(t *testing.T, b *bench, early string) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	c, err := net.Dial("tcp", b.front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-Websocket-Key: x\r\n\r\n"+early)
	br := bufio.NewReader(c)
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, br, res
}

func echo(head string) func(int, net.Conn, *bufio.Reader) {
	return func(_ int, c net.Conn, br *bufio.Reader) {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		if r.Header.Get("Connection") != "Upgrade" || r.Header.Get("Upgrade") != "WebSocket" || r.Header.Get("Sec-Websocket-Key") != "x" {
			io.WriteString(c, "HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n")
			return
		}
		io.WriteString(c, head)
		io.Copy(c, br)
	}
}

const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-Websocket-Accept: y\r\n\r\n"

func TestUpgrade(t *testing.T) {
	u := newRaw(t, echo(switching+"hello\n"))
	b := newBench(t, to(u.url()), Options{})
	b.up.def.IdleTimeout = time.Second // of no concern to a tunnel
	b.edit = func(_ *http.Request, f *Forward) {
		f.Timeout = time.Second // nor is this
		f.OnHead = func(status int, h http.Header) { h.Set("X-Status", fmt.Sprint(status)) }
	}
	b.start()
	c, br, res := upgraded(t, b, "early\n")
	if res.StatusCode != 101 || res.Header.Get("Upgrade") != "websocket" || res.Header.Get("Sec-Websocket-Accept") != "y" || res.Header.Get("X-Status") != "101" {
		t.Fatalf("%d %v", res.StatusCode, res.Header)
	}
	for _, want := range []string{"hello\n", "early\n"} {
		if line, err := br.ReadString('\n'); line != want {
			t.Fatalf("%q, %v", line, err)
		}
	}
	if s := b.lib.Stats(); s.Tunnels != 1 {
		t.Errorf("%+v", s)
	}
	// The upstream's definition goes away; the tunnel does not. And it may rest.
	b.lib.Keep(func(*Upstream) bool { return false })
	b.lib.Keep(func(*Upstream) bool { return false })
	rested := time.NewTimer(1500 * time.Millisecond)
	<-rested.C
	for i := range 100 {
		fmt.Fprintf(c, "line %d\n", i)
		if line, err := br.ReadString('\n'); line != fmt.Sprintf("line %d\n", i) {
			t.Fatalf("%q, %v", line, err)
		}
	}
	c.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(br); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
	if r := b.result(0); !r.Upgraded || r.Status != 101 || r.Kind != KindNone || r.BytesOut-r.BytesIn != 6 {
		t.Errorf("%+v", r)
	}
	if s := b.lib.Stats(); s.Tunnels != 0 {
		t.Errorf("%+v", s)
	}
}

func TestUpgradeIsNotForcedOnAnyone(t *testing.T) {
	for name, tc := range map[string]struct {
		answer string
		status int
		kind   ErrKind
	}{
		"refused":          {"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", 403, KindNone},
		"ignored":          {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", 200, KindNone},
		"another protocol": {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 502, KindBadResponse},
		"no protocol":      {"HTTP/1.1 101 Switching Protocols\r\n\r\n", 502, KindBadResponse},
	} {
		t.Run(name, func(t *testing.T) {
			u := newRaw(t, echo(tc.answer))
			b := newBench(t, to(u.url()), Options{}).start()
			_, _, res := upgraded(t, b, "")
			if r := b.result(0); res.StatusCode != tc.status || r.Kind != tc.kind || r.Upgraded {
				t.Errorf("%d, %+v", res.StatusCode, r)
			}
		})
	}
}

func TestTunnelEndsWithEitherSideOrTheLibrary(t *testing.T) {
	for _, who := range []string{"upstream", "client", "client resets", "library"} {
		t.Run(who, func(t *testing.T) {
			end := make(chan struct{})
			u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
				if _, err := http.ReadRequest(br); err != nil {
					return
				}
				io.WriteString(c, switching)
				if who == "upstream" {
					<-end
					return
				}
				io.Copy(io.Discard, br)
			})
			b := newBench(t, to(u.url()), Options{})
			b.up.def.IdleTimeout = 50 * time.Millisecond
			b.start()
			c, br, _ := upgraded(t, b, "")
			switch who {
			case "upstream":
				close(end)
				if _, err := io.Copy(io.Discard, br); err != nil {
					t.Error(err)
				}
			case "client":
				c.Close()
			case "client resets":
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
			case "library":
				b.lib.Close()
			}
			if r := b.result(0); !r.Upgraded {
				t.Errorf("%+v", r)
			}
		})
	}
}

// Bytes move both ways at once, more than all buffers hold.
func TestTunnelIsFullDuplex(t *testing.T) {
	u := newRaw(t, echo(switching))
	b := newBench(t, to(u.url()), Options{}).start()
	c, br, _ := upgraded(t, b, "")
	const n = 8 << 20
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, io.LimitReader(strings.NewReader(strings.Repeat("x", n)), n))
		sent <- err
	}()
	if _, err := io.CopyN(io.Discard, br, n); err != nil {
		t.Error(err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	c.Close()
	if r := b.result(0); r.BytesIn != n || r.BytesOut != n {
		t.Errorf("%+v", r)
	}
}
