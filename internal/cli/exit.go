package cli

import (
	"errors"

	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
)

// The exit codes of routectl.
const (
	ExitDone        = 0 // done
	ExitFailed      = 1 // failed: etcd, a file that cannot be read, a refusal by an instance, a rollout that went back
	ExitUsage       = 2 // the command line is wrong
	ExitInvalid     = 3 // the routes or a strategy are wrong
	ExitConflict    = 4 // somebody else changed it first, or a flag must allow it
	ExitNotReached  = 5 // not every instance got there in time
	ExitDifferences = 6 // diff --exit-code found differences
)

// A codedError ends the command with a code of its own.
type codedError struct {
	code int
	err  error
	hint string // what to do, on a line of its own
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// fail gives err an exit code and a hint; the hint may be empty.
func fail(code int, err error, hint string) error {
	return &codedError{code: code, err: err, hint: hint}
}

// exitCode chooses the code for an error that a command returned.
func exitCode(err error) int {
	var coded *codedError
	var problems route.Problems
	switch {
	case err == nil:
		return ExitDone
	case errors.As(err, &coded):
		return coded.code
	case errors.As(err, &problems):
		return ExitInvalid
	case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrBusy):
		return ExitConflict
	default:
		return ExitFailed
	}
}
