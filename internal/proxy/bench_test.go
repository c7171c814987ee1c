package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// BenchmarkProxy measures one request over keep-alive connections to a front on
// net/http, 16 clients at once: the front answering by itself, through Forward,
// and through httputil.ReverseProxy. The clients and the upstream are as lean
// as they can be, so that allocations and most of the time are the front's.
func BenchmarkProxy(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 1 << 20} {
		answer := []byte(fmt.Sprintf("HTTP/1.1 200 OK\r\nServer: lean\r\nDate: Mon, 02 Jan 2006 15:04:05 GMT\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s",
			size, strings.Repeat("x", size)))
		u := newRaw(b, func(_ int, c net.Conn, br *bufio.Reader) {
			for {
				if err := skipHead(br); err != nil {
					return
				}
				if _, err := c.Write(answer); err != nil {
					return
				}
			}
		})
		body := answer[len(answer)-size:]
		lib := NewLibrary(Options{})
		defer lib.Close()
		up, err := lib.Upstream(to(u.url()))
		if err != nil {
			b.Fatal(err)
		}
		target, _ := url.Parse(u.url())
		rp := &httputil.ReverseProxy{
			Rewrite:   func(pr *httputil.ProxyRequest) { pr.SetURL(target); pr.SetXForwarded() },
			Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
		}
		defer rp.Transport.(*http.Transport).CloseIdleConnections()
		peer := netip.MustParseAddr("127.0.0.1")
		for _, front := range []struct {
			name string
			h    http.HandlerFunc
		}{
			{"direct", func(w http.ResponseWriter, r *http.Request) {
				w.Header()["Content-Type"] = []string{"text/plain"}
				w.Header()["Content-Length"] = []string{fmt.Sprint(size)}
				w.Write(body)
			}},
			{"Forward", func(w http.ResponseWriter, r *http.Request) {
				f := Forward{Target: r.RequestURI, Peer: peer}
				up.Forward(w, r, &f)
			}},
			{"ReverseProxy", rp.ServeHTTP},
		} {
			b.Run(fmt.Sprintf("%s/%dKiB", front.name, size>>10), func(b *testing.B) {
				srv := httptest.NewServer(front.h)
				defer srv.Close()
				load(b, srv.Listener.Addr().String(), len(answer), size)
			})
		}
	}
}

func load(b *testing.B, addr string, _, size int) {
	const clients = 16
	b.ReportAllocs()
	var wg sync.WaitGroup
	for i := range clients {
		n := b.N / clients
		if i < b.N%clients {
			n++
		}
		c, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			defer c.Close()
			br := bufio.NewReaderSize(c, 32<<10)
			for range n {
				io.WriteString(c, "GET /a/b?c=d HTTP/1.1\r\nHost: example.com\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
				if err := skipHead(br); err != nil {
					b.Error(err)
					return
				}
				if _, err := br.Discard(size); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// skipHead reads up to an empty line.
func skipHead(br *bufio.Reader) error {
	for {
		line, err := br.ReadSlice('\n')
		if err != nil || len(line) == 2 {
			return err
		}
	}
}
