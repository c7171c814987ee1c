//go:build broken_fence

package store

import clientv3 "go.etcd.io/etcd/client/v3"

// This build believes that it is elected until it ends, and compares nothing:
// integration TestBrokenBuilds must see it.

func (*Term) fence(int64) []clientv3.Cmp { return nil }

// move leaves whoever's lease the key has, as one's own may be gone.
func (t *Term) move() clientv3.Op {
	return clientv3.OpPut(t.s.key(keyLeader), t.id, clientv3.WithIgnoreLease())
}

// Done is never closed.
func (*Term) Done() <-chan struct{} { return nil }
