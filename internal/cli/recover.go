package cli

import (
	"github.com/spf13/cobra"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

func newRecoverCmd(c *command) *cobra.Command {
	var (
		groups  []string
		message string
		w       waiting
	)
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "End a freeze after etcd was wiped or restored from an older copy",
		Long: `End a freeze. Instances freeze, and serve on, when etcd knows less than they do:
it was wiped, or restored from an older copy. recover adopts what etcd has now:
the groups' assignments get epochs above everything that was ever served, and
the instances follow etcd again.`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withStore(func(s *store.Store) error {
				fleet, err := s.Fleet(cmd.Context())
				if err != nil {
					return err
				}
				i := rollout.Intent{Kind: rollout.IntentRecover, Groups: groups, By: c.env.author(), Message: message}
				if err := w.apply(&i); err != nil {
					return err
				}
				if i, err = s.PutIntent(cmd.Context(), i, nil, fleet.Target); err != nil {
					return err
				}
				if !w.wait {
					c.say("asked for recovery; routectl status --watch follows it")
				}
				return c.finish(cmd.Context(), s, i.ID, w, "recovered")
			})
		},
	}
	cmd.Flags().StringSliceVarP(&groups, "group", "g", nil, "only these groups; may be repeated")
	cmd.Flags().StringVarP(&message, "message", "m", "", "why, for the audit log")
	_ = cmd.RegisterFlagCompletionFunc("group", c.completeGroups)
	w.flags(cmd)
	return cmd
}
