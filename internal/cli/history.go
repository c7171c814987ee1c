package cli

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

func newHistoryCmd(c *command) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "history",
		Short: "List the published revisions, newest first",
		Long: `List the published revisions, newest first, with who published them and why.
What gc deleted is not listed.`,
		Example: `  routectl history
  routectl history -n 0 -o json`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 0 {
				return fail(ExitUsage, errors.New("--limit must not be negative"), "0 lists all")
			}
			return c.withStore(func(s *store.Store) error {
				ctx := cmd.Context()
				fleet, err := s.Fleet(ctx)
				if err != nil {
					return err
				}
				revs, err := s.History(ctx, limit, 0)
				if err != nil {
					return err
				}
				if revs == nil {
					revs = []version.Revision{}
				}
				return c.print(revs, func(w *table) {
					w.row("REVISION", "DIGEST", "PARENT", "ROUTES", "AUTHOR", "TIME", "MESSAGE")
					for _, r := range revs {
						mark := ""
						switch r.Number {
						case fleet.Committed.Number:
							mark = " *"
						case fleet.Target.Number:
							mark = " →"
						}
						w.row(itoa(r.Number)+mark, r.Digest.Short(), dash(r.Parent), r.Routes, r.Author, r.Time.Local().Format(time.DateTime), r.Message)
					}
					if len(revs) > 0 {
						w.line("* every group committed it; → target, which publishing composes on")
					}
				})
			})
		},
	}
	cmd.Flags().IntVarP(&limit, "limit", "n", 20, "how many to list; 0 for all")
	return cmd
}
