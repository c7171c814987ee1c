// Package engine makes a revision runnable and switches to it. It is the home
// of Gin: a request's path is found by Gin's trees, and nothing outside this
// package knows of them.
//
// An Engine answers a request head with a Decision; a front end carries it out.
// Switch is the front end on net/http. Check is what validate, publish and
// prepare call, so that what is accepted is what will run.
//
// # How a path is found
//
// Each host pattern has a Gin engine, tried from the most to the least
// specific. In it, paths are kept by their number of segments, in trees that
// Gin tells apart by their method. A tree holds no literal beside a wildcard,
// so no two of its paths can take the same request path and Gin has no choice
// to make; a path that does not fit beside the others goes into a further tree,
// of which a real table needs two or three. Looking a path up in each tree of
// its length (and, cut shorter, in those of prefixes) therefore finds every
// shape that takes it: none is missed because of the way Gin happened to go.
// The leaves' routes, in the order of matching, then decide; trees that hold
// nothing that could beat the winner are left out, which for a literal path is
// all but the first.
//
// # Invariants
//
//   - An Engine never changes once Compile has returned it, and owns no
//     goroutine, socket or timer: what lives longer is in the Library (I9).
//   - A request is served by the one Engine that Switch loaded for it (I1).
//   - The path that was matched is the one that is forwarded: Decide works on the
//     canonical form of what is forwarded as it came (I8).
//   - A response that ended early upstream is cut off downstream too (I11).
//   - Compile returns what is wrong with a table; it does not panic (I6).
//   - Engines of one build decide alike for one table (I7): no map order, clock or
//     address takes part.
//
// # Concurrency
//
// Everything on Engine, Library, Counters and Switch may be called from many
// goroutines. A Decision belongs to one goroutine at a time. Nothing shared is
// written for each request: counters are spread over shards. Deciding takes no
// lock and allocates nothing, but for text that has escapes to decode.
//
// # Failure
//
// Compile fails with route.Problems, or with the context's error. A Switch that
// has nothing to serve answers 503. A panic in a middleware answers 500, or
// cuts off a response that was begun, and is counted.
package engine
