package harness

import "syscall"

// notOrphaned has the kernel end a process whose test is gone.
func notOrphaned() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
