package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
)

// maxOps is etcd's default limit of operations in one transaction.
const maxOps = 128

// A Term is the time for which a controller was elected. That it was elected
// proves nothing: only Apply's transaction does.
type Term struct {
	s       *Store
	id      string
	lease   *lease
	created int64 // create revision of the election key
}

// Campaign waits until id is elected and returns its term, or until ctx ends.
// ttl is how long the term outlives a controller that died; 0 for DefaultTTL.
// It keeps trying while etcd is away. Whoever gets a Term ends it with Resign.
func (s *Store) Campaign(ctx context.Context, id string, ttl time.Duration) (*Term, error) {
	for try := 0; ; try++ {
		t, err := s.campaign(ctx, id, ttl)
		if err == nil {
			return t, nil
		}
		if ctx.Err() != nil || errors.Is(err, ErrDenied) {
			return nil, err
		}
		s.log.Warn("campaign failed, trying again", "id", id, "err", err)
		if err := pause(ctx, backoff(try)); err != nil {
			return nil, fmt.Errorf("campaign as %s: %w", id, err)
		}
	}
}

// errLeaseLost: the candidate's own lease ended while it waited.
var errLeaseLost = errors.New("lease lost")

// campaign is one try, with one lease.
func (s *Store) campaign(ctx context.Context, id string, ttl time.Duration) (*Term, error) {
	what := "campaign as " + id
	l, err := s.grant(ctx, what, ttl)
	if err != nil {
		return nil, err
	}
	for {
		var resp *clientv3.TxnResponse
		resp, err = s.txn(ctx, what, s.key(keyLeader),
			[]clientv3.Cmp{absent(s.key(keyLeader))},
			[]clientv3.Op{clientv3.OpPut(s.key(keyLeader), id, clientv3.WithLease(l.id))},
			[]clientv3.Op{clientv3.OpGet(s.key(keyLeader))})
		if err != nil {
			break
		}
		if resp.Succeeded {
			return &Term{s: s, id: id, lease: l, created: resp.Header.Revision}, nil
		}
		// A put that timed out may have been carried out: it bears our lease.
		if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 && kvs[0].Lease == int64(l.id) {
			return &Term{s: s, id: id, lease: l, created: kvs[0].CreateRevision}, nil
		} else if len(kvs) > 0 && kvs[0].Lease == 0 {
			// No controller wrote it so, and it would never end. It is deleted, not
			// overwritten: a term is told by its key's create revision.
			s.log.Warn("the election key has no lease, so it is nobody's: deleted", "held by", string(kvs[0].Value))
			if _, err = s.txn(ctx, what, s.key(keyLeader),
				[]clientv3.Cmp{unmoved(s.key(keyLeader), kvs[0].ModRevision)},
				[]clientv3.Op{clientv3.OpDelete(s.key(keyLeader))}, nil); err != nil {
				break
			}
			continue
		}
		if err = s.awaitVacancy(ctx, l, resp.Header.Revision); err != nil {
			err = fmt.Errorf("%s: %w", what, err)
			break
		}
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
	defer cancel()
	return nil, errors.Join(err, l.release(clean, what))
}

// awaitVacancy returns when the election key may be free: it was deleted, or
// enough time went by to look again.
func (s *Store) awaitVacancy(ctx context.Context, l *lease, at int64) error {
	c, err := s.etcd(ctx)
	if err != nil {
		return err
	}
	wctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), jitter(l.ttl/2))
	defer cancel()
	events := c.Watch(wctx, s.key(keyLeader), clientv3.WithRev(at+1), clientv3.WithFilterPut())
	select {
	case resp, ok := <-events:
		if ok && resp.Err() != nil && ctx.Err() == nil {
			return pause(ctx, backoff(0)) // no spinning while there is no leader
		}
	case <-l.lost:
		return errLeaseLost
	}
	return ctx.Err()
}

// ID returns who was elected.
func (t *Term) ID() string { return t.id }

// Resign ends the term, so that another is elected at once.
func (t *Term) Resign(ctx context.Context) error {
	return t.lease.release(ctx, "resign as "+t.id)
}

// Apply carries out c in one transaction, and only if this term still holds
// the election key, wrote nothing itself since at was read, and no group,
// prepare, intent or the fleet was written since, nor a ready key in a group of
// c.Settled, and each group of c.Ready has instances that all hold its nonce,
// and no group of c.Empty has any.
//
// It fails with ErrDeposed, ErrStale or ErrNotReady, in this order of
// precedence, and then has written nothing. On any other error the change may
// have been carried out: read a new View. An empty change writes nothing.
func (t *Term) Apply(ctx context.Context, at *rollout.View, c rollout.Change) error {
	what := "apply change"
	ops, err := t.s.changeOps(at, c)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if len(ops) == 0 {
		return nil
	}
	s := t.s
	ops = append(ops, t.move())
	cmps := slices.Concat(t.fence(at.At), []clientv3.Cmp{
		exists(s.key(keyFleet)), // a wiped store is not written to (I10)
		clientv3.Compare(clientv3.ModRevision(s.key(keyFleet)), "<", at.At+1),
		unmovedDir(s.key(dirGroups), at.At),
		unmovedDir(s.key(dirPrepares), at.At),
		unmovedDir(s.key(dirIntents), at.At),
	}, s.barrier(at.At, c))
	resp, err := s.txn(ctx, what, s.cfg.Prefix, cmps, pack(ops, len(cmps)), s.whyOps())
	if err != nil {
		return err
	}
	if resp.Succeeded {
		return nil
	}
	return fmt.Errorf("%s: %w", what, t.why(resp, at, c))
}

// changeOps turns a change into operations.
func (s *Store) changeOps(at *rollout.View, c rollout.Change) ([]clientv3.Op, error) {
	if n := max(len(c.Groups), len(c.Prepares), len(c.Withdraw), len(c.Ready)+len(c.Empty)+len(c.Settled), len(c.Retire)); n > rollout.MaxGroups {
		return nil, fmt.Errorf("%w: %d groups, and one transaction takes at most %d: switch fewer with --group", ErrTooLarge, n, rollout.MaxGroups)
	}
	var ops []clientv3.Op
	add := func(op clientv3.Op) { ops = append(ops, op) }
	for _, a := range c.Groups {
		add(put(s.key(dirGroups+a.Group), a))
	}
	for _, g := range c.Retire {
		add(clientv3.OpDelete(s.key(dirGroups + g)))
	}
	if c.Fleet != nil {
		add(put(s.key(keyFleet), c.Fleet))
	}
	for _, p := range c.Prepares {
		add(put(s.key(dirPrepares+p.Group), p))
	}
	for _, g := range c.Withdraw {
		add(clientv3.OpDelete(s.key(dirPrepares + g)))
	}
	for _, o := range c.Rollouts {
		boundRollout(&o)
		if o.Phase.Final() {
			add(put(s.key(dirEnded+o.ID), o))
			add(clientv3.OpDelete(s.key(dirRollouts + o.ID)))
			if o.Plan != nil {
				add(clientv3.OpDelete(s.key(dirChecks + o.ID)))
			}
			continue
		}
		add(put(s.key(dirRollouts+o.ID), o))
	}
	for _, id := range c.Done {
		add(clientv3.OpDelete(s.key(dirIntents + id)))
	}
	for _, d := range c.Condemn {
		add(put(s.key(dirCondemned+d.Digest.String()), d))
	}
	for _, d := range c.Serve {
		add(clientv3.OpPut(s.key(dirServed+d.String()), ""))
	}
	for _, d := range c.Bake {
		add(clientv3.OpPut(s.key(dirBaked+d.String()), ""))
	}
	for _, e := range c.Audit {
		add(put(s.auditKey(e.Time), e))
	}
	return ops, nil
}

// pack nests operations in transactions without conditions when there are more
// than etcd takes in one. etcd allows maxOps along each path of nested
// transactions, where a transaction counts as much as the longest of its
// compares and its operations; cmps is the number of compares at the top.
func pack(ops []clientv3.Op, cmps int) []clientv3.Op {
	if len(ops) <= maxOps {
		return ops
	}
	room := maxOps - max(cmps, (len(ops)+15)/16)
	packed := make([]clientv3.Op, 0, len(ops)/room+1)
	for part := range slices.Chunk(ops, room) {
		packed = append(packed, clientv3.OpTxn(nil, part, nil))
	}
	return packed
}

// Where whyOps' read has what.
const (
	whyLeader = iota
	whyFleet
	whyGroups
	whyPrepares
	whyIntents
	whyReady
)

// whyOps reads what tells the reasons for a failed Apply apart.
func (s *Store) whyOps() []clientv3.Op {
	newest := func(dir string) clientv3.Op {
		return clientv3.OpGet(s.key(dir), clientv3.WithPrefix(), clientv3.WithKeysOnly(),
			clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend), clientv3.WithLimit(1))
	}
	return []clientv3.Op{
		whyLeader:   clientv3.OpGet(s.key(keyLeader)),
		whyFleet:    clientv3.OpGet(s.key(keyFleet), clientv3.WithKeysOnly()),
		whyGroups:   newest(dirGroups),
		whyPrepares: newest(dirPrepares),
		whyIntents:  newest(dirIntents),
		whyReady:    clientv3.OpGet(s.key(dirReady), clientv3.WithPrefix()),
	}
}

func (t *Term) why(resp *clientv3.TxnResponse, at *rollout.View, c rollout.Change) error {
	got := func(i int) []*mvccpb.KeyValue { return resp.Responses[i].GetResponseRange().Kvs }
	if l := got(whyLeader); len(l) == 0 || l[0].CreateRevision != t.created {
		by := "nobody"
		if len(l) > 0 {
			by = string(l[0].Value)
		}
		return fmt.Errorf("%w: %s was elected, now it is %s", ErrDeposed, t.id, by)
	} else if mod := l[0].ModRevision; mod > at.At {
		return fmt.Errorf("%w: this controller wrote at %d, read at %d", ErrStale, mod, at.At)
	}
	if len(got(whyFleet)) == 0 {
		return fmt.Errorf("%w: %s is gone", ErrStale, t.s.key(keyFleet))
	}
	for _, i := range []int{whyFleet, whyGroups, whyPrepares, whyIntents} {
		for _, kv := range got(i) {
			if kv.ModRevision > at.At {
				return fmt.Errorf("%w: %s was written at %d, read at %d", ErrStale, kv.Key, kv.ModRevision, at.At)
			}
		}
	}
	held := map[string][]string{}
	for _, kv := range got(whyReady) {
		group, _, _ := strings.Cut(t.s.name(string(kv.Key), dirReady), "/")
		held[group] = append(held[group], string(kv.Value))
	}
	e := &NotReadyError{}
	for g, nonce := range c.Ready {
		if len(held[g]) == 0 || slices.ContainsFunc(held[g], func(v string) bool { return v != string(nonce) }) {
			e.Groups = append(e.Groups, g)
		}
	}
	for _, g := range c.Empty {
		if len(held[g]) > 0 {
			e.Occupied = append(e.Occupied, g)
		}
	}
	if len(e.Groups)+len(e.Occupied) == 0 {
		return ErrStale
	}
	slices.Sort(e.Groups)
	slices.Sort(e.Occupied)
	return e
}
