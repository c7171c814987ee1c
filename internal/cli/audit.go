package cli

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

func newAuditCmd(c *command) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "List who did what and why, newest first",
		Long: `List who did what and why, newest first. Every entry was written in the
transaction that did it, so nothing happened without one.`,
		Example: `  routectl audit -n 10
  routectl audit -n 0 -o json`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 0 {
				return fail(ExitUsage, errors.New("--limit must not be negative"), "0 lists all")
			}
			return c.withStore(func(s *store.Store) error {
				entries, _, err := s.Audit(cmd.Context(), limit, "")
				if err != nil {
					return err
				}
				if entries == nil {
					entries = []rollout.AuditEntry{}
				}
				return c.print(entries, func(w *table) {
					w.row("TIME", "WHO", "WHAT", "REVISION", "GROUPS", "WHY")
					for _, e := range entries {
						w.row(e.Time.Local().Format(time.DateTime), e.Who, e.What, dash(e.To.Number), strings.Join(e.Groups, ","), e.Why)
					}
				})
			})
		},
	}
	cmd.Flags().IntVarP(&limit, "limit", "n", 50, "how many to list; 0 for all")
	return cmd
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// dash shows a number that may be absent.
func dash(n int64) string {
	if n == 0 {
		return "-"
	}
	return itoa(n)
}
