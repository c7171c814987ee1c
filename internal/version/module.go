package version

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"

	"routerd.dev/internal/route"
)

// Sizes of chunks, in weight: the bytes that a chunk's records would take if
// each symbol were spelt out each time. What is packed is five to twenty times
// less. They balance two costs of a change: the manifest, which names every
// chunk at some 34 bytes, and the chunk that changed. Together they are least
// when a packed chunk is as large as the root of 34 times the whole.
const (
	minChunk    = 128 << 10
	targetChunk = 128 << 10 // what is added to minChunk on average
	maxChunk    = 384 << 10
)

// MaxChunkBytes is the most that a chunk has unpacked, and MaxPackedBytes the
// most that any packed record has.
const (
	MaxChunkBytes  = maxChunk + len(chunkMagic)
	MaxPackedBytes = 512 << 10
)

const chunkMagic = "RDC\x01" // the last byte is the format

// A cutter decides where a module's chunks end, by the records' own names and
// weights: a chunk ends after a record whose hash says so, more likely the
// heavier it is; never below minChunk, never above maxChunk. What a record
// holds besides does not matter, so changing it moves no cut.
type cutter struct {
	seed   uint64 // of the module's name, lest modules that are alike are cut alike
	weight int
}

func newCutter(module string) cutter { return cutter{seed: xxhash.Sum64String(module)} }

// before tells whether the chunk must end before a record of weight w.
func (c *cutter) before(w int) bool { return c.weight > 0 && c.weight+w > maxChunk }

// after adds a record and tells whether the chunk may end with it, which its
// hash then says.
func (c *cutter) after(w int) bool {
	c.weight += w
	return c.weight >= minChunk
}

func (c *cutter) ends(w int, hash uint64) bool {
	mixed := (hash ^ c.seed) * 0x9e3779b97f4a7c15
	return mixed>>32*targetChunk < uint64(w)<<32
}

// Names are unique within a module, so they alone decide for routes.
func hashRoute(rt *route.Route) uint64 { return xxhash.Sum64String(rt.Name) }

func hashTest(t *route.Test) uint64 { return xxhash.Sum64String(t.Name) ^ xxhash.Sum64String(t.URL)*3 }

// encodeModule returns the unpacked chunks of a normalized module; none for
// one without records.
func encodeModule(m *route.Module) ([][]byte, error) {
	if err := checkOrder(m); err != nil {
		return nil, err
	}
	e := moduleWriter{writer: writer{symbols: map[string]uint64{}}, cut: newCutter(m.Name)}
	for i := range m.Upstreams {
		u := &m.Upstreams[i]
		if err := e.add(xxhash.Sum64String(u.Name), func(w *writer) error { return w.upstream(u) }); err != nil {
			return nil, fmt.Errorf("upstream %s: %w", u.Name, err)
		}
	}
	for i := range m.Middlewares {
		mw := &m.Middlewares[i]
		if err := e.add(xxhash.Sum64String(mw.Name), func(w *writer) error { w.middleware(mw); return nil }); err != nil {
			return nil, fmt.Errorf("middleware %s: %w", mw.Name, err)
		}
	}
	for i := range m.Routes {
		rt := &m.Routes[i]
		if err := e.add(hashRoute(rt), func(w *writer) error { return w.route(rt) }); err != nil {
			return nil, fmt.Errorf("route %s: %w", rt.Name, err)
		}
	}
	for i := range m.Tests {
		t := &m.Tests[i]
		if err := e.add(hashTest(t), func(w *writer) error { return w.test(t) }); err != nil {
			return nil, fmt.Errorf("test %s: %w", t.Name, err)
		}
	}
	e.end()
	return e.chunks, nil
}

type moduleWriter struct {
	writer
	cut    cutter
	chunks [][]byte
}

// add writes one record, ending the chunk before or after it where the cutter
// says.
func (e *moduleWriter) add(hash uint64, write func(*writer) error) error {
	if len(e.b) == 0 {
		e.b = append(e.b, chunkMagic...)
	}
	start := len(e.b)
	e.weight = 0
	if err := write(&e.writer); err != nil {
		return err
	}
	if e.weight > maxChunk {
		return fmt.Errorf("takes %d bytes, at most %d are allowed", e.weight, maxChunk)
	}
	if e.cut.before(e.weight) {
		// Write it again: in the next chunk no symbol is known.
		e.b = e.b[:start]
		e.end()
		return e.add(hash, write)
	}
	if e.cut.after(e.weight) && e.cut.ends(e.weight, hash) {
		e.end()
	}
	return nil
}

func (e *moduleWriter) end() {
	if e.cut.weight == 0 {
		return
	}
	e.chunks = append(e.chunks, slices.Clone(e.b))
	e.b = e.b[:0]
	e.cut.weight = 0
	clear(e.symbols)
}

// A moduleReader puts a module together from its chunks. What many routes have
// alike they share: modules are never changed once loaded.
type moduleReader struct {
	reader
	m    *route.Module
	tag  byte
	cut  cutter
	open bool // the last chunk did not end by a hash
	need needs

	proxy *route.Proxy

	lists    slab[string]
	conds    slab[route.Condition]
	links    slab[route.Middleware]
	fields   slab[route.Header]
	responds slab[route.Respond]
}

// newModuleReader starts a module that is said to have routes routes, a number
// that the caller has held against the size of its chunks.
func newModuleReader(name string, routes int) *moduleReader {
	d := &moduleReader{m: &route.Module{Name: name}, cut: newCutter(name), reader: reader{known: map[string]struct{}{}}}
	if routes > 0 {
		d.m.Routes = make([]route.Route, 0, routes)
	}
	return d
}

// chunk reads the module's next chunk. The module keeps parts of s.
func (d *moduleReader) chunk(s string) error {
	if !strings.HasPrefix(s, chunkMagic) {
		if strings.HasPrefix(s, chunkMagic[:3]) && len(s) > 3 {
			return fmt.Errorf("%w: chunk has format %d, this build reads %d", ErrFormat, s[3], chunkMagic[3])
		}
		return corrupt("not a chunk")
	}
	d.s, d.off = s, len(chunkMagic)
	d.symbols = make([]string, 0, 32) // lists of one are parts of it, so it is not reused
	clear(d.known)
	if !d.more() {
		return corrupt("chunk is empty")
	}
	first, ended := true, false
	for d.more() {
		if ended {
			return corrupt("at byte %d: the chunk should have ended", d.off)
		}
		d.record()
		if d.err != nil {
			return d.err
		}
		if first && d.open && !d.cut.before(d.weight) {
			return corrupt("the chunk before should not have ended")
		}
		if first {
			d.cut.weight, first = 0, false
		}
		if d.cut.before(d.weight) || d.weight > maxChunk {
			return corrupt("at byte %d: the chunk should have ended earlier", d.off)
		}
		ended = d.cut.after(d.weight) && d.cut.ends(d.weight, d.hash())
	}
	d.open = !ended
	return nil
}

// record reads one record.
func (d *moduleReader) record() {
	d.weight = 0
	tag := d.byte()
	if tag < d.tag {
		d.fail("record of kind %d after one of kind %d", tag, d.tag)
		return
	}
	d.tag = tag
	m := d.m
	switch tag {
	case tagUpstream:
		if d.full("upstreams", len(m.Upstreams), route.MaxUpstreams) {
			return
		}
		m.Upstreams = append(m.Upstreams, route.Upstream{})
		u := &m.Upstreams[len(m.Upstreams)-1]
		d.upstream(u)
	case tagMiddleware:
		if d.full("middlewares", len(m.Middlewares), route.MaxMiddlewares) {
			return
		}
		m.Middlewares = append(m.Middlewares, route.NamedMiddleware{})
		mw := &m.Middlewares[len(m.Middlewares)-1]
		d.middleware(mw)
	case tagRoute:
		if len(m.Routes) == cap(m.Routes) {
			d.fail("more routes than the manifest says")
			return
		}
		m.Routes = m.Routes[:len(m.Routes)+1]
		d.route(&m.Routes[len(m.Routes)-1])
	case tagTest:
		if d.full("tests", len(m.Tests), route.MaxTests) {
			return
		}
		m.Tests = append(m.Tests, route.Test{})
		t := &m.Tests[len(m.Tests)-1]
		d.test(t)
	default:
		d.fail("records of kind %d are not known to this build", tag)
	}
}

// full refuses one record more than a module may have. Records are some bytes
// each and take a hundred times that.
func (d *moduleReader) full(what string, have, most int) bool {
	if have >= most {
		d.fail("more than %d %s", most, what)
	}
	return have >= most
}

// hash is what the cutter wants to know of the last record.
func (d *moduleReader) hash() uint64 {
	m := d.m
	switch d.tag {
	case tagUpstream:
		return xxhash.Sum64String(m.Upstreams[len(m.Upstreams)-1].Name)
	case tagMiddleware:
		return xxhash.Sum64String(m.Middlewares[len(m.Middlewares)-1].Name)
	case tagRoute:
		return hashRoute(&m.Routes[len(m.Routes)-1])
	default:
		return hashTest(&m.Tests[len(m.Tests)-1])
	}
}

// module returns what was read, when it is whole and in order.
func (d *moduleReader) module() (*route.Module, error) {
	if len(d.m.Routes) != cap(d.m.Routes) {
		return nil, corrupt("has %d routes, the manifest says %d", len(d.m.Routes), cap(d.m.Routes))
	}
	if err := checkOrder(d.m); err != nil {
		return nil, corrupt("%v", err)
	}
	return d.m, nil
}

// checkOrder refuses a module that is plainly not normalized: what has no order
// of its own must be sorted, or equal modules could have different bytes.
func checkOrder(m *route.Module) error {
	byName := func(kind string, ok bool) error {
		if ok {
			return nil
		}
		return fmt.Errorf("not normalized: %s are not sorted", kind)
	}
	if err := byName("upstreams", slices.IsSortedFunc(m.Upstreams, func(a, b route.Upstream) int { return cmp.Compare(a.Name, b.Name) })); err != nil {
		return err
	}
	if err := byName("middlewares", slices.IsSortedFunc(m.Middlewares, func(a, b route.NamedMiddleware) int { return cmp.Compare(a.Name, b.Name) })); err != nil {
		return err
	}
	for i := range m.Routes {
		rt := &m.Routes[i]
		if !slices.IsSorted(rt.Hosts) || !slices.IsSorted(rt.Methods) {
			return fmt.Errorf("not normalized: hosts or methods of route %s are not sorted", rt.Name)
		}
	}
	return nil
}

// moduleDigest names a module: its name, and its chunks with their sizes, so that
// a cached module vouches for all that a manifest says of it but the routes.
func moduleDigest(name string, chunks []ChunkRef) Digest {
	h := sha256.New()
	fmt.Fprintf(h, "routerd module 1\n%s\n", name)
	for _, c := range chunks {
		fmt.Fprintf(h, "%s %d\n", c.Digest, c.Size)
	}
	return Digest(h.Sum(nil))
}
