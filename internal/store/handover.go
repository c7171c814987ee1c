package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// A Handover says to whom a certificate is given: a folder that holds nothing but
// what its holder needs, such as a container's volume.
type Handover struct {
	Name string // the certificate's
	Dir  string // gets ca.pem, NAME.pem and NAME-key.pem
	// UID and GID own the files; negative ones leave them to who runs this.
	// Giving files away needs CAP_CHOWN.
	UID, GID int
}

// HandOver puts a certificate, its key and the authority's certificate where
// the holder finds them. What is there is replaced, the certificate last:
// whoever looks in between has a pair that does not fit, and keeps what he has.
func (a *Authority) HandOver(h Handover) error {
	if err := os.MkdirAll(h.Dir, 0o755); err != nil {
		return fmt.Errorf("hand %s over: %w", h.Name, err)
	}
	for _, f := range []struct {
		name string
		mode fs.FileMode
	}{{authorityCert, 0o644}, {h.Name + "-key.pem", 0o600}, {h.Name + ".pem", 0o644}} {
		if err := h.put(a.path(f.name), f.name, f.mode); err != nil {
			return fmt.Errorf("hand %s over: %w", h.Name, err)
		}
	}
	return nil
}

// put copies a file in one step, with its owner.
func (h Handover) put(from, name string, mode fs.FileMode) (err error) {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	f, err := renameio.TempFile(h.Dir, filepath.Join(h.Dir, name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Cleanup()) }()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Chown(h.UID, h.GID); err != nil {
		return fmt.Errorf("%w (--owner is for root)", err)
	}
	return f.CloseAtomicallyReplace()
}
