package version

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"routerd.dev/internal/route"
)

// flatten says a table as path → text, which Diff must account for wholly.
func flatten(t *route.Table) map[string]string {
	out := map[string]string{}
	put := func(module, kind, name string, fields []field) {
		key := module + "|" + kind + "|" + name
		out[key] = "there"
		for _, f := range fields {
			out[key+"|"+f.path] = f.text
		}
	}
	for _, m := range t.Modules {
		out[m.Name] = "there"
		for i, k := range keyed(m.Upstreams, func(u *route.Upstream) string { return u.Name }) {
			put(m.Name, "upstream", k, upstreamFields(&m.Upstreams[i]))
		}
		for i, k := range keyed(m.Middlewares, func(w *route.NamedMiddleware) string { return w.Name }) {
			put(m.Name, "middleware", k, middlewareFields(&m.Middlewares[i]))
		}
		for i, k := range keyed(m.Routes, func(r *route.Route) string { return r.Name }) {
			put(m.Name, "route", k, routeFieldTexts(&m.Routes[i]))
		}
		for i, k := range keyed(m.Tests, testName) {
			put(m.Name, "test", k, testFields(&m.Tests[i]))
		}
	}
	return out
}

// applied carries a difference out on a flattened table, and fails where the
// old text is not what the difference says it is.
func applied(t *rapid.T, flat map[string]string, d Difference) map[string]string {
	edit := func(key string, c Change) {
		_, there := flat[key]
		if there != (c != Added) {
			t.Fatalf("%s is %s, and was there: %v", key, c, there)
		}
		switch c {
		case Added:
			flat[key] = "there"
		case Removed:
			delete(flat, key)
		}
	}
	for _, m := range d.Modules {
		edit(m.Module, m.Change)
		for kind, items := range map[string][]ItemDifference{"upstream": m.Upstreams, "middleware": m.Middlewares, "route": m.Routes, "test": m.Tests} {
			for _, item := range items {
				key := m.Module + "|" + kind + "|" + item.Name
				edit(key, item.Change)
				for _, f := range item.Fields {
					if flat[key+"|"+f.Field] != f.Old {
						t.Fatalf("%s %s was %q, the difference says %q", key, f.Field, flat[key+"|"+f.Field], f.Old)
					}
					if f.New == "" {
						delete(flat, key+"|"+f.Field)
					} else {
						flat[key+"|"+f.Field] = f.New
					}
				}
			}
		}
	}
	return flat
}

func TestDiffLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := genTable(t, "a"), genTable(t, "b")
		if d := Diff(a, a); !d.Empty() {
			t.Fatalf("a table differs from itself: %s", d)
		}
		d := Diff(a, b)
		if d.Empty() != reflect.DeepEqual(a, b) {
			t.Fatalf("difference %q of tables that are equal: %v", d, reflect.DeepEqual(a, b))
		}
		if got, want := applied(t, flatten(a), d), flatten(b); !reflect.DeepEqual(got, want) {
			t.Fatalf("applied to a, the difference gives\n%v\nnot b\n%v", got, want)
		}
		raw, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var back Difference
		if err := json.Unmarshal(raw, &back); err != nil || back.String() == "" != d.Empty() {
			t.Fatalf("JSON form: %v", err)
		}
		if n := strings.Count(Diff(nil, b).String(), "+ route"); n != encode(t, b).Manifest.Routes() {
			t.Fatalf("from nothing, %d routes are added", n)
		}
	})
}

func routes(names ...string) []route.Route {
	var out []route.Route
	for _, n := range names {
		out = append(out, route.Route{Name: n, Path: "/" + n})
	}
	return out
}

func TestDiffReadsWell(t *testing.T) {
	a := &route.Table{Modules: []*route.Module{
		{Name: "gone", Routes: routes("x")},
		{
			Name:        "shop",
			Upstreams:   []route.Upstream{{Name: "web", Targets: []route.Target{{URL: "http://10.0.0.1:80", Weight: 1}}}},
			Middlewares: []route.NamedMiddleware{{Name: "limit", Kind: "rateLimit", Config: `{"rate":1}`}},
			Routes: []route.Route{
				{Name: "cart", Hosts: []string{"a.example.com"}, Path: "/cart", Action: route.Action{Proxy: &route.Proxy{Upstream: "web"}}},
				{Name: "first", Path: "/{a}", Headers: []route.Condition{{Name: "X-A", Op: route.OpPresent}}},
				{Name: "second", Path: "/{b}", Headers: []route.Condition{{Name: "X-B", Op: route.OpPresent}}},
				{Name: "old", Path: "/old", Action: route.Action{Respond: &route.Respond{Status: 200, Body: "a, b"}}},
			},
		},
	}}
	b := &route.Table{Modules: []*route.Module{{
		Name:        "shop",
		Upstreams:   []route.Upstream{{Name: "web", Targets: []route.Target{{URL: "http://10.0.0.2:80", Weight: 2}}}},
		Middlewares: []route.NamedMiddleware{{Name: "limit", Kind: "rateLimit", Config: `{"rate":2}`}},
		Routes: []route.Route{
			{Name: "second", Path: "/{b}", Headers: []route.Condition{{Name: "X-B", Op: route.OpPresent}}},
			{Name: "first", Path: "/{a}", Headers: []route.Condition{{Name: "X-A", Op: route.OpPresent}}},
			{Name: "cart", Hosts: []string{"a.example.com", "b.example.com"}, Path: "/cart/{id}", Action: route.Action{Proxy: &route.Proxy{Upstream: "web"}}},
			{Name: "new", Path: "/new", Methods: []string{"GET"}, Middlewares: []route.Middleware{{Use: "limit"}}},
		},
	}}}
	const want = `- module gone
  - route x
      path: /x
~ module shop
  ~ upstream web
      targets[0]: http://10.0.0.1:80 weight 1 → http://10.0.0.2:80 weight 2
  ~ middleware limit
      config: {"rate":1} → {"rate":2}
  ~ route cart
      hosts: a.example.com → a.example.com, b.example.com
      path: /cart → /cart/{id}
  + route new
      methods: GET
      path: /new
      middlewares[0].use: limit
  - route old
      path: /old
      respond.status: 200
      respond.body: "a, b"
  ~ order first, second → second, first
`
	if got := Diff(a, b).String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestDiffTellsOrderThatMattersFromOrderThatDoesNot(t *testing.T) {
	for name, c := range map[string]struct {
		a, b    route.Route
		matters bool
	}{
		"same shape":               {route.Route{Path: "/{a}"}, route.Route{Path: "/{b}"}, true},
		"prefix and catch-all":     {route.Route{Prefix: "/a"}, route.Route{Path: "/a/{x...}"}, true},
		"other literal":            {route.Route{Path: "/a/{x}"}, route.Route{Path: "/b/{x}"}, false},
		"literal and parameter":    {route.Route{Path: "/a"}, route.Route{Path: "/{x}"}, false},
		"other priority":           {route.Route{Path: "/a", Priority: 1}, route.Route{Path: "/a"}, false},
		"one host in common":       {route.Route{Path: "/a", Hosts: []string{"x", "y"}}, route.Route{Path: "/a", Hosts: []string{"y", "z"}}, true},
		"no host in common":        {route.Route{Path: "/a", Hosts: []string{"x"}}, route.Route{Path: "/a", Hosts: []string{"y"}}, false},
		"any host and one":         {route.Route{Path: "/a"}, route.Route{Path: "/a", Hosts: []string{"y"}}, false},
		"mixed of equal text":      {route.Route{Path: "/a{x}"}, route.Route{Path: "/{x}a"}, true},
		"mixed of different texts": {route.Route{Path: "/a{x}"}, route.Route{Path: "/aa{x}"}, false},
	} {
		c.a.Name, c.b.Name = "a", "b"
		d := Diff(
			&route.Table{Modules: []*route.Module{{Name: "m", Routes: []route.Route{c.a, c.b}}}},
			&route.Table{Modules: []*route.Module{{Name: "m", Routes: []route.Route{c.b, c.a}}}},
		)
		if len(d.Modules) != 1 || !d.Modules[0].Reordered || (len(d.Modules[0].Order) > 0) != c.matters {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestComposeLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := genTable(t, "a"), genTable(t, "b")
		once := Compose(a, b.Modules, false)
		twice := Compose(once, b.Modules, false)
		if !slices.Equal(once.Modules, twice.Modules) {
			t.Fatal("composing twice is not composing once")
		}
		if !slices.Equal(Compose(a, nil, false).Modules, a.Modules) || !slices.Equal(Compose(a, b.Modules, true).Modules, b.Modules) || !slices.Equal(Compose(nil, b.Modules, false).Modules, b.Modules) {
			t.Fatal("composing with nothing, or of everything, changes something")
		}
		in := modulesByName(once)
		for _, m := range b.Modules {
			if in[m.Name] != m {
				t.Fatalf("module %s was not replaced", m.Name)
			}
		}
		for _, m := range a.Modules {
			if modulesByName(b)[m.Name] == nil && in[m.Name] != m {
				t.Fatalf("module %s did not stay", m.Name)
			}
		}
		encode(t, once) // modules are sorted, each once
	})
}

func TestShrink(t *testing.T) {
	table := func(hosts ...string) *route.Table {
		m := &route.Module{Name: "m"}
		for i, h := range hosts {
			r := route.Route{Name: fmt.Sprintf("r%d", i), Path: fmt.Sprintf("/%d", i)}
			if h != "" {
				r.Hosts = []string{h}
			}
			m.Routes = append(m.Routes, r)
		}
		return &route.Table{Modules: []*route.Module{m}}
	}
	renamed := table("a", "a", "a")
	renamed.Modules[0].Name = "other"
	elsewhere := table("a", "a", "a")
	elsewhere.Modules[0].Routes = routes("x", "y", "z")
	for name, c := range map[string]struct {
		a, b *route.Table
		want []string
	}{
		"nothing":           {nil, nil, nil},
		"from nothing":      {nil, table("a"), nil},
		"same":              {table("a", "b"), table("a", "b"), nil},
		"more":              {table("a"), table("a", "b"), nil},
		"every route":       {table("a", "b"), nil, []string{"it removes every route (2)"}},
		"a third":           {table("a", "a", "a"), table("a", "a"), nil},
		"more than a third": {table("a", "a", "a", "a"), table("a", "a"), []string{"it removes 2 of 4 routes, more than a third"}},
		"a host":            {table("a", "a", "a", "b"), table("a", "a", "a"), []string{"it removes all 1 routes of host b"}},
		"any host":          {table("a", "a", "a", ""), table("a", "a", "a"), []string{"it removes all 1 routes for any host"}},
		"renamed":           {table("a", "a", "a"), renamed, nil},
		"replaced":          {table("a", "a", "a"), elsewhere, []string{"it removes 3 of 3 routes, more than a third", "it removes all 3 routes of host a"}},
	} {
		if got := Shrink(c.a, c.b); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		a := genTable(t, "a")
		if why := Shrink(a, a); len(why) > 0 {
			t.Fatalf("a table shrinks to itself: %q", why)
		}
		if why := Shrink(a, nil); (len(why) > 0) != (encode(t, a).Manifest.Routes() > 0) {
			t.Fatalf("shrinks to nothing: %q", why)
		}
	})
}
