package engine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"weak"

	"pgregory.net/rapid"

	"routerd.dev/internal/route"
	"routerd.dev/internal/version"
)

// connect opens a connection to a front that is given 10 s for all of a test.
func connect(t testing.TB, srv *httptest.Server) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// A request whose body never comes is answered without it, whatever answers.
func TestAnswersDoNotWaitForBodies(t *testing.T) {
	s, srv := startFront(t, FrontOptions{})
	s.patience = 100 * time.Millisecond
	ask := func(path string) {
		c := connect(t, srv)
		io.WriteString(c, "POST "+path+" HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc")
		if b, err := io.ReadAll(c); err != nil || !bytes.HasPrefix(b, []byte("HTTP/1.1 ")) {
			t.Errorf("%s: %q %v", path, b, err)
		}
	}
	ask("/unserved")
	s.Swap(serving(testEngine(t, testLibrary(t), 1, "",
		route.Route{Name: "say", Path: "/say", Action: respond("hello")},
		route.Route{Name: "go", Path: "/go", Action: route.Action{Redirect: &route.Redirect{To: "/say", Status: 307}}},
	)))
	for _, path := range []string{"/say", "/go", "/none", "/a//b"} {
		ask(path)
	}
}

// A client that reads no answers does not hold a request.
func TestAnswersWaitForNoReader(t *testing.T) {
	s, srv := startFront(t, FrontOptions{})
	s.patience = 200 * time.Millisecond
	s.Swap(serving(testEngine(t, testLibrary(t), 1, "", route.Route{Name: "say", Path: "/", Action: respond(strings.Repeat("x", route.MaxRespondBody))})))
	c := connect(t, srv)
	_ = c.(*net.TCPConn).SetReadBuffer(4 << 10)
	for {
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Error("the connection is held forever")
			}
			return
		}
	}
}

// What a client may not claim, or takes back by listing it in Connection, does
// not choose the route either.
func TestWhatIsNotForwardedDoesNotDecide(t *testing.T) {
	routes := []route.Route{
		{Name: "inner", Path: "/", Headers: []route.Condition{{Name: "X-Forwarded-For", Op: route.OpPrefix, Value: "10."}}, Action: respond("inner")},
		{Name: "listed", Path: "/", Headers: []route.Condition{{Name: "X-Checked", Op: route.OpPresent}}, Action: respond("listed")},
		{Name: "upgrade", Path: "/", Headers: []route.Condition{{Name: "Upgrade", Op: route.OpEqual, Value: "websocket"}}, Action: respond("upgrade")},
		{Name: "other", Path: "/", Action: respond("other")},
	}
	for _, c := range []struct {
		trusted      bool
		fields, want string
	}{
		{false, "X-Forwarded-For: 10.0.0.1\r\n", "other"},
		{true, "X-Forwarded-For: 10.0.0.1\r\n", "inner"},
		{false, "X-Checked: 1\r\n", "listed"},
		{false, "Connection: x-checked\r\nX-Checked: 1\r\n", "other"},
		{false, "Connection: Upgrade, X-Checked\r\nUpgrade: websocket\r\nX-Checked: 1\r\n", "upgrade"},
	} {
		o := FrontOptions{}
		if c.trusted {
			o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		}
		s, srv := startFront(t, o)
		s.Swap(serving(testEngine(t, testLibrary(t), 1, "", routes...)))
		if got := body(t, raw(t, srv, "GET / HTTP/1.1\r\nHost: h\r\n"+c.fields+"\r\n")); got != c.want {
			t.Errorf("trusted %v, %q: %s, want %s", c.trusted, c.fields, got, c.want)
		}
	}
}

// A stream that outlives a switch holds its route and upstream, not the trees
// that found them.
func TestStreamHoldsNoTrees(t *testing.T) {
	begun, end := make(chan struct{}), make(chan struct{})
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).Flush()
		close(begun)
		<-end
	}))
	defer back.Close()
	lib := testLibrary(t)
	s, srv := startFront(t, FrontOptions{})
	tree := func() weak.Pointer[hostTree] {
		e := testEngine(t, lib, 1, back.URL, route.Route{Name: "stream", Hosts: []string{"a.test"}, Path: "/{x}", Action: proxyTo("back")})
		s.Swap(serving(e))
		return weak.Make(e.hosts[0])
	}()
	res := raw(t, srv, "GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n")
	<-begun
	next := testEngine(t, lib, 2, "", route.Route{Name: "new", Path: "/", Action: respond("")})
	s.Swap(serving(next))
	lib.Keep(next)
	for deadline := time.Now().Add(10 * time.Second); tree.Value() != nil; runtime.GC() {
		if time.Now().After(deadline) {
			t.Error("the stream holds the trees of the engine that was switched from")
			break
		}
	}
	close(end)
	_ = body(t, res)
}

// Paths and values over the limits are refused on every way through Decide.
func TestLimitsHoldOnTheShortWay(t *testing.T) {
	e := compileFor(t, &route.Table{Modules: []*route.Module{{Name: "m", Routes: []route.Route{
		{Name: "r", Path: "/a/{x}", Action: respond("")},
		{Name: "e", Path: "/e", Headers: []route.Condition{{Name: "X", Op: route.OpRegexp, Value: "x*"}}, Action: respond("")},
	}}}}, nil)
	var d Decision
	for n, want := range map[int]int{route.MaxPathBytes: 0, route.MaxPathBytes + 1: 400} {
		h := Head{Method: "GET", Path: "/a/" + strings.Repeat("x", n-3)}
		if e.Decide(&h, &d); d.Status != want {
			t.Errorf("%d bytes: status %d, want %d", n, d.Status, want)
		}
	}
	for n, want := range map[int]int{route.MaxMatchedValue: 0, route.MaxMatchedValue + 1: 404} {
		h := Head{Method: "GET", Path: "/e", Header: http.Header{"X": {strings.Repeat("x", n)}}}
		if e.Decide(&h, &d); d.Status != want {
			t.Errorf("value of %d bytes: status %d, want %d", n, d.Status, want)
		}
	}
}

// fastest is the shortest of several times that deciding takes.
func fastest(e *Engine, h *Head) time.Duration {
	var d Decision
	best := time.Hour
	for range 20 {
		begun := time.Now()
		e.Decide(h, &d)
		best = min(best, time.Since(begun))
	}
	return best
}

// A long head costs about what it takes to read it, not that for each
// condition or label.
func TestLongHeadsAreReadOnce(t *testing.T) {
	table := func(n int) *Engine {
		m := &route.Module{Name: "m"}
		for i := range n {
			m.Routes = append(m.Routes, route.Route{
				Name: fmt.Sprintf("r%d", i), Hosts: []string{"*.test"}, Path: "/", Action: respond(""),
				Query:   []route.Condition{{Name: fmt.Sprintf("q%d", i), Op: route.OpPresent}},
				Cookies: []route.Condition{{Name: fmt.Sprintf("c%d", i), Op: route.OpPresent}},
			})
			if i%2 == 0 {
				m.Routes[i].Query = nil
			}
		}
		return compileFor(t, &route.Table{Modules: []*route.Module{m}}, nil)
	}
	few, many := table(4), table(1000)
	h := Head{
		Method: "GET", Host: "a.test", Path: "/", RawQuery: strings.Repeat("a+b=c&", 10_000),
		Header: http.Header{"Cookie": {strings.Repeat("a=c; ", 10_000)}},
	}
	if a, b := fastest(few, &h), fastest(many, &h); b > 6*a {
		t.Errorf("with 4 routes %v, with 1000 %v", a, b)
	}
	labels := Head{Method: "GET", Host: strings.Repeat("a.", 30_000) + "x", Path: "/"}
	one := Head{Method: "GET", Host: strings.Repeat("aa", 30_000) + "x", Path: "/"}
	if a, b := fastest(few, &one), fastest(few, &labels); b > 4*a {
		t.Errorf("a host of one label %v, of many %v", a, b)
	}
	var d Decision
	long := Head{Method: "GET", Host: strings.Repeat("a.", 30_000) + "test", Path: "/", RawQuery: "q1=1", Header: http.Header{"Cookie": {"c1=1"}}}
	if few.Decide(&long, &d); d.Name != "m/r1" {
		t.Errorf("a long host that the wildcard takes: %d %s", d.Status, d.Name)
	}
}

// Many pairs are looked up as few are looked through.
func TestPairsAreFoundHoweverMany(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SampledFrom([]string{"a", "b", "a+b", "%61", "c"})
		text := rapid.SliceOfN(names, 0, 3*few).Draw(t, "names")
		var query strings.Builder
		want := map[string][]string{}
		for i, name := range text {
			fmt.Fprintf(&query, "%s=%%3%d&", name, i%10)
			want[formText(name)] = append(want[formText(name)], fmt.Sprint(i%10))
		}
		var ps pairs
		for range 2 {
			ps.reset()
			ps.ofQuery(&Head{RawQuery: query.String()})
			for _, name := range []string{"a", "b", "a b", "%61", "c", ""} {
				var got []string
				for i := ps.after(-1, name); i >= 0; i = ps.after(i, name) {
					got = append(got, ps.value(i))
				}
				slices.Sort(got)
				expected := slices.Sorted(slices.Values(want[name]))
				if !slices.Equal(got, expected) {
					t.Fatalf("%q: %s has %v, want %v", query.String(), name, got, expected)
				}
			}
		}
	})
}

// chunks are a snapshot's.
type chunks map[version.Digest][]byte

func (c chunks) Chunk(_ context.Context, d version.Digest) ([]byte, error) { return c[d], nil }

// strange makes tables that are valid and that nobody would write.
func (d dice) strange() *route.Table {
	t := d.table()
	for _, m := range t.Modules {
		for i := range m.Routes {
			r := &m.Routes[i]
			if d.one(4) {
				// Deep, with anything that a literal may hold.
				path := ""
				for n := 1 + d.IntN(route.MaxSegments); n > 0; n-- {
					path += "/" + d.pick("a", "a", fmt.Sprintf("{s%d}", n), "%7B", "%7D", ":x%", "a;b", "..a", "...", "%25", "%E2%84%AA", "~!$&'()*+,=@", "%22", "*", fmt.Sprintf("{s%d}%%2F{t%d}", n, n))
				}
				path = strings.ReplaceAll(path, ":x%", "%3Ax")
				path = strings.ReplaceAll(path, "/*/", "/%2A/")
				path = strings.TrimSuffix(path, "/*")
				if r.Prefix != "" {
					r.Prefix = path
				} else {
					r.Path = path + d.pick("", "", "/", "/{rest...}")
				}
			}
			if d.one(4) {
				r.Priority = []int{route.MinPriority, route.MaxPriority, -1, 1}[d.IntN(4)]
			}
			if d.one(6) {
				r.Hosts = []string{d.pick("[::1]", "127.0.0.1", "xn--bcher-kva.test", "*.b.a.test", "localhost")}
			}
			if d.one(10) {
				r.Query = append(r.Query, route.Condition{Name: d.pick("", "a b", "ä", "\x00"), Op: route.OpPresent})
			}
		}
	}
	return t
}

// Whatever Validate lets through survives the way to an instance, compiles
// there, and decides as the reference matcher does.
func TestI6_I7_StrangeTablesFromEndToEnd(t *testing.T) {
	tables, accepted, matched := 600, 0, 0
	for i := range tables {
		dice := dice{rand.New(rand.NewPCG(uint64(i), 77))}
		table := dice.strange()
		route.Normalize(table)
		if Check(table).Errors() != nil {
			continue
		}
		accepted++
		snap, err := version.Encode(table)
		if err != nil {
			t.Fatalf("table %d: %v%s", i, err, show(table))
		}
		c := chunks{}
		for d, b := range snap.Chunks() {
			c[d] = b
		}
		loaded, _, err := version.Load(context.Background(), snap.Digest, snap.ManifestBytes, c, nil)
		if err != nil {
			t.Fatalf("table %d: %v%s", i, err, show(table))
		}
		e, err := Compile(context.Background(), version.Ref{}, loaded, nil, Options{})
		if err != nil {
			t.Fatalf("table %d: %v%s", i, err, show(table))
		}
		patterns := map[*route.Route]refPattern{}
		var d Decision
		for range 60 {
			h := dice.request(table)
			for strings.Contains(h.Path, "%}") {
				h.Path = strings.Replace(h.Path, "%}", "x", 1)
			}
			if dice.one(6) {
				b := []byte(h.Path)
				for range 1 + dice.IntN(3) {
					b[dice.IntN(len(b))] = byte(dice.IntN(256))
				}
				h.Path = string(b)
			}
			e.Decide(&h, &d)
			want := reference(table, patterns, &h)
			got := answerOf(e, &h, &d)
			if !slices.Equal(got.params, want.params) || got.name != want.name || got.status != want.status || !slices.Equal(got.allow, want.allow) {
				t.Fatalf("table %d: %s\n%+v\nengine    %+v\nreference %+v", i, show(table), h, got, want)
			}
			if x := e.Explain(&h); x.Route != got.name {
				t.Fatalf("table %d: explain says %q, decide %q%s", i, x.Route, got.name, show(table))
			}
			if d.Status == 0 {
				matched++
			}
		}
	}
	t.Logf("%d of %d tables accepted, %d requests matched", accepted, tables, matched)
	if accepted < tables/10 || matched < 5*accepted {
		t.Error("the tables are too strange to say anything")
	}
}

// However a head and its body are put, what reaches the upstream is at most the
// one request that was routed, framed by us: none is smuggled past the routes.
func TestNothingIsSmuggled(t *testing.T) {
	type seen struct{ line, host, body string }
	const inner = "GET /secret HTTP/1.1\r\nHost: a.test\r\n\r\n"
	post := func(fields, body string) string {
		return "POST /ok HTTP/1.1\r\nHost: a.test\r\n" + fields + "\r\n" + body
	}
	for name, in := range map[string]string{
		"CL.TE":                   post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+inner),
		"TE.CL":                   post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "5c\r\n"+inner+"\r\n0\r\n\r\n"),
		"TE.TE":                   post("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\nContent-Length: 3\r\n", "0\r\n\r\n"+inner),
		"TE list":                 post("Transfer-Encoding: chunked, identity\r\nContent-Length: 3\r\n", "abc"+inner),
		"TE with a tab":           post("Transfer-Encoding:\tchunked\r\nContent-Length: 3\r\n", "0\r\n\r\n"+inner),
		"TE misspelt":             post("Transfer-Encoding: xchunked\r\nContent-Length: 3\r\n", "abc"+inner),
		"TE, space before colon":  post("Transfer-Encoding : chunked\r\nContent-Length: 3\r\n", "abc"+inner),
		"TE folded":               post("Transfer-Encoding:\r\n chunked\r\nContent-Length: 3\r\n", "0\r\n\r\n"+inner),
		"TE behind a bare CR":     post("X: y\rTransfer-Encoding: chunked\r\nContent-Length: 3\r\n", "abc"+inner),
		"TE behind a bare LF":     post("X: y\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+inner),
		"TE in HTTP/1.0":          "POST /ok HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc" + inner,
		"CL twice":                post("Content-Length: 3\r\nContent-Length: 0\r\n", "abc"+inner),
		"CL twice alike":          post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"),
		"CL with a sign":          post("Content-Length: +3\r\n", "abc"+inner),
		"CL with an underscore":   post("Content-Length: 3\r\nContent_Length: 0\r\n", "abc"),
		"CL listed":               post("Content-Length: 3\r\nConnection: Content-Length\r\n", "abc"),
		"TE listed":               post("Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding\r\n", "3\r\nabc\r\n0\r\n\r\n"),
		"host listed":             post("Content-Length: 3\r\nConnection: Host\r\n", "abc"),
		"chunk extension":         post("Transfer-Encoding: chunked\r\n", "3;a=\"\n\"\r\nabc\r\n0\r\n\r\n"),
		"chunk, bare LF":          post("Transfer-Encoding: chunked\r\n", "3\nabc\r\n0\r\n\r\n"),
		"chunk, negative":         post("Transfer-Encoding: chunked\r\n", "-3\r\nabc\r\n0\r\n\r\n"),
		"chunk, overflow":         post("Transfer-Encoding: chunked\r\n", "10000000000000003\r\nabc\r\n0\r\n\r\n"),
		"trailers":                post("Transfer-Encoding: chunked\r\nTrailer: Content-Length\r\n", "3\r\nabc\r\n0\r\nContent-Length: 90\r\nHost: b.test\r\n\r\n"),
		"two hosts":               "GET /ok HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n",
		"absolute, other host":    "GET http://a.test/ok HTTP/1.1\r\nHost: b.test\r\n\r\n",
		"absolute, routed by it":  "GET http://b.test/ok HTTP/1.1\r\nHost: a.test\r\n\r\n",
		"absolute with user":      "GET http://a.test@b.test/ok HTTP/1.1\r\nHost: a.test\r\n\r\n",
		"host with a path":        "GET /ok HTTP/1.1\r\nHost: a.test/x\r\n\r\n",
		"host with a user":        "GET /ok HTTP/1.1\r\nHost: x@a.test\r\n\r\n",
		"target with a line end":  "GET /ok\rGET HTTP/1.1\r\nHost: a.test\r\n\r\n",
		"target with a fragment":  "GET /ok#/../secret HTTP/1.1\r\nHost: a.test\r\n\r\n",
		"opaque target":           "GET a.test:/ok HTTP/1.1\r\nHost: a.test\r\n\r\n",
		"connect":                 "CONNECT a.test:80 HTTP/1.1\r\nHost: a.test\r\n\r\n",
		"upgrade to HTTP/2":       "GET /ok HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
		"upgrade with a body":     post("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n", "abc"),
		"expect something":        post("Expect: x\r\nContent-Length: 3\r\n", "abc"),
		"expect, listed":          post("Expect: 100-continue\r\nConnection: Expect\r\nContent-Length: 3\r\n", "abc"),
		"version":                 "GET /ok HTTP/1.9\r\nHost: a.test\r\n\r\n",
		"nothing before colon":    "GET /ok HTTP/1.1\r\nHost: a.test\r\n: x\r\n\r\n",
		"space in the first line": "GET /ok /secret HTTP/1.1\r\nHost: a.test\r\n\r\n",
		"body of a GET":           "GET /ok HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc",
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan seen, 10)
			back := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				got <- seen{r.Method + " " + r.RequestURI, r.Host, string(b)}
			}))
			lib := testLibrary(t)
			s, srv := startFront(t, FrontOptions{})
			s.Swap(serving(testEngine(t, lib, 1, back.URL,
				route.Route{Name: "ok", Prefix: "/ok", Hosts: []string{"a.test"}, Action: proxyTo("back")},
			)))
			c := connect(t, srv)
			io.WriteString(c, in)
			_ = c.(*net.TCPConn).CloseWrite()
			b, _ := io.ReadAll(c)
			back.Close() // waits for its requests
			close(got)
			n := 0
			for s := range got {
				if n++; n > 1 || s.line != "POST /ok" && s.line != "GET /ok" || s.host != "a.test" {
					t.Errorf("the upstream got %+v; the client %.40q", s, b)
				}
				if s.body != "" && s.body != "abc" && !strings.HasPrefix(inner, s.body) {
					t.Errorf("body %q", s.body)
				}
			}
		})
	}
}
