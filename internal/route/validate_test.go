package route

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// goodTable is a table without problems, with something of everything.
func goodTable() *Table {
	return &Table{Modules: []*Module{
		{
			Name:        "shop",
			Upstreams:   []Upstream{{Name: "users", Targets: []Target{{URL: "http://10.0.0.1:8080"}, {URL: "https://users.example.com", Weight: 3}}}},
			Middlewares: []NamedMiddleware{{Name: "limit", Kind: "rateLimit", Config: `{"rate":1,"headers":{"set":{"Authorization":"Bearer ${env:TOKEN}"}}}`}},
			Routes: []Route{
				{
					Name: "user", Hosts: []string{"api.example.com", "*.example.org", "[::1]"}, Methods: []string{"GET"}, Path: "/users/{id}/{rest...}",
					Headers: []Condition{{Name: "X-Beta", Op: OpEqual, Value: "1"}, {Name: "Authorization", Op: OpPrefix, Value: "Bearer "}},
					Query:   []Condition{{Name: "any text?", Op: OpRegexp, Value: "a|b"}}, Cookies: []Condition{{Name: "c", Op: OpPresent}},
					Clients: clients("10.0.0.0/8"), Middlewares: []Middleware{{Use: "limit"}, {Kind: "headers", Config: `{"a":"x"}`}},
					Action: Action{Proxy: &Proxy{Upstream: "users", Timeout: time.Second}},
				},
				{Name: "ok", Path: "/ok", Action: Action{Respond: &Respond{Headers: []Header{{"X-Key", "v"}, {"X-Other", "${x}"}}, Body: "ok"}}},
				{Name: "moved", Path: "/old/{id}/{rest...}", Action: Action{Redirect: &Redirect{To: "https://example.com/{id}?r={rest}#{rest...}"}}},
			},
			Tests: []Test{
				{Name: "t", URL: "http://api.example.com/users/1/", Route: "shop/user", Params: []Param{{"id", "1"}}},
				{URL: "/none", Status: 404},
				{URL: "/ok", Route: "ok"},
				{URL: "/a%zz", Status: 400},
			},
		},
		{Name: "users", Routes: []Route{{Path: "/u/{id}.json", Action: Action{Respond: &Respond{}}}}},
	}}
}

// places makes a source in which every field that a test names has a line.
func placed(m *Module, fields ...string) {
	places := map[string]Place{"module": {File: "f.yaml", Line: 1}}
	for i, f := range fields {
		places[f] = Place{File: "f.yaml", Line: 100 + i}
	}
	m.Source = NewSource("f.yaml", places)
}

func TestValidateAcceptsWhatIsGood(t *testing.T) {
	table := goodTable()
	Normalize(table)
	if ps := Validate(table); len(ps) > 0 {
		t.Errorf("%v", ps)
	}
	if ps := Validate(&Table{}); len(ps) > 0 {
		t.Errorf("empty: %v", ps)
	}
}

// TestValidateRules breaks one thing of a good table at a time, and names the
// field that must be at fault, with words of the message or the way out.
func TestValidateRules(t *testing.T) {
	long := strings.Repeat("a", 70_000)
	route := func(f func(r *Route)) func(*Module) { return func(m *Module) { f(&m.Routes[0]) } }
	up := func(f func(u *Upstream)) func(*Module) { return func(m *Module) { f(&m.Upstreams[0]) } }
	test := func(f func(t *Test)) func(*Module) { return func(m *Module) { f(&m.Tests[0]) } }
	respond := func(f func(r *Respond)) func(*Module) { return func(m *Module) { f(m.Routes[1].Action.Respond) } }
	redirect := func(to string) func(*Module) {
		return func(m *Module) { m.Routes[2].Action.Redirect.To = to }
	}
	config := func(c string) func(*Module) { return func(m *Module) { m.Middlewares[0].Config = c } }
	for _, c := range []struct {
		breaks func(*Module)
		field  string
		words  string
	}{
		{func(m *Module) { m.Name = "" }, "module", "no name"},
		{func(m *Module) { m.Name = "a/b" }, "module", "bad name"},
		{func(m *Module) { m.Name = strings.Repeat("a", 64) }, "module", "bad name"},
		{route(func(r *Route) { r.Name = "a b" }), "routes[0].name", "bad name"},
		{route(func(r *Route) { r.Name = "-a" }), "routes[0].name", "bad name"},
		{func(m *Module) { m.Routes[1].Name = "user" }, "routes[1].name", "stands twice"},
		{route(func(r *Route) { r.Prefix = "/a" }), "routes[0]", "both path and prefix"},
		{route(func(r *Route) { r.Path = "" }), "routes[0]", "neither path nor prefix"},
		{route(func(r *Route) { r.Path = "/{a}{b}" }), "routes[0].path", "literal text between"},
		{route(func(r *Route) { r.Path = ""; r.Prefix = "/a/" }), "routes[0].prefix", "ends with a slash"},
		{route(func(r *Route) { r.Hosts = []string{"a.com", ""} }), "routes[0].hosts[0]", "empty"},
		{route(func(r *Route) { r.Hosts = []string{"*", "a.com"} }), "routes[0].hosts[0]", "beside other hosts"},
		{route(func(r *Route) { r.Hosts = []string{"a.com:80"} }), "routes[0].hosts[0]", "port"},
		{route(func(r *Route) { r.Hosts = []string{"http://a.com"} }), "routes[0].hosts[0]", "scheme"},
		{route(func(r *Route) { r.Hosts = []string{"a.*.com"} }), "routes[0].hosts[0]", "wildcard"},
		{route(func(r *Route) { r.Hosts = []string{"*a.com"} }), "routes[0].hosts[0]", "wildcard"},
		{route(func(r *Route) { r.Hosts = []string{"a..com"} }), "routes[0].hosts[0]", "label"},
		{route(func(r *Route) { r.Hosts = []string{"bücher.de"} }), "routes[0].hosts[0]", "xn--"},
		{route(func(r *Route) { r.Hosts = []string{"a b"} }), "routes[0].hosts[0]", "letters"},
		{route(func(r *Route) { r.Hosts = []string{"[::01]"} }), "routes[0].hosts[0]", "IPv6"},
		{route(func(r *Route) { r.Hosts = []string{strings.Repeat("a.", 130) + "a"} }), "routes[0].hosts[0]", "253"},
		{route(func(r *Route) { r.Hosts = numbered("h%d.com", MaxRouteHosts+1) }), "routes[0].hosts", "more than"},
		{route(func(r *Route) { r.Methods = []string{"G T"} }), "routes[0].methods[0]", "not a method"},
		{route(func(r *Route) { r.Methods = []string{"connect"} }), "routes[0].methods[0]", "CONNECT"},
		{route(func(r *Route) { r.Methods = numbered("M%d", MaxRouteMethods+1) }), "routes[0].methods", "more than"},
		{route(func(r *Route) { r.Headers[0].Name = "" }), "routes[0].headers[0].name", "no name"},
		{route(func(r *Route) { r.Headers[0].Name = "a b" }), "routes[0].headers[1].name", "cannot be a name"},
		{route(func(r *Route) { r.Headers[0].Name = "host" }), "routes[0].headers[1].name", "use hosts"},
		{route(func(r *Route) { r.Query[0].Name = "" }), "routes[0].query[0].name", "no name"},
		{route(func(r *Route) { r.Cookies[0].Name = "a;" }), "routes[0].cookies[0].name", "cannot be a name"},
		{route(func(r *Route) { r.Cookies[0].Name = long }), "routes[0].cookies[0].name", "longer"},
		{route(func(r *Route) { r.Cookies[0].Value = "x" }), "routes[0].cookies[0].present", "presence"},
		{route(func(r *Route) { r.Cookies[0].Op = 0 }), "routes[0].cookies[0]", "how it compares"},
		{route(func(r *Route) { r.Headers[0].Value = "a\nb" }), "routes[0].headers[1].equal", "control"},
		{route(func(r *Route) { r.Headers[0].Value = long }), "routes[0].headers[1]", "longer"},
		{route(func(r *Route) { r.Query[0].Value = "a)(b" }), "routes[0].query[0].regex", "bad expression"},
		{route(func(r *Route) { r.Query[0].Value = "(?=a)" }), "routes[0].query[0].regex", "RE2"},
		{route(func(r *Route) { r.Query[0].Value = "((a{100}){10}){10}" }), "routes[0].query[0].regex", "bad expression"},
		{route(func(r *Route) { r.Query[0].Value = "(a{100}){100}" }), "routes[0].query[0].regex", "bad expression"},
		{route(func(r *Route) { r.Query[0].Value = "(?:ab|cd|ef){999}" }), "routes[0].query[0].regex", "instructions"},
		{route(func(r *Route) { r.Query[0].Value = strings.Repeat("a", MaxRegexpBytes+1) }), "routes[0].query[0].regex", "longer"},
		{route(func(r *Route) { r.Headers[1] = Condition{"authorization", OpEqual, "Bearer abc"} }), "routes[0].headers[0].equal", "literal secret"},
		{route(func(r *Route) { r.Headers[1] = Condition{"authorization", OpPrefix, "Bearer abc"} }), "routes[0].headers[0].prefix", "literal secret"},
		{route(func(r *Route) { r.Headers[1] = Condition{"x-api-key", OpEqual, "abc"} }), "routes[0].headers[0].equal", "literal secret"},
		{route(func(r *Route) {
			r.Query = nil
			for i := range MaxConditions {
				r.Query = append(r.Query, Condition{strconv.Itoa(i), OpPresent, ""})
			}
		}), "routes[0]", "conditions"},
		{route(func(r *Route) { r.Clients = []netip.Prefix{{}} }), "routes[0].clients[0]", "address range"},
		{route(func(r *Route) {
			r.Clients = nil
			for i := range MaxClients + 1 {
				r.Clients = append(r.Clients, netip.PrefixFrom(netip.AddrFrom4([4]byte{1, 2, byte(i >> 8), byte(i)}), 32))
			}
		}), "routes[0].clients", "more than"},
		{route(func(r *Route) { r.Priority = MaxPriority + 1 }), "routes[0].priority", "out of range"},
		{route(func(r *Route) { r.Priority = MinPriority - 1 }), "routes[0].priority", "out of range"},
		{route(func(r *Route) { r.Middlewares[0].Use = "none" }), "routes[0].middlewares[0].use", "or use limit"},
		{route(func(r *Route) { r.Middlewares[1].Use = "limit" }), "routes[0].middlewares[1]", "both use and a kind"},
		{route(func(r *Route) { r.Middlewares[1] = Middleware{} }), "routes[0].middlewares[1]", "neither use nor"},
		{route(func(r *Route) { r.Middlewares[1].Config = `[1]` }), "routes[0].middlewares[1].headers", "not an object"},
		{route(func(r *Route) { r.Middlewares[1].Config = `{"token":"abc"}` }), "routes[0].middlewares[1].headers.token", "${env:NAME}"},
		{route(func(r *Route) { r.Middlewares = make([]Middleware, MaxRouteMiddlewares+1) }), "routes[0].middlewares", "more than"},
		{func(m *Module) { m.Middlewares[0].Kind = "" }, "middlewares.limit", "no kind"},
		{func(m *Module) { m.Middlewares[0].Name = "a b" }, "middlewares.a b", "bad name"},
		{func(m *Module) { m.Middlewares = append(m.Middlewares, m.Middlewares[0]) }, "middlewares.limit", "twice"},
		{func(m *Module) { m.Middlewares = append(m.Middlewares, NamedMiddleware{"spare", "k", ""}) }, "middlewares.spare", "no route uses"},
		{config(`{"a":1e999}`), "middlewares.limit.rateLimit", "not JSON"},
		{config("{"), "middlewares.limit.rateLimit", "not JSON"},
		{config(`{} {}`), "middlewares.limit.rateLimit", "not JSON"},
		{config(`"x"`), "middlewares.limit.rateLimit", "not an object"},
		{config(`{"a":"` + long + `"}`), "middlewares.limit.rateLimit", "more than"},
		{config(strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40)), "middlewares.limit.rateLimit" + strings.Repeat(".a", 32), "nested"},
		{config(`{"clientSecret":"abc"}`), "middlewares.limit.rateLimit.clientSecret", "literal secret"},
		{config(`{"a":[{"api_key":"abc"}]}`), "middlewares.limit.rateLimit.a[0].api_key", "literal secret"},
		{config(`{"set":{"authorization":["abc"]}}`), "middlewares.limit.rateLimit.set.authorization[0]", "literal secret"},
		{config(`{"set":[{"name":"Cookie","value":"abc"}]}`), "middlewares.limit.rateLimit.set[0].value", "literal secret"},
		{config(`{"url":"https://u:p@example.com/"}`), "middlewares.limit.rateLimit.url", "literal secret"},

		{route(func(r *Route) { r.Action = Action{} }), "routes[0]", "no action"},
		{route(func(r *Route) { r.Action.Respond = &Respond{} }), "routes[0]", "more than one action"},
		{route(func(r *Route) { r.Action.Proxy.Upstream = "none" }), "routes[0].proxy.upstream", "or use users"},
		{route(func(r *Route) { r.Action.Proxy.Upstream = "" }), "routes[0].proxy.upstream", "no upstream"},
		{route(func(r *Route) { r.Action.Proxy.Timeout = -1 }), "routes[0].proxy.timeout", "negative"},
		{route(func(r *Route) { r.Action.Proxy.Timeout = 1 }), "routes[0].proxy.timeout", "less than"},
		{route(func(r *Route) { r.Action.Proxy.Timeout = 25 * time.Hour }), "routes[0].proxy.timeout", "more than"},
		{respond(func(r *Respond) { r.Status = 199 }), "routes[1].respond.status", "from 200"},
		{respond(func(r *Respond) { r.Status = 600 }), "routes[1].respond.status", "from 200"},
		{respond(func(r *Respond) { r.Status = 204 }), "routes[1].respond.body", "no body"},
		{respond(func(r *Respond) { r.Body = long }), "routes[1].respond.body", "more than"},
		{respond(func(r *Respond) { r.Headers[0].Name = "a b" }), "routes[1].respond.headers.a b", "not a header"},
		{respond(func(r *Respond) { r.Headers[0].Name = "content-length" }), "routes[1].respond.headers.Content-Length", "set by routerd"},
		{respond(func(r *Respond) { r.Headers[0].Value = "a\r\nb: c" }), "routes[1].respond.headers.X-Key", "line break"},
		{respond(func(r *Respond) { r.Headers[0].Value = " a" }), "routes[1].respond.headers.X-Key", "white space"},
		{respond(func(r *Respond) { r.Headers[0].Value = long }), "routes[1].respond.headers.X-Key", "longer"},
		{respond(func(r *Respond) { r.Headers[1].Name = "x-api-key" }), "routes[1].respond.headers.X-Api-Key", "literal secret"},
		{respond(func(r *Respond) { r.Headers = make([]Header, MaxHeaders+1) }), "routes[1].respond.headers", "more than"},
		{redirect(""), "routes[2].redirect.to", "not where"},
		{redirect("/{nope}"), "routes[2].redirect.to", "the path has id, rest"},
		{redirect("/{id"), "routes[2].redirect.to", "without its }"},
		{redirect("/id}"), "routes[2].redirect.to", "without its {"},
		{redirect("relative"), "routes[2].redirect.to", "neither a path"},
		{redirect("{rest}"), "routes[2].redirect.to", "neither a path"},
		{redirect("ftp://a/"), "routes[2].redirect.to", "neither a path"},
		{redirect("https://{id}/"), "routes[2].redirect.to", "choose"},
		{redirect("//a{id}"), "routes[2].redirect.to", "choose"},
		{redirect("https:///x"), "routes[2].redirect.to", "no host"},
		{redirect("///x"), "routes[2].redirect.to", "no host"},
		{redirect("https://u:p@a/"), "routes[2].redirect.to", "literal secret"},
		{redirect("/a\r\nb"), "routes[2].redirect.to", "control"},
		{redirect("/\\a"), "routes[2].redirect.to", "backslash"},
		{redirect("/" + long), "routes[2].redirect.to", "longer"},
		{func(m *Module) { m.Routes[2].Action.Redirect.Status = 304 }, "routes[2].redirect.status", "308"},

		{up(func(u *Upstream) { u.Targets = nil }), "upstreams.users.targets", "no targets"},
		{up(func(u *Upstream) { u.Targets = make([]Target, MaxTargets+1) }), "upstreams.users.targets", "more than"},
		{up(func(u *Upstream) { u.Targets[1] = u.Targets[0] }), "upstreams.users.targets[1].url", "twice"},
		{up(func(u *Upstream) { u.Targets[0].Weight = -1 }), "upstreams.users.targets[0].weight", "1000"},
		{up(func(u *Upstream) { u.Targets[0].Weight = 1001 }), "upstreams.users.targets[0].weight", "1000"},
		{up(func(u *Upstream) { u.Targets[0].URL = "" }), "upstreams.users.targets[0].url", "no URL"},
		{up(func(u *Upstream) { u.Targets[0].URL = "10.0.0.1:80" }), "upstreams.users.targets[0].url", "URL"},
		{up(func(u *Upstream) { u.Targets[0].URL = "ftp://a" }), "upstreams.users.targets[0].url", "scheme"},
		{up(func(u *Upstream) { u.Targets[0].URL = "http://a/b" }), "upstreams.users.targets[0].url", "more than scheme"},
		{up(func(u *Upstream) { u.Targets[0].URL = "http://a?b" }), "upstreams.users.targets[0].url", "more than scheme"},
		{up(func(u *Upstream) { u.Targets[0].URL = "http://a#b" }), "upstreams.users.targets[0].url", "more than scheme"},
		{up(func(u *Upstream) { u.Targets[0].URL = "http://u:hunter2@a" }), "upstreams.users.targets[0].url", "literal secret"},
		{up(func(u *Upstream) { u.Targets[0].URL = "http://" }), "upstreams.users.targets[0].url", "host"},
		{up(func(u *Upstream) { u.Targets[0].URL = "http://a:0" }), "upstreams.users.targets[0].url", "port"},
		{up(func(u *Upstream) { u.Targets[0].URL = "http://a:70000" }), "upstreams.users.targets[0].url", "port"},
		{up(func(u *Upstream) { u.Targets[0].URL = "http://*.a" }), "upstreams.users.targets[0].url", "host"},
		{up(func(u *Upstream) { u.HostMode = 9 }), "upstreams.users.host", "unknown"},
		{up(func(u *Upstream) { u.Host = "a" }), "upstreams.users.host", "another is sent"},
		{up(func(u *Upstream) { u.HostMode = HostLiteral; u.Host = "a b" }), "upstreams.users.host", "not a host"},
		{up(func(u *Upstream) { u.ConnectTimeout = -1 }), "upstreams.users.timeouts.connect", "negative"},
		{up(func(u *Upstream) { u.ResponseTimeout = time.Microsecond }), "upstreams.users.timeouts.response", "less than"},
		{up(func(u *Upstream) { u.IdleTimeout = 48 * time.Hour }), "upstreams.users.timeouts.idle", "more than"},
		{up(func(u *Upstream) { u.MaxIdle = -1 }), "upstreams.users.maxIdle", "out of range"},
		{up(func(u *Upstream) { u.TLS.ServerName = "*.a" }), "upstreams.users.tls.serverName", "not a host"},
		{up(func(u *Upstream) { u.TLS.CAFile = "ca.pem" }), "upstreams.users.tls.caFile", "absolute"},
		{up(func(u *Upstream) { u.TLS.Insecure = true }), "upstreams.users.tls.insecure", "any certificate"},
		{up(func(u *Upstream) { u.Targets = u.Targets[:1]; u.TLS.CAFile = "/a" }), "upstreams.users.tls", "without effect"},
		{up(func(u *Upstream) { u.Name = "" }), "upstreams.", "no name"},
		{up(func(u *Upstream) { u.Name = "a/b" }), "upstreams.a/b", "bad name"},
		{func(m *Module) {
			m.Upstreams = append(m.Upstreams, Upstream{Name: "spare", Targets: []Target{{URL: "http://a"}}})
		}, "upstreams.spare", "no route uses"},
		{func(m *Module) { m.Upstreams = append(m.Upstreams, m.Upstreams[0]) }, "upstreams.users", "twice"},

		{test(func(t *Test) { t.Method = "G T" }), "tests[0].request.method", "not a method"},
		{test(func(t *Test) { t.URL = "" }), "tests[0].request.url", "asks for nothing"},
		{test(func(t *Test) { t.URL = "a/b" }), "tests[0].request.url", "neither a path"},
		{test(func(t *Test) { t.URL = "http://u:p@a/" }), "tests[0].request.url", "literal secret"},
		{test(func(t *Test) { t.URL = "/" + long }), "tests[0].request.url", "longer"},
		{test(func(t *Test) { t.Headers = []Header{{"x", "a\nb"}} }), "tests[0].request.headers.X", "line break"},
		{test(func(t *Test) { t.Headers = []Header{{"x-api-key", "b"}} }), "tests[0].request.headers.X-Api-Key", "made up"},
		{test(func(t *Test) { t.Route = ""; t.Params = nil }), "tests[0].expect", "expects nothing"},
		{test(func(t *Test) { t.Status = 404 }), "tests[0].expect.status", "both a route and none"},
		{test(func(t *Test) { t.Route = ""; t.Params = nil; t.Status = 200 }), "tests[0].expect.status", "not a status for no route"},
		{test(func(t *Test) { t.Route = ""; t.Status = 404 }), "tests[0].expect.params", "no route"},
		{test(func(t *Test) { t.Route = "none" }), "tests[0].expect.route", "no route none"},
		{test(func(t *Test) { t.Route = "users/none" }), "tests[0].expect.route", "users has no route none"},
		{test(func(t *Test) { t.Route = "absent/x" }), "tests[0].expect.route", "no module absent"},
		{test(func(t *Test) { t.Params[0].Name = "x" }), "tests[0].expect.params.x", "no parameter x"},
		{test(func(t *Test) { t.Params = append(t.Params, t.Params[0]) }), "tests[0].expect.params.id", "twice"},
		{test(func(t *Test) { t.Name = long }), "tests[0].name", "longer"},
		{func(m *Module) { m.Tests = append(m.Tests, make([]Test, MaxTests)...) }, "tests", "more than"},
		{func(m *Module) { m.Upstreams = make([]Upstream, MaxUpstreams+1) }, "upstreams", "more than"},
		{func(m *Module) { m.Middlewares = make([]NamedMiddleware, MaxMiddlewares+1) }, "middlewares", "more than"},
	} {
		table := goodTable()
		m := table.Modules[0]
		c.breaks(m)
		NormalizeModule(m)
		NormalizeModule(table.Modules[1])
		placed(m, c.field)
		ps := Validate(table)
		i := slices.IndexFunc(ps, func(p Problem) bool {
			return p.Field == c.field && strings.Contains(p.Message+" "+p.Hint, c.words)
		})
		if i < 0 {
			t.Errorf("%s, %q: not reported; got %.600v", c.field, c.words, ps)
			continue
		}
		p := ps[i]
		if want := "f.yaml:100"; p.Place.String() != want && c.field != "module" {
			t.Errorf("%s: the place is %v", c.field, p.Place)
		}
		if p.Module != m.Name || strings.HasPrefix(c.field, "routes[") && p.Route == "" && c.words != "no name" {
			t.Errorf("%s: reported for module %q, route %q", c.field, p.Module, p.Route)
		}
		if strings.Contains(ps.Error(), "hunter2") {
			t.Errorf("%s: the secret is repeated: %v", c.field, ps)
		}
	}
}

func numbered(format string, n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf(format, i))
	}
	return out
}

func TestValidateReportsAllProblemsInOrder(t *testing.T) {
	table := goodTable()
	m := table.Modules[0]
	m.Routes[0].Hosts = []string{"a b"}
	m.Routes[0].Methods = []string{"("}
	m.Routes[1].Path = "x"
	m.Routes[2].Action.Redirect.To = "/{nope}"
	m.Upstreams[0].Targets[0].URL = "x"
	m.Tests[0].Route = "none"
	Normalize(table)
	m = table.Modules[0]
	placed(m, "upstreams.users.targets[0].url", "routes[0].hosts[0]", "routes[0].methods[0]", "routes[1].path", "routes[2].redirect.to", "tests[0].expect.route")
	ps := Validate(table)
	if len(ps) != 6 {
		t.Fatalf("%d problems: %v", len(ps), ps)
	}
	for i, p := range ps {
		if p.Place.Line != 100+i {
			t.Errorf("problem %d is at %v: %v", i, p.Place, p)
		}
	}
	if err := ps.Err(); err == nil || len(ps.Errors()) != 6 || len(ps.Warnings()) != 0 {
		t.Error("errors and warnings are not told apart")
	}
}

func TestValidateTableLimits(t *testing.T) {
	table := &Table{}
	for i := range MaxModules + 1 {
		table.Modules = append(table.Modules, &Module{Name: "m" + strconv.Itoa(i)})
	}
	table.Modules = append(table.Modules, &Module{Name: "m7"})
	Normalize(table)
	ps := Validate(table)
	wantProblem(t, ps, Error, "modules, more than")
	wantProblem(t, ps, Error, "module m7 stands twice")

	many := &Module{Name: "m", Routes: make([]Route, MaxProblems+10)}
	ps = Validate(&Table{Modules: []*Module{many}})
	wantProblem(t, ps, Error, "the route has no name") // Normalize gives one
	if len(ps) != MaxProblems+1 || !strings.Contains(ps[MaxProblems].Message, "more problems") {
		t.Errorf("%d problems", len(ps))
	}

	hosts := &Module{Name: "m"}
	for i := range MaxHostPatterns/MaxRouteHosts + 1 {
		hosts.Routes = append(hosts.Routes, Route{Path: "/", Hosts: numbered("h%d.r"+strconv.Itoa(i)+".com", MaxRouteHosts), Action: Action{Respond: &Respond{}}})
	}
	NormalizeModule(hosts)
	wantProblem(t, Validate(&Table{Modules: []*Module{hosts}}), Error, "host patterns, more than")

	rivals := &Module{Name: "m"}
	for i := range MaxCandidates + 1 {
		rivals.Routes = append(rivals.Routes, Route{Path: fmt.Sprintf("/a/{x}-%d", i), Action: Action{Respond: &Respond{}}})
	}
	NormalizeModule(rivals)
	wantProblem(t, Validate(&Table{Modules: []*Module{rivals}}), Error, "compete for the same requests")
	rivals.Routes = rivals.Routes[:MaxCandidates]
	if ps := Validate(&Table{Modules: []*Module{rivals}}); len(ps) > 0 {
		t.Error(ps)
	}
}

func TestValidateAsksForANormalizedTable(t *testing.T) {
	table := goodTable()
	Normalize(table)
	table.Modules[0].Middlewares[0].Config = `{ "rate": 1 }`
	table.Modules[0].Routes[1].Action.Respond.Headers[0].Name = "x-lower"
	ps := Validate(table)
	if len(ps) != 2 {
		t.Error(ps)
	}
	wantProblem(t, ps, Error, "config is not in canonical form")
	wantProblem(t, ps, Error, `"x-lower" is not in canonical form`)
}

func TestMaxRoutes(t *testing.T) {
	v := &validator{table: &Table{Modules: []*Module{{Routes: make([]Route, MaxRoutes)}, {Routes: make([]Route, 1)}}}}
	if v.tableLimits() {
		t.Error("the routes are looked at")
	}
	wantProblem(t, v.problems, Error, "routes, more than")
}

// Routes that are few by themselves are many on the hosts that they name.
func TestMaxRoutesOnHosts(t *testing.T) {
	hosts := numbered("h%d.example.com", MaxRouteHosts)
	routes := make([]Route, MaxRoutesOnHosts/MaxRouteHosts+1)
	for i := range routes {
		routes[i].Hosts = hosts
	}
	m := &Module{Name: "m", Routes: routes}
	ps := Validate(&Table{Modules: []*Module{m}})
	wantProblem(t, ps, Error, "hosts together, more than")
	if len(ps) != 1 {
		t.Errorf("%d problems: the routes were looked at", len(ps))
	}
	m.Routes = routes[1:]
	if v := (&validator{table: &Table{Modules: []*Module{m}}}); !v.tableLimits() {
		t.Error(v.problems)
	}
}

func TestAProblemIsOneLineOfPrintableText(t *testing.T) {
	p := Problem{Module: "m", Route: "a\x1b]0;x\a", Field: "middlewares.b\nc", Message: "is \u202e wrong", Hint: "say é"}
	if got, want := p.Error(), `module m: a\x1b]0;x\a: middlewares.b\nc: is \u202e wrong (say é)`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func wantProblem(t *testing.T, ps Problems, severity Severity, words string) {
	t.Helper()
	if !slices.ContainsFunc(ps, func(p Problem) bool { return p.Severity == severity && strings.Contains(p.Message, words) }) {
		t.Errorf("no problem says %q: %.500v", words, ps)
	}
}

func TestCompileRegexpIsAnchored(t *testing.T) {
	re, _, err := CompileRegexp("a|b")
	if err != nil || !re.MatchString("a") || !re.MatchString("b") || re.MatchString("ab") || re.MatchString("b\n") || re.MatchString("xa") {
		t.Errorf("%v, %v", re, err)
	}
}
