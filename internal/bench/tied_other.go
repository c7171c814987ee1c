//go:build !linux

package main

import "syscall"

// tied leaves an interrupt of the terminal to this process, which ends the
// other. Killed, it leaves the other behind: only Linux can do better.
func tied() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
