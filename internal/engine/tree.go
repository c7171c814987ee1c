package engine

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"math/bits"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"

	"routerd.dev/internal/route"
)

// A hostTree is every route of one host pattern, in one Gin engine.
//
// Gin keeps one tree for each method; here each method is the name of a tree,
// and what a tree holds is chosen so that Gin never has a choice to make: no
// two paths of one tree can take the same request path. So Gin never steps back
// (which is where it loses routes, and where it allocates), and looking a path
// up in every tree of its kind finds every shape that takes it.
//
// Trees are kept by the number of segments: one set for whole paths, one for
// paths that end in a slash, one for prefixes and catch-alls, in which the path
// is looked up cut to so many segments.
type hostTree struct {
	pattern string
	parts   []*part // modules that have routes here, by name
	gin     *gin.Engine

	exact [][]tree // by segments
	slash [][]tree // by segments, at least one
	under [][]tree // by segments, at least one
	root  *leaf    // the path "/"
	all   *leaf    // prefixes and catch-alls without a segment

	special bool // some literal holds ":" or "*"
	bytes   int64
}

// A tree is one method tree of Gin.
type tree struct {
	name string

	// What the best of its routes could be: it is not looked into for a
	// request that has a winner which none of them can beat.
	priority int32
	reach    uint8 // one more than the last segment by which one of its routes can win over a route of a tree before it
}

// mayBeat tells whether a route of t can win over e, which a tree before t
// gave. Routes of later trees are less literal; only a mixed segment where e has a
// parameter, or in a prefix a literal there, still makes one win by its path.
func (t *tree) mayBeat(e *entry) bool {
	return t.priority > e.priority || t.priority == e.priority && t.reach > e.wildAt
}

// A leaf is where Gin's lookup ends: all routes of one shape, in the order of
// matching.
type leaf struct {
	entry *entry   // the first
	more  []*entry // those after it
	final bool     // in the first tree of its class, and whichever of the routes holds wins on this host
}

// entries yields all routes of the leaf.
func (l *leaf) entries() iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		if !yield(l.entry) {
			return
		}
		for _, e := range l.more {
			if !yield(e) {
				return
			}
		}
	}
}

// hit is the Gin handler of a leaf: it only says which leaf it is, and what
// Gin found in the place of its wildcards.
func (l *leaf) hit(c *gin.Context) {
	q := c.Request.Body.(*lookup)
	q.leaf = l
	q.wilds = append(q.wilds[:0], c.Params...)
}

// A lookup asks a Gin engine for a path. It is the request's body, by which a
// leaf finds it, and its response writer, which writes nothing.
type lookup struct {
	request http.Request
	url     url.URL
	header  http.Header
	leaf    *leaf
	wilds   gin.Params
}

func (q *lookup) Read([]byte) (int, error)    { return 0, http.ErrBodyReadAfterClose }
func (q *lookup) Close() error                { return nil }
func (q *lookup) Header() http.Header         { return q.header }
func (q *lookup) Write(b []byte) (int, error) { return len(b), nil }
func (q *lookup) WriteHeader(int)             {}

// find looks a path up in one tree of t; nil when it is not there.
func (q *lookup) find(t *hostTree, name, path string) *leaf {
	if q.request.URL == nil {
		q.request.URL, q.request.Body = &q.url, q
		q.header = http.Header{}
	}
	q.request.Method, q.url.Path, q.leaf = name, path, nil
	t.gin.ServeHTTP(q, &q.request)
	return q.leaf
}

// An item is a route on its way into a host tree.
type item struct {
	*entry
	shape *shape
	path  string // of the shape
	start uint64 // of the path, after what all of the host have in common
	class uint16 // which trees it goes into, and how deep
}

func compareItems(a, b item) int {
	if a.class != b.class {
		return cmp.Compare(a.class, b.class)
	}
	if a.start != b.start {
		return cmp.Compare(a.start, b.start)
	}
	if a.path != b.path {
		return strings.Compare(a.path, b.path)
	}
	return compareEntries(a.entry, b.entry)
}

// Classes: a kind of tree and a number of segments.
const (
	classExact uint16 = iota << 8
	classSlash
	classUnder
)

func (s *shape) class() uint16 {
	switch {
	case s.rest != restNone:
		return classUnder | uint16(s.n)
	case s.slash:
		return classSlash | uint16(s.n)
	default:
		return classExact | uint16(s.n)
	}
}

// maxTrees is how many trees one class may need: as many as there are bits to
// tell them apart. Each is looked into for a path that is not found, and so are
// those of all classes that the path reaches: maxLookups is how many these may
// be.
const (
	maxTrees   = 64
	maxLookups = 256
)

// buildHost puts the routes of one host pattern into a tree. The error is a
// *tooMany or the context's.
func buildHost(pattern string, items []item, p *pacer) (*hostTree, error) {
	t := &hostTree{pattern: pattern, gin: newGin()}
	highest := int32(math.MinInt32)
	for i := range items {
		items[i].class, items[i].path = items[i].shape.class(), items[i].shape.path
		t.special = t.special || items[i].shape.special
		highest = max(highest, items[i].priority)
	}
	sortItems(items)
	var (
		g      grouper
		single bool // all of the class go into one tree
		shapes = countShapes(items)
		more   = make([]*entry, 0, len(items)-shapes) // of all leaves: those after the first
		leaves = make([]leaf, 0, shapes)
		names  = treeNames{}
		method = make([]string, 1) // Gin does not keep it
	)
	for i := 0; i < len(items); {
		if err := p.step(); err != nil {
			return nil, err
		}
		first, j, from := &items[i], i+1, len(more)
		for ; j < len(items) && items[j].class == first.class && items[j].path == first.path; j++ {
			more = append(more, items[j].entry)
		}
		if j-i > route.MaxCandidates {
			return nil, &tooMany{items[i+route.MaxCandidates].entry, fmt.Sprintf("competes with more than %d routes for the same requests", route.MaxCandidates)}
		}
		leaves = append(leaves, leaf{entry: first.entry})
		l := &leaves[len(leaves)-1]
		if len(more) > from { // an empty one would keep all
			l.more = more[from:len(more):len(more)]
		}
		switch {
		case first.class == classSlash:
			t.root = l
		case first.class == classUnder:
			t.all = l
		default:
			if i == 0 || items[i-1].class != first.class {
				g.reset()
				single = alike(items[i:])
			}
			group, ok := 0, single
			if !single {
				group, ok = g.place(first.path, first.shape.n)
			}
			if !ok {
				return nil, &tooMany{first.entry, fmt.Sprintf("overlaps with other routes of this host in more than %d ways", maxTrees)}
			}
			was := names.n
			tr := t.tree(first.class, group, &names)
			if names.n > was && t.lookups() > maxLookups {
				return nil, &tooMany{first.entry, fmt.Sprintf("overlaps with other routes of this host so that a path is looked up in more than %d ways", maxLookups)}
			}
			tr.take(items[i:j])
			method[0] = tr.name
			t.gin.Match(method, ginPath(first.path), l.hit)
		}
		i = j
	}
	t.settle(leaves, highest)
	t.warm()
	return t, nil
}

// lookups is how many trees a path may at most be looked up in: those for
// whole paths of its length, and those of all prefixes.
func (t *hostTree) lookups() int {
	most, under := 0, 0
	for _, set := range [][][]tree{t.exact, t.slash} {
		for n := range set {
			most = max(most, len(set[n]))
		}
	}
	for n := range t.under {
		under += len(t.under[n])
	}
	return most + under
}

// settle finds out for which leaves no other tree needs to be looked into.
func (t *hostTree) settle(leaves []leaf, highest int32) {
	for i := range leaves {
		l := &leaves[i]
		e, last := l.entry, l.entry
		if len(l.more) > 0 {
			last = l.more[len(l.more)-1]
		}
		l.final = e.rest == restNone && last.priority == highest && !t.mayBeat(last)
	}
}

// mayBeat tells whether some tree has a route that can win over e, the last of
// a leaf in the first tree of its class.
func (t *hostTree) mayBeat(e *entry) bool {
	for _, set := range [][][]tree{t.exact, t.slash} {
		if n := int(e.n); n < len(set) {
			for i := range set[n] {
				if i > 0 && set[n][i].mayBeat(e) {
					return true
				}
			}
		}
	}
	for n := range min(int(e.n)+1, len(t.under)) {
		for i := range t.under[n] {
			if t.under[n][i].mayBeat(e) {
				return true
			}
		}
	}
	return false
}

// sortItems sorts by class, path and order of matching. Nearly all comparisons
// are settled by the eight bytes after what the paths have in common.
func sortItems(items []item) {
	common := items[0].path
	for i := range items {
		n := 0
		for n < len(common) && n < len(items[i].path) && common[n] == items[i].path[n] {
			n++
		}
		common = common[:n]
	}
	for i := range items {
		var b [8]byte
		copy(b[:], items[i].path[len(common):])
		items[i].start = binary.BigEndian.Uint64(b[:])
	}
	slices.SortFunc(items, compareItems)
}

// alike tells whether all items of the class that begins here have their
// wildcards in the same places, so that they fit into one tree.
func alike(items []item) bool {
	for i := range items {
		if items[i].class != items[0].class {
			break
		}
		if items[i].shape.wilds != items[0].shape.wilds {
			return false
		}
	}
	return true
}

func countShapes(items []item) int {
	n := 0
	for i := range items {
		if i == 0 || items[i].class != items[i-1].class || items[i].path != items[i-1].path {
			n++
		}
	}
	return n
}

// take notes in t what the routes of a leaf could do.
func (t *tree) take(items []item) {
	for i := range items {
		s := items[i].shape
		t.priority = max(t.priority, items[i].priority)
		if s.rest != restNone {
			t.reach = uint8(s.n)
		} else {
			t.reach = max(t.reach, uint8(s.mixedTo))
		}
	}
}

// tree returns the tree of a class and group, making it when it is new.
func (t *hostTree) tree(class uint16, group int, names *treeNames) *tree {
	set, n := &t.exact, int(class&0xFF)
	switch class &^ 0xFF {
	case classSlash:
		set = &t.slash
	case classUnder:
		set = &t.under
	}
	for len(*set) <= n {
		*set = append(*set, nil)
	}
	trees := &(*set)[n]
	for len(*trees) <= group {
		*trees = append(*trees, tree{name: names.next(), priority: math.MinInt32})
	}
	return &(*trees)[group]
}

// treeNames gives each tree of a Gin engine its name. Gin finds a tree by
// comparing names one after the other; they differ in length, so that it need not
// look at the text.
type treeNames struct{ n int }

func (t *treeNames) next() string {
	t.n++
	if t.n <= len(shortNames) {
		return shortNames[:t.n]
	}
	return strings.Repeat("A", t.n)
}

const shortNames = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// A grouper says which tree of its class a shape goes into, so that no tree has
// a literal and a wildcard in one place. It is given the shapes in the order of
// their paths, in which all that go through one place follow each other and
// literals come first: so of two shapes that take the same path the more
// literal one is always in the earlier tree.
type grouper struct {
	last  string
	nodes [route.MaxSegments + 1]groupNode // along the last path
}

// A groupNode is the place before a segment: which groups have a literal
// there, and which a wildcard.
type groupNode struct{ literal, wild uint64 }

func (g *grouper) reset() {
	g.last = ""
	g.nodes[0] = groupNode{}
}

// place returns the group of a path of n segments, and false when there are
// too many.
func (g *grouper) place(path string, n int) (int, bool) {
	same := true
	var taken uint64
	rest, last := path, g.last
	var wilds uint64 // bit i: segment i is wild
	for i := range n {
		seg, more := cutSegment(rest)
		if same {
			old, after := cutSegment(last)
			same, last = seg == old, after
			if !same {
				clear(g.nodes[i+1 : n+1])
			}
		}
		if seg[0] == wild {
			wilds |= 1 << i
			taken |= g.nodes[i].literal
		} else {
			taken |= g.nodes[i].wild
		}
		rest = more
	}
	g.last = path
	group := bits.TrailingZeros64(^taken)
	if group >= maxTrees {
		return 0, false
	}
	for i := range n {
		if wilds>>i&1 == 1 {
			g.nodes[i].wild |= 1 << group
		} else {
			g.nodes[i].literal |= 1 << group
		}
	}
	return group, true
}

// cutSegment takes the first segment off a path, without its slash.
func cutSegment(path string) (seg, rest string) {
	if path == "" {
		return "", ""
	}
	path = path[1:]
	if i := strings.IndexByte(path, '/'); i >= 0 {
		return path[:i], path[i:]
	}
	return path, ""
}

// newGin makes a Gin engine that only looks paths up: no redirects, no answers
// for other methods, no trust in what a request says about itself.
func newGin() *gin.Engine {
	if gin.IsDebugging() { // it prints every route otherwise; the mode is Gin's, for the whole process
		gin.SetMode(gin.ReleaseMode)
	}
	g := gin.New()
	g.RedirectTrailingSlash = false
	g.RedirectFixedPath = false
	g.HandleMethodNotAllowed = false
	g.ForwardedByClientIP = false
	g.RemoteIPHeaders = nil
	g.UseRawPath = false
	g.UnescapePathValues = false
	// Without it Gin would write a body for each path it does not find.
	g.NoRoute(func(c *gin.Context) { c.Writer.WriteHeaderNow() })
	return g
}

// warm has Gin finish its trees, which it does at the first request.
func (t *hostTree) warm() {
	var q lookup
	q.find(t, "A", "/")
}

// A tooMany is a route that is over a limit of the engine.
type tooMany struct {
	entry *entry
	what  string
}

func (e *tooMany) Error() string { return e.entry.name + " " + e.what }
