package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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
	// Anew sends every piece, also one that is there: it may be damaged.
	Anew bool
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
// and every group serves it, and with ErrBusy when gc does not end before ctx,
// or in a minute. With ErrNothingChanged the pieces that etcd lacked are back,
// and counted: it may be that nothing can be published on the target without them.
func (s *Store) Publish(ctx context.Context, req PublishRequest) (Published, error) {
	begun, err := s.publication(req)
	if err != nil {
		return Published{}, err
	}
	what := begun.what
	for try := 0; ; try++ {
		p := begun
		if err := p.begin(ctx); err != nil { // before anything is uploaded
			if !errors.Is(err, ErrNothingChanged) || !req.Anew && p.whole() {
				return Published{}, err
			}
			up, failed := s.giveBack(ctx, what, req)
			if failed != nil {
				return Published{}, fmt.Errorf("%s: put back what etcd lacks of it: %w", what, failed)
			}
			return Published{Uploaded: up}, err
		}
		done, err := p.finish(ctx)
		if errors.Is(err, errCollected) {
			s.log.Info("gc ran while publishing, checking the pieces again", "digest", req.Snapshot.Digest.Short())
			if err := pause(ctx, backoff(try)); err != nil {
				return Published{}, fmt.Errorf("%s: %w", what, err)
			}
			continue
		}
		return done, err
	}
}

// WouldPublish says what Publish would record now, and fails as Publish would
// before its first write. It writes nothing, needs only to read, and waits for
// no gc. The number may go to another publish that comes first.
func (s *Store) WouldPublish(ctx context.Context, req PublishRequest) (Published, error) {
	p, err := s.publication(req)
	if err != nil {
		return Published{}, err
	}
	if _, err := p.look(ctx); err != nil {
		return Published{}, err
	}
	would, _ := p.records(time.Now().UTC())
	return would, nil
}

// publication begins one, and fails when its intent is none that a controller can
// carry out.
func (s *Store) publication(req PublishRequest) (publication, error) {
	p := publication{s: s, what: "publish " + req.Snapshot.Digest.Short(), req: req}
	if req.Intent != nil {
		if err := checkIntent(fillIntent(*req.Intent, time.Time{}, req.Author, req.Message)); err != nil {
			return p, fmt.Errorf("%s: %w", p.what, err)
		}
	}
	return p, nil
}

// errCollected: gc began since the publisher looked what is there.
var errCollected = errors.New("gc began in between")

// begin looks, and again until no gc runs.
func (p *publication) begin(ctx context.Context) error {
	err := awaitUnlocked(ctx, p.what, p.look)
	p.gcCount = p.gcSeen
	return err
}

// whole tells that every piece is known to be there.
func (p *publication) whole() bool {
	for _, there := range p.there {
		if !there {
			return false
		}
	}
	return p.there != nil
}

// giveBack uploads what etcd lacks of what is published already. A gc that
// began before the manifest was back took its chunks for nobody's.
func (s *Store) giveBack(ctx context.Context, what string, req PublishRequest) (Uploaded, error) {
	for {
		before, err := s.awaitGC(ctx, what)
		if err != nil {
			return Uploaded{}, err
		}
		up, err := s.putSnapshot(ctx, req.Snapshot, req.Anew)
		if err != nil {
			return up, err
		}
		if after, err := s.awaitGC(ctx, what); err != nil || after == before {
			return up, err
		}
	}
}

// finish uploads what is missing and makes the revision. What fits goes in the
// same transaction, so that a usual publish asks etcd once and writes once.
func (p *publication) finish(ctx context.Context) (Published, error) {
	if p.req.Anew {
		p.there = map[string]bool{}
	}
	if p.there == nil {
		there, err := p.s.there(ctx, p.what, p.s.pieceKeys(p.req.Snapshot))
		if err != nil {
			return Published{}, fmt.Errorf("%s: %w", p.what, err)
		}
		p.there = there
	}
	pieces, up, err := p.s.missing(ctx, p.what, p.req.Snapshot, p.there)
	if err != nil {
		return Published{}, fmt.Errorf("%s: %w", p.what, err)
	}
	if len(pieces.ops) > inlineOps || pieces.size > inlineBytes {
		if err := pieces.flush(ctx); err != nil {
			return Published{}, fmt.Errorf("%s: %w", p.what, err)
		}
	}
	if pieces.sent { // that took its time
		if _, err := p.look(ctx); err != nil {
			return Published{}, err
		}
	}
	done, err := p.commit(ctx, pieces.ops)
	done.Uploaded = up
	return done, err
}

// awaitGC waits until no gc runs and returns the mod revision of gc/count.
func (s *Store) awaitGC(ctx context.Context, what string) (int64, error) {
	var count int64
	err := awaitUnlocked(ctx, what, func(ctx context.Context) (*mvccpb.KeyValue, error) {
		resp, err := s.txn(ctx, what, s.key(keyGCCount), nil, []clientv3.Op{
			clientv3.OpGet(s.key(keyGCLock)), clientv3.OpGet(s.key(keyGCCount)),
		}, nil)
		if err != nil {
			return nil, err
		}
		count = modOf(onlyKV(resp, 1))
		return onlyKV(resp, 0), nil
	})
	return count, err
}

// gcPatience is how long a gc is waited for: longer than the lock of one that
// died lasts.
const gcPatience = time.Minute

// awaitUnlocked looks until no gc has its lock, which look returns, or it
// fails. A lock without a lease is nobody's: no gc wrote it, and it would never
// end.
func awaitUnlocked(ctx context.Context, what string, look func(context.Context) (*mvccpb.KeyValue, error)) error {
	ctx, cancel := context.WithTimeout(ctx, gcPatience)
	defer cancel()
	by := ""
	busy := func() error {
		return fmt.Errorf("%s: %w (by %s): try again when it has ended", what, ErrBusy, by)
	}
	for try := 0; ; try++ {
		lock, err := look(ctx)
		switch {
		case err != nil && by != "" && ctx.Err() != nil:
			return busy()
		case err != nil || lock == nil || lock.Lease == 0:
			return err
		}
		by = string(lock.Value)
		if pause(ctx, backoff(try)) != nil {
			return busy()
		}
	}
}

// A publication is one try, valid while gc/count stays.
type publication struct {
	s       *Store
	what    string
	req     PublishRequest
	gcCount int64 // when the pieces were looked for

	// As read by look.
	gcSeen            int64
	there             map[string]bool // which pieces etcd has, by key; nil: not known
	fleet             rollout.Fleet
	fleetMod, headMod int64
	highest           int64
}

// Where look's read has what. The pieces come behind.
const (
	lookFormat = iota
	lookFleet
	lookHead
	lookGroups
	lookReports
	lookRevisions
	lookCondemned
	lookGCLock
	lookGCCount
	lookPieces
)

// look reads what the revision builds on, and fails when it is not to be made.
// It returns gc's lock, nil while none runs, and reads beside it which pieces are
// there, unless these are many.
func (p *publication) look(ctx context.Context) (*mvccpb.KeyValue, error) {
	s := p.s
	ops := []clientv3.Op{
		lookFormat:  clientv3.OpGet(s.key(keyFormat)),
		lookFleet:   clientv3.OpGet(s.key(keyFleet)),
		lookHead:    clientv3.OpGet(s.key(keyHead)),
		lookGroups:  clientv3.OpGet(s.key(dirGroups), clientv3.WithPrefix()),
		lookReports: clientv3.OpGet(s.key(dirReports), clientv3.WithPrefix()),
		lookRevisions: clientv3.OpGet(s.key(dirRevisions), clientv3.WithRange(s.revisionKey(mostCount+1)), clientv3.WithKeysOnly(),
			clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(lastKeys)),
		lookCondemned: clientv3.OpGet(s.key(dirCondemned + p.req.Snapshot.Digest.String())),
		lookGCLock:    clientv3.OpGet(s.key(keyGCLock)),
		lookGCCount:   clientv3.OpGet(s.key(keyGCCount)),
	}
	keys := s.pieceKeys(p.req.Snapshot)
	if lookPieces+len(keys) > batchOps {
		keys = nil
	}
	for _, k := range keys {
		ops = append(ops, clientv3.OpGet(k, clientv3.WithCountOnly()))
	}
	resp, err := s.txn(ctx, p.what, s.cfg.Prefix, nil, ops, nil)
	if err != nil {
		return nil, err
	}
	p.gcSeen, p.there = modOf(onlyKV(resp, lookGCCount)), nil
	if keys != nil {
		p.there = make(map[string]bool, len(keys))
	}
	for i, k := range keys {
		p.there[k] = resp.Responses[lookPieces+i].GetResponseRange().Count > 0
	}
	return onlyKV(resp, lookGCLock), p.judge(resp)
}

// judge takes what look read.
func (p *publication) judge(resp *clientv3.TxnResponse) (err error) {
	s := p.s
	format, fleet, head := onlyKV(resp, lookFormat), onlyKV(resp, lookFleet), onlyKV(resp, lookHead)
	groups := resp.Responses[lookGroups].GetResponseRange().Kvs
	if format == nil {
		return fmt.Errorf("%s: %w", p.what, s.notInitialized())
	}
	of, err := decodeFormat(string(format.Key), format.Value)
	if err != nil {
		return fmt.Errorf("%s: %w", p.what, err)
	}
	if p.fleet, err = s.decodeFleet(fleet, of.FleetID); err != nil {
		return fmt.Errorf("%s: %w", p.what, err)
	}
	p.fleetMod, p.headMod, p.highest = modOf(fleet), modOf(head), 0
	most := Believable(max(p.fleet.Target.Number, p.fleet.Committed.Number))
	if head != nil {
		if p.highest, err = s.parseCount(keyHead, head.Value); err == nil && p.highest > most {
			err = s.noCount(keyHead, head.Value)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.what, err)
		}
	}
	last, err := s.lastRevision(resp.Responses[lookRevisions].GetResponseRange().Kvs, most)
	if err != nil {
		return fmt.Errorf("%s: %w", p.what, err)
	}
	p.highest = max(p.highest, last) // never overwritten, also when head was lost
	if kv := onlyKV(resp, lookCondemned); kv != nil {
		var c rollout.Condemned
		_ = json.Unmarshal(kv.Value, &c) // then it is condemned without a reason
		return fmt.Errorf("%s: %w: %s; change the routes and publish again", p.what, ErrCondemned, c.Why)
	}
	if p.fleet.Target != p.req.Parent {
		return fmt.Errorf("%s: %w: the target is %s, and this was composed on %s: publish again to compose on the new one",
			p.what, ErrConflict, refName(p.fleet.Target), refName(p.req.Parent))
	}
	if p.fleet.Target.Digest == p.req.Snapshot.Digest && allServe(groups, p.fleet.Target.Digest) {
		return fmt.Errorf("%s: %w", p.what, &NothingChangedError{Target: p.fleet.Target})
	}
	epochs := map[string]int64{}
	for _, kv := range groups {
		var a rollout.Assignment
		_ = json.Unmarshal(kv.Value, &a) // a broken one has epoch 0
		if checkEpoch(a.Epoch) == nil {
			epochs[a.Group] = a.Epoch
		}
	}
	known := p.highest
	for _, kv := range resp.Responses[lookReports].GetResponseRange().Kvs {
		var r rollout.Report
		if json.Unmarshal(kv.Value, &r) == nil && credible(&r, epochs[r.Group], known) { // a broken report knows no number
			p.highest = max(p.highest, r.HighestRevision)
		}
	}
	if p.highest >= mostCount {
		return fmt.Errorf("%s: %w: revision %d is known of, and no fleet counts further: find who wrote it, in %s, under %s or in a report, and delete it",
			p.what, ErrCorrupt, p.highest, s.key(keyHead), s.key(dirRevisions))
	}
	return nil
}

// lastKeys is how many keys are looked at for the newest revision: the last
// ones may be somebody's that are none.
const lastKeys = 16

// lastRevision returns the highest number among the last keys of the history,
// last first, but for what is no number, or is not believed.
func (s *Store) lastRevision(kvs []*mvccpb.KeyValue, most int64) (int64, error) {
	for _, kv := range kvs {
		if n, err := strconv.ParseInt(s.name(string(kv.Key), dirRevisions), 10, 64); err == nil && 0 <= n && n <= most {
			return n, nil
		}
	}
	if len(kvs) == lastKeys {
		return 0, fmt.Errorf("%w: none of the last keys under %s is a revision of this fleet, such as %s: delete those", ErrCorrupt, s.key(dirRevisions), kvs[0].Key)
	}
	return 0, nil
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

// commit makes the revision, with the pieces that are not there yet. It looks
// again while only the fleet or head moved and the target did not.
func (p *publication) commit(ctx context.Context, pieces []clientv3.Op) (Published, error) {
	s := p.s
	condemned := s.key(dirCondemned + p.req.Snapshot.Digest.String())
	for {
		if p.gcSeen != p.gcCount {
			return Published{}, errCollected
		}
		done, ops := p.records(time.Now().UTC())
		var resp *clientv3.TxnResponse
		tries, was := 0, false
		// Written twice it is written once: of two that want head unmoved and move it, one fails.
		err := s.repeatable(ctx, func() (err error) {
			tries++
			resp, err = s.txn(ctx, p.what, s.cfg.Prefix, []clientv3.Cmp{
				unmoved(s.key(keyFleet), p.fleetMod),
				unmoved(s.key(keyHead), p.headMod),
				unmoved(s.key(keyGCCount), p.gcCount),
				unmoved(condemned, 0),
			}, append(slices.Clip(pieces), ops...), nil)
			if was = err != nil && s.published(ctx, done.Revision); was {
				return nil
			}
			return err
		})
		switch {
		case err != nil:
			return Published{}, err
		case was || resp.Succeeded:
			return done, nil
		case tries > 1 && s.published(ctx, done.Revision): // by the first, late
			return done, nil
		}
		if _, err := p.look(ctx); err != nil {
			return Published{}, err
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
		Needs: slices.Clone(req.Snapshot.Manifest.Capabilities),
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
