package route

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// keyOf makes a key from a short form of a route.
func keyOf(t *testing.T, r Route, host string, index int) *Key {
	t.Helper()
	p, err := r.Pattern()
	if err != nil {
		t.Fatal(err)
	}
	k := NewKey(&r, &p, host, "m", index)
	return &k
}

// TestCompareRules has, for each rule, a route that wins and one that loses
// though everything of the later rules speaks for it.
func TestCompareRules(t *testing.T) {
	strong := Route{
		Methods: []string{"GET", "HEAD"}, Headers: make([]Condition, 3), Query: make([]Condition, 3),
		Cookies: make([]Condition, 3), Clients: clients("10.0.0.0/8"),
	}
	with := func(f func(*Route)) Route { r := strong; f(&r); return r }
	for _, c := range []struct {
		name         string
		method       string
		win, lose    Route
		winAt, losAt string
	}{
		{"exact host before wildcard", "GET", Route{Path: "/{x}"}, with(func(r *Route) { r.Path = "/a"; r.Priority = 9 }), "a.example.com", "*.example.com"},
		{"longer wildcard first", "GET", Route{Path: "/{x}"}, with(func(r *Route) { r.Path = "/a"; r.Priority = 9 }), "*.b.example.com", "*.example.com"},
		{"wildcard before any", "GET", Route{Path: "/{x}"}, with(func(r *Route) { r.Path = "/a"; r.Priority = 9 }), "*.com", ""},
		{"priority before path", "GET", Route{Path: "/{x}", Priority: 1}, with(func(r *Route) { r.Path = "/a" }), "", ""},
		{"literal before mixed", "GET", Route{Path: "/ab/{x}"}, with(func(r *Route) { r.Path = "/{x}b/c" }), "", ""},
		{"more literal text first", "GET", Route{Path: "/{x}ab/{y}"}, with(func(r *Route) { r.Path = "/{x}b/c" }), "", ""},
		{"an escape is one octet", "GET", Route{Path: "/{x}ab/{y}"}, with(func(r *Route) { r.Path = "/{x}%20/c" }), "", ""},
		{"mixed before parameter", "GET", Route{Path: "/{x}b/{y}"}, with(func(r *Route) { r.Path = "/{x}/c" }), "", ""},
		{"parameter before catch-all", "GET", Route{Path: "/{x}/{y}"}, with(func(r *Route) { r.Path = "/{x}/{y...}" }), "", ""},
		{"parameter before prefix", "GET", Route{Path: "/a/{y}"}, with(func(r *Route) { r.Prefix = "/a" }), "", ""},
		{"exact before prefix", "GET", Route{Path: "/a"}, with(func(r *Route) { r.Prefix = "/a" }), "", ""},
		{"slash before catch-all", "GET", Route{Path: "/a/"}, with(func(r *Route) { r.Path = "/a/{x...}" }), "", ""},
		{"the left segment decides", "GET", Route{Path: "/a/{x}/{y}"}, with(func(r *Route) { r.Path = "/{x}/b/c" }), "", ""},
		{"methods named before any", "GET", Route{Path: "/a", Methods: []string{"GET"}}, with(func(r *Route) { r.Path = "/a"; r.Methods = nil }), "", ""},
		{"HEAD before GET", "HEAD", Route{Path: "/a", Methods: []string{"HEAD"}}, with(func(r *Route) { r.Path = "/a"; r.Methods = []string{"GET"} }), "", ""},
		{"GET before any for HEAD", "HEAD", Route{Path: "/a", Methods: []string{"GET"}}, with(func(r *Route) { r.Path = "/a"; r.Methods = nil }), "", ""},
		{"HEAD among the methods is nothing to GET", "GET", Route{Path: "/a", Methods: []string{"GET"}, Headers: make([]Condition, 1)}, Route{Path: "/a", Methods: []string{"GET", "HEAD"}}, "", ""},
		{"more headers", "GET", Route{Path: "/a", Methods: []string{"GET"}, Headers: make([]Condition, 4)}, with(func(r *Route) { r.Path = "/a" }), "", ""},
		{"more query", "GET", Route{Path: "/a", Query: make([]Condition, 4)}, Route{Path: "/a", Query: make([]Condition, 3), Cookies: make([]Condition, 9), Clients: clients("::/0")}, "", ""},
		{"more cookies", "GET", Route{Path: "/a", Cookies: make([]Condition, 1)}, Route{Path: "/a", Clients: clients("::/0", "10.0.0.0/8")}, "", ""},
		{"a client condition", "GET", Route{Path: "/a", Clients: clients("::/0")}, Route{Path: "/a"}, "", ""},
	} {
		win, lose := keyOf(t, c.win, c.winAt, 2), keyOf(t, c.lose, c.losAt, 1)
		if CompareTie(c.method, win, lose) >= 0 || CompareTie(c.method, lose, win) <= 0 {
			t.Errorf("%s: not so", c.name)
		}
	}
	a, b := keyOf(t, Route{Path: "/{x}"}, "", 1), keyOf(t, Route{Path: "/{y}"}, "", 2)
	if CompareTie("GET", a, b) != 0 || Compare("GET", a, b) >= 0 {
		t.Error("the order written is not the last rule")
	}
	c, d := keyOf(t, Route{Path: "/a/{x...}"}, "", 1), keyOf(t, Route{Prefix: "/a"}, "", 2)
	if CompareTie("GET", c, d) != 0 {
		t.Error("catch-all and prefix do not tie")
	}
}

func TestCompareIsATotalOrder(t *testing.T) {
	key := rapid.Custom(func(t *rapid.T) Key {
		p := patterns().Draw(t, "pattern")
		return Key{
			Host: rapid.SampledFrom([]string{"", "a.b", "*.b", "*.a.b"}).Draw(t, "host"), Priority: rapid.IntRange(-1, 1).Draw(t, "priority"),
			Path: p.PathKey(), NamesMethod: rapid.Bool().Draw(t, "named"), NamesHead: rapid.Bool().Draw(t, "head"),
			Headers: rapid.IntRange(0, 1).Draw(t, "headers"), Client: rapid.Bool().Draw(t, "client"), Index: rapid.IntRange(0, 3).Draw(t, "index"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		ks := rapid.SliceOfN(key, 3, 3).Draw(t, "keys")
		method := rapid.SampledFrom([]string{"GET", "HEAD"}).Draw(t, "method")
		a, b, c := &ks[0], &ks[1], &ks[2]
		if Compare(method, a, b) != -Compare(method, b, a) {
			t.Fatal("not antisymmetric")
		}
		if Compare(method, a, b) <= 0 && Compare(method, b, c) <= 0 && Compare(method, a, c) > 0 {
			t.Fatal("not transitive")
		}
	})
}

func TestHosts(t *testing.T) {
	for host, want := range map[string]string{
		"Example.COM": "example.com", "example.com:8080": "example.com", "example.com.": "example.com",
		"[::1]:80": "[::1]", "[::1]": "[::1]", "10.0.0.1:80": "10.0.0.1", "": "", ":80": "", "a.b.:1": "a.b",
		"\u212A8s.test": "\u212A8s.test", "\u0130.TEST": "\u0130.test", // folded by ASCII alone
	} {
		if got := FoldHost(host); got != want {
			t.Errorf("FoldHost(%q) = %q, want %q", host, got, want)
		}
	}
	for _, c := range []struct {
		pattern, host string
		want          bool
	}{
		{"", "a.b", true},
		{"a.b", "a.b", true},
		{"a.b", "x.a.b", false},
		{"*.a.b", "x.a.b", true},
		{"*.a.b", "x.y.a.b", true},
		{"*.a.b", "a.b", false},
		{"*.a.b", ".a.b", false},
		{"*.a.b", "xa.b", false},
	} {
		if got := MatchHost(c.pattern, c.host); got != c.want {
			t.Errorf("MatchHost(%q, %q) = %v", c.pattern, c.host, got)
		}
	}
	hosts := []string{"", "*.com", "*.a.com", "b.com", "a.com"}
	slices.SortFunc(hosts, CompareHosts)
	if want := []string{"a.com", "b.com", "*.a.com", "*.com", ""}; !slices.Equal(hosts, want) {
		t.Errorf("hosts in order: %q", hosts)
	}
	if n := testing.AllocsPerRun(100, func() { FoldHost("api.example.com:8080") }); n != 0 {
		t.Errorf("FoldHost allocates %v times", n)
	}
}
