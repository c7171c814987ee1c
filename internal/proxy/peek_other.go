//go:build !unix

package proxy

// peekFD cannot look on this system: a connection is taken for open, and
// flushed for before every read.
func peekFD(uintptr, []byte) (n int, ok bool) { return 0, false }

// hasPeer cannot tell on this system: an error is taken for the upstream's.
func hasPeer(uintptr) bool { return false }
