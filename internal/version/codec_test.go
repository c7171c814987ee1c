package version

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"routerd.dev/internal/route"
)

func encode(t interface {
	Helper()
	Fatal(...any)
}, tb *route.Table,
) *Snapshot {
	t.Helper()
	s, err := Encode(tb)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func load(s *Snapshot, c *Cache) (*route.Table, error) {
	t, _, err := Load(context.Background(), s.Digest, s.ManifestBytes, MapFetcher(maps.Collect(s.Chunks())), c)
	return t, err
}

func TestLoadGivesBackWhatWasEncoded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := genTable(t, "table")
		s := encode(t, want)
		got, err := load(s, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got %v\nwant %v", Diff(want, got), want)
		}
		if again := encode(t, got); again.Digest != s.Digest {
			t.Fatal("what was loaded has another digest")
		}
	})
}

func TestDigestIsEqualIfAndOnlyIfTheTableIs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := genTable(t, "a")
		shuffled := shuffle(t, a)
		route.Normalize(shuffled)
		if encode(t, shuffled).Digest != encode(t, a).Digest {
			t.Fatal("the order of what has no order changed the digest")
		}
		b := genTable(t, "b")
		if same := reflect.DeepEqual(a, b); same != (encode(t, a).Digest == encode(t, b).Digest) {
			t.Fatalf("tables equal: %v; digests: %s and %s", same, encode(t, a).Digest, encode(t, b).Digest)
		}
		da, db := encode(t, a).Manifest.ModuleDigests(), encode(t, b).Manifest.ModuleDigests()
		ma, mb := modulesByName(a), modulesByName(b)
		for name := range da {
			if _, ok := db[name]; ok && reflect.DeepEqual(ma[name], mb[name]) != (da[name] == db[name]) {
				t.Fatalf("module %s: digests %s and %s", name, da[name], db[name])
			}
		}
	})
}

// large is a table of many chunks, for what needs some.
func large(t testing.TB) (*route.Table, *Snapshot) {
	t.Helper()
	tb := &route.Table{Modules: []*route.Module{manyRoutes("big", 12_000), manyRoutes("small", 10)}}
	return tb, encode(t, tb)
}

func TestLargeModulesAreCut(t *testing.T) {
	tb, s := large(t)
	got, err := load(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, tb) {
		t.Fatal("a module of many chunks does not come back")
	}
	refs := s.Manifest.Modules[0].Chunks
	if len(refs) < 10 {
		t.Fatalf("%d chunks", len(refs))
	}
	for i, c := range refs {
		if c.Size > MaxChunkBytes || i < len(refs)-1 && c.Size < minChunk/4 {
			t.Errorf("chunk %d has %d bytes", i, c.Size)
		}
	}
	total := 0
	for d, packed := range s.Chunks() {
		if len(packed) > MaxPackedBytes {
			t.Errorf("chunk %s has %d packed bytes", d.Short(), len(packed))
		}
		total++
	}
	if total != len(refs)+1 || len(s.Manifest.Chunks()) != total || s.Manifest.Routes() != 12_010 {
		t.Errorf("%d chunks and %d routes, want %d and 12010", total, s.Manifest.Routes(), len(refs)+1)
	}
}

// An edit of one record leaves all chunks but its own, and a neighbour or two
// where it is added or removed.
func TestChunksAwayFromAChangeStay(t *testing.T) {
	tb, before := large(t)
	n := len(before.Manifest.Modules[0].Chunks)
	r := rand.New(rand.NewPCG(1, 1))
	for edit := range 24 {
		m := *tb.Modules[0]
		m.Routes = slices.Clone(m.Routes)
		i := r.IntN(len(m.Routes))
		most := 1
		switch edit % 3 {
		case 0:
			m.Routes[i].Priority = 7
		case 1:
			m.Routes, most = slices.Delete(m.Routes, i, i+1), n/2
		default:
			added := m.Routes[i]
			added.Name = "new"
			m.Routes, most = slices.Insert(m.Routes, i, added), n/2
		}
		after := encode(t, &route.Table{Modules: []*route.Module{&m, tb.Modules[1]}})
		moved := 0
		for d := range after.chunks {
			if before.chunks[d] == nil {
				moved++
			}
		}
		// Cuts fall in step again soon; n/2 would take a run of bad luck.
		if moved < 1 || moved > most {
			t.Fatalf("edit %d at %d: %d of %d chunks changed, at most %d may", edit, i, moved, n, most)
		}
	}
}

func TestI6_FlippedBytesAreRefused(t *testing.T) {
	tb := &route.Table{Modules: []*route.Module{manyRoutes("a", 3), manyRoutes("b", 2)}}
	s := encode(t, tb)
	flip := func(b []byte, i, bit int) []byte {
		c := bytes.Clone(b)
		c[i] ^= 1 << bit
		return c
	}
	for i := range s.ManifestBytes {
		for bit := range 8 {
			if _, err := ParseManifest(s.Digest, flip(s.ManifestBytes, i, bit)); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("manifest with byte %d flipped: %v", i, err)
			}
		}
	}
	for d, packed := range s.Chunks() {
		f := MapFetcher(maps.Collect(s.Chunks()))
		for i := range packed {
			f[d] = flip(packed, i, i%8)
			got, _, err := Load(context.Background(), s.Digest, s.ManifestBytes, f, nil)
			if err == nil && !reflect.DeepEqual(got, tb) {
				t.Fatalf("packed chunk with byte %d flipped is taken for another table", i)
			}
			if err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatalf("packed chunk with byte %d flipped: %v", i, err)
			}
		}
		p := newPacker()
		for i := range s.chunks[d] {
			f[d] = p.pack(flip(s.chunks[d], i, i%8))
			if _, _, err := Load(context.Background(), s.Digest, s.ManifestBytes, f, nil); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("chunk with byte %d flipped: %v", i, err)
			}
		}
	}
}

// Whoever can make digests fit still cannot have one table in two forms: what
// is decoded encodes to the same bytes.
func TestI6_OtherFormsAreRefused(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := genModule(t, "m")
		route.NormalizeModule(m)
		chunks, err := encodeModule(m)
		if err != nil {
			t.Fatal(err)
		}
		if len(chunks) == 0 {
			return
		}
		b := bytes.Clone(chunks[0])
		i := rapid.IntRange(0, len(b)-1).Draw(t, "at")
		switch rapid.IntRange(0, 2).Draw(t, "edit") {
		case 0:
			b[i] = rapid.Byte().Draw(t, "byte")
		case 1:
			b = slices.Insert(b, i, rapid.Byte().Draw(t, "byte"))
		default:
			b = slices.Delete(b, i, i+1)
		}
		checkDecode(t, "m", b)
	})
}

// checkDecode decodes one chunk as a module of its own and, when it is
// accepted, wants the same bytes back.
func checkDecode(t interface{ Fatalf(string, ...any) }, name string, chunk []byte) {
	for routes := range countRoutes(chunk) + 2 {
		d := newModuleReader(name, routes)
		err := d.chunk(string(chunk))
		var m *route.Module
		if err == nil {
			m, err = d.module()
		}
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
				t.Fatalf("error is of no kind: %v", err)
			}
			continue
		}
		again, err := encodeModule(m)
		if err != nil || len(again) != 1 || !bytes.Equal(again[0], chunk) {
			t.Fatalf("accepted %q, which encodes to %q (%v)", chunk, again, err)
		}
	}
}

// countRoutes tries how many routes a chunk has, at most 8.
func countRoutes(chunk []byte) int {
	d := newModuleReader("m", 8)
	_ = d.chunk(string(chunk))
	return len(d.m.Routes)
}

// One and the same run of records can be cut in one way only.
func TestI6_OtherCutsAreRefused(t *testing.T) {
	m := manyRoutes("m", 6000)
	good, err := encodeModule(m)
	if err != nil {
		t.Fatal(err)
	}
	read := func(chunks [][]byte) error {
		d := newModuleReader("m", len(m.Routes))
		for _, c := range chunks {
			if err := d.chunk(string(c)); err != nil {
				return err
			}
		}
		_, err := d.module()
		return err
	}
	if err := read(good); err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(8) {
		e := moduleWriter{writer: writer{symbols: map[string]uint64{}}, cut: cutter{seed: seed}}
		for i := range m.Routes {
			_ = e.add(hashRoute(&m.Routes[i]), func(w *writer) error { return w.route(&m.Routes[i]) })
		}
		for i := range m.Tests {
			_ = e.add(hashTest(&m.Tests[i]), func(w *writer) error { return w.test(&m.Tests[i]) })
		}
		e.end()
		if err := read(e.chunks); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut by seed %d: %v", seed, err)
		}
	}
	for name, chunks := range map[string][][]byte{
		"first chunk gone":  good[1:],
		"chunk twice":       append([][]byte{good[0]}, good...),
		"tests first":       append([][]byte{good[len(good)-1]}, good...),
		"empty chunk added": append([][]byte{[]byte(chunkMagic)}, good...),
		"no chunks":         nil,
	} {
		if err := read(chunks); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestI6_UnpackingIsBounded(t *testing.T) {
	s := encode(t, &route.Table{Modules: []*route.Module{manyRoutes("a", 3)}})
	ref := s.Manifest.Chunks()[0]
	bomb := newPacker().pack(make([]byte, 64<<20))
	if len(bomb) > MaxPackedBytes {
		t.Fatalf("the bomb has %d bytes", len(bomb))
	}
	for name, packed := range map[string][]byte{
		"bomb":      bomb,
		"too large": make([]byte, MaxPackedBytes+1),
		"empty":     nil,
		"garbage":   []byte("garbage"),
		"short":     newPacker().pack(s.chunks[ref.Digest][:ref.Size-1]),
		"long":      newPacker().pack(append(bytes.Clone(s.chunks[ref.Digest]), 0)),
	} {
		var err error
		size := allocated(func() {
			_, _, err = Load(context.Background(), s.Digest, s.ManifestBytes, MapFetcher{ref.Digest: packed}, NewCache(1))
		})
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		if size > 8<<20 {
			t.Errorf("%s: %d bytes were allocated", name, size)
		}
	}
	if _, err := UnpackManifest(bomb); !errors.Is(err, ErrCorrupt) {
		t.Errorf("manifest bomb: %v", err)
	}
	if b, err := UnpackManifest(s.PackedManifest()); err != nil || !bytes.Equal(b, s.ManifestBytes) {
		t.Errorf("manifest does not come back: %v", err)
	}
}

func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// remanifest changes a manifest and makes its digest fit.
func remanifest(s *Snapshot, edit func(*Manifest)) (Digest, []byte) {
	m := s.Manifest
	m.Capabilities = slices.Clone(m.Capabilities)
	m.Modules = slices.Clone(m.Modules)
	for i := range m.Modules {
		m.Modules[i].Chunks = slices.Clone(m.Modules[i].Chunks)
	}
	edit(&m)
	b := m.encode()
	return DigestOf(b), b
}

func TestI6_ManifestsThatLieAreRefused(t *testing.T) {
	tb := &route.Table{Modules: []*route.Module{manyRoutes("a", 3), manyRoutes("b", 2)}}
	s := encode(t, tb)
	f := MapFetcher(maps.Collect(s.Chunks()))
	full := NewCache(10)
	if _, _, err := Load(context.Background(), s.Digest, s.ManifestBytes, f, full); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*Manifest){
		"capability left out":   func(m *Manifest) { m.Capabilities = m.Capabilities[:1] },
		"capability added":      func(m *Manifest) { m.Capabilities = append(m.Capabilities, "zzz/1") },
		"capability twice":      func(m *Manifest) { m.Capabilities = append(m.Capabilities, m.Capabilities[len(m.Capabilities)-1]) },
		"capability empty":      func(m *Manifest) { m.Capabilities = slices.Insert(m.Capabilities, 0, "") },
		"capability too long":   func(m *Manifest) { m.Capabilities = append(m.Capabilities, "z"+strings.Repeat("z", maxNameBytes)) },
		"modules exchanged":     func(m *Manifest) { slices.Reverse(m.Modules) },
		"module twice":          func(m *Manifest) { m.Modules = append(m.Modules, m.Modules[1]) },
		"module name of lines":  func(m *Manifest) { m.Modules[0].Name = "a\nb" },
		"module name of blanks": func(m *Manifest) { m.Modules[0].Name = "a b" },
		"module without name":   func(m *Manifest) { m.Modules[0].Name = "" },
		"more routes":           func(m *Manifest) { m.Modules[0].Routes++ },
		"fewer routes":          func(m *Manifest) { m.Modules[0].Routes-- },
		"absurdly many routes":  func(m *Manifest) { m.Modules[0].Routes = 1 << 40 },
		"chunk larger":          func(m *Manifest) { m.Modules[0].Chunks[0].Size++ },
		"chunk smaller":         func(m *Manifest) { m.Modules[0].Chunks[0].Size-- },
		"chunk of nothing":      func(m *Manifest) { m.Modules[0].Chunks[0].Size = 0 },
		"chunk beyond limit":    func(m *Manifest) { m.Modules[0].Chunks[0].Size = MaxChunkBytes + 1 },
		"chunk of another":      func(m *Manifest) { m.Modules[0].Chunks[0] = m.Modules[1].Chunks[0] },
		"chunk twice":           func(m *Manifest) { m.Modules[0].Chunks = append(m.Modules[0].Chunks, m.Modules[0].Chunks[0]) },
		"module without chunks": func(m *Manifest) { m.Modules[0].Chunks = nil },
	} {
		d, b := remanifest(s, edit)
		for _, c := range []*Cache{nil, full} {
			if _, _, err := Load(context.Background(), d, b, f, c); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	d, b := remanifest(s, func(m *Manifest) { m.Modules = append(m.Modules, ModuleEntry{Name: "c"}) })
	if got, _, err := Load(context.Background(), d, b, f, nil); err != nil || len(got.Modules) != 3 {
		t.Errorf("an empty module: %v", err)
	}
	if _, err := ParseManifest(DigestOf(nil), make([]byte, MaxManifestBytes+1)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a manifest over the limit: %v", err)
	}
}

// A module's digest is of its name and its chunks: no name may say what a chunk does.
func TestI6_ModulesOfOneDigestAreRefused(t *testing.T) {
	s := encode(t, &route.Table{Modules: []*route.Module{manyRoutes("x", 3)}})
	chunks := s.Manifest.Modules[0].Chunks
	forged := fmt.Sprintf("x\n%s %d", chunks[0].Digest, chunks[0].Size)
	if moduleDigest(forged, nil) != s.Manifest.Modules[0].Digest {
		t.Fatal("this is not how digests are made")
	}
	d, b := remanifest(s, func(m *Manifest) { m.Modules = []ModuleEntry{{Name: forged}} })
	if _, err := ParseManifest(d, b); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a module with the digest of another: %v", err)
	}
}

// Limits that Validate holds bind a hand-written snapshot before it is in memory.
func TestI6_RecordsAreBounded(t *testing.T) {
	for tag, c := range map[byte]struct {
		record string
		most   int
	}{
		tagUpstream:   {strings.Repeat("\x00", 11), route.MaxUpstreams},
		tagMiddleware: {"\x00\x00\x01", route.MaxMiddlewares},
		tagTest:       {"\x00\x00\x00\x00\x00\x01\x00\x00", route.MaxTests},
	} {
		d := newModuleReader("m", 0)
		d.s = string(tag) + c.record
		for range c.most + 1 {
			d.off, d.symbols = 0, nil
			clear(d.known)
			if d.record(); d.err != nil {
				break
			}
		}
		if have := len(d.m.Upstreams) + len(d.m.Middlewares) + len(d.m.Tests); d.err == nil || have != c.most || !strings.Contains(d.err.Error(), "more than") {
			t.Errorf("records of kind %d: %d of them and %v", tag, have, d.err)
		}
	}

	var m Manifest
	size := MaxChunkBytes
	for i := range route.MaxRoutes/(4*size/minRecord) + 2 {
		e := ModuleEntry{Name: fmt.Sprintf("m%d", i+10), Routes: 4 * size / minRecord}
		for range 4 {
			e.Chunks = append(e.Chunks, ChunkRef{Size: size})
		}
		m.Modules = append(m.Modules, e)
	}
	b := m.encode()
	if _, err := ParseManifest(DigestOf(b), b); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "routes, at most") {
		t.Errorf("too many routes in all modules together: %v", err)
	}
}

func TestAnotherFormatIsNamed(t *testing.T) {
	b := []byte("RDM\x02anything")
	if _, err := ParseManifest(DigestOf(b), b); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "format 2, this build reads 1") {
		t.Errorf("manifest: %v", err)
	}
	if err := newModuleReader("m", 0).chunk("RDC\x02anything"); !errors.Is(err, ErrFormat) {
		t.Errorf("chunk: %v", err)
	}
	if err := newModuleReader("m", 0).chunk(chunkMagic + "\x09"); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "kind 9") {
		t.Errorf("record of another kind: %v", err)
	}
}

func TestEncodeRefusesWhatItCannotHold(t *testing.T) {
	module := func(edit func(*route.Module)) *route.Table {
		m := manyRoutes("m", 2)
		edit(m)
		return &route.Table{Modules: []*route.Module{m}}
	}
	for name, tb := range map[string]*route.Table{
		"modules out of order":     {Modules: []*route.Module{{Name: "b"}, {Name: "a"}}},
		"module twice":             {Modules: []*route.Module{{Name: "a"}, {Name: "a"}}},
		"module without name":      {Modules: []*route.Module{{}}},
		"module name of lines":     {Modules: []*route.Module{{Name: "a\nb"}}},
		"too many upstreams":       module(func(m *route.Module) { m.Upstreams = make([]route.Upstream, route.MaxUpstreams+1) }),
		"too many middlewares":     module(func(m *route.Module) { m.Middlewares = make([]route.NamedMiddleware, route.MaxMiddlewares+1) }),
		"too many tests":           module(func(m *route.Module) { m.Tests = make([]route.Test, route.MaxTests+1) }),
		"too many routes":          module(func(m *route.Module) { m.Routes = make([]route.Route, route.MaxRoutes+1) }),
		"upstreams out of order":   module(func(m *route.Module) { m.Upstreams = []route.Upstream{{Name: "b"}, {Name: "a"}} }),
		"middlewares out of order": module(func(m *route.Module) { m.Middlewares = []route.NamedMiddleware{{Name: "b"}, {Name: "a"}} }),
		"hosts out of order":       module(func(m *route.Module) { m.Routes[0].Hosts = []string{"b", "a"} }),
		"unknown operator":         module(func(m *route.Module) { m.Routes[0].Headers = []route.Condition{{Name: "A"}} }),
		"unknown host mode":        module(func(m *route.Module) { m.Upstreams = []route.Upstream{{Name: "a", HostMode: 9}} }),
		"record too large":         module(func(m *route.Module) { m.Routes[0].Action.Respond.Body = strings.Repeat("x", maxChunk) }),
		"kind too long":            module(func(m *route.Module) { m.Middlewares = []route.NamedMiddleware{{Kind: strings.Repeat("k", 300)}} }),
	} {
		if s, err := Encode(tb); err == nil {
			t.Errorf("%s: encoded to %s", name, s.Digest)
		}
	}
	many := &route.Table{}
	for i := range route.MaxModules + 1 {
		many.Modules = append(many.Modules, &route.Module{Name: fmt.Sprintf("m%05d", i)})
	}
	if _, err := Encode(many); err == nil {
		t.Error("too many modules were encoded")
	}
	many.Modules = many.Modules[1:]
	if _, err := load(encode(t, many), nil); err != nil {
		t.Errorf("as many modules as are allowed: %v", err)
	}
}

func FuzzDecodeModule(f *testing.F) {
	m := manyRoutes("m", 4)
	m.Upstreams = []route.Upstream{{Name: "u", Targets: []route.Target{{URL: "http://a", Weight: 1}}}}
	m.Routes[0].Headers = []route.Condition{{Name: "A", Op: route.OpRegexp, Value: "x"}}
	m.Routes[1].Action = route.Action{Redirect: &route.Redirect{To: "/x", Status: 302}}
	chunks, err := encodeModule(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(chunks[0])
	f.Add([]byte(chunkMagic))
	f.Fuzz(func(t *testing.T, b []byte) { checkDecode(t, "m", b) })
}

func FuzzParseManifest(f *testing.F) {
	_, s := large(f)
	f.Add(s.ManifestBytes)
	f.Add([]byte(manifestMagic + "\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseManifest(DigestOf(b), b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
				t.Fatalf("error is of no kind: %v", err)
			}
			return
		}
		if again := m.encode(); !bytes.Equal(again, b) {
			t.Fatalf("accepted %q, which encodes to %q", b, again)
		}
	})
}

// Each rule of the form by the smallest chunk that breaks it.
func TestI6_EachRuleOfTheFormHolds(t *testing.T) {
	read := func(records string) error {
		d := newModuleReader("m", 1)
		err := d.chunk(chunkMagic + records)
		if err == nil {
			_, err = d.module()
		}
		return err
	}
	for _, good := range []string{
		"\x03\x00\x01a", // a route named a, and nothing else
		"\x03\x03\x01a\x02\x02x\x02y\x01\x01",
		"\x03\x80\x01\x01a\x01\x04\x0a\x00\x00\x00\x08",
		"\x03\x10\x01a\x01\x02n\x01\x00",
	} {
		if err := read(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for bad, why := range map[string]string{
		"":                  "chunk is empty",
		"\x00":              "kind 0",
		"\x03":              "cut off",
		"\x03\x00\x02a":     "runs past the end",
		"\x03\x00\x80":      "cut off",
		"\x03\x80\x00\x01a": "longer than it needs to be",
		"\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02\x01a": "64 bits",
		"\x03\x80\x40\x01a":                                 "fields that this build does not know",
		"\x03\x04\x01a\x00":                                 "a field that is empty",
		"\x03\x01\x01a\x00":                                 "a field that is empty",
		"\x03\x01\x01a\x7f":                                 "list of 127 runs past the end",
		"\x03\x01\x01a\x01\x01":                             "symbol 0 is not known",
		"\x03\x01\x01a\x02\x02x\x02x":                       "spelt out twice",
		"\x03\x01\x01a\x02\x02y\x02x":                       "not sorted",
		"\x03\x80\x01\x01a\x01\x05aaaaa":                    "address of 5 bytes",
		"\x03\x80\x01\x01a\x01\x00\x00":                     "client prefix is not valid",
		"\x03\x80\x01\x01a\x01\x04\x0a\x00\x00\x00\x21":     "client prefix is not valid",
		"\x03\x10\x01a\x01\x02n\x05\x00":                    "operator 5",
		"\x03\x10\x01a\x01\x02n\x00\x00":                    "operator 0",
		"\x03\x00\x01a\x02\x01m\x02k\x00":                   "record of kind 2 after one of kind 3",
		"\x03\x00\x01a\x03\x00\x01b":                        "more routes than",
		"\x02\x01m\x02k\x00":                                "has 0 routes",
		"\x01\x01u\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00": "host mode 3",
		"\x01\x01u\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02": "neither 0 nor 1",
		"\x02\x01n\x02k\x00\x02\x01m\x01\x03\x03\x00\x01a":  "middlewares are not sorted",
	} {
		if err := read(bad); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v, want %q", bad, err, why)
		}
	}
}
