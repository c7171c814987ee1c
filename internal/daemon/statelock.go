package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// A stateLock keeps a second process out of a state directory. The kernel
// takes it back when the process ends, however it ends.
type stateLock struct{ file *os.File }

// lockState makes the directory if needed and locks it.
func lockState(dir string) (*stateLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state-dir: %w: choose one that this user may write, with --state-dir", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state-dir: %w: choose one that this user may write, with --state-dir", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("state-dir %s: another routerd uses it (%w): each instance needs its own", dir, err)
	}
	return &stateLock{f}, nil
}

// unlock may be called on nil.
func (l *stateLock) unlock() {
	if l != nil {
		_ = l.file.Close()
	}
}
