// Package controller is the elected loop: it reads a view, asks rollout.Step
// what is next, and carries that out as one fenced transaction. It decides
// nothing itself.
//
// # Invariants
//
//   - It keeps no state that is not in etcd: at any moment another controller
//     can go on. What it remembers only spares it work.
//   - It writes only through Term.Apply, whose transaction compares the
//     election key (I4). That it was elected proves nothing.
//
// # Concurrency
//
// New starts nothing. Run owns two goroutines while it is elected, its own and a
// watch, and has ended both when it returns. A Controller runs once.
//
// # Failure
//
// Etcd away: it tries again, with growing, jittered pauses, and at once when
// the watch says that etcd answers. Deposed: it campaigns again. A stale or not
// ready write wrote nothing: it reads anew and steps again. After an error that leaves
// open whether the write was carried out, too: the new view tells.
package controller
