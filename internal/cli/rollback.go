package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

func newRollbackCmd(c *command) *cobra.Command {
	var (
		groups  []string
		message string
		w       waiting
	)
	cmd := &cobra.Command{
		Use:   "rollback [REVISION]",
		Short: "Go back to what was served before",
		Long: `Go back to what was served before, or to REVISION. Every instance still holds
the last two revisions that were stable, so going back to them prepares nothing
and takes milliseconds. It does not wait for stragglers longer than a second.

The revision gone back to becomes the target, so nobody's later publish brings
back what was taken back. A second rollback goes further back.`,
		Example: `  routectl rollback --wait -m "500s on /orders"
  routectl rollback 41 --group main`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: c.completeRevisions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withStore(func(s *store.Store) error {
				ctx := cmd.Context()
				intent := rollout.Intent{Kind: rollout.IntentRollback, Groups: groups, By: c.env.author(), Message: message}
				if err := w.apply(&intent); err != nil {
					return err
				}
				v, err := s.View(ctx)
				if err != nil {
					return err
				}
				for _, g := range groups {
					if _, ok := v.Groups[g]; !ok {
						return fail(ExitUsage, fmt.Errorf("there is no group %q", g), "routectl status lists the groups")
					}
				}
				if len(args) > 0 {
					rev, err := revision(ctx, s, args[0])
					if err != nil {
						return err
					}
					if served, err := servedAlready(v, rev.Ref(), groups); err != nil {
						return err
					} else if served {
						return c.print(outcome{Revision: rev.Number, Digest: rev.Digest}, func(t *table) {
							t.line("revision %d is what is served already; nothing was switched", rev.Number)
						})
					}
					intent.To = rev.Ref()
				} else if !anyBack(v, groups) {
					return fail(ExitFailed, errors.New("nothing was served before that could be gone back to"), "name a revision: routectl rollback REVISION; routectl history lists them")
				}
				intent, err = s.PutIntent(ctx, intent, nil, v.Fleet.Target)
				if err != nil {
					return err
				}
				if !w.wait {
					c.say("asked for the rollback; routectl status shows who serves what")
				}
				return c.finish(ctx, s, intent.ID, w, "rolled back")
			})
		},
	}
	cmd.Flags().StringSliceVarP(&groups, "group", "g", nil, "only these groups; may be repeated")
	cmd.Flags().StringVarP(&message, "message", "m", "", "why, for the audit log")
	_ = cmd.RegisterFlagCompletionFunc("group", c.completeGroups)
	w.flags(cmd)
	return cmd
}

func anyBack(v *rollout.View, groups []string) bool {
	if len(groups) == 0 {
		groups = sorted(v.Groups)
	}
	for _, g := range groups {
		if len(v.Groups[g].Back) > 0 {
			return true
		}
	}
	return false
}
