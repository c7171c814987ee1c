package daemon

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A stateLock keeps a second process out of a state directory. The kernel
// takes it back when the process ends, however it ends, so whoever gets the
// lock knows that the process before it is dead: its place in the fleet is
// free at once, and not only when its lease has ended.
type stateLock struct {
	file   *os.File
	boot   string   // id of this process
	former []string // ids of the last processes before it, all of them dead
}

// rememberedBoots is how many dead processes the lock names: one that was
// killed before it joined leaves the place to the one before it, and so on.
const rememberedBoots = 16

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
	l := &stateLock{file: f, boot: rand.Text()}
	if err := l.succeed(); err != nil {
		f.Close()
		return nil, fmt.Errorf("state-dir: %w", err)
	}
	return l, nil
}

// succeed reads who held the lock before and writes down who holds it now. The
// file names its own inode: a directory that was copied says nothing about the
// process that still holds the original.
func (l *stateLock) succeed() error {
	info, err := l.file.Stat()
	if err != nil {
		return err
	}
	inode := "?"
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = fmt.Sprintf("%d:%d", st.Dev, st.Ino)
	}
	before, err := io.ReadAll(io.LimitReader(l.file, 4<<10))
	if err != nil {
		return err
	}
	if f := strings.Fields(string(before)); len(f) > 1 && f[0] == inode {
		l.former = f[1:min(len(f), 1+rememberedBoots)]
	}
	now := strings.Join(append([]string{inode, l.boot}, l.former[:min(len(l.former), rememberedBoots-1)]...), "\n") + "\n"
	if _, err := l.file.WriteAt([]byte(now), 0); err != nil {
		return err
	}
	return l.file.Truncate(int64(len(now)))
}

// unlock may be called on nil.
func (l *stateLock) unlock() {
	if l != nil {
		_ = l.file.Close()
	}
}
