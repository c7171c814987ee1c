package engine

import (
	"net/http"
	"net/netip"
	"strings"
	"unsafe"

	"routerd.dev/internal/middleware"
	"routerd.dev/internal/route"
)

// A Head is a request head, as far as it decides.
type Head struct {
	Method   string
	Host     string // as it came; deciding is quicker when route.FoldHost did not have to change it
	Path     string // raw, without the query
	RawQuery string // without "?"
	Header   Header // may be nil
	Client   netip.Addr

	Paths route.PathOptions // what the listener allows
}

// A Decision is what an engine says about a request head. It is used again for
// the next request, and must not be copied; the zero value is ready. It refers
// to the strings of the Head it was made of.
type Decision struct {
	// Status is 0 when a route won, else 400, 404 or 405.
	Status int

	Route  *route.Route       // nil unless a route won; not to be changed
	Name   string             // module/name of Route
	Params []middleware.Param // in the order of the pattern; valid until the next Decide
	Fault  error              // why the path was refused, with 400

	entry     *entry
	path      string       // canonical
	at        [maxAt]int32 // at[i]: where segment i begins, with its slash; at[n]: where the last ends
	n         int          // segments, at most maxAt-1 of which have their place in at
	slash     bool         // the path ends in a slash
	special   bool         // the path holds ":" or "*"
	nearMiss  bool         // some route would take the path with another method
	values    []string     // scratch for mixed segments
	query     pairs
	cookies   pairs
	translate []byte    // scratch for special paths
	tree      *hostTree // of the exact host
	asked     *tree     // was looked into for the path as it came
	answer    *leaf     // what was there
	lookup    lookup
}

// maxAt is one more than a pattern may have segments: what lies deeper in a
// request's path belongs to a prefix or catch-all.
const maxAt = route.MaxSegments + 2

// Decide says which route serves a request head, by the order of matching. It
// leaves its answer in d.
func (e *Engine) Decide(h *Head, d *Decision) {
	d.Status, d.Route, d.Name, d.Params, d.Fault = 0, nil, "", d.Params[:0], nil
	d.entry, d.nearMiss, d.asked = nil, false, nil
	d.query.reset()
	d.cookies.reset()
	bit := methodBit(h.Method)
	if e.quick(h, d, bit) {
		return
	}
	if h.Method == http.MethodConnect {
		d.Status, d.Fault = http.StatusBadRequest, errConnect
		return
	}
	if e.nowhere(h, d) {
		d.Status = http.StatusNotFound
		return
	}
	if !d.readPath(h) {
		d.Status = http.StatusBadRequest
		return
	}
	if best := e.first(h, d, bit); best != nil {
		d.entry, d.Route, d.Name = best, best.route, best.name
		if len(best.params) > 0 {
			d.takeParams(h)
		}
		return
	}
	d.Status = http.StatusNotFound
	if d.nearMiss {
		d.Status = http.StatusMethodNotAllowed
	}
}

// letGo forgets all of the engine but what the winner is and needs: what is
// still carried out after a switch shall not keep the engine that decided it.
func (d *Decision) letGo() {
	d.tree, d.asked, d.answer, d.lookup.leaf = nil, nil, nil, nil
}

type fault string

func (f fault) Error() string { return string(f) }

const (
	errConnect  = fault("CONNECT is not served")
	errAsterisk = fault("the target * is not served")
)

// quick is the short way: an exact host or an engine without hosts, and a path
// that the first tree of its length has, where nothing else can win. What
// equals a pattern's literals is canonical, so only what stands in the place of
// parameters is read. It fails wherever the long way must be gone, and leaves
// what it found for it.
func (e *Engine) quick(h *Head, d *Decision, bit methodSet) bool {
	t := e.exact[h.Host]
	if t == nil && len(e.exact)+len(e.suffix) == 0 {
		t = e.anyHost
	}
	d.tree = t
	if t == nil || t.special || len(h.Path) > route.MaxPathBytes {
		return false
	}
	n := strings.Count(h.Path, "/")
	if n >= len(t.exact) || len(t.exact[n]) == 0 {
		return false
	}
	tr := &t.exact[n][0]
	l := d.lookup.find(t, tr.name, h.Path)
	d.asked, d.answer, d.n = tr, l, n
	if l == nil || !l.final {
		return false
	}
	best := l.entry
	for more := l.more; best.simple && best.methods&bit == 0 && len(more) > 0; more = more[1:] {
		best = more[0]
	}
	if !best.simple || best.methods&bit == 0 || bit == bitOther || bit == bitHead && best.methods&bitLent != 0 {
		return false
	}
	for i := range d.lookup.wilds {
		if !isPlain(d.lookup.wilds[i].Value, true) {
			return false
		}
	}
	for i := range best.params {
		v := d.lookup.wilds[i].Value
		d.Params = append(d.Params, middleware.Param{Name: best.params[i].name, Value: v, Raw: v})
	}
	d.entry, d.Route, d.Name = best, best.route, best.name
	return true
}

// nowhere is the short way of a miss: quick looked into the only tree that could
// have the path, in vain, and the path is canonical at a glance.
func (e *Engine) nowhere(h *Head, d *Decision) bool {
	t := d.tree
	return d.asked != nil && d.answer == nil && len(t.exact[d.n]) == 1 && len(t.under) <= 1 && t.all == nil &&
		len(e.suffix) == 0 && (e.anyHost == nil || e.anyHost == t) && isPlainPath(h.Path)
}

// isPlainPath tells whether a path that does not end in a slash is canonical at a
// glance. There is no branch in the loop: a miss is a whole path of guesses.
func isPlainPath(s string) bool {
	if s[0] != '/' || s[len(s)-1] == '/' {
		return false
	}
	var bad, before uint8
	for i := range len(s) {
		c := glances[s[i]]
		bad |= c & (glanceOther | before&glanceSlash<<1)
		before = c
	}
	return bad == 0
}

// What isPlainPath reads of an octet.
const (
	glanceSlash     = 1 << iota // begins a segment
	glanceNotBehind             // not behind a slash; its bit follows that of the slash
	glanceOther                 // wants a closer look
)

// glances is what is read of each octet. Nothing writes to it.
var glances = func() (t [256]uint8) {
	for c := range t {
		if octets[c] == octetOther {
			t[c] = glanceOther
		}
	}
	t['/'], t['.'] = glanceSlash|glanceNotBehind, glanceNotBehind
	return t
}()

// isPlain tells whether a segment is canonical at a glance. What Gin would
// read as a wildcard counts as such only where special is set.
func isPlain(s string, special bool) bool {
	if s == "" || s[0] == '.' {
		return false
	}
	for i := range len(s) {
		if c := octets[s[i]]; c != octetPlain && (c != octetSpecial || !special) {
			return false
		}
	}
	return true
}

// first finds the winner over all host patterns. Nearly every request is
// decided by the first of them.
func (e *Engine) first(h *Head, d *Decision, bit methodSet) *entry {
	host := h.Host
	if d.tree != nil {
		if best := d.tree.find(h, d, bit); best != nil {
			return best
		}
	} else if len(e.exact)+len(e.suffix) > 0 {
		host = route.FoldHost(host)
	}
	if d.tree == nil || len(e.suffix) > 0 {
		for t := range e.treesFor(host) {
			if t == d.tree || t == e.anyHost {
				continue // looked into above, and below
			}
			if best := t.find(h, d, bit); best != nil {
				return best
			}
		}
	}
	if e.anyHost != nil && e.anyHost != d.tree {
		return e.anyHost.find(h, d, bit)
	}
	return nil
}

// find gives the winner within one host pattern.
func (t *hostTree) find(h *Head, d *Decision, bit methodSet) *entry {
	var best *entry
	path := d.treePath(t)
	if d.n == 0 {
		if t.root != nil {
			best = t.root.first(h, d, bit)
		}
	} else if set := d.set(t); d.n < len(set) {
		best = t.findIn(set[d.n], path[:d.at[d.n]], best, h, d, bit)
	}
	for n := min(d.n, len(t.under)-1); n > 0; n-- {
		best = t.findIn(t.under[n], path[:d.at[n]], best, h, d, bit)
	}
	if t.all != nil && (best == nil || t.all.entry.priority > best.priority) {
		if e := t.all.first(h, d, bit); e != nil && (best == nil || e.before(best)) {
			best = e
		}
	}
	return best
}

// set returns the trees for whole paths of d's kind.
func (d *Decision) set(t *hostTree) [][]tree {
	if d.slash {
		return t.slash
	}
	return t.exact
}

// findIn looks into the trees of one class for what is better than best.
func (t *hostTree) findIn(trees []tree, path string, best *entry, h *Head, d *Decision, bit methodSet) *entry {
	for i := range trees {
		tr := &trees[i]
		if best != nil && !tr.mayBeat(best) {
			continue
		}
		l := d.answer
		if tr != d.asked {
			l = d.lookup.find(t, tr.name, path)
		}
		if l == nil {
			continue
		}
		if e := l.first(h, d, bit); e != nil && (best == nil || e.before(best)) {
			best = e
		}
	}
	return best
}

// first gives the first of the leaf's routes that takes the request.
func (l *leaf) first(h *Head, d *Decision, bit methodSet) *entry {
	if l.entry.takes(h, d, bit) {
		return l.entry.orNamingHead(l.more, h, d, bit)
	}
	for i, e := range l.more {
		if e.takes(h, d, bit) {
			return e.orNamingHead(l.more[i+1:], h, d, bit)
		}
	}
	return nil
}

// takes tells whether e takes a request whose path has its shape, and notes
// when only the method is in the way.
func (e *entry) takes(h *Head, d *Decision, bit methodSet) bool {
	if e.takesMethod(bit, h.Method) {
		return e.simple || e.takesPath(d) && e.takesHead(h, d)
	}
	d.nearMiss = d.nearMiss || e.simple || e.takesPath(d) && e.takesHead(h, d)
	return false
}

// orNamingHead gives for HEAD the first of the following routes that names it,
// if it ties with e in what comes before the methods; else e. So a route that
// takes HEAD only because it names GET comes after those that name HEAD,
// however many conditions it has.
func (e *entry) orNamingHead(following []*entry, h *Head, d *Decision, bit methodSet) *entry {
	if bit != bitHead || e.methods&bitLent == 0 {
		return e
	}
	for _, o := range following {
		if o.priority != e.priority || o.rank != e.rank {
			break
		}
		if o.methods&(bitHead|bitLent) == bitHead && len(o.route.Methods) > 0 && o.takes(h, d, bit) {
			return o
		}
	}
	return e
}

// takesPath tells whether e takes a path that has its shape: what Gin could
// not check.
func (e *entry) takesPath(d *Decision) bool {
	if e.rest == restCatchAll && int(e.n) == d.n && !d.slash {
		return false
	}
	for _, m := range e.mixed {
		var ok bool
		if d.values, ok = m.MatchSegment(d.segment(m.seg), d.values[:0]); !ok {
			return false
		}
	}
	return true
}

func (e *entry) takesHead(h *Head, d *Decision) bool { return e.conds == nil || e.conds.holds(h, d) }

// segment is the canonical text of a segment.
func (d *Decision) segment(i int) string { return d.path[d.at[i]+1 : d.at[i+1]] }

// The classes of octets in a path.
const (
	octetPlain   = iota // stands for itself
	octetSlash          // begins a segment
	octetSpecial        // stands for itself, and is a wildcard to Gin
	octetOther          // anything that wants a closer look
)

// octets is the class of each octet. Nothing writes to it.
var octets = func() (t [256]uint8) {
	for c := range t {
		t[c] = octetOther
	}
	for _, c := range "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()+,;=@" {
		t[c] = octetPlain
	}
	t['/'], t[':'], t['*'] = octetSlash, octetSpecial, octetSpecial
	return t
}()

// readPath brings the path to canonical form and notes its segments. False
// says that the path is refused, and d.Fault why.
func (d *Decision) readPath(h *Head) bool {
	if d.split(h.Path, false) {
		d.path = h.Path
		return true
	}
	if h.Path == "*" {
		d.Fault = errAsterisk
		return false
	}
	path, err := route.CanonicalPath(h.Path, h.Paths)
	if err != nil {
		d.Fault = err
		return false
	}
	d.path, d.asked = path, nil
	return d.split(path, true)
}

// split notes the segments of a path. Unless it is known to be canonical it
// fails at whatever might not be: the usual path is read once.
func (d *Decision) split(path string, canonical bool) bool {
	if len(path) == 0 || path[0] != '/' || len(path) > route.MaxPathBytes {
		return false
	}
	n, special, last := 0, false, 0
	for i := 0; i < len(path); i++ {
		switch octets[path[i]] {
		case octetPlain:
		case octetSlash:
			if !canonical && i+1 < len(path) && (path[i+1] == '/' || path[i+1] == '.') {
				return false
			}
			if n < maxAt {
				d.at[n] = int32(i)
			}
			n++
			last = i
		case octetSpecial:
			special = true
		default:
			if !canonical {
				return false
			}
		}
	}
	d.special = special
	if d.slash = last == len(path)-1; d.slash {
		n--
	} else if n < maxAt {
		d.at[n] = int32(len(path))
	}
	d.n = n
	return true
}

// treePath is the canonical path as t's trees have it.
func (d *Decision) treePath(t *hostTree) string {
	if !d.special || !t.special {
		return d.path
	}
	d.translate = append(d.translate[:0], d.path...)
	for i, c := range d.translate {
		switch c {
		case ':':
			d.translate[i] = colon
		case '*':
			d.translate[i] = star
		}
	}
	// Nobody reads the text after the lookup, before which it is written.
	return unsafe.String(unsafe.SliceData(d.translate), len(d.translate))
}

// takeParams fills d.Params for the winner.
func (d *Decision) takeParams(h *Head) {
	seg, from := -1, 0 // the mixed segment that d.values are of, and where its text begins
	for i := range d.entry.params {
		p := &d.entry.params[i]
		start, end := d.span(p)
		if p.mixed {
			if int(p.seg) != seg {
				seg, from = int(p.seg), start
				d.matchMixed(seg)
			}
			start = d.mixedStart(seg, from, int(p.nth))
			end = start + len(d.values[p.nth])
		}
		v := d.path[start:end]
		raw := v
		if d.path != h.Path {
			raw = route.RawPiece(h.Path, d.path, start, end, h.Paths)
		}
		d.Params = append(d.Params, middleware.Param{Name: p.name, Value: route.DecodeParam(v), Raw: raw})
	}
}

// span is where a parameter's segment, or the rest, lies in the path.
func (d *Decision) span(p *param) (start, end int) {
	if p.nth == takesRest {
		return int(d.at[p.seg]) + 1, len(d.path)
	}
	return int(d.at[p.seg]) + 1, int(d.at[p.seg+1])
}

func (d *Decision) matchMixed(seg int) {
	for _, m := range d.entry.mixed {
		if m.seg == seg {
			d.values, _ = m.MatchSegment(d.segment(seg), d.values[:0])
			return
		}
	}
}

// mixedStart is where the nth parameter of a mixed segment begins: after the
// parts before it, the first of which begins at from.
func (d *Decision) mixedStart(seg, from, nth int) int {
	for _, m := range d.entry.mixed {
		if m.seg != seg {
			continue
		}
		k := 0
		for _, p := range m.Parts {
			switch {
			case p.Param == "":
				from += len(p.Literal)
			case k == nth:
				return from
			default:
				from += len(d.values[k])
				k++
			}
		}
	}
	return from
}
