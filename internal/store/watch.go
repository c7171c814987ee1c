package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
)

// WatchOptions are the bounds of a watch. The zero value works.
type WatchOptions struct {
	// Reread is how often what is watched is read again, linearizably, with up
	// to half as much again at random: how stale it can be at most while etcd
	// answers. 0 for DefaultReread.
	Reread time.Duration
	// Silence is how long the watch may say nothing, though asked to, before
	// it counts as broken and is built anew: at the latest after twice as long.
	// 0 for DefaultSilence.
	Silence time.Duration
}

// The bounds of a watch unless told otherwise. docs/operations.md promises what
// follows from them.
const (
	DefaultReread  = 5 * time.Second
	DefaultSilence = 4 * time.Second
	// ReadPatience is how long one read of what is watched may take before it is
	// told that etcd does not answer.
	ReadPatience = 4 * time.Second
)

func (o WatchOptions) withDefaults() WatchOptions {
	if o.Reread <= 0 {
		o.Reread = DefaultReread
	}
	if o.Silence <= 0 {
		o.Silence = DefaultSilence
	}
	return o
}

// A GroupState is what etcd says about one group. It states facts: whether a
// missing assignment or another fleet id is a reason to freeze is the agent's
// to decide (I10).
type GroupState struct {
	Group string
	// At is etcd's revision of these facts, 0 while nothing was read yet. It
	// falls when etcd was restored from an older copy.
	At int64
	// FleetID is the id in format; "" when that record is missing or
	// unreadable.
	FleetID string

	Assignment    *rollout.Assignment // nil when absent or unreadable
	AssignmentMod int64               // mod revision of its key; 0 when absent
	Prepare       *rollout.Prepare    // nil when absent or unreadable
	PrepareMod    int64

	// Broken names the records among these that cannot be read.
	Broken []Broken
	// Err says why etcd does not answer, StaleSince since when the facts are
	// not known to be true any more. Both are zero while they are.
	Err        error
	StaleSince time.Time
}

// Missing tells that etcd was read and has no assignment of the group: the
// group is new, or etcd lost it.
func (g GroupState) Missing() bool { return g.At > 0 && g.AssignmentMod == 0 }

// Group reads what etcd says about a group, linearizably and at one revision.
func (s *Store) Group(ctx context.Context, group string) (GroupState, error) {
	st := GroupState{Group: group}
	resp, err := s.txn(ctx, "read group "+group, s.key(dirGroups+group), nil, []clientv3.Op{
		clientv3.OpGet(s.key(keyFormat)),
		clientv3.OpGet(s.key(dirGroups + group)),
		clientv3.OpGet(s.key(dirPrepares + group)),
	}, nil)
	if err != nil {
		return st, err
	}
	st.At = resp.Header.Revision
	if kv := onlyKV(resp, 0); kv != nil {
		f, err := decodeFormat(string(kv.Key), kv.Value)
		if err != nil {
			st.Broken = append(st.Broken, Broken{Key: string(kv.Key), Why: err.Error()})
		} else {
			st.FleetID = f.FleetID
		}
	}
	st.setAssignment(onlyKV(resp, 1))
	st.setPrepare(onlyKV(resp, 2))
	return st, nil
}

func (g *GroupState) setAssignment(kv *mvccpb.KeyValue) {
	g.AssignmentMod = modOf(kv)
	g.Assignment = decodeOwn(g, kv, func(a *rollout.Assignment) string { return a.Group })
	if g.Assignment == nil {
		return
	}
	if err := checkEpoch(g.Assignment.Epoch); err != nil {
		g.Broken = append(g.Broken, Broken{Key: string(kv.Key), Why: err.Error()})
		g.Assignment = nil
	}
}

func (g *GroupState) setPrepare(kv *mvccpb.KeyValue) {
	g.PrepareMod = modOf(kv)
	g.Prepare = decodeOwn(g, kv, func(p *rollout.Prepare) string { return p.Group })
}

// decodeOwn decodes a record of the group, nil when it is absent or unreadable.
func decodeOwn[T any](g *GroupState, kv *mvccpb.KeyValue, group func(*T) string) *T {
	if kv == nil {
		return nil
	}
	v := new(T)
	err := json.Unmarshal(kv.Value, v)
	if err == nil && group(v) != g.Group {
		err = fmt.Errorf("the record is of %q", group(v))
	}
	if err != nil {
		g.Broken = append(g.Broken, Broken{Key: string(kv.Key), Why: err.Error()})
		return nil
	}
	return v
}

// WatchGroup tells fn what etcd says about a group: at once, at each change,
// when it becomes stale or fresh again, and after each Reread, also that
// nothing changed. Calls come one after the other, from this goroutine; states
// between two calls may be left out, the newest never is. It returns ctx's
// error when ctx ends, and no other.
func (s *Store) WatchGroup(ctx context.Context, group string, o WatchOptions, fn func(GroupState)) error {
	w := groupWatch{s: s, group: group, fn: fn}
	return s.follow(ctx, o, w.watched(), &w)
}

// groupWatch keeps a GroupState up to date.
type groupWatch struct {
	s     *Store
	group string
	fn    func(GroupState)

	st     GroupState
	readAt int64 // revision of the last read, which saw both keys at once
	told   bool
}

func (w *groupWatch) watched() []watched {
	return []watched{{key: w.s.key(dirGroups + w.group)}, {key: w.s.key(dirPrepares + w.group)}}
}

func (w *groupWatch) read(ctx context.Context) (int64, bool, error) {
	st, err := w.s.Group(ctx, w.group)
	if err != nil {
		return 0, false, err
	}
	old := w.st
	w.st, w.readAt = st, st.At
	news := !w.told || old.Err != nil || st.At < old.At || st.FleetID != old.FleetID ||
		st.AssignmentMod != old.AssignmentMod || st.PrepareMod != old.PrepareMod
	w.tell() // also that all is as it was: who is told nothing knows nothing
	return st.At, news, nil
}

// event applies a put by itself, because commits are urgent. A deletion is
// read together with the other key: a prepare goes away in the very
// transaction that commits it, and the two must not be seen apart.
func (w *groupWatch) event(events []*clientv3.Event) (reread bool) {
	news := false
	for _, e := range events {
		if e.Kv.ModRevision <= w.readAt {
			continue
		}
		if e.Type == clientv3.EventTypeDelete {
			reread = true
			continue
		}
		w.st.Broken = slices.DeleteFunc(slices.Clone(w.st.Broken), func(b Broken) bool { return b.Key == string(e.Kv.Key) })
		if string(e.Kv.Key) == w.s.key(dirGroups+w.group) {
			w.st.setAssignment(e.Kv)
		} else {
			w.st.setPrepare(e.Kv)
		}
		w.st.At = max(w.st.At, e.Kv.ModRevision)
		news = true
	}
	if news {
		w.tell()
	}
	return reread
}

func (w *groupWatch) stale(err error, since time.Time) {
	w.st.Group, w.st.Err, w.st.StaleSince = w.group, err, since
	w.tell()
}

func (w *groupWatch) tell() {
	w.told = true
	w.fn(w.st)
}

// A Wake says that something changed, or that what changed cannot be known.
type Wake struct {
	At         int64     // etcd's revision, which a View read now has at least; 0 while etcd does not answer
	Err        error     // why etcd does not answer; nil while it does
	StaleSince time.Time // since when it does not
}

// Watch calls fn when a group, prepare, ready, instance, intent, checks or the
// fleet changed, at least once per o.Reread in any case, and when etcd stops or
// begins to answer. Changes close together are one call. Reports and measures
// wake nobody. Calls come one after the other, from this goroutine, the first
// at once. It returns ctx's error when ctx ends, and no other.
func (s *Store) Watch(ctx context.Context, o WatchOptions, fn func(Wake)) error {
	w := wakeWatch{s: s, fn: fn}
	return s.follow(ctx, o, []watched{
		{key: s.key(keyFleet)},
		{key: s.key(dirGroups), prefix: true},
		{key: s.key(dirPrepares), prefix: true},
		{key: s.key(dirReady), prefix: true},
		{key: s.key(dirInstances), prefix: true},
		{key: s.key(dirIntents), prefix: true},
		{key: s.key(dirChecks), prefix: true},
	}, &w)
}

// wakeWatch turns what happens into calls.
type wakeWatch struct {
	s  *Store
	fn func(Wake)
}

func (w *wakeWatch) read(ctx context.Context) (int64, bool, error) {
	resp, err := w.s.get(ctx, "read fleet", w.s.key(keyFleet), clientv3.WithCountOnly())
	if err != nil {
		return 0, false, err
	}
	w.fn(Wake{At: resp.Header.Revision})
	return resp.Header.Revision, false, nil
}

// event wakes for the newest of the events, which need not be the last: they are in
// order for each key only.
func (w *wakeWatch) event(events []*clientv3.Event) bool {
	var at int64
	for _, e := range events {
		at = max(at, e.Kv.ModRevision)
	}
	if at > 0 {
		w.fn(Wake{At: at})
	}
	return false
}

func (w *wakeWatch) stale(err error, since time.Time) { w.fn(Wake{Err: err, StaleSince: since}) }
