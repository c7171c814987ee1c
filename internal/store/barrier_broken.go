//go:build broken_barrier

package store

import (
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
)

// barrier of this build commits whoever is ready: integration TestBrokenBuilds
// must see it.
func (*Store) barrier(int64, rollout.Change) []clientv3.Cmp { return nil }
