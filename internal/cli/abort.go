package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

func newAbortCmd(c *command) *cobra.Command {
	var message string
	cmd := &cobra.Command{
		Use:   "abort [ROLLOUT]",
		Short: "End a switch that is under way",
		Long: `End a switch that is under way, or the one named. Nothing that was not committed
yet will be: an abort that this command acknowledged always wins, also over
pause and promote. The target goes back to what it was.

A rollout with steps takes its groups back to what was stable when it began; of
a switch in one step, what is committed stays.`,
		Example: `  routectl abort -m "the wrong file"
  routectl rollout abort -m "errors on the canary"`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: c.completeRollouts,
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
					if i.Rollout = args[0]; !asksFor(v, i.Rollout) {
						return notUnderWay(cmd.Context(), s, i.Rollout)
					}
				}
				if i, err = s.PutIntent(cmd.Context(), i, nil, v.Fleet.Target); err != nil {
					return err
				}
				ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second)
				defer cancel()
				c.doing("waiting for the controller")
				answer, err := answered(ctx, s, i.ID)
				return c.aborted(i.ID, answer, err)
			})
		},
	}
	cmd.Flags().StringVarP(&message, "message", "m", "", "why, for the audit log")
	return cmd
}

// aborted says what became of an abort. It is on record and wins, also when no
// controller answers in time; but what cannot go back is refused, and what was
// committed before the abort came stays.
func (c *command) aborted(id string, answer rollout.Rollout, err error) error {
	said := "aborted; routectl status shows who serves what"
	switch {
	case err != nil:
		said = "the abort is on record, and wins when a controller comes; none has answered yet: routectl status"
	case answer.Phase != rollout.PhaseDone:
		return fail(ExitFailed, fmt.Errorf("%s: %s", answer.Phase, answer.Why), "routectl rollout status shows what it waits for")
	case !strings.HasPrefix(answer.Why, "aborted "):
		return fail(ExitFailed, errors.New(answer.Why), "routectl rollback takes back what is committed")
	}
	return c.print(asked{id}, func(t *table) { t.line("%s", said) })
}

// asksFor tells whether id is a rollout that has not ended, or an intent that
// was not taken up yet.
func asksFor(v *rollout.View, id string) bool {
	return slices.ContainsFunc(v.Rollouts, func(r rollout.Rollout) bool { return r.ID == id }) ||
		slices.ContainsFunc(v.Intents, func(i rollout.Intent) bool { return i.ID == id })
}

// notUnderWay says why there is nothing to abort about id.
func notUnderWay(ctx context.Context, s *store.Store, id string) error {
	r, err := named(ctx, s, id)
	if err != nil {
		return err
	}
	return fail(ExitFailed, fmt.Errorf("rollout %s has ended: %s", id, r.Phase), "routectl rollback takes back what is committed")
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
