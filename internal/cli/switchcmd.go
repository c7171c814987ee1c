package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// switching is the flags of switch and rollout start.
type switching struct {
	groups   []string
	message  string
	takeBack bool
	planning
	waiting
}

// planning is the flags of the commands that a strategy can play.
type planning struct {
	strategy  string
	supersede bool
	revert    time.Duration
}

func (p *planning) flags(c *command, cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&p.strategy, "strategy", "", "the strategy to go by; without, the fleet's default")
	fs.BoolVar(&p.supersede, "supersede", false, "end a rollout with steps over the same groups, which refuses another otherwise")
	fs.DurationVar(&p.revert, "revert-after", 0, "go back this long after the last commit, unless routectl rollout approve confirms it; at once if it does worse")
	_ = cmd.RegisterFlagCompletionFunc("strategy", c.completeStrategies)
}

// apply puts the flags into an intent.
func (p *planning) apply(i *rollout.Intent) error {
	if p.revert < 0 {
		return fail(ExitUsage, errors.New("--revert-after must not be negative"), "")
	}
	i.Strategy, i.Supersede, i.Revert = p.strategy, p.supersede, p.revert
	return nil
}

func newSwitchCmd(c *command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "switch REVISION",
		Short: "Move the fleet, or some groups, to a published revision",
		Long: `Move the fleet, or some groups, to a published revision. Every instance prepares
it first; nothing switches before all are ready.

For the whole fleet, the revision becomes the target that later publishes
compose on. If it does not descend from the target, the modules that it takes
back are listed, and --take-back allows it.

By --strategy, or the fleet's default, it goes step by step: routectl rollout
status shows where it is.`,
		Example: `  routectl switch 42 --wait
  routectl switch 42 --group canary -m "canary first"
  routectl switch 42 --strategy canary --revert-after 10m`,
	}
	return c.switchCmd(cmd)
}

func newRolloutStartCmd(c *command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "start REVISION",
		Short: "Move the fleet, or some groups, to a published revision by a strategy",
		Long: `Move the fleet, or some groups, to a published revision by a strategy: the one
named, else the fleet's default. It is the same as switch.

With --wait every step is shown. It ends with 0 when the rollout is done, with 1
when it went back, saying why, and with 5 at --timeout; without --timeout it
waits as long as the rollout takes, also for a pause, a hold or an approval, and
says then how it goes on.`,
		Example: `  routectl rollout start 42 --strategy canary --wait
  routectl rollout start 42 --strategy linear --group eu --group us`,
	}
	return c.switchCmd(cmd)
}

// switchCmd completes a command that moves groups to a revision.
func (c *command) switchCmd(cmd *cobra.Command) *cobra.Command {
	var sw switching
	cmd.Args = usage(cobra.ExactArgs(1))
	cmd.ValidArgsFunction = c.completeRevisions(1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.withStore(func(s *store.Store) error { return c.startSwitch(cmd.Context(), s, sw, args[0]) })
	}
	cmd.Flags().StringSliceVarP(&sw.groups, "group", "g", nil, "only these groups; may be repeated")
	cmd.Flags().StringVarP(&sw.message, "message", "m", "", "why, for the audit log")
	cmd.Flags().BoolVar(&sw.takeBack, "take-back", false, "allow a revision that takes back what the target has")
	_ = cmd.RegisterFlagCompletionFunc("group", c.completeGroups)
	sw.planning.flags(c, cmd)
	sw.waiting.flags(cmd)
	return cmd
}

func (c *command) startSwitch(ctx context.Context, s *store.Store, sw switching, arg string) error {
	rev, err := revision(ctx, s, arg)
	if err != nil {
		return err
	}
	intent := rollout.Intent{Kind: rollout.IntentSwitch, To: rev.Ref(), Groups: sw.groups, By: c.env.author(), Message: sw.message}
	if err := errors.Join(sw.waiting.apply(&intent), sw.planning.apply(&intent)); err != nil {
		return err
	}
	v, err := s.View(ctx)
	if err != nil {
		return err
	}
	if served, err := servedAlready(v, rev.Ref(), sw.groups); err != nil {
		return err
	} else if served {
		return c.print(outcome{Revision: rev.Number, Digest: rev.Digest}, func(t *table) {
			t.line("revision %d is what is served already; nothing was switched", rev.Number)
		})
	}
	if err := checkPlan(v, &intent); err != nil {
		return err
	}
	var target *version.Ref
	if len(sw.groups) == 0 {
		if err := checkDescent(ctx, s, rev, v.Fleet.Target, sw.takeBack); err != nil {
			return err
		}
		ref := rev.Ref()
		target = &ref
	}
	intent, err = s.PutIntent(ctx, intent, target, v.Fleet.Target)
	if err != nil {
		return err
	}
	if !sw.wait {
		c.say("asked for the switch to revision %d; routectl status --watch follows it", rev.Number)
	}
	return c.conclude(ctx, s, outcome{Revision: rev.Number, Digest: rev.Digest, Changed: true, Rollout: intent.ID}, sw.waiting, "switched")
}

// servedAlready tells whether every group concerned has the revision as its
// stable one and nothing else is under way.
func servedAlready(v *rollout.View, ref version.Ref, groups []string) (bool, error) {
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
