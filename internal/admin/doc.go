// Package admin is routerd's own HTTP: health, status, routes, explain,
// metrics and, if asked for, Go's profiles. It shows and changes nothing, and
// listens on loopback unless told otherwise.
//
//	/healthz      200 while the process works
//	/readyz       200 while it serves a committed epoch, or one remembered on disk; the body says which
//	/metrics      Prometheus
//	/v1/status    one object: what this instance serves, holds and waits for
//	/v1/routes    the routes it serves, ?module= for one module
//	/v1/explain   ?method=GET&url=http://host/path: which route would serve, and why
//	/v1/holding   the snapshot it serves, for routectl recover --from
//	/debug/pprof/ Go's profiles
//
// # Concurrency
//
// The handler is safe for concurrent use; every answer is of one moment.
package admin
