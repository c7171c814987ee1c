// Package proxy is the lean upstream client: it carries one decided request to
// a target over HTTP/1.1 and the response back, on connections of its own.
// Heads are written straight from the request's fields and parsed straight into
// the response's; bodies are streamed both ways at once.
//
// A [Library] holds one [Upstream] for each definition and outlives the engines
// that use it, so a switch closes no connection and forgets no target that is
// down (I9). Long streams and tunnels hold their Upstream, never an engine.
//
// # Invariants
//
//   - The path that is forwarded is Forward.Target, byte for byte (I8).
//   - A response that ended early upstream ends in http.ErrAbortHandler, or in a
//     reset for a client to which an orderly close would look complete (I11).
//   - Framing is never copied: what is sent upstream has one Content-Length or is
//     chunked, by what net/http read; what is sent downstream likewise.
//   - A connection is used again only after an exchange that ended cleanly on
//     both sides, with no byte left over, and only if no byte came since.
//   - A request is sent a second time only if no byte of a response came, and it
//     is idempotent or none of it was written.
//
// # Concurrency
//
// All methods may be called from many goroutines. A request is carried by its
// own goroutine; one more runs while a body of unknown or larger size is
// uploaded, and one for the second direction of a tunnel. Forward waits for
// both. Idle connections have no goroutine: Library.Run closes what is too old.
//
// # Failure
//
// Result.Kind says what sort of failure it was. A target that refused a
// connection is passed over for 1 s, doubling to 10 s; while all are passed
// over, some of them are tried anyway. A request that came through routerd 17 times
// is answered 508: some upstream leads back.
package proxy
