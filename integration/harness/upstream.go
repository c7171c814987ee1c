package harness

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// An Upstream is a server that routes are proxied to.
type Upstream struct {
	*httptest.Server
	Slow atomic.Int32 // how many requests to /slow have arrived
}

// StartUpstream runs what the routes of Marked proxy to:
//
//	/echo/…  answers with the X-Mark that the route set, a space and the path it was asked for
//	/slow    answers after the time in ?for=
//	/events  a stream of server-sent events, one each 50 ms, without end
//	/ws      an upgrade, and then an echo of lines
func StartUpstream(t testing.TB) *Upstream {
	t.Helper()
	return StartUpstreamAt(t, "127.0.0.1")
}

// StartUpstreamAt is StartUpstream on another of the machine's addresses.
func StartUpstreamAt(t testing.TB, host string) *Upstream {
	t.Helper()
	u := &Upstream{}
	mux := http.NewServeMux()
	mux.HandleFunc("/echo/", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("X-Mark")+" "+r.URL.Path)
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		u.Slow.Add(1)
		d, err := time.ParseDuration(r.URL.Query().Get("for"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		time.Sleep(d)
		_, _ = io.WriteString(w, "slept "+d.String())
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			if _, err := fmt.Fprintf(w, "data: %d\n\n", n); err != nil {
				return
			}
			if err := http.NewResponseController(w).Flush(); err != nil {
				return
			}
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("/ws", echoLines)
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatalf("start an upstream: %v", err)
	}
	u.Server = &httptest.Server{Listener: l, Config: &http.Server{Handler: mux}}
	u.Start()
	t.Cleanup(func() {
		u.CloseClientConnections()
		u.Close()
	})
	return u
}

// echoLines speaks the upgrade and then lines in place of WebSocket frames:
// what a proxy carries is the same.
func echoLines(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "websocket" {
		http.Error(w, "want an upgrade", http.StatusBadRequest)
		return
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer c.Close()
	_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	for in := bufio.NewScanner(rw); in.Scan(); {
		if _, err := io.WriteString(c, "echo "+in.Text()+"\n"); err != nil {
			return
		}
	}
}
