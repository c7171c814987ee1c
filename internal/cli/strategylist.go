package cli

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/strategyfile"
	"routerd.dev/internal/yamlfile"
)

// listedStrategy is a strategy as `strategy list -o json` gives it.
type listedStrategy struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	Builtin     bool   `json:"builtin"`
	Default     bool   `json:"default"`
	FirstUse    bool   `json:"firstUse"`
	Waves       int    `json:"waves"`
	Steps       int    `json:"steps"`
}

func newStrategyListCmd(c *command) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the strategies, built in and stored",
		Long: `List the strategies: those that are built in, then those that are stored with
the fleet.`,
		Example: `  routectl strategy list`,
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withStore(func(s *store.Store) error {
				fleet, err := s.Fleet(cmd.Context())
				if err != nil {
					return err
				}
				own, err := s.Strategies(cmd.Context())
				if err != nil {
					return err
				}
				list := listStrategies(fleet.Settings, own)
				return c.print(list, func(w *table) {
					w.row("STRATEGY", "WAVES", "STEPS", "", "DESCRIPTION")
					for _, st := range list {
						w.row(st.Name, st.Waves, st.Steps, st.marks(), st.Description)
					}
				})
			})
		},
	}
}

func listStrategies(set rollout.Settings, own map[string]rollout.Strategy) []listedStrategy {
	list := []listedStrategy{}
	add := func(st rollout.Strategy, builtin bool) {
		standard := set.Strategy
		if standard == "" {
			standard = rollout.AllAtOnce
		}
		list = append(list, listedStrategy{
			Name: st.Name, Description: st.Description, Builtin: builtin, Default: st.Name == standard, FirstUse: st.Name == set.FirstUse,
			Waves: len(st.Waves), Steps: countSteps(&st),
		})
	}
	for _, name := range rollout.BuiltinNames() {
		if st, ok := rollout.Builtin(name); ok {
			add(st, true)
		}
	}
	for _, name := range sorted(own) {
		add(own[name], false)
	}
	return list
}

func (st listedStrategy) marks() string {
	text := ""
	add := func(on bool, word string) {
		if on && text != "" {
			text += ", "
		}
		if on {
			text += word
		}
	}
	add(st.Builtin, "built in")
	add(st.Default, "default")
	add(st.FirstUse, "first use")
	return orDash(text)
}

func newStrategyShowCmd(c *command) *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show a strategy, as a file that apply reads",
		Long: `Show a strategy, as a file that apply reads: a built-in one is a good beginning
for one's own.`,
		Example: `  routectl strategy show canary
  routectl strategy show canary > mine.yaml`,
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: c.completeStrategies,
		RunE: func(cmd *cobra.Command, args []string) error {
			if st, ok := rollout.Builtin(args[0]); ok {
				return c.showStrategy(st, true) // without etcd
			}
			return c.withStore(func(s *store.Store) error {
				own, err := s.Strategies(cmd.Context())
				if err != nil {
					return err
				}
				st, builtin, err := findStrategy(own, args[0])
				if err != nil {
					return err
				}
				return c.showStrategy(st, builtin)
			})
		},
	}
}

func (c *command) showStrategy(st rollout.Strategy, builtin bool) error {
	file := strategyfile.Format(st)
	if c.output == "json" {
		docs, problems := yamlfile.Parse(st.Name, file)
		if err := problems.Err(); err != nil || len(docs) != 1 {
			return fmt.Errorf("show strategy %s: %w", st.Name, errors.Join(err, errors.New("its file cannot be read back")))
		}
		return c.print(docs[0].Root, nil)
	}
	if builtin {
		file = slices.Concat([]byte("# Built in: to change it, give it another name and apply it.\n"), file)
	}
	return c.write(file)
}

func newStrategyDeleteCmd(c *command) *cobra.Command {
	return &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a stored strategy",
		Long: `Delete a strategy that is stored with the fleet. Rollouts under way go on by the
plan that they began with. The fleet's default is kept: choose another first.`,
		Example:           `  routectl strategy delete careful`,
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: c.completeStrategies,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if _, ok := rollout.Builtin(name); ok {
				return fail(ExitUsage, fmt.Errorf("strategy %s is built in", name), "routectl strategy default NAME makes another the fleet's default")
			}
			return c.withStore(func(s *store.Store) error {
				err := s.DeleteStrategy(cmd.Context(), name, c.env.author())
				switch {
				case errors.Is(err, store.ErrNotFound):
					return fail(ExitUsage, fmt.Errorf("there is no strategy %q", name), "routectl strategy list shows those that there are")
				case errors.Is(err, store.ErrConflict):
					return fail(ExitConflict, err, "routectl strategy default NAME chooses another; routectl settings firstUse= ends that rule")
				case err != nil:
					return err
				}
				return c.print([]string{name}, func(w *table) { w.line("strategy %s is deleted", name) })
			})
		},
	}
}

func newStrategyDefaultCmd(c *command) *cobra.Command {
	var firstUse string
	cmd := &cobra.Command{
		Use:   "default [NAME] [--first-use NAME]",
		Short: "Choose what rollouts are played by that name no strategy",
		Long: `Choose the strategy that publish, switch and rollout start play when they name
none. --first-use names one that is played instead of a quicker one where a
revision needs something of the instances that nothing in its group needed
before; an empty name ends that rule.`,
		Example: `  routectl strategy default canary
  routectl strategy default all-at-once --first-use canary`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: c.completeStrategies,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && !cmd.Flags().Changed("first-use") {
				return fail(ExitUsage, errors.New("no strategy is named"), "routectl strategy list shows the default; "+cmd.UseLine())
			}
			return c.withStore(func(s *store.Store) error {
				ctx := cmd.Context()
				own, err := s.Strategies(ctx)
				if err != nil {
					return err
				}
				for _, name := range append(slices.Clone(args), firstUse) {
					if _, _, err := findStrategy(own, name); err != nil && name != "" {
						return err
					}
				}
				err = s.SetSettings(ctx, c.env.author(), func(set *rollout.Settings) error {
					if len(args) > 0 {
						set.Strategy = args[0]
					}
					if cmd.Flags().Changed("first-use") {
						set.FirstUse = firstUse
					}
					return nil
				})
				if err != nil {
					return err
				}
				fleet, err := s.Fleet(ctx)
				if err != nil {
					return err
				}
				return c.print(settingsOf(fleet.Settings), func(w *table) { showSettings(w, fleet.Settings) })
			})
		},
	}
	cmd.Flags().StringVar(&firstUse, "first-use", "", "played at the first use of a feature in a group")
	_ = cmd.RegisterFlagCompletionFunc("first-use", c.completeStrategies)
	return cmd
}
