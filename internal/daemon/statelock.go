package daemon

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"routerd.dev/internal/agent"
)

// A stateLock keeps a second process out of a state directory. The kernel
// takes it back when the process ends, however it ends, so whoever gets the
// lock knows that the process before it is dead: its place in the fleet is
// free at once, and not only when its lease has ended.
type stateLock struct {
	dir    string
	boot   string   // id of this process
	former []string // ids of the last processes before it, all of them dead

	mu   sync.Mutex
	file *os.File // nil when it was given back
}

// rememberedBoots is how many dead processes the lock names: one that was
// killed before it joined leaves the place to the one before it, and so on.
const rememberedBoots = 16

const lockFile = "lock"

// lockState makes the directory if needed and locks it.
func lockState(dir string) (*stateLock, error) {
	l := &stateLock{dir: dir, boot: rand.Text()}
	var err error
	if l.file, err = openLock(dir); err != nil {
		return nil, err
	}
	if err := l.succeed(machine()); err != nil {
		l.file.Close()
		return nil, fmt.Errorf("state-dir: %w", err)
	}
	return l, nil
}

// openLock returns the file that the lock is on, locked.
func openLock(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state-dir: %w: choose one that this user may write, with --state-dir", err)
	}
	path := filepath.Join(dir, lockFile)
	// Without O_NONBLOCK a pipe of that name would keep the start waiting for ever.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state-dir: %w: choose one that this user may write, with --state-dir", err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("state-dir: %s is no regular file: remove it", path)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("state-dir %s: another routerd uses it (%w): each instance needs its own", dir, err)
	}
	return f, nil
}

// restore takes the lock anew when its file, or the whole directory, was
// removed: the kernel's lock is on a file that nobody finds any more, and a
// second process would take another. It tells whether that was so.
func (l *stateLock) restore() (restored bool, err error) {
	l.mu.Lock()
	file := l.file
	l.mu.Unlock() // a disk that hangs does not keep it from being given back
	if file == nil {
		return false, nil
	}
	held, err := file.Stat()
	if err != nil {
		return false, err
	}
	found, err := os.Stat(filepath.Join(l.dir, lockFile))
	if err == nil && os.SameFile(held, found) {
		return false, nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("state-dir: %w", err)
	}
	f, err := openLock(l.dir)
	if err != nil {
		return false, err
	}
	if err = l.write(f, machine()); err != nil { // told, but the lock is what matters
		err = fmt.Errorf("state-dir: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil { // given back meanwhile
		return false, f.Close()
	}
	_ = l.file.Close()
	l.file = f
	return true, err
}

// machine names this run of this machine's kernel, whose locks end with it.
// It is empty where that cannot be told: then nobody is known to be dead.
func machine() string {
	boot := agent.BootID()
	if boot == "" {
		return ""
	}
	// A machine that was copied while it ran has the boot id of the original; it
	// may have been given another identity since. Many containers have none.
	id, _ := os.ReadFile("/etc/machine-id")
	return boot + ":" + strings.Join(strings.Fields(string(id)), "")
}

// succeed reads who held the lock before and writes down who holds it now. The
// file names its own inode and the machine: a directory that was copied, or a
// whole disk, says nothing about the process that still holds the original. Who
// held it before the machine was booted anew is dead, too, but nobody can tell
// that from a copied disk: its place is free when its lease has ended.
func (l *stateLock) succeed(on string) error {
	place, err := placeOf(l.file, on)
	if err != nil {
		return err
	}
	before, err := io.ReadAll(io.LimitReader(l.file, 4<<10))
	if err != nil {
		return err
	}
	if f := strings.Fields(string(before)); len(f) > 1 && f[0] == place && on != "" {
		l.former = f[1:min(len(f), 1+rememberedBoots)]
	}
	return l.write(l.file, on)
}

// placeOf names the file and the machine.
func placeOf(f *os.File, on string) (string, error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "?", nil
	}
	return fmt.Sprintf("%d:%d:%s", st.Dev, st.Ino, on), nil
}

// write writes down who holds the lock now, and who did before.
func (l *stateLock) write(f *os.File, on string) error {
	place, err := placeOf(f, on)
	if err != nil {
		return err
	}
	now := strings.Join(append([]string{place, l.boot}, l.former[:min(len(l.former), rememberedBoots-1)]...), "\n") + "\n"
	if _, err := f.WriteAt([]byte(now), 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(now)))
}

// unlock may be called on nil.
func (l *stateLock) unlock() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
}
