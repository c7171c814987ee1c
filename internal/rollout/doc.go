// Package rollout decides what a fleet does next. Step is a pure function of
// the records in etcd and of the time; whoever calls it carries the Change out
// as one fenced transaction and asks again. The same function serves the
// controller, simulations and the model in the tests.
//
// A step does the first of these that there is to do:
//
//  1. welcome: a group that instances name and nobody knows is created;
//  2. answer: the oldest intent becomes a rollout of the same id;
//  3. advance: a rollout in progress asks for a set, commits or ends;
//  4. sweep: a prepare that no rollout stands for is withdrawn.
//
// While an intent waits nothing is committed, so an abort that etcd
// acknowledged before a commit wins.
//
// # A rollout's ways
//
//	pending ──▶ first ──▶ preparing ──▶ done
//	   │          │           │
//	   ├──────────┴───────────┴──▶ refused, aborted, superseded
//	   └──▶ committing ──▶ done            (the set in force has the digest)
//
// Each arrow is a method named for it: askFirst, askAll, commit, complete,
// refuse, condemn, abort, supersede.
//
// # Invariants
//
//   - Epochs of a group only grow (I3).
//   - A Change that puts an assignment demands in Ready or Empty that every
//     registered instance holds the set, or has an Override that says who did not, and
//     demands in Settled that this is still all (I2).
//   - A rollout that ended never changes again. A group has at most one in progress.
//   - A rollout that does not succeed gives the target back to what it was.
//   - The order of maps and of reports does not change a byte of a Change.
//   - Without outside events, stepping ends: after finitely many changes a Step
//     is empty until the time that it names.
//
// # Refusal, death and condemnation
//
// A refusal ends the rollout, and harms nobody: the digest may be tried again,
// one instance first. Death of the instance asked first is tried once more with another;
// the second time, whether it dies or refuses, the digest is condemned. An instance is
// taken for dead when its boot id changed, or when its ready key is gone while another
// instance is still registered: when all are gone it is etcd that lost them.
//
// # Freeze and recovery: what an instance must do
//
// An instance freezes when it finds an unknown fleet id, or no assignment of its
// group though it served one, or an assignment with a lower epoch than it served. Frozen,
// it serves on, follows neither commits nor prepares, keeps its keys under
// instances/ and reports/ alive, and says Report.Frozen = FrozenStoreWentBack
// (more text may follow) with its true HighestEpoch of this group. While one report
// of a group says so, or names a HighestEpoch above the group's, nothing is prepared or
// committed there.
//
// A recover intent answers with one commit, by override: Assignment.Epoch and
// Assignment.Recovered exceed every HighestEpoch reported. A frozen instance ends
// its freeze when it reads an assignment of its group whose Recovered exceeds each epoch it
// served, and only then; it takes over the fleet id found beside it. It then
// goes on as any instance that serves and lacks the set: ready says none, it
// builds the set, says the nonce, and switches to the stable revision. Recovered
// stays in later assignments, for instances that were away.
//
// # Concurrency
//
// Step reads its View and keeps nothing of it; it may be called from any
// goroutine as long as nobody changes the View meanwhile.
package rollout
