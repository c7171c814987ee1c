package store

import (
	"context"
	"fmt"
	"slices"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/version"
)

// mostChunks is how many chunks one read brings: 4 MiB of the largest.
const mostChunks = 8

// chunkReads has the chunks that are asked for while others are on their way
// come by one read: what it costs etcd that two thousand instances prepare at
// once is counted in requests more than in bytes. Whoever asks while nobody
// does reads at once, and passes the turn on to the first who waits.
type chunkReads struct {
	mu      sync.Mutex
	reading bool
	waiting []*chunkRead // the first has the turn, or gets it next
}

// A chunkRead is one chunk that somebody waits for.
type chunkRead struct {
	digest version.Digest
	wake   chan struct{} // holds one
	turn   bool          // whoever waits is to read; under the lock
	done   bool          // somebody else has read it
	gone   bool          // it waits no longer, though another reads for it
	value  []byte
	err    error
}

// Chunk returns a chunk as it was published, packed and unverified, or
// ErrNotFound. It makes a Store a source of chunks for loading snapshots.
func (s *Store) Chunk(ctx context.Context, d version.Digest) ([]byte, error) {
	c, me := &s.chunks, &chunkRead{digest: d, wake: make(chan struct{}, 1)}
	c.mu.Lock()
	c.waiting = append(c.waiting, me)
	if !c.reading {
		c.reading = true
		c.pass()
	}
	c.mu.Unlock()
	select {
	case <-me.wake:
	case <-ctx.Done():
		c.leave(me)
		return nil, fmt.Errorf("read chunk %s: %w", d.Short(), ctx.Err())
	}
	if me.done {
		return me.value, me.err
	}
	some := c.take()
	s.readChunks(ctx, some)
	c.hand(some, ctx.Err() == nil)
	return me.value, me.err
}

// pass gives the turn to the first who waits. The lock is held.
func (c *chunkReads) pass() {
	if len(c.waiting) == 0 {
		c.reading = false
		return
	}
	c.waiting[0].turn = true
	c.waiting[0].wake <- struct{}{}
}

// leave takes away who waits no longer.
func (c *chunkReads) leave(me *chunkRead) {
	c.mu.Lock()
	defer c.mu.Unlock()
	me.gone = true
	if i := slices.Index(c.waiting, me); i >= 0 {
		c.waiting = slices.Delete(c.waiting, i, i+1)
	}
	if me.turn {
		c.pass()
	}
}

// take returns what is to be read next; the first of it has the turn.
func (c *chunkReads) take() []*chunkRead {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(c.waiting), mostChunks)
	some := slices.Clone(c.waiting[:n])
	c.waiting = slices.Delete(c.waiting, 0, n)
	return some
}

// hand wakes those for whom the first of some has read, and passes the turn on.
// When its reading was called off, the others are none the wiser and wait on,
// but for those who are gone: the turn must not be passed to who does not take
// it.
func (c *chunkReads) hand(some []*chunkRead, read bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	others := slices.DeleteFunc(some[1:], func(r *chunkRead) bool { return r.gone })
	if !read {
		c.waiting = slices.Concat(others, c.waiting)
	} else {
		for _, r := range others {
			r.done = true
			r.wake <- struct{}{}
		}
	}
	c.pass()
}

// readChunks reads some by one transaction.
func (s *Store) readChunks(ctx context.Context, some []*chunkRead) {
	what := "read chunk " + some[0].digest.Short()
	if n := len(some) - 1; n > 0 {
		what += fmt.Sprintf(" and %d more", n)
	}
	ops := make([]clientv3.Op, len(some))
	for i, r := range some {
		ops[i] = clientv3.OpGet(s.chunkKey(r.digest))
	}
	resp, err := s.txn(ctx, what, s.chunkKey(some[0].digest), nil, ops, nil)
	for i, r := range some {
		r.value, r.err = nil, err
		if err != nil {
			continue
		}
		if kv := onlyKV(resp, i); kv != nil {
			r.value = kv.Value
		} else {
			r.err = fmt.Errorf("read chunk %s: %w", r.digest.Short(), ErrNotFound)
		}
	}
}
