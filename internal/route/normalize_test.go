package route

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func clients(ps ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

var noSource = cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Source" }, cmp.Ignore())

func equalTables(a, b *Table) string {
	return cmp.Diff(a, b, noSource, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }))
}

func TestNormalize(t *testing.T) {
	got := &Table{Modules: []*Module{
		{Name: "z"},
		{
			Name:        "a",
			Upstreams:   []Upstream{{Name: "y", Targets: []Target{{URL: "HTTP://Example.com/"}}}, {Name: "x", HostMode: HostLiteral, Host: "H.example", Targets: []Target{}}},
			Middlewares: []NamedMiddleware{{Name: "n", Kind: "k"}, {Name: "m", Kind: "k", Config: ` {"b": 1e2, "a": [ 1.50, "<" ]} `}},
			Routes: []Route{
				{
					Hosts: []string{"B.example.com.", "a.example.com", "b.example.com"}, Methods: []string{"post", "get"}, Path: "/:id/%61/*rest",
					Headers: []Condition{{Name: "x-b", Op: OpEqual, Value: "1"}, {Name: "x-a", Op: OpPresent}},
					Clients: clients("::ffff:10.1.2.3/104", "10.0.0.0/8"), Action: Action{Respond: &Respond{Headers: []Header{{"x-z", "1"}, {"set-cookie", "b"}, {"set-cookie", "a"}}}},
					Middlewares: []Middleware{{Use: "n"}, {Kind: "k"}},
				},
				{Hosts: []string{"*"}, Path: "/", Action: Action{Redirect: &Redirect{To: "/x"}}, Query: []Condition{}},
				{Prefix: "/%2a", Methods: []string{"GET"}, Action: Action{Proxy: &Proxy{Upstream: "x"}}},
				{Path: "not a path"},
			},
			Tests: []Test{{URL: "/x", Headers: []Header{{"x-a", "1"}}, Params: []Param{{"b", "2"}, {"a", "1"}}, Client: netip.MustParseAddr("::ffff:10.0.0.1")}},
		},
	}}
	Normalize(got)
	want := &Table{Modules: []*Module{
		{
			Name: "a",
			Upstreams: []Upstream{
				{Name: "x", HostMode: HostLiteral, Host: "h.example", ConnectTimeout: time.Second, ResponseTimeout: time.Minute, IdleTimeout: time.Minute, MaxIdle: 256},
				{Name: "y", Targets: []Target{{URL: "http://example.com", Weight: 1}}, ConnectTimeout: time.Second, ResponseTimeout: time.Minute, IdleTimeout: time.Minute, MaxIdle: 256},
			},
			Middlewares: []NamedMiddleware{{"m", "k", `{"a":[1.5,"<"],"b":100}`}, {"n", "k", "{}"}},
			Routes: []Route{
				{
					Name: "get-post-id-a-rest", Hosts: []string{"a.example.com", "b.example.com"}, Methods: []string{"GET", "POST"}, Path: "/{id}/a/{rest...}",
					Headers: []Condition{{Name: "X-A", Op: OpPresent}, {Name: "X-B", Op: OpEqual, Value: "1"}}, Clients: clients("10.0.0.0/8"),
					Action:      Action{Respond: &Respond{Status: 200, Headers: []Header{{"Set-Cookie", "b"}, {"Set-Cookie", "a"}, {"X-Z", "1"}}}},
					Middlewares: []Middleware{{Use: "n"}, {Kind: "k", Config: "{}"}},
				},
				{Name: "any-root", Path: "/", Action: Action{Redirect: &Redirect{To: "/x", Status: 302}}},
				{Name: "get-2a-prefix", Prefix: "/%2A", Methods: []string{"GET"}, Action: Action{Proxy: &Proxy{Upstream: "x"}}},
				{Name: "any-not-a-path", Path: "not a path"},
			},
			Tests: []Test{{Method: "GET", URL: "/x", Headers: []Header{{"X-A", "1"}}, Params: []Param{{"a", "1"}, {"b", "2"}}, Client: netip.MustParseAddr("10.0.0.1")}},
		},
		{Name: "z"},
	}}
	if d := equalTables(want, got); d != "" {
		t.Error(d)
	}
}

func TestDerivedNames(t *testing.T) {
	m := &Module{Name: "m", Routes: []Route{
		{Methods: []string{"GET"}, Path: "/users/{id}"},
		{Methods: []string{"GET"}, Path: "/users/:id/"},
		{Name: "get-users-id-2", Path: "/x"},
		{Methods: []string{"GET"}, Path: "/users/{id...}"},
		{Path: "/compare/{base}...{head}"},
		{Prefix: "/"},
	}}
	NormalizeModule(m)
	for i, want := range []string{"get-users-id", "get-users-id-3", "get-users-id-2", "get-users-id-4", "any-compare-base-head", "any-root-prefix"} {
		if got := m.Routes[i].Name; got != want {
			t.Errorf("route %d is named %s, want %s", i, got, want)
		}
	}
}

func TestPlacesFollowWhatIsSorted(t *testing.T) {
	at := func(line int) Place { return Place{File: "f", Line: line, Column: 1} }
	m := &Module{
		Name:   "m",
		Routes: []Route{{Name: "r", Path: "/", Hosts: []string{"c", "a", "c", "b"}, Headers: []Condition{{Name: "b", Op: 9}, {Name: "a", Op: OpPresent}}}},
		Source: NewSource("f", map[string]Place{
			"routes[0].hosts[0]": at(1), "routes[0].hosts[1]": at(2), "routes[0].hosts[2]": at(3), "routes[0].hosts[3]": at(4), "routes[0].hosts": at(9),
			"routes[0].headers[0].name": at(5), "routes[0].headers[1].name": at(6), "routes[0]": at(10),
		}),
	}
	NormalizeModule(m)
	NormalizeModule(m) // nothing moves twice
	for field, want := range map[string]int{
		"routes[0].hosts[0]": 2, "routes[0].hosts[1]": 4, "routes[0].hosts[2]": 1, "routes[0].hosts": 9,
		"routes[0].headers[0].name": 6, "routes[0].headers[1].name": 5, "routes[0].headers[1].op": 10, "routes[0]": 10,
	} {
		if got := m.Source.Place(field).Line; got != want {
			t.Errorf("%s is at line %d, want %d", field, got, want)
		}
	}
}

// TestNormalizeGivesOneForm holds that normalizing is idempotent and that what
// is written in another order, case or form comes out equal.
func TestNormalizeGivesOneForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string, from []string) []string {
			return rapid.SliceOfN(rapid.SampledFrom(from), 0, 4).Draw(t, label)
		}
		shuffled := func(label string, s []string) []string {
			if len(s) == 0 {
				return s
			}
			return rapid.Permutation(s).Draw(t, label)
		}
		hosts, methods := draw("hosts", []string{"A.b", "a.b", "c.d.", "*.X"}), draw("methods", []string{"get", "GET", "Post"})
		names := draw("names", []string{"x-a", "X-A", "b"})
		build := func(hosts, methods, names []string, config string) *Table {
			r := Route{Path: "/:id/%7e", Hosts: append([]string(nil), hosts...), Methods: append([]string(nil), methods...)}
			for _, n := range names {
				r.Headers = append(r.Headers, Condition{Name: n, Op: OpPresent})
				r.Query = append(r.Query, Condition{Name: n, Op: OpEqual, Value: n})
			}
			r.Middlewares = []Middleware{{Kind: "k", Config: config}}
			return &Table{Modules: []*Module{{Name: "m", Routes: []Route{r}}}}
		}
		a := build(hosts, methods, names, `{"a":1,"b":[1.0]}`)
		b := build(shuffled("h", hosts), shuffled("m", methods), shuffled("n", names), "{ \"b\" : [1], \"a\":1e0 }")
		Normalize(a)
		Normalize(b)
		if d := equalTables(a, b); d != "" {
			t.Fatal(d)
		}
		Normalize(b)
		if d := equalTables(a, b); d != "" {
			t.Fatalf("not idempotent: %s", d)
		}
	})
}
