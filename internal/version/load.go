package version

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"weak"

	"routerd.dev/internal/route"
)

// A Fetcher has packed chunks by the digest of their unpacked bytes. What it
// returns is not trusted.
type Fetcher interface {
	Chunk(ctx context.Context, d Digest) ([]byte, error)
}

// A Cache finds decoded modules by digest for as long as somebody, an engine
// most often, holds them, so that an unchanged module is the same *route.Module
// from table to table. It keeps nothing alive itself: what no table in use has
// is forgotten. It may be used from many goroutines.
type Cache struct {
	unpacker unpacker
	max      int

	mu      sync.Mutex
	entries map[Digest]*list.Element // of *entry
	order   list.List                // front: used last
}

type cached struct {
	digest       Digest
	module       *route.Module
	capabilities []string
}

// An entry is a cached module that is not kept alive by it.
type entry struct {
	digest       Digest
	module       weak.Pointer[route.Module]
	capabilities []string
}

// NewCache knows of at most maxModules modules, those used last; of none when
// it is 0 or less.
func NewCache(maxModules int) *Cache {
	return &Cache{unpacker: newUnpacker(), max: maxModules, entries: map[Digest]*list.Element{}}
}

// Has tells whether the module is known at this moment.
func (c *Cache) Has(module Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.find(module) != nil
}

// Check tells whether packed is the chunk that ref names: what is kept has to be.
func (c *Cache) Check(ref ChunkRef, packed []byte) error {
	_, err := c.unpacker.chunk(ref, packed, make([]byte, 0, ref.Size))
	return err
}

// find returns the module if it is still held by somebody. c.mu is held.
func (c *Cache) find(d Digest) *cached {
	e, ok := c.entries[d]
	if !ok {
		return nil
	}
	v := e.Value.(*entry)
	m := v.module.Value()
	if m == nil {
		c.drop(e)
		return nil
	}
	return &cached{digest: d, module: m, capabilities: v.capabilities}
}

func (c *Cache) drop(e *list.Element) {
	c.order.Remove(e)
	delete(c.entries, e.Value.(*entry).digest)
}

func (c *Cache) get(d Digest) *cached {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.find(d)
	if v != nil {
		c.order.MoveToFront(c.entries[d])
	}
	return v
}

// put enters v, unless another loader was faster: then that one's module is
// used, so that there is one object for a digest.
func (c *Cache) put(v *cached) *cached {
	c.mu.Lock()
	defer c.mu.Unlock()
	if first := c.find(v.digest); first != nil {
		return first
	}
	if c.max <= 0 {
		return v
	}
	c.entries[v.digest] = c.order.PushFront(&entry{v.digest, weak.Make(v.module), v.capabilities})
	for c.order.Len() > c.max {
		c.drop(c.order.Back())
	}
	return v
}

// Load puts a table together from a manifest's unpacked bytes and the chunks
// that f has, fetching only those of modules that c lacks. All bytes are
// verified. The table's modules are shared with c and must not be changed. c
// may be nil.
func Load(ctx context.Context, want Digest, manifestBytes []byte, f Fetcher, c *Cache) (*route.Table, Manifest, error) {
	m, err := ParseManifest(want, manifestBytes)
	if err != nil {
		return nil, Manifest{}, err
	}
	if c == nil {
		c = NewCache(0)
		defer c.unpacker.dec.Close()
	}
	t := &route.Table{}
	l := loader{f: f, unpacker: c.unpacker}
	capabilities := make([][]string, 0, len(m.Modules))
	for i := range m.Modules {
		e := &m.Modules[i]
		v := c.get(e.Digest)
		if v == nil {
			mod, needs, err := l.module(ctx, e)
			if err != nil {
				return nil, m, fmt.Errorf("load snapshot %s: module %s: %w", want.Short(), e.Name, err)
			}
			v = c.put(&cached{digest: e.Digest, module: mod, capabilities: needs})
		}
		if len(v.module.Routes) != e.Routes {
			return nil, m, fmt.Errorf("load snapshot %s: module %s: %w", want.Short(), e.Name,
				corrupt("has %d routes, the manifest says %d", len(v.module.Routes), e.Routes))
		}
		t.Modules = append(t.Modules, v.module)
		capabilities = append(capabilities, v.capabilities)
	}
	if need := unionCapabilities(capabilities); !slices.Equal(need, m.Capabilities) {
		return nil, m, fmt.Errorf("load snapshot %s: %w", want.Short(),
			corrupt("the table needs %v, the manifest says %v", need, m.Capabilities))
	}
	return t, m, nil
}

// A loader reuses the memory that chunks are unpacked into.
type loader struct {
	f        Fetcher
	unpacker unpacker
	buf      []byte
}

// module returns a module and the capabilities it needs.
func (l *loader) module(ctx context.Context, e *ModuleEntry) (*route.Module, []string, error) {
	d := newModuleReader(e.Name, e.Routes)
	for i, ref := range e.Chunks {
		if err := l.chunk(ctx, ref, d); err != nil {
			return nil, nil, fmt.Errorf("chunk %d (%s): %w", i, ref.Digest.Short(), err)
		}
	}
	m, err := d.module()
	return m, d.need.capabilities(), err
}

func (l *loader) chunk(ctx context.Context, ref ChunkRef, d *moduleReader) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	packed, err := l.f.Chunk(ctx, ref.Digest)
	if err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	if cap(l.buf) < ref.Size {
		l.buf = make([]byte, 0, max(ref.Size, 2*cap(l.buf)))
	}
	b, err := l.unpacker.chunk(ref, packed, l.buf[:0:ref.Size])
	if err != nil {
		return err
	}
	return d.chunk(string(b))
}

// chunk unpacks a chunk into dst's memory, and verifies it.
func (u unpacker) chunk(ref ChunkRef, packed, dst []byte) ([]byte, error) {
	b, err := u.unpack(packed, dst)
	if err != nil {
		return nil, err
	}
	if len(b) != ref.Size {
		return nil, corrupt("has %d bytes, the manifest says %d", len(b), ref.Size)
	}
	if got := DigestOf(b); got != ref.Digest {
		return nil, corrupt("its digest is %s", got.Short())
	}
	return b, nil
}

// A MapFetcher has the chunks that were put into it; what it lacks is
// ErrNoChunk.
type MapFetcher map[Digest][]byte

// ErrNoChunk is what MapFetcher says for a chunk it lacks.
var ErrNoChunk = errors.New("no such chunk")

// Chunk returns the packed bytes of a chunk.
func (f MapFetcher) Chunk(_ context.Context, d Digest) ([]byte, error) {
	if b, ok := f[d]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrNoChunk, d)
}
