package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/yamlfile"
)

func newSettingsCmd(c *command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "settings [KEY=VALUE…]",
		Short: "Show or change the fleet's settings",
		Long: `Show the fleet's settings, or change those that are named. An empty value gives
back the default. All are changed in one transaction, or none.

  prepareTimeout  how long preparing may take before somebody is late; 2m
  lead            from a commit to the instant that it names; as the fleet's size needs, 100ms at most
  historyLimit    how many of the newest revisions are kept: the controller removes the others by
                  itself; without it routectl gc does when it is run, and keeps 50
  maxUnready      how many of a group may be out of traffic at once, as a number or a part,
                  because they cannot serve what is committed; 1, and never all
  strategy        played by rollouts that name none; all-at-once
  firstUse        played instead of a quicker one where a revision needs something of the
                  instances that nothing in its group needed before; none`,
		Example: `  routectl settings
  routectl settings strategy=canary prepareTimeout=5m
  routectl settings strategy=`,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var out []string
			for _, k := range settingKeys() {
				out = append(out, k+"=")
			}
			return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			change := func(st *rollout.Settings) error {
				for _, arg := range args {
					if err := setSetting(st, arg); err != nil {
						return err
					}
				}
				return nil
			}
			if err := change(&rollout.Settings{}); err != nil { // before anything is asked of etcd
				return err
			}
			return c.withStore(func(s *store.Store) error {
				ctx := cmd.Context()
				if len(args) > 0 {
					err := s.SetSettings(ctx, c.env.author(), change)
					if errors.Is(err, store.ErrNotFound) {
						return fail(ExitUsage, err, "routectl strategy list shows those that there are")
					} else if err != nil {
						return err
					}
				}
				fleet, err := s.Fleet(ctx)
				if err != nil {
					return err
				}
				return c.print(settingsOf(fleet.Settings), func(w *table) { showSettings(w, fleet.Settings) })
			})
		},
	}
	return cmd
}

// fleetSettings is what `settings -o json` gives: every key, zero where the
// default holds.
type fleetSettings struct {
	PrepareTimeout time.Duration `json:"prepareTimeout"`
	Lead           time.Duration `json:"lead"`
	HistoryLimit   int           `json:"historyLimit"`
	MaxUnready     string        `json:"maxUnready"`
	Strategy       string        `json:"strategy"`
	FirstUse       string        `json:"firstUse"`
}

func settingsOf(s rollout.Settings) fleetSettings {
	return fleetSettings{
		PrepareTimeout: s.PrepareTimeout, Lead: s.Lead, HistoryLimit: s.HistoryLimit, MaxUnready: string(s.MaxUnready),
		Strategy: s.Strategy, FirstUse: s.FirstUse,
	}
}

func showSettings(w *table, s rollout.Settings) {
	row := func(key, value string, set bool, def string) {
		if !set {
			value = def + " (default)"
		}
		w.row(key, value)
	}
	row("prepareTimeout", s.PrepareTimeout.String(), s.PrepareTimeout > 0, "2m0s")
	row("lead", s.Lead.String(), s.Lead > 0, "by the fleet's size")
	row("historyLimit", strconv.Itoa(s.HistoryLimit), s.HistoryLimit > 0, "50")
	row("maxUnready", string(s.MaxUnready), s.MaxUnready != "", "1")
	row("strategy", s.Strategy, s.Strategy != "", rollout.AllAtOnce)
	row("firstUse", s.FirstUse, s.FirstUse != "", "none")
}

func settingKeys() []string {
	return []string{"prepareTimeout", "lead", "historyLimit", "maxUnready", "strategy", "firstUse"}
}

// setSetting puts one KEY=VALUE into s.
func setSetting(s *rollout.Settings, arg string) error {
	key, value, ok := strings.Cut(arg, "=")
	if !ok {
		return fail(ExitUsage, fmt.Errorf("%q: want KEY=VALUE", arg), "the keys are "+strings.Join(settingKeys(), ", "))
	}
	var err error
	switch key {
	case "prepareTimeout":
		s.PrepareTimeout, err = settingDuration(value)
	case "lead":
		s.Lead, err = settingDuration(value)
		if err == nil && s.Lead > rollout.MaxLead {
			err = fmt.Errorf("want at most %v", rollout.MaxLead)
		}
	case "historyLimit":
		s.HistoryLimit = 0
		if value != "" {
			s.HistoryLimit, err = strconv.Atoi(value)
		}
		if err != nil || s.HistoryLimit < 0 {
			err = errors.New("want a number of revisions, 0 for the default")
		}
	case "maxUnready":
		s.MaxUnready = rollout.Quantity(value)
		_, err = s.MaxUnready.Of(1)
	case "strategy":
		s.Strategy = value
	case "firstUse":
		s.FirstUse = value
	default:
		hint := "the keys are " + strings.Join(settingKeys(), ", ")
		if near := yamlfile.Suggest(key, settingKeys()); near != "" {
			hint = "did you mean " + near + "? " + hint
		}
		return fail(ExitUsage, fmt.Errorf("there is no setting %q", key), hint)
	}
	if err != nil {
		return fail(ExitUsage, fmt.Errorf("%s=%s: %w", key, value, err), "")
	}
	return nil
}

func settingDuration(value string) (time.Duration, error) {
	if value == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 {
		return 0, errors.New("want a duration such as 90s or 2m")
	}
	return d, nil
}
