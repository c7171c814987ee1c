package version

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"pgregory.net/rapid"

	"routerd.dev/internal/route"
)

// Generators of tables: all that a table can hold, little of it, so that
// collisions and neighbours are frequent. What comes out is normalized.

func genTable(t *rapid.T, label string) *route.Table {
	tb := &route.Table{}
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 0, 3, rapid.ID).Draw(t, label+" modules") {
		tb.Modules = append(tb.Modules, genModule(t, name))
	}
	route.Normalize(tb)
	return tb
}

func genModule(t *rapid.T, name string) *route.Module {
	m := &route.Module{Name: name}
	for _, n := range names(t, "upstreams", 2) {
		m.Upstreams = append(m.Upstreams, genUpstream(t, n))
	}
	for _, n := range names(t, "middlewares", 2) {
		m.Middlewares = append(m.Middlewares, route.NamedMiddleware{Name: n, Kind: word(t), Config: config(t)})
	}
	for _, n := range names(t, "routes", 5) {
		m.Routes = append(m.Routes, genRoute(t, n))
	}
	for range rapid.IntRange(0, 2).Draw(t, "tests") {
		m.Tests = append(m.Tests, genTest(t))
	}
	return m
}

func names(t *rapid.T, label string, most int) []string {
	all := []string{"r0", "r1", "r2", "r3", "r4", "r5", "ü", "x y"}
	return rapid.SliceOfNDistinct(rapid.SampledFrom(all), 0, most, rapid.ID).Draw(t, label)
}

func word(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", "a", "b", "X-A", "rateLimit", "a, b", "\"q\"", "\xff", "long long long long text"}).Draw(t, "word")
}

func config(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", "{}", `{"a":1}`, `{"a":{"b":[1,2]}}`}).Draw(t, "config")
}

func number(t *rapid.T) int {
	return rapid.SampledFrom([]int{0, 1, -1, 200, 302, 1 << 40, -1 << 62}).Draw(t, "number")
}

func span(t *rapid.T) time.Duration { return time.Duration(number(t)) * 3 }

func chance(t *rapid.T) bool { return rapid.Bool().Draw(t, "chance") }

func genUpstream(t *rapid.T, name string) route.Upstream {
	u := route.Upstream{
		Name: name, HostMode: route.HostMode(rapid.IntRange(0, 2).Draw(t, "mode")), Host: word(t),
		ConnectTimeout: span(t), ResponseTimeout: span(t), IdleTimeout: span(t), MaxIdle: number(t),
		TLS: route.TLS{ServerName: word(t), CAFile: word(t), Insecure: chance(t)},
	}
	for range rapid.IntRange(0, 2).Draw(t, "targets") {
		u.Targets = append(u.Targets, route.Target{URL: rapid.SampledFrom([]string{"http://a:1", "https://b", ""}).Draw(t, "url"), Weight: number(t)})
	}
	return u
}

func genRoute(t *rapid.T, name string) route.Route {
	r := route.Route{Name: name, Priority: number(t)}
	hosts := []string{"a.example.com", "b.example.com", "*.example.com"}
	r.Hosts = rapid.SliceOfN(rapid.SampledFrom(hosts), 0, 2).Draw(t, "hosts")
	r.Methods = rapid.SliceOfN(rapid.SampledFrom([]string{"GET", "POST", "HEAD"}), 0, 2).Draw(t, "methods")
	if path := rapid.SampledFrom([]string{"/", "/a/{id}", "/a/{x}.json", "/s/{p...}", "not a path", "/ü"}).Draw(t, "path"); chance(t) {
		r.Path = path
	} else {
		r.Prefix = path
	}
	r.Headers, r.Query, r.Cookies = conditions(t), conditions(t), conditions(t)
	for range rapid.IntRange(0, 2).Draw(t, "clients") {
		r.Clients = append(r.Clients, netip.MustParsePrefix(rapid.SampledFrom([]string{"10.0.0.0/8", "2001:db8::/32", "192.0.2.1/32", "::/0", "::ffff:0:0/90"}).Draw(t, "client")))
	}
	for range rapid.IntRange(0, 2).Draw(t, "links") {
		if chance(t) {
			r.Middlewares = append(r.Middlewares, route.Middleware{Use: word(t)})
		} else {
			r.Middlewares = append(r.Middlewares, route.Middleware{Kind: word(t), Config: config(t)})
		}
	}
	switch rapid.IntRange(0, 3).Draw(t, "action") {
	case 0:
		r.Action.Proxy = &route.Proxy{Upstream: word(t), Timeout: span(t)}
	case 1:
		r.Action.Respond = &route.Respond{Status: number(t), Headers: headers(t), Body: word(t)}
	case 2:
		r.Action.Redirect = &route.Redirect{To: word(t), Status: number(t)}
	}
	return r
}

func conditions(t *rapid.T) []route.Condition {
	var out []route.Condition
	for range rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(t, "conditions") {
		out = append(out, route.Condition{Name: word(t), Op: route.Op(rapid.IntRange(1, 4).Draw(t, "op")), Value: word(t)})
	}
	return out
}

func headers(t *rapid.T) []route.Header {
	var out []route.Header
	for range rapid.IntRange(0, 2).Draw(t, "headers") {
		out = append(out, route.Header{Name: word(t), Value: word(t)})
	}
	return out
}

func genTest(t *rapid.T) route.Test {
	x := route.Test{Name: word(t), Method: word(t), URL: word(t), Headers: headers(t), Route: word(t), Status: number(t)}
	if chance(t) {
		x.Client = netip.MustParseAddr(rapid.SampledFrom([]string{"10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1"}).Draw(t, "client"))
	}
	for range rapid.IntRange(0, 2).Draw(t, "params") {
		x.Params = append(x.Params, route.Param{Name: word(t), Value: word(t)})
	}
	return x
}

// shuffle copies a table and mixes up what has no order of its own.
func shuffle(t *rapid.T, from *route.Table) *route.Table {
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	out := &route.Table{}
	for _, m := range from.Modules {
		c := *m
		c.Upstreams, c.Middlewares = mixed(r, m.Upstreams), mixed(r, m.Middlewares)
		c.Routes = slices.Clone(m.Routes)
		for i := range c.Routes {
			rt := &c.Routes[i]
			rt.Hosts, rt.Methods, rt.Clients = mixed(r, rt.Hosts), mixed(r, rt.Methods), mixed(r, rt.Clients)
			rt.Headers, rt.Query, rt.Cookies = mixed(r, rt.Headers), mixed(r, rt.Query), mixed(r, rt.Cookies)
		}
		out.Modules = append(out.Modules, &c)
	}
	out.Modules = mixed(r, out.Modules)
	return out
}

func mixed[T any](r *rand.Rand, list []T) []T {
	out := slices.Clone(list)
	r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// manyRoutes is a module of some megabytes and so of many chunks, with bodies
// of all sizes.
func manyRoutes(name string, n int) *route.Module {
	r := rand.New(rand.NewPCG(uint64(n), 2))
	m := &route.Module{Name: name}
	for i := range n {
		body := make([]byte, r.IntN(200))
		if i%500 == 499 {
			body = make([]byte, route.MaxRespondBody)
		}
		for j := range body {
			body[j] = byte('a' + r.IntN(26))
		}
		m.Routes = append(m.Routes, route.Route{
			Name: fmt.Sprintf("r%d", i), Hosts: []string{fmt.Sprintf("h%d.example.com", r.IntN(50))}, Path: fmt.Sprintf("/p/%d", i),
			Action: route.Action{Respond: &route.Respond{Status: 200, Body: string(body)}},
		})
		m.Tests = append(m.Tests, route.Test{Method: "GET", URL: fmt.Sprintf("/p/%d", i), Status: 404})
	}
	route.NormalizeModule(m)
	return m
}
