package routefile

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"routerd.dev/internal/route"
)

// same compares modules by what a snapshot holds of them.
func same(want, got *route.Module) string {
	return cmp.Diff(want, got,
		cmpopts.IgnoreFields(route.Module{}, "Source"),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }))
}

// modules draws normalized modules; their texts are anything, so most have
// mistakes that Validate would report, which a route file can say all the same.
func modules() *rapid.Generator[*route.Module] {
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "a", "1", "true", "null", "/a b", "{x}", "client", "a: b", "- x", "#", "line\nline\n", " x ", "*", "10s", "::1"}))
	name := rapid.StringMatching(`[a-z][a-z0-9.-]{0,6}`)
	duration := rapid.Map(rapid.Int64Range(0, int64(100*time.Hour)), func(i int64) time.Duration { return time.Duration(i) })
	addr := rapid.Custom(func(t *rapid.T) netip.Addr {
		if rapid.Bool().Draw(t, "v4") {
			return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "bytes")))
		}
		return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "bytes")))
	})
	prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := addr.Draw(t, "addr")
		return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits"))
	})
	config := rapid.Custom(func(t *rapid.T) string {
		b, err := json.Marshal(rapid.MapOfN(text, rapid.OneOf(
			rapid.Map(text, func(s string) any { return s }),
			rapid.Map(rapid.Float64(), func(f float64) any { return f }),
			rapid.Map(rapid.SliceOfN(rapid.Int(), 0, 3), func(s []int) any { return s }),
			rapid.Just[any](map[string]any{"set": map[string]any{"X-A": nil}}),
		), 0, 3).Draw(t, "config"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	})
	condition := rapid.Custom(func(t *rapid.T) route.Condition {
		c := route.Condition{Name: text.Draw(t, "name"), Op: route.Op(rapid.IntRange(1, 4).Draw(t, "op"))}
		if c.Op != route.OpPresent {
			c.Value = text.Draw(t, "value")
		}
		return c
	})
	conditions := rapid.SliceOfN(condition, 0, 3)
	header := rapid.Custom(func(t *rapid.T) route.Header {
		return route.Header{Name: rapid.SampledFrom([]string{"X-A", "x-a", "Set-Cookie", "é"}).Draw(t, "name"), Value: text.Draw(t, "value")}
	})
	headers := rapid.SliceOfN(header, 0, 4)
	middleware := rapid.Custom(func(t *rapid.T) route.Middleware {
		if rapid.Bool().Draw(t, "use") {
			return route.Middleware{Use: name.Draw(t, "name")}
		}
		return route.Middleware{Kind: name.Filter(func(s string) bool { return s != "use" }).Draw(t, "kind"), Config: config.Draw(t, "config")}
	})
	upstreams := rapid.Custom(func(t *rapid.T) route.Upstream {
		u := route.Upstream{
			Name: name.Draw(t, "name"), ConnectTimeout: duration.Draw(t, "connect"), ResponseTimeout: duration.Draw(t, "response"),
			IdleTimeout: duration.Draw(t, "idle"), MaxIdle: rapid.IntRange(0, 300).Draw(t, "maxIdle"),
			TLS:      route.TLS{ServerName: text.Draw(t, "server"), CAFile: text.Draw(t, "ca"), Insecure: rapid.Bool().Draw(t, "insecure")},
			HostMode: route.HostMode(rapid.IntRange(0, 2).Draw(t, "mode")),
		}
		if u.HostMode == route.HostLiteral {
			u.Host = name.Filter(func(s string) bool { return s != "client" && s != "target" }).Draw(t, "host")
		}
		for range rapid.IntRange(1, 3).Draw(t, "targets") {
			u.Targets = append(u.Targets, route.Target{URL: text.Draw(t, "url"), Weight: rapid.IntRange(0, 3).Draw(t, "weight")})
		}
		return u
	})
	action := rapid.Custom(func(t *rapid.T) route.Action {
		switch rapid.IntRange(0, 2).Draw(t, "action") {
		case 0:
			return route.Action{Proxy: &route.Proxy{Upstream: text.Draw(t, "upstream"), Timeout: duration.Draw(t, "timeout")}}
		case 1:
			return route.Action{Respond: &route.Respond{Status: rapid.IntRange(0, 600).Draw(t, "status"), Headers: headers.Draw(t, "headers"), Body: text.Draw(t, "body")}}
		default:
			return route.Action{Redirect: &route.Redirect{To: text.Draw(t, "to"), Status: rapid.IntRange(0, 400).Draw(t, "status")}}
		}
	})
	// A lone * stands for any host: what becomes of it among others is for
	// route's tests.
	hosts := rapid.SliceOfN(text.Filter(func(s string) bool { return strings.TrimRight(s, ".") != "*" }), 0, 2)
	routes := rapid.Custom(func(t *rapid.T) route.Route {
		r := route.Route{
			Name: name.Draw(t, "name"), Hosts: hosts.Draw(t, "hosts"), Methods: rapid.SliceOfN(text, 0, 2).Draw(t, "methods"),
			Headers: conditions.Draw(t, "headers"), Query: conditions.Draw(t, "query"), Cookies: conditions.Draw(t, "cookies"),
			Clients: rapid.SliceOfN(prefix, 0, 3).Draw(t, "clients"), Priority: rapid.Int().Draw(t, "priority"),
			Middlewares: rapid.SliceOfN(middleware, 0, 3).Draw(t, "middlewares"), Action: action.Draw(t, "action"),
		}
		path := rapid.OneOf(text, rapid.SampledFrom([]string{"/users/{id}", "/a/{b}.json", "/s/{p...}", "/:x"})).Draw(t, "path")
		if rapid.Bool().Draw(t, "prefix") {
			r.Prefix = path
		} else {
			r.Path = path
		}
		return r
	})
	tests := rapid.Custom(func(t *rapid.T) route.Test {
		x := route.Test{
			Name: text.Draw(t, "name"), Method: text.Filter(func(s string) bool { return s != "" }).Draw(t, "method"), URL: text.Draw(t, "url"), Headers: headers.Draw(t, "headers"),
			Route: text.Draw(t, "route"), Status: rapid.IntRange(0, 500).Draw(t, "status"),
		}
		if rapid.Bool().Draw(t, "client") {
			x.Client = addr.Draw(t, "client")
		}
		for name, value := range rapid.MapOfN(text, text, 0, 3).Draw(t, "params") {
			x.Params = append(x.Params, route.Param{Name: name, Value: value})
		}
		return x
	})
	return rapid.Custom(func(t *rapid.T) *route.Module {
		m := &route.Module{
			Name:      text.Draw(t, "module"),
			Upstreams: rapid.SliceOfNDistinct(upstreams, 0, 2, func(u route.Upstream) string { return u.Name }).Draw(t, "upstreams"),
			Routes:    rapid.SliceOfN(routes, 1, 3).Draw(t, "routes"),
			Tests:     rapid.SliceOfN(tests, 0, 2).Draw(t, "tests"),
		}
		for _, n := range rapid.SliceOfNDistinct(name, 0, 2, rapid.ID[string]).Draw(t, "middlewares") {
			m.Middlewares = append(m.Middlewares, route.NamedMiddleware{Name: n, Kind: name.Draw(t, "kind"), Config: config.Draw(t, "config")})
		}
		route.NormalizeModule(m)
		for i := range m.Tests {
			sortHeaders(m.Tests[i].Headers)
		}
		return m
	})
}

func TestWhatIsEncodedParsesToAnEqualModule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := modules().Draw(t, "module")
		for name, encode := range map[string]func(*route.Module) ([]byte, error){"m.yaml": Encode, "m.json": EncodeJSON} {
			b, err := encode(want)
			if err != nil {
				t.Fatal(err)
			}
			got, ps := Parse([]File{{Name: name, Data: b}})
			if len(ps) > 0 {
				t.Fatalf("%v\n%s", ps, b)
			}
			if len(got) != 1 {
				t.Fatalf("%d modules of\n%s", len(got), b)
			}
			if d := same(want, got[0]); d != "" {
				t.Fatalf("%s\n%s", d, b)
			}
			for i := range got[0].Routes {
				if p := got[0].Source.Place(fmt.Sprintf("routes[%d].name", i)); p.Line == 0 || p.File != name {
					t.Fatalf("route %d has no place: %v", i, p)
				}
			}
		}
	})
}

// What no route file can say is an error, not another module.
func TestEncodeRefusesWhatAFileCannotSay(t *testing.T) {
	for name, m := range map[string]*route.Module{
		"host named client": {Upstreams: []route.Upstream{{Name: "u", HostMode: route.HostLiteral, Host: "client"}}},
		"host mode":         {Upstreams: []route.Upstream{{Name: "u", HostMode: 9}}},
		"operator":          {Routes: []route.Route{{Headers: []route.Condition{{Name: "a"}}}}},
		"config":            {Routes: []route.Route{{Middlewares: []route.Middleware{{Kind: "k", Config: "{"}}}}},
		"text":              {Name: "\xff"},
	} {
		if b, err := Encode(m); err == nil {
			t.Errorf("%s: was written:\n%s", name, b)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte(example))
	f.Add([]byte(`{"apiVersion":"routerd/v1","module":"a","routes":[{"path":"/","respond":"x"}]}`))
	f.Add([]byte("apiVersion: routerd/v1\nmodule: a\nroutes: [{path: /, respond: x}]\n---\napiVersion: routerd/v1\nmodule: a\nroutes:\n- {prefix: /, redirect: {to: /x}}\n"))
	f.Add([]byte("apiVersion: routerd/v2\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		mods, ps := Parse([]File{{Name: "f.yaml", Data: data}})
		if len(ps) > 0 {
			_ = ps.Error()
			return
		}
		if len(mods) == 0 {
			t.Fatal("neither modules nor problems")
		}
		for _, want := range mods {
			if len(want.Routes) == 0 {
				t.Fatal("a module without routes was accepted")
			}
			b, err := Encode(want)
			if err != nil {
				t.Fatalf("%q: %v", data, err)
			}
			got, ps := Parse([]File{{Name: "f.yaml", Data: b}})
			if len(ps) > 0 || len(got) != 1 {
				t.Fatalf("%q: %v\n%s", data, ps, b)
			}
			if d := same(want, got[0]); d != "" {
				t.Fatalf("%q: %s\n%s", data, d, b)
			}
		}
	})
}
