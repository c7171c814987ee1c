package engine

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/route"
	"routerd.dev/internal/version"
)

func testLibrary(t testing.TB) *Library {
	lib := NewLibrary(proxy.Options{}, middleware.Env{})
	t.Cleanup(func() { lib.Upstreams.Close() })
	return lib
}

func testRef(n int64) version.Ref {
	return version.Ref{Number: n, Digest: sha256.Sum256([]byte(strconv.FormatInt(n, 10)))}
}

// testEngine compiles a module of the routes, whose upstream "back" is at url.
func testEngine(t testing.TB, lib *Library, n int64, url string, routes ...route.Route) *Engine {
	m := &route.Module{Name: "m", Routes: routes}
	if url != "" {
		m.Upstreams = []route.Upstream{{Name: "back", Targets: []route.Target{{URL: url}}}}
	}
	table := &route.Table{Modules: []*route.Module{m}}
	route.Normalize(table)
	if ps := route.Validate(table).Errors(); len(ps) > 0 {
		t.Fatal(ps)
	}
	e, err := Compile(context.Background(), testRef(n), table, lib, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func serving(e *Engine) *Serving {
	return &Serving{Fleet: "f", Group: "main", Instance: "i1", Epoch: e.ref.Number + 100, Stable: e}
}

func proxyTo(name string) route.Action { return route.Action{Proxy: &route.Proxy{Upstream: name}} }

func respond(body string) route.Action {
	return route.Action{Respond: &route.Respond{Status: 200, Body: body}}
}

// startFront serves by a Switch on a real listener.
func startFront(t testing.TB, o FrontOptions) (*Switch, *httptest.Server) {
	s := NewSwitch(o)
	srv := httptest.NewUnstartedServer(s)
	srv.Config.DisableGeneralOptionsHandler = true
	srv.Start()
	t.Cleanup(srv.Close)
	return s, srv
}

// raw sends bytes and reads one response.
func raw(t testing.TB, srv *httptest.Server, request string) *http.Response {
	t.Helper()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	return res
}

func body(t testing.TB, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFrontAnswers(t *testing.T) {
	lib := testLibrary(t)
	s, srv := startFront(t, FrontOptions{ResponseHeaders: true})
	get := "GET %s HTTP/1.1\r\nHost: a.test\r\n\r\n"

	res := raw(t, srv, fmt.Sprintf(get, "/x"))
	if res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
		t.Errorf("without a revision: %d %v", res.StatusCode, res.Header)
	}

	s.Swap(serving(testEngine(t, lib, 12, "",
		route.Route{Name: "hello", Methods: []string{"GET"}, Path: "/hello/{who}", Action: respond("hello\n")},
		route.Route{Name: "made", Path: "/made", Action: route.Action{Respond: &route.Respond{Status: 201, Headers: []route.Header{{Name: "Content-Type", Value: "application/json"}}, Body: "{}"}}},
		route.Route{Name: "none", Path: "/none", Action: route.Action{Respond: &route.Respond{Status: 204}}},
		route.Route{Name: "go", Path: "/go/{p...}", Action: route.Action{Redirect: &route.Redirect{To: "/{p}", Status: 308}}},
		route.Route{Name: "host", Hosts: []string{"b.test"}, Path: "/host", Action: respond("b")},
		route.Route{Name: "six", Hosts: []string{"[::1]"}, Path: "/host", Action: respond("six")},
	)))
	for _, c := range []struct {
		request string
		status  int
		route   string
		header  string // Name=value
		body    string
	}{
		{fmt.Sprintf(get, "/hello/bob"), 200, "m/hello", "Content-Type=text/plain; charset=utf-8", "hello\n"},
		{"HEAD /hello/bob HTTP/1.1\r\nHost: a.test\r\n\r\n", 200, "m/hello", "Content-Length=6", ""},
		{fmt.Sprintf(get, "/made"), 201, "m/made", "Content-Type=application/json", "{}"},
		{fmt.Sprintf(get, "/none"), 204, "m/none", "Content-Length=", ""},
		{fmt.Sprintf(get, "/go/a%62/c?x=1"), 308, "m/go", "Location=/a%62/c", ""},
		{fmt.Sprintf(get, "/nowhere"), 404, "", "X-Content-Type-Options=nosniff", "404: no route for GET /nowhere (revision 12)\n"},
		{"POST /hello/x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n", 405, "", "Allow=GET, HEAD", "405: no route takes POST for /hello/x (revision 12)\n"},
		{fmt.Sprintf(get, "/a/../b"), 400, "", "", "400: path has a dot segment (revision 12)\n"},
		{fmt.Sprintf(get, "/a%2fb"), 400, "", "", "400: path has an encoded slash (revision 12)\n"},
		{fmt.Sprintf(get, "/a#b"), 400, "", "", "400: path has a space, ? or # that is not escaped (revision 12)\n"},
		{"OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "", "", "400: the target * is not served (revision 12)\n"},
		{"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "", "", "400: CONNECT is not served (revision 12)\n"},
		{"GET http://B.test:80/host HTTP/1.1\r\nHost: a.test\r\n\r\n", 200, "m/host", "", "b"},
		{"GET http://b.test HTTP/1.1\r\nHost: a.test\r\n\r\n", 404, "", "", "404: no route for GET / (revision 12)\n"},
		{"GET /host HTTP/1.1\r\nHost: B.TEST.:8080\r\n\r\n", 200, "m/host", "", "b"},
		{"GET /host HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", 200, "m/six", "", "six"},
		{"GET /host HTTP/1.1\r\nHost: a.test\r\n\r\n", 404, "", "", "404: no route for GET /host (revision 12)\n"},
	} {
		res := raw(t, srv, c.request)
		if got := body(t, res); res.StatusCode != c.status || got != c.body {
			t.Errorf("%q: got %d %q, want %d %q", c.request, res.StatusCode, got, c.status, c.body)
		}
		if name, want, ok := strings.Cut(c.header, "="); ok && res.Header.Get(name) != want {
			t.Errorf("%q: %s is %q, want %q", c.request, name, res.Header.Get(name), want)
		}
		for name, want := range map[string]string{"Routerd-Route": c.route, "Routerd-Revision": "12", "Routerd-Epoch": "112", "Routerd-Group": "main", "Routerd-Instance": "i1"} {
			if got := res.Header.Get(name); got != want {
				t.Errorf("%q: %s is %q, want %q", c.request, name, got, want)
			}
		}
	}
}

func TestRedirectStaysOnItsHost(t *testing.T) {
	s, srv := startFront(t, FrontOptions{Path: route.PathOptions{MergeSlashes: true}})
	s.Swap(serving(testEngine(t, testLibrary(t), 1, "",
		route.Route{Name: "go", Path: "/go{p}/{q...}", Action: route.Action{Redirect: &route.Redirect{To: "/{q}", Status: 302}}},
	)))
	res := raw(t, srv, "GET /gox/%2e%2e HTTP/1.1\r\nHost: a\r\n\r\n")
	if res.StatusCode != 400 {
		t.Errorf("dot segment: %d", res.StatusCode)
	}
	res = raw(t, srv, "GET /gox//evil.test/ HTTP/1.1\r\nHost: a\r\n\r\n")
	if to := res.Header.Get("Location"); strings.HasPrefix(to, "//") {
		t.Errorf("redirected to %q", to)
	}
	l, err := newLocation("/{q}", []param{{name: "q"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, raw := range []string{"/evil.test", `\evil.test`} {
		if to, ok := l.build([]middleware.Param{{Name: "q", Raw: raw}}); ok {
			t.Errorf("parameter %q leads to %q", raw, to)
		}
	}
}

func TestClientBehindTrustedProxies(t *testing.T) {
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, c := range []struct {
		peer      string
		forwarded []string
		client    string
		trusted   bool
	}{
		{"192.0.2.1", []string{"1.1.1.1"}, "192.0.2.1", false},
		{"10.0.0.1", nil, "10.0.0.1", true},
		{"10.0.0.1", []string{"1.1.1.1"}, "1.1.1.1", true},
		{"10.0.0.1", []string{"6.6.6.6, 1.1.1.1"}, "1.1.1.1", true},
		{"10.0.0.1", []string{"6.6.6.6", "1.1.1.1, 10.0.0.9"}, "1.1.1.1", true},
		{"10.0.0.1", []string{"10.0.0.7,10.0.0.9"}, "10.0.0.7", true},
		{"10.0.0.1", []string{"1.1.1.1, junk"}, "10.0.0.1", true},
		{"10.0.0.1", []string{"1.1.1.1, junk, 10.0.0.9"}, "10.0.0.9", true},
		{"fd00::1", []string{"[2001:db8::1]:4711"}, "2001:db8::1", true},
		{"10.0.0.1", []string{"::ffff:1.1.1.1"}, "1.1.1.1", true},
	} {
		client, trusted := clientOf(netip.MustParseAddr(c.peer), c.forwarded, proxies)
		if client.String() != c.client || trusted != c.trusted {
			t.Errorf("%s %q: got %s %v, want %s %v", c.peer, c.forwarded, client, trusted, c.client, c.trusted)
		}
	}
}

// TestI1_OneRevisionFirstByteToLast swaps under load: headers and body of
// each response are of one revision, and none fails.
func TestI1_OneRevisionFirstByteToLast(t *testing.T) {
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range 4 {
			io.WriteString(w, "x\n")
			w.(http.Flusher).Flush()
		}
	}))
	t.Cleanup(back.Close)
	lib := testLibrary(t)
	s, srv := startFront(t, FrontOptions{ResponseHeaders: true})
	engines := make([]*Engine, 4)
	for i := range engines {
		rev := strconv.Itoa(i + 1)
		engines[i] = testEngine(t, lib, int64(i+1), back.URL,
			route.Route{
				Name: "r" + rev, Path: "/stream", Action: proxyTo("back"),
				Middlewares: []route.Middleware{{Kind: "headers", Config: `{"response":{"set":{"X-Rev":"` + rev + `"}}}`}},
			},
			route.Route{Name: "s" + rev, Path: "/still", Action: respond(strings.Repeat(rev+"\n", 4))},
		)
	}
	s.Swap(serving(engines[0]))
	var clients sync.WaitGroup
	stop := make(chan struct{})
	var served atomic.Int64
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				res, err := srv.Client().Get(srv.URL + "/still")
				if err != nil {
					t.Errorf("request failed: %v", err)
					return
				}
				b, err := io.ReadAll(res.Body)
				res.Body.Close()
				rev := res.Header.Get("Routerd-Revision")
				if err != nil || string(b) != strings.Repeat(rev+"\n", 4) || res.Header.Get("Routerd-Route") != "m/s"+rev {
					t.Errorf("revision %s, route %s, body %q, %v", rev, res.Header.Get("Routerd-Route"), b, err)
					return
				}
				res, err = srv.Client().Get(srv.URL + "/stream")
				if err != nil {
					t.Errorf("request failed: %v", err)
					return
				}
				b, err = io.ReadAll(res.Body)
				res.Body.Close()
				rev = res.Header.Get("Routerd-Revision")
				if err != nil || string(b) != "x\nx\nx\nx\n" || res.Header.Get("Routerd-Route") != "m/r"+rev || res.Header.Get("X-Rev") != rev {
					t.Errorf("revision %s, headers %v, body %q, %v", rev, res.Header, b, err)
					return
				}
				served.Add(2)
			}
		})
	}
	for i := 0; served.Load() < 400 && !t.Failed(); i++ {
		s.Swap(serving(engines[i%len(engines)]))
		lib.Keep(engines...)
	}
	close(stop)
	clients.Wait()
	if sum := lib.Counters.Sum(); sum.Requests() != uint64(served.Load()) || sum.Status[2] != uint64(served.Load()) {
		t.Errorf("%d requests were served, %d counted: %+v", served.Load(), sum.Requests(), sum.Status)
	}
}

// TestI8_MatchedIsForwarded sends paths as they should never be changed, and
// has the upstream say what it got.
func TestI8_MatchedIsForwarded(t *testing.T) {
	got := make(chan string, 1)
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got <- r.RequestURI }))
	t.Cleanup(back.Close)
	paths := route.PathOptions{AllowEncodedSlash: true, MergeSlashes: true}
	s, srv := startFront(t, FrontOptions{ResponseHeaders: true, Path: paths})
	lib := NewLibrary(proxy.Options{}, middleware.Env{Path: paths})
	t.Cleanup(func() { lib.Upstreams.Close() })
	s.Swap(serving(testEngine(t, lib, 1, back.URL,
		route.Route{Name: "item", Path: "/items/{id}", Action: proxyTo("back")},
		route.Route{Name: "all", Prefix: "/", Action: proxyTo("back")},
		route.Route{
			Name: "empty", Path: "/empty/{rest...}", Action: proxyTo("back"),
			Middlewares: []route.Middleware{{Kind: "rewritePath", Config: `{"to":"/{rest}/x"}`}},
		},
		route.Route{
			Name: "new", Path: "/old/{rest...}", Action: proxyTo("back"),
			Middlewares: []route.Middleware{{Kind: "rewritePath", Config: `{"to":"/new/{rest}"}`}},
		},
	)))
	for _, c := range []struct{ asked, route, want string }{
		{"/items/%61%2fb?q=%20+&&", "m/item", "/items/%61%2fb?q=%20+&&"},
		{"/%69tems/a", "m/item", "/%69tems/a"},
		{"/items/a%3Fb", "m/item", "/items/a%3Fb"},
		{"/a//b/?", "m/all", "/a/b/"}, // merged: what was matched
		{"//evil.test///a%2F%2fb", "m/all", "/evil.test/a%2F%2fb"},
		{"/empty/", "m/empty", "/x"},
		{"/items/(x)%28", "m/item", "/items/(x)%28"},
		{"/old/a%62/c%28", "m/new", "/new/a%62/c%28"},
	} {
		res := raw(t, srv, "GET "+c.asked+" HTTP/1.1\r\nHost: a.test\r\n\r\n")
		if res.StatusCode != 200 {
			t.Errorf("%s: %d %s", c.asked, res.StatusCode, body(t, res))
			continue
		}
		if uri := <-got; uri != c.want || res.Header.Get("Routerd-Route") != c.route {
			t.Errorf("%s: route %s, forwarded as %s", c.asked, res.Header.Get("Routerd-Route"), uri)
		}
	}
}

// TestI9_SwitchResetsNoLimitAndDropsNoConnection swaps to a revision with the
// same limiter and upstream.
func TestI9_SwitchResetsNoLimitAndDropsNoConnection(t *testing.T) {
	var dialed atomic.Int64
	back := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	back.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			dialed.Add(1)
		}
	}
	back.Start()
	t.Cleanup(back.Close)
	lib := testLibrary(t)
	s, srv := startFront(t, FrontOptions{})
	limited := route.Route{
		Name: "limited", Path: "/limited", Action: proxyTo("back"),
		Middlewares: []route.Middleware{{Kind: "rateLimit", Config: `{"burst":3,"per":"1h","rate":1}`}},
	}
	status := map[int]int{}
	ask := func(path string) {
		res, err := srv.Client().Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		status[res.StatusCode]++
	}
	for i := range 8 {
		e := testEngine(t, lib, int64(i+1), back.URL, limited,
			route.Route{Name: "other", Path: fmt.Sprintf("/other%d", i), Action: proxyTo("back")})
		s.Swap(serving(e))
		lib.Keep(e)
		ask("/limited")
		ask(fmt.Sprintf("/other%d", i))
	}
	if status[200] != 8+3 || status[429] != 5 {
		t.Errorf("got %v, want 3 of 8 limited requests and 8 others", status)
	}
	if dialed.Load() != 1 {
		t.Errorf("%d upstream connections for requests that came one by one", dialed.Load())
	}
}

// TestI11_CutOffUpstreamIsCutOffDownstream has the upstream die in the middle
// of its body.
func TestI11_CutOffUpstreamIsCutOffDownstream(t *testing.T) {
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "half of it")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(back.Close)
	records := make(chan Record, 1)
	s, srv := startFront(t, FrontOptions{Observer: observerFunc(func(r *Record) { records <- *r })})
	s.Swap(serving(testEngine(t, testLibrary(t), 1, back.URL, route.Route{Name: "all", Prefix: "/", Action: proxyTo("back")})))
	res, err := srv.Client().Get(srv.URL)
	if err == nil {
		_, err = io.ReadAll(res.Body)
		res.Body.Close()
	}
	if err == nil {
		t.Error("the response looks complete")
	}
	if r := <-records; r.Kind != proxy.KindUpstreamReset.String() || r.Err == nil || r.Upstream != back.URL {
		t.Errorf("recorded %+v", r)
	}
}

type observerFunc func(*Record)

func (f observerFunc) Request(r *Record) { f(r) }

// TestPanicAnswers500 puts a middleware that panics into an engine.
func TestPanicAnswers500(t *testing.T) {
	lib := testLibrary(t)
	records := make(chan Record, 1)
	s, srv := startFront(t, FrontOptions{ResponseHeaders: true, Observer: observerFunc(func(r *Record) { records <- *r })})
	e := testEngine(t, lib, 1, "", route.Route{Name: "r", Path: "/r", Action: respond("never")})
	var outer atomic.Int64
	for _, c := range []struct {
		name  string
		chain []*middleware.Head
	}{
		{"request", []*middleware.Head{
			{Response: func(*middleware.Exchange) { outer.Add(1) }},
			{Request: func(*middleware.Exchange) *middleware.Answer { panic("oh") }},
		}},
		{"response", []*middleware.Head{{Response: func(*middleware.Exchange) { panic("oh") }}}},
	} {
		e.parts[0].entries[0].chain = c.chain
		s.Swap(serving(e))
		res, err := srv.Client().Get(srv.URL + "/r")
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if b := body(t, res); res.StatusCode != 500 || b != "500: internal error (revision 1)\n" || res.Header.Get("Routerd-Route") != "m/r" {
			t.Errorf("%s: %d %q %v", c.name, res.StatusCode, b, res.Header)
		}
		if r := <-records; r.Panic != "oh" || r.Kind != "panic" || len(r.Stack) == 0 {
			t.Errorf("%s: recorded %+v", c.name, r)
		}
	}
	if sum := lib.Counters.Sum(); sum.Panics != 2 || sum.Status[5] != 2 {
		t.Errorf("counted %+v", sum)
	}
}

func TestMaxBody(t *testing.T) {
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
	t.Cleanup(back.Close)
	s, srv := startFront(t, FrontOptions{MaxBody: 8})
	s.Swap(serving(testEngine(t, testLibrary(t), 1, back.URL, route.Route{Name: "all", Prefix: "/", Action: proxyTo("back")})))
	for text, want := range map[string]int{"12345678": 200, "123456789": 413} {
		for _, b := range []io.Reader{strings.NewReader(text), io.MultiReader(strings.NewReader(text))} { // known and unknown length
			res, err := srv.Client().Post(srv.URL, "text/plain", b)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != want {
				t.Errorf("%d bytes: %d, want %d", len(text), res.StatusCode, want)
			}
		}
	}
}

// TestBadGatewaySaysWhoServed asks for an upstream that nobody listens for.
func TestBadGatewaySaysWhoServed(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	s, srv := startFront(t, FrontOptions{ResponseHeaders: true})
	s.Swap(serving(testEngine(t, testLibrary(t), 3, closed.URL, route.Route{Name: "all", Prefix: "/", Action: proxyTo("back")})))
	res := raw(t, srv, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
	if res.StatusCode != 502 {
		t.Errorf("%d", res.StatusCode)
	}
	saysWho(t, res.Header)
}

// saysWho wants of an answer's header what revision 3 in serving says of itself.
func saysWho(t *testing.T, h http.Header) {
	t.Helper()
	for name, want := range map[string]string{
		"Routerd-Route": "m/all", "Routerd-Revision": "3", "Routerd-Epoch": "103", "Routerd-Group": "main", "Routerd-Instance": "i1",
	} {
		if got := h[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// TestNoContentTypeIsGuessed: where a middleware took the field away, the client
// gets none, not one that net/http made up from the body.
func TestNoContentTypeIsGuessed(t *testing.T) {
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "<html>hi</html>")
	}))
	t.Cleanup(back.Close)
	remove := []route.Middleware{{Kind: "headers", Config: `{"response":{"remove":["Content-Type"]}}`}}
	s, srv := startFront(t, FrontOptions{})
	s.Swap(serving(testEngine(t, testLibrary(t), 3, back.URL,
		route.Route{Name: "proxied", Path: "/proxied", Middlewares: remove, Action: proxyTo("back")},
		route.Route{Name: "own", Path: "/own", Middlewares: remove, Action: respond("<html>hi</html>")},
		route.Route{Name: "none", Path: "/none", Middlewares: remove, Action: route.Action{Respond: &route.Respond{Status: 304}}},
	)))
	for _, path := range []string{"/proxied", "/own", "/none"} {
		res := raw(t, srv, "GET "+path+" HTTP/1.1\r\nHost: a.test\r\n\r\n")
		if got, ok := res.Header["Content-Type"]; ok {
			t.Errorf("%s: Content-Type %q", path, got)
		}
	}
}

// TestUpstreamCannotSpeakForRouterd has an upstream send routerd's headers,
// some of them twice.
func TestUpstreamCannotSpeakForRouterd(t *testing.T) {
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Routerd-Route", "Routerd-Revision", "Routerd-Epoch", "Routerd-Group", "Routerd-Instance"} {
			w.Header()[name] = []string{"99", "98"}
		}
	}))
	t.Cleanup(back.Close)
	s, srv := startFront(t, FrontOptions{ResponseHeaders: true})
	s.Swap(serving(testEngine(t, testLibrary(t), 3, back.URL, route.Route{Name: "all", Prefix: "/", Action: proxyTo("back")})))
	saysWho(t, raw(t, srv, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").Header)
}

// TestSayingWhoAllocatesNothing while answers say the same; one that says
// something else changes no answer before it.
func TestSayingWhoAllocatesNothing(t *testing.T) {
	st := newState(NewSwitch(FrontOptions{ResponseHeaders: true}), 0)
	st.record = Record{Route: "m/all", Revision: testRef(3), Epoch: 103, Group: "main", Instance: "i1"}
	first, h := http.Header{}, http.Header{}
	st.finishHead(200, first)
	if n := testing.AllocsPerRun(100, func() {
		clear(h)
		st.finishHead(200, h)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	saysWho(t, h)

	st.record = Record{Revision: testRef(1 << 60), Epoch: -1 << 63, Group: "edge", Instance: "i2"}
	st.finishHead(404, h)
	if want := (http.Header{
		"Routerd-Revision": {"1152921504606846976"}, "Routerd-Epoch": {"-9223372036854775808"}, "Routerd-Group": {"edge"}, "Routerd-Instance": {"i2"},
	}); !maps.EqualFunc(h, want, slices.Equal) {
		t.Errorf("%v, want %v", h, want)
	}
	saysWho(t, first)
}

func TestNoRequestIsLostByKeep(t *testing.T) {
	lib := testLibrary(t)
	s, srv := startFront(t, FrontOptions{})
	e := testEngine(t, lib, 1, "", route.Route{Name: "r", Path: "/r", Action: respond("r")})
	s.Swap(serving(e))
	for range 3 {
		res, err := srv.Client().Get(srv.URL + "/r")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	keys := 0
	for k, totals := range lib.Counters.All() {
		keys++
		if k.Route != "m/r" || k.Ref != e.ref || totals.Status[2] != 3 || totals.Latency.Quantile(1) == 0 {
			t.Errorf("%+v: %+v", k, totals)
		}
	}
	lib.Keep()
	for k := range lib.Counters.All() {
		t.Errorf("%v is still counted by itself", k)
	}
	if sum := lib.Counters.Sum(); keys != 1 || sum.Requests() != 3 {
		t.Errorf("%d keys, sum %+v", keys, sum)
	}
}
