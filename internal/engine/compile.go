package engine

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"routerd.dev/internal/route"
	"routerd.dev/internal/version"
)

// Options are a compile's. The zero value works.
type Options struct {
	// Previous is an engine whose parts are taken over where they are the same:
	// modules by their pointer, host trees whose modules are all the same.
	// It must have been compiled with the same Library.
	Previous *Engine

	Budget Budget
}

// An Engine is a revision compiled and ready to serve.
type Engine struct {
	ref   version.Ref
	lib   *Library // nil: it can decide, not serve
	parts []*part  // by module name

	exact   map[string]*hostTree
	suffix  map[string]*hostTree // "*.example.com" by ".example.com"
	longest int                  // the length of suffix's longest key
	anyHost *hostTree            // may be nil
	hosts   []*hostTree          // all, in the order they are tried

	routes   int
	counters *engineCounters // nil without a Library
	stats    Stats
}

// Stats is what a compile did.
type Stats struct {
	Modules, ModulesReused int
	Hosts, HostsReused     int
	Routes                 int
	Bytes                  int64 // estimate of what the engine takes, reused parts included
}

// Ref returns which snapshot the engine serves.
func (e *Engine) Ref() version.Ref { return e.ref }

// As returns e under another number: the same snapshot was published again. It
// shares everything with e, also what is counted, whose series keep e's number.
func (e *Engine) As(number int64) *Engine {
	if e == nil || e.ref.Number == number {
		return e
	}
	again := *e
	again.ref.Number = number
	return &again
}

// Routes returns how many routes the engine has.
func (e *Engine) Routes() int { return e.routes }

// Stats returns what the compile did.
func (e *Engine) Stats() Stats { return e.stats }

// Release forgets the engine's counters. The engine must serve nothing any
// more; Library.Keep does the same for every engine it is not given.
func (e *Engine) Release() {
	if e.lib != nil && e.counters != nil {
		e.lib.Counters.drop(e.counters)
	}
}

// Compile makes a normalized table runnable. lib holds what outlives engines;
// without one the engine can decide, explain and run tests, but not serve. The
// error is route.Problems when the table is at fault, else ctx's. A panic
// within is a problem too (I6).
//
// It checks what it relies on, not all that Check does. The table's modules
// are kept and must not be changed any more.
func Compile(ctx context.Context, ref version.Ref, t *route.Table, lib *Library, o Options) (*Engine, error) {
	c := &compiler{
		Engine: &Engine{ref: ref, lib: lib, exact: map[string]*hostTree{}, suffix: map[string]*hostTree{}},
		pace:   newPacer(ctx, o.Budget),
		table:  t,
	}
	if o.Previous != nil && o.Previous.lib == lib {
		c.previous = o.Previous
	}
	if lib != nil {
		lib.begin(c)
	}
	err := c.run()
	if lib != nil {
		if ended := lib.end(c); err == nil {
			err = ended
		}
	}
	if err != nil {
		return nil, err
	}
	return c.Engine, nil
}

type compiler struct {
	*Engine
	table    *route.Table
	previous *Engine
	pace     *pacer
	where    string // what is being worked on, should it panic
	problems route.Problems
}

func (c *compiler) run() (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = append(c.problems, route.Problem{
				Message: fmt.Sprintf("%s cannot be compiled: %v", c.where, v),
				Hint:    "this is a defect of routerd, please report it with the table",
			})
		}
	}()
	if err := c.buildParts(); err != nil {
		return err
	}
	if err := c.problems.Err(); err != nil {
		return err
	}
	if err := c.buildHosts(); err != nil {
		return err
	}
	if err := c.problems.Err(); err != nil {
		return err
	}
	for _, p := range c.parts {
		p.shapes = nil
	}
	c.stats.Modules, c.stats.Hosts, c.stats.Routes = len(c.parts), len(c.hosts), c.routes
	c.stats.Bytes = c.pace.used
	if c.lib != nil {
		c.counters = c.lib.Counters.add(c.Engine)
	}
	return nil
}

func (c *compiler) buildParts() error {
	var old map[*route.Module]*part
	slots := 0
	used := map[int]bool{}
	if c.previous != nil {
		old = make(map[*route.Module]*part, len(c.previous.parts))
		for _, p := range c.previous.parts {
			old[p.module] = p
		}
	}
	for _, m := range c.table.Modules {
		c.where = "module " + m.Name
		if c.routes += len(m.Routes); c.routes > route.MaxRoutes {
			c.problems = append(c.problems, route.Problem{Module: m.Name, Place: m.Source.Place(""), Message: fmt.Sprintf("the table has more than %d routes", route.MaxRoutes)})
			return nil
		}
		p, ok := old[m]
		if ok && !p.refers {
			c.pace.used += p.bytes
			c.stats.ModulesReused++
			used[p.slot] = true
		} else {
			var problems route.Problems
			var err error
			if p, problems, err = buildPart(m, c.lib, c.pace); err != nil {
				return err
			}
			c.problems = append(c.problems, problems...)
			if p == nil {
				return nil
			}
			p.slot = -1
		}
		c.parts = append(c.parts, p)
	}
	for _, p := range c.parts {
		if p.slot >= 0 {
			continue
		}
		for used[slots] {
			slots++
		}
		p.slot = slots
		slots++
	}
	slices.SortFunc(c.parts, func(a, b *part) int { return strings.Compare(a.module.Name, b.module.Name) })
	return nil
}

func (c *compiler) buildHosts() error {
	type place struct {
		parts []*part
		count int
	}
	places := map[string]*place{}
	for _, p := range c.parts {
		for i := range p.hosts {
			h := &p.hosts[i]
			at := places[h.pattern]
			if at == nil {
				at = new(place)
				places[h.pattern] = at
			}
			at.parts = append(at.parts, p)
			at.count += len(h.routes)
		}
	}
	if len(places) > route.MaxHostPatterns {
		c.problems = append(c.problems, route.Problem{Message: fmt.Sprintf("the table has more than %d hosts", route.MaxHostPatterns)})
		return nil
	}
	for _, pattern := range slices.SortedFunc(maps.Keys(places), route.CompareHosts) {
		c.where = fmt.Sprintf("host %q", pattern)
		at := places[pattern]
		if t := c.previous.tree(pattern); t != nil && slices.Equal(t.parts, at.parts) {
			c.pace.used += t.bytes
			c.stats.HostsReused++
			c.addTree(t)
			continue
		}
		bytes := bytesPerHost + int64(at.count)*bytesPerPlace
		if !c.pace.take(bytes) {
			c.problems = append(c.problems, overBudget(at.parts[len(at.parts)-1].module, c.pace))
			return nil
		}
		t, err := buildHost(pattern, itemsOf(pattern, at.parts, at.count), c.pace)
		var over *tooMany
		switch {
		case errors.As(err, &over):
			m, field := over.entry.part.module, fmt.Sprintf("routes[%d]", over.entry.index)
			c.problems = append(c.problems, route.Problem{
				Module: m.Name, Route: over.entry.route.Name, Field: field, Place: m.Source.Place(field), Message: over.what,
				Hint: "tell the routes apart by host or by literal segments",
			})
			continue
		case err != nil:
			return err
		}
		t.parts, t.bytes = at.parts, bytes
		c.addTree(t)
	}
	return nil
}

// itemsOf lists the routes of a host pattern with their shapes, which parts of
// an earlier engine have forgotten.
func itemsOf(pattern string, parts []*part, count int) []item {
	items := make([]item, 0, count)
	var again shaper
	for _, p := range parts {
		at, _ := slices.BinarySearchFunc(p.hosts, pattern, func(h partHost, s string) int { return strings.Compare(h.pattern, s) })
		for _, i := range p.hosts[at].routes {
			e := &p.entries[i]
			var s *shape
			if p.shapes != nil {
				s = &p.shapes[i]
			} else {
				found, _, _, _ := again.shape(e.route) // it was compiled once
				s = &found
			}
			items = append(items, item{entry: e, shape: s})
		}
	}
	return items
}

func (c *compiler) addTree(t *hostTree) {
	c.hosts = append(c.hosts, t)
	switch {
	case t.pattern == "":
		c.anyHost = t
	case t.pattern[0] == '*':
		c.suffix[t.pattern[1:]] = t
		c.longest = max(c.longest, len(t.pattern)-1)
	default:
		c.exact[t.pattern] = t
	}
}

// tree returns the tree of a host pattern, nil when there is none. It may be
// called on a nil Engine.
func (e *Engine) tree(pattern string) *hostTree {
	switch {
	case e == nil:
		return nil
	case pattern == "":
		return e.anyHost
	case pattern[0] == '*':
		return e.suffix[pattern[1:]]
	default:
		return e.exact[pattern]
	}
}

// treesFor gives the trees that a host's requests are looked up in, in order.
// host is folded.
func (e *Engine) treesFor(host string) iter.Seq[*hostTree] {
	return func(yield func(*hostTree) bool) {
		if t := e.exact[host]; t != nil && !yield(t) {
			return
		}
		if len(e.suffix) > 0 && !strings.HasPrefix(host, ".") {
			// Nobody bounds the length of a Host but that of the whole head.
			for i := max(0, len(host)-e.longest); i < len(host); i++ {
				if host[i] != '.' {
					continue
				}
				if t := e.suffix[host[i:]]; t != nil && !yield(t) {
					return
				}
			}
		}
		if e.anyHost != nil {
			yield(e.anyHost)
		}
	}
}
