// Package daemon wires routerd: it is the only place where the data plane, the
// agent, the controller, telemetry and the listeners meet.
//
// Serve runs one instance; Dev runs a whole fleet in one process on an
// embedded etcd, for a first look and for trying routes.
//
// # Invariants
//
//   - Everything that can fail at start-up (settings, certificates, listeners,
//     the state directory) fails before anything is served or registered.
//   - On the way down readiness goes first, requests finish next, and the
//     leases are given back last.
//
// # Concurrency
//
// Serve and Dev return when everything they started has ended.
package daemon
