//go:build unix

package proxy

import "syscall"

// peekFD looks at a socket without reading or waiting; b is scratch space. ok is
// false when nothing is there and the connection is open.
func peekFD(fd uintptr, b []byte) (n int, ok bool) {
	for {
		n, _, err := syscall.Recvfrom(int(fd), b, syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch err {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return 0, false
		default:
			return n, true
		}
	}
}

// hasPeer tells whether a socket is connected; after a reset it is not.
func hasPeer(fd uintptr) bool {
	_, err := syscall.Getpeername(int(fd))
	return err == nil
}
