package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/gin-gonic/gin"

	"routerd.dev/internal/route"
	"routerd.dev/internal/version"
)

// Everything here stands beside plain Gin on the same paths, in one run: run
// with -bench . -benchtime 2s -count 5 and compare medians.

var benchSizes = []struct {
	name   string
	routes int
}{{"1k", 1_000}, {"10k", 10_000}, {"100k", 100_000}}

// benchPaths is n paths such as a fleet of REST services has, a third of them
// without parameters, which Gin can hold too.
func benchPaths(n int) []string {
	paths := make([]string, 0, n+6)
	for i := 0; len(paths) < n; i++ {
		base := fmt.Sprintf("/api/service-%d/v1/resource%d", i/50, i)
		paths = append(paths,
			base, base+"/search",
			base+"/items/{id}", base+"/items/{id}/state", base+"/owners/{owner}/items/{item}", base+"/owners/{owner}/items/{item}/history")
	}
	return paths[:n]
}

func benchTable(paths []string) *route.Table {
	m := &route.Module{Name: "bench"}
	for i, p := range paths {
		m.Routes = append(m.Routes, route.Route{
			Name: fmt.Sprintf("r%d", i), Hosts: []string{"api.example.com"}, Methods: []string{"GET"}, Path: p,
			Action: route.Action{Respond: &route.Respond{Status: 200}},
		})
	}
	return &route.Table{Modules: []*route.Module{m}}
}

func plainGin(paths []string) *gin.Engine {
	g := newGin()
	for _, p := range paths {
		g.GET(ginForm(p), func(*gin.Context) {})
	}
	(&lookup{}).find(&hostTree{gin: g}, "GET", "/")
	return g
}

// ginForm writes {name} as :name.
func ginForm(path string) string {
	p, err := route.ParsePattern(path)
	if err != nil {
		panic(err)
	}
	out := ""
	for _, s := range p.Segments {
		if s.Kind() == route.Parameter {
			out += "/:" + s.Parts[0].Param
		} else {
			out += "/" + s.Parts[0].Literal
		}
	}
	return out
}

func compileFor(b testing.TB, t *route.Table, previous *Engine) *Engine {
	e, err := Compile(context.Background(), version.Ref{}, t, nil, Options{Previous: previous})
	if err != nil {
		b.Fatal(err)
	}
	return e
}

func BenchmarkBuild(b *testing.B) {
	for _, size := range benchSizes {
		paths := benchPaths(size.routes)
		ginPaths := make([]string, len(paths))
		for i, p := range paths {
			ginPaths[i] = ginForm(p)
		}
		table := benchTable(paths)
		b.Run(size.name, func(b *testing.B) {
			best := [2]time.Duration{time.Hour, time.Hour}
			for b.Loop() {
				runtime.GC() // each pays for its own garbage
				start := time.Now()
				g := newGin()
				for _, p := range ginPaths {
					g.GET(p, func(*gin.Context) {})
				}
				(&lookup{}).find(&hostTree{gin: g}, "GET", "/")
				best[0] = min(best[0], time.Since(start))
				runtime.KeepAlive(g)
				runtime.GC()
				start = time.Now()
				e := compileFor(b, table, nil)
				best[1] = min(best[1], time.Since(start))
				runtime.KeepAlive(e)
			}
			b.ReportMetric(float64(best[0].Microseconds()), "gin-µs")
			b.ReportMetric(float64(best[1].Microseconds()), "engine-µs")
			b.ReportMetric(float64(best[1])/float64(best[0]), "ratio")
		})
	}
}

// BenchmarkBytes reports the heap that a built router takes for each route.
func BenchmarkBytes(b *testing.B) {
	for _, size := range benchSizes {
		paths := benchPaths(size.routes)
		table := benchTable(paths)
		for _, kind := range []string{"gin", "engine"} {
			b.Run(size.name+"/"+kind, func(b *testing.B) {
				for b.Loop() {
					before := heap()
					var built any
					if kind == "gin" {
						built = plainGin(paths)
					} else {
						built = compileFor(b, table, nil)
					}
					b.ReportMetric(float64(heap()-before)/float64(len(paths)), "B/route")
					runtime.KeepAlive(built)
				}
			})
		}
		runtime.KeepAlive(table)
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkLookup compares in rounds that take turns, and takes the quickest
// round of each: on a busy machine that is the one nobody disturbed.
func BenchmarkLookup(b *testing.B) {
	for _, size := range benchSizes {
		paths := benchPaths(size.routes)
		g, e := plainGin(paths), compileFor(b, benchTable(paths), nil)
		for _, kind := range []string{"literal", "param", "miss"} {
			asked := benchRequests(paths, kind)
			b.Run(size.name+"/"+kind, func(b *testing.B) {
				w := &lookup{header: http.Header{}}
				r := &http.Request{Method: "GET", URL: &url.URL{}, Body: w}
				h := Head{Method: "GET", Host: "api.example.com"}
				var d Decision
				best := [2]time.Duration{time.Hour, time.Hour}
				b.ReportAllocs()
				for b.Loop() {
					start := time.Now()
					for _, path := range asked {
						r.URL.Path = path
						g.ServeHTTP(w, r)
					}
					middle := time.Now()
					for _, path := range asked {
						h.Path = path
						e.Decide(&h, &d)
					}
					best[0] = min(best[0], middle.Sub(start))
					best[1] = min(best[1], time.Since(middle))
				}
				if (d.Status == 0) == (kind == "miss") {
					b.Fatalf("%s: %d", h.Path, d.Status)
				}
				b.ReportMetric(float64(best[0])/float64(len(asked)), "gin-ns")
				b.ReportMetric(float64(best[1])/float64(len(asked)), "engine-ns")
				b.ReportMetric(float64(best[1])/float64(best[0]), "ratio")
			})
		}
	}
}

// benchRequests is what is asked for, in no order that a processor could
// learn by heart: as from many clients.
func benchRequests(paths []string, kind string) []string {
	const n = 2048
	dice := rand.New(rand.NewPCG(1, 2))
	asked := make([]string, n)
	for i := range asked {
		base := paths[dice.IntN(len(paths)/6)*6]
		switch kind {
		case "literal":
			asked[i] = base
		case "param":
			asked[i] = base + "/owners/alice/items/12345"
		case "miss":
			asked[i] = base + "/unknown"
		}
	}
	return asked
}

// fleetTable is a table of modules with hosts of their own.
func fleetTable(modules, hosts, routes int) *route.Table {
	t := &route.Table{}
	for m := range modules {
		mod := &route.Module{Name: fmt.Sprintf("team-%03d", m)}
		for h := range hosts {
			for i, p := range benchPaths(routes / hosts) {
				mod.Routes = append(mod.Routes, route.Route{
					Name: fmt.Sprintf("h%d-r%d", h, i), Hosts: []string{fmt.Sprintf("h%d.team%d.example.com", h, m)}, Methods: []string{"GET"}, Path: p,
					Action: route.Action{Respond: &route.Respond{Status: 200}},
				})
			}
		}
		mod.Tests = []route.Test{{Method: "GET", URL: fmt.Sprintf("http://h0.team%d.example.com/api/service-0/v1/resource0", m), Route: "h0-r0"}}
		t.Modules = append(t.Modules, mod)
	}
	return t
}

// changed is the table with one route of one module changed, as it comes out
// of a snapshot: every other module is the same.
func changed(t *route.Table, module int) *route.Table {
	next := &route.Table{Modules: slices.Clone(t.Modules)}
	m := *t.Modules[module]
	m.Routes = slices.Clone(m.Routes)
	m.Routes[len(m.Routes)/2].Path += "/changed"
	next.Modules[module] = &m
	return next
}

// BenchmarkIncremental is a one-route change in 100k routes: 100 modules of 10
// hosts and 1,000 routes, tests included.
func BenchmarkIncremental(b *testing.B) {
	t := fleetTable(100, 10, 1000)
	e := compileFor(b, t, nil)
	next := changed(t, 50)
	b.ReportAllocs()
	for b.Loop() {
		n := compileFor(b, next, e)
		if ps := n.RunTests(); len(ps) > 0 {
			b.Fatal(ps)
		}
	}
}

// BenchmarkSwitch is what the front end adds to net/http for a respond action,
// with a middleware and an observer.
func BenchmarkSwitch(b *testing.B) {
	for _, headers := range []bool{false, true} {
		b.Run(fmt.Sprintf("headers=%v", headers), func(b *testing.B) {
			s := NewSwitch(FrontOptions{ResponseHeaders: headers, Observer: observerFunc(func(*Record) {})})
			s.Swap(serving(testEngine(b, testLibrary(b), 1, "", route.Route{
				Name: "r", Path: "/users/{id}", Action: respond("ok"),
				Middlewares: []route.Middleware{{Kind: "headers", Config: `{"response":{"set":{"X-A":"b"}}}`}},
			})))
			w := &lookup{header: http.Header{}}
			r := &http.Request{Method: "GET", URL: &url.URL{}, RequestURI: "/users/17?a=b", Host: "a.test", RemoteAddr: "192.0.2.1:1234", Header: http.Header{}, Proto: "HTTP/1.1"}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				s.ServeHTTP(w, r)
			}
		})
	}
}
