package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// KeepPolicy is what gc keeps beyond what is in use. Zero stands for the
// default, a negative number for none.
type KeepPolicy struct {
	Revisions int // the newest of the history; 0 for the fleet's HistoryLimit, or 50 without one
	Rollouts  int // the newest that ended; 0 for 200
	Audit     int // the newest entries; 0 for 10,000
}

func (k KeepPolicy) withDefaults(historyLimit int) KeepPolicy {
	or := func(n, def int) int {
		switch {
		case n == 0:
			return def
		case n < 0:
			return 0
		}
		return n
	}
	if historyLimit <= 0 {
		historyLimit = 50
	}
	return KeepPolicy{Revisions: or(k.Revisions, historyLimit), Rollouts: or(k.Rollouts, 200), Audit: or(k.Audit, 10_000)}
}

// Collected counts what gc deleted, and what it kept.
type Collected struct {
	Revisions int `json:"revisions"`
	Manifests int `json:"manifests"`
	Chunks    int `json:"chunks"`
	Served    int `json:"served"` // marks of digests that are gone, served and baked
	Rollouts  int `json:"rollouts"`
	Audit     int `json:"audit"`

	KeptRevisions int `json:"keptRevisions"`
	KeptManifests int `json:"keptManifests"`
	KeptChunks    int `json:"keptChunks"`
}

// gcTTL is how long the lock of a gc that died stands in the way.
const gcTTL = 30 * time.Second

// GC deletes what nothing needs: revisions with their snapshots, ended rollouts
// and audit entries beyond the policy. It never deletes what a group, prepare,
// intent, rollout, pin, the fleet or an instance's report names, nor what a
// publisher found in place: that one publishes again, see Publish.
//
// It fails with ErrBusy when another gc runs, and with ErrCorrupt, having
// deleted nothing, when a record that may name something is unreadable. After
// any error the next GC goes on.
func (s *Store) GC(ctx context.Context, by string, keep KeepPolicy) (c Collected, err error) {
	const what = "collect garbage"
	if _, err := s.Format(ctx); err != nil {
		return c, fmt.Errorf("%s: %w", what, err)
	}
	l, err := s.grant(ctx, what, gcTTL)
	if err != nil {
		return c, err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
		defer cancel()
		err = errors.Join(err, l.release(clean, what))
	}()
	locked, err := s.lockGC(ctx, what, by, l)
	if err != nil {
		return c, err
	}
	run := collection{s: s, what: what, locked: locked, keep: keep, c: &c}
	return c, run.run(ctx, by)
}

// lockGC takes the lock and raises gc/count in one transaction. From then on no
// publish that began before can end. It returns the lock's mod revision.
func (s *Store) lockGC(ctx context.Context, what, by string, l *lease) (int64, error) {
	for {
		resp, err := s.txn(ctx, what, s.key(keyGCLock), nil, []clientv3.Op{
			clientv3.OpGet(s.key(keyGCLock)), clientv3.OpGet(s.key(keyGCCount)),
		}, nil)
		if err != nil {
			return 0, err
		}
		if lock := onlyKV(resp, 0); lock != nil && lock.Lease != 0 {
			return 0, fmt.Errorf("%s: %w (by %s)", what, ErrBusy, lock.Value)
		}
		var n int64
		if kv := onlyKV(resp, 1); kv != nil {
			if n, err = s.parseCount(keyGCCount, kv.Value); err != nil {
				return 0, fmt.Errorf("%s: %w", what, err)
			}
		}
		resp, err = s.txn(ctx, what, s.key(keyGCLock),
			[]clientv3.Cmp{s.unlocked(), unmoved(s.key(keyGCCount), modOf(onlyKV(resp, 1)))},
			[]clientv3.Op{
				clientv3.OpPut(s.key(keyGCLock), by, clientv3.WithLease(l.id)),
				put(s.key(keyGCCount), n+1),
			}, nil)
		if err != nil {
			return 0, err
		}
		if resp.Succeeded {
			return resp.Header.Revision, nil
		}
	}
}

// unlocked holds if no gc has the lock. A key without a lease is nobody's: see
// awaitUnlocked.
func (s *Store) unlocked() clientv3.Cmp {
	return clientv3.Compare(clientv3.LeaseValue(s.key(keyGCLock)), "=", 0)
}

// A collection is one gc that has the lock.
type collection struct {
	s      *Store
	what   string
	locked int64      // mod revision of the lock: it is put once
	keep   KeepPolicy // with defaults once the fleet was read
	c      *Collected
}

func (g *collection) run(ctx context.Context, by string) error {
	s := g.s
	// Read after the lock was taken: whatever comes later may not name what is
	// not in use now.
	v, broken, err := s.ViewBroken(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", g.what, err)
	}
	for _, b := range broken {
		dir, _, _ := strings.Cut(s.name(b.Key, ""), "/")
		if slices.Contains([]string{dirGroups, dirPrepares, dirIntents, dirRollouts, dirReports}, dir+"/") {
			return fmt.Errorf("%s: %w: %s; it may name what is in use: repair or delete it first", g.what, ErrCorrupt, b)
		}
	}
	g.keep = g.keep.withDefaults(v.Fleet.Settings.HistoryLimit)
	used := inUse(v)
	if err := g.pinned(ctx, used); err != nil {
		return err
	}
	history, err := g.history(ctx)
	if err != nil {
		return err
	}
	var revisions []string
	for i, r := range history {
		if i < g.keep.Revisions || used.numbers[r.Number] || used.digests[r.Digest] {
			used.digests[r.Digest] = true
			g.c.KeptRevisions++
			continue
		}
		revisions = append(revisions, s.revisionKey(r.Number))
	}
	manifests, chunks, err := g.pieces(ctx, used.digests)
	if err != nil {
		return err
	}
	served := g.unserved(v, used.digests)
	rollouts, err := g.beyond(ctx, dirEnded, g.keep.Rollouts)
	if err != nil {
		return err
	}
	audit, err := g.beyond(ctx, dirAudit, g.keep.Audit)
	if err != nil {
		return err
	}
	// In this order, so that a manifest that is there has its chunks.
	for _, step := range []struct {
		keys  []string
		count *int
	}{
		{revisions, &g.c.Revisions},
		{manifests, &g.c.Manifests},
		{chunks, &g.c.Chunks},
		{served, &g.c.Served},
		{rollouts, &g.c.Rollouts},
		{audit, &g.c.Audit},
	} {
		if err := g.remove(ctx, step.keys, step.count); err != nil {
			return err
		}
	}
	now := time.Now().UTC()
	return g.commit(ctx, []clientv3.Op{put(s.auditKey(now), rollout.AuditEntry{
		Time: now, Who: by, What: "gc",
		Why: fmt.Sprintf("deleted %d revisions, %d manifests, %d chunks", g.c.Revisions, g.c.Manifests, g.c.Chunks),
	})})
}

// history returns all revisions, newest first. One that is unreadable, or that
// says another number than its key, may be among those to keep, so it stops everything.
func (g *collection) history(ctx context.Context) ([]version.Revision, error) {
	end := clientv3.GetPrefixRangeEnd(g.s.key(dirRevisions))
	all, _, err := listFrom(ctx, g.s, g.what, dirRevisions, end, 0, func(kv *mvccpb.KeyValue) (r version.Revision, _ bool, _ error) {
		if err := json.Unmarshal(kv.Value, &r); err != nil {
			return r, false, fmt.Errorf("%w: %s: %w; repair or delete it first", ErrCorrupt, shown(string(kv.Key)), err)
		}
		if string(kv.Key) != g.s.revisionKey(r.Number) { // the number says which key is deleted
			return r, false, fmt.Errorf("%w: %s: the record is of revision %d; repair or delete it first", ErrCorrupt, shown(string(kv.Key)), r.Number)
		}
		return r, true, nil
	})
	return all, err
}

// pinned adds what an operator pinned. It goes by the keys: what else a pin
// says, readable or not, deletes nothing.
func (g *collection) pinned(ctx context.Context, used named) error {
	return g.keys(ctx, dirPins, func(key string) error {
		n, err := strconv.ParseInt(g.s.name(key, dirPins), 10, 64)
		if err != nil {
			return fmt.Errorf("%s: %w: %s pins no number; it may name what is in use: repair or delete it first", g.what, ErrCorrupt, key)
		}
		used.numbers[n] = true
		return nil
	})
}

// named are the digests and revision numbers that something names.
type named struct {
	digests map[version.Digest]bool
	numbers map[int64]bool
}

func (n named) ref(refs ...version.Ref) {
	for _, r := range refs {
		n.digests[r.Digest], n.numbers[r.Number] = true, true
	}
}

// rollout names where it goes, and wherever it may have to go back to.
func (n named) rollout(o *rollout.Rollout) {
	n.ref(o.To, o.PrevTarget, o.Target)
	n.ref(slices.Collect(maps.Values(o.Goals))...)
	n.ref(slices.Collect(maps.Values(o.Origin))...)
	if o.Return != nil {
		for _, number := range o.Return.To {
			n.numbers[number] = true
		}
	}
}

// inUse collects every name in a View.
func inUse(v *rollout.View) named {
	n := named{map[version.Digest]bool{}, map[int64]bool{}}
	n.ref(v.Fleet.Target, v.Fleet.Committed)
	for _, a := range v.Groups {
		n.ref(a.Stable, a.Against)
		n.ref(a.Set...)
		n.ref(a.Back...)
		if a.Candidate != nil {
			n.ref(a.Candidate.Ref)
		}
	}
	for _, p := range v.Prepares {
		n.ref(p.Set...)
	}
	for _, i := range v.Intents {
		n.ref(i.To, i.PrevTarget)
	}
	for i := range v.Rollouts {
		n.rollout(&v.Rollouts[i])
	}
	for _, r := range v.Reports {
		for _, d := range r.Holds {
			n.digests[d] = true
		}
		n.digests[r.Pinned] = true
		if r.Serving != nil {
			n.digests[r.Serving.Digest], n.numbers[r.Serving.Revision] = true, true
		}
		if r.Preparing != nil {
			n.digests[r.Preparing.Digest] = true
		}
	}
	return n
}

// pieces returns the keys of manifests that are not kept and of chunks that no
// kept manifest names.
func (g *collection) pieces(ctx context.Context, keep map[version.Digest]bool) (manifests, chunks []string, err error) {
	s := g.s
	keepChunk := map[string]bool{}
	err = g.keys(ctx, dirManifests, func(key string) error {
		d, err := version.ParseDigest(s.name(key, dirManifests))
		if err != nil || !keep[d] {
			manifests = append(manifests, key)
			return nil
		}
		g.c.KeptManifests++
		b, err := s.Manifest(ctx, d)
		if err != nil {
			return err
		}
		m, err := version.ParseManifest(d, b)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		for _, c := range m.Chunks() {
			keepChunk[s.chunkKey(c.Digest)] = true
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", g.what, err)
	}
	err = g.keys(ctx, dirChunks, func(key string) error {
		if keepChunk[key] {
			g.c.KeptChunks++
		} else {
			chunks = append(chunks, key)
		}
		return nil
	})
	return manifests, chunks, err
}

// unserved returns the marks of served digests of which no manifest is kept
// and which are not condemned: should one be published again, it is tried by
// one instance first again. A mark of baking goes with what it is about.
func (g *collection) unserved(v *rollout.View, keep map[version.Digest]bool) (keys []string) {
	for d := range v.Served {
		if _, condemned := v.Condemned[d]; !keep[d] && !condemned {
			keys = append(keys, g.s.key(dirServed+d.String()))
		}
	}
	for d := range v.Baked {
		if !keep[d] {
			keys = append(keys, g.s.key(dirBaked+d.String()))
		}
	}
	slices.Sort(keys)
	return keys
}

// beyond returns the keys under dir but for the last keep of them.
func (g *collection) beyond(ctx context.Context, dir string, keep int) ([]string, error) {
	var all []string
	err := g.keys(ctx, dir, func(key string) error {
		all = append(all, key)
		return nil
	})
	return all[:max(0, len(all)-keep)], err
}

// keys calls f for each key under dir, in order.
func (g *collection) keys(ctx context.Context, dir string, f func(key string) error) error {
	const keysPage = 5000
	from, end := g.s.key(dir), clientv3.GetPrefixRangeEnd(g.s.key(dir))
	for {
		resp, err := g.s.get(ctx, g.what, from, clientv3.WithRange(end), clientv3.WithKeysOnly(), clientv3.WithLimit(keysPage))
		if err != nil {
			return err
		}
		for _, kv := range resp.Kvs {
			if err := f(string(kv.Key)); err != nil {
				return err
			}
			from = string(kv.Key) + "\x00"
		}
		if !resp.More {
			return nil
		}
	}
}

// remove deletes keys in transactions that each compare the lock.
func (g *collection) remove(ctx context.Context, keys []string, count *int) error {
	for part := range slices.Chunk(keys, batchOps) {
		ops := make([]clientv3.Op, len(part))
		for i, k := range part {
			ops[i] = clientv3.OpDelete(k)
		}
		if err := g.commit(ctx, ops); err != nil {
			return err
		}
		*count += len(part)
	}
	return nil
}

// commit carries out ops if the lock is still the one that was taken.
func (g *collection) commit(ctx context.Context, ops []clientv3.Op) error {
	lock := g.s.key(keyGCLock)
	resp, err := g.s.txn(ctx, g.what, lock, []clientv3.Cmp{unmoved(lock, g.locked)}, ops, nil)
	if err != nil {
		return err
	}
	if !resp.Succeeded {
		return fmt.Errorf("%s: %w: the lock was lost, the rest is for the next gc", g.what, ErrConflict)
	}
	return nil
}
