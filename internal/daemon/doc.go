// Package daemon wires routerd: it is the only place where the data plane, the
// agent, the controller, telemetry and the listeners meet.
//
// Serve runs one instance; Dev runs a whole fleet in one process on an
// embedded etcd, for a first look and for trying routes.
//
// # Invariants
//
//   - Everything that can fail at start-up (settings, certificates, listeners,
//     the state directory) fails before anything is served or registered, and
//     names its setting.
//   - On the way down readiness goes first; for drain-delay requests are still
//     taken, each told that its connection closes; requests and upgraded
//     connections then have drain-timeout to finish; the leases are given back
//     last. A part that fails ends the process in the same order.
//   - A client holds a connection for no longer than it takes part: heads, idle
//     connections and what is left of a body after the answer are bounded here,
//     what stalls while it is proxied by package proxy.
//   - Secrets are not printed.
//   - Orders are taken on a unix socket that only the instance's user can open,
//     also without etcd; it is there before anything is served and goes last.
//
// # Concurrency
//
// Serve and Dev return when everything they started has ended; only what the
// kernel holds (a write to the access log, a look at the state directory) is
// left to the end of the process.
//
// # Failure
//
// Without etcd the process lives, answers at every listener, is not ready until
// it serves, and begins when etcd comes. What a drain had to cut off, a lease
// that could not be given back and an embedded etcd that failed are logged;
// being told to end is never an error.
//
// # Memory
//
// Go's runtime reads GOMEMLIMIT itself: in a container, set it to nine tenths of
// the limit, so that compiling a large revision collects harder rather than
// ending the process. The number of processors is taken from the container's
// limit.
package daemon
