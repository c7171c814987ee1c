package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"routerd.dev/internal/store"
)

func newInitCmd(c *command) *cobra.Command {
	var once string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make an empty fleet under the prefix",
		Long: `Make an empty fleet under the prefix. A fleet that exists is left as it is, so
init can be run again. An instance that starts without a state of its own makes
the fleet too, so init is only needed where instances may not write there.

A script that runs init at every start would make another fleet in an etcd that
lost its data, and the instances that serve follow no other fleet. --once FILE
keeps the fleet's id in FILE: where FILE names a fleet, none is made, and
another one in etcd is an error. FILE has to outlive etcd's data.`,
		Example: `  routectl init
  routectl init --prefix /staging/routes
  routectl init --once /var/lib/routerd/fleet`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withStore(func(s *store.Store) error {
				f, created, err := initOnce(cmd.Context(), s, once)
				if err != nil {
					return err
				}
				return c.print(struct {
					Fleet   string `json:"fleet"`
					Prefix  string `json:"prefix"`
					Created bool   `json:"created"`
				}{f.FleetID, s.Prefix(), created}, func(w *table) {
					if created {
						w.line("fleet %s made under %s", f.FleetID, s.Prefix())
					} else {
						w.line("fleet %s is there already under %s; nothing was changed", f.FleetID, s.Prefix())
					}
				})
			})
		},
	}
	cmd.Flags().StringVar(&once, "once", "", "keep the fleet's id in this file, and make no fleet where it names one: for a script that may run again")
	return cmd
}

// initOnce makes a fleet unless there is one, or the file, if one is given,
// says that there was one.
func initOnce(ctx context.Context, s *store.Store, file string) (f store.Format, created bool, err error) {
	if file == "" {
		return s.Init(ctx)
	}
	known, err := readMark(file)
	if err != nil {
		return f, false, err
	}
	if known == "" {
		keep, discard, err := newMark(file) // before the fleet: what cannot be kept is not made
		if err != nil {
			return f, false, err
		}
		defer discard()
		if f, created, err = s.Init(ctx); err != nil {
			return f, false, err
		}
		return f, created, keep(f.FleetID)
	}
	const hint = "routectl recover --from URL, for an instance of each group, restores etcd from what they serve (docs/operations.md, Backup and restore)"
	switch f, err = s.Format(ctx); {
	case errors.Is(err, store.ErrNotInitialized):
		return f, false, fail(ExitFailed, fmt.Errorf("init: %s names fleet %s, and etcd has lost it: nothing is under %s, and no other fleet is made", file, known, s.Prefix()), hint)
	case err != nil:
		return f, false, err
	case f.FleetID != known:
		return f, false, fail(ExitFailed, fmt.Errorf("init: %s names fleet %s, and under %s is another one: %s", file, known, s.Prefix(), f.FleetID),
			"when the instances serve the former, delete "+s.Prefix()+" in etcd, then "+hint+"; when this one is right, delete the file")
	}
	return f, false, nil
}

// readMark returns the fleet that the file names, "" when there is no file.
func readMark(file string) (string, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("init --once: %w", err)
	}
	id := strings.TrimSpace(string(b))
	if id == "" {
		return "", fail(ExitFailed, fmt.Errorf("init --once: %s is empty, and should name a fleet", file), "delete it when no fleet was ever made here")
	}
	return id, nil
}

// newMark opens a file beside the one that will be, so that it is there as a
// whole or not at all. keep writes the fleet's id and puts it in its place.
func newMark(file string) (keep func(id string) error, discard func(), err error) {
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
	if err != nil {
		return nil, nil, fmt.Errorf("init --once: %w", err)
	}
	keep = func(id string) error {
		_, err := fmt.Fprintln(tmp, id)
		if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
			err = os.Rename(tmp.Name(), file)
		}
		if err != nil {
			return fmt.Errorf("init --once: %w", err)
		}
		return nil
	}
	return keep, func() { _ = tmp.Close(); _ = os.Remove(tmp.Name()) }, nil
}
