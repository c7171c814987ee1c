package cli

import (
	"io"
	"os"
	"os/user"
	"time"
)

// An Env is everything a command touches besides etcd, so that tests can
// stand in for a terminal.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Now            func() time.Time
	Terminal       bool // standard error is a terminal: progress may redraw
}

// OS returns the process's own environment.
func OS() Env {
	info, err := os.Stderr.Stat()
	return Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Now: time.Now,
		Terminal: err == nil && info.Mode()&os.ModeCharDevice != 0,
	}
}

// author is who a revision is by: ROUTECTL_AUTHOR, or user@host.
func (e Env) author() string {
	if a := e.Getenv("ROUTECTL_AUTHOR"); a != "" {
		return a
	}
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}
