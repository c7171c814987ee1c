package agent

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"routerd.dev/internal/version"
)

// scrubEvery is how often what is to be on disk is looked at, with up to half
// as much again at random. What is damaged is written again: memory has the states,
// etcd the pieces. A start without etcd would find out too late.
const scrubEvery = 5 * time.Second

// scrub mends what the disk was to remember and does not, until ctx ends.
func (p *loop) scrub(ctx context.Context) {
	if p.disk == nil {
		return
	}
	b := &builder{snapshots: p.deps.Snapshots, disk: p.disk, cache: p.deps.Cache}
	for wait := time.NewTimer(0); ; wait.Reset(jitter(p.o.ScrubEvery)) {
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return
		}
		p.disk.inspect()
		p.mendPieces(ctx, b)
		p.mendPin(ctx)
	}
}

// mendPieces fetches what is damaged of the snapshots that are kept.
func (p *loop) mendPieces(ctx context.Context, b *builder) {
	lost := ""
	for _, d := range p.disk.kept() {
		if building := p.progress.Load(); building != nil && building.Digest == d {
			continue // it is being fetched
		}
		if err := b.mend(ctx, d); err != nil && ctx.Err() == nil && lost == "" {
			lost = line(fmt.Sprintf("pieces of snapshot %s are damaged and cannot be had: %v", d.Short(), err))
		}
	}
	if ctx.Err() == nil {
		p.disk.damage(lost)
	}
}

// mend has a snapshot's pieces on disk again if some are not. It asks etcd once
// for each: the next round asks again.
func (b *builder) mend(ctx context.Context, d version.Digest) (err error) {
	defer recovered(&err)
	manifest, err := b.disk.manifest(d)
	whole := err == nil
	if !whole {
		if manifest, err = b.snapshots.Manifest(ctx, d); err != nil {
			return fmt.Errorf("fetch manifest: %w", err)
		}
	}
	m, err := version.ParseManifest(d, manifest)
	if err != nil {
		return err
	}
	got := map[version.Digest][]byte{}
	for _, ref := range m.Chunks() {
		if _, err := b.disk.chunk(ref.Digest); err == nil || got[ref.Digest] != nil {
			continue
		}
		c, err := b.snapshots.Chunk(ctx, ref.Digest)
		if err == nil {
			err = b.cache.Check(ref, c)
		}
		if err != nil {
			return fmt.Errorf("fetch chunk %s: %w", ref.Digest.Short(), err)
		}
		got[ref.Digest] = c
	}
	if whole && len(got) == 0 {
		return nil
	}
	b.disk.log.Warn("pieces on disk were damaged or gone: had again from etcd", "digest", d.Short(), "chunks", len(got), "manifest", !whole)
	b.disk.hold(d, packed{manifest: manifest, needs: chunksOf(m), chunks: got})
	return nil
}

// mendPin writes an order again that the disk has lost, and takes one away that
// was taken back in this life. Any other that nobody here knows of could not be
// read at the start: it stands, as it does after a restart.
func (p *loop) mendPin(ctx context.Context) {
	select {
	case p.pins <- struct{}{}:
		defer func() { <-p.pins }()
	default:
		return // an order is under way
	}
	var pin *Pin
	var unpinned bool
	if err := p.do(ctx, func(p *loop) { pin, unpinned = p.core.pin, p.unpinned }); err != nil {
		return
	}
	got, _ := loadPin(p.o.StateDir, p.o.Who.Group)
	switch {
	case pin == nil && got == nil:
		return // a damaged one that is in force no more pins nobody
	case pin != nil && got != nil && pin.Ref == got.Ref:
		return
	case pin == nil && !unpinned:
		_ = p.do(ctx, func(p *loop) { p.readLate(got) })
		return
	}
	if err := savePin(p.o.StateDir, p.o.Who.Group, pin); err != nil {
		p.log.Error("the disk does not remember the order to pin or unpin", "err", err)
		return
	}
	if pin == nil {
		p.log.Warn("an order to pin this instance was still on disk, although taken back: removed")
		return
	}
	p.log.Warn("the order to pin was damaged or gone on disk: written again")
}

// kept are the digests whose pieces are to be on disk: those that were held by
// this process, and those of states that were served.
func (w *writer) kept() []version.Digest {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fleet == "" {
		return nil
	}
	keep := map[version.Digest]bool{}
	for d := range w.held {
		if w.keep[d] {
			keep[d] = true
		}
	}
	for _, a := range w.newest.Good {
		keep[a.Stable.Digest] = !a.Stable.IsZero()
	}
	maps.DeleteFunc(keep, func(_ version.Digest, k bool) bool { return !k })
	return sortedDigests(keep)
}

// inspect has the writer look whether the states are on disk as they should be.
func (w *writer) inspect() {
	w.mu.Lock()
	w.looking = true
	w.mu.Unlock()
	w.poke()
}

// damage notes what cannot be mended; empty for nothing.
func (w *writer) damage(why string) {
	w.mu.Lock()
	was := w.damaged
	w.damaged = why
	w.mu.Unlock()
	switch {
	case why != "" && was == "":
		w.log.Error("the disk is damaged, a restart without etcd would serve an older state", "why", why)
	case why == "" && was != "":
		w.log.Info("the disk is whole again")
	}
}

// look has states that are damaged written again. Only run calls it.
func (w *writer) look() {
	w.mu.Lock()
	due := w.looking && w.next == nil && w.newest.Fleet != ""
	w.looking = false
	m := w.newest
	w.mu.Unlock()
	if !due {
		return
	}
	damaged := w.disk.inspect(m)
	if len(damaged) == 0 {
		return
	}
	w.log.Warn("remembered states were damaged or gone on disk: written again", "files", damaged)
	w.mu.Lock()
	if w.next == nil {
		w.next = &m
	}
	w.mu.Unlock()
	w.flush()
}

// inspect names the files of a memory that do not say what they should, and
// forgets that they were written.
func (d *disk) inspect(m memory) (damaged []string) {
	dir := d.dir(m.Fleet)
	d.look(m.Fleet, dir)
	var seen memory
	if err := readSealed(filepath.Join(dir, seenFile), &seen); err != nil {
		d.wrote.seen = nil
		damaged = append(damaged, seenFile)
	}
	for i := range m.Good {
		var g goodState
		name := goodFile(m.Good[i].Epoch)
		if err := readSealed(filepath.Join(dir, name), &g); err != nil || !same(&g.Assignment, &m.Good[i]) {
			delete(d.wrote.good, m.Good[i].Epoch)
			damaged = append(damaged, name)
		}
	}
	slices.Sort(damaged)
	return damaged
}
