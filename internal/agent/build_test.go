package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// flapping answers each question only after it did not for a while, and counts
// how many are open at once.
type flapping struct {
	pieces packed
	away   int // tries of each piece that find etcd away

	mu         sync.Mutex
	tries      map[version.Digest]int
	open, most int
}

func (s *flapping) ask(ctx context.Context, d version.Digest, b []byte) ([]byte, error) {
	s.mu.Lock()
	s.open++
	s.most = max(s.most, s.open)
	s.tries[d]++
	try := s.tries[d]
	s.mu.Unlock()
	select {
	case <-time.After(10 * time.Millisecond):
	case <-ctx.Done():
	}
	s.mu.Lock()
	s.open--
	s.mu.Unlock()
	switch {
	case s.away < 0 || try <= s.away:
		return nil, fmt.Errorf("read: %w", store.ErrUnavailable)
	case b == nil:
		return nil, fmt.Errorf("read: %w", store.ErrNotFound)
	}
	return b, nil
}

func (s *flapping) Manifest(ctx context.Context, d version.Digest) ([]byte, error) {
	return s.ask(ctx, d, s.pieces.manifest)
}

func (s *flapping) Chunk(ctx context.Context, d version.Digest) ([]byte, error) {
	return s.ask(ctx, d, s.pieces.chunks[d])
}

// wide is a table of many modules, so of many chunks.
func wide(n int) *route.Table {
	t := &route.Table{}
	for i := range n {
		m := table(fmt.Sprint(i)).Modules[0]
		m.Name = fmt.Sprintf("m%02d", i)
		m.Routes[0].Hosts = []string{m.Name + ".example.com"}
		t.Modules = append(t.Modules, m)
	}
	route.Normalize(t)
	return t
}

func testBuilder(t *testing.T, away int) (*builder, *flapping, version.Ref) {
	t.Helper()
	return builderOf(t, wide(40), away)
}

func builderOf(t *testing.T, tb *route.Table, away int) (*builder, *flapping, version.Ref) {
	t.Helper()
	s := mustEncode(t, tb)
	f := &flapping{away: away, tries: map[version.Digest]int{}, pieces: packed{manifest: s.ManifestBytes, chunks: map[version.Digest][]byte{}}}
	for d, b := range s.Chunks() {
		f.pieces.chunks[d] = b
	}
	return &builder{
		snapshots: f, cache: version.NewCache(100), library: engine.NewLibrary(proxy.Options{}, middleware.Env{}),
		capabilities: version.Supported(nil), timeout: time.Minute,
	}, f, version.Ref{Number: 1, Digest: s.Digest}
}

func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func TestFetchOutlastsAFlappingEtcd(t *testing.T) {
	b, f, ref := testBuilder(t, 3)
	synctest.Test(t, func(t *testing.T) {
		e, err := b.build(t.Context(), ref, nil, closed(), func(string) {})
		if err != nil || e.Routes() != 40 {
			t.Fatalf("build: %v", err)
		}
		if f.most > fetchers {
			t.Errorf("%d fetches at once, at most %d are allowed", f.most, fetchers)
		}
	})
	before := len(f.tries)
	f.tries = map[version.Digest]int{}
	if _, err := b.build(t.Context(), ref, nil, closed(), func(string) {}); err != nil {
		t.Fatal(err)
	}
	if len(f.tries) != 1 {
		t.Errorf("fetched %d of %d pieces again, want the manifest only", len(f.tries), before)
	}
}

func TestBuildEndsWithItsBudgetAndItsCause(t *testing.T) {
	b, f, ref := testBuilder(t, -1)
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		_, err := b.build(t.Context(), ref, nil, closed(), func(string) {})
		var r refusal
		if took := time.Since(began); errors.As(err, &r) || !errors.Is(err, store.ErrUnavailable) || took < b.timeout || took > b.timeout+time.Second {
			t.Errorf("etcd away: %v after %v", err, took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := b.build(ctx, ref, nil, closed(), func(string) {}); !errors.Is(err, context.Canceled) || errors.As(err, &r) {
			t.Errorf("superseded: %v", err)
		}
		f.away = 0
		for d := range f.pieces.chunks {
			delete(f.pieces.chunks, d)
			break
		}
		if _, err := b.build(t.Context(), ref, nil, closed(), func(string) {}); !errors.As(err, &r) || !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a chunk that is gone: %v", err)
		}
	})
}

func TestI6_APanicIsARefusal(t *testing.T) {
	b, _, ref := testBuilder(t, 0)
	_, err := b.build(t.Context(), ref, nil, closed(), func(s string) {
		if s == StageCompiling {
			panic("boom")
		}
	})
	var r refusal
	if !errors.As(err, &r) {
		t.Errorf("panic: %v", err)
	}
}

// panicking is an etcd whose chunks make whoever reads them panic.
type panicking struct{ *flapping }

func (panicking) Chunk(context.Context, version.Digest) ([]byte, error) { panic("boom") }

func TestI6_APanicWhileFetchingIsARefusal(t *testing.T) {
	b, f, ref := testBuilder(t, 0)
	b.snapshots = panicking{f}
	_, err := b.build(t.Context(), ref, nil, closed(), func(string) {})
	var r refusal
	if !errors.As(err, &r) {
		t.Errorf("prepared: %v", err)
	}
	log := slog.New(slog.DiscardHandler)
	b.disk = newWriter(&disk{root: t.TempDir(), group: "g", log: log}, "v", log)
	if err := b.mend(t.Context(), ref.Digest); err == nil {
		t.Error("mended by a panic")
	}
}

// late is an etcd that is away until then.
type late struct {
	*flapping
	until time.Time
}

func (s late) Manifest(ctx context.Context, d version.Digest) ([]byte, error) {
	if time.Now().Before(s.until) {
		return nil, fmt.Errorf("read: %w", store.ErrUnavailable)
	}
	return s.flapping.Manifest(ctx, d)
}

// The budget is a compile's: that etcd was away meanwhile is no reason to refuse.
func TestTheBudgetIsForCompiling(t *testing.T) {
	for _, c := range []struct {
		away, compile time.Duration
		refused       bool
	}{
		{away: 58 * time.Second, compile: 3 * time.Second},
		{away: 0, compile: 61 * time.Second, refused: true},
	} {
		tb := wide(40)
		tb.Modules[0].Routes[0].Middlewares = []route.Middleware{{Kind: "headers", Config: `{"request":{"set":{"X-A":"${env:X}"}}}`}}
		route.Normalize(tb)
		b, f, ref := builderOf(t, tb, 0)
		b.capabilities = engine.Capabilities()
		b.library = engine.NewLibrary(proxy.Options{}, middleware.Env{Lookup: func(string) (string, bool) {
			time.Sleep(c.compile) // the bubble's
			return "x", true
		}})
		synctest.Test(t, func(t *testing.T) {
			b.snapshots = late{f, time.Now().Add(c.away)}
			_, err := b.build(t.Context(), ref, nil, closed(), func(string) {})
			var r refusal
			if refused := errors.As(err, &r); refused != c.refused || !refused && err != nil {
				t.Errorf("etcd away for %s, compiled for %s: %v", c.away, c.compile, err)
			}
		})
	}
}

// Whoever looks for signs of life waits for etcd with a build, and not for a
// decode that hangs.
func TestDecodingIsNoWaiting(t *testing.T) {
	b, f, ref := testBuilder(t, 0)
	var mu sync.Mutex
	var said string
	var waiting bool
	asked := map[bool]int{} // questions by whether it said that it waits
	b.sign = func(waits bool) {
		mu.Lock()
		defer mu.Unlock()
		waiting = waits
		said += map[bool]string{true: "waits ", false: "works "}[waits]
	}
	b.snapshots = asking{f, func() {
		mu.Lock()
		defer mu.Unlock()
		asked[waiting]++
	}}
	_, err := b.build(t.Context(), ref, nil, closed(), func(string) {})
	// A sign before it decodes and for each of the 40 chunks that it does.
	if want := "waits " + strings.Repeat("works ", 41); err != nil || said != want {
		t.Errorf("%v: it says\n%s, want\n%s", err, said, want)
	}

	// What the cache had and has lost is fetched while it decodes: that is waiting, too.
	said = ""
	lost := &fetcher{builder: b, all: version.MapFetcher{}, got: map[version.Digest][]byte{}, refs: map[version.Digest]version.ChunkRef{}}
	for d := range f.pieces.chunks {
		_, _ = lost.Chunk(t.Context(), d)
		break
	}
	if said != "waits works " || asked[false] != 0 || asked[true] <= 40 {
		t.Errorf("it says %s; asked etcd %d times waiting, %d times not", said, asked[true], asked[false])
	}
}

// asking tells of each question for a chunk.
type asking struct {
	*flapping
	tell func()
}

func (s asking) Chunk(ctx context.Context, d version.Digest) ([]byte, error) {
	s.tell()
	return s.flapping.Chunk(ctx, d)
}
