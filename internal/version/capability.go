package version

import (
	"maps"
	"slices"
	"strings"

	"routerd.dev/internal/buildinfo"
	"routerd.dev/internal/route"
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
	out := buildinfo.Capabilities()
	for _, k := range kinds {
		out = append(out, buildinfo.Middleware(k))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func moduleCapabilities(m *route.Module) []string {
	set := map[string]struct{}{}
	var header, query, cookie, client, regexp, mixed, proxy, respond, redirect, tls bool
	kind := "" // the last one seen, for most routes of a module use the same
	need := func(k string) {
		if k != "" && k != kind {
			set[buildinfo.Middleware(k)] = struct{}{}
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
		buildinfo.MatchHeader: header, buildinfo.MatchQuery: query, buildinfo.MatchCookie: cookie, buildinfo.MatchClient: client, buildinfo.MatchRegexp: regexp,
		buildinfo.Mixed: mixed, buildinfo.Proxy: proxy, buildinfo.Respond: respond, buildinfo.Redirect: redirect, buildinfo.UpstreamTLS: tls,
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
