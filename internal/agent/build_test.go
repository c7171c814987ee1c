package agent

import (
	"context"
	"errors"
	"fmt"
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
	s := mustEncode(t, wide(40))
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
