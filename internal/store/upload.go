package store

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/version"
)

// A batch keeps below etcd's limits of 128 operations and 1.5 MiB for one
// transaction.
const (
	batchOps   = 100
	batchBytes = 1 << 20
)

// Uploaded counts what an upload did.
type Uploaded struct {
	Chunks int   `json:"chunks"` // that were not there yet
	Bytes  int64 `json:"bytes"`  // of those and of the manifest, as sent
	Known  int   `json:"known"`  // chunks that were there
}

// What goes into the transaction of a publish itself, beside its records: far
// below etcd's limits.
const (
	inlineOps   = 64
	inlineBytes = 512 << 10
)

// PutSnapshot uploads the chunks that etcd lacks, and then the manifest, so
// that a snapshot whose manifest is there is whole. Unless something names the
// snapshot soon, gc takes it away again: Publish and Recover see to that.
func (s *Store) PutSnapshot(ctx context.Context, snap *version.Snapshot) (Uploaded, error) {
	return s.putSnapshot(ctx, snap, false)
}

// putSnapshot with anew sends also what is there.
func (s *Store) putSnapshot(ctx context.Context, snap *version.Snapshot, anew bool) (Uploaded, error) {
	what := "upload snapshot " + snap.Digest.Short()
	var there map[string]bool
	if !anew {
		var err error
		if there, err = s.there(ctx, what, s.pieceKeys(snap)); err != nil {
			return Uploaded{}, err
		}
	}
	b, up, err := s.missing(ctx, what, snap, there)
	if err != nil {
		return up, err
	}
	return up, b.flush(ctx)
}

// pieceKeys are the keys of a snapshot's chunks, and then its manifest's.
func (s *Store) pieceKeys(snap *version.Snapshot) []string {
	refs := snap.Manifest.Chunks()
	keys := make([]string, len(refs), len(refs)+1)
	for i, c := range refs {
		keys[i] = s.chunkKey(c.Digest)
	}
	return append(keys, s.manifestKey(snap.Digest))
}

// missing collects what etcd lacks of a snapshot, and sends what is more than
// one transaction takes. The last transaction, which the caller sends, has the
// manifest, perhaps with the last chunks.
func (s *Store) missing(ctx context.Context, what string, snap *version.Snapshot, there map[string]bool) (*batch, Uploaded, error) {
	var up Uploaded
	b := &batch{s: s, what: what}
	for d, packed := range snap.ChunksExcept(func(d version.Digest) bool { return there[s.chunkKey(d)] }) {
		up.Chunks++
		up.Bytes += int64(len(packed))
		if err := b.put(ctx, s.chunkKey(d), packed); err != nil {
			return b, up, err
		}
	}
	up.Known = len(snap.Manifest.Chunks()) - up.Chunks
	if there[s.manifestKey(snap.Digest)] && up.Chunks == 0 {
		return b, up, nil
	}
	packed := snap.PackedManifest()
	up.Bytes += int64(len(packed))
	return b, up, b.put(ctx, s.manifestKey(snap.Digest), packed)
}

// there returns which of the keys exist.
func (s *Store) there(ctx context.Context, what string, keys []string) (map[string]bool, error) {
	there := make(map[string]bool, len(keys))
	for len(keys) > 0 {
		n := min(len(keys), batchOps)
		ops := make([]clientv3.Op, n)
		for i, k := range keys[:n] {
			ops[i] = clientv3.OpGet(k, clientv3.WithCountOnly())
		}
		resp, err := s.txn(ctx, what, keys[0], nil, ops, nil)
		if err != nil {
			return nil, err
		}
		for i, k := range keys[:n] {
			there[k] = resp.Responses[i].GetResponseRange().Count > 0
		}
		keys = keys[n:]
	}
	return there, nil
}

// A batch collects puts and sends them when a transaction is full.
type batch struct {
	s    *Store
	what string
	ops  []clientv3.Op
	size int
	sent bool // something was sent
}

func (b *batch) put(ctx context.Context, key string, value []byte) error {
	if len(value) > batchBytes {
		return fmt.Errorf("%s: %w: %s has %d bytes, at most %d are allowed", b.what, ErrTooLarge, key, len(value), batchBytes)
	}
	if len(b.ops) == batchOps || b.size+len(value) > batchBytes {
		if err := b.flush(ctx); err != nil {
			return err
		}
	}
	b.ops = append(b.ops, clientv3.OpPut(key, string(value)))
	b.size += len(value)
	return nil
}

func (b *batch) flush(ctx context.Context) error {
	if len(b.ops) == 0 {
		return nil
	}
	err := b.s.repeatable(ctx, func() error {
		_, err := b.s.txn(ctx, b.what, string(b.ops[0].KeyBytes()), nil, b.ops, nil)
		return err
	})
	b.ops, b.size, b.sent = nil, 0, true
	return err
}
