package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"routerd.dev/internal/version"
)

// chunkBytes puts n chunks and returns their digests.
func chunkBytes(t *testing.T, s *Store, n int) []version.Digest {
	t.Helper()
	c, err := s.etcd(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ds []version.Digest
	for i := range n {
		d := version.DigestOf(fmt.Append(nil, "chunk", i))
		if _, err := c.Put(t.Context(), s.chunkKey(d), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		ds = append(ds, d)
	}
	return ds
}

// crowd asks for chunks while the turn is held, and returns once all wait, too.
func crowd(t *testing.T, s *Store, wg *sync.WaitGroup, ctxs []context.Context, ds []version.Digest, got []string, errs []error) {
	t.Helper()
	s.chunks.mu.Lock()
	s.chunks.reading = true
	was := len(s.chunks.waiting)
	s.chunks.mu.Unlock()
	for i, d := range ds {
		wg.Go(func() {
			b, err := s.Chunk(ctxs[i], d)
			got[i], errs[i] = string(b), err
		})
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			s.chunks.mu.Lock()
			n := len(s.chunks.waiting)
			s.chunks.mu.Unlock()
			if n == was+i+1 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d wait, want %d", n, was+i+1)
			}
		}
	}
}

func (s *Store) passTurn() {
	s.chunks.mu.Lock()
	defer s.chunks.mu.Unlock()
	s.chunks.pass()
}

// TestChunksComeTogether: everybody gets its own chunk and its own error,
// whoever reads, and at the end nobody has the turn.
func TestChunksComeTogether(t *testing.T) {
	s := open(t)
	ds := chunkBytes(t, s, 20)
	missing := version.DigestOf([]byte("missing"))
	ds[11] = missing
	ctxs, got, errs := make([]context.Context, len(ds)), make([]string, len(ds)), make([]error, len(ds))
	for i := range ctxs {
		ctxs[i] = t.Context()
	}
	var wg sync.WaitGroup
	crowd(t, s, &wg, ctxs, ds, got, errs)
	s.passTurn()
	wg.Wait()
	for i := range ds {
		switch {
		case i == 11:
			if !errors.Is(errs[i], ErrNotFound) {
				t.Errorf("chunk %d is missing: %v", i, errs[i])
			}
		case errs[i] != nil || got[i] != fmt.Sprint(i):
			t.Errorf("chunk %d: %q, %v", i, got[i], errs[i])
		}
	}
	s.chunks.mu.Lock()
	defer s.chunks.mu.Unlock()
	if s.chunks.reading || len(s.chunks.waiting) > 0 {
		t.Errorf("reading: %v, %d wait: nobody reads any more", s.chunks.reading, len(s.chunks.waiting))
	}
}

// TestChunksComeByFewReads holds how many come by one.
func TestChunksComeByFewReads(t *testing.T) {
	s := open(t)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	ctxs, got, errs := make([]context.Context, 20), make([]string, 20), make([]error, 20)
	for i := range ctxs {
		ctxs[i] = ctx
	}
	crowd(t, s, &wg, ctxs, chunkBytes(t, s, 20), got, errs)
	for _, want := range []int{mostChunks, mostChunks, 20 - 2*mostChunks} {
		if n := len(s.chunks.take()); n != want {
			t.Errorf("a read brings %d, want %d", n, want)
		}
	}
	cancel()
	wg.Wait()
}

// TestChunkOfWhoGoesAway: one whose context ends, with the turn or without,
// takes nobody else down and does not keep the turn.
func TestChunkOfWhoGoesAway(t *testing.T) {
	s := open(t)
	ds := chunkBytes(t, s, 12)
	gone, cancel := context.WithCancel(t.Context())
	ctxs, got, errs := make([]context.Context, len(ds)), make([]string, len(ds)), make([]error, len(ds))
	for i := range ctxs {
		ctxs[i] = t.Context()
		if i == 0 || i == 5 {
			ctxs[i] = gone
		}
	}
	var wg sync.WaitGroup
	crowd(t, s, &wg, ctxs, ds, got, errs)
	s.passTurn() // the first may have read by now, or not
	cancel()
	wg.Wait()
	for i := range ds {
		if i == 0 || i == 5 {
			if errs[i] != nil && !errors.Is(errs[i], context.Canceled) {
				t.Errorf("chunk %d: %v", i, errs[i])
			}
		} else if errs[i] != nil || got[i] != fmt.Sprint(i) {
			t.Errorf("chunk %d: %q, %v", i, got[i], errs[i])
		}
	}
	// And one that is called off while it reads for others.
	off, stop := context.WithCancel(t.Context())
	stop()
	others := []*chunkRead{{digest: ds[0], wake: make(chan struct{}, 1)}, {digest: ds[1], wake: make(chan struct{}, 1)}}
	s.chunks.reading = true
	s.readChunks(off, others)
	s.chunks.hand(others, off.Err() == nil)
	if !others[1].turn || others[1].done || len(s.chunks.waiting) != 1 {
		t.Errorf("the next has the turn: %v, was told: %v, %d wait", others[1].turn, others[1].done, len(s.chunks.waiting))
	}
	// And one that goes away with the turn, as the last.
	s.chunks.leave(others[1])
	if s.chunks.reading || len(s.chunks.waiting) > 0 {
		t.Errorf("reading: %v, %d wait: nobody reads any more", s.chunks.reading, len(s.chunks.waiting))
	}
}

// TestChunkAfterAllWentAway: those for whom another reads go away before it is
// called off, as the fetchers of a build that is cancelled do. Nobody of them
// is given the turn: whoever asks next has it.
func TestChunkAfterAllWentAway(t *testing.T) {
	h := halves(t, shared.endpoint(), 1, nil)[0]
	s := through(t, Config{}, h)
	ds := chunkBytes(t, s, mostChunks)
	reader, callOff := context.WithCancel(t.Context())
	build, cancel := context.WithCancel(t.Context())
	ctxs, got, errs := make([]context.Context, len(ds)), make([]string, len(ds)), make([]error, len(ds))
	for i := range ctxs {
		ctxs[i] = build
	}
	ctxs[0] = reader
	var first, others sync.WaitGroup
	h.setDeaf(true)
	crowd(t, s, &first, ctxs[:1], ds[:1], got[:1], errs[:1])
	crowd(t, s, &others, ctxs[1:], ds[1:], got[1:], errs[1:])
	s.passTurn()
	eventually(t, "the first reads for all", func() bool {
		s.chunks.mu.Lock()
		defer s.chunks.mu.Unlock()
		return len(s.chunks.waiting) == 0
	})
	cancel()
	others.Wait()
	callOff()
	first.Wait()
	for i, err := range errs {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("chunk %d: %v", i, err)
		}
	}
	h.setDeaf(false)
	ctx, end := context.WithTimeout(t.Context(), 10*time.Second)
	defer end()
	if b, err := s.Chunk(ctx, ds[3]); err != nil || string(b) != "3" {
		t.Errorf("the next chunk: %q, %v", b, err)
	}
	s.chunks.mu.Lock()
	defer s.chunks.mu.Unlock()
	if s.chunks.reading || len(s.chunks.waiting) > 0 {
		t.Errorf("reading: %v, %d wait: nobody reads any more", s.chunks.reading, len(s.chunks.waiting))
	}
}

// TestViewDecodesOnce: a View shares with the one before what did not change,
// and nothing else.
func TestViewDecodesOnce(t *testing.T) {
	s := open(t)
	if _, _, err := s.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := s.etcd(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	put := func(name, text string) {
		t.Helper()
		if _, err := c.Put(t.Context(), s.key(dirReports+name), text); err != nil {
			t.Fatal(err)
		}
	}
	put("a", `{"instance":"a","group":"g","requests":1,"holds":[]}`)
	put("b", `{"instance":"b","group":"g","requests":2}`)
	requests := func(name string) int64 {
		t.Helper()
		v, err := s.View(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return v.Reports[name].Requests
	}
	if n := requests("a"); n != 1 {
		t.Fatalf("a has %d requests, want 1", n)
	}
	put("a", `{"instance":"a","group":"g","requests":3}`)
	if a, b := requests("a"), requests("b"); a != 3 || b != 2 {
		t.Errorf("a has %d requests and b %d, want 3 and 2", a, b)
	}
	s.cache.mu.Lock()
	d, key := s.cache.decoded, s.key(dirReports+"b")
	b, ok := d[key]
	n := len(d)
	s.cache.mu.Unlock()
	if !ok || n != 2 {
		t.Fatalf("%d records are remembered, b among them: %v; want 2", n, ok)
	}
	if _, err := c.Delete(t.Context(), s.key(dirReports+"a")); err != nil {
		t.Fatal(err)
	}
	put("b", "{") // unreadable: what was known of it before does not stand for it
	v, broken, err := s.ViewBroken(t.Context())
	if err != nil || len(v.Reports) != 0 || len(broken) != 1 || broken[0].Key != key {
		t.Errorf("reports %v, broken %v, err %v; want none, b and none (it was %v)", v.Reports, broken, err, b.v)
	}
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	if len(s.cache.decoded) != 0 {
		t.Errorf("%d records are remembered of none", len(s.cache.decoded))
	}
}

// TestProbesAreFew: calls that fail at once connect to etcd once, to say why.
func TestProbesAreFew(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var taken atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			taken.Add(1)
			c.Close()
		}
	})
	s := openAt(t, Config{Endpoints: []string{l.Addr().String()}})
	var asking sync.WaitGroup
	for range 50 {
		asking.Go(func() {
			if said := s.probe(t.Context()); !strings.Contains(said, "has no answer") {
				t.Errorf("it says %q", said)
			}
		})
	}
	asking.Wait()
	for deadline := time.Now().Add(10 * time.Second); taken.Load() == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	l.Close()
	wg.Wait()
	if n := taken.Load(); n != 1 {
		t.Errorf("%d connections to say why 50 calls fail, want 1", n)
	}
	// What stood in the way is not said for ever.
	s.probed.at = s.probed.at.Add(-probeAgain)
	if said := s.probe(t.Context()); !strings.Contains(said, "refused") {
		t.Errorf("nobody listens any more, and it says %q", said)
	}
}
