package version

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"routerd.dev/internal/buildinfo"
	"routerd.dev/internal/route"
)

// ErrFormat is what an error about a snapshot of another format is: this build
// is too old, or too new, for it.
var ErrFormat = errors.New("snapshot format not supported")

// Limits of a manifest; Encode keeps to them and ParseManifest insists.
const (
	MaxManifestBytes  = 1 << 20 // unpacked
	MaxSnapshotBytes  = 1 << 30 // all chunks, unpacked
	maxCapabilities   = 256
	maxNameBytes      = 256
	manifestMagic     = "RDM\x01" // the last byte is the format
	minManifestModule = 4         // name's length, a byte of name, routes, chunks
	minManifestChunk  = len(Digest{}) + 1
)

// A ChunkRef names a chunk and says how much it is.
type ChunkRef struct {
	Digest Digest // of the unpacked bytes
	Size   int    // of the unpacked bytes
}

// A ModuleEntry is one module of a manifest.
type ModuleEntry struct {
	Name   string
	Digest Digest // of name and chunks; equal modules have equal ones. Derived, not part of the bytes
	Routes int
	Chunks []ChunkRef // in order
}

// A Manifest says what a snapshot consists of and what a build must be able to
// do to serve it.
type Manifest struct {
	Capabilities []string      // sorted
	Modules      []ModuleEntry // sorted by name
}

// Routes returns how many routes the snapshot has.
func (m Manifest) Routes() int {
	n := 0
	for i := range m.Modules {
		n += m.Modules[i].Routes
	}
	return n
}

// ModuleDigests returns each module's digest by its name, as a Revision has
// them.
func (m Manifest) ModuleDigests() map[string]Digest {
	out := make(map[string]Digest, len(m.Modules))
	for i := range m.Modules {
		out[m.Modules[i].Name] = m.Modules[i].Digest
	}
	return out
}

// Chunks returns every chunk once, in the order of the modules.
func (m Manifest) Chunks() []ChunkRef {
	var out []ChunkRef
	seen := map[Digest]bool{}
	for i := range m.Modules {
		for _, c := range m.Modules[i].Chunks {
			if !seen[c.Digest] {
				seen[c.Digest] = true
				out = append(out, c)
			}
		}
	}
	return out
}

// Missing returns the capabilities the snapshot needs and have lacks, sorted.
func (m Manifest) Missing(have []string) []string {
	var out []string
	for _, c := range m.Capabilities {
		if !slices.Contains(have, c) {
			out = append(out, c)
		}
	}
	return out
}

func (m Manifest) encode() []byte {
	w := writer{b: []byte(manifestMagic)}
	w.uvarint(uint64(len(m.Capabilities)))
	for _, c := range m.Capabilities {
		w.string(c)
	}
	w.uvarint(uint64(len(m.Modules)))
	for i := range m.Modules {
		e := &m.Modules[i]
		w.string(e.Name)
		w.uvarint(uint64(e.Routes))
		w.uvarint(uint64(len(e.Chunks)))
		for _, c := range e.Chunks {
			w.b = append(w.b, c.Digest[:]...)
			w.uvarint(uint64(c.Size))
		}
	}
	return w.b
}

// ParseManifest reads a manifest's unpacked bytes, which must be those that
// want names. It checks form and limits; whether this build can serve the
// snapshot is for Missing.
func ParseManifest(want Digest, b []byte) (Manifest, error) {
	if len(b) > MaxManifestBytes {
		return Manifest{}, fmt.Errorf("parse manifest %s: %w", want.Short(), corrupt("%d bytes, at most %d are allowed", len(b), MaxManifestBytes))
	}
	if got := DigestOf(b); got != want {
		return Manifest{}, fmt.Errorf("parse manifest %s: %w", want.Short(), corrupt("its digest is %s", got.Short()))
	}
	m, err := decodeManifest(string(b))
	if err != nil {
		return Manifest{}, fmt.Errorf("parse manifest %s: %w", want.Short(), err)
	}
	return m, nil
}

func decodeManifest(s string) (Manifest, error) {
	if !strings.HasPrefix(s, manifestMagic) {
		if strings.HasPrefix(s, manifestMagic[:3]) && len(s) > 3 {
			return Manifest{}, fmt.Errorf("%w: manifest has format %d, this build reads %d", ErrFormat, s[3], manifestMagic[3])
		}
		return Manifest{}, corrupt("not a manifest")
	}
	r := reader{s: s, off: len(manifestMagic)}
	var m Manifest
	n := r.count(2)
	if n > maxCapabilities {
		r.fail("%d capabilities, at most %d are allowed", n, maxCapabilities)
		n = 0
	}
	for range n {
		c := r.name("capability")
		if k := len(m.Capabilities); k > 0 && m.Capabilities[k-1] >= c {
			r.fail("capability %q is out of order", c)
		}
		m.Capabilities = append(m.Capabilities, c)
	}
	if n = r.count(minManifestModule); n > route.MaxModules {
		r.fail("%d modules, at most %d are allowed", n, route.MaxModules)
		n = 0
	}
	total, routes := 0, 0
	for range n {
		e := r.moduleEntry()
		if k := len(m.Modules); k > 0 && m.Modules[k-1].Name >= e.Name {
			r.fail("module %q is out of order", e.Name)
		}
		for _, c := range e.Chunks {
			total += c.Size
		}
		routes += e.Routes
		m.Modules = append(m.Modules, e)
		if r.err != nil {
			break
		}
	}
	if total > MaxSnapshotBytes {
		r.fail("chunks of %d bytes, at most %d are allowed", total, MaxSnapshotBytes)
	}
	if routes > route.MaxRoutes {
		r.fail("%d routes, at most %d are allowed", routes, route.MaxRoutes)
	}
	if r.more() {
		r.fail("bytes after the end")
	}
	if r.err != nil {
		return Manifest{}, r.err
	}
	return m, nil
}

func (r *reader) name(what string) string {
	s := r.string()
	if r.err == nil && (s == "" || len(s) > maxNameBytes) {
		r.fail("%s has a name of %d bytes", what, len(s))
	}
	return s
}

// visible tells whether a module's name has no byte that could end it in what
// moduleDigest hashes.
func visible(name string) bool {
	return !strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c == 0x7f })
}

func (r *reader) moduleEntry() ModuleEntry {
	e := ModuleEntry{Name: r.name("module")}
	if !visible(e.Name) {
		r.fail("module name %q has white space or a control character", e.Name)
	}
	routes := r.uvarint()
	if n := r.count(minManifestChunk); n > 0 {
		e.Chunks = make([]ChunkRef, n)
	}
	var size uint64
	for i := range e.Chunks {
		copy(e.Chunks[i].Digest[:], r.bytes(uint64(len(Digest{}))))
		n := r.uvarint()
		if r.err == nil && (n <= uint64(len(chunkMagic)) || n > uint64(MaxChunkBytes)) {
			r.fail("chunk of %d bytes", n)
		}
		if r.err != nil {
			return e
		}
		e.Chunks[i].Size = int(n)
		size += n
	}
	if routes > min(size/minRecord, route.MaxRoutes) {
		r.fail("%d routes in %d bytes", routes, size)
		return e
	}
	e.Routes = int(routes)
	e.Digest = moduleDigest(e.Name, e.Chunks)
	return e
}

// unionCapabilities joins sorted lists into one.
func unionCapabilities(lists [][]string) []string {
	set := map[string]struct{}{buildinfo.Base: {}}
	for _, l := range lists {
		for _, c := range l {
			set[c] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(set))
}
