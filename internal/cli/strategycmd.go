package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
	"routerd.dev/internal/strategyfile"
)

func newStrategyCmd(c *command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "strategy",
		Short: "Say by which steps a revision reaches the fleet",
		Long: `Say by which steps a revision reaches the fleet. A strategy is a named plan of
waves over groups, each with steps: canary instances, a share of the requests,
testers, analyses, pauses, a commit, and a time of watching after it. Some are
built in; others are read from files and stored with the fleet.

publish, switch and rollout start play one with --strategy, else the fleet's
default, else all-at-once: every group in one step.`,
		Args: onlyCommands,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, add := range []func(*command) *cobra.Command{
		newStrategyApplyCmd, newStrategyListCmd, newStrategyShowCmd, newStrategyDeleteCmd, newStrategyDefaultCmd, newStrategyValidateCmd,
	} {
		cmd.AddCommand(add(c))
	}
	return cmd
}

// readStrategies reads the strategies of the files, folders and "-" that -f
// names. Every problem is reported; two of one name are one.
func (c *command) readStrategies(paths []string) ([]rollout.Strategy, error) {
	files, err := c.read(paths)
	if err != nil {
		return nil, err
	}
	var all []rollout.Strategy
	var problems route.Problems
	from := map[string]string{}
	for _, f := range files {
		some, wrong := strategyfile.Read(f.Name, f.Data)
		for _, p := range wrong {
			problems = append(problems, placed(p))
		}
		for _, st := range some {
			if other, ok := from[st.Name]; ok {
				problems = append(problems, route.Problem{
					Place: route.Place{File: f.Name}, Field: "strategy",
					Message: fmt.Sprintf("there is another strategy %s in %s", st.Name, other), Hint: "give one of them another name",
				})
			}
			from[st.Name] = f.Name
		}
		all = append(all, some...)
	}
	if err := problems.Err(); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fail(ExitInvalid, errors.New("the files hold no strategy"), "a strategy file has apiVersion: routerd/v1 and strategy: NAME")
	}
	return all, nil
}

func newStrategyApplyCmd(c *command) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "apply -f PATH…",
		Short: "Store strategies with the fleet",
		Long: `Store the strategies of files with the fleet, each in place of its namesake.
Rollouts under way go on by the plan that they began with.`,
		Example: `  routectl strategy apply -f careful.yaml
  routectl strategy show canary | sed 's/^strategy: .*/strategy: mine/' | routectl strategy apply -f -`,
		RunE: func(cmd *cobra.Command, more []string) error {
			all, err := c.readStrategies(slices.Concat(files, more))
			if err != nil {
				return err
			}
			for _, st := range all {
				if _, ok := rollout.Builtin(st.Name); ok {
					return fail(ExitUsage, fmt.Errorf("strategy %s is built in", st.Name), "give yours another name; routectl strategy default NAME makes it the fleet's default")
				}
			}
			return c.withStore(func(s *store.Store) error {
				names := []string{}
				for _, st := range all {
					if err := s.PutStrategy(cmd.Context(), st, c.env.author()); err != nil {
						return err
					}
					names = append(names, st.Name)
				}
				return c.print(names, func(w *table) {
					for _, n := range names {
						w.line("strategy %s is stored; routectl publish --strategy %s plays it", n, n)
					}
				})
			})
		},
	}
	takeFiles(cmd, &files, "strategy file, folder, or - for standard input; more may follow it, or another -f")
	return cmd
}

func newStrategyValidateCmd(c *command) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "validate -f PATH…",
		Short: "Check strategy files, without etcd",
		Long: `Check strategy files, without etcd. Every problem is reported, with file, line
and field. routectl rollout simulate -f plays one.`,
		Example: `  routectl strategy validate -f strategies/`,
		RunE: func(_ *cobra.Command, more []string) error {
			all, err := c.readStrategies(slices.Concat(files, more))
			if err != nil {
				return err
			}
			names := []string{}
			for _, st := range all {
				names = append(names, st.Name)
			}
			return c.print(names, func(w *table) {
				for _, st := range all {
					w.line("valid: %s: %s, %s", st.Name, plural(len(st.Waves), "wave"), plural(countSteps(&st), "step"))
				}
			})
		},
	}
	takeFiles(cmd, &files, "strategy file, folder, or - for standard input; more may follow it, or another -f")
	return cmd
}

func countSteps(st *rollout.Strategy) int {
	n := 0
	for _, w := range st.Waves {
		n += len(w.Steps)
	}
	return n
}

// findStrategy looks for a strategy among the fleet's own and the built-in ones.
func findStrategy(own map[string]rollout.Strategy, name string) (st rollout.Strategy, builtin bool, err error) {
	if st, ok := own[name]; ok {
		return st, false, nil
	}
	if st, ok := rollout.Builtin(name); ok {
		return st, true, nil
	}
	return st, false, fail(ExitUsage, fmt.Errorf("there is no strategy %q", name), "routectl strategy list shows those that there are; routectl strategy apply adds one")
}

// strategyOf names the strategy that an intent would be played by.
func strategyOf(v *rollout.View, i *rollout.Intent) string {
	return cmp.Or(i.Strategy, v.Fleet.Settings.Strategy, rollout.AllAtOnce)
}

// checkPlan looks up the strategy that an intent would be played by, and
// refuses early what the controller would refuse: an unknown one, and a second
// rollout over groups of one that has steps. With a plan, the strategy says how
// long preparing may take.
func checkPlan(v *rollout.View, i *rollout.Intent) error {
	name := strategyOf(v, i)
	if _, _, err := findStrategy(v.Strategies, name); err != nil {
		return err
	}
	if name != rollout.AllAtOnce {
		i.Timeout = 0
	}
	for _, r := range underWay(v) {
		if r.Plan == nil || i.Supersede || !overlap(v, &r, i.Groups) {
			continue
		}
		return fail(ExitConflict, fmt.Errorf("rollout %s moves the same groups to revision %d by strategy %s: %s", r.ID, r.To.Number, r.Plan.Name, cmp.Or(placeText(&r), string(r.Phase))),
			"routectl rollout status shows it; routectl rollout promote has it go on, --supersede ends it for this one, routectl rollout abort takes it back")
	}
	return nil
}

// overlap tells whether a rollout moves one of these groups; none stands for all.
func overlap(v *rollout.View, r *rollout.Rollout, groups []string) bool {
	if len(groups) == 0 {
		return true
	}
	mine := r.Scope(v.Groups)
	for _, g := range groups {
		for _, m := range mine {
			if g == m {
				return true
			}
		}
	}
	return false
}

// completeStrategies offers every strategy's name, for one argument or a flag.
func (c *command) completeStrategies(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	out, directive := c.offer(cmd, func(ctx context.Context, s *store.Store) (out []string, err error) {
		own, err := s.Strategies(ctx)
		for _, name := range sorted(own) {
			out = append(out, name+"\t"+own[name].Description)
		}
		return out, err
	})
	if directive == cobra.ShellCompDirectiveError {
		directive = cobra.ShellCompDirectiveNoFileComp // the built-in ones need no etcd
	}
	for _, name := range rollout.BuiltinNames() {
		st, _ := rollout.Builtin(name)
		out = append(out, name+"\t"+st.Description)
	}
	return out, directive
}

// placed is a problem of a strategy file in the form of those of route files.
func placed(p strategyfile.Problem) route.Problem {
	return route.Problem{
		Place: route.Place{File: p.File, Line: p.Line, Column: p.Column}, Field: p.Field, Message: p.Message, Hint: p.Hint,
	}
}
