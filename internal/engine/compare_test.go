package engine

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/route"
	"routerd.dev/internal/version"
)

// drawModule makes a small module in which names come again in others.
func drawModule(t *rapid.T, name string) *route.Module {
	m := &route.Module{Name: name}
	pick := func(what string, n int) int { return rapid.IntRange(0, n).Draw(t, what) }
	for i := range 2 {
		m.Upstreams = append(m.Upstreams, route.Upstream{Name: fmt.Sprint("u", i), Targets: []route.Target{{URL: fmt.Sprint("http://127.0.0.1:900", pick("target", 1))}}})
		m.Middlewares = append(m.Middlewares, route.NamedMiddleware{
			Name: fmt.Sprint("w", i), Kind: "headers", Config: fmt.Sprintf(`{"response":{"set":{"X-A":"%d"}}}`, pick("config", 1)),
		})
	}
	for i := range 4 {
		if pick("absent", 3) == 0 {
			continue
		}
		r := route.Route{Name: fmt.Sprint("r", i), Path: fmt.Sprintf("/%s/%d/%d", name, i, pick("path", 1))}
		switch pick("action", 2) {
		case 0:
			r.Action = respond(fmt.Sprint(pick("body", 1)))
		case 1:
			r.Action = proxyTo(fmt.Sprint("u", pick("upstream", 1)))
		default:
			r.Action = route.Action{Redirect: &route.Redirect{To: "/", Status: 302}}
		}
		if use := pick("use", 3); use < 2 {
			r.Middlewares = []route.Middleware{{Use: fmt.Sprint("w", use)}}
		}
		m.Routes = append(m.Routes, r)
	}
	return m
}

func compileTable(t testing.TB, lib *Library, n int64, previous *Engine, modules ...*route.Module) *Engine {
	t.Helper()
	table := &route.Table{Modules: modules}
	route.Normalize(table)
	e, err := Compile(context.Background(), testRef(n), table, lib, Options{Previous: previous})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// touchedBy is what Compare should list, told by the diff that people read.
func touchedBy(a, b []*route.Module) []string {
	touched := map[string]bool{}
	for _, d := range version.Diff(&route.Table{Modules: a}, &route.Table{Modules: b}).Modules {
		i := slices.IndexFunc(b, func(m *route.Module) bool { return m.Name == d.Module })
		if i < 0 {
			continue
		}
		changed := map[string]bool{}
		for kind, items := range map[string][]version.ItemDifference{"u ": d.Upstreams, "w ": d.Middlewares, "r ": d.Routes} {
			for _, item := range items {
				changed[kind+item.Name] = true
			}
		}
		for _, r := range b[i].Routes {
			is := changed["r "+r.Name] || r.Action.Proxy != nil && changed["u "+r.Action.Proxy.Upstream]
			for _, m := range r.Middlewares {
				is = is || changed["w "+m.Use]
			}
			if is {
				touched[d.Module+"/"+r.Name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(touched))
}

// TestComparedAreTheRoutesThatChanged takes any two tables, compiled one after
// the other or apart, and any limit: listed are the first by name, the others are
// counted, and no request is lost.
func TestComparedAreTheRoutesThatChanged(t *testing.T) {
	lib := testLibrary(t)
	rapid.Check(t, func(rt *rapid.T) {
		var before, after []*route.Module
		for _, name := range []string{"a", "b", "c"} {
			m := drawModule(rt, name)
			if rapid.Bool().Draw(rt, "in old") {
				before = append(before, m)
			}
			if rapid.Bool().Draw(rt, "in new") {
				if rapid.Bool().Draw(rt, "changed") {
					m = drawModule(rt, name)
				}
				after = append(after, m)
			}
		}
		old := compileTable(t, lib, 1, nil, before...)
		previous := old
		if rapid.Bool().Draw(rt, "apart") {
			previous = nil
		}
		new := compileTable(t, lib, 2, previous, after...)
		defer lib.Keep()
		sides := [2]map[string]uint64{{}, {}}
		for i, e := range []*Engine{old, new} {
			for _, p := range e.parts {
				for j := range p.entries {
					n := rapid.IntRange(0, 2).Draw(rt, "requests")
					for range n {
						e.counters.count(&Record{Status: 200}, &p.entries[j], 0)
					}
					sides[i][p.entries[j].name] = uint64(n)
				}
			}
			e.counters.count(&Record{Status: 404}, nil, 0)
		}

		want := touchedBy(before, after)
		most := rapid.IntRange(0, 6).Draw(rt, "most")
		listed := want[:min(most, len(want))]
		s := lib.Counters.Compare(old, new, most)
		if got := slices.Sorted(maps.Keys(s.Routes)); !slices.Equal(got, listed) || s.More != len(want)-len(listed) {
			rt.Fatalf("listed %v and %d more, want %v of %v", got, s.More, listed, want)
		}
		var rest [2]uint64
		for _, name := range want[len(listed):] {
			rest[0] += sides[0][name]
			rest[1] += sides[1][name]
		}
		if s.Rest.Stable.Requests != rest[0] || s.Rest.Candidate.Requests != rest[1] {
			rt.Fatalf("the rest: %+v, want %v", s.Rest, rest)
		}
		for name, p := range s.Routes {
			if p.Stable.Requests != sides[0][name] || p.Candidate.Requests != sides[1][name] {
				rt.Fatalf("%s: %d and %d requests, want %d and %d", name, p.Stable.Requests, p.Candidate.Requests, sides[0][name], sides[1][name])
			}
		}
		for i, all := range []analysis.Counts{s.All.Stable, s.All.Candidate} {
			n := uint64(1)
			for _, v := range sides[i] {
				n += v
			}
			if all.Requests != n || all.NotFound != 1 || all.Latency.Count() != n {
				rt.Fatalf("side %d: %+v, want %d requests", i, all, n)
			}
		}
	})
}

// TestSameRouteLooksAtEveryField changes each field of a route, also one that
// is added to the type later.
func TestSameRouteLooksAtEveryField(t *testing.T) {
	full := func(action func(*route.Action)) *route.Route {
		r := new(route.Route)
		fill(reflect.ValueOf(r).Elem(), 1)
		r.Action = route.Action{}
		action(&r.Action)
		return r
	}
	for name, make := range map[string]func() *route.Route{
		"proxy": func() *route.Route {
			return full(func(a *route.Action) { a.Proxy = new(route.Proxy); fill(reflect.ValueOf(a.Proxy).Elem(), 1) })
		},
		"respond": func() *route.Route {
			return full(func(a *route.Action) { a.Respond = new(route.Respond); fill(reflect.ValueOf(a.Respond).Elem(), 1) })
		},
		"redirect": func() *route.Route {
			return full(func(a *route.Action) { a.Redirect = new(route.Redirect); fill(reflect.ValueOf(a.Redirect).Elem(), 1) })
		},
	} {
		if !sameRoute(make(), make()) {
			t.Errorf("%s: equal routes differ", name)
		}
		for i := 0; ; i++ {
			r := make()
			left := i
			where := change(reflect.ValueOf(r).Elem(), "", &left)
			if where == "" {
				break
			}
			if sameRoute(make(), r) || sameRoute(r, make()) {
				t.Errorf("%s: another value of %s is not seen", name, where)
			}
		}
	}
	if sameRoute(&route.Route{}, &route.Route{Action: respond("")}) {
		t.Error("an action that is not there is not seen")
	}
}

// fill sets everything below v.
func fill(v reflect.Value, with int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprint("s", with))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(with))
	case reflect.Uint8:
		v.SetUint(uint64(with))
	case reflect.Bool:
		v.SetBool(with == 1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), with)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i), with)
			}
		}
	}
}

// change alters the left-th value below v and says where it is; empty when
// there is none.
func change(v reflect.Value, at string, left *int) string {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return ""
		}
		return change(v.Elem(), at, left)
	case reflect.Slice:
		if v.Len() == 0 {
			return ""
		}
		if *left--; *left < 0 {
			v.Set(v.Slice(0, 0))
			return at
		}
		return change(v.Index(0), at+"[0]", left)
	case reflect.Struct:
		for i := range v.NumField() { // what cannot be set, such as a netip.Prefix's, is compared as a whole
			if !v.Field(i).CanSet() {
				continue
			}
			if where := change(v.Field(i), at+"."+v.Type().Field(i).Name, left); where != "" {
				return where
			}
		}
		return ""
	}
	if *left--; *left >= 0 {
		return ""
	}
	fill(v, 2)
	return at
}

// TestCompiledTwiceIsCountedApart: two engines of one revision have counts of
// their own, also on the routes they share.
func TestCompiledTwiceIsCountedApart(t *testing.T) {
	lib := testLibrary(t)
	module := func(body string) *route.Module {
		return &route.Module{Name: "m", Routes: []route.Route{{Name: "r", Path: "/r", Action: respond(body)}}}
	}
	stable := compileTable(t, lib, 1, nil, module("1"))
	shared := module("2")
	one := compileTable(t, lib, 2, stable, shared)
	two := compileTable(t, lib, 2, one, shared)
	count := func(e *Engine, n int) {
		for range n {
			e.counters.count(&Record{Status: 200}, &e.parts[0].entries[0], 0)
		}
	}
	count(stable, 1)
	count(one, 10)
	count(two, 100)
	for _, c := range []struct {
		old, new *Engine
		want     string // stable and candidate in all, then of m/r
	}{
		{stable, one, "1 10 1 10"},
		{stable, two, "1 100 1 100"},
		{one, two, "10 100 0 0"}, // nothing changed
		{two, stable, "100 1 100 1"},
		{nil, one, "0 10 0 10"},
		{one, nil, "10 0 0 0"},
	} {
		s := lib.Counters.Compare(c.old, c.new, 10)
		p := s.Routes["m/r"]
		if got := fmt.Sprint(s.All.Stable.Requests, s.All.Candidate.Requests, p.Stable.Requests, p.Candidate.Requests); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}

	lib.Counters.Compare(stable, one, 10)
	lib.Keep(stable, two)
	if lib.Counters.changes.new != nil {
		t.Error("an engine that nobody keeps is held for comparing")
	}
	lib.Counters.Compare(stable, two, 10)
	lib.Keep(stable, two)
	if lib.Counters.changes.new != two.counters {
		t.Error("what is kept is worked out again")
	}
}

// TestReadingShowsNoPartLargerThanItsWhole reads while others count.
func TestReadingShowsNoPartLargerThanItsWhole(t *testing.T) {
	lib := testLibrary(t)
	e := testEngine(t, lib, 1, "", route.Route{Name: "r", Path: "/r", Action: respond("r")})
	stop, done := make(chan struct{}), make(chan struct{})
	for i := range 2 {
		go func() {
			defer func() { done <- struct{}{} }()
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
					e.counters.count(&Record{Status: 502, Kind: "connect", Duration: time.Duration(n)}, &e.parts[0].entries[0], i)
				}
			}
		}()
	}
	for range 20000 {
		c := lib.Counters.Compare(nil, e, 1).All.Candidate
		if c.Connect > c.Errors || c.Errors > c.Requests || c.Latency.Count() > c.Requests {
			t.Fatalf("%d connect errors, %d errors, %d latencies, %d requests", c.Connect, c.Errors, c.Latency.Count(), c.Requests)
		}
	}
	close(stop)
	<-done
	<-done
}

// BenchmarkCompare is a report of 100k routes that all had requests, with one
// changed: the first time, and again.
func BenchmarkCompare(b *testing.B) {
	table := fleetTable(100, 10, 1000)
	lib := testLibrary(b)
	compile := func(t *route.Table, previous *Engine) *Engine {
		e, err := Compile(context.Background(), testRef(1), t, lib, Options{Previous: previous})
		if err != nil {
			b.Fatal(err)
		}
		return e
	}
	old := compile(table, nil)
	engines := map[string]*Engine{"shared": compile(changed(table, 50), old), "apart": compile(fleetTable(100, 10, 1000), nil)}
	for _, requests := range []bool{false, true} {
		for name, new := range engines {
			if requests {
				for _, e := range []*Engine{old, new} {
					for _, p := range e.parts {
						for i := range p.entries {
							e.counters.count(&Record{Status: 200}, &p.entries[i], 0)
						}
					}
				}
			}
			for _, first := range []bool{true, false} {
				b.Run(fmt.Sprintf("%s/requests=%v/first=%v", name, requests, first), func(b *testing.B) {
					for b.Loop() {
						if first {
							lib.Counters.changes.keepIf(func(*engineCounters) bool { return false })
						}
						lib.Counters.Compare(old, new, 200)
					}
				})
			}
		}
	}
}
