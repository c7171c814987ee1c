package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"routerd.dev/internal/route"
	"routerd.dev/internal/version"
)

// TestSharedTables compiles the tables of real products and asks for every
// operation with sample parameters: its own route must answer.
func TestSharedTables(t *testing.T) {
	files, _ := filepath.Glob("../../../shared/routes/*.txt")
	if len(files) == 0 {
		t.Skip("../shared/routes is absent: the tables of real products are not tried")
	}
	table := &route.Table{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		table.Modules = append(table.Modules, readOperations(t, file, name))
	}
	route.Normalize(table)
	if ps := Check(table).Errors(); len(ps) > 0 {
		t.Fatal(ps)
	}
	e := compileFor(t, table, nil)
	var d Decision
	asked := 0
	for _, m := range table.Modules {
		for i := range m.Routes {
			r := &m.Routes[i]
			path := sample(t, r)
			h := HeadOf(r.Methods[0], "http://"+r.Hosts[0]+path)
			e.Decide(&h, &d)
			if d.Name != m.Name+"/"+r.Name {
				t.Errorf("%s %s of %s: got %s (%d)", r.Methods[0], path, r.Path, d.Name, d.Status)
			}
			for _, p := range d.Params {
				if p.Value != "v-"+p.Name {
					t.Errorf("%s: parameter %s is %q", path, p.Name, p.Value)
				}
			}
			asked++
		}
	}
	t.Logf("%d operations of %d products, each answered by its own route", asked, len(files))
}

func readOperations(t *testing.T, file, name string) *route.Module {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := &route.Module{Name: name}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		method, path, ok := strings.Cut(lines.Text(), " ")
		if !ok {
			continue
		}
		m.Routes = append(m.Routes, route.Route{Hosts: []string{name + ".test"}, Methods: []string{method}, Path: path, Action: respond("ok")})
	}
	return m
}

// sample fills a pattern with v-<name> for each parameter.
func sample(t *testing.T, r *route.Route) string {
	p, err := r.Pattern()
	if err != nil {
		t.Fatal(err)
	}
	path := p.String()
	for _, name := range p.ParamNames() {
		path = strings.Replace(path, "{"+name+"}", "v-"+name, 1)
	}
	return path
}

// TestDecideAllocatesNothing covers the ways a request can go but for
// parameters with escapes, which are decoded. Under the race detector only the
// answers are checked: Gin's pool forgets at random there.
func TestDecideAllocatesNothing(t *testing.T) {
	cond := []route.Condition{{Name: "X-A", Op: route.OpEqual, Value: "1"}}
	table := &route.Table{Modules: []*route.Module{{Name: "m", Routes: []route.Route{
		{Name: "literal", Hosts: []string{"a.test"}, Methods: []string{"GET"}, Path: "/a/b/c"},
		{Name: "param", Hosts: []string{"a.test"}, Methods: []string{"GET"}, Path: "/a/{x}/c"},
		{Name: "mixed", Hosts: []string{"a.test"}, Path: "/f/{x}.{y}"},
		{Name: "special", Hosts: []string{"a.test"}, Path: "/v1/items:batch"},
		{Name: "rest", Hosts: []string{"a.test"}, Path: "/static/{p...}"},
		{Name: "prefix", Hosts: []string{"*.test"}, Prefix: "/p"},
		{Name: "headers", Path: "/h", Headers: cond, Query: []route.Condition{{Name: "q", Op: route.OpPresent}}, Cookies: []route.Condition{{Name: "c", Op: route.OpEqual, Value: "1"}}},
		{Name: "clients", Path: "/h", Clients: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
	}}}}
	for i := range table.Modules[0].Routes {
		table.Modules[0].Routes[i].Action = respond("")
	}
	e := compileFor(t, table, nil)
	header := http.Header{"X-A": {"1"}, "Cookie": {"b=2; c=1"}}
	for _, c := range []struct{ method, host, path, route string }{
		{"GET", "a.test", "/a/b/c", "m/literal"},
		{"HEAD", "a.test", "/a/b/c", "m/literal"},
		{"GET", "a.test", "/a/x/c", "m/param"},
		{"GET", "a.test", "/a/x/d", ""},
		{"POST", "a.test", "/a/b/c", ""},
		{"GET", "a.test", "/f/a.b.c", "m/mixed"},
		{"GET", "a.test", "/v1/items:batch", "m/special"},
		{"GET", "a.test", "/static/a/b/c/", "m/rest"},
		{"GET", "x.a.test", "/p/q", "m/prefix"},
		{"GET", "other", "/h", "m/headers"},
		{"GET", "other", "/nothing", ""},
		{"GET", "", "/h", "m/headers"},
	} {
		h := Head{Method: c.method, Host: c.host, Path: c.path, RawQuery: "a=1&q", Header: header, Client: netip.MustParseAddr("10.1.1.1")}
		var d Decision
		e.Decide(&h, &d)
		if d.Name != c.route {
			t.Errorf("%s %s%s: got %q (%d)", c.method, c.host, c.path, d.Name, d.Status)
		}
		if raceEnabled {
			continue
		}
		if n := testing.AllocsPerRun(100, func() { e.Decide(&h, &d) }); n != 0 {
			t.Errorf("%s %s%s: %v allocations", c.method, c.host, c.path, n)
		}
	}
}

// TestParamsDecodedAndRaw is a table of parameters as they come and go.
func TestParamsDecodedAndRaw(t *testing.T) {
	table := &route.Table{Modules: []*route.Module{{Name: "m", Routes: []route.Route{
		{Name: "one", Path: "/u/{id}", Action: respond("")},
		{Name: "mix", Path: "/f/{base}.{ext}", Action: respond("")},
		{Name: "rest", Path: "/s/{p...}", Action: respond("")},
	}}}}
	e := compileFor(t, table, nil)
	for _, c := range []struct{ path, want string }{
		{"/u/a%20b", "id=a b=a%20b"},
		{"/u/%61b", "id=ab=%61b"},
		{"/u/%c3%a9", "id=é=%c3%a9"},
		{"/f/a%2eb.c", "base=a=a ext=b.c=b.c"},
		{"/f/x%20%2Ey", "base=x =x%20 ext=y=y"},
		{"/s/", "p=="},
		{"/s/a/%62", "p=a/b=a/%62"},
	} {
		var d Decision
		e.Decide(&Head{Method: "GET", Path: c.path}, &d)
		var got []string
		for _, p := range d.Params {
			got = append(got, p.Name+"="+p.Value+"="+p.Raw)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: got %q, want %q", c.path, s, c.want)
		}
	}
}

// TestIncrementalEqualsWhole changes one module after the other, and holds an
// engine that took over what it could to one that was built from nothing.
func TestIncrementalEqualsWhole(t *testing.T) {
	table := fleetTable(6, 2, 60)
	shared := &route.Module{Name: "shared", Routes: []route.Route{{Name: "all", Prefix: "/", Action: respond("")}}}
	for i := range 6 {
		shared.Routes = append(shared.Routes, route.Route{Name: fmt.Sprintf("h%d", i), Hosts: []string{fmt.Sprintf("h0.team%d.example.com", i)}, Path: "/shared/{x}", Action: respond("")})
	}
	table.Modules = append(table.Modules, shared)
	e := compileFor(t, table, nil)
	for i := range 7 {
		next := changed(table, i)
		part, whole := compileFor(t, next, e), compileFor(t, next, nil)
		stats := part.Stats()
		if stats.ModulesReused != 6 || i < 6 && stats.HostsReused != stats.Hosts-2 {
			t.Errorf("module %d changed: %+v", i, stats)
		}
		var a, b Decision
		for _, m := range next.Modules {
			for j := range m.Routes {
				host := ""
				if len(m.Routes[j].Hosts) > 0 {
					host = m.Routes[j].Hosts[0]
				}
				h := Head{Method: "GET", Host: host, Path: sample(t, &m.Routes[j])}
				part.Decide(&h, &a)
				whole.Decide(&h, &b)
				if a.Name != b.Name || a.Status != b.Status {
					t.Fatalf("%s%s: %s incrementally, %s from nothing", host, h.Path, a.Name, b.Name)
				}
			}
		}
		table, e = next, part
	}
	gone := &route.Table{Modules: table.Modules[1:]}
	e = compileFor(t, gone, e)
	var d Decision
	e.Decide(&Head{Method: "GET", Host: "h0.team0.example.com", Path: "/api/service-0/v1/resource0"}, &d)
	if d.Name != "shared/all" {
		t.Errorf("a module that is gone still has a route: %s", d.Name)
	}
}

// TestCheckPlacesProblems has mistakes that only the engine can see.
func TestCheckPlacesProblems(t *testing.T) {
	m := &route.Module{
		Name: "shop", Middlewares: []route.NamedMiddleware{{Name: "limit", Kind: "rateLimit", Config: `{"rate":-1,"per":"1s"}`}},
		Routes: []route.Route{
			{Name: "users", Path: "/users/{id}", Action: respond(""), Middlewares: []route.Middleware{{Use: "limit"}, {Kind: "headers", Config: `{"requst":{}}`}}},
			{Name: "rewrite", Path: "/old/{id}", Action: respond(""), Middlewares: []route.Middleware{{Kind: "rewritePath", Config: `{"to":"/new/{nr}"}`}}},
		},
		Source: route.NewSource("shop.yaml", map[string]route.Place{
			"routes[0].middlewares[1].headers": {File: "shop.yaml", Line: 14}, "middlewares[0].rateLimit.rate": {File: "shop.yaml", Line: 3},
		}),
	}
	table := &route.Table{Modules: []*route.Module{m}}
	route.Normalize(table)
	ps := Check(table).Errors()
	for _, want := range []string{"shop.yaml:3: middlewares[0].rateLimit.rate", "shop.yaml:14: users: routes[0].middlewares[1].headers", "routes[1].middlewares[0].rewritePath"} {
		if !strings.Contains(ps.Error(), want) {
			t.Errorf("no problem at %q in:\n%v", want, ps)
		}
	}
}

func TestRouteTestsArePlaced(t *testing.T) {
	m := &route.Module{
		Name: "shop", Routes: []route.Route{{Name: "user", Methods: []string{"GET"}, Path: "/users/{id}", Action: respond("")}},
		Tests: []route.Test{
			{Name: "good", Method: "GET", URL: "http://x.test/users/a%20b?q", Route: "user", Params: []route.Param{{Name: "id", Value: "a b"}}},
			{Name: "method", Method: "POST", URL: "/users/1", Status: 405},
			{Name: "path", Method: "GET", URL: "/a/..", Status: 400},
			{Name: "wrong", Method: "GET", URL: "/user/1", Route: "shop/user"},
			{Name: "value", Method: "GET", URL: "/users/2", Route: "user", Params: []route.Param{{Name: "id", Value: "1"}}},
			{Name: "taken", Method: "GET", URL: "/users/2", Status: 404},
		},
		Source: route.NewSource("shop.yaml", map[string]route.Place{"tests[3].route": {File: "shop.yaml", Line: 33}}),
	}
	ps := Check(&route.Table{Modules: []*route.Module{m}}).Errors()
	var got []string
	for _, p := range ps {
		got = append(got, p.Field+": "+p.Message)
	}
	want := []string{
		"tests[3].route: test wrong: want route shop/user, got 404",
		`tests[4].params[0]: test value: want parameter id = "1", got "2"`,
		"tests[5].status: test taken: want status 404, got route shop/user",
	}
	if !slices.Equal(got, want) || ps[0].Place.Line != 33 {
		t.Errorf("got %q", got)
	}
}

// TestI6_NothingInATableCrashesACompile gives compile what validate would
// refuse, and more than it may take.
func TestI6_NothingInATableCrashesACompile(t *testing.T) {
	many := func(n int, path string) *route.Module {
		m := &route.Module{Name: "m"}
		for i := range n {
			m.Routes = append(m.Routes, route.Route{Name: fmt.Sprintf("r%d", i), Path: strings.ReplaceAll(path, "#", fmt.Sprint(i)), Action: respond("")})
		}
		return m
	}
	overlaps := &route.Module{Name: "m"}
	for i := range 1 << 10 {
		path := ""
		for bit := range 10 {
			path += [2]string{"/a", fmt.Sprintf("/{p%d}", bit)}[i>>bit&1]
		}
		overlaps.Routes = append(overlaps.Routes, route.Route{Name: fmt.Sprintf("r%d", i), Path: path, Action: respond("")})
	}
	classes := &route.Module{Name: "m"}
	for n := 7; n < 20; n++ {
		for i := range 1 << 6 {
			path := ""
			for bit := range n {
				path += [2]string{"/a", fmt.Sprintf("/{p%d}", bit)}[i>>bit&1]
			}
			classes.Routes = append(classes.Routes, route.Route{Name: fmt.Sprintf("r%d-%d", n, i), Prefix: path, Action: respond("")})
		}
	}
	exprs := many(2000, "/#")
	for i := range exprs.Routes {
		exprs.Routes[i].Headers = []route.Condition{{Name: "X", Op: route.OpRegexp, Value: fmt.Sprintf("(%da{0,30}){20}", i)}}
	}
	hosts := many(2000, "/#")
	for i := range hosts.Routes {
		for h := range route.MaxRouteHosts {
			hosts.Routes[i].Hosts = append(hosts.Routes[i].Hosts, fmt.Sprintf("h%d.test", h))
		}
	}
	for name, c := range map[string]struct {
		module *route.Module
		budget Budget
		want   string
	}{
		"competing":       {many(route.MaxCandidates+1, "/x"), Budget{}, "competes with more than"},
		"mixed":           {many(route.MaxCandidates+1, "/{x}:verb#"), Budget{}, "competes with more than"},
		"overlapping":     {overlaps, Budget{}, "overlaps with other routes"},
		"looked up often": {classes, Budget{}, "looked up in more than"},
		"memory, exprs":   {exprs, Budget{Memory: 16 << 20}, "over the 16 MiB allowed"},
		"memory":          {hosts, Budget{Memory: 64 << 20}, "over the 64 MiB allowed"},
		"memory, routes":  {many(100_000, "/#"), Budget{Memory: 16 << 20}, "over the 16 MiB allowed"},
		"pattern":         {many(1, "/a/{"), Budget{}, "routes[0].path"},
		"empty path":      {many(1, ""), Budget{}, "routes[0].path"},
		"regexp":          {&route.Module{Name: "m", Routes: []route.Route{{Path: "/", Action: respond(""), Headers: []route.Condition{{Name: "X", Op: route.OpRegexp, Value: "(a{1000}){900}"}}}}}, Budget{}, "routes[0].headers[0]"},
		"no action":       {&route.Module{Name: "m", Routes: []route.Route{{Path: "/"}}}, Budget{}, "has no action"},
		"upstream":        {&route.Module{Name: "m", Routes: []route.Route{{Path: "/", Action: proxyTo("gone")}}}, Budget{}, "no upstream"},
		"use":             {&route.Module{Name: "m", Routes: []route.Route{{Path: "/", Action: respond(""), Middlewares: []route.Middleware{{Use: "gone"}}}}}, Budget{}, "no middleware"},
		"redirect":        {&route.Module{Name: "m", Routes: []route.Route{{Path: "/{x}", Action: route.Action{Redirect: &route.Redirect{To: "https://{x}/"}}}}}, Budget{}, "routes[0].redirect.to"},
		"panic":           {nil, Budget{}, "cannot be compiled"},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Compile(context.Background(), version.Ref{}, &route.Table{Modules: []*route.Module{c.module}}, nil, Options{Budget: c.budget})
		runtime.ReadMemStats(&after)
		if took := int64(after.TotalAlloc - before.TotalAlloc); c.budget.Memory > 0 && took > 8*c.budget.Memory {
			t.Errorf("%s: %d MiB were allocated before a budget of %d was enforced", name, took>>20, c.budget.Memory>>20)
		}
		var ps route.Problems
		if !errors.As(err, &ps) || !strings.Contains(ps.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	for i := range exprs.Routes {
		exprs.Routes[i].Headers[0].Value = "(a{0,30}){20}"
	}
	if _, err := Compile(context.Background(), version.Ref{}, &route.Table{Modules: []*route.Module{exprs}}, nil, Options{Budget: Budget{Memory: 16 << 20}}); err != nil {
		t.Errorf("the same expression takes no more for standing often: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Compile(ctx, version.Ref{}, &route.Table{Modules: []*route.Module{many(100_000, "/#")}}, nil, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a compile that nobody waits for went on: %v", err)
	}
}

// TestBudgetPaces has a compile work for a millisecond and then rest, once it
// did or took more than what is not worth pacing.
func TestBudgetPaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for percent, want := range map[int]time.Duration{0: 0, 100: 0, 50: time.Millisecond, 10: 9 * time.Millisecond} {
			for what, spend := range map[string]func(p *pacer){
				"time":  func(p *pacer) { p.worked = longBurst - time.Millisecond },
				"steps": func(p *pacer) { p.steps = burst - 16 },
			} {
				p := newPacer(t.Context(), Budget{Percent: percent})
				spend(p)
				start := time.Now()
				work(t, p)
				if rested := time.Since(start); rested != 0 {
					t.Errorf("%d %%: rested %s within the %s that are not paced", percent, rested, what)
				}
				work(t, p)
				if rested := time.Since(start); rested != want {
					t.Errorf("%d %%: rested %s after all %s, want %s", percent, rested, what, want)
				}
			}
		}
	})
}

// work lets a millisecond of work pass, which the bubble's clock does not.
func work(t *testing.T, p *pacer) {
	t.Helper()
	p.since = time.Now().Add(-time.Millisecond)
	for range 16 {
		if err := p.step(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestManyPrefixesUnderOneParameter is a table that a list of candidates for each
// path would refuse: many prefixes under one pattern of parameters.
func TestManyPrefixesUnderOneParameter(t *testing.T) {
	m := &route.Module{Name: "m", Routes: []route.Route{{Name: "any", Path: "/{tenant}/{page}", Action: respond("")}}}
	for i := range 3000 {
		m.Routes = append(m.Routes, route.Route{Name: fmt.Sprintf("p%d", i), Prefix: fmt.Sprintf("/svc%d", i), Action: respond("")})
	}
	table := &route.Table{Modules: []*route.Module{m}}
	if ps := Check(table).Errors(); len(ps) > 0 {
		t.Fatal(ps)
	}
	e := compileFor(t, table, nil)
	var d Decision
	for path, want := range map[string]string{"/svc17/x": "m/p17", "/svc17": "m/p17", "/else/x": "m/any", "/svc2999/a/b": "m/p2999"} {
		if e.Decide(&Head{Method: "GET", Path: path}, &d); d.Name != want {
			t.Errorf("%s: got %q, want %q", path, d.Name, want)
		}
	}
}

func TestExplain(t *testing.T) {
	table := &route.Table{Modules: []*route.Module{{Name: "m", Routes: []route.Route{
		{Name: "one", Methods: []string{"GET"}, Path: "/u/{id}", Action: respond("")},
		{Name: "beta", Methods: []string{"GET"}, Path: "/u/{id}", Headers: []route.Condition{{Name: "X-Beta", Op: route.OpPresent}}, Action: respond("")},
		{Name: "post", Methods: []string{"POST"}, Path: "/u/{id}", Action: respond("")},
		{Name: "file", Path: "/u/{id}.txt", Action: respond("")},
		{Name: "all", Prefix: "/u", Action: respond("")},
	}}}}
	e := compileFor(t, table, nil)
	h := HeadOf("GET", "http://a.test/u/7")
	x := e.Explain(&h)
	var got []string
	for _, c := range x.Considered {
		got = append(got, c.Route+" "+c.Verdict+": "+c.Why)
	}
	want := []string{
		"m/file no: the path does not fit",
		"m/beta no: X-Beta present does not hold",
		"m/one won: first in the order of matching",
		"m/post no: takes POST, not GET",
		"m/all lost: comes after m/one: its path is more specific",
	}
	if !slices.Equal(got, want) || x.Route != "m/one" || x.Params["id"] != "7" || x.Status != 200 {
		t.Errorf("got %+v", x)
	}
	h = HeadOf("GET", "/nothing")
	b, err := json.Marshal(e.Explain(&h))
	if err != nil || !strings.Contains(string(b), `"status":404`) || strings.Contains(string(b), `"route"`) {
		t.Errorf("%s %v", b, err)
	}
}

// TestPlainShapes holds the quick way to take a pattern apart to the way over
// route's parser.
func TestPlainShapes(t *testing.T) {
	var plain, parsed shaper
	taken := 0
	for seed := range uint64(20000) {
		d := dice{rand.New(rand.NewPCG(seed, 7))}
		r := route.Route{Path: d.path(true)}
		if d.one(3) {
			r.Path, r.Prefix = "", d.path(false)
		}
		if d.one(3) {
			text := []byte(r.Path + r.Prefix)
			text[d.IntN(len(text))] = "/{}a.%:*_-0"[d.IntN(11)]
			r.Path = string(text)
		}
		s, params, ok := plain.plain(r.Path, r.Prefix)
		if !ok {
			continue
		}
		taken++
		p, err := r.Pattern()
		if err != nil {
			t.Fatalf("%+v: taken, but %v", r, err)
		}
		want, wantParams, mixed := parsed.parsed(&p)
		if s != want || !slices.Equal(params, wantParams) || len(mixed) > 0 {
			t.Fatalf("%q %q: %+v %v, want %+v %v", r.Path, r.Prefix, s, params, want, wantParams)
		}
		if s.rank != p.PathKey() {
			t.Fatalf("%q: rank %q, route has %q", r.Path, s.rank, p.PathKey())
		}
	}
	if taken < 5000 {
		t.Errorf("only %d patterns were taken", taken)
	}
}
