package version

import (
	"errors"
	"fmt"
	"iter"
	"slices"

	"routerd.dev/internal/route"
)

// A Snapshot is a table in canonical bytes. It never changes.
type Snapshot struct {
	Digest        Digest // names the snapshot: SHA-256 of ManifestBytes
	ManifestBytes []byte // unpacked
	Manifest      Manifest

	chunks map[Digest][]byte // unpacked
}

// Encode makes the snapshot of a normalized table. It fails for what the form
// cannot hold: modules out of order or named twice, a record beyond
// MaxChunkBytes, values outside of their enumerations, more than the limits.
func Encode(t *route.Table) (*Snapshot, error) {
	s := &Snapshot{chunks: map[Digest][]byte{}}
	if len(t.Modules) > route.MaxModules {
		return nil, fmt.Errorf("encode table: %d modules, at most %d are allowed", len(t.Modules), route.MaxModules)
	}
	total, routes := 0, 0
	for i, m := range t.Modules {
		switch {
		case m.Name == "" || len(m.Name) > maxNameBytes:
			return nil, fmt.Errorf("encode table: module has a name of %d bytes, 1 to %d are allowed", len(m.Name), maxNameBytes)
		case !visible(m.Name):
			return nil, fmt.Errorf("encode table: module name %q has white space or a control character", m.Name)
		case i > 0 && t.Modules[i-1].Name >= m.Name:
			return nil, fmt.Errorf("encode table: not normalized: module %s is out of order", m.Name)
		}
		if len(m.Upstreams) > route.MaxUpstreams || len(m.Middlewares) > route.MaxMiddlewares || len(m.Tests) > route.MaxTests {
			return nil, fmt.Errorf("encode module %s: %d upstreams, %d middlewares and %d tests, at most %d, %d and %d are allowed", m.Name,
				len(m.Upstreams), len(m.Middlewares), len(m.Tests), route.MaxUpstreams, route.MaxMiddlewares, route.MaxTests)
		}
		if routes += len(m.Routes); routes > route.MaxRoutes {
			return nil, fmt.Errorf("encode table: more than %d routes", route.MaxRoutes)
		}
		chunks, err := encodeModule(m)
		if err != nil {
			return nil, fmt.Errorf("encode module %s: %w", m.Name, err)
		}
		e := ModuleEntry{Name: m.Name, Routes: len(m.Routes)}
		for _, b := range chunks {
			ref := ChunkRef{Digest: DigestOf(b), Size: len(b)}
			s.chunks[ref.Digest] = b
			e.Chunks = append(e.Chunks, ref)
			total += len(b)
		}
		e.Digest = moduleDigest(e.Name, e.Chunks)
		s.Manifest.Modules = append(s.Manifest.Modules, e)
	}
	s.Manifest.Capabilities = Capabilities(t)
	s.ManifestBytes = s.Manifest.encode()
	s.Digest = DigestOf(s.ManifestBytes)
	switch {
	case total > MaxSnapshotBytes:
		return nil, fmt.Errorf("encode table: %d bytes, at most %d are allowed", total, MaxSnapshotBytes)
	case slices.ContainsFunc(s.Manifest.Capabilities, func(c string) bool { return len(c) > maxNameBytes }):
		return nil, errors.New("encode table: a middleware's kind is too long")
	case len(s.Manifest.Capabilities) > maxCapabilities:
		return nil, fmt.Errorf("encode table: %d capabilities, at most %d are allowed", len(s.Manifest.Capabilities), maxCapabilities)
	case len(s.ManifestBytes) > MaxManifestBytes || len(s.PackedManifest()) > MaxPackedBytes:
		return nil, errors.New("encode table: the manifest is too large; use fewer modules and routes")
	}
	return s, nil
}

// Chunks yields every chunk once, packed as it is stored, with the digest of
// its unpacked bytes, in the order of the modules.
func (s *Snapshot) Chunks() iter.Seq2[Digest, []byte] {
	return s.ChunksExcept(func(Digest) bool { return false })
}

// ChunksExcept is Chunks without those that have names: what a store that has
// them need not be sent, and what need not be packed.
func (s *Snapshot) ChunksExcept(have func(Digest) bool) iter.Seq2[Digest, []byte] {
	return func(yield func(Digest, []byte) bool) {
		p := newPacker()
		for _, c := range s.Manifest.Chunks() {
			if !have(c.Digest) && !yield(c.Digest, p.pack(s.chunks[c.Digest])) {
				return
			}
		}
	}
}

// PackedManifest returns the manifest as it is stored; UnpackManifest undoes
// it.
func (s *Snapshot) PackedManifest() []byte { return newPacker().pack(s.ManifestBytes) }
