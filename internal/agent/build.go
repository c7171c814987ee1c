package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// The stages of a prepare, as reports name them.
const (
	StageWaiting   = "waiting"
	StageFetching  = "fetching"
	StageCompiling = "compiling"
	StageTesting   = "testing"
)

const (
	fetchers     = 8                      // chunks fetched at once
	fetchTime    = time.Minute            // to get the pieces of a table; then it is tried anew
	missingTries = 4                      // before what etcd lacks or cannot read is given up
	firstPause   = 25 * time.Millisecond  // between tries to fetch, doubling
	longestPause = 1 * time.Second        //
	leewayFrom   = 5000                   // routes, of which collecting garbage can wait until they are prepared
	markWait     = 500 * time.Millisecond // for the trial to be on disk; then it is compiled all the same
)

// A refusal is an error that trying again will not mend. A shortage of pieces,
// which etcd lacks or has damaged, is one too, but ends when etcd has them again.
type refusal struct {
	error
	shortage bool
}

func refuse(err error) error { return refusal{error: err} }
func lack(err error) error   { return refusal{error: err, shortage: true} }

func (r refusal) Unwrap() error { return r.error }

// A builder makes an engine of a digest: manifest and missing chunks from etcd,
// the rest from disk; everything verified, compiled and tested.
type builder struct {
	snapshots    Snapshots
	disk         *writer
	cache        *version.Cache
	library      *engine.Library
	capabilities []string
	options      engine.Options
	timeout      time.Duration    // to compile and test a table; then it is refused
	sign         func(waits bool) // of life; nil for nobody who looks. waits: what is done next waits for others
}

func (b *builder) lives(waits bool) {
	if b.sign != nil {
		b.sign(waits)
	}
}

// build runs in the one background worker. Its error is a refusal when the
// digest is at fault. Nothing in a snapshot makes it panic (I6).
func (b *builder) build(ctx context.Context, ref version.Ref, previous *engine.Engine, tried <-chan struct{}, stage func(string)) (e *engine.Engine, err error) {
	defer recovered(&err)
	stage(StageFetching)
	fetching, enough := context.WithTimeout(ctx, fetchTime)
	defer enough()
	f, err := b.fetch(fetching, ref)
	if err != nil {
		return nil, err
	}
	if f.routes >= leewayFrom {
		defer b.options.Budget.Leeway.Take()()
	}
	table, err := f.decode(fetching)
	if errors.Is(err, version.ErrCorrupt) && !f.distrust {
		// What came from etcd was checked, so it is the disk that has something else.
		f.distrust = true
		if err = f.fetch(fetching); err == nil {
			table, err = f.decode(fetching)
		}
	}
	if err != nil {
		return nil, err
	}
	// A crash from here on is this digest's.
	mark := time.NewTimer(markWait)
	defer mark.Stop()
	select {
	case <-tried:
	case <-mark.C: // the disk is slow
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	stage(StageCompiling)
	o := b.options
	o.Previous = previous
	e, err = engine.Compile(ctx, ref, table, b.library, o)
	if err == nil {
		stage(StageTesting)
		err = e.RunTests().Err()
	}
	switch {
	case err == nil:
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, refuse(fmt.Errorf("compile took longer than the budget of %s", b.timeout))
	case ctx.Err() != nil:
		return nil, ctx.Err()
	default:
		return nil, refuse(err)
	}
	b.disk.hold(ref.Digest, packed{manifest: f.manifest, needs: f.needs, chunks: f.got})
	return e, nil
}

// recovered makes a panic a refusal. It is deferred by whatever reads a snapshot
// on a goroutine of its own.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = refuse(fmt.Errorf("panic: %v at %s", p, firstFrame(debug.Stack())))
	}
}

// firstFrame finds where a recovered panic came from.
func firstFrame(stack []byte) string {
	lines := strings.Split(string(stack), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "panic(") && i+2 < len(lines) {
			return strings.TrimSpace(lines[i+2])
		}
	}
	return "an unknown place"
}

// fetch gets the pieces of a table. Bytes on disk are used only if they are
// what their name says; what is wrong there is fetched.
func (b *builder) fetch(ctx context.Context, ref version.Ref) (*fetcher, error) {
	manifest, m, err := b.manifest(ctx, ref.Digest)
	if err != nil {
		return nil, err
	}
	if missing := m.Missing(b.capabilities); len(missing) > 0 {
		return nil, refuse(fmt.Errorf("this build lacks %s: upgrade routerd on this instance", strings.Join(missing, ", ")))
	}
	f := &fetcher{
		builder: b, digest: ref.Digest, manifest: manifest, modules: m.Modules, needs: chunksOf(m), routes: m.Routes(),
		refs: refsOf(m), got: map[version.Digest][]byte{}, all: version.MapFetcher{},
	}
	b.disk.expect(ref.Digest, f.needs)
	return f, f.fetch(ctx)
}

func refsOf(m version.Manifest) map[version.Digest]version.ChunkRef {
	refs := map[version.Digest]version.ChunkRef{}
	for _, r := range m.Chunks() {
		refs[r.Digest] = r
	}
	return refs
}

// decode makes a table of the pieces.
func (f *fetcher) decode(ctx context.Context) (*route.Table, error) {
	f.lives(false)
	table, _, err := version.Load(ctx, f.digest, f.manifest, f, f.cache)
	switch {
	case err == nil:
		return table, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	default:
		return nil, lack(err)
	}
}

// manifest returns a snapshot's manifest in canonical bytes and decoded.
func (b *builder) manifest(ctx context.Context, d version.Digest) ([]byte, version.Manifest, error) {
	raw, err := b.disk.manifest(d)
	if err != nil {
		raw, err = retry(ctx, func(ctx context.Context) ([]byte, error) { return b.snapshots.Manifest(ctx, d) })
		if err != nil {
			return nil, version.Manifest{}, fmt.Errorf("fetch manifest: %w", err)
		}
	}
	m, err := version.ParseManifest(d, raw)
	if err != nil {
		return nil, m, lack(err)
	}
	return raw, m, nil
}

// A fetcher brings the chunks of one snapshot together, a few at a time.
type fetcher struct {
	*builder
	digest   version.Digest
	manifest []byte // canonical
	modules  []version.ModuleEntry
	needs    []version.Digest
	refs     map[version.Digest]version.ChunkRef // of needs
	routes   int
	distrust bool // what is on disk is not what its checksums say

	mu  sync.Mutex
	got map[version.Digest][]byte // those that came from etcd
	all version.MapFetcher
}

// fetch gets every chunk of the modules that the cache lacks, and whatever the
// disk lacks, for a start without etcd.
func (f *fetcher) fetch(ctx context.Context) error {
	f.lives(true)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	want := make(chan version.Digest)
	errs := make(chan error, fetchers)
	var wg sync.WaitGroup
	for range fetchers {
		wg.Go(func() {
			for d := range want {
				if err := f.one(ctx, d); err != nil {
					errs <- err
					cancel() // one that is lacking is enough
					return
				}
			}
		})
	}
	f.feed(ctx, want)
	close(want)
	wg.Wait()
	close(errs)
	var first error
	for err := range errs {
		if first == nil || errors.Is(first, context.Canceled) {
			first = err
		}
	}
	return first
}

func (f *fetcher) feed(ctx context.Context, want chan<- version.Digest) {
	seen := map[version.Digest]bool{}
	for _, e := range f.modules {
		known := f.cache.Has(e.Digest)
		for _, c := range e.Chunks {
			if seen[c.Digest] || known && (f.disk == nil || f.disk.hasChunk(c.Digest)) {
				continue
			}
			seen[c.Digest] = true
			select {
			case want <- c.Digest:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (f *fetcher) one(ctx context.Context, d version.Digest) (err error) {
	defer recovered(&err)
	b, err := f.disk.chunk(d)
	fetched := err != nil || f.distrust
	if fetched {
		// Checked, although a table that is loaded is checked again: what a
		// module in the cache needs is not loaded, but kept on disk as good.
		b, err = retry(ctx, func(ctx context.Context) ([]byte, error) {
			b, err := f.snapshots.Chunk(ctx, d)
			if err == nil {
				err = f.cache.Check(f.refs[d], b)
			}
			return b, err
		})
		if err != nil {
			return fmt.Errorf("fetch chunk %s: %w", d.Short(), err)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all[d] = b
	if fetched {
		f.got[d] = b
	}
	return nil
}

// Chunk returns what was fetched, to decode. What was not, for the cache had its
// module and has lost it since, is fetched now.
func (f *fetcher) Chunk(ctx context.Context, d version.Digest) ([]byte, error) {
	f.mu.Lock()
	b, ok := f.all[d]
	f.mu.Unlock()
	if ok {
		f.lives(false)
		return b, nil
	}
	f.lives(true)
	defer f.lives(false)
	if err := f.one(ctx, d); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all.Chunk(ctx, d)
}

// retry asks until etcd answers or ctx ends. Any other answer than bytes is
// asked for a few times more and then refused.
func retry(ctx context.Context, ask func(context.Context) ([]byte, error)) ([]byte, error) {
	pause := firstPause
	for try := 1; ; try++ {
		b, err := ask(ctx)
		switch {
		case err == nil:
			return b, nil
		case ctx.Err() != nil:
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		case !errors.Is(err, store.ErrUnavailable) && try == missingTries:
			return nil, lack(err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(jitter(pause)):
			pause = min(2*pause, longestPause)
		}
	}
}
