// Package version makes snapshots of tables: canonical bytes named by their
// digest, cut into chunks so that a small change moves few bytes; and compares
// and composes tables.
//
// # Form
//
// A snapshot is a manifest and chunks. The manifest names, for each module,
// its chunks by the SHA-256 of their unpacked bytes; the snapshot's digest is
// the SHA-256 of the manifest's unpacked bytes. A chunk is a run of records of
// one module (upstreams, middlewares, routes, tests, in this order). Where a
// run ends is decided by the records themselves (see cutter), so that records
// far from a change stay in chunks that did not change.
//
// All integers are minimal uvarints, signed ones in zigzag form; strings and
// lists are preceded by their length. Strings that tend to repeat are written
// once a chunk and then referred to (symbols). Nothing is optional in more
// than one way, so equal tables have equal bytes; what another writer did
// differently is refused. Bytes are stored and sent packed with zstd, which
// no digest depends on.
//
// # Invariants
//
//   - Encode gives equal digests for equal normalized tables and different
//     ones for different tables; Load(Encode(t)) equals t.
//   - Load accepts exactly the bytes that Encode makes: each digest, each
//     size, each cut, each order and the list of capabilities are checked.
//   - Nothing is allocated for a length before the length was held against
//     the bytes that are there; a chunk unpacks to its declared size or is
//     refused (I6).
//   - A module whose digest is in the Cache is the same *route.Module in every
//     table loaded through it. Modules are never changed once loaded.
//
// # Concurrency
//
// Everything here may be called from many goroutines; Encode, Compose, Diff
// and Shrink only read their tables. No goroutines run here.
//
// # Failure
//
// Bytes that are not what their digest or this form says give an error that
// is ErrCorrupt and names module and chunk. Load does not judge what the
// table means: that is for route.Validate and engine.Check.
package version
