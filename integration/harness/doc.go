// Package harness runs whole fleets for the integration tests: real etcd
// members and real routerd processes on loopback, load that does not wait for
// answers, and the means to kill what is running.
//
// # Concurrency
//
// A Process and a Load may be used from several goroutines. What fails the
// test (Start, Until) is called from the test's own goroutine.
//
// # Failure
//
// Every process belongs to a test and is ended with it, by its own id; on
// Linux the kernel ends it as well when the test's process dies.
package harness
