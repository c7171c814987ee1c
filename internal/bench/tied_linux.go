package main

import "syscall"

// tied has a process end with this one, also when this one is killed. An interrupt
// of the terminal is not its to act on.
func tied() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
