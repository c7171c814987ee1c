package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// A Pin keeps a revision from being collected.
type Pin struct {
	Number int64     `json:"number"`
	Why    string    `json:"why,omitempty"`
	By     string    `json:"by"`
	Time   time.Time `json:"time"`
}

// Pins returns what is pinned, by number. Unreadable records are left out and
// logged; collection keeps their revisions all the same.
func (s *Store) Pins(ctx context.Context) ([]Pin, error) {
	pins, err := list[Pin](ctx, s, "read pins", dirPins, clientv3.GetPrefixRangeEnd(s.key(dirPins)), 0)
	slices.Reverse(pins)
	return pins, err
}

// Pin keeps revision n, with an audit entry, until Unpin; a pin that is there
// is replaced. It fails with ErrNotFound when there is no such revision (any
// more), and with ErrBusy when gc does not end before ctx.
func (s *Store) Pin(ctx context.Context, n int64, why, by string) error {
	what := fmt.Sprintf("pin revision %d", n)
	for {
		rev, err := s.Revision(ctx, n)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		now := time.Now().UTC()
		// Either this comes before gc's lock and gc sees the pin, or it waits.
		resp, err := s.txn(ctx, what, s.pinKey(n), []clientv3.Cmp{
			s.unlocked(), exists(s.revisionKey(n)), exists(s.manifestKey(rev.Digest)),
		}, []clientv3.Op{
			put(s.pinKey(n), Pin{Number: n, Why: why, By: by, Time: now}),
			put(s.auditKey(now), rollout.AuditEntry{Time: now, Who: by, What: "pin", Why: why, To: rev.Ref()}),
		}, []clientv3.Op{clientv3.OpGet(s.key(keyGCLock))})
		switch {
		case err != nil || resp.Succeeded:
			return err
		case onlyKV(resp, 0) == nil:
			return fmt.Errorf("%s: %w: its snapshot is not stored any more", what, ErrNotFound)
		}
		if _, err := s.awaitGC(ctx, what); err != nil {
			return err
		}
	}
}

// Unpin ends a pin, with an audit entry. It fails with ErrNotFound when
// revision n is not pinned.
func (s *Store) Unpin(ctx context.Context, n int64, why, by string) error {
	what := fmt.Sprintf("unpin revision %d", n)
	now := time.Now().UTC()
	resp, err := s.txn(ctx, what, s.pinKey(n), []clientv3.Cmp{exists(s.pinKey(n))}, []clientv3.Op{
		clientv3.OpDelete(s.pinKey(n)),
		put(s.auditKey(now), rollout.AuditEntry{Time: now, Who: by, What: "unpin", Why: why, To: version.Ref{Number: n}}),
	}, nil)
	if err == nil && !resp.Succeeded {
		return fmt.Errorf("%s: %w: it is not pinned", what, ErrNotFound)
	}
	return err
}
