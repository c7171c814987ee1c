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
//  4. sweep: a prepare or a candidate that no rollout stands for is withdrawn.
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
// # A plan's ways
//
// A switch with a strategy keeps a frozen copy of it in Rollout.Plan: the
// groups of each wave named, those that serve the revision already left out. A
// strategy of one commit, and the first revision that groups are given, have no
// plan.
//
//	             ┌──────────────────── next wave ───────────────────┐
//	             ▼                                                  │
//	pending ──▶ first ──▶ preparing ──▶ running: step ──▶ … ──▶ commit ──▶ bake ──▶ done
//	   │          │           │            │  ▲
//	   │          │           │            ▼  │ promote, approve, resume, data
//	   │          │           │           held
//	   └──────────┴───────────┴── nothing committed ──▶ refused, aborted, superseded
//	              └───────────┴── committed ──▶ returning ──▶ rolled-back
//
// canary, share, match and commit are one commit of all the wave's groups; the
// first of them takes the prepared set into force, the others stay inside it.
// They wait for every instance, as all commits do. analysis, pause and bake
// wait for data, time or an operator (Rollout.Hold). play does what comes next;
// stepOver, nextWave and finish go on; fail and turnBack go back; comeBack
// commits the way back and waits until all report it.
//
//   - Going back is never held, neither by an operator's pause nor by a hold; going forward always is.
//   - What serves is judged while a rollout pauses, too, unless its pause says that it is not. Only a
//     failure counts there. A step that waits to commit does not judge: a promotion past a failure must last.
//   - A bake for a time does not end without a request: no data is no success.
//   - A rollout goes back at most once, in one commit inside the sets in force:
//     to its origin, or to the last that was baked if the origin is condemned or not held. By itself, and
//     where it did anything, also if the origin was never baked: an operator may go to that, a
//     controller has no reason to trust it. When there is no way back it holds. A rollout on its way back is
//     not superseded by a switch.
//   - With Strategy.ManualRollback a failure holds instead; abort, a missing approval
//     and the policy for the time without a controller go back nevertheless.
//   - What rollback without a revision takes back is what the rollout in progress did, whatever its step.
//   - A canary instance stays one; others are added when instances come. A group
//     of one instance has none, and an analysis without any candidate does not pass.
//   - A group that comes while a plan goes on is no part of it. If it was given the
//     revision, because every group had committed it, it goes back with the others.
//   - Evidence is written when its verdict changes, else every two seconds: a look must not call for the next.
//
// # Invariants
//
//   - Epochs of a group only grow (I3).
//   - A Change that puts an assignment demands in Ready or Empty that every
//     registered instance holds the set, or has an Override that says who did not, and
//     demands in Settled that this is still all (I2).
//   - Such an override needs no operator for who cannot have what it could not have before
//     (Ready.Lacks), if the commit does not go there and somebody holds what it goes to;
//     nor for who is out of traffic and says so (Ready.Evicted).
//   - A rollout that ended never changes again. A group has at most one in progress.
//   - A candidate is in its group's set, has at most the share and the instances of the
//     steps done so far, and only while a rollout in progress stands for it.
//   - A rollout that does not succeed gives the target back to what it was.
//   - The order of maps and of reports does not change a byte of a Change.
//   - Without outside events, stepping ends: after finitely many changes a Step
//     is empty until the time that it names.
//
// # Refusal, death and condemnation
//
// A refusal ends the rollout, and harms nobody: the digest may be tried again,
// one instance first. Death of the instance asked first is tried once more with
// another; the second time, whether it dies or refuses, the digest is
// condemned. An instance is taken for dead when its boot id changed, or when
// its ready key is gone while another instance is still registered: when all
// are gone it is etcd that lost them.
//
// # Freeze and recovery: what an instance must do
//
// An instance freezes when it finds an unknown fleet id, or no assignment of
// its group though it served one, or an assignment with a lower epoch than it
// served. Frozen, it serves on, follows neither commits nor prepares, keeps its
// keys under instances/ and reports/ alive, and says Report.Frozen =
// FrozenStoreWentBack (more text may follow) with its true HighestEpoch of this
// group. While one report of a group says so, or names a HighestEpoch above the
// group's, nothing is prepared or committed there.
//
// A recover intent answers with one commit, by override: Assignment.Epoch and
// Assignment.Recovered exceed every HighestEpoch reported. A frozen instance
// ends its freeze when it reads an assignment of its group whose Recovered
// exceeds each epoch it served, and only then; it takes over the fleet id found
// beside it. It then goes on as any instance that serves and lacks the set:
// ready says none, it builds the set, says the nonce, and switches to the
// stable revision. Recovered stays in later assignments, for instances that
// were away.
//
// # Concurrency
//
// Step reads its View and keeps nothing of it; it may be called from any
// goroutine as long as nobody changes the View meanwhile.
package rollout
