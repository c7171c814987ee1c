// Package history says whether what was seen of a fleet could have come of a
// fleet that keeps its promises: the answers it gave, every write to its
// records in etcd's order, what its instances said and logged, what its
// publishers were told.
//
// Order is never taken from a clock where there is something better. Of two
// writes etcd's revisions tell; of two requests, that one was answered before
// the other was asked; of a write and an answer, that etcd had been asked for
// its revision in between. Times of logs and of the test are compared only for
// instances whose clock is the test's.
//
// # Invariants
//
// A finding is a proof: whatever the scheduling was, no fleet that keeps its
// promises gives such a history. The contrary does not hold; what is not
// visible from outside is not found.
//
// # Concurrency
//
// Everything is plain code on plain values, for one goroutine.
//
// # Failure
//
// Records that cannot be read are findings, too.
package history
