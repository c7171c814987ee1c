package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// rolloutStatus is what `rollout status -o json` gives. The rollout is the
// record itself; Groups says what its groups serve now, while it is under way.
type rolloutStatus struct {
	Rollout rollout.Rollout `json:"rollout"`
	Step    string          `json:"step,omitempty"`   // where in its plan it is
	WayOut  string          `json:"wayOut,omitempty"` // what ends its waiting for an operator
	Groups  []rolloutGroup  `json:"groups"`
}

// rolloutGroup is a group that a rollout moves.
type rolloutGroup struct {
	Group     string             `json:"group"`
	Epoch     int64              `json:"epoch"`
	Origin    version.Ref        `json:"origin,omitzero"` // what was stable when it began
	Stable    version.Ref        `json:"stable"`
	Candidate *rollout.Candidate `json:"candidate,omitempty"`
	Instances []rolloutInstance  `json:"instances"`
}

// rolloutInstance is an instance as it says itself.
type rolloutInstance struct {
	Instance string           `json:"instance"`
	Canary   bool             `json:"canary,omitempty"` // it serves nothing but the candidate
	Evicted  bool             `json:"evicted,omitempty"`
	Serving  *rollout.Serving `json:"serving"`
}

func newRolloutStatusCmd(c *command) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "status [ROLLOUT]",
		Short: "Say where a rollout is, what it rests on and what it waits for",
		Long: `Say where a rollout is: its plan with the present step, what each of its groups
serves, the newest evidence, why it is held and how it goes on, and how it went
back. Without ROLLOUT it is the newest under way, else the newest that ended.

With --watch it is said again at each change, until the rollout has ended. With
-o json or yaml, one document then follows the other.`,
		Example: `  routectl rollout status
  routectl rollout status --watch
  routectl rollout status -o json | jq .rollout.evidence`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: c.completeEnded,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withStore(func(s *store.Store) error {
				ctx := cmd.Context()
				r, others, err := shown(ctx, s, args)
				if err != nil {
					return err
				}
				if len(others) > 0 {
					c.say("also under way: %s", ids(others))
				}
				if watch {
					return c.watchRollout(ctx, s, r.ID)
				}
				st, err := readRollout(ctx, s, r.ID)
				if err != nil {
					return err
				}
				return c.print(st, func(w *table) { st.show(w, c.env.Now()) })
			})
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "say it again when something changes, until the rollout has ended")
	return cmd
}

// watchRollout prints a rollout's status whenever it says something new, until
// the rollout has ended.
func (c *command) watchRollout(ctx context.Context, s *store.Store, id string) error {
	var last string
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	err := s.Watch(ctx, store.WatchOptions{Reread: time.Second}, func(wake store.Wake) {
		if wake.Err != nil {
			c.say("etcd does not answer since %s: %v", wake.StaleSince.Local().Format(time.TimeOnly), wake.Err)
			return
		}
		st, err := readRollout(ctx, s, id)
		if err != nil {
			if ctx.Err() == nil {
				c.say("%v", err)
			}
			return
		}
		if key := st.fingerprint(); key != last {
			if last != "" && c.output == "table" {
				c.gap()
			}
			last = key
			if err := c.print(st, func(w *table) { st.show(w, c.env.Now()) }); err != nil {
				stop(err)
			}
		}
		if st.Rollout.Phase.Final() {
			stop(errOver)
		}
	})
	switch cause := context.Cause(ctx); {
	case cause == errOver, cause == context.Canceled:
		return nil // it has ended, or the operator has seen enough
	case cause != nil:
		return cause
	}
	return err
}

// errOver ends a watch that has nothing more to show.
var errOver = fmt.Errorf("the rollout has ended")

// gap parts one table of a watch from the next.
func (c *command) gap() { fmt.Fprintf(c.env.Stdout, "\n%s\n", c.env.Now().Format(time.TimeOnly)) }

func readRollout(ctx context.Context, s *store.Store, id string) (rolloutStatus, error) {
	// The view first: a rollout that ends in between is then shown as ended.
	v, err := s.View(ctx)
	if err != nil {
		return rolloutStatus{}, err
	}
	r, err := named(ctx, s, id)
	if err != nil {
		return rolloutStatus{}, err
	}
	st := rolloutStatus{Rollout: r, WayOut: wayOut(&r), Groups: []rolloutGroup{}}
	if r.Phase.Final() {
		return st, nil
	}
	st.Step = placeText(&r)
	for _, g := range r.Scope(v.Groups) {
		a := v.Groups[g]
		rg := rolloutGroup{Group: g, Epoch: a.Epoch, Origin: r.Origin[g], Stable: a.Stable, Candidate: a.Candidate, Instances: []rolloutInstance{}}
		for _, name := range members(v, g) {
			rg.Instances = append(rg.Instances, rolloutInstance{
				Instance: name, Serving: v.Reports[name].Serving, Evicted: v.Ready[g][name].Evicted || v.Reports[name].Evicted,
				Canary: a.Candidate != nil && slices.Contains(a.Candidate.Instances, name),
			})
		}
		st.Groups = append(st.Groups, rg)
	}
	return st, nil
}

// fingerprint is what must change before a watcher is shown the status again.
// Counts grow all the time: what an analysis concludes from them counts.
func (st rolloutStatus) fingerprint() string {
	r := &st.Rollout
	var b strings.Builder
	fmt.Fprintln(&b, r.Phase, r.Why, r.Cursor, r.Hold)
	if r.Return != nil {
		fmt.Fprintln(&b, r.Return.Why, r.Return.Committed, r.Return.Over)
	}
	if r.Evidence != nil {
		fmt.Fprintln(&b, r.Evidence.Verdict)
		for _, f := range r.Evidence.Findings {
			fmt.Fprintln(&b, f.Group, f.Route, f.Metric, f.Verdict)
		}
	}
	for _, g := range st.Groups {
		fmt.Fprintln(&b, g.Group, g.Epoch)
		for _, i := range g.Instances {
			fmt.Fprintln(&b, i.Instance, servingText(i.Serving), i.Evicted)
		}
	}
	return b.String()
}

func (st rolloutStatus) show(w *table, now time.Time) {
	r := &st.Rollout
	ended := ""
	if !r.Ended.IsZero() {
		ended = ", ended " + r.Ended.Local().Format(time.DateTime)
	}
	w.line("rollout %s: %s of revision %s by %s: %s", r.ID, r.Kind, goalText(r), r.By, phaseOf(r))
	w.line("strategy %s, started %s%s", strategyName(r), r.Started.Local().Format(time.DateTime), ended)
	if r.Message != "" {
		w.line("message  %s", r.Message)
	}
	if r.Why != "" && r.Hold == nil && phaseOf(r) != wantsApproval && (r.Return == nil || r.Return.Why != r.Why) {
		w.line("why      %s", r.Why)
	}
	if r.Note != "" {
		w.line("note     %s", r.Note)
	}
	switch {
	case phaseOf(r) == wantsApproval:
		w.line("waits    for approval, for %s", howLong(r.Cursor.Since, now))
	case r.Hold != nil:
		w.line("held     by %s for %s: %s", r.Hold.By, howLong(r.Hold.Since, now), r.Hold.Why)
	}
	if st.WayOut != "" {
		w.line("way out  %s", st.WayOut)
	}
	if r.Return != nil {
		w.line("")
		showReturn(w, r.Return)
	}
	if r.Plan != nil {
		w.line("")
		showPlan(w, r, now)
	}
	if len(st.Groups) > 0 {
		w.line("")
		showGroups(w, st.Groups)
	}
	if r.Evidence != nil {
		w.line("")
		evidenceTable(w, r.Evidence)
	}
}

// showReturn tells how a rollout went back, and how long that took.
func showReturn(w *table, ret *rollout.Return) {
	w.line("went back: %s", ret.Why)
	w.line("  decided by %s at %s", ret.By, ret.Decided.Local().Format("2006-01-02 15:04:05.000"))
	if !ret.Committed.IsZero() {
		w.line("  committed after %s", howLong(ret.Decided, ret.Committed))
	}
	if !ret.Over.IsZero() {
		w.line("  served by every instance after %s", howLong(ret.Decided, ret.Over))
	}
	for _, g := range sorted(ret.To) {
		w.line("  %s is at revision %d", g, ret.To[g])
	}
	for _, f := range failures(ret.Evidence) {
		w.line("  %s", f)
	}
}

// showPlan lists the steps; → stands at the present one.
func showPlan(w *table, r *rollout.Rollout, now time.Time) {
	for i, wave := range r.Plan.Waves {
		w.line("wave %d: %s", i+1, waveText(wave))
		for j, step := range wave.Steps {
			here := i == r.Cursor.Wave && j == r.Cursor.Step
			mark, note := " ", ""
			switch {
			case r.Phase == rollout.PhaseDone, i < r.Cursor.Wave, i == r.Cursor.Wave && j < r.Cursor.Step:
				mark = "✓"
			case here:
				mark = "→"
				if !r.Cursor.Since.IsZero() && !r.Phase.Final() {
					note = ", for " + howLong(r.Cursor.Since, now)
				}
			}
			w.line("  %s %s%s", mark, stepText(step), note)
		}
	}
}

func showGroups(w *table, groups []rolloutGroup) {
	w.row("GROUP", "EPOCH", "STABLE", "CANDIDATE", "SHARE", "CANARY INSTANCES", "SERVING")
	for _, g := range groups {
		var canaries []string
		serving := map[string]int{}
		for _, i := range g.Instances {
			if i.Canary {
				canaries = append(canaries, i.Instance)
			}
			serving[servedRevision(i.Serving)]++
		}
		var says []string
		for _, rev := range sorted(serving) {
			says = append(says, plural(serving[rev], "instance")+" "+rev)
		}
		cand, share := "-", "-"
		if g.Candidate != nil {
			cand, share = dash(g.Candidate.Number), candidateShare(g.Candidate)
		}
		w.row(g.Group, g.Epoch, dash(g.Stable.Number), cand, share, orDash(strings.Join(canaries, ",")), orDash(strings.Join(says, ", ")))
	}
}

func servedRevision(s *rollout.Serving) string {
	if s == nil {
		return "nothing"
	}
	return "revision " + itoa(s.Revision)
}

// candidateShare says which requests a candidate has, besides those that
// reach its own instances.
func candidateShare(cand *rollout.Candidate) string {
	var parts []string
	if cand.Permyriad > 0 || len(cand.Instances) == 0 && cand.Match == nil {
		parts = append(parts, shareText(cand.Permyriad))
	}
	if cand.Match != nil {
		parts = append(parts, matchText(cand.Match))
	}
	return orDash(strings.Join(parts, ", "))
}
