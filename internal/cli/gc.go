package cli

import (
	"github.com/spf13/cobra"

	"routerd.dev/internal/store"
)

func newGCCmd(c *command) *cobra.Command {
	var keep store.KeepPolicy
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Delete old revisions that nothing needs",
		Long: `Delete old revisions that nothing needs, with their chunks, and old rollouts and
audit entries. What a group, a rollout or an instance names is never deleted,
nor what somebody is publishing, nor what routectl keep names.`,
		Example: `  routectl gc
  routectl gc --keep 20`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withStore(func(s *store.Store) error {
				c.doing("collecting")
				got, err := s.GC(cmd.Context(), c.env.author(), keep)
				if err != nil {
					return err
				}
				return c.print(got, func(w *table) {
					w.line("deleted %s, %s, %s, %s; kept %s", plural(got.Revisions, "revision"), plural(got.Chunks, "chunk"),
						plural(got.Rollouts, "rollout"), plural(got.Audit, "audit line"), plural(got.KeptRevisions, "revision"))
				})
			})
		},
	}
	cmd.Flags().IntVar(&keep.Revisions, "keep", 0, "how many of the newest revisions to keep; 0 for the fleet's historyLimit, or 50 without one")
	cmd.Flags().IntVar(&keep.Rollouts, "keep-rollouts", 0, "how many ended rollouts to keep; 0 for 200")
	cmd.Flags().IntVar(&keep.Audit, "keep-audit", 0, "how many audit entries to keep; 0 for 10,000")
	return cmd
}
