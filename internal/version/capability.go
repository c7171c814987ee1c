package version

import (
	"maps"
	"slices"
	"strings"

	"routerd.dev/internal/route"
)

// baseCapability stands for what every build has known: hosts, methods, path
// and prefix patterns of whole segments, priority, upstreams over http, tests.
const baseCapability = "route/1"

// What a table can need beside the base. A name says what, its number which
// version of it. middleware/<kind>/1 joins them for each kind that is used.
const (
	capMixed    = "match/mixed/1"  // segments that mix text and parameters
	capHeader   = "match/header/1" // conditions on headers
	capQuery    = "match/query/1"
	capCookie   = "match/cookie/1"
	capClient   = "match/client/1" // conditions on the client's address
	capRegexp   = "match/regexp/1" // conditions by RE2 expression
	capProxy    = "action/proxy/1"
	capRespond  = "action/respond/1"
	capRedirect = "action/redirect/1"
	capTLS      = "upstream/tls/1" // https targets
)

// Capabilities returns what a build must be able to do to serve t, sorted.
// Encode writes it into the manifest and Load holds the manifest to it.
func Capabilities(t *route.Table) []string {
	lists := make([][]string, len(t.Modules))
	for i, m := range t.Modules {
		lists[i] = moduleCapabilities(m)
	}
	return unionCapabilities(lists)
}

// Supported returns what this codec and an engine with the given kinds of
// middleware can do, sorted: what Manifest.Missing is asked with.
func Supported(kinds []string) []string {
	out := []string{
		baseCapability, capMixed, capHeader, capQuery, capCookie, capClient, capRegexp,
		capProxy, capRespond, capRedirect, capTLS,
	}
	for _, k := range kinds {
		out = append(out, middlewareCapability(k))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func middlewareCapability(kind string) string { return "middleware/" + kind + "/1" }

func moduleCapabilities(m *route.Module) []string {
	set := map[string]struct{}{}
	var header, query, cookie, client, regexp, mixed, proxy, respond, redirect, tls bool
	kind := "" // the last one seen, for most routes of a module use the same
	need := func(k string) {
		if k != "" && k != kind {
			set[middlewareCapability(k)] = struct{}{}
			kind = k
		}
	}
	for i := range m.Middlewares {
		need(m.Middlewares[i].Kind)
	}
	for i := range m.Upstreams {
		for j := range m.Upstreams[i].Targets {
			tls = tls || strings.HasPrefix(m.Upstreams[i].Targets[j].URL, "https:")
		}
	}
	for i := range m.Routes {
		rt := &m.Routes[i]
		header = header || len(rt.Headers) > 0
		query = query || len(rt.Query) > 0
		cookie = cookie || len(rt.Cookies) > 0
		client = client || len(rt.Clients) > 0
		regexp = regexp || hasRegexp(rt.Headers) || hasRegexp(rt.Query) || hasRegexp(rt.Cookies)
		mixed = mixed || isMixed(rt.Path) || isMixed(rt.Prefix)
		proxy = proxy || rt.Action.Proxy != nil
		respond = respond || rt.Action.Respond != nil
		redirect = redirect || rt.Action.Redirect != nil
		for j := range rt.Middlewares {
			need(rt.Middlewares[j].Kind)
		}
	}
	for name, needed := range map[string]bool{
		capHeader: header, capQuery: query, capCookie: cookie, capClient: client, capRegexp: regexp,
		capMixed: mixed, capProxy: proxy, capRespond: respond, capRedirect: redirect, capTLS: tls,
	} {
		if needed {
			set[name] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

func hasRegexp(cs []route.Condition) bool {
	return slices.ContainsFunc(cs, func(c route.Condition) bool { return c.Op == route.OpRegexp })
}

// isMixed tells whether a pattern has a segment that is neither text nor one
// parameter. What is no pattern may count as mixed; whoever serves it says so.
func isMixed(pattern string) bool {
	for i := range len(pattern) {
		switch pattern[i] {
		case '{':
			if i > 0 && pattern[i-1] != '/' {
				return true
			}
		case '}':
			if i+1 < len(pattern) && pattern[i+1] != '/' {
				return true
			}
		}
	}
	return false
}
