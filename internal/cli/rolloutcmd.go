package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

func newRolloutCmd(c *command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollout",
		Short: "Move the fleet step by step, and steer that",
		Long: `Move the fleet to a revision step by step, as a strategy says, and steer that.

A rollout goes on by itself, and goes back by itself when the candidate does
worse than what is stable. It waits for an operator where its strategy says so,
where there is not enough data to tell, and where it cannot go on; status
says why and how it goes on. abort and rollback are always possible.

ROLLOUT is an id that list shows; it can be left out while only one is under way.`,
		Args: onlyCommands,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, add := range []func(*command) *cobra.Command{
		newRolloutStartCmd, newRolloutStatusCmd, newRolloutListCmd, newPromoteCmd, newPauseCmd, newResumeCmd, newApproveCmd,
		newAbortCmd, newSimulateCmd, newAnalyzeCmd, newRecordCmd,
	} {
		cmd.AddCommand(add(c))
	}
	return cmd
}

func newRolloutListCmd(c *command) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List rollouts, also those that ended, newest first",
		Long: `List rollouts, newest first, also those that ended, with what became of them.
gc deletes old ones.`,
		Example: `  routectl rollout list
  routectl rollout list -n 0 -o json`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 0 {
				return fail(ExitUsage, errors.New("--limit must not be negative"), "0 lists all")
			}
			return c.withStore(func(s *store.Store) error {
				list, err := rollouts(cmd.Context(), s, limit)
				if err != nil {
					return err
				}
				return c.print(list, func(w *table) {
					w.row("ROLLOUT", "KIND", "REVISION", "STRATEGY", "PHASE", "STARTED", "TOOK", "BY", "WHY")
					for i := range list {
						r := &list[i]
						took := "-"
						if !r.Ended.IsZero() {
							took = howLong(r.Started, r.Ended)
						}
						w.row(r.ID, r.Kind, goalText(r), strategyName(r), phaseOf(r), r.Started.Local().Format(time.DateTime), took, r.By, r.Why)
					}
				})
			})
		},
	}
	cmd.Flags().IntVarP(&limit, "limit", "n", 20, "how many to list; 0 for all")
	return cmd
}

// rollouts lists the newest of those that move groups: what only steers one is
// in the audit log.
func rollouts(ctx context.Context, s *store.Store, limit int) ([]rollout.Rollout, error) {
	for ask := 2 * limit; ; ask *= 2 {
		all, err := s.Rollouts(ctx, ask)
		if err != nil {
			return nil, err
		}
		read, list := len(all), []rollout.Rollout{}
		for i := range all {
			if moves(all[i].Kind) {
				list = append(list, all[i])
			}
		}
		switch {
		case limit == 0:
			return list, nil
		case len(list) >= limit:
			return list[:limit], nil
		case read < ask:
			return list, nil
		}
	}
}

// moves tells whether what was asked for changes what groups serve.
func moves(k rollout.IntentKind) bool {
	return k == rollout.IntentSwitch || k == rollout.IntentRollback || k == rollout.IntentRecover
}

// goalText names the revision that a rollout goes to: a rollback may take
// groups to different ones.
func goalText(r *rollout.Rollout) string {
	if !r.To.IsZero() || len(r.Goals) == 0 {
		return dash(r.To.Number)
	}
	goals := map[int64]bool{}
	for _, ref := range r.Goals {
		goals[ref.Number] = true
	}
	parts := []string{}
	for _, n := range slices.Sorted(maps.Keys(goals)) {
		parts = append(parts, itoa(n))
	}
	return strings.Join(parts, ",")
}

func strategyName(r *rollout.Rollout) string {
	switch {
	case r.Plan != nil:
		return r.Plan.Name
	case r.Kind == rollout.IntentSwitch:
		return rollout.AllAtOnce
	}
	return "-"
}

// wantsApproval is what phaseOf says of a rollout that somebody has to approve.
const wantsApproval = "wants approval"

// phaseOf is where a rollout stands, in a word: one that waits for an operator
// says so.
func phaseOf(r *rollout.Rollout) string {
	switch {
	case r.Phase.Final():
	case needsApproval(r) && (r.Hold == nil || !r.Hold.Operator):
		return wantsApproval
	case r.Hold != nil:
		return "held"
	}
	return string(r.Phase)
}

// underWay are the rollouts of a view that move groups and have not ended.
func underWay(v *rollout.View) []rollout.Rollout {
	var out []rollout.Rollout
	for i := range v.Rollouts {
		if r := &v.Rollouts[i]; moves(r.Kind) && !r.Phase.Final() {
			out = append(out, *r)
		}
	}
	return out
}

// steered finds the rollout that a command is about: the one named, or the
// only one under way.
func steered(ctx context.Context, s *store.Store, args []string) (rollout.Rollout, error) {
	if len(args) > 0 {
		r, err := named(ctx, s, args[0])
		if err == nil && r.Phase.Final() {
			err = fail(ExitFailed, fmt.Errorf("rollout %s has ended: %s", r.ID, r.Phase), "routectl rollout status "+r.ID+" shows how; routectl rollback goes back")
		}
		return r, err
	}
	v, err := s.View(ctx)
	if err != nil {
		return rollout.Rollout{}, err
	}
	switch list := underWay(v); len(list) {
	case 0:
		return rollout.Rollout{}, fail(ExitFailed, errors.New("no rollout is under way"), "routectl rollout list shows those that ended; routectl rollback goes back")
	case 1:
		return list[0], nil
	default:
		return rollout.Rollout{}, fail(ExitUsage, fmt.Errorf("%s are under way: name one", plural(len(list), "rollout")), "they are "+ids(list))
	}
}

// shown finds the rollout that a command tells about: the one named, the
// newest under way, or the newest that ended.
func shown(ctx context.Context, s *store.Store, args []string) (r rollout.Rollout, others []rollout.Rollout, err error) {
	if len(args) > 0 {
		r, err = named(ctx, s, args[0])
		return r, nil, err
	}
	v, err := s.View(ctx)
	if err != nil {
		return r, nil, err
	}
	if list := underWay(v); len(list) > 0 {
		last := len(list) - 1
		return list[last], list[:last], nil
	}
	list, err := rollouts(ctx, s, 1)
	if err != nil {
		return r, nil, err
	}
	if len(list) == 0 {
		return r, nil, fail(ExitFailed, errors.New("there was no rollout yet"), "routectl publish or routectl rollout start begins one")
	}
	return list[0], nil, nil
}

func named(ctx context.Context, s *store.Store, id string) (rollout.Rollout, error) {
	r, err := s.Rollout(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return r, fail(ExitFailed, fmt.Errorf("there is no rollout %q", id), "routectl rollout list shows them; one that was asked for just now needs a controller to take it up")
	}
	return r, err
}

func ids(list []rollout.Rollout) string {
	out := make([]string, len(list))
	for i := range list {
		out[i] = list[i].ID
	}
	return strings.Join(out, ", ")
}

// completeRollouts offers the rollouts under way, for one argument.
func (c *command) completeRollouts(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.offer(cmd, func(ctx context.Context, s *store.Store) (out []string, err error) {
		v, err := s.View(ctx)
		if err != nil {
			return nil, err
		}
		for _, r := range underWay(v) {
			out = append(out, fmt.Sprintf("%s\trevision %d, %s", r.ID, r.To.Number, phaseOf(&r)))
		}
		return out, nil
	})
}

// completeEnded offers the newest rollouts, ended or not.
func (c *command) completeEnded(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	out, directive := c.offer(cmd, func(ctx context.Context, s *store.Store) (out []string, err error) {
		list, err := rollouts(ctx, s, 20)
		for i := range list {
			out = append(out, fmt.Sprintf("%s\trevision %d, %s", list[i].ID, list[i].To.Number, phaseOf(&list[i])))
		}
		return out, err
	})
	return out, directive | cobra.ShellCompDirectiveKeepOrder
}
