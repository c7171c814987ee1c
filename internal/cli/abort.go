package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

func newAbortCmd(c *command) *cobra.Command {
	var message string
	cmd := &cobra.Command{
		Use:   "abort [ROLLOUT]",
		Short: "End a switch that is under way; what is committed stays",
		Long: `End a switch that is under way, or the one named. Nothing that was not committed
yet will be: an abort that this command acknowledged always wins. The target
goes back to what it was.`,
		Example: `  routectl abort -m "the wrong file"`,
		Args:    usage(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withStore(func(s *store.Store) error {
				v, err := s.View(cmd.Context())
				if err != nil {
					return err
				}
				if len(v.Rollouts)+len(v.Intents) == 0 {
					return fail(ExitFailed, errors.New("nothing is under way"), "routectl rollback takes back what is committed")
				}
				i := rollout.Intent{Kind: rollout.IntentAbort, By: c.env.author(), Message: message}
				if len(args) > 0 {
					i.Rollout = args[0]
				}
				if i, err = s.PutIntent(cmd.Context(), i, nil, v.Fleet.Target); err != nil {
					return err
				}
				return c.print(asked{i.ID}, func(t *table) { t.line("aborted; routectl status shows who serves what") })
			})
		},
	}
	cmd.Flags().StringVarP(&message, "message", "m", "", "why, for the audit log")
	return cmd
}

// asked is what abort and retire give with -o: the id of the intent.
type asked struct {
	Rollout string `json:"rollout"`
}

func newRetireCmd(c *command) *cobra.Command {
	var message string
	cmd := &cobra.Command{
		Use:   "retire GROUP",
		Short: "Forget a group that has no instances any more",
		Long: `Forget a group that has no instances any more, so that switches of the whole
fleet do not wait for it. A group with a registered instance is kept.`,
		Example:           `  routectl retire old-edge -m "moved to edge-2"`,
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: c.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withStore(func(s *store.Store) error {
				v, err := s.View(cmd.Context())
				if err != nil {
					return err
				}
				if _, ok := v.Groups[args[0]]; !ok {
					return fail(ExitUsage, fmt.Errorf("there is no group %q", args[0]), "routectl status lists the groups")
				}
				if n := len(v.Ready[args[0]]); n > 0 {
					return fail(ExitFailed, fmt.Errorf("group %s has %s", args[0], plural(n, "registered instance")), "stop them first")
				}
				i := rollout.Intent{Kind: rollout.IntentRetire, Groups: args, By: c.env.author(), Message: message}
				if i, err = s.PutIntent(cmd.Context(), i, nil, v.Fleet.Target); err != nil {
					return err
				}
				return c.print(asked{i.ID}, func(t *table) { t.line("asked for group %s to be forgotten", args[0]) })
			})
		},
	}
	cmd.Flags().StringVarP(&message, "message", "m", "", "why, for the audit log")
	return cmd
}
