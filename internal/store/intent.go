package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// PutIntent asks the controller for something, in one transaction with the
// audit entry and, if setTarget is not nil, with the fleet's new target. ID
// and Time are filled in where they are zero, PrevTarget always; the intent is
// returned as it was written.
//
// With setTarget, or with an expect that is not zero, the target must be
// expect, else it fails with ErrConflict. It fails with ErrNotFound when
// i.To's snapshot was never published or is collected, with ErrConflict when
// an intent of that id exists, and with ErrBusy when gc does not end before ctx.
func (s *Store) PutIntent(ctx context.Context, i rollout.Intent, setTarget *version.Ref, expect version.Ref) (rollout.Intent, error) {
	what := fmt.Sprintf("ask for %s", i.Kind)
	now := time.Now().UTC()
	i = fillIntent(i, now, "", "")
	if strings.Contains(i.ID, "/") {
		return i, fmt.Errorf("%s: id %q has a slash", what, i.ID)
	}
	if err := checkIntent(i); err != nil {
		return i, fmt.Errorf("%s: %w", what, err)
	}
	for {
		fleet, fleetMod, err := s.fleet(ctx)
		if err != nil {
			return i, fmt.Errorf("%s: %w", what, err)
		}
		if (setTarget != nil || !expect.IsZero()) && fleet.Target != expect {
			return i, fmt.Errorf("%s: %w: the target is %s, not %s: look again and repeat", what, ErrConflict, refName(fleet.Target), refName(expect))
		}
		i.PrevTarget = fleet.Target
		cmps := []clientv3.Cmp{unmoved(s.key(keyFleet), fleetMod), absent(s.key(dirIntents + i.ID))}
		ops := []clientv3.Op{
			put(s.key(dirIntents+i.ID), i),
			put(s.auditKey(now), rollout.AuditEntry{Time: now, Who: i.By, What: string(i.Kind), Why: i.Message, Rollout: i.ID, Groups: i.Groups, To: i.To}),
		}
		if setTarget != nil {
			fleet.Target = *setTarget
			ops = append(ops, put(s.key(keyFleet), fleet))
		}
		if !i.To.IsZero() {
			// What gc is about to delete must not be named: either this comes
			// before its lock and gc sees the intent, or it waits.
			cmps = append(cmps, s.unlocked(), exists(s.manifestKey(i.To.Digest)))
		}
		resp, err := s.txn(ctx, what, s.key(dirIntents+i.ID), cmps, ops, []clientv3.Op{
			clientv3.OpGet(s.key(keyGCLock)),
			clientv3.OpGet(s.key(dirIntents+i.ID), clientv3.WithKeysOnly()),
			clientv3.OpGet(s.manifestKey(i.To.Digest), clientv3.WithCountOnly()),
		})
		switch {
		case err != nil:
			return i, err
		case resp.Succeeded:
			return i, nil
		case onlyKV(resp, 1) != nil:
			return i, fmt.Errorf("%s: %w: there is an intent %s already", what, ErrConflict, i.ID)
		case i.To.IsZero(): // only the fleet moved
		case onlyKV(resp, 0) != nil:
			if _, err := s.awaitGC(ctx, what); err != nil {
				return i, err
			}
		case resp.Responses[2].GetResponseRange().Count == 0:
			return i, fmt.Errorf("%s: %w: the snapshot of %s is not stored (any more): publish it again", what, ErrNotFound, refName(i.To))
		}
	}
}
