package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// Layout is the version of the records' layout that this build reads and
// writes.
const Layout = 1

// A Format says how the records are laid out and which fleet they are of.
type Format struct {
	Layout  int       `json:"layout"`
	FleetID string    `json:"fleet"`
	Created time.Time `json:"created"`
}

// Init makes an empty fleet with a random id under the prefix, unless there is
// one. It never changes one that exists; created tells which it was. It fails
// with ErrCorrupt when half of one is there.
func (s *Store) Init(ctx context.Context) (f Format, created bool, err error) {
	now := time.Now().UTC()
	f = Format{Layout: Layout, FleetID: randomHex(16), Created: now}
	resp, err := s.txn(ctx, "init fleet", s.key(keyFormat),
		[]clientv3.Cmp{absent(s.key(keyFormat)), absent(s.key(keyFleet))},
		[]clientv3.Op{
			put(s.key(keyFormat), f),
			put(s.key(keyFleet), rollout.Fleet{ID: f.FleetID}),
			put(s.auditKey(now), rollout.AuditEntry{Time: now, Who: "routerd", What: "init", Why: "fleet " + f.FleetID}),
		}, nil)
	if err != nil {
		return Format{}, false, err
	}
	if resp.Succeeded {
		return f, true, nil
	}
	if f, err = s.Format(ctx); err != nil {
		return f, false, err
	}
	_, err = s.Fleet(ctx)
	return f, false, err
}

// Format returns the fleet's format. It fails with ErrNotInitialized when
// there is none, and when the layout is one that this build does not know.
func (s *Store) Format(ctx context.Context) (Format, error) {
	resp, err := s.get(ctx, "read format", s.key(keyFormat))
	if err != nil {
		return Format{}, err
	}
	if len(resp.Kvs) == 0 {
		return Format{}, s.notInitialized()
	}
	return decodeFormat(s.key(keyFormat), resp.Kvs[0].Value)
}

func decodeFormat(key string, b []byte) (Format, error) {
	var f Format
	if err := json.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("read %s: %w: %w", key, ErrCorrupt, err)
	}
	if f.Layout != Layout {
		return f, fmt.Errorf("read %s: layout %d, and this build knows only %d: use a build that knows it", key, f.Layout, Layout)
	}
	if f.FleetID == "" {
		return f, fmt.Errorf("read %s: %w: no fleet id", key, ErrCorrupt)
	}
	return f, nil
}

// decodeFleet decodes the record of the fleet that format names; kv is nil when
// it is absent. One that does not name that fleet was written by nobody who had
// read the right one: what it leaves out, settings and a target, would be lost
// for good.
func (s *Store) decodeFleet(kv *mvccpb.KeyValue, id string) (f rollout.Fleet, err error) {
	switch {
	case kv == nil:
		err = errors.New("it is gone")
	default:
		if err = json.Unmarshal(kv.Value, &f); err != nil {
			break
		}
		if f.ID != id {
			err = fmt.Errorf("it names fleet %q", f.ID)
		}
		for _, r := range []version.Ref{f.Target, f.Committed} {
			if wrong := checkNumber(r.Number); wrong != nil {
				err = wrong
			}
		}
	}
	if err != nil {
		return rollout.Fleet{}, fmt.Errorf("read %s: %w: %w, and %s is of fleet %s: put it back as it was, or routectl recover --from an instance of each group",
			s.key(keyFleet), ErrCorrupt, err, s.key(keyFormat), id)
	}
	return f, nil
}

func (s *Store) notInitialized() error {
	return fmt.Errorf("%w: nothing under %s at %v: run routectl init, or check --prefix and --endpoints", ErrNotInitialized, s.cfg.Prefix, s.cfg.Endpoints)
}

// absent holds if there is no such key.
func absent(key string) clientv3.Cmp { return clientv3.Compare(clientv3.CreateRevision(key), "=", 0) }

// exists holds if there is such a key.
func exists(key string) clientv3.Cmp { return clientv3.Compare(clientv3.CreateRevision(key), ">", 0) }

// unmoved holds if the key's mod revision is mod; 0 for a key that is absent.
func unmoved(key string, mod int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", mod)
}

// unmovedDir holds if no key under dir was written after the revision at.
func unmovedDir(dir string, at int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(dir), "<", at+1).WithPrefix()
}

// put writes v as JSON. The records are plain values: they always encode.
func put(key string, v any, opts ...clientv3.OpOption) clientv3.Op {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("store: encode %s: %v", key, err))
	}
	return clientv3.OpPut(key, string(b), opts...)
}
