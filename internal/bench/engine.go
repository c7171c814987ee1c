package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"runtime"

	"github.com/gin-gonic/gin"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/route"
	"routerd.dev/internal/version"
)

// measureEngine compares with Gin as its users build it, but for redirects and
// method handling, which routerd has of its own and which would only slow Gin
// down.
func measureEngine(ctx context.Context, b *bench) ([]Figure, error) {
	gin.SetMode(gin.ReleaseMode)
	var all []Figure
	sizes := []int{1_000, 10_000, 100_000}
	if b.quick {
		sizes = sizes[:2]
	}
	for _, n := range sizes {
		fs, err := engineOf(ctx, b, n)
		if err != nil {
			return all, fmt.Errorf("%d routes: %w", n, err)
		}
		all = append(all, fs...)
	}
	return all, nil
}

func engineOf(ctx context.Context, b *bench, routes int) ([]Figure, error) {
	paths := restPaths(routes)
	ginPaths := make([]string, len(paths))
	for i, p := range paths {
		ginPaths[i] = ginForm(p)
	}
	table := oneHost(paths, respond(""))
	lib := engine.NewLibrary(proxy.Options{}, middleware.Env{})
	var g *gin.Engine
	var e *engine.Engine
	var err error
	buildGin := func() { g = plainGin(ginPaths) }
	build := func() {
		if e, err = engine.Compile(ctx, version.Ref{}, table, lib, engine.Options{}); err != nil {
			e = nil
		}
	}

	forget := func() { // each pays for its own garbage only
		if g = nil; e != nil {
			e.Release()
			e = nil
		}
		runtime.GC()
	}

	rounds := b.of(min(25, 1_000_000/routes), 3)
	took := takeTurns(rounds, forget, buildGin, forget, build)
	if err != nil {
		return nil, err
	}
	ginTook, engineTook := each(took[1], milli), each(took[3], milli)
	size := fmt.Sprintf("%dk ", routes/1000)
	all := []Figure{figure(size+"build", median(engineTook), "ms").beside("Gin", median(ginTook), ratioOf(engineTook, ginTook)).ratioAtMost(3)}

	forget()
	empty := heap()
	buildGin()
	withGin := heap()
	build()
	withBoth := heap()
	ginBytes, engineBytes := (withGin-empty)/float64(routes), (withBoth-withGin)/float64(routes)
	all = append(all, figure(size+"heap a route", engineBytes, "B").beside("Gin", ginBytes, engineBytes/ginBytes).ratioAtMost(3))

	for _, kind := range []string{"literal", "parameter", "miss"} {
		f, err := lookups(b, g, e, restRequests(paths, kind), kind == "miss")
		if err != nil {
			return all, err
		}
		f[0].Name, f[1].Name = size+kind, size+kind+", allocations"
		all = append(all, f...)
	}
	runtime.KeepAlive(table)
	return all, nil
}

// lookups compares looking up each of the paths asked for.
func lookups(b *bench, g *gin.Engine, e *engine.Engine, asked []string, miss bool) ([]Figure, error) {
	w := &nowhere{header: http.Header{}}
	r := &http.Request{Method: http.MethodGet, URL: &url.URL{}, Host: benchHost, Body: http.NoBody}
	h := engine.Head{Method: http.MethodGet, Host: benchHost}
	var d engine.Decision
	inGin := func() {
		for _, p := range asked {
			r.URL.Path = p
			g.ServeHTTP(w, r)
		}
	}
	inEngine := func() {
		for _, p := range asked {
			h.Path = p
			e.Decide(&h, &d)
		}
	}
	took := takeTurns(b.of(400, 40), inGin, inEngine)
	if (d.Status == 0) == miss {
		return nil, fmt.Errorf("lookup of %s: status %d", h.Path, d.Status)
	}
	nanos := func(s float64) float64 { return s * 1e9 / float64(len(asked)) }
	ginTook, engineTook := each(took[0], nanos), each(took[1], nanos)
	allocs := allocations(10*len(asked), func() {
		h.Path = asked[0]
		e.Decide(&h, &d)
	})
	return []Figure{
		figure("", median(engineTook), "ns").beside("Gin", median(ginTook), ratioOf(engineTook, ginTook)).ratioAtMost(1.5),
		figure("", allocs, "").atMost(0),
	}, nil
}

func plainGin(paths []string) *gin.Engine {
	g := gin.New()
	g.RedirectTrailingSlash = false
	g.ForwardedByClientIP = false
	g.NoRoute(func(c *gin.Context) { c.Writer.WriteHeaderNow() }) // without a body to write
	for _, p := range paths {
		g.GET(p, func(*gin.Context) {})
	}
	// Gin finishes its trees at the first request.
	g.ServeHTTP(&nowhere{header: http.Header{}}, &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/"}})
	return g
}

// nowhere is a ResponseWriter that costs next to nothing.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n *nowhere) WriteHeader(int)             {}

func milli(s float64) float64 { return s * 1e3 }

var _ http.ResponseWriter = (*nowhere)(nil)

// compile is engine.Compile without a budget, of a table that was never
// published.
func compile(ctx context.Context, t *route.Table, lib *engine.Library, previous *engine.Engine) (*engine.Engine, error) {
	return engine.Compile(ctx, version.Ref{Number: 1}, t, lib, engine.Options{Previous: previous})
}
