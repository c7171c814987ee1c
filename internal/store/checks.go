package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/rollout"
)

// PutChecks writes what the checks of a rollout's step answered, only while
// this term holds the election key and the rollout is under way. It does not
// move the election key, so no Apply becomes stale by it; that a write whose
// answer was lost undoes no later one, the record's own revision sees to.
//
// It fails with ErrDeposed, with ErrNotFound when the rollout is not under way
// any more, and with ErrTooLarge above 256 KiB, and then has written nothing.
func (t *Term) PutChecks(ctx context.Context, c rollout.Checks) error {
	s, what := t.s, "put checks of rollout "+c.Rollout
	if b, err := json.Marshal(c); err != nil {
		return fmt.Errorf("%s: encode: %w", what, err)
	} else if len(b) > maxChecks {
		return fmt.Errorf("%s: %w: %d bytes, at most %d are allowed", what, ErrTooLarge, len(b), maxChecks)
	}
	leader, key := s.key(keyLeader), s.key(dirChecks+c.Rollout)
	fence := []clientv3.Cmp{
		clientv3.Compare(clientv3.CreateRevision(leader), "=", t.created),
		exists(s.key(keyFleet)), // a wiped store is not written to (I10)
		exists(s.key(dirRollouts + c.Rollout)),
	}
	resp, err := s.get(ctx, what, key, clientv3.WithKeysOnly())
	if err != nil {
		return err
	}
	var mod int64
	if len(resp.Kvs) > 0 {
		mod = resp.Kvs[0].ModRevision
	}
	for {
		resp, err := s.txn(ctx, what, key, append(slices.Clone(fence), unmoved(key, mod)),
			[]clientv3.Op{put(key, c)},
			[]clientv3.Op{clientv3.OpGet(leader), clientv3.OpGet(key, clientv3.WithKeysOnly()), clientv3.OpGet(s.key(dirRollouts+c.Rollout), clientv3.WithKeysOnly())})
		switch {
		case err != nil:
			return err
		case resp.Succeeded:
			return nil
		}
		switch l := onlyKV(resp, 0); {
		case l == nil:
			return fmt.Errorf("%s: %w: %s was elected, now it is nobody", what, ErrDeposed, t.id)
		case l.CreateRevision != t.created:
			return fmt.Errorf("%s: %w: %s was elected, now it is %s", what, ErrDeposed, t.id, l.Value)
		case onlyKV(resp, 2) == nil:
			return fmt.Errorf("%s: %w: it is not under way", what, ErrNotFound)
		case modOf(onlyKV(resp, 1)) == mod:
			return fmt.Errorf("%s: %w: %s is gone", what, ErrStale, s.key(keyFleet))
		}
		mod = modOf(onlyKV(resp, 1)) // an earlier write of ours came late
	}
}

// boundRollout bounds what a rollout's record holds of analyses: each step
// writes it, and every controller reads it.
func boundRollout(o *rollout.Rollout) {
	o.Evidence = boundEvidence(o.Evidence)
	if o.Return != nil {
		back := *o.Return
		back.Evidence = boundEvidence(back.Evidence)
		o.Return = &back
	}
}

// boundEvidence is r as a record holds it. The result given is not changed.
func boundEvidence(r *analysis.Result) *analysis.Result {
	if r == nil {
		return nil
	}
	short := r.Bounded()
	short.Why = boundWhy(r.Why)
	for i := range short.Findings {
		short.Findings[i].Why = boundWhy(short.Findings[i].Why)
	}
	return &short
}
