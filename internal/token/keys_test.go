package token

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLoadRefuses(t *testing.T) {
	key := keyLine("a")
	for _, c := range []struct {
		name, text string
		mode       os.FileMode
		want       string // in the error; empty: it is taken
	}{
		{"one key", key, 0o600, ""},
		{"read only", key, 0o400, ""},
		{"comments and Windows line ends", "# newest\r\n\r\n" + key + "\r\n # older\r\n" + keyLine("b"), 0o600, ""},
		{"without padding, other alphabet", "-_" + strings.TrimRight(key[2:], "="), 0o600, ""},
		{"group reads", key, 0o640, "chmod 600"},
		{"all read", key, 0o604, "chmod 600"},
		{"group writes", key, 0o620, "chmod 600"},
		{"empty", "", 0o600, "has no key"},
		{"only comments", "# a\n\n", 0o600, "has no key"},
		{"short", key + "\nc2hvcnQ=\n", 0o600, "line 2: a key of 5 bytes"},
		{"not base64", "hello world", 0o600, "line 1 is not base64"},
		{"too many", strings.Repeat(key+"\n", MaxKeys+1), 0o600, "line 9: more than 8 keys"},
		{"huge", strings.Repeat("# \n", maxFile), 0o600, "not a key file"},
	} {
		path := filepath.Join(t.TempDir(), "keys")
		if err := os.WriteFile(path, []byte(c.text), c.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path)):
			t.Errorf("%s: %v, want %q and the path", c.name, err, c.want)
		case err != nil && strings.Contains(err.Error(), key[:8]):
			t.Errorf("%s: the error shows a key: %v", c.name, err)
		}
	}
	if _, err := Load(t.TempDir()); err == nil || !strings.Contains(err.Error(), "is not a file") {
		t.Errorf("a directory: %v", err)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
}

// TestRotation goes through what doc.go says of rotating, and through what goes
// wrong.
func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	old, new := keyLine("old"), keyLine("new")
	writeKeys(t, path, old)
	k, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	now := noon
	later := func() time.Time { now = now.Add(lookEvery); return now }
	first := k.Sign(someClaims())
	generation := k.Generation(later())

	writeKeys(t, path, old, new)
	if g := k.Generation(now); g != generation {
		t.Error("the file was looked at twice within a second")
	}
	if g := k.Generation(later()); g == generation {
		t.Error("the second key was not seen")
	}
	if k.Sign(someClaims()) != first {
		t.Error("not signed with the first key")
	}
	writeKeys(t, path, new, old)
	k.Generation(later())
	second := k.Sign(someClaims())
	for _, text := range []string{first, second} {
		if _, err := k.Verify(text, now); err != nil {
			t.Errorf("while both keys are there: %v", err)
		}
	}

	writeKeys(t, path, new)
	if _, err := k.Verify(first, later()); !errors.Is(err, ErrForged) {
		t.Errorf("by a key that was removed, verified before: %v", err)
	}
	if _, err := k.Verify(second, now); err != nil {
		t.Error(err)
	}

	generation = k.Generation(now)
	for _, c := range []struct {
		what  string
		spoil func() error
	}{
		{"open to others", func() error { return os.Chmod(path, 0o644) }},
		{"short", func() error { return os.WriteFile(path, []byte("AAAA\n"), 0o600) }},
		{"gone", func() error { return os.Remove(path) }},
	} {
		if err := c.spoil(); err != nil {
			t.Fatal(err)
		}
		if _, err := k.Verify(second, later()); err != nil || k.Err() == nil || k.Generation(now) != generation {
			t.Errorf("%s: %v, said %v", c.what, err, k.Err())
		}
	}
	writeKeys(t, path, new)
	if g := k.Generation(later()); k.Err() != nil || g != generation {
		t.Errorf("the same keys again: %v, generation %d, was %d", k.Err(), g, generation)
	}
	if _, err := k.Verify(second, now.Add(-time.Hour)); err != nil {
		t.Errorf("a clock that was set back: %v", err)
	}
}
