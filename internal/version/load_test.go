package version

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"sync"
	"testing"

	"routerd.dev/internal/route"
)

// counting counts what is fetched.
type counting struct {
	MapFetcher
	mu sync.Mutex
	n  int
}

func (f *counting) Chunk(ctx context.Context, d Digest) ([]byte, error) {
	f.mu.Lock()
	f.n++
	f.mu.Unlock()
	return f.MapFetcher.Chunk(ctx, d)
}

func TestUnchangedModulesAreTheSameObject(t *testing.T) {
	ctx, c := context.Background(), NewCache(10)
	a := &route.Table{Modules: []*route.Module{manyRoutes("a", 3), manyRoutes("b", 2)}}
	b := Compose(a, []*route.Module{manyRoutes("b", 4)}, false)
	sa, sb := encode(t, a), encode(t, b)
	f := &counting{MapFetcher: maps.Collect(sa.Chunks())}
	maps.Copy(f.MapFetcher, maps.Collect(sb.Chunks()))

	ta, _, err := Load(ctx, sa.Digest, sa.ManifestBytes, f, c)
	if err != nil {
		t.Fatal(err)
	}
	f.n = 0
	tb, m, err := Load(ctx, sb.Digest, sb.ManifestBytes, f, c)
	if err != nil {
		t.Fatal(err)
	}
	if ta.Modules[0] != tb.Modules[0] || ta.Modules[1] == tb.Modules[1] {
		t.Error("the unchanged module is another object, or the changed one the same")
	}
	if f.n != 1 {
		t.Errorf("%d chunks were fetched for one that changed", f.n)
	}
	if !slices.Equal(m.Capabilities, sb.Manifest.Capabilities) || !c.Has(m.Modules[0].Digest) {
		t.Errorf("manifest %+v", m)
	}

	// Of many loaders at once all get the same object.
	c = NewCache(10)
	got := make([]*route.Table, 8)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { got[i], _, _ = Load(ctx, sa.Digest, sa.ManifestBytes, f, c) })
	}
	wg.Wait()
	for _, tb := range got {
		if tb == nil || tb.Modules[0] != got[0].Modules[0] {
			t.Fatal("loaders at once got different objects")
		}
	}
}

func TestCacheKnowsThoseUsedLast(t *testing.T) {
	c := NewCache(2)
	table := func(names ...string) *Snapshot {
		tb := &route.Table{}
		for _, n := range names {
			tb.Modules = append(tb.Modules, manyRoutes(n, 2))
		}
		return encode(t, tb)
	}
	has := func(want ...string) {
		t.Helper()
		all := table("a", "b", "c").Manifest.ModuleDigests()
		for _, n := range []string{"a", "b", "c"} {
			if c.Has(all[n]) != slices.Contains(want, n) {
				t.Errorf("module %s is kept: %v, want %v", n, c.Has(all[n]), want)
			}
		}
	}
	var held []*route.Table
	for _, step := range []struct{ load, want []string }{
		{[]string{"a", "b"}, []string{"a", "b"}},
		{[]string{"a"}, []string{"a", "b"}},
		{[]string{"c"}, []string{"a", "c"}},
		{[]string{"a", "b", "c"}, []string{"b", "c"}},
	} {
		loaded, err := load(table(step.load...), c)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, loaded)
		has(step.want...)
	}
	runtime.KeepAlive(held)
}

// What no table in use has must not stay in memory: an instance sees thousands
// of revisions.
func TestCacheKeepsNothingAlive(t *testing.T) {
	c := NewCache(100)
	s := encode(t, &route.Table{Modules: []*route.Module{manyRoutes("a", 2)}})
	loaded, err := load(s, c)
	if err != nil {
		t.Fatal(err)
	}
	module := s.Manifest.Modules[0].Digest
	runtime.GC()
	if !c.Has(module) {
		t.Error("a module in use is forgotten")
	}
	runtime.KeepAlive(loaded)
	loaded = nil
	runtime.GC()
	if c.Has(module) {
		t.Error("a module that nobody has is kept")
	}
}

func TestLoadFailsAsItsSourceDoes(t *testing.T) {
	s := encode(t, &route.Table{Modules: []*route.Module{manyRoutes("a", 3)}})
	if _, _, err := Load(context.Background(), s.Digest, s.ManifestBytes, MapFetcher{}, nil); !errors.Is(err, ErrNoChunk) || errors.Is(err, ErrCorrupt) {
		t.Errorf("a missing chunk: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := Load(ctx, s.Digest, s.ManifestBytes, MapFetcher(maps.Collect(s.Chunks())), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that ended: %v", err)
	}
}

func TestCapabilitiesFollowFromWhatIsUsed(t *testing.T) {
	condition := []route.Condition{{Name: "A", Op: route.OpEqual, Value: "b"}}
	for _, c := range []struct {
		m    route.Module
		want []string
	}{
		{route.Module{}, nil},
		{route.Module{Routes: []route.Route{{Path: "/{a}/b/{c...}"}, {Prefix: "/"}}}, nil},
		{route.Module{Routes: []route.Route{{Path: "/{a}.json"}}}, []string{"match/mixed/1"}},
		{route.Module{Routes: []route.Route{{Prefix: "/v{a}/x"}}}, []string{"match/mixed/1"}},
		{route.Module{Routes: []route.Route{{Headers: condition, Query: condition, Cookies: condition}}}, []string{"match/cookie/1", "match/header/1", "match/query/1"}},
		{route.Module{Routes: []route.Route{{Query: []route.Condition{{Op: route.OpRegexp}}}}}, []string{"match/query/1", "match/regexp/1"}},
		{route.Module{Routes: []route.Route{{Middlewares: []route.Middleware{{Kind: "x"}, {Use: "y"}, {Kind: "x"}, {Kind: "z"}}}}}, []string{"middleware/x/1", "middleware/z/1"}},
		{route.Module{Middlewares: []route.NamedMiddleware{{Kind: "x"}}}, []string{"middleware/x/1"}},
		{route.Module{Routes: []route.Route{{Action: route.Action{Proxy: &route.Proxy{}}}, {Action: route.Action{Respond: &route.Respond{}}}, {Action: route.Action{Redirect: &route.Redirect{}}}}}, []string{"action/proxy/1", "action/redirect/1", "action/respond/1"}},
		{route.Module{Upstreams: []route.Upstream{{Targets: []route.Target{{URL: "https://a"}}}}}, []string{"upstream/tls/1"}},
	} {
		got := Capabilities(&route.Table{Modules: []*route.Module{&c.m}})
		want := append(slices.Clone(c.want), "route/1")
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%+v needs %v, want %v", c.m, got, want)
		}
		if missing := (Manifest{Capabilities: got}).Missing(Supported([]string{"x", "z"})); len(missing) > 0 {
			t.Errorf("%v is not supported", missing)
		}
	}
	m := Manifest{Capabilities: []string{"middleware/x/1", "route/1", "zzz/1"}}
	if got := m.Missing(Supported(nil)); !slices.Equal(got, []string{"middleware/x/1", "zzz/1"}) {
		t.Errorf("missing %v", got)
	}
}
