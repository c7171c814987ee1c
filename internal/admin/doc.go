// Package admin is routerd's own HTTP: health, status, routes, explain,
// metrics and, if asked for, Go's profiles. It shows and changes nothing, and
// listens on loopback unless told otherwise.
//
//	/healthz      200 while the process works
//	/readyz       200 while it serves a committed epoch, or one remembered on disk, and is neither
//	              draining nor evicted; the body says which, and whether it is pinned
//	/metrics      Prometheus
//	/v1/status    one object: what this instance serves (candidate and share too), holds and waits
//	              for, and whether it is pinned or evicted
//	/v1/routes    the routes it serves, ?module= for one module
//	/v1/explain   ?method=GET&url=http://host/path: which route would serve, and why;
//	              header=Name:Value and client=ADDRESS if they matter, revision=N for a candidate
//	/v1/holding   the snapshot it serves, for routectl recover --from
//	/debug/pprof/ Go's profiles
//
// # Invariants
//
//   - On a loopback listener a page that some site shows in a browser on this
//     machine reads nothing: a name other than localhost, as DNS rebinding
//     needs, is refused with 421. Addresses are no names, so probes and scrapers
//     that use one get in, and so does a listener on another address, where
//     every name may be right and a network policy has to decide.
//   - Go's profiles, which cost, are not made for a request that another site
//     caused.
//
// # Concurrency
//
// The handler is safe for concurrent use; every answer is of one moment.
package admin
