// Package agent is routerd's loop: it joins the fleet, watches its group,
// prepares what is asked for, says when it is ready, switches at the instant a
// commit names, reports what it serves, and remembers that on disk. It decides when
// an engine is served; how requests are carried is package engine's.
//
// A core decides, purely: it is told what was seen and done, and its plan says
// what ought to be built, served and said. The loop, one goroutine that owns
// the core, brings that about and has others do what takes time:
//
//	watch  ── records ──▶ loop ── plan.swap ──▶ Switch
//	worker ── engines ──▶  │  ── jobs ────────▶ worker   one build at a time
//	link   ── joined… ──▶  │  ── wishes ──────▶ link     ready, report: etcd
//	clients─ behind ──────▶│  ── comparison ──▶ meter    what is counted: etcd
//	ctl    ── orders ─────▶└─── memory ──────▶ writer   state, chunks: disk
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
//   - An operator's pin decides what is served, and nothing else: epochs are
//     followed, prepares answered, and every door says that it is pinned.
//   - Whoever is told to go out of traffic turns its readiness off before it says
//     so, and turns it on again once it serves what is committed.
//   - Who cannot serve what is committed goes out of traffic by itself, as far as
//     the floor of its group allows, which one transaction tells, and comes back once it can.
//   - Who cannot have a digest of the set in force never says ready for a set that names it.
//     It says ready for all of the set but that, and no commit waits for it that goes
//     elsewhere: what it lacked already is no reason to keep the others from leaving it, and the
//     next revision may be its cure. What is new in a set is refused as ever. Whoever
//     serves nothing yet joins without what is only kept for the way back, if that is lost; if what
//     is to be served is, it registers as out of traffic, so that another revision reaches it, too.
//   - What came from etcd is checked before it is kept.
//   - What is counted for an analysis was counted since the switch to the epoch
//     it names. No switch waits for it.
//
// # Disk
//
// The last three assignments that were served are remembered, each with its
// snapshots' pieces, so that a start needs no etcd. Every file carries a
// checksum and is replaced as a whole; a damaged one counts as missing, and the
// next older state is taken. An assignment that was received and not served is
// not among them: between its switch and the write that follows, at most a
// second later, a crash of the process together with the loss of etcd makes the
// start serve the epoch before.
//
// A digest that has not proven itself by being served for a while has a trial,
// open on disk while it is compiled and first served. Two crashes of one build
// within it quarantine the digest: the instance keeps the epoch's number,
// serves the last good revision, stays ready, and says so. A crash is an end of
// which the dying runtime left a note, or one while the digest was compiled,
// since what takes all memory is killed without a word. Any other end, be it a
// kill or the machine's, is none. Where nothing else can serve, the digest is
// tried all the same, later after each start by how often it crashed; meanwhile
// the instance registers as out of traffic. A quarantine ends when the digest
// has proven itself so, by Forgive, or with another build.
//
// A pin stands beside them, in .pins/<group>. One that cannot be read at the start
// comes into force once it can be, if it was not taken back meanwhile.
//
// All of it but trials is read again every few seconds: what is damaged or gone
// is written again, states and pins from memory, pieces from etcd.
//
// # Concurrency
//
// Run starts every goroutine and waits for them, but not for builds that it
// gave up because they hang: each keeps its goroutine, and there are two at
// most. Status, Ready, Drain, Leave, Behind, Pin, Unpin, Pinnable, Manifest and
// Chunk may be called from any goroutine at any time.
//
// # Failure
//
// Nothing but a twin at the start ends Run. etcd away: serving goes on, with
// jittered tries. Lease lost or keys gone: not ready, join again. Disk full,
// slow or read-only: told in log, status and metrics, tried again; no switch
// waits for it. Pieces missing or damaged: what is only prepared is refused,
// what is in force is fetched again until it is held. A watch that says nothing
// is made anew, and the group read beside it. A build that hangs is refused and
// not tried again by this process. docs/operations.md says within what times.
package agent
