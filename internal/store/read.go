package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// page is how many records one call reads of a list without end.
const page = 200

// Head returns the number of the newest revision, 0 when none was published.
func (s *Store) Head(ctx context.Context) (int64, error) {
	resp, err := s.get(ctx, "read head", s.key(keyHead))
	if err != nil || len(resp.Kvs) == 0 {
		return 0, err
	}
	return s.parseCount(keyHead, resp.Kvs[0].Value)
}

// What a number may be: no fleet counts to mostCount, and no record is believed
// that is more than mostAhead in front of what others say. A number at the end
// of its range could not be counted on from.
const mostCount, mostAhead = 1 << 53, 1 << 32

// Believable is the highest number that is believed where known is known.
func Believable(known int64) int64 { return min(mostCount, known+mostAhead) }

// checkEpoch tells what is wrong with the epoch of a group's record.
func checkEpoch(n int64) error {
	if n < 1 || n > mostCount {
		return fmt.Errorf("epoch %d: no fleet counted so", n)
	}
	return nil
}

// checkNumber tells what is wrong with a revision's number; 0 is none.
func checkNumber(n int64) error {
	if n < 0 || n > mostCount {
		return fmt.Errorf("revision %d: no fleet counted so", n)
	}
	return nil
}

func (s *Store) parseCount(key string, b []byte) (int64, error) {
	var n int64
	if err := json.Unmarshal(b, &n); err != nil || n < 0 || n > mostCount {
		return 0, s.noCount(key, b)
	}
	return n, nil
}

func (s *Store) noCount(key string, b []byte) error {
	return fmt.Errorf("read %s: %w: %.80q is not a count: delete the key, and it is counted anew", s.key(key), ErrCorrupt, b)
}

// Fleet returns the fleet's settings and its two revisions. It fails with
// ErrNotInitialized when there is no fleet, and with ErrCorrupt when its record is
// lost, unreadable or of another fleet.
func (s *Store) Fleet(ctx context.Context) (rollout.Fleet, error) {
	f, _, err := s.fleet(ctx)
	return f, err
}

// fleet also returns the key's mod revision.
func (s *Store) fleet(ctx context.Context) (rollout.Fleet, int64, error) {
	resp, err := s.txn(ctx, "read fleet", s.key(keyFleet), nil, []clientv3.Op{
		clientv3.OpGet(s.key(keyFormat)), clientv3.OpGet(s.key(keyFleet)),
	}, nil)
	if err != nil {
		return rollout.Fleet{}, 0, err
	}
	format, kv := onlyKV(resp, 0), onlyKV(resp, 1)
	if format == nil {
		return rollout.Fleet{}, 0, s.notInitialized()
	}
	of, err := decodeFormat(string(format.Key), format.Value)
	if err != nil {
		return rollout.Fleet{}, 0, err
	}
	f, err := s.decodeFleet(kv, of.FleetID)
	return f, modOf(kv), err
}

// Revision returns revision n, or ErrNotFound.
func (s *Store) Revision(ctx context.Context, n int64) (version.Revision, error) {
	var r version.Revision
	what := fmt.Sprintf("read revision %d", n)
	b, err := s.value(ctx, what, s.revisionKey(n))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w: %w", what, ErrCorrupt, err)
	}
	if r.Number != n {
		return r, fmt.Errorf("%s: %w: the record is of revision %d", what, ErrCorrupt, r.Number)
	}
	return r, nil
}

// History returns the newest revisions first, at most limit of them, or all
// with limit 0. before, if not 0, leaves out the revisions from that number
// on, for the next page. Unreadable records are left out and logged.
func (s *Store) History(ctx context.Context, limit int, before int64) ([]version.Revision, error) {
	end := clientv3.GetPrefixRangeEnd(s.key(dirRevisions))
	if before > 0 {
		end = s.revisionKey(before)
	}
	return list[version.Revision](ctx, s, "read history", dirRevisions, end, limit)
}

// Audit returns the newest entries first, at most limit of them, or all with
// limit 0. before, if not "", is what the page before returned as next; next
// is "" when there is nothing older.
func (s *Store) Audit(ctx context.Context, limit int, before string) (entries []rollout.AuditEntry, next string, err error) {
	end := clientv3.GetPrefixRangeEnd(s.key(dirAudit))
	if before != "" {
		end = s.key(dirAudit + before)
	}
	return listFrom(ctx, s, "read audit", dirAudit, end, limit, leaveOut[rollout.AuditEntry](s))
}

// Rollouts returns the newest rollouts first, those that ended too, at most
// limit of them, or all with limit 0.
func (s *Store) Rollouts(ctx context.Context, limit int) ([]rollout.Rollout, error) {
	var all []rollout.Rollout
	for _, dir := range []string{dirRollouts, dirEnded} {
		some, err := list[rollout.Rollout](ctx, s, "read rollouts", dir, clientv3.GetPrefixRangeEnd(s.key(dir)), limit)
		if err != nil {
			return nil, err
		}
		all = append(some, all...)
	}
	// One that ended between the two reads is in both: what it is now comes first.
	slices.SortStableFunc(all, func(a, b rollout.Rollout) int { return strings.Compare(b.ID, a.ID) })
	all = slices.CompactFunc(all, func(a, b rollout.Rollout) bool { return a.ID == b.ID })
	if limit > 0 {
		all = all[:min(limit, len(all))]
	}
	return all, nil
}

// Rollout returns one rollout, under way or ended, or ErrNotFound.
func (s *Store) Rollout(ctx context.Context, id string) (rollout.Rollout, error) {
	var o rollout.Rollout
	what := "read rollout " + id
	resp, err := s.txn(ctx, what, s.key(dirRollouts+id), nil, []clientv3.Op{
		clientv3.OpGet(s.key(dirRollouts + id)), clientv3.OpGet(s.key(dirEnded + id)),
	}, nil)
	if err != nil {
		return o, err
	}
	kv := onlyKV(resp, 0)
	if kv == nil {
		kv = onlyKV(resp, 1)
	}
	if kv == nil {
		return o, fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	if err := json.Unmarshal(kv.Value, &o); err != nil {
		return o, fmt.Errorf("%s: %w: %w", what, ErrCorrupt, err)
	}
	return o, nil
}

// Condemned returns the digests that are never prepared again, by digest.
func (s *Store) Condemned(ctx context.Context) ([]rollout.Condemned, error) {
	cs, err := list[rollout.Condemned](ctx, s, "read condemned digests", dirCondemned, clientv3.GetPrefixRangeEnd(s.key(dirCondemned)), 0)
	slices.Reverse(cs)
	return cs, err
}

// Leader returns the id of the elected controller, "" when there is none.
func (s *Store) Leader(ctx context.Context) (string, error) {
	b, err := s.value(ctx, "read leader", s.key(keyLeader))
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	return string(b), err
}

// Manifest returns a snapshot's manifest, unpacked, or ErrNotFound. Its digest
// is not checked yet: version.Load and version.ParseManifest do.
func (s *Store) Manifest(ctx context.Context, d version.Digest) ([]byte, error) {
	what := "read manifest " + d.Short()
	packed, err := s.value(ctx, what, s.manifestKey(d))
	if err != nil {
		return nil, err
	}
	b, err := version.UnpackManifest(packed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", what, ErrCorrupt, err)
	}
	return b, nil
}

func (s *Store) value(ctx context.Context, what, key string) ([]byte, error) {
	resp, err := s.get(ctx, what, key)
	if err != nil {
		return nil, err
	}
	if len(resp.Kvs) == 0 {
		return nil, fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	return resp.Kvs[0].Value, nil
}

// list is listFrom for what is read in one go.
func list[T any](ctx context.Context, s *Store, what, dir, end string, limit int) ([]T, error) {
	all, _, err := listFrom(ctx, s, what, dir, end, limit, leaveOut[T](s))
	return all, err
}

// leaveOut decodes records and logs those that cannot be.
func leaveOut[T any](s *Store) func(*mvccpb.KeyValue) (T, bool, error) {
	return func(kv *mvccpb.KeyValue) (v T, ok bool, _ error) {
		err := json.Unmarshal(kv.Value, &v)
		if err != nil {
			s.log.Error("unreadable record left out", "key", string(kv.Key), "why", err)
		}
		return v, err == nil, nil
	}
}

// listFrom reads the records under dir below the key end, last key first, page
// by page, at most limit or, with 0, all. next is the name of the last record
// read, or "" when it was the first of all.
func listFrom[T any](ctx context.Context, s *Store, what, dir, end string, limit int, decode func(*mvccpb.KeyValue) (T, bool, error)) (all []T, next string, err error) {
	all = []T{}
	for seen := 0; limit <= 0 || seen < limit; {
		n := page
		if limit > 0 {
			n = min(n, limit-seen)
		}
		resp, err := s.get(ctx, what, s.key(dir), clientv3.WithRange(end),
			clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(int64(n)))
		if err != nil {
			return nil, "", err
		}
		for _, kv := range resp.Kvs {
			end = string(kv.Key)
			seen++
			v, ok, err := decode(kv)
			if err != nil {
				return nil, "", fmt.Errorf("%s: %w", what, err)
			}
			if ok {
				all = append(all, v)
			}
		}
		if !resp.More {
			return all, "", nil
		}
	}
	return all, s.name(end, dir), nil
}
