// Package store keeps routerd's records in etcd and is the only package that
// talks to it: compare-and-set, fencing, leases and watches stand here and
// nowhere else. What the records mean is said by package rollout.
//
// # Invariants
//
//   - A control write is one transaction that compares the election key's
//     create revision (I4). Holding a [Term] proves nothing; only its Apply does.
//   - A commit compares that no group, prepare, intent or the fleet moved since
//     they were read, and that every key under ready/<group>/ is the nonce (I2).
//   - An instance's key is written only by who holds the lease that the key is
//     attached to; a foreign one is never overwritten.
//   - What a publisher found in etcd and did not upload is still there when its
//     revision appears: gc raises gc/count first, publishing compares it last.
//   - A watch is a hint. Whoever follows a group is told again what etcd holds
//     at least once per [WatchOptions.Reread], by a linearizable read, or is
//     told that it is stale.
//
// # Concurrency
//
// A Store, a Term and a Membership are safe for concurrent use. [Open]
// dials nothing; the first call does. The functions that follow something
// ([Store.WatchGroup], [Store.Watch]) block, and call back from the goroutine
// they were called on. A Term and a Membership each run one goroutine that
// keeps a lease; Resign and Leave end it and wait for it.
//
// # Failure
//
// Every call has a time limit of its own ([Config.Timeout], and
// [Config.DialTimeout] where a connection is made first), and ends with its
// context. Errors wrap one of the Err values of this package where a caller can
// do something about it, and their text says what. When etcd does not answer a
// write, the write may have been carried out: Publish finds out by itself, a
// Membership takes over what its own lease wrote, and a controller reads a new
// View.
package store
