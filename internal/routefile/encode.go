package routefile

import (
	"fmt"
	"net/netip"

	"routerd.dev/internal/route"
	"routerd.dev/internal/yamlfile"
)

// Encode writes a normalized module as a route file in YAML, which Parse reads
// back as an equal module. What is at its default is left out. It fails for a
// module that no route file can say, which Parse never returns.
func Encode(m *route.Module) ([]byte, error) { return encode(m, yamlfile.Encode) }

// EncodeJSON is Encode in JSON.
func EncodeJSON(m *route.Module) ([]byte, error) { return encode(m, yamlfile.EncodeJSON) }

func encode(m *route.Module, write func(any) ([]byte, error)) ([]byte, error) {
	doc, err := documentOf(m)
	if err != nil {
		return nil, fmt.Errorf("encode module %s: %w", m.Name, err)
	}
	b, err := write(doc)
	if err != nil {
		return nil, fmt.Errorf("encode module %s: %w", m.Name, err)
	}
	return b, nil
}

func documentOf(m *route.Module) (*document, error) {
	doc := &document{APIVersion: APIVersion, Module: m.Name, Upstreams: map[string]upstream{}, Middlewares: map[string]definition{}}
	std := newDefaults()
	for i := range m.Upstreams {
		u, err := std.upstreamOf(&m.Upstreams[i])
		if err != nil {
			return nil, err
		}
		doc.Upstreams[m.Upstreams[i].Name] = u
	}
	for _, w := range m.Middlewares {
		doc.Middlewares[w.Name] = definition{Kind: w.Kind, Config: w.Config}
	}
	for i := range m.Routes {
		r, err := std.routeOf(&m.Routes[i])
		if err != nil {
			return nil, fmt.Errorf("route %s: %w", m.Routes[i].Name, err)
		}
		doc.Routes = append(doc.Routes, r)
	}
	for i := range m.Tests {
		doc.Tests = append(doc.Tests, testOf(&m.Tests[i]))
	}
	return doc, nil
}

// defaults are what normalizing makes of fields that were not given.
type defaults struct {
	upstream route.Upstream
	respond  route.Respond
	redirect route.Redirect
}

func newDefaults() *defaults {
	m := &route.Module{
		Name:      "m",
		Upstreams: []route.Upstream{{Name: "u", Targets: []route.Target{{URL: "http://u"}}}},
		Routes: []route.Route{
			{Name: "a", Path: "/a", Action: route.Action{Respond: &route.Respond{}}},
			{Name: "b", Path: "/b", Action: route.Action{Redirect: &route.Redirect{To: "/"}}},
		},
	}
	route.NormalizeModule(m)
	return &defaults{upstream: m.Upstreams[0], respond: *m.Routes[0].Action.Respond, redirect: *m.Routes[1].Action.Redirect}
}

// unless gives v, or the zero value where v is the default.
func unless[T comparable](v, standard T) T {
	if v == standard {
		var zero T
		return zero
	}
	return v
}

func (std *defaults) upstreamOf(u *route.Upstream) (upstream, error) {
	out := upstream{
		Timeouts: timeouts{
			Connect:  unless(u.ConnectTimeout, std.upstream.ConnectTimeout),
			Response: unless(u.ResponseTimeout, std.upstream.ResponseTimeout),
			Idle:     unless(u.IdleTimeout, std.upstream.IdleTimeout),
		},
		MaxIdle: unless(u.MaxIdle, std.upstream.MaxIdle),
		TLS:     tls(u.TLS),
	}
	for _, t := range u.Targets {
		out.Targets = append(out.Targets, target{URL: t.URL, Weight: unless(t.Weight, std.upstream.Targets[0].Weight)})
	}
	switch u.HostMode {
	case route.HostClient:
	case route.HostTarget:
		out.Host = hostTarget
	case route.HostLiteral:
		out.Host = u.Host
		if u.Host == "" || u.Host == hostClient || u.Host == hostTarget {
			return out, fmt.Errorf("upstream %s: the literal host %q cannot be said in a route file", u.Name, u.Host)
		}
	default:
		return out, fmt.Errorf("upstream %s: host mode %d", u.Name, u.HostMode)
	}
	return out, nil
}

func (std *defaults) routeOf(r *route.Route) (routeSpec, error) {
	out := routeSpec{
		Name: r.Name, Hosts: r.Hosts, Methods: r.Methods,
		Path: r.Path, Prefix: r.Prefix, Priority: r.Priority,
	}
	for _, side := range []struct {
		from []route.Condition
		to   *[]cond
	}{{r.Headers, &out.Headers}, {r.Query, &out.Query}, {r.Cookies, &out.Cookies}} {
		for _, c := range side.from {
			v, err := condOf(c)
			if err != nil {
				return out, err
			}
			*side.to = append(*side.to, v)
		}
	}
	for _, c := range r.Clients {
		out.Clients = append(out.Clients, prefix(c))
	}
	for _, w := range r.Middlewares {
		out.Middlewares = append(out.Middlewares, link{Use: w.Use, definition: definition{Kind: w.Kind, Config: w.Config}})
	}
	if a := r.Action.Proxy; a != nil {
		out.Proxy = &proxy{Upstream: a.Upstream, Timeout: a.Timeout}
	}
	if a := r.Action.Respond; a != nil {
		out.Respond = &respond{Status: unless(a.Status, std.respond.Status), Headers: a.Headers, Body: a.Body}
	}
	if a := r.Action.Redirect; a != nil {
		out.Redirect = &redirect{To: a.To, Status: unless(a.Status, std.redirect.Status)}
	}
	return out, nil
}

func testOf(t *route.Test) testSpec {
	out := testSpec{
		Name:    t.Name,
		Request: request{Method: t.Method, URL: t.URL, Headers: t.Headers, Client: address(t.Client)},
		Expect:  expect{Route: t.Route, Status: t.Status},
	}
	if !netip.Addr(out.Request.Client).IsValid() {
		out.Request.Client = address{}
	}
	for _, p := range t.Params {
		if out.Expect.Params == nil {
			out.Expect.Params = map[string]string{}
		}
		out.Expect.Params[p.Name] = p.Value
	}
	return out
}
