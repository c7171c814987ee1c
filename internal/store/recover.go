package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// A RecoverRequest is what is known of a fleet whose etcd was wiped, or
// restored from an older copy: what one or several instances hold.
type RecoverRequest struct {
	// FleetID is the id that the instances know. An etcd that has another is
	// not touched.
	FleetID   string
	Settings  rollout.Settings // of a fleet that is made anew
	Target    version.Ref      // unless the fleet's is newer; of one that is made anew it is Committed, too
	Snapshots []*version.Snapshot
	Revisions []version.Revision // that the assignments name
	Highest   int64              // the highest revision number an instance ever saw

	// Groups are put as they are, so their epochs must exceed every one that
	// an instance served. A group that etcd has is replaced only if Replace
	// names it and its epoch is lower.
	Groups  []rollout.Assignment
	Replace []string

	By, Why string
}

// Recovered says what Recover wrote.
type Recovered struct {
	Created   bool     `json:"created"` // the fleet's record was made anew
	Groups    []string `json:"groups"`
	Revisions []int64  `json:"revisions"`
	Uploaded  Uploaded `json:"uploaded"`
}

// Recover gives etcd back what instances hold: snapshots, revisions and
// assignments, in one transaction after the upload. It overwrites nothing but a
// fleet's record that is not this fleet's and
// the groups that the request names as to be replaced: what is there and
// differs is an ErrConflict that names it, and then nothing is written. Nor is
// anything with ErrCorrupt: an instance holds what every View would leave out.
func (s *Store) Recover(ctx context.Context, req RecoverRequest) (Recovered, error) {
	what := "recover fleet " + req.FleetID
	if req.FleetID == "" {
		return Recovered{}, errors.New("recover: no fleet id")
	}
	if n := len(req.Groups); n > rollout.MaxGroups {
		return Recovered{}, fmt.Errorf("%s: %w: %d groups, at most %d are allowed", what, ErrTooLarge, n, rollout.MaxGroups)
	}
	if err := req.check(); err != nil {
		return Recovered{}, fmt.Errorf("%s: %w: %w", what, ErrCorrupt, err)
	}
	for try := 0; ; try++ {
		gcCount, err := s.awaitGC(ctx, what)
		if err != nil {
			return Recovered{}, err
		}
		done, err := s.recoverOnce(ctx, what, req, gcCount)
		if !errors.Is(err, ErrStale) {
			return done, err
		}
		if err := pause(ctx, backoff(try)); err != nil {
			return Recovered{}, fmt.Errorf("%s: %w", what, err)
		}
	}
}

// check finds what no View would show once it is written.
func (req RecoverRequest) check() error {
	errs := []error{checkNumber(req.Highest)}
	if err := checkNumber(req.Target.Number); err != nil {
		errs = append(errs, fmt.Errorf("target: %w", err))
	}
	for _, r := range req.Revisions {
		errs = append(errs, checkNumber(r.Number))
	}
	for _, a := range req.Groups {
		of := []error{CheckName("group", a.Group), checkEpoch(a.Epoch)}
		refs := append(slices.Concat(a.Set, a.Back), a.Stable, a.Against)
		if a.Candidate != nil {
			refs = append(refs, a.Candidate.Ref)
		}
		for _, r := range refs {
			of = append(of, checkNumber(r.Number))
		}
		for _, err := range of {
			if err != nil {
				errs = append(errs, fmt.Errorf("group %s: %w", shown(a.Group), err))
				break // the same number stands in several places
			}
		}
	}
	return errors.Join(errs...)
}

// recoverOnce is one try, valid while gc/count stays. ErrStale: try again.
func (s *Store) recoverOnce(ctx context.Context, what string, req RecoverRequest, gcCount int64) (done Recovered, err error) {
	for _, snap := range req.Snapshots {
		up, err := s.PutSnapshot(ctx, snap)
		if err != nil {
			return done, fmt.Errorf("%s: %w", what, err)
		}
		done.Uploaded.Chunks += up.Chunks
		done.Uploaded.Bytes += up.Bytes
		done.Uploaded.Known += up.Known
	}
	w := recovery{s: s, what: what, req: req, done: &done, cmps: []clientv3.Cmp{unmoved(s.key(keyGCCount), gcCount)}}
	for _, step := range []func(context.Context) error{w.fleet, w.revisions, w.groups} {
		if err := step(ctx); err != nil {
			return Recovered{}, err
		}
	}
	if len(w.ops) == 0 {
		return done, nil
	}
	now := time.Now().UTC()
	w.ops = append(w.ops, put(s.auditKey(now), rollout.AuditEntry{
		Time: now, Who: req.By, What: "recover", Why: req.Why, Groups: done.Groups, To: req.Target,
	}))
	if len(w.cmps) > maxOps-8 { // pack wants room
		return Recovered{}, fmt.Errorf("%s: %w: %d records; recover fewer groups or revisions at once", what, ErrTooLarge, len(w.cmps))
	}
	resp, err := s.txn(ctx, what, s.cfg.Prefix, w.cmps, pack(w.ops, len(w.cmps)), nil)
	switch {
	case err != nil:
		return Recovered{}, err
	case !resp.Succeeded:
		return Recovered{}, fmt.Errorf("%s: %w", what, ErrStale)
	}
	return done, nil
}

// A recovery collects what one transaction compares and writes.
type recovery struct {
	s    *Store
	what string
	req  RecoverRequest
	done *Recovered
	cmps []clientv3.Cmp
	ops  []clientv3.Op
}

func (w *recovery) fleet(ctx context.Context) error {
	s, req := w.s, w.req
	f, err := s.Format(ctx)
	switch {
	case errors.Is(err, ErrNotInitialized):
		w.cmps = append(w.cmps, absent(s.key(keyFormat)))
		w.ops = append(w.ops, put(s.key(keyFormat), Format{Layout: Layout, FleetID: req.FleetID, Created: time.Now().UTC()}))
	case err != nil:
		return fmt.Errorf("%s: %w", w.what, err)
	case f.FleetID != req.FleetID:
		return fmt.Errorf("%s: %w: under %s there is fleet %s: give another --prefix, or adopt what etcd has", w.what, ErrConflict, s.cfg.Prefix, f.FleetID)
	}
	return w.target(ctx, f.FleetID != "")
}

// target moves the target of a fleet that is there to what is given back, if
// that is newer: the next publish must not compose on what was before it. A
// record that is gone, or not that of the fleet which format names, is made anew.
func (w *recovery) target(ctx context.Context, format bool) error {
	key := w.s.key(keyFleet)
	resp, err := w.s.get(ctx, w.what, key)
	if err != nil {
		return err
	}
	var kv *mvccpb.KeyValue
	if len(resp.Kvs) > 0 {
		kv = resp.Kvs[0]
	}
	fleet, err := w.s.decodeFleet(kv, w.req.FleetID)
	var of struct {
		ID string `json:"id"`
	}
	if kv != nil && !format && json.Unmarshal(kv.Value, &of) == nil && of.ID != "" && of.ID != w.req.FleetID {
		return fmt.Errorf("%s: %w: %s is of fleet %s: give another --prefix", w.what, ErrConflict, key, of.ID)
	}
	switch {
	case err != nil:
		w.done.Created = true
		fleet = rollout.Fleet{ID: w.req.FleetID, Settings: w.req.Settings, Target: w.req.Target, Committed: w.req.Target}
	case w.req.Target.Number <= fleet.Target.Number:
		w.cmps = append(w.cmps, exists(key))
		return nil
	default:
		fleet.Target = w.req.Target
	}
	w.cmps = append(w.cmps, unmoved(key, modOf(kv)))
	w.ops = append(w.ops, put(key, fleet))
	return nil
}

func (w *recovery) revisions(ctx context.Context) error {
	s := w.s
	highest := w.req.Highest
	for _, r := range w.req.Revisions {
		highest = max(highest, r.Number)
		got, err := s.Revision(ctx, r.Number)
		switch {
		case errors.Is(err, ErrNotFound):
			w.cmps = append(w.cmps, absent(s.revisionKey(r.Number)))
			w.ops = append(w.ops, put(s.revisionKey(r.Number), r))
			w.done.Revisions = append(w.done.Revisions, r.Number)
		case err != nil:
			return fmt.Errorf("%s: %w", w.what, err)
		case got.Digest != r.Digest:
			return fmt.Errorf("%s: %w: revision %d is %s in etcd and %s on the instance: etcd went back and another was published since; adopt what etcd has, or recover with a new number",
				w.what, ErrConflict, r.Number, got.Digest.Short(), r.Digest.Short())
		}
	}
	resp, err := s.get(ctx, w.what, s.key(keyHead))
	if err != nil {
		return err
	}
	var head, mod int64
	if len(resp.Kvs) > 0 {
		mod = resp.Kvs[0].ModRevision
		if head, err = s.parseCount(keyHead, resp.Kvs[0].Value); err != nil {
			return fmt.Errorf("%s: %w", w.what, err)
		}
	}
	if highest > head {
		w.cmps = append(w.cmps, unmoved(s.key(keyHead), mod))
		w.ops = append(w.ops, put(s.key(keyHead), highest))
	}
	return nil
}

func (w *recovery) groups(ctx context.Context) error {
	s := w.s
	served := map[version.Digest]bool{}
	for _, a := range w.req.Groups {
		st, err := s.Group(ctx, a.Group)
		if err != nil {
			return fmt.Errorf("%s: %w", w.what, err)
		}
		switch {
		case st.AssignmentMod == 0:
		case !slices.Contains(w.req.Replace, a.Group):
			return fmt.Errorf("%s: %w: etcd has group %s; name it as to be replaced, or adopt what etcd has", w.what, ErrConflict, a.Group)
		case st.Assignment != nil && st.Assignment.Epoch >= a.Epoch:
			return fmt.Errorf("%s: %w: group %s is at epoch %d in etcd, not before %d", w.what, ErrConflict, a.Group, st.Assignment.Epoch, a.Epoch)
		}
		w.cmps = append(w.cmps, unmoved(s.key(dirGroups+a.Group), st.AssignmentMod))
		w.ops = append(w.ops, put(s.key(dirGroups+a.Group), a))
		w.done.Groups = append(w.done.Groups, a.Group)
		served[a.Stable.Digest] = true
	}
	slices.Sort(w.done.Groups)
	digests := slices.SortedFunc(maps.Keys(served), func(a, b version.Digest) int { return strings.Compare(a.String(), b.String()) })
	for _, d := range digests {
		w.ops = append(w.ops, clientv3.OpPut(s.key(dirServed+d.String()), ""))
	}
	return nil
}
