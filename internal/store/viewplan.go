package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// What one record of these kinds may have, in bytes: every controller reads
// all of them, and a rollout's record repeats its strategy.
const (
	maxStrategy = 64 << 10
	maxMeasure  = 256 << 10
	maxChecks   = 256 << 10
)

// fits reports a record that is larger than most.
func (r *viewReader) fits(kv *mvccpb.KeyValue, what string, most int) bool {
	if len(kv.Value) <= most {
		return true
	}
	r.report(kv, fmt.Sprintf("the %s has %d bytes, at most %d are allowed", what, len(kv.Value), most))
	return false
}

// strategies leaves out those that Step could not play.
func (r *viewReader) strategies(kvs []*mvccpb.KeyValue) {
	r.v.Strategies = make(map[string]rollout.Strategy, len(kvs))
	for _, kv := range kvs {
		if !r.fits(kv, "strategy", maxStrategy) {
			continue
		}
		name, s, ok := record(r, kv, dirStrategies, func(s *rollout.Strategy) string { return s.Name })
		if !ok {
			continue
		}
		if wrong := s.Validate(); len(wrong) > 0 {
			r.report(kv, strings.Join(wrong, "; "))
			continue
		}
		r.v.Strategies[name] = s
	}
}

// checks leaves out those of rollouts that have ended, which nothing follows
// from.
func (r *viewReader) checks(kvs []*mvccpb.KeyValue) {
	r.v.Checks = make(map[string]rollout.Checks, len(kvs))
	for _, kv := range kvs {
		id := r.s.name(string(kv.Key), dirChecks)
		if !slices.ContainsFunc(r.v.Rollouts, func(o rollout.Rollout) bool { return o.ID == id }) || !r.fits(kv, "record", maxChecks) {
			continue
		}
		if _, c, ok := record(r, kv, dirChecks, func(c *rollout.Checks) string { return c.Rollout }); ok {
			r.v.Checks[id] = c
		}
	}
}

// measures reads what instances counted, at the View's revision, but only
// while there is something to compare: they are by far the largest records, and a
// commit without a plan does not wait for them.
func (r *viewReader) measures(ctx context.Context) error {
	r.v.Measures = map[string]rollout.Measure{}
	if !r.compares() {
		return nil
	}
	resp, err := r.s.get(ctx, "read measures", r.s.key(dirMeasures), clientv3.WithPrefix(), clientv3.WithRev(r.v.At))
	if err != nil {
		return err
	}
	for _, kv := range resp.Kvs {
		if !r.fits(kv, "measure", maxMeasure) {
			continue
		}
		name, m, ok := record(r, kv, dirMeasures, func(m *rollout.Measure) string { return m.Instance })
		if !ok {
			continue
		}
		switch i, known := r.v.Instances[name]; {
		case !known, i.Boot != m.Boot: // of a process that is gone
		case i.Group != m.Group: // it would count for a group that is not its own
			r.report(kv, fmt.Sprintf("the instance is of group %q, its measure of %q", i.Group, m.Group))
		default:
			r.v.Measures[name] = m
		}
	}
	return nil
}

// compares tells whether any group has two revisions to compare, or a rollout
// has a plan.
func (r *viewReader) compares() bool {
	for _, a := range r.v.Groups {
		if a.Candidate != nil || !a.Against.IsZero() {
			return true
		}
	}
	return slices.ContainsFunc(r.v.Rollouts, func(o rollout.Rollout) bool { return o.Plan != nil })
}

// revisions adds the revisions that fleet, intents, rollouts and groups name.
// They are immutable, so they need not be read at the View's revision.
func (r *viewReader) revisions(ctx context.Context) error {
	must, may := r.namedRevisions()
	c := &r.s.cache
	c.mu.Lock()
	known := c.revisions
	c.mu.Unlock()
	kept := make(map[version.Ref]version.Revision, len(must)+len(may))
	var missing []version.Ref
	for _, refs := range []map[version.Ref]bool{must, may} {
		for ref := range refs {
			if rev, ok := known[ref]; ok {
				kept[ref] = rev
			} else {
				missing = append(missing, ref)
			}
		}
	}
	slices.SortFunc(missing, func(a, b version.Ref) int { return int(a.Number - b.Number) })
	for part := range slices.Chunk(missing, maxOps) {
		if err := r.readRevisions(ctx, part, must, kept); err != nil {
			return err
		}
	}
	r.v.Revisions = make(map[int64]version.Revision, len(kept))
	for _, rev := range kept {
		r.v.Revisions[rev.Number] = rev
	}
	c.mu.Lock()
	c.revisions = kept
	c.mu.Unlock()
	return nil
}

// namedRevisions returns those that a decision needs, and those that it may
// do without: a fleet that was recovered has not all that its groups served.
func (r *viewReader) namedRevisions() (must, may map[version.Ref]bool) {
	must = map[version.Ref]bool{r.v.Fleet.Target: true, r.v.Fleet.Committed: true}
	for _, i := range r.v.Intents {
		must[i.To], must[i.PrevTarget] = true, true
	}
	for _, o := range r.v.Rollouts {
		must[o.To], must[o.PrevTarget] = true, true
	}
	may = map[version.Ref]bool{}
	for _, a := range r.v.Groups {
		may[a.Stable] = true
		if a.Candidate != nil {
			may[a.Candidate.Ref] = true
		}
		for _, b := range a.Back {
			may[b] = true
		}
	}
	for ref := range must {
		delete(may, ref)
	}
	delete(must, version.Ref{})
	delete(may, version.Ref{})
	return must, may
}

// readRevisions reads some at once into kept, and reports what is unreadable,
// or absent though needed.
func (r *viewReader) readRevisions(ctx context.Context, refs []version.Ref, must map[version.Ref]bool, kept map[version.Ref]version.Revision) error {
	ops := make([]clientv3.Op, len(refs))
	for i, ref := range refs {
		ops[i] = clientv3.OpGet(r.s.revisionKey(ref.Number))
	}
	resp, err := r.s.txn(ctx, "read revisions", r.s.key(dirRevisions), nil, ops, nil)
	if err != nil {
		return err
	}
	for i, ref := range refs {
		kv := onlyKV(resp, i)
		if kv == nil {
			if must[ref] {
				r.broken = append(r.broken, Broken{Key: r.s.revisionKey(ref.Number), Why: ErrNotFound.Error()})
			}
			continue
		}
		var rev version.Revision
		if err := json.Unmarshal(kv.Value, &rev); err != nil {
			r.report(kv, err.Error())
			continue
		}
		if rev.Number != ref.Number {
			r.report(kv, fmt.Sprintf("the record is of revision %d", rev.Number))
			continue
		}
		kept[ref] = rev
	}
	return nil
}
