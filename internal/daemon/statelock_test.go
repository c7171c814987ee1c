package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"routerd.dev/internal/telemetry"
)

func locked(t *testing.T, dir string) *stateLock {
	t.Helper()
	l, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.unlock)
	return l
}

// TestLockOfACopiedDisk: on another machine, or after this one was booted anew,
// the process that the file names may live.
func TestLockOfACopiedDisk(t *testing.T) {
	if machine() == "" {
		t.Skip("this system does not tell one boot from another")
	}
	dir := t.TempDir()
	first := locked(t, dir)
	first.unlock()
	second := locked(t, dir)
	if !slices.Equal(second.former, []string{first.boot}) {
		t.Errorf("on the same machine the processes before are %q, want %q", second.former, first.boot)
	}
	second.unlock()

	path := filepath.Join(dir, lockFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	boot, id, _ := strings.Cut(machine(), ":")
	for name, there := range map[string]string{
		"another boot": "11111111-2222-3333-4444-555555555555:" + id, "another machine": boot + ":other", "an older build's": "",
	} {
		copied := strings.Replace(string(b), ":"+machine(), strings.TrimSuffix(":"+there, ":"), 1)
		if copied == string(b) {
			t.Fatalf("%q does not name the machine", b)
		}
		if err := os.WriteFile(path, []byte(copied), 0o600); err != nil { // in place: the inode stays
			t.Fatal(err)
		}
		l := locked(t, dir)
		if len(l.former) > 0 {
			t.Errorf("%s: %q are taken for dead", name, l.former)
		}
		l.unlock()
	}
}

// TestLockThatIsNoFile: opening a pipe, or reading from it, waits for whoever
// has its other end.
func TestLockThatIsNoFile(t *testing.T) {
	for name, place := range map[string]func(path string) error{
		"a pipe":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		dir := t.TempDir()
		if err := place(filepath.Join(dir, lockFile)); err != nil {
			t.Fatal(err)
		}
		if l, err := lockState(dir); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, lockFile)) {
			t.Errorf("%s: %v %v", name, l, err)
		}
	}
}

// TestStateDirectoryRemovedWhileUp: a second process is kept out and orders are
// taken, as before.
func TestStateDirectoryRemovedWhileUp(t *testing.T) {
	cfg := instanceConfig(t, "127.0.0.1:1")
	cfg.LogLevel = "error"
	r := start(t, cfg)
	former := slices.Clone(r.state.former)
	if err := os.RemoveAll(cfg.StateDir); err != nil {
		t.Fatal(err)
	}
	ctl := Controls{Socket: cfg.ControlPath()}
	eventually(t, "orders are taken again", func() bool {
		_, err := ctl.Status(t.Context())
		return err == nil
	})
	if info, err := os.Stat(ctl.Socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v %v", info, err)
	}
	if l, err := lockState(cfg.StateDir); err == nil || !strings.Contains(err.Error(), "another routerd uses it") {
		l.unlock()
		t.Errorf("a second one: %v", err)
	}
	r.stop()
	r.ended()
	next, err := newInstance(t.Context(), cfg, telemetry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(next.state.former, append([]string{r.state.boot}, former...)) {
		t.Errorf("the processes before are %q, want %q first", next.state.former, r.state.boot)
	}
	next.close()
}
