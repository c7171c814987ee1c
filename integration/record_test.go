//go:build integration

package integration

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"routerd.dev/integration/harness"
	"routerd.dev/integration/history"
)

// A recording is every write to a fleet's records, in etcd's own order. It is
// what can be proven about order across processes: etcd's revisions have no skew.
//
// It follows live, so that compaction takes nothing from it; it goes on when
// members die; and when etcd has lost its records it says so and begins a new era.
type recording struct {
	c     *clientv3.Client
	start time.Time

	mu     sync.Mutex
	writes []history.Write
	bounds []history.Bound
	keys   map[string]keyState // those that are there, as far as was seen
	era    int
	began  time.Time // when the era was noticed
	at     int64     // the newest revision seen
	back   func()    // ends the watch of the moment; etcd went back
	lost   []string  // what compaction took before it was seen
}

// A keyState is what etcd says of a key beside its value.
type keyState struct{ create, version int64 }

// record follows the records from the first one on until the test ends. Its
// bounds count their time from start.
func record(t *testing.T, cfg clientv3.Config, start time.Time) *recording {
	t.Helper()
	cfg.DialKeepAliveTime, cfg.DialKeepAliveTimeout, cfg.PermitWithoutStream = 2*time.Second, 2*time.Second, true
	c, err := clientv3.New(cfg)
	if err != nil {
		t.Fatalf("connect to etcd: %v", err)
	}
	h := &recording{c: c, start: start, keys: map[string]keyState{}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { h.follow(ctx) })
	wg.Go(func() { h.ask(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		_ = c.Close() // its context has ended: that is its error
	})
	return h
}

// recordOf is record for an etcd that asks nobody who he is.
func recordOf(t *testing.T, endpoints []string) *recording {
	t.Helper()
	return record(t, clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop()}, time.Now())
}

// follow watches, again and again.
func (h *recording) follow(ctx context.Context) {
	for ctx.Err() == nil {
		wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		h.mu.Lock()
		from := h.at + 1
		h.back = cancel
		h.mu.Unlock()
		for resp := range h.c.Watch(wctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(from)) {
			if resp.CompactRevision > 0 {
				h.skip(wctx, resp.CompactRevision)
				break
			}
			if resp.Err() != nil || !h.take(resp.Events) {
				break
			}
		}
		cancel()
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// take notes events; it returns false when they do not go on from what was
// seen, so that etcd is another.
func (h *recording) take(events []*clientv3.Event) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range events {
		key := strings.TrimPrefix(string(e.Kv.Key), prefix)
		was := h.keys[key]
		switch {
		case e.Type == clientv3.EventTypeDelete:
			if was.version == 0 {
				h.begin()
				return false
			}
			delete(h.keys, key)
		case e.Kv.Version != was.version+1 || was.version > 0 && e.Kv.CreateRevision != was.create:
			h.begin()
			return false
		default:
			h.keys[key] = keyState{create: e.Kv.CreateRevision, version: e.Kv.Version}
		}
		h.at = max(h.at, e.Kv.ModRevision)
		h.writes = append(h.writes, history.Write{
			Era: h.era, Revision: e.Kv.ModRevision, Key: key, Value: small(key, e.Kv.Value),
			Deleted: e.Type == clientv3.EventTypeDelete, Version: e.Kv.Version, Lease: e.Kv.Lease,
		})
	}
	return true
}

// begin begins a new era; the caller holds the lock.
func (h *recording) begin() {
	h.era++
	h.at, h.keys, h.began = 0, map[string]keyState{}, time.Now()
}

// small leaves out what would fill the memory and tells nothing.
func small(key string, value []byte) []byte {
	if strings.HasPrefix(key, "chunks/") || strings.HasPrefix(key, "manifests/") {
		return nil
	}
	return value
}

// skip reads what is there at a revision, when what led to it was compacted.
func (h *recording) skip(ctx context.Context, to int64) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	resp, err := h.c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(to))
	if err != nil {
		return // the next watch tells again
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	// An older copy was compacted before it was copied: an era before this one saw that.
	if h.at > 0 || h.era == 0 {
		h.lost = append(h.lost, fmt.Sprintf("revisions %d to %d of era %d were compacted before they were seen", h.at+1, to, h.era))
	}
	slices.SortFunc(resp.Kvs, func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.ModRevision, b.ModRevision) })
	gone := h.keys
	h.keys = map[string]keyState{}
	var found []history.Write
	for _, kv := range resp.Kvs {
		key := strings.TrimPrefix(string(kv.Key), prefix)
		delete(gone, key)
		h.keys[key] = keyState{create: kv.CreateRevision, version: kv.Version}
		if kv.ModRevision > h.at {
			found = append(found, history.Write{
				Era: h.era, Revision: kv.ModRevision, Key: key, Value: small(key, kv.Value), Version: kv.Version, Lease: kv.Lease, Base: true,
			})
		}
	}
	for key := range gone {
		h.writes = append(h.writes, history.Write{Era: h.era, Revision: h.at + 1, Key: key, Deleted: true, Base: true})
	}
	h.writes = append(h.writes, found...)
	h.at = to
}

// ask asks etcd for its revision, again and again: it is what bounds the time
// of a commit, and what tells that etcd went back.
func (h *recording) ask(ctx context.Context) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		h.mu.Lock()
		seen := h.at
		h.mu.Unlock()
		asked := time.Since(h.start)
		one, cancel := context.WithTimeout(ctx, 2*time.Second)
		resp, err := h.c.Get(one, prefix+"format", clientv3.WithKeysOnly())
		cancel()
		if err != nil {
			continue
		}
		h.mu.Lock()
		if resp.Header.Revision < seen && h.at >= seen {
			h.begin()
			h.back()
		}
		h.bounds = append(h.bounds, history.Bound{Era: h.era, Revision: resp.Header.Revision, Asked: asked})
		h.mu.Unlock()
	}
}

// complete waits until everything written so far was seen.
func (h *recording) complete(t *testing.T) {
	t.Helper()
	harness.Until(t, 30*time.Second, "the history is complete", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		resp, err := h.c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly(),
			clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend))
		if err != nil {
			return err
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(resp.Kvs) > 0 && h.at < resp.Kvs[0].ModRevision {
			return fmt.Errorf("etcd is at %d, %d was seen", resp.Kvs[0].ModRevision, h.at)
		}
		return nil
	})
}

// into adds what was seen so far to a history.
func (h *recording) into(to *history.History) (lost []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	to.Writes, to.Bounds, to.LastEra = slices.Clone(h.writes), slices.Clone(h.bounds), h.began
	return slices.Clone(h.lost)
}
