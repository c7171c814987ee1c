package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// A PublishRequest is a snapshot and what is to be recorded with it.
type PublishRequest struct {
	Snapshot *version.Snapshot
	// Parent is the target that the snapshot was composed on; zero for none.
	// Publishing fails with ErrConflict when the target is another by now.
	Parent          version.Ref
	Author, Message string
	// Intent, if not nil, moves the fleet's target to the new revision and asks
	// the controller for the switch, in the same transaction. ID, To,
	// PrevTarget, By, Message and Time are filled in where they are zero; To
	// and PrevTarget always.
	Intent *rollout.Intent
}

// Published is what a publish did.
type Published struct {
	Revision version.Revision `json:"revision"`
	Intent   *rollout.Intent  `json:"intent,omitempty"` // as it was written
	Uploaded Uploaded         `json:"uploaded"`
}

// Publish uploads what etcd lacks of the snapshot and then, in one
// transaction, adds the revision to the history and, with an intent, moves the
// fleet's target to it. The revision's number is higher than every one that
// the history or an instance knows of.
//
// It fails with ErrConflict when the target is not req.Parent, with
// ErrCondemned when the digest is never prepared again, with
// ErrNothingChanged (a *NothingChangedError) when the target has this digest
// and every group serves it, and with ErrBusy when gc does not end before ctx.
func (s *Store) Publish(ctx context.Context, req PublishRequest) (Published, error) {
	what := "publish " + req.Snapshot.Digest.Short()
	if req.Intent != nil {
		if err := checkIntent(fillIntent(*req.Intent, time.Time{}, req.Author, req.Message)); err != nil {
			return Published{}, fmt.Errorf("%s: %w", what, err)
		}
	}
	for try := 0; ; try++ {
		count, err := s.awaitGC(ctx, what)
		if err != nil {
			return Published{}, err
		}
		p := publication{s: s, what: what, req: req, gcCount: count}
		if err := p.look(ctx); err != nil { // before anything is uploaded
			return Published{}, err
		}
		up, err := s.PutSnapshot(ctx, req.Snapshot)
		if err != nil {
			return Published{}, fmt.Errorf("%s: %w", what, err)
		}
		done, err := p.commit(ctx)
		if errors.Is(err, errCollected) {
			s.log.Info("gc ran while publishing, checking the pieces again", "digest", req.Snapshot.Digest.Short())
			if err := pause(ctx, backoff(try)); err != nil {
				return Published{}, fmt.Errorf("%s: %w", what, err)
			}
			continue
		}
		done.Uploaded = up
		return done, err
	}
}

// errCollected: gc began since the publisher looked what is there.
var errCollected = errors.New("gc began in between")

// awaitGC waits until no gc runs and returns the mod revision of gc/count.
func (s *Store) awaitGC(ctx context.Context, what string) (int64, error) {
	by := ""
	busy := func() error {
		return fmt.Errorf("%s: %w (by %s): try again when it has ended", what, ErrBusy, by)
	}
	for try := 0; ; try++ {
		resp, err := s.txn(ctx, what, s.key(keyGCCount), nil, []clientv3.Op{
			clientv3.OpGet(s.key(keyGCLock)), clientv3.OpGet(s.key(keyGCCount)),
		}, nil)
		switch {
		case err != nil && by != "" && ctx.Err() != nil:
			return 0, busy()
		case err != nil:
			return 0, err
		}
		lock := onlyKV(resp, 0)
		if lock == nil {
			return modOf(onlyKV(resp, 1)), nil
		}
		by = string(lock.Value)
		if pause(ctx, backoff(try)) != nil {
			return 0, busy()
		}
	}
}

// A publication is one try, valid while gc/count stays.
type publication struct {
	s       *Store
	what    string
	req     PublishRequest
	gcCount int64

	// As read by look.
	fleet             rollout.Fleet
	fleetMod, headMod int64
	highest           int64
}

// look reads what the revision builds on, and fails when it is not to be made.
func (p *publication) look(ctx context.Context) error {
	s := p.s
	resp, err := s.txn(ctx, p.what, s.cfg.Prefix, nil, []clientv3.Op{
		clientv3.OpGet(s.key(keyFormat)),
		clientv3.OpGet(s.key(keyFleet)),
		clientv3.OpGet(s.key(keyHead)),
		clientv3.OpGet(s.key(dirGroups), clientv3.WithPrefix()),
		clientv3.OpGet(s.key(dirReports), clientv3.WithPrefix()),
		clientv3.OpGet(s.key(dirRevisions), append(clientv3.WithLastKey(), clientv3.WithKeysOnly())...),
		clientv3.OpGet(s.key(dirCondemned + p.req.Snapshot.Digest.String())),
	}, nil)
	if err != nil {
		return err
	}
	format, fleet, head := onlyKV(resp, 0), onlyKV(resp, 1), onlyKV(resp, 2)
	if format == nil || fleet == nil {
		return fmt.Errorf("%s: %w", p.what, s.notInitialized())
	}
	if _, err := decodeFormat(string(format.Key), format.Value); err != nil {
		return fmt.Errorf("%s: %w", p.what, err)
	}
	p.fleet = rollout.Fleet{}
	if err := json.Unmarshal(fleet.Value, &p.fleet); err != nil {
		return fmt.Errorf("%s: read %s: %w: %w", p.what, fleet.Key, ErrCorrupt, err)
	}
	p.fleetMod, p.headMod, p.highest = fleet.ModRevision, modOf(head), 0
	if head != nil {
		if p.highest, err = s.parseCount(keyHead, head.Value); err != nil {
			return fmt.Errorf("%s: %w", p.what, err)
		}
	}
	if last := onlyKV(resp, 5); last != nil { // never overwritten, also when head was lost
		n, err := strconv.ParseInt(s.name(string(last.Key), dirRevisions), 10, 64)
		if err != nil {
			return fmt.Errorf("%s: %w: %s", p.what, ErrCorrupt, last.Key)
		}
		p.highest = max(p.highest, n)
	}
	if kv := onlyKV(resp, 6); kv != nil {
		var c rollout.Condemned
		_ = json.Unmarshal(kv.Value, &c) // then it is condemned without a reason
		return fmt.Errorf("%s: %w: %s; change the routes and publish again", p.what, ErrCondemned, c.Why)
	}
	if p.fleet.Target != p.req.Parent {
		return fmt.Errorf("%s: %w: the target is %s, and this was composed on %s: publish again to compose on the new one",
			p.what, ErrConflict, refName(p.fleet.Target), refName(p.req.Parent))
	}
	if p.fleet.Target.Digest == p.req.Snapshot.Digest && allServe(resp.Responses[3].GetResponseRange().Kvs, p.fleet.Target.Digest) {
		return fmt.Errorf("%s: %w", p.what, &NothingChangedError{Target: p.fleet.Target})
	}
	for _, kv := range resp.Responses[4].GetResponseRange().Kvs {
		var r rollout.Report
		if json.Unmarshal(kv.Value, &r) == nil && credible(&r) { // a broken report knows no number
			p.highest = max(p.highest, r.HighestRevision)
		}
	}
	return nil
}

func allServe(groups []*mvccpb.KeyValue, d version.Digest) bool {
	for _, kv := range groups {
		var a rollout.Assignment
		if json.Unmarshal(kv.Value, &a) != nil || a.Stable.Digest != d || a.Candidate != nil {
			return false
		}
	}
	return true
}

func refName(r version.Ref) string {
	if r.IsZero() {
		return "no revision"
	}
	return fmt.Sprintf("revision %d (%s)", r.Number, r.Digest.Short())
}

// commit makes the revision. It begins anew while only the fleet or head moved
// and the target did not.
func (p *publication) commit(ctx context.Context) (Published, error) {
	s := p.s
	for {
		if err := p.look(ctx); err != nil {
			return Published{}, err
		}
		done, ops := p.records(time.Now().UTC())
		resp, err := s.txn(ctx, p.what, s.cfg.Prefix, []clientv3.Cmp{
			unmoved(s.key(keyFleet), p.fleetMod),
			unmoved(s.key(keyHead), p.headMod),
			unmoved(s.key(keyGCCount), p.gcCount),
		}, ops, []clientv3.Op{clientv3.OpGet(s.key(keyGCCount))})
		switch {
		case err != nil:
			if s.published(ctx, done.Revision) {
				return done, nil
			}
			return Published{}, err
		case resp.Succeeded:
			return done, nil
		case modOf(onlyKV(resp, 0)) != p.gcCount:
			return Published{}, errCollected
		}
	}
}

// records returns what is written, as values and as operations.
func (p *publication) records(now time.Time) (Published, []clientv3.Op) {
	s, req := p.s, p.req
	rev := version.Revision{
		Number: p.highest + 1, Digest: req.Snapshot.Digest, Parent: req.Parent.Number,
		Author: req.Author, Message: req.Message, Time: now,
		Modules: req.Snapshot.Manifest.ModuleDigests(), Routes: req.Snapshot.Manifest.Routes(),
	}
	done := Published{Revision: rev}
	ops := []clientv3.Op{
		put(s.revisionKey(rev.Number), rev),
		put(s.key(keyHead), rev.Number),
	}
	audit := rollout.AuditEntry{Time: now, Who: req.Author, What: "publish", Why: req.Message, To: rev.Ref()}
	if req.Intent != nil {
		i := fillIntent(*req.Intent, now, req.Author, req.Message)
		i.To, i.PrevTarget = rev.Ref(), p.fleet.Target
		fleet := p.fleet
		fleet.Target = rev.Ref()
		ops = append(ops, put(s.key(keyFleet), fleet), put(s.key(dirIntents+i.ID), i))
		audit.Rollout, audit.Groups = i.ID, i.Groups
		done.Intent = &i
	}
	return done, append(ops, put(s.auditKey(now), audit))
}

// published finds out whether a transaction that was not answered was carried
// out: nobody else writes this very record.
func (s *Store) published(ctx context.Context, rev version.Revision) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
	defer cancel()
	got, err := s.Revision(ctx, rev.Number)
	if err != nil {
		return false
	}
	a, errA := json.Marshal(got)
	b, errB := json.Marshal(rev)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// maxIntent bounds an intent: its rollout and the audit repeat what it says, in
// one transaction with all that the rollout changes.
const maxIntent = 64 << 10

// checkIntent refuses what a controller could not carry out.
func checkIntent(i rollout.Intent) error {
	for _, g := range i.Groups {
		if err := CheckName("group", g); err != nil {
			return err
		}
	}
	if b, err := json.Marshal(i); err != nil {
		return fmt.Errorf("encode intent: %w", err)
	} else if most := maxIntent - 1<<10; len(b) > most { // the rest is filled in later
		return fmt.Errorf("%w: the intent has %d bytes, at most %d are allowed: shorten its message", ErrTooLarge, len(b), most)
	}
	return nil
}

func fillIntent(i rollout.Intent, now time.Time, by, message string) rollout.Intent {
	if i.ID == "" {
		i.ID = NewID(now)
	}
	if i.Time.IsZero() {
		i.Time = now
	}
	if i.By == "" {
		i.By = by
	}
	if i.Message == "" {
		i.Message = message
	}
	return i
}
