package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// cache spares a View what cannot have changed: revisions are immutable.
type cache struct {
	mu        sync.Mutex
	revisions map[version.Ref]version.Revision
}

// View reads every record that decides what happens next at one revision of
// etcd, linearizably. Records that cannot be read are left out and logged; see
// ViewBroken. Only an unreadable or missing fleet is an error.
func (s *Store) View(ctx context.Context) (*rollout.View, error) {
	v, broken, err := s.ViewBroken(ctx)
	for _, b := range broken {
		s.log.Error("unreadable record left out", "key", b.Key, "why", b.Why)
	}
	return v, err
}

// ViewBroken is View, and names the records that it left out. When a group's
// assignment is unreadable, the group's instances, prepare and reports are left
// out with it, so that nobody takes it for a group that serves nothing yet.
func (s *Store) ViewBroken(ctx context.Context) (*rollout.View, []Broken, error) {
	dirs := []string{dirGroups, dirPrepares, dirReady, dirInstances, dirReports, dirIntents, dirRollouts, dirCondemned, dirServed}
	ops := []clientv3.Op{clientv3.OpGet(s.key(keyFormat)), clientv3.OpGet(s.key(keyFleet))}
	for _, d := range dirs {
		ops = append(ops, clientv3.OpGet(s.key(d), clientv3.WithPrefix()))
	}
	resp, err := s.txn(ctx, "read view", s.cfg.Prefix, nil, ops, nil)
	if err != nil {
		return nil, nil, err
	}
	at := func(i int) []*mvccpb.KeyValue { return resp.Responses[i].GetResponseRange().Kvs }
	if len(at(0)) == 0 || len(at(1)) == 0 {
		return nil, nil, fmt.Errorf("read view: %w", s.notInitialized())
	}
	if _, err := decodeFormat(s.key(keyFormat), at(0)[0].Value); err != nil {
		return nil, nil, err
	}
	r := viewReader{s: s, v: &rollout.View{At: resp.Header.Revision}}
	if err := json.Unmarshal(at(1)[0].Value, &r.v.Fleet); err != nil {
		return nil, nil, fmt.Errorf("read %s: %w: %w", s.key(keyFleet), ErrCorrupt, err)
	}
	r.groups(at(2))
	r.prepares(at(3))
	r.ready(at(4))
	r.instances(at(5))
	r.reports(at(6))
	r.intents(at(7))
	r.rollouts(at(8))
	r.digests(at(9), at(10))
	if err := r.revisions(ctx); err != nil {
		return nil, nil, err
	}
	return r.v, r.broken, nil
}

// viewReader turns keys and values into a View.
type viewReader struct {
	s      *Store
	v      *rollout.View
	broken []Broken
	hidden map[string]bool // groups whose assignment is unreadable
}

func (r *viewReader) report(kv *mvccpb.KeyValue, why string) {
	r.broken = append(r.broken, Broken{Key: string(kv.Key), Why: why})
}

// record decodes kv into a T and reports it if it is not what its key says:
// named gives the name that the record itself bears.
func record[T any](r *viewReader, kv *mvccpb.KeyValue, dir string, named func(*T) string) (name string, v T, ok bool) {
	name = r.s.name(string(kv.Key), dir)
	if err := json.Unmarshal(kv.Value, &v); err != nil {
		r.report(kv, err.Error())
		return name, v, false
	}
	if n := named(&v); n != name {
		r.report(kv, fmt.Sprintf("the record is of %q", n))
		return name, v, false
	}
	return name, v, true
}

func (r *viewReader) groups(kvs []*mvccpb.KeyValue) {
	r.v.Groups = make(map[string]rollout.Assignment, len(kvs))
	r.hidden = map[string]bool{}
	for _, kv := range kvs {
		name, a, ok := record(r, kv, dirGroups, func(a *rollout.Assignment) string { return a.Group })
		if !ok {
			r.hidden[name] = true
			continue
		}
		r.v.Groups[name] = a
	}
}

func (r *viewReader) prepares(kvs []*mvccpb.KeyValue) {
	r.v.Prepares = make(map[string]rollout.Prepare, len(kvs))
	for _, kv := range kvs {
		if name, p, ok := record(r, kv, dirPrepares, func(p *rollout.Prepare) string { return p.Group }); ok && !r.hidden[name] {
			r.v.Prepares[name] = p
		}
	}
}

func (r *viewReader) ready(kvs []*mvccpb.KeyValue) {
	r.v.Ready = map[string]map[string]rollout.Ready{}
	for _, kv := range kvs {
		group, instance, ok := strings.Cut(r.s.name(string(kv.Key), dirReady), "/")
		if !ok || group == "" || instance == "" {
			r.report(kv, "the key is not ready/<group>/<instance>")
			continue
		}
		if r.hidden[group] {
			continue
		}
		if r.v.Ready[group] == nil {
			r.v.Ready[group] = map[string]rollout.Ready{}
		}
		r.v.Ready[group][instance] = decodeReady(group, instance, string(kv.Value))
	}
}

func (r *viewReader) instances(kvs []*mvccpb.KeyValue) {
	r.v.Instances = make(map[string]rollout.Instance, len(kvs))
	for _, kv := range kvs {
		name, i, ok := record(r, kv, dirInstances, func(i *rollout.Instance) string { return i.Instance })
		if !ok || r.hidden[i.Group] {
			continue
		}
		if err := CheckName("group", i.Group); err != nil { // a group would be made of it
			r.report(kv, err.Error())
			continue
		}
		r.v.Instances[name] = i
	}
}

func (r *viewReader) reports(kvs []*mvccpb.KeyValue) {
	r.v.Reports = make(map[string]rollout.Report, len(kvs))
	for _, kv := range kvs {
		name, p, ok := record(r, kv, dirReports, func(p *rollout.Report) string { return p.Instance })
		if !ok || r.hidden[p.Group] {
			continue
		}
		if !credible(&p) {
			r.report(kv, fmt.Sprintf("epoch %d, revision %d: no fleet counted so far", p.HighestEpoch, p.HighestRevision))
			continue
		}
		if i, known := r.v.Instances[name]; known && i.Group != p.Group { // it could freeze a group that is not its own
			r.report(kv, fmt.Sprintf("the instance is of group %q, its report of %q", i.Group, p.Group))
			continue
		}
		r.v.Reports[name] = p
	}
}

// credible tells whether a fleet can have counted as far as an instance says:
// numbers of its own exceed what it saw, and must not overflow.
func credible(r *rollout.Report) bool {
	const most = 1 << 53
	return 0 <= r.HighestEpoch && r.HighestEpoch <= most && 0 <= r.HighestRevision && r.HighestRevision <= most
}

// intents lists them in the order in which etcd took them: the clocks of those
// who asked do not agree, and the target is that of who came last.
func (r *viewReader) intents(kvs []*mvccpb.KeyValue) {
	slices.SortFunc(kvs, func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) })
	for _, kv := range kvs {
		if len(kv.Value) > maxIntent {
			r.report(kv, fmt.Sprintf("the intent has %d bytes, at most %d are allowed", len(kv.Value), maxIntent))
			continue
		}
		if _, i, ok := record(r, kv, dirIntents, func(i *rollout.Intent) string { return i.ID }); ok {
			r.v.Intents = append(r.v.Intents, i)
		}
	}
}

func (r *viewReader) rollouts(kvs []*mvccpb.KeyValue) {
	for _, kv := range kvs {
		if _, o, ok := record(r, kv, dirRollouts, func(o *rollout.Rollout) string { return o.ID }); ok && !o.Phase.Final() {
			r.v.Rollouts = append(r.v.Rollouts, o)
		}
	}
	slices.SortFunc(r.v.Rollouts, func(a, b rollout.Rollout) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.ID, b.ID))
	})
}

func (r *viewReader) digests(condemned, served []*mvccpb.KeyValue) {
	r.v.Condemned = make(map[version.Digest]rollout.Condemned, len(condemned))
	for _, kv := range condemned {
		if _, c, ok := record(r, kv, dirCondemned, func(c *rollout.Condemned) string { return c.Digest.String() }); ok {
			r.v.Condemned[c.Digest] = c
		}
	}
	r.v.Served = make(map[version.Digest]bool, len(served))
	for _, kv := range served {
		d, err := version.ParseDigest(r.s.name(string(kv.Key), dirServed))
		if err != nil {
			r.report(kv, err.Error())
			continue
		}
		r.v.Served[d] = true
	}
}

// revisions adds the revisions that fleet, intents and rollouts name. They are
// immutable, so they need not be read at the View's revision.
func (r *viewReader) revisions(ctx context.Context) error {
	want := map[version.Ref]bool{r.v.Fleet.Target: true, r.v.Fleet.Committed: true}
	for _, i := range r.v.Intents {
		want[i.To], want[i.PrevTarget] = true, true
	}
	for _, o := range r.v.Rollouts {
		want[o.To], want[o.PrevTarget] = true, true
	}
	delete(want, version.Ref{})
	c := &r.s.cache
	c.mu.Lock()
	known := c.revisions
	c.mu.Unlock()
	kept := make(map[version.Ref]version.Revision, len(want))
	r.v.Revisions = make(map[int64]version.Revision, len(want))
	for ref := range want {
		rev, ok := known[ref]
		if !ok {
			var err error
			rev, err = r.s.Revision(ctx, ref.Number)
			switch {
			case errors.Is(err, ErrNotFound), errors.Is(err, ErrCorrupt):
				r.broken = append(r.broken, Broken{Key: r.s.revisionKey(ref.Number), Why: err.Error()})
				continue
			case err != nil:
				return err
			}
		}
		kept[ref] = rev
		r.v.Revisions[ref.Number] = rev
	}
	c.mu.Lock()
	c.revisions = kept
	c.mu.Unlock()
	return nil
}

// A ready key's value is exactly the nonce, so that one range compare can say
// that a whole group holds it.
const readyNone, readyRefused = "none", "refused "

func encodeReady(r rollout.Ready) string {
	switch {
	case r.Refused:
		return readyRefused + string(r.Nonce) + " " + r.Why
	case r.Nonce == "":
		return readyNone
	}
	return string(r.Nonce)
}

// boundWhy bounds a reason when it is written, and when it is read: a foreign
// build may have written it, and it goes into the controller's transaction.
func boundWhy(why string) string {
	if len(why) <= maxWhy+len("…") {
		return why
	}
	return strings.ToValidUTF8(why[:maxWhy], "") + "…"
}

func decodeReady(group, instance, value string) rollout.Ready {
	r := rollout.Ready{Instance: instance, Group: group}
	rest, refused := strings.CutPrefix(value, readyRefused)
	switch {
	case refused:
		nonce, why, _ := strings.Cut(rest, " ")
		r.Nonce, r.Refused, r.Why = rollout.Nonce(nonce), true, boundWhy(why)
	case value != readyNone:
		r.Nonce = rollout.Nonce(value)
	}
	return r
}
