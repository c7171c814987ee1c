// Package harness runs whole fleets for the integration tests: real etcd
// members and real routerd processes on loopback, load that does not wait for
// answers, and the means to kill what is running.
//
// Every process belongs to a test and is ended with it, by its own id.
package harness
