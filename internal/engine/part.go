package engine

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/route"
)

// A part is one module made ready. It never changes once compiled, and is
// taken over by the next engine that has the same module.
type part struct {
	module  *route.Module
	entries []entry
	hosts   []partHost // by pattern

	heads     []*middleware.Head // all in use, for the library
	upstreams map[string]*proxy.Upstream
	refers    bool // a config refers to what the instance has, which may change
	bytes     int64

	slot   int     // its counters' place in every engine that has it
	shapes []shape // by entry; only while the first engine is compiled
}

// A partHost is the routes of a module that name a host pattern.
type partHost struct {
	pattern string
	routes  []int32
}

// a partBuilder makes a part, and collects what is wrong with the module.
type partBuilder struct {
	*part
	lib      *Library
	pace     *pacer
	problems route.Problems
	named    map[string]namedHead
	shaper   shaper
	params   map[string][]string
	hostAt   map[string]int
	exprs    map[string]*regexp.Regexp // by their text
	over     bool                      // over the memory budget, which is reported
	names    string                    // of the entries to come, one after the other: one text for all
}

type namedHead struct {
	*route.NamedMiddleware
	head *middleware.Head
}

// buildPart makes a module ready. Problems are returned in the order of the
// module's fields; the error is the context's.
func buildPart(m *route.Module, lib *Library, pace *pacer) (*part, route.Problems, error) {
	b := &partBuilder{
		part: &part{module: m, upstreams: map[string]*proxy.Upstream{}},
		lib:  lib, pace: pace,
		named: map[string]namedHead{}, params: map[string][]string{}, hostAt: map[string]int{}, exprs: map[string]*regexp.Regexp{},
	}
	b.bytes = int64(len(m.Routes)) * bytesPerRoute
	if !pace.take(b.bytes) {
		return nil, route.Problems{overBudget(m, pace)}, nil
	}
	b.buildUpstreams()
	b.buildNamed()
	b.entries = make([]entry, len(m.Routes))
	b.shapes = make([]shape, len(m.Routes))
	b.names = entryNames(m)
	for i := range m.Routes {
		if err := pace.step(); err != nil {
			return nil, nil, err
		}
		if b.buildEntry(i); b.over {
			return nil, b.problems, nil
		}
	}
	slices.SortFunc(b.hosts, func(a, b partHost) int { return strings.Compare(a.pattern, b.pattern) })
	return b.part, b.problems, nil
}

// entryNames writes the names of a module's routes, module/name, one after the
// other.
func entryNames(m *route.Module) string {
	size := 0
	for i := range m.Routes {
		size += len(m.Name) + 1 + len(m.Routes[i].Name)
	}
	var all strings.Builder
	all.Grow(size)
	for i := range m.Routes {
		all.WriteString(m.Name)
		all.WriteByte('/')
		all.WriteString(m.Routes[i].Name)
	}
	return all.String()
}

func overBudget(m *route.Module, p *pacer) route.Problem {
	return route.Problem{
		Module: m.Name, Place: m.Source.Place(""),
		Message: fmt.Sprintf("with this module the revision takes about %d MiB of memory, over the %d MiB allowed", p.used>>20, p.memory>>20),
		Hint:    "name fewer hosts in a route, or raise the instance's memory budget",
	}
}

// report adds a problem of the module; routeAt is the route's index, -1 when
// it is not of a route.
func (b *partBuilder) report(routeAt int, field, message, hint string) {
	p := route.Problem{Module: b.module.Name, Field: field, Message: message, Hint: hint, Place: b.module.Source.Place(field)}
	if routeAt >= 0 {
		p.Route = b.module.Routes[routeAt].Name
	}
	b.problems = append(b.problems, p)
}

func (b *partBuilder) buildUpstreams() {
	for i := range b.module.Upstreams {
		def := b.module.Upstreams[i]
		if b.lib == nil {
			b.upstreams[def.Name] = nil
			continue
		}
		u, err := b.lib.Upstreams.Upstream(def)
		if err != nil {
			b.report(-1, fmt.Sprintf("upstreams[%d]", i), err.Error(), "")
			continue
		}
		b.upstreams[def.Name] = u
	}
}

func (b *partBuilder) buildNamed() {
	for i := range b.module.Middlewares {
		m := &b.module.Middlewares[i]
		h := b.head(-1, fmt.Sprintf("middlewares[%d]", i), b.module.Name+"//"+m.Name, m.Kind, m.Config)
		b.named[m.Name] = namedHead{m, h}
	}
}

// head makes a middleware ready, or checks it when there is no library. scope
// names whose state it has.
func (b *partBuilder) head(routeAt int, field, scope, kind, config string) *middleware.Head {
	var (
		h  *middleware.Head
		ps []middleware.FieldProblem
	)
	if b.lib == nil {
		ps = middleware.Check(kind, config)
	} else {
		h, ps = b.lib.Middlewares.Head(scope, kind, config)
	}
	for _, p := range ps {
		b.report(routeAt, middlewareField(field, kind, p.Field), p.Message, p.Hint)
	}
	if h != nil {
		b.heads = append(b.heads, h)
	}
	b.refers = b.refers || strings.Contains(config, "${")
	return h
}

func middlewareField(at, kind, field string) string {
	if kind != "" {
		at += "." + kind
	}
	if field != "" {
		at += "." + field
	}
	return at
}

func (b *partBuilder) buildEntry(i int) {
	r, e := &b.module.Routes[i], &b.entries[i]
	n := len(b.module.Name) + 1 + len(r.Name)
	e.name, b.names = b.names[:n], b.names[n:]
	s, params, mixed, err := b.shaper.shape(r)
	if err != nil {
		field := "path"
		if r.Prefix != "" {
			field = "prefix"
		}
		b.report(i, fmt.Sprintf("routes[%d].%s", i, field), err.Error(), "")
		return
	}
	b.shapes[i] = s
	e.route, e.part, e.index = r, b.part, int32(i)
	e.priority, e.rank, e.params, e.mixed = int32(r.Priority), s.rank, params, mixed
	e.n, e.wildAt, e.mixedTo, e.rest = uint8(s.n), uint8(s.wildAt), uint8(s.mixedTo), s.rest
	e.methods, e.others = methodsOf(r.Methods)
	e.conds = b.conditions(i, r)
	e.simple = e.conds == nil && len(mixed) == 0 && s.rest != restCatchAll
	e.chain = b.chain(i, r, params)
	b.action(i, r, e)
	b.addHosts(i, r)
}

func (b *partBuilder) addHosts(i int, r *route.Route) {
	hosts := r.Hosts
	if len(hosts) == 0 {
		hosts = []string{""}
	}
	for _, h := range hosts {
		at, ok := b.hostAt[h]
		if !ok {
			at = len(b.hosts)
			b.hostAt[h] = at
			b.hosts = append(b.hosts, partHost{pattern: h})
		}
		b.hosts[at].routes = append(b.hosts[at].routes, int32(i))
	}
}

func (b *partBuilder) conditions(i int, r *route.Route) *conditions {
	if len(r.Headers)+len(r.Query)+len(r.Cookies)+len(r.Clients) == 0 {
		return nil
	}
	return &conditions{
		headers: b.compileConditions(i, "headers", r.Headers),
		query:   b.compileConditions(i, "query", r.Query),
		cookies: b.compileConditions(i, "cookies", r.Cookies),
		clients: r.Clients,
	}
}

func (b *partBuilder) compileConditions(i int, field string, cs []route.Condition) []condition {
	if len(cs) == 0 {
		return nil
	}
	out := make([]condition, len(cs))
	for j, c := range cs {
		out[j].Condition = c
		if c.Op != route.OpRegexp {
			continue
		}
		if b.over {
			break
		}
		expr, err := b.expr(c.Value)
		if err != nil {
			b.report(i, fmt.Sprintf("routes[%d].%s[%d]", i, field, j), err.Error(), "")
			continue
		}
		out[j].expr = expr
	}
	return out
}

// expr compiles an expression once for the module. What it takes has little
// to do with the length of its text.
func (b *partBuilder) expr(text string) (*regexp.Regexp, error) {
	if re := b.exprs[text]; re != nil {
		return re, nil
	}
	re, size, err := route.CompileRegexp(text)
	if err != nil {
		return nil, err
	}
	bytes := int64(size) * bytesPerInst
	b.bytes += bytes
	if !b.pace.take(bytes) {
		b.over = true
		b.problems = append(b.problems, overBudget(b.module, b.pace))
	}
	b.exprs[text] = re
	return re, nil
}

func (b *partBuilder) chain(i int, r *route.Route, params []param) []*middleware.Head {
	if len(r.Middlewares) == 0 {
		return nil
	}
	chain := make([]*middleware.Head, 0, len(r.Middlewares))
	for j := range r.Middlewares {
		m := &r.Middlewares[j]
		field := fmt.Sprintf("routes[%d].middlewares[%d]", i, j)
		kind, config := m.Kind, m.Config
		var h *middleware.Head
		if m.Use != "" {
			named, ok := b.named[m.Use]
			if !ok {
				b.report(i, field+".use", fmt.Sprintf("module %s has no middleware %q", b.module.Name, m.Use), "")
				continue
			}
			h, kind, config = named.head, named.Kind, named.Config
			field += ".use"
		} else {
			h = b.head(i, field, b.module.Name+"/"+r.Name+"["+strconv.Itoa(j)+"]", kind, config)
			field = middlewareField(field, kind, "")
		}
		b.checkParams(i, field, kind, config, params)
		if h != nil {
			chain = append(chain, h)
		}
	}
	return chain
}

// checkParams reports the parameters that a middleware names and the route's
// pattern has not.
func (b *partBuilder) checkParams(i int, field, kind, config string, params []param) {
	key := kind + " " + config
	names, ok := b.params[key]
	if !ok {
		names = middleware.Params(kind, config)
		b.params[key] = names
	}
	for _, name := range names {
		if !slices.ContainsFunc(params, func(p param) bool { return p.name == name }) {
			b.report(i, field, fmt.Sprintf("names the parameter {%s}, which the route's path has not", name), "")
		}
	}
}

func (b *partBuilder) action(i int, r *route.Route, e *entry) {
	switch a := r.Action; {
	case a.Proxy != nil:
		u, ok := b.upstreams[a.Proxy.Upstream]
		if !ok {
			b.report(i, fmt.Sprintf("routes[%d].proxy.upstream", i), fmt.Sprintf("module %s has no upstream %q", b.module.Name, a.Proxy.Upstream), "")
		}
		e.upstream = u
	case a.Redirect != nil:
		l, err := newLocation(a.Redirect.To, e.params)
		if err != nil {
			b.report(i, fmt.Sprintf("routes[%d].redirect.to", i), err.Error(), "")
		}
		e.location = l
	case a.Respond == nil:
		b.report(i, fmt.Sprintf("routes[%d]", i), "has no action", "give it one of proxy, respond and redirect")
	}
}
