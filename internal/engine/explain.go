package engine

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"routerd.dev/internal/route"
)

// An Explanation says how a request would be decided and why.
type Explanation struct {
	Route      string            `json:"route,omitempty"` // module/name; absent when no route takes it
	Params     map[string]string `json:"params"`          // decoded
	Status     int               `json:"status"`          // of the answer without a route; of a respond or redirect action; 0 when an upstream says
	Revision   int64             `json:"revision,omitempty"`
	Action     string            `json:"action,omitempty"` // such as "proxy users"
	Path       string            `json:"path,omitempty"`   // in the form that is matched
	Allow      []string          `json:"allow,omitempty"`  // with 405
	Why        string            `json:"why,omitempty"`    // with a status that no route gave
	Considered []Considered      `json:"considered"`       // in the order of matching
}

// A Considered is one route that could take a request with this path.
type Considered struct {
	Route   string `json:"route"`
	Host    string `json:"host"` // the pattern that took the request's; "any" for a route without one
	Methods string `json:"methods"`
	Path    string `json:"path"`
	Verdict string `json:"verdict"` // "won", "lost" (it would have served without the winner), or "no"
	Why     string `json:"why"`
}

// Explain says what Decide says of h, and for each route whose pattern can
// take the path, why it won or lost. It is for people: it allocates.
func (e *Engine) Explain(h *Head) Explanation {
	var d Decision
	e.Decide(h, &d)
	x := Explanation{Status: d.Status, Revision: e.ref.Number, Params: map[string]string{}, Considered: []Considered{}}
	if d.Status == http.StatusBadRequest {
		x.Why = d.Fault.Error()
		return x
	}
	d.readPath(h) // which Decide often need not
	x.Path = d.path
	if d.entry != nil {
		x.Route = d.Name
		x.Action, x.Status = actionOf(d.Route)
		for _, p := range d.Params {
			x.Params[p.Name] = p.Value
		}
	}
	switch d.Status {
	case http.StatusMethodNotAllowed:
		x.Allow = e.Allow(h, &d)
		x.Why = "a route would take it with another method: " + strings.Join(x.Allow, ", ")
	case http.StatusNotFound:
		x.Why = "no route takes it, with any method"
	}
	var winner *hostTree
	for t := range e.treesFor(route.FoldHost(h.Host)) {
		var entries []*entry
		t.eachLeaf(&d, func(l *leaf) { entries = slices.AppendSeq(entries, l.entries()) })
		slices.SortFunc(entries, func(a, b *entry) int {
			ka, kb := a.key(t.pattern), b.key(t.pattern)
			return route.Compare(h.Method, &ka, &kb)
		})
		for _, en := range entries {
			if en == d.entry && winner != nil {
				continue // it won by another of its hosts
			}
			if en == d.entry {
				winner = t
			}
			x.Considered = append(x.Considered, en.explain(h, &d, t, t == winner))
		}
	}
	return x
}

// Allow lists the methods with which some route would win, sorted. It is for a
// Decision of 405, made by e of h.
func (e *Engine) Allow(h *Head, d *Decision) []string {
	var names []string
	for t := range e.treesFor(route.FoldHost(h.Host)) {
		t.eachLeaf(d, func(l *leaf) {
			for en := range l.entries() {
				if en.takesPath(d) && en.takesHead(h, d) {
					names = append(names, en.route.Methods...)
				}
			}
		})
	}
	if slices.Contains(names, "GET") {
		names = append(names, "HEAD")
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// eachLeaf calls f for every leaf of t that d's path reaches.
func (t *hostTree) eachLeaf(d *Decision, f func(*leaf)) {
	path := d.treePath(t)
	look := func(trees []tree, path string) {
		for i := range trees {
			if l := d.lookup.find(t, trees[i].name, path); l != nil {
				f(l)
			}
		}
	}
	if d.n == 0 {
		if t.root != nil {
			f(t.root)
		}
	} else if set := d.set(t); d.n < len(set) {
		look(set[d.n], path[:d.at[d.n]])
	}
	for n := min(d.n, len(t.under)-1); n > 0; n-- {
		look(t.under[n], path[:d.at[n]])
	}
	if t.all != nil {
		f(t.all)
	}
}

func (e *entry) key(host string) route.Key {
	pattern, _ := e.route.Pattern() // it was compiled
	return route.NewKey(e.route, &pattern, host, e.part.module.Name, int(e.index))
}

func actionOf(r *route.Route) (what string, status int) {
	switch a := r.Action; {
	case a.Proxy != nil:
		return "proxy " + a.Proxy.Upstream, 0
	case a.Redirect != nil:
		return "redirect " + a.Redirect.To, a.Redirect.Status
	default:
		return "respond", a.Respond.Status
	}
}

// explain says what became of e as a route of t; sameHost that the winner is
// one of t too.
func (e *entry) explain(h *Head, d *Decision, t *hostTree, sameHost bool) Considered {
	c := Considered{Route: e.name, Host: cmp.Or(t.pattern, "any"), Methods: "any", Path: e.route.Path, Verdict: "no"}
	if len(e.route.Methods) > 0 {
		c.Methods = strings.Join(e.route.Methods, ",")
	}
	if e.route.Prefix != "" {
		c.Path = e.route.Prefix + " (prefix)"
	}
	switch {
	case !e.takesPath(d):
		c.Why = "the path does not fit"
	case !e.takesMethod(methodBit(h.Method), h.Method):
		c.Why = fmt.Sprintf("takes %s, not %s", c.Methods, h.Method)
	default:
		if c.Why = e.whyNot(h, d); c.Why != "" {
			break
		}
		if e == d.entry {
			c.Verdict, c.Why = "won", "first in the order of matching"
			break
		}
		why := "its host is more specific"
		if sameHost {
			why = whyAfter(d.entry, e)
		}
		c.Verdict, c.Why = "lost", "comes after "+d.entry.name+": "+why
	}
	return c
}

// whyNot names the condition that does not hold; empty when all do.
func (e *entry) whyNot(h *Head, d *Decision) string {
	if e.conds == nil {
		return ""
	}
	switch c := e.conds.fails(h, d).(type) {
	case *condition:
		return c.String() + " does not hold"
	case *conditions:
		if !h.Client.IsValid() {
			return "the client's address is not known"
		}
		return fmt.Sprintf("client %s is in none of the ranges", h.Client)
	default:
		return ""
	}
}

// whyAfter says by which rule b comes after a on one host pattern.
func whyAfter(a, b *entry) string {
	switch {
	case a.priority != b.priority:
		return fmt.Sprintf("priority %d over %d", a.priority, b.priority)
	case a.rank != b.rank:
		return "its path is more specific"
	case len(a.route.Methods) > 0 && len(b.route.Methods) == 0:
		return "it names methods"
	case a.methods&bitLent != b.methods&bitLent:
		return "it names HEAD"
	case compareConditions(a, b) != 0:
		return "it has more conditions"
	case a.part != b.part:
		return "its module's name comes first"
	default:
		return "it is written first"
	}
}

// String shows the condition as a reader of the route file knows it. Values
// are shown: literal secrets are not allowed in route files.
func (c *condition) String() string {
	switch c.Op {
	case route.OpPresent:
		return c.Name + " present"
	case route.OpEqual:
		return fmt.Sprintf("%s = %q", c.Name, c.Value)
	case route.OpPrefix:
		return fmt.Sprintf("%s begins with %q", c.Name, c.Value)
	case route.OpRegexp:
		return fmt.Sprintf("%s matches %q", c.Name, c.Value)
	default:
		return c.Name
	}
}
