package route

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var answer = Action{Respond: &Respond{Status: 200}}

// twoModules makes a table of routes a/r0, b/r0, … from what they match.
func twoModules(a, b Route) *Table {
	a.Name, a.Action, b.Name, b.Action = "first", answer, "second", answer
	t := &Table{Modules: []*Module{{Name: "a", Routes: []Route{a}}, {Name: "b", Routes: []Route{b}}}}
	Normalize(t)
	for _, m := range t.Modules {
		m.Source = NewSource(m.Name+".yaml", map[string]Place{"routes[0]": {File: m.Name + ".yaml", Line: 7}})
	}
	return t
}

func TestRivals(t *testing.T) {
	eq := func(name, value string) []Condition { return []Condition{{name, OpEqual, value}} }
	for _, c := range []struct {
		name    string
		a, b    Route
		request string // of the tie; empty for none
	}{
		{"same", Route{Path: "/a"}, Route{Path: "/a"}, "GET /a"},
		{"names of parameters", Route{Path: "/{a}/x"}, Route{Path: "/{b}/x"}, "GET /x/x"},
		{"host", Route{Path: "/a", Hosts: []string{"h.com"}}, Route{Path: "/a", Hosts: []string{"g.com", "h.com"}}, "GET http://h.com/a"},
		{"wildcard", Route{Path: "/a", Hosts: []string{"*.h.com"}}, Route{Path: "/a", Hosts: []string{"*.h.com"}}, "GET http://x.h.com/a"},
		{"other host", Route{Path: "/a", Hosts: []string{"g.com"}}, Route{Path: "/a", Hosts: []string{"h.com"}}, ""},
		{"more exact host", Route{Path: "/a", Hosts: []string{"g.com"}}, Route{Path: "/a"}, ""},
		{"priority", Route{Path: "/a", Priority: 1}, Route{Path: "/a"}, ""},
		{"more exact path", Route{Path: "/a"}, Route{Path: "/{x}"}, ""},
		{"other literal", Route{Path: "/a/{x}"}, Route{Path: "/b/{x}"}, ""},
		{"catch-all and prefix", Route{Path: "/a/{x...}"}, Route{Prefix: "/a"}, "GET /a/x"},
		{"prefixes", Route{Prefix: "/a"}, Route{Prefix: "/a"}, "GET /a"},
		{"root prefixes", Route{Prefix: "/"}, Route{Prefix: "/"}, "GET /"},
		{"slash", Route{Path: "/a/"}, Route{Path: "/a"}, ""},
		{"mixed that meet", Route{Path: "/a{x}b"}, Route{Path: "/{x}ab"}, "GET /axab"},
		{"mixed, nested ends", Route{Path: "/{x}.j"}, Route{Path: "/{x}b{y}j"}, "GET /xbx.j"},
		{"mixed that do not meet", Route{Path: "/{x}.json"}, Route{Path: "/{x}.yaml"}, ""},
		{"mixed of other length", Route{Path: "/{x}.json"}, Route{Path: "/{x}.tar.gz"}, ""},
		{"an escape is not its digits", Route{Path: "/{x}%20"}, Route{Path: "/{x}0"}, ""},
		{"methods that meet", Route{Path: "/a", Methods: []string{"GET", "PUT"}}, Route{Path: "/a", Methods: []string{"POST", "PUT"}}, "PUT /a"},
		{"methods that do not", Route{Path: "/a", Methods: []string{"GET"}}, Route{Path: "/a", Methods: []string{"POST"}}, ""},
		{"method and any", Route{Path: "/a", Methods: []string{"GET"}}, Route{Path: "/a"}, ""},
		{"GET and HEAD", Route{Path: "/a", Methods: []string{"GET"}}, Route{Path: "/a", Methods: []string{"HEAD"}}, ""},
		{"GET and GET with HEAD", Route{Path: "/a", Methods: []string{"GET"}}, Route{Path: "/a", Methods: []string{"GET", "HEAD"}}, "GET /a"},
		{"more headers", Route{Path: "/a", Headers: eq("x", "1")}, Route{Path: "/a"}, ""},
		{"header against query", Route{Path: "/a", Headers: eq("x", "1")}, Route{Path: "/a", Query: eq("x", "1")}, ""},
		{"other values", Route{Path: "/a", Headers: eq("x", "1")}, Route{Path: "/a", Headers: eq("x", "2")}, ""},
		{"other cookies", Route{Path: "/a", Cookies: eq("x", "1")}, Route{Path: "/a", Cookies: eq("x", "2")}, ""},
		{"other names", Route{Path: "/a", Headers: eq("x", "1")}, Route{Path: "/a", Headers: eq("y", "2")}, `GET /a with header X="1", header Y="2"`},
		{"names of queries have case", Route{Path: "/a", Query: eq("x", "1")}, Route{Path: "/a", Query: eq("X", "2")}, "GET /a?x=1&X=2"},
		{"equal and prefix", Route{Path: "/a", Query: eq("x", "1")}, Route{Path: "/a", Query: []Condition{{"x", OpPrefix, "2"}}}, "GET /a?x=1&x=2"},
		{"expressions", Route{Path: "/a", Query: []Condition{{"x", OpRegexp, "1"}}}, Route{Path: "/a", Query: []Condition{{"x", OpRegexp, "2"}}}, "-"},
		{"clients", Route{Path: "/a", Clients: clients("10.0.0.0/8")}, Route{Path: "/a", Clients: clients("10.1.0.0/16")}, "GET /a with client 10.1.0.0"},
		{"other clients", Route{Path: "/a", Clients: clients("10.0.0.0/8")}, Route{Path: "/a", Clients: clients("11.0.0.0/8")}, "-"},
		{"client and none", Route{Path: "/a", Clients: clients("10.0.0.0/8")}, Route{Path: "/a"}, ""},
	} {
		ps := Validate(twoModules(c.a, c.b)).Errors()
		if c.request == "" {
			if len(ps) > 0 {
				t.Errorf("%s: %v", c.name, ps)
			}
			continue
		}
		if len(ps) != 1 {
			t.Errorf("%s: %d problems: %v", c.name, len(ps), ps)
			continue
		}
		p := ps[0]
		_, request, _ := strings.Cut(p.Message, ") for ")
		if c.request == "-" && request != "" || c.request != "-" && request != c.request {
			t.Errorf("%s: the request is %q, want %q", c.name, request, c.request)
		}
		if p.Place.String() != "b.yaml:7" || !strings.Contains(p.Message, "a/first") || !strings.Contains(p.Message, "a.yaml:7") || p.Module != "b" || p.Route != "second" || p.Hint == "" {
			t.Errorf("%s: does not name both: %v", c.name, p)
		}
	}
}

func TestDuplicatesWithinAModule(t *testing.T) {
	m := &Module{Name: "m", Routes: []Route{
		{Name: "a", Path: "/x/{a}", Hosts: []string{"h.com", "g.com"}, Methods: []string{"GET"}, Action: answer},
		{Name: "other-host", Path: "/x/{a}", Hosts: []string{"h.com"}, Methods: []string{"GET"}, Action: answer},
		{Name: "other-method", Path: "/x/{a}", Hosts: []string{"g.com", "h.com"}, Methods: []string{"GET", "PUT"}, Action: answer},
		{Name: "again", Path: "/x/{b}", Hosts: []string{"g.com", "h.com"}, Methods: []string{"get"}, Action: answer},
	}}
	NormalizeModule(m)
	ps := Validate(&Table{Modules: []*Module{m}})
	if len(ps) != 1 || ps[0].Route != "again" || !strings.Contains(ps[0].Message, "m/a") || !strings.Contains(ps[0].Message, "never win") {
		t.Error(ps)
	}
}

func TestContested(t *testing.T) {
	for _, c := range []struct {
		name string
		a, b Route
		want string // winner
	}{
		{"literal before parameter", Route{Path: "/u/me"}, Route{Path: "/u/{id}"}, "a"},
		{"prefix under parameter", Route{Prefix: "/"}, Route{Path: "/{x}/y"}, "b"},
		{"exact host before any", Route{Path: "/u", Hosts: []string{"h.com"}}, Route{Path: "/u"}, "a"},
		{"any path under exact host", Route{Prefix: "/", Hosts: []string{"h.com"}}, Route{Path: "/u"}, "a"},
		{"wildcard before wider", Route{Path: "/u", Hosts: []string{"*.com"}}, Route{Path: "/{x}", Hosts: []string{"*.h.com"}}, "b"},
		{"priority against path", Route{Path: "/{x}", Priority: 1}, Route{Path: "/u"}, "a"},
		{"conditions", Route{Path: "/u", Headers: []Condition{{"x", OpPresent, ""}}}, Route{Path: "/u"}, "a"},
		{"HEAD", Route{Path: "/u", Methods: []string{"HEAD"}}, Route{Path: "/u", Methods: []string{"GET"}}, "a"},
		{"methods apart", Route{Path: "/u", Methods: []string{"GET"}}, Route{Path: "/{x}", Methods: []string{"POST"}}, ""},
		{"paths apart", Route{Path: "/u/a"}, Route{Path: "/u/{x}/b"}, ""},
		{"hosts apart", Route{Path: "/u", Hosts: []string{"h.com"}}, Route{Path: "/{x}", Hosts: []string{"g.com"}}, ""},
		{"a wildcard is not its own end", Route{Path: "/u", Hosts: []string{"h.com"}}, Route{Path: "/{x}", Hosts: []string{"*.h.com"}}, ""},
		{"conditions apart", Route{Path: "/u", Query: []Condition{{"x", OpEqual, "1"}}}, Route{Path: "/{a}", Query: []Condition{{"x", OpEqual, "2"}}}, ""},
	} {
		ps := Validate(twoModules(c.a, c.b))
		if errs := ps.Errors(); len(errs) > 0 {
			t.Errorf("%s: %v", c.name, errs)
		}
		switch {
		case c.want == "" && len(ps) > 0, c.want != "" && len(ps) != 1:
			t.Errorf("%s: %v", c.name, ps)
		case c.want != "":
			p := ps[0]
			if p.Severity != Warning || p.Module != c.want || p.Place.String() != c.want+".yaml:7" || !strings.Contains(p.Message, "takes traffic that") {
				t.Errorf("%s: %v", c.name, p)
			}
		}
	}
}

// matchTables draws small tables of three modules whose routes often meet.
func matchTables() *rapid.Generator[*Table] {
	route := rapid.Custom(func(t *rapid.T) Route {
		p := patterns().Draw(t, "pattern")
		r := Route{Action: answer, Priority: rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "priority")}
		if p.IsPrefix {
			r.Prefix = p.String()
		} else {
			r.Path = p.String()
		}
		r.Hosts = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a.b", "*.b", "*.a.b"}), 0, 2, rapid.ID).Draw(t, "hosts")
		r.Methods = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"GET", "HEAD", "PUT"}), 0, 2, rapid.ID).Draw(t, "methods")
		if rapid.IntRange(0, 2).Draw(t, "conditional") == 0 {
			r.Headers = []Condition{{"X", OpEqual, rapid.SampledFrom([]string{"1", "2"}).Draw(t, "value")}}
		}
		return r
	})
	return rapid.Custom(func(t *rapid.T) *Table {
		table := &Table{}
		for _, name := range []string{"m", "n", "o"} {
			table.Modules = append(table.Modules, &Module{Name: name, Routes: rapid.SliceOfN(route, 1, 3).Draw(t, "routes")})
		}
		Normalize(table)
		return table
	})
}

// asked is one request of a small universe.
type asked struct{ host, method, path, x string }

func (q asked) matches(r *Route, p *Pattern) bool {
	if len(r.Hosts) > 0 && !slices.ContainsFunc(r.Hosts, func(h string) bool { return MatchHost(h, q.host) }) {
		return false
	}
	if len(r.Methods) > 0 && !slices.Contains(r.Methods, q.method) && (q.method != "HEAD" || !slices.Contains(r.Methods, "GET")) {
		return false
	}
	if len(r.Headers) > 0 && r.Headers[0].Value != q.x {
		return false
	}
	_, ok := p.Match(q.path)
	return ok
}

// best is the route's key for the request: by the host pattern that comes first.
func (q asked) best(m *Module, i int, p *Pattern) *Key {
	r := &m.Routes[i]
	host := ""
	for _, h := range slices.SortedFunc(slices.Values(r.Hosts), CompareHosts) {
		if MatchHost(h, q.host) {
			host = h
			break
		}
	}
	k := NewKey(r, p, host, m.Name, i)
	return &k
}

// smallPaths are paths in which the patterns of patterns meet.
func smallPaths(t *rapid.T, table *Table) []string {
	paths := []string{"/", "/a", "/a/"}
	add := func(p *Pattern, fill string) {
		var s strings.Builder
		for i := range p.Segments {
			s.WriteByte('/')
			for _, part := range p.Segments[i].Parts {
				s.WriteString(part.Literal)
				if part.Param != "" {
					s.WriteString(fill)
				}
			}
		}
		base := s.String()
		for _, end := range []string{"", "/", "/a", "/x/b"} {
			if path, err := CanonicalPath(base+end, PathOptions{}); err == nil {
				paths = append(paths, path)
			}
		}
	}
	for _, m := range table.Modules {
		for i := range m.Routes {
			p, err := m.Routes[i].Pattern()
			if err != nil {
				t.Fatal(err)
			}
			for _, fill := range []string{"x", "a", "b", "ab", "a.b"} {
				add(&p, fill)
			}
			for _, other := range table.Modules {
				for j := range other.Routes {
					q, _ := other.Routes[j].Pattern()
					if path := joint(&p, &q); path != "" {
						paths = append(paths, path, path+"/", path+"/x")
					}
				}
			}
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// joint lays two patterns over each other, segment by segment.
func joint(a, b *Pattern) string {
	var s strings.Builder
	for i := range max(len(a.Segments), len(b.Segments)) {
		text := "x"
		if i < len(a.Segments) && i < len(b.Segments) {
			x, y := &a.Segments[i], &b.Segments[i]
			if !overlap(x, y) {
				return ""
			}
			text = commonText(x, y)
		} else if p := a; i < len(a.Segments) || i < len(b.Segments) {
			if i >= len(a.Segments) {
				p = b
			}
			text = commonText(&p.Segments[i], &Segment{Parts: []Part{{Param: "x"}}})
		}
		s.WriteString("/" + text)
	}
	if s.Len() == 0 {
		return "/"
	}
	return s.String()
}

// TestRivalsAndContestedAgainstAllRequests compares Validate with every request
// of a small universe: a tie of two modules there is an error, and where one
// module's route comes before another's there is a warning; and nothing else is
// reported.
func TestRivalsAndContestedAgainstAllRequests(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := matchTables().Draw(t, "table")
		type at struct{ module, route int }
		type pair struct{ winner, module, route int } // winner: a module
		ties, taken := map[[2]at]asked{}, map[pair]asked{}
		paths := smallPaths(t, table)
		for _, host := range []string{"a.b", "c.b", "c.a.b", "d"} {
			for _, method := range []string{"GET", "HEAD", "PUT", "DELETE"} {
				for _, path := range paths {
					for _, x := range []string{"1", "2"} {
						q := asked{host, method, path, x}
						var all []at
						var keys []*Key
						for mi, m := range table.Modules {
							for i := range m.Routes {
								p, _ := m.Routes[i].Pattern()
								if q.matches(&m.Routes[i], &p) {
									all = append(all, at{mi, i})
									keys = append(keys, q.best(m, i, &p))
								}
							}
						}
						for i := range all {
							for j := range all {
								if all[i].module == all[j].module {
									continue
								}
								c := CompareTie(method, keys[i], keys[j])
								if c == 0 && all[i].module < all[j].module {
									ties[[2]at{all[i], all[j]}] = q
								}
								if c < 0 {
									taken[pair{all[i].module, all[j].module, all[j].route}] = q
								}
							}
						}
					}
				}
			}
		}
		ps := Validate(table)
		tied := map[at]bool{}
		for _, p := range ps.Errors() {
			if !strings.HasPrefix(p.Message, "ties with") {
				continue
			}
			b := at{slices.IndexFunc(table.Modules, func(m *Module) bool { return m.Name == p.Module }), 0}
			fmt.Sscanf(p.Field, "routes[%d]", &b.route)
			tied[b] = true
			if !slices.ContainsFunc(mapKeys(ties), func(k [2]at) bool {
				a := table.Modules[k[0].module]
				return k[1] == b && strings.Contains(p.Message, a.Name+"/"+a.Routes[k[0].route].Name+" ")
			}) {
				t.Fatalf("no request ties: %v", p)
			}
			checkExample(t, table, p, b.module, b.route)
		}
		for k, q := range ties {
			if !tied[k[1]] {
				t.Fatalf("%+v ties for %v and is not reported: %v", q, k, ps)
			}
		}
		var warned []string
		for _, p := range ps.Warnings() {
			loser, _, _ := strings.Cut(strings.TrimPrefix(p.Message, "takes traffic that "), " (")
			warned = append(warned, p.Module+" "+loser)
		}
		var want []string
		for k := range taken {
			m := table.Modules[k.module]
			want = append(want, table.Modules[k.winner].Name+" "+m.Name+"/"+m.Routes[k.route].Name)
		}
		slices.Sort(warned)
		slices.Sort(want)
		for _, w := range want {
			if !slices.Contains(warned, w) {
				t.Fatalf("not warned: %s\nwarned %q\n%s", w, warned, described(table))
			}
		}
		for _, w := range warned {
			if !slices.Contains(want, w) {
				t.Fatalf("warned without reason: %s\nwant %q\n%s", w, want, described(table))
			}
		}
	})
}

func described(t *Table) string {
	var s strings.Builder
	for _, m := range t.Modules {
		for _, r := range m.Routes {
			fmt.Fprintf(&s, "%s/%+v\n", m.Name, r)
		}
	}
	return s.String()
}

func mapKeys[K comparable, V any](m map[K]V) []K {
	var ks []K
	for k := range m {
		ks = append(ks, k)
	}
	return ks
}

// checkExample holds that the request a tie was reported for is one that the
// reported route matches.
func checkExample(t *rapid.T, table *Table, p Problem, module, route int) {
	_, request, ok := strings.Cut(p.Message, ") for ")
	if !ok {
		return
	}
	request, x, _ := strings.Cut(request, ` with header X="`)
	method, target, _ := strings.Cut(request, " ")
	u, err := url.Parse(target)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	r := &table.Modules[module].Routes[route]
	pattern, _ := r.Pattern()
	q := asked{u.Host, method, u.EscapedPath(), strings.TrimSuffix(x, `"`)}
	if path, err := CanonicalPath(q.path, PathOptions{}); err != nil || !q.matches(r, &pattern) {
		t.Fatalf("%+v (%q, %v) does not match %+v", q, path, err, r)
	}
}

func TestContestIsGivenUp(t *testing.T) {
	table := &Table{Modules: []*Module{{Name: "a"}, {Name: "b"}}}
	for i := range 3000 {
		table.Modules[0].Routes = append(table.Modules[0].Routes, Route{Path: fmt.Sprintf("/{x}/a%d", i), Action: answer, Priority: i})
		table.Modules[1].Routes = append(table.Modules[1].Routes, Route{Path: fmt.Sprintf("/b%d/{x}", i), Action: answer, Priority: i})
	}
	Normalize(table)
	ps := Validate(table)
	wantProblem(t, ps, Warning, "more traffic is taken")
	if len(ps.Errors()) > 0 {
		t.Error(ps.Errors()[0])
	}
}

// bigTable has 100 modules of 1000 routes each.
func bigTable(shared bool) *Table {
	t := &Table{}
	for m := range 100 {
		mod := &Module{Name: fmt.Sprintf("team-%02d", m), Upstreams: []Upstream{{Name: "u", Targets: []Target{{URL: "http://10.0.0.1:80"}}}}}
		for i := range 1000 {
			r := Route{
				Name: fmt.Sprintf("r%d", i), Methods: []string{"GET"}, Action: Action{Proxy: &Proxy{Upstream: "u"}},
				Hosts: []string{fmt.Sprintf("h%d.team%d.example.com", i%10, m)}, Path: fmt.Sprintf("/v1/things%d/{id}/parts/{part}", i),
			}
			if i%3 == 0 {
				r.Methods = []string{"GET", "POST"}
			}
			if shared {
				r.Hosts = []string{"api.example.com"}
				r.Path = fmt.Sprintf("/v1/team%d/things%d/{id}", m, i)
			}
			mod.Routes = append(mod.Routes, r)
		}
		t.Modules = append(t.Modules, mod)
	}
	Normalize(t)
	return t
}

func BenchmarkValidate100k(b *testing.B) {
	for name, table := range map[string]*Table{"own-hosts": bigTable(false), "shared-host": bigTable(true), "with-fallback": withFallback(bigTable(true))} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := Validate(table).Err(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// withFallback adds a module that takes what nobody else does, and one with
// parameters across all others.
func withFallback(t *Table) *Table {
	t.Modules = append(t.Modules, &Module{Name: "zz-fallback", Routes: []Route{
		{Name: "all", Prefix: "/", Action: answer},
		{Name: "things", Path: "/v1/{team}/{thing}/{id}", Hosts: []string{"*.example.com"}, Action: answer},
	}})
	Normalize(t)
	return t
}

func BenchmarkNormalize100k(b *testing.B) {
	table := bigTable(false)
	b.ReportAllocs()
	for b.Loop() {
		Normalize(table)
	}
}
