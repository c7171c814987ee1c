package route

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// checkContested warns where a route of one module takes requests that a route
// of another would have had: both could match, and the order of matching puts the
// first before the second. It gives one warning for each module and each route that
// it takes from.
//
// The routes of a host stand in a tree of their segments, and each route is
// walked through the trees of the hosts that take what its own host takes, below
// no node that holds its own module alone. A host that no second module has a
// part in has no tree. A table made to be slow is given up after maxContestSteps.
func (v *validator) checkContested() {
	c := &contest{found: make(map[contestKey]*contested), steps: maxContestSteps}
	c.plant(v)
	v.entries(func(x entry) {
		for _, t := range c.trees[x.host].targets {
			c.walk(t, x)
		}
	})
	list := make([]*contested, 0, len(c.found))
	for _, f := range c.found {
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b *contested) int {
		return cmp.Or(cmp.Compare(a.winner.ix.number, b.winner.ix.number), cmp.Compare(a.winner.route, b.winner.route),
			cmp.Compare(a.loser.ix.number, b.loser.ix.number), cmp.Compare(a.loser.route, b.loser.route))
	})
	for _, f := range list[:min(len(list), MaxContested)] {
		w := &f.winner
		message := "takes traffic that " + f.loser.described() + " would have had"
		if f.more > 0 {
			message += fmt.Sprintf(", as do %d more routes of this module", f.more)
		}
		v.add(Problem{
			Severity: Warning, Place: w.ix.module.Source.Place(w.field()), Module: w.ix.module.Name, Route: w.r().Name, Field: w.field(),
			Message: message, Hint: "nothing to do if both teams mean it",
		})
	}
	if len(list) > MaxContested || c.steps <= 0 {
		v.add(Problem{Severity: Warning, Message: "more traffic is taken between modules than is listed", Hint: "give modules hosts or prefixes of their own"})
	}
}

// contest is the state of one checkContested.
type contest struct {
	trees map[string]*contestTree // by host pattern
	found map[contestKey]*contested
	steps int
}

// contestKey is a module and the route it takes traffic from.
type contestKey struct{ winner, module, route int }

type contested struct {
	winner, loser entry // the first winner
	last, more    int   // routes of the winner's module: the last found, how many beside the first
}

// Which modules have a part in a tree or in what is below a node: the number of
// the only one, or one of these.
const (
	moduleNone = -1
	moduleMany = -2
)

func joinModule(a, b int) int {
	switch {
	case a == moduleNone || a == b:
		return b
	case b == moduleNone:
		return a
	default:
		return moduleMany
	}
}

// A contestTree holds the routes of one host pattern by their segments.
type contestTree struct {
	host     string
	module   int
	uniform  bool // all priorities are equal, so the path decides
	size     int
	priority int
	needed   bool
	targets  []*contestTree // whose routes those of this host can take traffic from
	nodes    []contestNode
	children map[edge]int32
	rivals   []rival // 0 is none
}

// edge leads from a node by a literal or, with braces for the parameters, by a
// mixed segment.
type edge struct {
	from int32
	text string
}

// contestNode is a place in a tree; indexes are into its slices, 0 is none.
type contestNode struct {
	module  int
	literal int32    // the first of its literal children
	mixed   int32    // of its mixed ones
	sibling int32    // the next of its own kind under its parent
	param   int32    // the child by a parameter
	segment *Segment // of a literal or mixed child, what leads to it
	exact   int32    // routes that end here, that end in a slash, and that go on
	slash   int32
	rest    int32
}

// A rival is an entry with its key, which is made when it is first asked for:
// most routes are never compared.
type rival struct {
	entry
	made *Key
	then int32 // the next of the same list
}

func (y *rival) order() *Key {
	if y.made == nil {
		k := y.key()
		y.made = &k
	}
	return y.made
}

// plant finds which hosts meet, and makes the trees that are needed.
func (c *contest) plant(v *validator) {
	c.trees = make(map[string]*contestTree)
	v.entries(func(e entry) {
		t := c.trees[e.host]
		if t == nil {
			t = &contestTree{host: e.host, module: moduleNone, uniform: true, priority: e.r().Priority}
			c.trees[e.host] = t
		}
		t.size++
		t.module = joinModule(t.module, e.ix.number)
		t.uniform = t.uniform && t.priority == e.r().Priority
	})
	for host, t := range c.trees {
		for _, general := range wider(host) {
			if g := c.trees[general]; g != nil && joinModule(g.module, t.module) == moduleMany {
				t.targets = append(t.targets, g)
				g.needed = true
			}
		}
	}
	v.entries(func(e entry) {
		if t := c.trees[e.host]; t.needed {
			t.insert(e)
		}
	})
}

// wider returns the host patterns that take all a pattern takes, itself first.
func wider(host string) []string {
	if host == "" {
		return []string{""}
	}
	all := []string{host}
	name := strings.TrimPrefix(host, "*.")
	for i := range len(name) {
		if name[i] == '.' && i > 0 {
			all = append(all, "*"+name[i:])
		}
	}
	return append(all, "")
}

func (t *contestTree) insert(e entry) {
	if t.nodes == nil {
		t.nodes = make([]contestNode, 2, 2+2*t.size) // none and the root
		t.nodes[1].module = moduleNone
		t.rivals = make([]rival, 1, 1+t.size)
		t.children = make(map[edge]int32, t.size)
	}
	p, at := e.pattern(), int32(1)
	t.nodes[at].module = joinModule(t.nodes[at].module, e.ix.number)
	for i := range p.Segments {
		at = t.child(at, &p.Segments[i])
		t.nodes[at].module = joinModule(t.nodes[at].module, e.ix.number)
	}
	n := &t.nodes[at]
	list := &n.exact
	switch {
	case p.CatchAll, p.IsPrefix:
		list = &n.rest
	case p.TrailingSlash:
		list = &n.slash
	}
	t.rivals = append(t.rivals, rival{entry: e, then: *list})
	*list = int32(len(t.rivals) - 1) // bounded by MaxRoutesOnHosts
}

// child returns the node a segment leads to, made if need be.
func (t *contestTree) child(from int32, seg *Segment) int32 {
	kind := seg.Kind()
	if kind == Parameter {
		if t.nodes[from].param == 0 {
			t.nodes = append(t.nodes, contestNode{module: moduleNone})
			t.nodes[from].param = int32(len(t.nodes) - 1)
		}
		return t.nodes[from].param
	}
	text := seg.Parts[0].Literal
	if kind == Mixed {
		text = ""
		for _, part := range seg.Parts {
			if part.Literal == "" {
				text += "{"
			}
			text += part.Literal
		}
	}
	key := edge{from, text}
	if to, ok := t.children[key]; ok {
		return to
	}
	to := int32(len(t.nodes))
	n := contestNode{module: moduleNone, segment: seg}
	if kind == Mixed {
		n.sibling, t.nodes[from].mixed = t.nodes[from].mixed, to
	} else {
		n.sibling, t.nodes[from].literal = t.nodes[from].literal, to
	}
	t.nodes = append(t.nodes, n)
	t.children[key] = to
	return to
}

// walk finds the routes of a tree that x takes requests from.
func (c *contest) walk(t *contestTree, x entry) {
	w := contestWalk{contest: c, tree: t, x: rival{entry: x}, pattern: x.pattern()}
	// Where host or priority decide, the path does not.
	w.from(1, 0, t.host != x.host || !t.uniform)
}

type contestWalk struct {
	*contest
	tree    *contestTree
	x       rival
	pattern *Pattern
}

// from goes on at a node with the pattern's segment i. won says that the routes
// below may lose to x whatever their paths are from here on; before that, x can
// only win by a segment that is more specific.
func (w *contestWalk) from(at int32, i int, won bool) {
	n := &w.tree.nodes[at]
	if at == 0 || n.module == w.x.ix.number || w.steps <= 0 {
		return
	}
	w.steps--
	p := w.pattern
	ends := i == len(p.Segments)
	w.meet(n.rest, func(y *rival) bool {
		return y.pattern().IsPrefix || !ends || p.TrailingSlash || p.CatchAll || p.IsPrefix
	})
	switch {
	case !ends:
		w.segment(n, at, i, won)
	case p.CatchAll || p.IsPrefix:
		if p.IsPrefix {
			w.meet(n.exact, nil)
		}
		w.meet(n.slash, nil)
		if won {
			w.below(n)
		}
	case p.TrailingSlash:
		w.meet(n.slash, nil)
	default:
		w.meet(n.exact, nil)
	}
}

// segment follows every child that the pattern's segment i shares a text with.
func (w *contestWalk) segment(n *contestNode, at int32, i int, won bool) {
	seg := &w.pattern.Segments[i]
	kind := seg.Kind()
	w.from(n.param, i+1, won || kind != Parameter)
	for to := n.mixed; to != 0; to = w.tree.nodes[to].sibling {
		w.steps--
		other := w.tree.nodes[to].segment
		more := kind == Literal || kind == Mixed && seg.LiteralLen() > other.LiteralLen()
		less := kind == Parameter || kind == Mixed && seg.LiteralLen() < other.LiteralLen()
		if (won || !less) && overlap(seg, other) {
			w.from(to, i+1, won || more)
		}
	}
	if kind == Literal {
		w.from(w.tree.children[edge{at, seg.Parts[0].Literal}], i+1, won)
		return
	}
	if !won {
		return
	}
	for to := n.literal; to != 0 && w.steps > 0; to = w.tree.nodes[to].sibling {
		w.steps--
		if overlap(seg, w.tree.nodes[to].segment) {
			w.from(to, i+1, won)
		}
	}
}

// below meets every route under a node.
func (w *contestWalk) below(n *contestNode) {
	for _, to := range [...]int32{n.param, n.mixed, n.literal} {
		for ; to != 0 && w.steps > 0; to = w.tree.nodes[to].sibling {
			w.steps--
			if c := &w.tree.nodes[to]; c.module != w.x.ix.number {
				w.meet(c.exact, nil)
				w.meet(c.slash, nil)
				w.meet(c.rest, nil)
				w.below(c)
			}
		}
	}
}

// meet notes which routes of a list lose to x. Their paths are known to overlap, if
// they pass the filter.
func (w *contestWalk) meet(list int32, filter func(*rival) bool) {
	for ; list != 0 && w.steps > 0; list = w.tree.rivals[list].then {
		y := &w.tree.rivals[list]
		w.steps--
		if y.ix == w.x.ix || filter != nil && !filter(y) || !w.beats(y) || closerHost(y, w.x.host) {
			continue
		}
		key := contestKey{w.x.ix.number, y.ix.number, y.route}
		switch f := w.found[key]; {
		case f == nil:
			w.found[key] = &contested{winner: w.x.entry, loser: y.entry, last: w.x.route}
		case f.last != w.x.route:
			f.last = w.x.route
			f.more++
		}
	}
}

// beats tells whether x comes before y for some method that both take, and
// their conditions may both hold.
func (w *contestWalk) beats(y *rival) bool {
	rx, ry := w.x.r(), y.r()
	if exclude(rx, ry) {
		return false
	}
	if commonMethod(rx.Methods, ry.Methods) && CompareTie("GET", w.x.order(), y.order()) < 0 {
		return true
	}
	return takesHead(rx.Methods) && takesHead(ry.Methods) && CompareTie("HEAD", w.x.order(), y.order()) < 0
}

// closerHost tells whether y has another host pattern that takes all of host,
// before the one at hand: requests for host find y by that one.
func closerHost(y *rival, host string) bool {
	if y.host == host || len(y.r().Hosts) < 2 {
		return false
	}
	for _, h := range wider(host) {
		if h == y.host {
			return false
		}
		if slices.Contains(y.r().Hosts, h) {
			return true
		}
	}
	return false
}

// commonMethod tells whether two routes take some method other than HEAD.
func commonMethod(a, b []string) bool {
	switch {
	case len(a) == 0 && len(b) == 0:
		return true
	case len(a) == 0:
		return len(b) > 1 || b[0] != "HEAD"
	case len(b) == 0:
		return len(a) > 1 || a[0] != "HEAD"
	}
	for _, m := range a {
		if m != "HEAD" && slices.Contains(b, m) {
			return true
		}
	}
	return false
}

func takesHead(methods []string) bool {
	return len(methods) == 0 || slices.Contains(methods, "HEAD") || slices.Contains(methods, "GET")
}
