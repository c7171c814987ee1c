package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// maxWhy bounds the reason in a refusal, which every controller reads.
const maxWhy = 2000

// A Membership is an instance's own keys: instances/<instance>,
// ready/<group>/<instance>, reports/<instance> and measures/<instance>, all
// under one lease. When it is lost the instance counts as not ready and has to
// Join again; what it serves is not touched by that. It is safe for concurrent
// use.
type Membership struct {
	s     *Store
	who   rollout.Instance
	lease *lease
	lost  chan struct{}
	once  sync.Once
	ended sync.WaitGroup

	mu       sync.Mutex
	instance int64 // mod revision of instances/<instance>
	ready    int64 // mod revision of ready/<group>/<instance>; 0 while it is absent
}

// Join writes who the instance is under a lease with time to live ttl, 0 for
// DefaultTTL. It registers nothing as ready: Put and Admit do. A ready key that
// the same boot left is kept as it is, under the new lease.
//
// It fails with ErrTwin (a *TwinError) while another process has the name, or
// an earlier one whose lease has not ended. Those of who.Former are known to be
// dead and make way at once; what they held, the new process does not hold yet.
// With ErrBound the name is of another group.
// Whoever gets a Membership ends it with Leave.
func (s *Store) Join(ctx context.Context, who rollout.Instance, ttl time.Duration) (*Membership, error) {
	if err := errors.Join(CheckName("instance", who.Instance), CheckName("group", who.Group)); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	if who.Boot == "" {
		return nil, fmt.Errorf("join as %s: no boot id", who.Instance)
	}
	what := fmt.Sprintf("join group %s as %s", who.Group, who.Instance)
	l, err := s.grant(ctx, what, ttl)
	if err != nil {
		return nil, err
	}
	m := &Membership{s: s, who: who, lease: l, lost: make(chan struct{})}
	if err = m.checkBound(ctx, what); err == nil {
		err = m.register(ctx, what)
	}
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
		defer cancel()
		return nil, errors.Join(err, l.release(clean, what))
	}
	m.ended.Go(func() {
		<-l.lost
		m.lose()
	})
	return m, nil
}

func (m *Membership) instanceKey() string { return m.s.key(dirInstances + m.who.Instance) }
func (m *Membership) readyKey() string    { return m.s.readyKey(m.who.Group, m.who.Instance) }
func (m *Membership) reportKey() string   { return m.s.key(dirReports + m.who.Instance) }
func (m *Membership) measureKey() string  { return m.s.key(dirMeasures + m.who.Instance) }

func (m *Membership) underLease() clientv3.OpOption { return clientv3.WithLease(m.lease.id) }

// register takes the instance's keys if they are free or of the same boot.
func (m *Membership) register(ctx context.Context, what string) error {
	for range 3 { // only its own earlier writes, still under way, can interfere
		resp, err := m.s.txn(ctx, what, m.instanceKey(), nil, []clientv3.Op{
			clientv3.OpGet(m.instanceKey()), clientv3.OpGet(m.readyKey()),
		}, nil)
		if err != nil {
			return err
		}
		instance, ready := onlyKV(resp, 0), onlyKV(resp, 1)
		if err := m.checkTwin(ctx, instance); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		ops := []clientv3.Op{put(m.instanceKey(), m.who, m.underLease())}
		cmps := []clientv3.Cmp{unmoved(m.instanceKey(), modOf(instance)), unmoved(m.readyKey(), modOf(ready))}
		switch mine := bootOf(instance) == m.who.Boot; {
		case mine && ready != nil:
			ops = append(ops, clientv3.OpPut(m.readyKey(), string(ready.Value), m.underLease()))
		case !mine: // what another process said it held, this one does not hold yet
			ops = append(ops, clientv3.OpDelete(m.readyKey()), clientv3.OpDelete(m.reportKey()))
			ready = nil
		}
		resp, err = m.s.txn(ctx, what, m.instanceKey(), cmps, ops, nil)
		if err != nil {
			return err
		}
		if resp.Succeeded {
			m.instance = resp.Header.Revision
			if ready != nil {
				m.ready = resp.Header.Revision
			}
			return nil
		}
	}
	return fmt.Errorf("%s: %w", what, ErrConflict)
}

// succeeds tells whether the key is of a dead process before this one.
func (m *Membership) succeeds(kv *mvccpb.KeyValue) bool {
	boot := bootOf(kv)
	return boot != "" && slices.Contains(m.who.Former, boot)
}

// bootOf is the boot id in an instance's key; empty if there is none.
func bootOf(kv *mvccpb.KeyValue) string {
	var i rollout.Instance
	if kv == nil || json.Unmarshal(kv.Value, &i) != nil {
		return ""
	}
	return i.Boot
}

// checkTwin refuses a key that another living boot may have written. One that
// cannot be read, or names no boot, is nobody's: overwriting it is the way out.
func (m *Membership) checkTwin(ctx context.Context, kv *mvccpb.KeyValue) error {
	if kv == nil || m.succeeds(kv) {
		return nil
	}
	var other rollout.Instance
	if json.Unmarshal(kv.Value, &other) != nil || other.Boot == "" || other.Boot == m.who.Boot {
		return nil
	}
	e := &TwinError{Instance: m.who.Instance, Address: other.Address, Boot: other.Boot}
	_ = m.s.call(ctx, "read lease", "a lease", func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.TimeToLive(ctx, clientv3.LeaseID(kv.Lease))
		if err == nil {
			e.Expires = time.Duration(resp.TTL+1) * time.Second // etcd rounds down, and says -1 for none
		}
		return err // only a figure in the message would be missing
	})
	return e
}

// Lost is closed when the lease is gone, a key is another's, or after Leave.
func (m *Membership) Lost() <-chan struct{} { return m.lost }

func (m *Membership) lose() { m.once.Do(func() { close(m.lost) }) }

// Admit registers the instance as holding nonce, but for what it lacks of it,
// if neither the group's assignment nor its prepare changed since st was read.
// It fails with ErrStale when one did: look at the new state, build that, and
// try again; and with ErrLostMembership.
func (m *Membership) Admit(ctx context.Context, st GroupState, nonce rollout.Nonce, lacks ...version.Digest) error {
	r := rollout.Ready{Instance: m.who.Instance, Group: m.who.Group, Nonce: nonce, Lacks: lacks}
	return m.write(ctx, fmt.Sprintf("admit %s to group %s", m.who.Instance, m.who.Group), r,
		unmoved(m.s.key(dirGroups+m.who.Group), st.AssignmentMod),
		unmoved(m.s.key(dirPrepares+m.who.Group), st.PrepareMod))
}

// Put says what the instance holds, from now on; Instance and Group are filled
// in. An instance that is not registered yet can register only `none` this
// way; for a nonce it needs Admit. It fails with ErrLostMembership.
func (m *Membership) Put(ctx context.Context, r rollout.Ready) error {
	return m.write(ctx, "put ready of "+m.who.Instance, r)
}

func (m *Membership) write(ctx context.Context, what string, r rollout.Ready, more ...clientv3.Cmp) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.isLost() {
		return fmt.Errorf("%s: %w", what, ErrLostMembership)
	}
	admitting := len(more) > 0
	r.Why = boundWhy(r.Why)
	if m.ready == 0 && !admitting && r.Nonce != "" && r.Whole() {
		if err := m.lookAgain(ctx, what); err != nil {
			return err
		}
		if m.ready == 0 {
			return fmt.Errorf("%s: not registered: a nonce is first put by Admit", what)
		}
	}
	for range 2 {
		resp, err := m.s.txn(ctx, what, m.readyKey(),
			append([]clientv3.Cmp{unmoved(m.instanceKey(), m.instance), unmoved(m.readyKey(), m.ready)}, more...),
			[]clientv3.Op{clientv3.OpPut(m.readyKey(), encodeReady(r), m.underLease())},
			[]clientv3.Op{clientv3.OpGet(m.instanceKey()), clientv3.OpGet(m.readyKey())})
		if err != nil {
			return m.ifLeaseGone(what, err)
		}
		if resp.Succeeded {
			m.ready = resp.Header.Revision
			return nil
		}
		adopted, err := m.adopt(onlyKV(resp, 0), onlyKV(resp, 1))
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if !adopted {
			break
		}
	}
	return fmt.Errorf("%s: %w", what, ErrStale)
}

// lookAgain takes over what an earlier put wrote whose answer was lost.
func (m *Membership) lookAgain(ctx context.Context, what string) error {
	resp, err := m.s.txn(ctx, what, m.readyKey(), nil, []clientv3.Op{
		clientv3.OpGet(m.instanceKey()), clientv3.OpGet(m.readyKey()),
	}, nil)
	if err != nil {
		return err
	}
	if _, err := m.adopt(onlyKV(resp, 0), onlyKV(resp, 1)); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// adopt takes over keys that were written under this lease: nobody else has
// it, so they are a write of ours whose answer was lost. It reports whether
// there were any, and fails when a key is gone or another's.
func (m *Membership) adopt(instance, ready *mvccpb.KeyValue) (bool, error) {
	ours := func(kv *mvccpb.KeyValue) bool { return kv != nil && kv.Lease == int64(m.lease.id) }
	switch {
	case !ours(instance):
		m.lose()
		return false, fmt.Errorf("%w: %s is %s", ErrLostMembership, m.instanceKey(), goneOrForeign(instance))
	case ready == nil && m.ready != 0, ready != nil && !ours(ready):
		m.lose()
		return false, fmt.Errorf("%w: %s is %s", ErrLostMembership, m.readyKey(), goneOrForeign(ready))
	}
	changed := m.instance != instance.ModRevision || m.ready != modOf(ready)
	m.instance, m.ready = instance.ModRevision, modOf(ready)
	return changed, nil
}

func goneOrForeign(kv *mvccpb.KeyValue) string {
	if kv == nil {
		return "gone"
	}
	return "another's"
}

// Report says how the instance is; Instance, Group and Boot are filled in. It
// fails with ErrLostMembership.
func (m *Membership) Report(ctx context.Context, r rollout.Report) error {
	r.Instance, r.Group, r.Boot = m.who.Instance, m.who.Group, m.who.Boot
	return m.say(ctx, "report of "+m.who.Instance, m.reportKey(), r)
}

// Measure says what the instance counted; Instance, Group and Boot are filled
// in. The newest stands until the membership ends. It fails with ErrTooLarge
// above 256 KiB, having written nothing, and with ErrLostMembership.
func (m *Membership) Measure(ctx context.Context, r rollout.Measure) error {
	what := "measure of " + m.who.Instance
	r.Instance, r.Group, r.Boot = m.who.Instance, m.who.Group, m.who.Boot
	if b, err := json.Marshal(r); err != nil {
		return fmt.Errorf("%s: encode: %w", what, err)
	} else if len(b) > maxMeasure {
		return fmt.Errorf("%s: %w: %d bytes, at most %d are allowed: name fewer routes", what, ErrTooLarge, len(b), maxMeasure)
	}
	return m.say(ctx, what, m.measureKey(), r)
}

// say puts what nobody decides a commit on, while the instance's keys are its
// own.
func (m *Membership) say(ctx context.Context, what, key string, v any) error {
	m.mu.Lock()
	cmps := []clientv3.Cmp{unmoved(m.instanceKey(), m.instance)}
	if m.ready != 0 {
		// A ready key that vanished alone would let a commit miss this instance.
		cmps = append(cmps, exists(m.readyKey()))
	}
	m.mu.Unlock()
	if m.isLost() {
		return fmt.Errorf("%s: %w", what, ErrLostMembership)
	}
	resp, err := m.s.txn(ctx, what, key, cmps,
		[]clientv3.Op{put(key, v, m.underLease())},
		[]clientv3.Op{clientv3.OpGet(m.instanceKey())})
	if err != nil {
		return m.ifLeaseGone(what, err)
	}
	if resp.Succeeded {
		return nil
	}
	m.lose()
	if kv := onlyKV(resp, 0); kv != nil && len(cmps) > 1 {
		return fmt.Errorf("%s: %w: %s or %s is gone or another's", what, ErrLostMembership, m.instanceKey(), m.readyKey())
	}
	return fmt.Errorf("%s: %w: %s is %s", what, ErrLostMembership, m.instanceKey(), goneOrForeign(onlyKV(resp, 0)))
}

// ifLeaseGone makes a put under a lease that has just ended what it is.
func (m *Membership) ifLeaseGone(what string, err error) error {
	if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return err
	}
	m.lose()
	return fmt.Errorf("%s: %w: its lease has ended", what, ErrLostMembership)
}

func (m *Membership) isLost() bool {
	select {
	case <-m.lost:
		return true
	default:
		return false
	}
}

// Leave gives the lease back, which deletes every key of the instance at once,
// and ends what Join started, also when etcd does not answer: then the keys go
// when the lease ends.
func (m *Membership) Leave(ctx context.Context) error {
	err := m.lease.release(ctx, "leave as "+m.who.Instance)
	m.ended.Wait()
	return err
}

// onlyKV returns the key and value that the i-th Get found, nil for none.
func onlyKV(resp *clientv3.TxnResponse, i int) *mvccpb.KeyValue {
	if kvs := resp.Responses[i].GetResponseRange().Kvs; len(kvs) > 0 {
		return kvs[0]
	}
	return nil
}

func modOf(kv *mvccpb.KeyValue) int64 {
	if kv == nil {
		return 0
	}
	return kv.ModRevision
}
