//go:build !broken_barrier

package store

import (
	"maps"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
)

// barrier holds while the instances of every group that c is about hold what c
// says that they hold, and nobody came since at was read whom c does not know
// of (I2).
func (s *Store) barrier(at int64, c rollout.Change) []clientv3.Cmp {
	var cmps []clientv3.Cmp
	for _, g := range slices.Sorted(maps.Keys(c.Ready)) {
		// A compare of values over a range that has no key fails: an empty
		// group is not a ready one.
		cmps = append(cmps, clientv3.Compare(clientv3.Value(s.readyKey(g, "")), "=", string(c.Ready[g])).WithPrefix())
	}
	for _, g := range c.Empty {
		cmps = append(cmps, absent(s.readyKey(g, "")).WithPrefix())
	}
	for _, g := range c.Settled {
		cmps = append(cmps, unmovedDir(s.readyKey(g, ""), at))
	}
	return cmps
}
