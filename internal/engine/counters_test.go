package engine

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"routerd.dev/internal/middleware"
	"routerd.dev/internal/route"
)

// mute accepts connections and never says anything.
func mute(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
		}
	}()
	return l.Addr().String()
}

// faults is an upstream that fails as it is asked to.
func faults(w http.ResponseWriter, r *http.Request) {
	half := func() {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "half of it")
		w.(http.Flusher).Flush()
	}
	switch r.URL.Path {
	case "/500", "/404", "/405":
		var status int
		fmt.Sscan(r.URL.Path[1:], &status)
		w.WriteHeader(status)
	case "/cut":
		half()
		panic(http.ErrAbortHandler)
	case "/stall":
		half()
		<-r.Context().Done()
	case "/garbage":
		c, _, _ := w.(http.Hijacker).Hijack()
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nnonsense\r\n")
		c.Close()
	case "/endless":
		for block := make([]byte, 64<<10); r.Context().Err() == nil; {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	case "/upload":
		io.Copy(io.Discard, r.Body)
	}
}

// TestWhatCountsAsAnError has upstreams and clients fail in every way. Errors
// are the upstream's and this process's, never the client's.
func TestWhatCountsAsAnError(t *testing.T) {
	back := httptest.NewServer(http.HandlerFunc(faults))
	t.Cleanup(back.Close)
	closed := httptest.NewServer(nil)
	closed.Close()
	const soon = 600 * time.Millisecond
	upstream := func(name, url string) route.Upstream {
		return route.Upstream{Name: name, Targets: []route.Target{{URL: url}}, ConnectTimeout: soon, ResponseTimeout: soon, IdleTimeout: soon, TLS: route.TLS{Insecure: true}}
	}
	proxied := func(name, path, to string) route.Route {
		return route.Route{Name: name, Prefix: path, Action: proxyTo(to)}
	}
	silent := mute(t)
	only := proxied("only", "/only", "back")
	only.Methods = []string{"POST"}
	module := &route.Module{
		Name:      "m",
		Upstreams: []route.Upstream{upstream("back", back.URL), upstream("closed", closed.URL), upstream("handshake", "https://"+silent), upstream("silent", "http://"+silent)},
		Routes: []route.Route{
			only,
			proxied("closed", "/closed", "closed"), proxied("handshake", "/handshake", "handshake"), proxied("silent", "/silent", "silent"),
			{Name: "panic", Path: "/panic", Action: respond("never")},
			{Name: "none", Prefix: "/x", Action: respond("x")},
		},
	}
	for _, path := range []string{"/ok", "/500", "/404", "/405", "/cut", "/stall", "/garbage", "/endless", "/upload"} {
		module.Routes = append(module.Routes, proxied(path[1:], path, "back"))
	}
	for _, c := range []struct {
		request string
		read    int64 // bytes of the response until the client goes; 0 for all, -1 for a client that takes nothing
		want    string
	}{
		{"GET /ok HTTP/1.1", 0, ""},
		{"GET /500 HTTP/1.1", 0, "error"},
		{"GET /404 HTTP/1.1", 0, "notFound"},
		{"GET /nowhere HTTP/1.1", 0, "notFound"},
		{"GET /405 HTTP/1.1", 0, "notAllowed"},
		{"GET /only HTTP/1.1", 0, "notAllowed"},
		{"GET /a/../b HTTP/1.1", 0, ""},
		{"GET /closed HTTP/1.1", 0, "error connect"},
		{"GET /handshake HTTP/1.1", 0, "error connect"},
		{"GET /silent HTTP/1.1", 0, "error"},
		{"GET /cut HTTP/1.1", 0, "error"},
		{"GET /stall HTTP/1.1", 0, "error"},
		{"GET /garbage HTTP/1.1", 0, "error"},
		{"GET /panic HTTP/1.1", 0, "error panic"},
		{"GET /endless HTTP/1.1", 1000, ""},
		{"GET /endless HTTP/1.1", -1, ""},
		{"POST /upload HTTP/1.1\r\nContent-Length: 1000000", 0, ""}, // of which nothing comes
	} {
		lib := testLibrary(t)
		records := make(chan Record, 1)
		s, srv := startFront(t, FrontOptions{Observer: observerFunc(func(r *Record) { records <- *r })})
		e := compileTable(t, lib, 1, nil, module)
		for i := range e.parts[0].entries {
			if en := &e.parts[0].entries[i]; en.route.Name == "panic" {
				en.chain = []*middleware.Head{{Request: func(*middleware.Exchange) *middleware.Answer { panic("oh") }}}
			}
		}
		s.Swap(serving(e))
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "%s\r\nHost: a\r\nConnection: close\r\n\r\n", c.request)
		switch {
		case c.read == 0:
			io.Copy(io.Discard, conn)
		case c.read > 0:
			io.CopyN(io.Discard, conn, c.read)
			conn.Close()
		}
		r := <-records
		conn.Close()
		n, got := lib.Counters.Compare(nil, e, 0).All.Candidate, ""
		for _, mark := range []struct {
			name string
			n    uint64
		}{{" error", n.Errors}, {" connect", n.Connect}, {" panic", n.Panics}, {" notFound", n.NotFound}, {" notAllowed", n.NotAllowed}} {
			if mark.n > 0 {
				got += mark.name
			}
		}
		if want := c.want; n.Requests != 1 || got != "" && got[1:] != want || got == "" && want != "" {
			t.Errorf("%s: counted%s, want %q; status %d, kind %q, %v", c.request, got, want, r.Status, r.Kind, r.Err)
		}
	}
}

// TestBusyRoutesLoseNothing counts past the point where a route gets more shards.
func TestBusyRoutesLoseNothing(t *testing.T) {
	for _, shards := range []int{1, 4} {
		lib := testLibrary(t)
		lib.Counters.shards = shards
		e := testEngine(t, lib, 1, "", route.Route{Name: "r", Path: "/r", Action: respond("r")})
		const each = 2 * busyFrom
		for i := range 3 * each {
			r := &Record{Status: 100 * (2 + i%3), BytesIn: 1, BytesOut: 2, Duration: time.Duration(i) * time.Microsecond}
			if i%3 == 2 {
				r.Status = 404
			}
			e.counters.count(r, &e.parts[0].entries[0], i)
		}
		for _, sum := range []Totals{lib.Counters.Sum(), func() Totals { lib.Keep(); return lib.Counters.Sum() }()} {
			if sum.Requests() != 3*each || sum.Status[2] != each || sum.NotFound != each || sum.Latency.Count() != 3*each || sum.BytesIn != 3*each || sum.BytesOut != 6*each ||
				sum.Nanos != uint64(3*each*(3*each-1)/2)*1000 {
				t.Errorf("%d shards: %+v", shards, sum)
			}
		}
	}
}

// A stream may end long after its engine was dropped: it is counted all the same.
func TestWhatOutlivesItsEngineIsCounted(t *testing.T) {
	begun, end := make(chan struct{}), make(chan struct{})
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "first")
		_ = http.NewResponseController(w).Flush()
		close(begun)
		<-end
		io.WriteString(w, "last")
	}))
	defer back.Close()
	lib := testLibrary(t)
	records := make(chan Record, 1)
	s, srv := startFront(t, FrontOptions{Observer: observerFunc(func(r *Record) { records <- *r })})
	s.Swap(serving(testEngine(t, lib, 1, back.URL, route.Route{Name: "stream", Path: "/stream", Action: proxyTo("back")})))
	res := raw(t, srv, "GET /stream HTTP/1.1\r\nHost: a.test\r\n\r\n")
	<-begun
	next := testEngine(t, lib, 2, "", route.Route{Name: "next", Path: "/next", Action: respond("")})
	s.Swap(serving(next))
	lib.Keep(next)
	close(end)
	if got := body(t, res); got != "firstlast" {
		t.Errorf("got %q", got)
	}
	<-records
	counted := func() {
		t.Helper()
		if sum := lib.Counters.Sum(); sum.Requests() != 1 || sum.Status[2] != 1 || sum.BytesOut != 9 || sum.Latency.Count() != 1 {
			t.Errorf("counted %+v", sum)
		}
	}
	counted()
	// Its counters go once the last request has ended.
	leaving := func() int {
		lib.Counters.mu.Lock()
		defer lib.Counters.mu.Unlock()
		return len(lib.Counters.leaving)
	}
	for deadline := time.Now().Add(10 * time.Second); leaving() > 0; runtime.GC() {
		if time.Now().After(deadline) {
			t.Fatal("the engine's counters are kept although nobody counts")
		}
	}
	counted()
}
