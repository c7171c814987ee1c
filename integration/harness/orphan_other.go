//go:build !linux

package harness

import "syscall"

// notOrphaned does what it says on Linux only.
func notOrphaned() *syscall.SysProcAttr { return nil }
