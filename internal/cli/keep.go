package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"routerd.dev/internal/store"
)

func newKeepCmd(c *command) *cobra.Command {
	var (
		message string
		remove  bool
	)
	cmd := &cobra.Command{
		Use:   "keep [REVISION -m WHY]",
		Short: "Keep a revision from being collected, or list those that are kept",
		Long: `Keep a revision from being collected by gc, however old it gets, until --remove.
Without REVISION, list those that are kept, and why.`,
		Example: `  routectl keep 41 -m "the last before the new checkout"
  routectl keep
  routectl keep --remove 41`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: c.completeRevisions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 && (remove || message != ""):
				return fail(ExitUsage, errors.New("no revision is named"), "routectl keep REVISION -m WHY; routectl keep --remove REVISION")
			case len(args) > 0 && !remove && message == "":
				return fail(ExitUsage, errors.New("a revision is kept for a reason"), "say which with -m: whoever wants it gone needs to know")
			}
			return c.withStore(func(s *store.Store) error {
				switch {
				case len(args) == 0:
					return c.listKept(cmd, s)
				case remove:
					return c.unkeep(cmd, s, args[0], message)
				}
				rev, err := revision(cmd.Context(), s, args[0])
				if err != nil {
					return err
				}
				if err := s.Pin(cmd.Context(), rev.Number, message, c.env.author()); err != nil {
					return err
				}
				return c.print(kept{rev.Number, true}, func(w *table) { w.line("revision %d is kept until routectl keep --remove %d", rev.Number, rev.Number) })
			})
		},
	}
	cmd.Flags().StringVarP(&message, "message", "m", "", "why")
	cmd.Flags().BoolVar(&remove, "remove", false, "gc may delete the revision again")
	return cmd
}

// kept is what `keep REVISION -o json` gives.
type kept struct {
	Revision int64 `json:"revision"`
	Kept     bool  `json:"kept"`
}

func (c *command) listKept(cmd *cobra.Command, s *store.Store) error {
	pins, err := s.Pins(cmd.Context())
	if err != nil {
		return err
	}
	if pins == nil {
		pins = []store.Pin{}
	}
	return c.print(pins, func(w *table) {
		if len(pins) == 0 {
			w.line("no revision is kept beyond what gc keeps anyway")
			return
		}
		w.row("REVISION", "BY", "TIME", "WHY")
		for _, p := range pins {
			w.row(p.Number, p.By, p.Time.Local().Format(time.DateTime), p.Why)
		}
	})
}

func (c *command) unkeep(cmd *cobra.Command, s *store.Store, arg, why string) error {
	// Not by revision(): one that is not in the history can be kept still.
	n, err := strconv.ParseInt(strings.TrimPrefix(arg, "r"), 10, 64)
	if err != nil || n < 1 {
		return fail(ExitUsage, fmt.Errorf("revision %q: want a number", arg), "routectl keep lists those that are kept")
	}
	err = s.Unpin(cmd.Context(), n, why, c.env.author())
	if errors.Is(err, store.ErrNotFound) {
		return fail(ExitFailed, fmt.Errorf("revision %d is not kept", n), "routectl keep lists those that are")
	} else if err != nil {
		return err
	}
	return c.print(kept{n, false}, func(w *table) { w.line("gc may delete revision %d", n) })
}
