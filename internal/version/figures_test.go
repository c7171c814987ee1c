package version

import (
	"bytes"
	"maps"
	"slices"
	"testing"

	"routerd.dev/internal/route"
)

// One route changed, added, removed or moved in 100,000 fetches at most 2 % of
// what the whole takes, the manifest included.
func TestOneRouteInAHundredThousandMovesFewBytes(t *testing.T) {
	before := largeTable(100_000)
	base, err := Encode(before)
	if err != nil {
		t.Fatal(err)
	}
	have := maps.Collect(base.Chunks())
	whole := len(base.PackedManifest())
	for _, p := range have {
		whole += len(p)
	}
	t.Logf("whole: %d bytes in %d chunks, manifest %d (%d unpacked)", whole, len(have), len(base.PackedManifest()), len(base.ManifestBytes))

	edits := map[string]func(m *route.Module){
		"change": func(m *route.Module) { m.Routes[500].Action.Proxy = &route.Proxy{Upstream: "api", Timeout: 1e9} },
		"path":   func(m *route.Module) { m.Routes[500].Path += "/more" },
		"host":   func(m *route.Module) { m.Routes[500].Hosts = []string{"new.example.com"} },
		"add": func(m *route.Module) {
			r := m.Routes[500]
			r.Name, r.Path = "added", "/added"
			m.Routes = slices.Insert(m.Routes, 500, r)
		},
		"remove": func(m *route.Module) { m.Routes = slices.Delete(m.Routes, 500, 501) },
		"move":   func(m *route.Module) { m.Routes[500], m.Routes[501] = m.Routes[501], m.Routes[500] },
	}
	for name, edit := range edits {
		worst := 0
		for _, k := range []int{17, 99} {
			after := &route.Table{Modules: slices.Clone(before.Modules)}
			m := *after.Modules[k]
			m.Routes = slices.Clone(m.Routes)
			edit(&m)
			after.Modules[k] = &m
			s, err := Encode(after)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(s.ManifestBytes, base.ManifestBytes) {
				t.Fatalf("%s: nothing changed", name)
			}
			moved := len(s.PackedManifest())
			for _, p := range s.ChunksExcept(func(d Digest) bool { return have[d] != nil }) {
				moved += len(p)
			}
			worst = max(worst, moved)
		}
		t.Logf("%s: %d bytes, %.2f %%", name, worst, 100*float64(worst)/float64(whole))
		if worst*50 > whole {
			t.Errorf("%s: fetches %d of %d bytes, more than 2 %%", name, worst, whole)
		}
	}
}
