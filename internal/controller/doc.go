// Package controller is the elected loop: it reads a view, asks rollout.Step
// what is next, and carries that out as one fenced transaction. It decides
// nothing itself.
//
// # Invariants
//
//   - It keeps no state that is not in etcd: at any moment another controller
//     can go on. What it remembers only spares it work.
//   - It writes only through Term.Apply and Term.PutChecks, whose transactions
//     compare the election key (I4). That it was elected proves nothing. Collection has a lock of
//     its own.
//   - A check or a webhook that hangs delays no step: both are asked and told
//     beside the loop, bounded in number, time and memory.
//
// # Concurrency
//
// New starts nothing. Run owns, while it is elected, the loop, a watch, a timer
// for collection, and for each rollout whose step has checks one goroutine and
// one more for each check; beside them one for each webhook. It has ended all
// when it returns. A Controller runs once.
//
// # Failure
//
// Etcd away: it tries again, with growing, jittered pauses, and at once when
// the watch says that etcd answers. Deposed: it campaigns again. A stale or not
// ready write wrote nothing: it reads anew and steps again. What a webhook does
// not take in five tries is lost to it, and so is what waited when the process
// died: it is a hint, etcd and the log have the truth. After an error that
// leaves open whether the write was carried out, too: the new view tells.
package controller
