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

// moduleCapabilities is what one module needs, sorted. A module that is decoded
// notes it on the way.
func moduleCapabilities(m *route.Module) []string {
	var n needs
	for i := range m.Middlewares {
		n.kind(m.Middlewares[i].Kind)
	}
	for i := range m.Upstreams {
		for j := range m.Upstreams[i].Targets {
			n.target(m.Upstreams[i].Targets[j].URL)
		}
	}
	for i := range m.Routes {
		rt := &m.Routes[i]
		n.fields |= routeFields(rt)
		n.pattern(rt.Path)
		n.pattern(rt.Prefix)
		for _, cs := range [...][]route.Condition{rt.Headers, rt.Query, rt.Cookies} {
			for j := range cs {
				n.condition(cs[j].Op)
			}
		}
		for j := range rt.Middlewares {
			n.kind(rt.Middlewares[j].Kind)
		}
	}
	return n.capabilities()
}

// needs collects what the records of a module need.
type needs struct {
	fields uint64 // of all routes together, see routeFields
	regexp bool
	mixed  bool
	tls    bool

	kinds map[string]struct{}
	last  string // kind, for most routes of a module use the same
}

func (n *needs) kind(k string) {
	if k == "" || k == n.last {
		return
	}
	if n.kinds == nil {
		n.kinds = map[string]struct{}{}
	}
	n.kinds[k], n.last = struct{}{}, k
}

func (n *needs) target(url string)      { n.tls = n.tls || strings.HasPrefix(url, "https:") }
func (n *needs) pattern(text string)    { n.mixed = n.mixed || isMixed(text) }
func (n *needs) condition(op route.Op)  { n.regexp = n.regexp || op == route.OpRegexp }
func (n *needs) has(fields uint64) bool { return n.fields&fields != 0 }

func (n *needs) capabilities() []string {
	set := map[string]struct{}{}
	for name, needed := range map[string]bool{
		buildinfo.MatchHeader: n.has(hasHeaders), buildinfo.MatchQuery: n.has(hasQuery), buildinfo.MatchCookie: n.has(hasCookies),
		buildinfo.MatchClient: n.has(hasClients), buildinfo.MatchRegexp: n.regexp, buildinfo.Mixed: n.mixed, buildinfo.Proxy: n.has(hasProxy),
		buildinfo.Respond: n.has(hasRespond), buildinfo.Redirect: n.has(hasRedirect), buildinfo.UpstreamTLS: n.tls,
	} {
		if needed {
			set[name] = struct{}{}
		}
	}
	for k := range n.kinds {
		set[buildinfo.Middleware(k)] = struct{}{}
	}
	return slices.Sorted(maps.Keys(set))
}

// isMixed tells whether a pattern has a segment that is neither text nor one
// parameter. What is no pattern may count as mixed; whoever serves it says so.
func isMixed(pattern string) bool {
	for i := range len(pattern) {
		if pattern[i] < '{' { // nearly always, and both braces are above
			continue
		}
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
