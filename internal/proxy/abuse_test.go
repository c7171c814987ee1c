package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// withoutHops joins a request's lines but for the count of hops, which every
// request to an upstream must have.
func withoutHops(t testing.TB, lines []string) string {
	t.Helper()
	all := strings.Join(lines, "|")
	if strings.Count(all, "|Routerd-Hops: 1") != 1 {
		t.Errorf("no count of hops in %s", all)
	}
	return strings.Replace(all, "|Routerd-Hops: 1", "", 1)
}

// soon fails the test rather than wait for an exchange that nothing ends.
func (b *bench) soon(n int) Result {
	b.t.Helper()
	got := make(chan Result, 1)
	go func() { got <- b.result(n) }()
	select {
	case r := <-got:
		return r
	case <-time.After(10 * time.Second):
		b.t.Fatalf("exchange %d is held forever", n)
		return Result{}
	}
}

// answers serves every request with the same bytes.
func answers(t testing.TB, response string) *raw {
	return newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			if _, err := io.WriteString(c, response); err != nil {
				return
			}
		}
	})
}

func dialFront(t testing.TB, b *bench) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", b.front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A body that is small enough to be read whole, but never comes, ends the exchange.
func TestSmallBodyThatStalls(t *testing.T) {
	u := answers(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	for _, overall := range []bool{false, true} {
		b := newBench(t, to(u.url()), Options{})
		if overall {
			b.edit = func(_ *http.Request, f *Forward) { f.Timeout = 100 * time.Millisecond }
		} else {
			b.up.def.IdleTimeout = 100 * time.Millisecond
		}
		b.start()
		c := dialFront(t, b)
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc")
		if r := b.soon(0); r.Kind != KindTimeout || r.Err != errClientStalled || r.Status != 408 {
			t.Errorf("result %+v", r)
		}
		if res, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || res.StatusCode != 408 || !res.Close {
			t.Errorf("%v %v", res, err)
		}
	}
}

// The deadline of a small body does not reach beyond it: a response may take
// longer, and the connection carries the next request.
func TestSmallBodyLeavesNoDeadline(t *testing.T) {
	u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			<-time.After(300 * time.Millisecond)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	for _, h2 := range []bool{false, true} {
		b := newBench(t, to(u.url()), Options{})
		b.up.def.IdleTimeout = 100 * time.Millisecond
		b.front.EnableHTTP2 = h2
		if h2 {
			b.front.StartTLS()
		} else {
			b.start()
		}
		for range 2 {
			res, err := b.front.Client().Post(b.front.URL, "text/plain", strings.NewReader("hello"))
			if err != nil {
				t.Fatalf("h2 %v: %v", h2, err)
			}
			got, err := io.ReadAll(res.Body)
			if err != nil || string(got) != "ok" {
				t.Errorf("h2 %v: %q %v", h2, got, err)
			}
			res.Body.Close()
		}
	}
}

// A client that sends requests and reads none of the answers, each of which
// alone would fit into the socket's buffers, does not hold an exchange.
func TestAnswersThatNobodyReads(t *testing.T) {
	u := answers(t, "HTTP/1.1 200 OK\r\nContent-Length: 16384\r\n\r\n"+strings.Repeat("x", 16<<10))
	b := newBench(t, to(u.url()), Options{})
	b.up.def.IdleTimeout = 200 * time.Millisecond
	b.start()
	c := dialFront(t, b)
	_ = c.(*net.TCPConn).SetReadBuffer(4 << 10)
	go func() {
		for {
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
				return
			}
		}
	}()
	for i := 0; ; i++ {
		if r := b.soon(i); r.Kind != KindNone {
			if r.Kind != KindTimeout || r.Err != errClientStalled {
				t.Errorf("result %+v", r)
			}
			return
		}
	}
}

// On HTTP/2 a client that opens no window stops an answer at its first byte.
func TestStreamWithoutAWindow(t *testing.T) {
	u := answers(t, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	b := newBench(t, to(u.url()), Options{})
	b.up.def.IdleTimeout = 100 * time.Millisecond
	b.front.EnableHTTP2 = true
	b.front.StartTLS()
	c, err := tls.Dial("tcp", b.front.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, http2.ClientPreface)
	fr := http2.NewFramer(c, c)
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "h"}, {":path", "/"}} {
		must(enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	must(fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndHeaders: true, EndStream: true}))
	must(c.SetReadDeadline(time.Now().Add(10 * time.Second)))
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatalf("the stream is held forever: %v", err)
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				must(fr.WriteSettingsAck())
			}
		case *http2.RSTStreamFrame:
			return
		}
	}
}

// A response whose head came early stays alive for as long as the upload that
// it waits for makes progress, on HTTP/2 too.
func TestEarlyHeadOutlastsIdleWhileUploading(t *testing.T) {
	u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
		_, _ = io.Copy(io.Discard, r.Body)
		io.WriteString(c, "ok")
	})
	for _, h2 := range []bool{false, true} {
		b := newBench(t, to(u.url()), Options{})
		b.up.def.IdleTimeout = time.Second
		b.front.EnableHTTP2 = true
		if h2 {
			b.front.StartTLS()
		} else {
			b.start()
		}
		body, w := io.Pipe()
		go func() {
			for range 30 {
				<-time.After(50 * time.Millisecond)
				if _, err := w.Write([]byte("x")); err != nil {
					return
				}
			}
			w.Close()
		}()
		res, err := b.front.Client().Post(b.front.URL, "text/plain", body)
		if err != nil {
			t.Fatalf("h2 %v: %v", h2, err)
		}
		if got, err := io.ReadAll(res.Body); err != nil || string(got) != "ok" {
			t.Errorf("h2 %v: %q, %v", h2, got, err)
		}
		res.Body.Close()
	}
}

// An upstream that is routerd itself ends in an answer, not with every
// connection taken.
func TestUpstreamThatLeadsBack(t *testing.T) {
	b := newBench(t, to("http://127.0.0.1:1"), Options{})
	b.start()
	own, err := b.lib.Upstream(to(b.front.URL))
	if err != nil {
		t.Fatal(err)
	}
	b.up = own
	c := dialFront(t, b)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\nConnection: Routerd-Hops\r\nRouterd-Hops: nonsense\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != http.StatusLoopDetected {
		t.Fatalf("%v %v", res, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.results); n > maxHops+2 {
		t.Errorf("%d rounds", n)
	}
}

// What may not come in a head may not come in trailers either, where some
// servers and clients take it for a part of the head.
func TestTrailersClaimNothing(t *testing.T) {
	got := make(chan string, 2)
	u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
		var b strings.Builder
		for !strings.HasSuffix(b.String(), "\r\n\r\n") || strings.Count(b.String(), "\r\n\r\n") < 2 {
			line, err := br.ReadString('\n')
			if err != nil {
				return
			}
			b.WriteString(line)
		}
		got <- b.String()
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nRouterd-Revision: 9\r\nX-Sum: 1\r\n\r\n")
	})
	const in = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X-Forwarded-For, Forwarded, Routerd-Hops, X-Sum\r\n\r\n" +
		"1\r\na\r\n0\r\nX-Forwarded-For: 10.0.0.1\r\nForwarded: for=10.0.0.1\r\nX_forwarded_proto: https\r\nRouterd-Hops: 0\r\nX-Sum: 1\r\n\r\n"
	for _, trusted := range []bool{false, true} {
		b := newBench(t, to(u.url()), Options{})
		b.edit = func(_ *http.Request, f *Forward) { f.TrustedPeer = trusted }
		b.start()
		c := dialFront(t, b)
		io.WriteString(c, in)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		if res.Trailer.Get("X-Sum") != "1" || res.Trailer["Routerd-Revision"] != nil {
			t.Errorf("trailers of the response: %v", res.Trailer)
		}
		head, trailer, _ := strings.Cut(<-got, "\r\n\r\n")
		if !strings.Contains(trailer, "X-Sum: 1") || strings.Contains(trailer, "Hops") || strings.Contains(head, "Trailer: \r\n") {
			t.Errorf("%q %q", head, trailer)
		}
		if claims := strings.Contains(strings.ToLower(trailer), "forwarded"); claims != trusted {
			t.Errorf("trusted %v: trailers %q", trusted, trailer)
		}
	}
}

// However many targets swallow connects or are known to be down, a request is
// answered after a few.
func TestTriesAreBounded(t *testing.T) {
	var urls []string
	for i := range 40 {
		urls = append(urls, fmt.Sprintf("http://192.0.2.1:%d", 1000+i))
	}
	refuse := errors.New("refused")
	for _, tc := range []struct {
		name     string
		dial     func(ctx context.Context, network, address string) (net.Conn, error)
		down     bool
		attempts int
		kind     ErrKind
	}{
		{"silent", func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }, false, maxStalls, KindTimeout},
		{"down", func(context.Context, string, string) (net.Conn, error) { return nil, refuse }, true, maxDown, KindConnect},
		{"refusing", func(context.Context, string, string) (net.Conn, error) { return nil, refuse }, false, 40, KindConnect},
	} {
		t.Run(tc.name, func(t *testing.T) {
			def := to(urls...)
			def.ConnectTimeout = 20 * time.Millisecond
			b := newBench(t, def, Options{Dial: tc.dial}).start()
			if tc.down {
				for _, target := range b.up.targets {
					target.markDown()
				}
			}
			io.WriteString(dialFront(t, b), "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
			if r := b.soon(0); r.Attempts != tc.attempts || r.Kind != tc.kind {
				t.Errorf("result %+v", r)
			}
		})
	}
}

// A response that lists a thousand fields in Connection is refused before each
// of them is looked for.
func TestConnectionListsTooMuch(t *testing.T) {
	u := answers(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: "+strings.Repeat("a, ", 1000)+"b\r\n\r\n")
	b := newBench(t, to(u.url()), Options{}).start()
	io.WriteString(dialFront(t, b), "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	if r := b.soon(0); r.Kind != KindBadResponse {
		t.Errorf("result %+v", r)
	}
}
