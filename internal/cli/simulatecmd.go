package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/simulate"
	"routerd.dev/internal/store"
)

// simulating is the flags of rollout simulate.
type simulating struct {
	strategy string
	files    []string
	groups   []string
	faults   []string
	traffic  []string
	routes   []string
	errors   float64
	latency  float64
	revert   time.Duration
	until    time.Duration
	seed     uint64
	known    bool
	code     bool
}

func newSimulateCmd(c *command) *cobra.Command {
	var sim simulating
	kinds := make([]string, 0, len(simulate.FaultKinds()))
	for _, k := range simulate.FaultKinds() {
		kinds = append(kinds, string(k))
	}
	cmd := &cobra.Command{
		Use:   "simulate --strategy NAME | -f PATH…",
		Short: "Play a strategy against a described fleet and faults",
		Long: `Play a strategy against a described fleet and faults, and print what happens. A
fleet that serves revision 2 is asked to switch to revision 3: the decisions
are those of the controller, by the same code, in a time of their own. Nothing
is asked of etcd, unless for a strategy that is stored there.

A fault is written as words: at=TIME kind=KIND, and what the kind needs of
instance=NAME, group=NAME, for=TIME, rate=PART, factor=NUMBER, route=NAME and
full=true. Instances are named as canary-1. The kinds:

  ` + strings.ReplaceAll(strings.Join(kinds, ", "), "controller-die", "\n  controller-die") + `

The same flags give the same transcript; --seed changes what is left to chance.
It ends with 0 however the rollout ends; with --exit-code, 1 stands for one
that was not done, and 5 for one that was not over.`,
		Example: `  routectl rollout simulate --strategy canary
  routectl rollout simulate --strategy canary --errors 0.03 --traffic 500
  routectl rollout simulate -f mine.yaml -g main=4 --fault 'at=30s kind=die instance=main-1'
  routectl rollout simulate --strategy linear --traffic 0 --until 10m -o json`,
		RunE: func(cmd *cobra.Command, more []string) error {
			sim.files = slices.Concat(sim.files, more)
			s, err := sim.scenario()
			if err != nil {
				return err
			}
			if s.Plan, err = c.planToPlay(cmd, sim); err != nil {
				return err
			}
			c.doing("simulating")
			return c.showTranscript(simulate.Run(s), sim.code)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&sim.strategy, "strategy", "", "the strategy to play: built in, stored, or one of the files")
	takeFiles(cmd, &sim.files, "strategy file, folder, or - for standard input; more may follow it, or another -f")
	fs.StringArrayVarP(&sim.groups, "group", "g", []string{"canary=1", "main=2"}, "a group and how many instances it has; may be repeated")
	fs.StringArrayVar(&sim.faults, "fault", nil, "what goes wrong, or what an operator does; may be repeated")
	fs.StringArrayVar(&sim.traffic, "traffic", []string{"100"}, "requests a second of every group, or GROUP=N of one; may be repeated")
	fs.StringArrayVar(&sim.routes, "route", []string{"simulated/changed=0.1"}, "a route that the new revision changes, and its part of the requests; may be repeated")
	fs.Float64Var(&sim.errors, "errors", 0, "the part of requests that the new revision fails on the changed routes, 0 to 1")
	fs.Float64Var(&sim.latency, "latency", 1, "how many times longer the new revision takes on the changed routes")
	fs.DurationVar(&sim.revert, "revert-after", 0, "go back this long after the last commit, unless it is approved")
	fs.DurationVar(&sim.until, "until", time.Hour, "end the simulation after this time at the latest")
	fs.Uint64Var(&sim.seed, "seed", 0, "of the traffic's chance")
	fs.BoolVar(&sim.known, "known", false, "the revision was served before: no instance prepares it first")
	fs.BoolVar(&sim.code, "exit-code", false, "end with 1 when the rollout was not done, with 5 when it was not over")
	_ = cmd.RegisterFlagCompletionFunc("strategy", c.completeStrategies)
	return cmd
}

// scenario puts the flags into a scenario without its plan.
func (sim *simulating) scenario() (s simulate.Scenario, err error) {
	bad := func(format string, args ...any) (simulate.Scenario, error) {
		return s, fail(ExitUsage, fmt.Errorf(format, args...), "routectl rollout simulate --help has examples")
	}
	s = simulate.Scenario{Groups: map[string]int{}, Revert: sim.revert, Until: sim.until, Seed: sim.seed, Known: sim.known}
	for _, g := range sim.groups {
		name, n, ok := strings.Cut(g, "=")
		count, err := strconv.Atoi(n)
		if !ok || err != nil {
			return bad("--group %s: want NAME=INSTANCES, as main=4", g)
		}
		s.Groups[name] = count
	}
	for _, text := range sim.faults {
		f, err := simulate.ParseFault(text)
		if err != nil {
			return bad("--fault: %w", err)
		}
		s.Faults = append(s.Faults, f)
	}
	for _, text := range sim.traffic {
		group, n, one := strings.Cut(text, "=")
		if !one {
			n = text
		}
		rate, err := strconv.ParseFloat(n, 64)
		if _, known := s.Groups[group]; err != nil || !(rate >= 0) || one && !known {
			return bad("--traffic %s: want requests a second, or GROUP=N of a group that there is", text)
		}
		if rate == 0 {
			rate = -1 // zero stands for the default there
		}
		if !one {
			s.Traffic.Rate = rate
			continue
		}
		if s.Traffic.Groups == nil {
			s.Traffic.Groups = map[string]float64{}
		}
		s.Traffic.Groups[group] = rate
	}
	if !(sim.errors >= 0 && sim.errors <= 1) || !(sim.latency > 0) || sim.revert < 0 || sim.until <= 0 {
		return bad("--errors is a part from 0 to 1; --latency, --until and --revert-after are above 0")
	}
	for _, text := range sim.routes {
		name, part, ok := strings.Cut(text, "=")
		share, err := strconv.ParseFloat(part, 64)
		if !ok || err != nil || !(share >= 0 && share <= 1) {
			return bad("--route %s: want MODULE/ROUTE=PART, as shop/order=0.1", text)
		}
		s.Traffic.Routes = append(s.Traffic.Routes, simulate.RouteTraffic{Name: name, Share: share, Errors: sim.errors, Latency: sim.latency})
	}
	return s, nil
}

// planToPlay finds the strategy that is named: in the files, if there are any,
// else built in, else in etcd.
func (c *command) planToPlay(cmd *cobra.Command, sim simulating) (rollout.Strategy, error) {
	if len(sim.files) > 0 {
		all, err := c.readStrategies(sim.files)
		if err != nil {
			return rollout.Strategy{}, err
		}
		names := make([]string, len(all))
		for i, st := range all {
			if names[i] = st.Name; st.Name == sim.strategy || sim.strategy == "" && len(all) == 1 {
				return st, nil
			}
		}
		if sim.strategy == "" {
			return rollout.Strategy{}, fail(ExitUsage, fmt.Errorf("the files hold strategies %s", strings.Join(names, ", ")), "name one with --strategy")
		}
		return rollout.Strategy{}, fail(ExitUsage, fmt.Errorf("the files hold no strategy %q, but %s", sim.strategy, strings.Join(names, ", ")), "")
	}
	if sim.strategy == "" {
		return rollout.Strategy{}, fail(ExitUsage, errors.New("no strategy is named"), "--strategy NAME or -f FILE; routectl strategy list shows those that there are")
	}
	if st, ok := rollout.Builtin(sim.strategy); ok {
		return st, nil
	}
	var st rollout.Strategy
	err := c.withStore(func(s *store.Store) error {
		own, err := s.Strategies(cmd.Context())
		if err != nil {
			return err
		}
		st, _, err = findStrategy(own, sim.strategy)
		return err
	})
	return st, err
}

func (c *command) showTranscript(t simulate.Transcript, code bool) error {
	if t.Error != "" {
		return fail(ExitUsage, errors.New(t.Error), "routectl rollout simulate --help has examples")
	}
	var err error
	if c.output == "table" {
		err = c.write([]byte(t.String()))
	} else {
		err = c.print(t, nil)
	}
	switch {
	case err != nil:
		return err
	case len(t.Broken) > 0:
		return fail(ExitFailed, fmt.Errorf("%s did not hold: %s", plural(len(t.Broken), "law"), strings.Join(t.Broken, "; ")), "this is a defect of routerd: please report it with the command line")
	case code && !t.Over:
		return fail(ExitNotReached, errQuiet, "")
	case code && t.Rollout.Phase != rollout.PhaseDone:
		return fail(ExitFailed, errQuiet, "")
	}
	return nil
}
