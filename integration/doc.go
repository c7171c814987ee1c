// Package integration holds the tests that need real processes, a real etcd
// cluster, or Docker. They run with the build tag integration; README.md says
// how, and keeps the ledger of the defects they found.
package integration
