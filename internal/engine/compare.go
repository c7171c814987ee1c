package engine

import (
	"reflect"
	"slices"
	"strings"
	"sync"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/route"
)

// Compare returns what new counted beside what old did, each since it was
// compiled: in all, and for each route that is changed or not in old, if there
// are no more than most; otherwise for the first by name, the rest in one sum.
// So instances that compare the same revisions name the same routes, also those
// that had no request yet.
//
// A route is changed when its definition is, or that of its upstream, or of a
// middleware that it uses by name. Which are is worked out once for a pair of
// engines. Either may be nil, and has counted nothing then.
func (c *Counters) Compare(old, new *Engine, most int) analysis.Sample {
	before, after := old.counted(), new.counted()
	s := analysis.Sample{All: analysis.Pair{Stable: before.sum(), Candidate: after.sum()}}
	for i, r := range c.changes.between(before, after) {
		p := analysis.Pair{Stable: before.counts(r.old), Candidate: after.counts(r.new)}
		if i >= most {
			s.More++
			s.Rest.Merge(&p)
			continue
		}
		if s.Routes == nil {
			s.Routes = map[string]analysis.Pair{}
		}
		s.Routes[r.new.name] = p
	}
	return s
}

// counted may be called on a nil Engine.
func (e *Engine) counted() *engineCounters {
	if e == nil {
		return nil
	}
	return e.counters
}

// sum is of all requests of an engine. It may be called on nil.
func (ec *engineCounters) sum() analysis.Counts {
	var sum Totals
	if ec == nil {
		return analysis.Counts{}
	}
	ec.addTo(&sum)
	return sum.Counts()
}

// counts is of one route, which may be nil.
func (ec *engineCounters) counts(e *entry) analysis.Counts {
	if ec == nil || e == nil {
		return analysis.Counts{}
	}
	var t Totals
	if rc := ec.routes[e.part.slot][e.index].Load(); rc != nil {
		rc.addTo(&t)
	}
	return t.Counts()
}

// A changedRoute is a route of the newer of two engines; old is nil when the
// older one does not have it.
type changedRoute struct{ old, new *entry }

// A changeCache keeps what differs between the two engines that were compared
// last.
type changeCache struct {
	mu       sync.Mutex
	old, new *engineCounters
	routes   []changedRoute
}

func (c *changeCache) between(old, new *engineCounters) []changedRoute {
	if new == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.old != old || c.new != new {
		c.old, c.new, c.routes = old, new, changedRoutes(old, new)
	}
	return c.routes
}

// keepIf lets go of engines that are to be forgotten.
func (c *changeCache) keepIf(keep func(*engineCounters) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.new != nil && !keep(c.new) || c.old != nil && !keep(c.old) {
		c.old, c.new, c.routes = nil, nil, nil
	}
}

// changedRoutes lists what of new is changed or not in old, by name.
func changedRoutes(old, new *engineCounters) []changedRoute {
	modules := map[string]*part{}
	if old != nil {
		for _, p := range old.parts {
			modules[p.module.Name] = p
		}
	}
	var out []changedRoute
	for _, p := range new.parts {
		was := modules[p.module.Name]
		switch {
		case was == nil:
			for i := range p.entries {
				out = append(out, changedRoute{new: &p.entries[i]})
			}
		case was != p && was.module != p.module:
			out = appendChanged(out, was, p)
		}
	}
	slices.SortFunc(out, func(a, b changedRoute) int { return strings.Compare(a.new.name, b.new.name) })
	return out
}

// appendChanged compares two revisions of a module.
func appendChanged(out []changedRoute, was, is *part) []changedRoute {
	upstreams := differing(was.module.Upstreams, is.module.Upstreams, func(u *route.Upstream) string { return u.Name })
	named := differing(was.module.Middlewares, is.module.Middlewares, func(m *route.NamedMiddleware) string { return m.Name })
	touched := func(r *route.Route) bool {
		return r.Action.Proxy != nil && upstreams[r.Action.Proxy.Upstream] ||
			slices.ContainsFunc(r.Middlewares, func(m route.Middleware) bool { return m.Use != "" && named[m.Use] })
	}
	byName := make(map[string]*entry, len(was.entries))
	for i := range was.entries {
		byName[was.entries[i].route.Name] = &was.entries[i]
	}
	for i := range is.entries {
		e := &is.entries[i]
		before := byName[e.route.Name]
		if before == nil || !sameRoute(before.route, e.route) || touched(e.route) {
			out = append(out, changedRoute{before, e})
		}
	}
	return out
}

// differing returns the names of what is not in both lists, and alike.
func differing[T any](a, b []T, name func(*T) string) map[string]bool {
	out := map[string]bool{}
	old := make(map[string]*T, len(a))
	for i := range a {
		old[name(&a[i])] = &a[i]
	}
	for i := range b {
		n := name(&b[i])
		if was := old[n]; was == nil || !reflect.DeepEqual(was, &b[i]) {
			out[n] = true
		}
	}
	return out
}

// sameRoute tells whether two normalized routes are defined alike. It is spelt
// out because a table has very many.
func sameRoute(a, b *route.Route) bool {
	return a.Name == b.Name && a.Path == b.Path && a.Prefix == b.Prefix && a.Priority == b.Priority &&
		slices.Equal(a.Hosts, b.Hosts) && slices.Equal(a.Methods, b.Methods) &&
		slices.Equal(a.Headers, b.Headers) && slices.Equal(a.Query, b.Query) && slices.Equal(a.Cookies, b.Cookies) &&
		slices.Equal(a.Clients, b.Clients) && slices.Equal(a.Middlewares, b.Middlewares) && sameAction(&a.Action, &b.Action)
}

func sameAction(a, b *route.Action) bool {
	switch {
	case (a.Proxy == nil) != (b.Proxy == nil) || (a.Redirect == nil) != (b.Redirect == nil) || (a.Respond == nil) != (b.Respond == nil):
		return false
	case a.Proxy != nil && *a.Proxy != *b.Proxy || a.Redirect != nil && *a.Redirect != *b.Redirect:
		return false
	case a.Respond == nil:
		return true
	}
	return a.Respond.Status == b.Respond.Status && a.Respond.Body == b.Respond.Body && slices.Equal(a.Respond.Headers, b.Respond.Headers)
}
