// Package check asks systems outside the fleet the questions of a strategy: a
// number in a JSON answer, or an instant query of Prometheus. Each is a provider,
// an interface of one method. What follows from an answer is not said here.
//
// # Invariants
//
//   - No value is not a value: an empty result, null and NaN are told apart
//     from numbers and from errors.
//   - At most [MaxBody] of an answer is read, and nothing after the time limit.
//   - A request and its headers go to the host that the check names, and to no
//     other: redirects elsewhere are errors.
//   - routerd's own secrets cannot be sent: a header reads no environment
//     variable whose name begins with ROUTERD_, but those with ROUTERD_CHECK_.
//
// # Concurrency
//
// All functions may be called at once. They own no goroutine and no connection
// once they returned.
//
// # Failure
//
// Whatever a system answers, or does not, is an error with the check's
// name, never a panic.
package check
