package store

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// maxStrategies bounds how many a fleet keeps: every controller reads them all.
const maxStrategies = 100

// SetSettings changes the fleet's settings, in one transaction with the audit
// entry. edit may be called again when somebody else wrote meanwhile; when it
// fails, or changes nothing, nothing is written. A strategy that the settings
// name must exist, else it fails with ErrNotFound.
func (s *Store) SetSettings(ctx context.Context, by string, edit func(*rollout.Settings) error) error {
	const what = "change settings"
	for {
		fleet, mod, err := s.fleet(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		old := fleet.Settings
		if err := edit(&fleet.Settings); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if fleet.Settings == old {
			return nil
		}
		if err := checkSettings(fleet.Settings); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		now := time.Now().UTC()
		cmps := []clientv3.Cmp{unmoved(s.key(keyFleet), mod)}
		var look []clientv3.Op
		names := stored(fleet.Settings.Strategy, fleet.Settings.FirstUse)
		for _, name := range names {
			cmps = append(cmps, exists(s.key(dirStrategies+name)))
			look = append(look, clientv3.OpGet(s.key(dirStrategies+name), clientv3.WithCountOnly()))
		}
		resp, err := s.txn(ctx, what, s.key(keyFleet), cmps, []clientv3.Op{
			put(s.key(keyFleet), fleet),
			put(s.auditKey(now), rollout.AuditEntry{Time: now, Who: by, What: "settings", Why: settingsText(fleet.Settings)}),
		}, look)
		if err != nil || resp.Succeeded {
			return err
		}
		for i, name := range names {
			if resp.Responses[i].GetResponseRange().Count == 0 {
				return fmt.Errorf("%s: %w: there is no strategy %s: apply it first", what, ErrNotFound, name)
			}
		}
	}
}

func checkSettings(x rollout.Settings) error {
	if wrong := boundSettings(&x); len(wrong) > 0 {
		return wrong[0]
	}
	return nil
}

// boundSettings gives every setting that has an impossible value its default,
// and says which: whoever may write the fleet's record can write anything, and
// nobody is to act on it.
func boundSettings(x *rollout.Settings) (wrong []error) {
	if x.PrepareTimeout < 0 {
		wrong = append(wrong, fmt.Errorf("prepareTimeout is %v: want at least 0, which stands for the default", x.PrepareTimeout))
		x.PrepareTimeout = 0
	}
	if x.Lead < 0 || x.Lead > rollout.MaxLead {
		wrong = append(wrong, fmt.Errorf("lead is %v: want at most %v, or 0 for the default", x.Lead, rollout.MaxLead))
		x.Lead = 0
	}
	if x.HistoryLimit < 0 {
		wrong = append(wrong, fmt.Errorf("historyLimit is %d: want at least 0, with which nothing is removed by itself", x.HistoryLimit))
		x.HistoryLimit = 0
	}
	if _, err := x.MaxUnready.Of(1); err != nil {
		wrong = append(wrong, fmt.Errorf("maxUnready: %w", err))
		x.MaxUnready = ""
	}
	return wrong
}

// stored are those of names that the fleet must have for itself: each once,
// without what is built in.
func stored(names ...string) (own []string) {
	for _, n := range names {
		if _, builtin := rollout.Builtin(n); n != "" && !builtin && (len(own) == 0 || own[0] != n) {
			own = append(own, n)
		}
	}
	return own
}

// settingsText is how settings stand in the audit.
func settingsText(x rollout.Settings) string {
	b, err := json.Marshal(x)
	if err != nil {
		return fmt.Sprintf("%+v", x)
	}
	return string(b)
}

// Strategies returns the fleet's own strategies by name; the built-in ones are
// not among them. Unreadable records are left out and logged.
func (s *Store) Strategies(ctx context.Context) (map[string]rollout.Strategy, error) {
	all, err := list[rollout.Strategy](ctx, s, "read strategies", dirStrategies, clientv3.GetPrefixRangeEnd(s.key(dirStrategies)), 0)
	if err != nil {
		return nil, err
	}
	byName := make(map[string]rollout.Strategy, len(all))
	for _, st := range all {
		byName[st.Name] = st
	}
	return byName, nil
}

// PutStrategy stores a strategy, in one transaction with the audit entry, in
// place of one of its name. Rollouts under way go on with the one they were
// taken up with. It refuses what Validate finds a problem with, and the name of
// a built-in one, and writes nothing when nothing would change.
func (s *Store) PutStrategy(ctx context.Context, st rollout.Strategy, by string) error {
	what := fmt.Sprintf("store strategy %.80q", st.Name)
	if wrong := st.Validate(); len(wrong) > 0 {
		return fmt.Errorf("%s: %s", what, strings.Join(wrong, "; "))
	}
	if _, builtin := rollout.Builtin(st.Name); builtin {
		return fmt.Errorf("%s: it is built in, which every fleet relies on: give yours another name", what)
	}
	value, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("%s: encode: %w", what, err)
	}
	if len(value) > maxStrategy {
		return fmt.Errorf("%s: %w: %d bytes, at most %d are allowed", what, ErrTooLarge, len(value), maxStrategy)
	}
	key := s.key(dirStrategies + st.Name)
	for {
		resp, err := s.txn(ctx, what, key, nil, []clientv3.Op{
			clientv3.OpGet(s.key(keyFleet), clientv3.WithKeysOnly()),
			clientv3.OpGet(key),
			clientv3.OpGet(s.key(dirStrategies), clientv3.WithPrefix(), clientv3.WithCountOnly()),
		}, nil)
		if err != nil {
			return err
		}
		if onlyKV(resp, 0) == nil {
			return fmt.Errorf("%s: %w", what, s.notInitialized())
		}
		old := onlyKV(resp, 1)
		switch {
		case old != nil && string(old.Value) == string(value):
			return nil
		case old == nil && resp.Responses[2].GetResponseRange().Count >= maxStrategies:
			return fmt.Errorf("%s: %w: the fleet has %d strategies: delete one first", what, ErrTooLarge, maxStrategies)
		}
		why := "made " + st.Name
		if old != nil {
			why = "replaced " + st.Name
		}
		now := time.Now().UTC()
		resp, err = s.txn(ctx, what, key, []clientv3.Cmp{exists(s.key(keyFleet)), unmoved(key, modOf(old))}, []clientv3.Op{
			clientv3.OpPut(key, string(value)),
			put(s.auditKey(now), rollout.AuditEntry{Time: now, Who: by, What: "strategy", Why: why}),
		}, nil)
		if err != nil || resp.Succeeded {
			return err
		}
	}
}

// DeleteStrategy deletes one of the fleet's own strategies, with an audit
// entry. Rollouts under way have their own copy. It fails with ErrNotFound, and
// with ErrConflict while the settings name it.
func (s *Store) DeleteStrategy(ctx context.Context, name, by string) error {
	what := fmt.Sprintf("delete strategy %.80q", name)
	if _, builtin := rollout.Builtin(name); builtin {
		return fmt.Errorf("%s: it is built in", what)
	}
	key := s.key(dirStrategies + name)
	for {
		fleet, mod, err := s.fleet(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if use := cmp.Or(inSettings(fleet.Settings.Strategy, name, "strategy"), inSettings(fleet.Settings.FirstUse, name, "firstUse")); use != "" {
			return fmt.Errorf("%s: %w: it is the fleet's setting %s: change that first", what, ErrConflict, use)
		}
		now := time.Now().UTC()
		resp, err := s.txn(ctx, what, key, []clientv3.Cmp{unmoved(s.key(keyFleet), mod), exists(key)}, []clientv3.Op{
			clientv3.OpDelete(key),
			put(s.auditKey(now), rollout.AuditEntry{Time: now, Who: by, What: "strategy", Why: "deleted " + name}),
		}, []clientv3.Op{clientv3.OpGet(key, clientv3.WithCountOnly())})
		if err != nil || resp.Succeeded {
			return err
		}
		if resp.Responses[0].GetResponseRange().Count == 0 {
			return fmt.Errorf("%s: %w", what, ErrNotFound)
		}
	}
}

// inSettings returns setting when it names name.
func inSettings(value, name, setting string) string {
	if value == name {
		return setting
	}
	return ""
}

// Pardon lifts the condemnation of a digest, with an audit entry: it may be
// published and prepared again, by one instance first. It fails with
// ErrNotFound when the digest is not condemned.
func (s *Store) Pardon(ctx context.Context, d version.Digest, by, why string) error {
	what, key := "pardon "+d.Short(), s.key(dirCondemned+d.String())
	now := time.Now().UTC()
	resp, err := s.txn(ctx, what, key, []clientv3.Cmp{exists(key)}, []clientv3.Op{
		clientv3.OpDelete(key),
		put(s.auditKey(now), rollout.AuditEntry{Time: now, Who: by, What: "pardon", Why: why, To: version.Ref{Digest: d}}),
	}, nil)
	if err == nil && !resp.Succeeded {
		return fmt.Errorf("%s: %w: it is not condemned", what, ErrNotFound)
	}
	return err
}
