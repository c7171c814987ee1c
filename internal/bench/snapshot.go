package main

import (
	"context"
	"fmt"
	"runtime"

	"routerd.dev/internal/version"
)

// measureSnapshot encodes and decodes a table of which nothing is known yet.
// Decoding is all that Load does: unpacking and verifying each chunk too.
func measureSnapshot(ctx context.Context, b *bench) ([]Figure, error) {
	table := manyTeams(b.of(100, 10), 10, 1000)
	var s *version.Snapshot
	var err error
	packed := version.MapFetcher{}
	encode := func() {
		if s, err = version.Encode(table); err != nil {
			return
		}
		for d, c := range s.Chunks() {
			packed[d] = c
		}
	}
	encoded := takeTurns(b.of(9, 2), runtime.GC, encode)[1]
	if err != nil {
		return nil, err
	}
	var cpus []float64
	decode := func() {
		began := cpu()
		_, _, err = version.Load(ctx, s.Digest, s.ManifestBytes, packed, nil)
		cpus = append(cpus, ms(cpu()-began))
	}
	decoded := takeTurns(b.of(15, 2), runtime.GC, decode)[1]
	if err != nil {
		return nil, err
	}
	unpacked, sent := 0, len(s.PackedManifest())
	for _, c := range s.Manifest.Chunks() {
		unpacked += c.Size
		sent += len(packed[c.Digest])
	}
	routes := float64(s.Manifest.Routes())
	return []Figure{
		figure("encode and pack", median(each(encoded, milli)), "ms"),
		figure("fetch from memory, verify and decode", median(each(decoded, milli)), "ms").atMost(30),
		figure("  processor time of it", median(cpus), "ms"),
		figure("bytes, packed", float64(sent)/1024, "KiB").note("%.0f KiB unpacked, %s B a route packed, %d chunks, manifest %s KiB", float64(unpacked)/1024,
			short(float64(sent)/routes), len(packed), short(float64(len(s.PackedManifest()))/1024)),
	}, nil
}

// A counted fetcher counts what is fetched from it.
type counted struct {
	version.MapFetcher
	bytes int
}

func (c *counted) Chunk(ctx context.Context, d version.Digest) ([]byte, error) {
	p, err := c.MapFetcher.Chunk(ctx, d)
	c.bytes += len(p)
	return p, err
}

// put adds the chunks of a snapshot.
func (c *counted) put(s *version.Snapshot) {
	for d, p := range s.ChunksExcept(func(d version.Digest) bool { _, ok := c.MapFetcher[d]; return ok }) {
		c.MapFetcher[d] = p
	}
}

// size is what fetching all of a snapshot takes.
func (c *counted) size(s *version.Snapshot) (int, error) {
	n := len(s.PackedManifest())
	for _, r := range s.Manifest.Chunks() {
		p, ok := c.MapFetcher[r.Digest]
		if !ok {
			return 0, fmt.Errorf("chunk %s is not there", r.Digest.Short())
		}
		n += len(p)
	}
	return n, nil
}
