// Package route says what an operator means, as checkable values: a Table of
// modules, each with its routes, upstreams, named middlewares and route tests.
// It has no I/O and knows nothing of how a table is stored, compiled or served.
//
// # Invariants
//
//   - A normalized Table has one form: two tables that mean the same thing have
//     equal values, and so the same canonical bytes and digest.
//   - Validate reports every problem it finds, each with its place, never only
//     the first. Its time grows with the table's size, and no table can make it
//     compare all routes with all others.
//   - A path that CanonicalPath accepts has one form, and no reader of it, however
//     often it decodes, finds a dot segment in it.
//   - Compare is the one order of routes: the engine and Validate both ask it.
//
// # Concurrency
//
// Values are plain data. Once a module was handed to version or engine it is
// shared between revisions and must not be changed.
package route
