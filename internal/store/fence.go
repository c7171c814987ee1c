//go:build !broken_fence

package store

import clientv3 "go.etcd.io/etcd/client/v3"

// fence holds while t has the election key and wrote nothing itself since at
// was read (I4).
func (t *Term) fence(at int64) []clientv3.Cmp {
	leader := t.s.key(keyLeader)
	return []clientv3.Cmp{
		clientv3.Compare(clientv3.CreateRevision(leader), "=", t.created),
		clientv3.Compare(clientv3.ModRevision(leader), "<", at+1),
	}
}

// move moves the election key, as each write does, so that one whose answer was
// lost, and which arrives after the next, undoes nothing.
func (t *Term) move() clientv3.Op {
	return clientv3.OpPut(t.s.key(keyLeader), t.id, clientv3.WithLease(t.lease.id))
}

// Done is closed when the term's lease is gone. A term may have ended without
// that; Apply tells.
func (t *Term) Done() <-chan struct{} { return t.lease.lost }
