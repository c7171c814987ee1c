package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

func newSwitchCmd(c *command) *cobra.Command {
	var (
		groups   []string
		message  string
		takeBack bool
		w        waiting
	)
	cmd := &cobra.Command{
		Use:   "switch REVISION",
		Short: "Move the fleet, or some groups, to a published revision",
		Long: `Move the fleet, or some groups, to a published revision. Every instance prepares
it first; nothing switches before all are ready.

For the whole fleet, the revision becomes the target that later publishes
compose on. If it does not descend from the target, the modules that it takes
back are listed, and --take-back allows it.`,
		Example: `  routectl switch 42 --wait
  routectl switch 42 --group canary -m "canary first"`,
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: c.completeRevisions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withStore(func(s *store.Store) error {
				ctx := cmd.Context()
				rev, err := revision(ctx, s, args[0])
				if err != nil {
					return err
				}
				fleet, err := s.Fleet(ctx)
				if err != nil {
					return err
				}
				intent := rollout.Intent{Kind: rollout.IntentSwitch, To: rev.Ref(), Groups: groups, By: c.env.author(), Message: message}
				if err := w.apply(&intent); err != nil {
					return err
				}
				if served, err := servedAlready(ctx, s, rev.Ref(), groups); err != nil {
					return err
				} else if served {
					return c.print(outcome{Revision: rev.Number, Digest: rev.Digest}, func(t *table) {
						t.line("revision %d is what is served already; nothing was switched", rev.Number)
					})
				}
				var target *version.Ref
				if len(groups) == 0 {
					if err := checkDescent(ctx, s, rev, fleet.Target, takeBack); err != nil {
						return err
					}
					ref := rev.Ref()
					target = &ref
				}
				intent, err = s.PutIntent(ctx, intent, target, fleet.Target)
				if err != nil {
					return err
				}
				if !w.wait {
					c.say("asked for the switch to revision %d; routectl status --watch follows it", rev.Number)
				}
				return c.conclude(ctx, s, outcome{Revision: rev.Number, Digest: rev.Digest, Changed: true, Rollout: intent.ID}, w, "switched")
			})
		},
	}
	cmd.Flags().StringSliceVarP(&groups, "group", "g", nil, "only these groups; may be repeated")
	cmd.Flags().StringVarP(&message, "message", "m", "", "why, for the audit log")
	cmd.Flags().BoolVar(&takeBack, "take-back", false, "allow a revision that takes back what the target has")
	_ = cmd.RegisterFlagCompletionFunc("group", c.completeGroups)
	w.flags(cmd)
	return cmd
}

// servedAlready tells whether every group concerned has the revision as its
// stable one and nothing else is under way.
func servedAlready(ctx context.Context, s *store.Store, ref version.Ref, groups []string) (bool, error) {
	v, err := s.View(ctx)
	if err != nil {
		return false, err
	}
	if len(groups) == 0 {
		groups = sorted(v.Groups)
		if v.Fleet.Target.Digest != ref.Digest {
			return false, nil
		}
	}
	for _, g := range groups {
		if a, ok := v.Groups[g]; !ok {
			return false, fail(ExitUsage, fmt.Errorf("there is no group %q", g), "the groups are "+strings.Join(sorted(v.Groups), ", "))
		} else if a.Stable.Digest != ref.Digest || a.Candidate != nil {
			return false, nil
		}
	}
	return len(groups) > 0 && len(v.Intents) == 0 && len(v.Rollouts) == 0, nil
}

// checkDescent refuses a revision that does not descend from the target,
// naming the modules it takes back, unless that is allowed.
func checkDescent(ctx context.Context, s *store.Store, rev version.Revision, target version.Ref, allowed bool) error {
	if target.IsZero() || allowed {
		return nil
	}
	for at := rev; at.Number >= target.Number; {
		if at.Number == target.Number {
			return nil
		}
		if at.Parent == 0 {
			break
		}
		parent, err := s.Revision(ctx, at.Parent)
		if errors.Is(err, store.ErrNotFound) {
			break // collected: where it came from is not known any more
		} else if err != nil {
			return fmt.Errorf("follow the parents of revision %d: %w", rev.Number, err)
		}
		at = parent
	}
	now, err := s.Revision(ctx, target.Number)
	if err != nil {
		return err
	}
	var taken []string
	for _, m := range sorted(now.Modules) {
		if d, ok := rev.Modules[m]; !ok {
			taken = append(taken, m+" (gone)")
		} else if d != now.Modules[m] {
			taken = append(taken, m)
		}
	}
	if len(taken) == 0 {
		return nil
	}
	return fail(ExitConflict, fmt.Errorf("revision %d does not descend from the target, revision %d: it takes back %s", rev.Number, target.Number, strings.Join(taken, ", ")),
		fmt.Sprintf("routectl diff %d %d shows what; --take-back allows it", target.Number, rev.Number))
}
