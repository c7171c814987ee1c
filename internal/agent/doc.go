// Package agent is routerd's loop: it joins the fleet, watches its group,
// prepares what is asked for, says when it is ready, switches at the instant a
// commit names, reports what it serves, and remembers that on disk. It decides when
// an engine is served; how requests are carried is package engine's.
//
// A core decides, purely: it is told what was seen and done, and its plan says
// what ought to be built, served and said. The loop, one goroutine that owns the core,
// brings that about and has others do what takes time:
//
//	watch  ── records ──▶ loop ── plan.swap ──▶ Switch
//	worker ── engines ──▶  │  ── jobs ────────▶ worker   one build at a time
//	link   ── joined… ──▶  │  ── wishes ──────▶ link     ready, report: etcd
//	                       └─── memory ──────▶ writer   state, chunks: disk
//
// # Invariants
//
//   - The epochs an instance serves only grow, also across restarts, as far as its
//     disk remembers (I3). A record that says otherwise is held against a linearizable
//     read; if that agrees, the instance freezes: it serves on, follows nothing, and
//     is ready for nothing until an operator's recovery (I10). Package rollout says how
//     a freeze ends.
//   - Nothing is served that is not held: fetched, verified, compiled and
//     tested. ready = nonce says that the nonce's whole set is held (I2).
//   - With etcd reachable, a start serves only what etcd says is in force, once it was
//     admitted. Without, it serves from disk after the join timeout, and says so (I5).
//   - A digest that cannot be built is refused with one line of reason; what is served
//     stays (I6).
//   - Status and report say what is served (I12).
//
// # Disk
//
// The last three assignments that were served are remembered, each with its
// snapshots' pieces, so that a start needs no etcd. Every file carries a checksum
// and is replaced as a whole; a damaged one counts as missing, and the next older
// state is taken. An assignment that was received and not served is not
// among them: between its switch and the write that follows, a crash of the process
// together with the loss of etcd makes the start serve the epoch before.
//
// A digest that has not proven itself by being served for a while has a trial,
// open on disk while it is compiled and first served. Two processes of one build that
// ended within it quarantine the digest: the instance keeps the epoch's number, serves
// the last good revision, stays ready, and says so. Another build tries it again.
//
// # Concurrency
//
// Run starts every goroutine and waits for them. Status, Ready, Drain, Leave,
// Manifest and Chunk may be called from any goroutine at any time.
//
// # Failure
//
// Nothing but a twin at the start ends Run. etcd away: serving goes on, with
// jittered tries. Lease lost or keys gone: not ready, join again. Disk full, slow or read-only:
// told in log, status and metrics, tried again; no switch waits for it.
package agent
