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

// fleetStatus is what `status -o json` gives. Instances say themselves what
// they serve (I12); groups say what was decided.
type fleetStatus struct {
	Fleet      string              `json:"fleet"`
	Target     version.Ref         `json:"target"`
	Committed  version.Ref         `json:"committed"`
	Controller string              `json:"controller"`
	Groups     []groupStatus       `json:"groups"`
	Instances  []instanceStatus    `json:"instances"`
	Rollouts   []rollout.Rollout   `json:"rollouts"` // those under way; routectl rollout status tells more
	Condemned  []rollout.Condemned `json:"condemned"`
	Broken     []store.Broken      `json:"broken"` // records that cannot be read
}

type groupStatus struct {
	Group      string            `json:"group"`
	Epoch      int64             `json:"epoch"`
	Stable     version.Ref       `json:"stable"`
	Back       []version.Ref     `json:"back"` // where a rollback goes, newest first
	Registered int               `json:"registered"`
	Ready      int               `json:"ready"` // of those, how many hold the set in force
	Preparing  bool              `json:"preparing"`
	Override   *rollout.Override `json:"override,omitempty"`

	// While a rollout tries another revision in the group: its share of the
	// requests, the instances that serve nothing else, the testers.
	Candidate *rollout.Candidate `json:"candidate,omitempty"`
}

type instanceStatus struct {
	Instance    string            `json:"instance"`
	Group       string            `json:"group"`
	Address     string            `json:"address,omitempty"`
	Version     string            `json:"version,omitempty"`
	Serving     *rollout.Serving  `json:"serving"` // null while it serves nothing
	Holds       []version.Digest  `json:"holds"`
	Stale       string            `json:"stale"` // why what it knows may be old; empty when it is fresh
	Frozen      string            `json:"frozen,omitempty"`
	Refused     *rollout.Refusal  `json:"refused,omitempty"`
	Preparing   *rollout.Progress `json:"preparing,omitempty"`
	Quarantined []version.Digest  `json:"quarantined,omitempty"`
	Reported    time.Time         `json:"reported,omitzero"`
	SkewMicros  int64             `json:"skewMicros,omitempty"`
	Pinned      version.Digest    `json:"pinned,omitzero"`   // an operator made it serve this, whatever was committed
	Evicted     bool              `json:"evicted,omitempty"` // out of traffic: too slow for a commit, or cannot serve what is committed
	Lacks       []rollout.Lack    `json:"lacks,omitempty"`   // what it cannot have of the set in force
}

func newStatusCmd(c *command) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say who serves what",
		Long: `Say who serves what: what each group was assigned, and what each instance says
it serves. An instance that is behind, stale or frozen shows why.

With --watch and -o json or yaml, one document follows the other.`,
		Example: `  routectl status
  routectl status --watch
  routectl status -o json | jq '.instances[] | select(.stale != "")'`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withStore(func(s *store.Store) error {
				if !watch {
					return c.printStatus(cmd.Context(), s)
				}
				return c.watchStatus(cmd.Context(), s)
			})
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "print again when something changes, until interrupted")
	return cmd
}

func (c *command) printStatus(ctx context.Context, s *store.Store) error {
	st, err := readStatus(ctx, s)
	if err != nil {
		return err
	}
	return c.print(st, st.show)
}

// watchStatus prints the status whenever it says something new. Reports wake
// nobody, so it also looks once a second.
func (c *command) watchStatus(ctx context.Context, s *store.Store) error {
	var last string
	err := s.Watch(ctx, store.WatchOptions{Reread: time.Second}, func(wake store.Wake) {
		if wake.Err != nil {
			c.say("etcd does not answer since %s: %v", wake.StaleSince.Local().Format(time.TimeOnly), wake.Err)
			return
		}
		st, err := readStatus(ctx, s)
		if err != nil {
			c.say("%v", err)
			return
		}
		if key := st.fingerprint(); key != last {
			if last != "" && c.output == "table" {
				c.gap()
			}
			last = key
			if err := c.print(st, st.show); err != nil {
				c.say("%v", err)
			}
		}
	})
	if ctx.Err() != nil {
		return nil // the operator has seen enough
	}
	return err
}

func readStatus(ctx context.Context, s *store.Store) (fleetStatus, error) {
	v, broken, err := s.ViewBroken(ctx)
	if err != nil {
		return fleetStatus{}, err
	}
	leader, err := s.Leader(ctx)
	if err != nil {
		return fleetStatus{}, err
	}
	st := fleetStatus{
		Fleet: v.Fleet.ID, Target: v.Fleet.Target, Committed: v.Fleet.Committed, Controller: leader,
		Groups: []groupStatus{}, Instances: []instanceStatus{}, Rollouts: v.Rollouts, Condemned: []rollout.Condemned{}, Broken: broken,
	}
	for _, g := range sorted(v.Groups) {
		a := v.Groups[g]
		gs := groupStatus{Group: g, Epoch: a.Epoch, Stable: a.Stable, Back: a.Back, Registered: len(v.Ready[g]), Override: a.Override, Candidate: a.Candidate}
		var next rollout.Prepare
		next, gs.Preparing = v.Prepares[g]
		for _, r := range v.Ready[g] {
			// What is prepared includes what is served: who holds the one holds the other.
			if (r.Nonce == a.Nonce || gs.Preparing && r.Nonce == next.Nonce) && r.Whole() {
				gs.Ready++
			}
		}
		st.Groups = append(st.Groups, gs)
	}
	for _, name := range sorted(v.Instances) {
		i, r := v.Instances[name], v.Reports[name]
		st.Instances = append(st.Instances, instanceStatus{
			Instance: name, Group: i.Group, Address: i.Address, Version: i.Version,
			Serving: r.Serving, Holds: append([]version.Digest{}, r.Holds...), Stale: r.Stale, Frozen: r.Frozen, Refused: r.Refused,
			Preparing: r.Preparing, Quarantined: r.Quarantined, Reported: r.Time, SkewMicros: r.SkewMicros,
			Pinned: r.Pinned, Evicted: r.Evicted || v.Ready[i.Group][name].Evicted, Lacks: r.Lacks,
		})
	}
	slices.SortStableFunc(st.Instances, func(a, b instanceStatus) int { return strings.Compare(a.Group, b.Group) })
	for _, d := range v.Condemned {
		st.Condemned = append(st.Condemned, d)
	}
	slices.SortFunc(st.Condemned, func(a, b rollout.Condemned) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
	return st, nil
}

// fingerprint is what must change before a watcher is shown the status again:
// not when an instance last reported.
func (st fleetStatus) fingerprint() string {
	var b strings.Builder
	for _, i := range st.Instances {
		fmt.Fprintln(&b, i.Instance, i.Group, servingText(i.Serving), i.state())
	}
	for _, g := range st.Groups {
		fmt.Fprintln(&b, g.Group, g.Epoch, g.candidate(), g.Stable.Number, g.Registered, g.Ready, g.Preparing)
	}
	for _, r := range st.Rollouts {
		fmt.Fprintln(&b, r.ID, r.Phase, r.Why, placeText(&r), r.Hold)
	}
	fmt.Fprintln(&b, st.Target.Number, st.Committed.Number, st.Controller, len(st.Condemned), len(st.Broken))
	return b.String()
}

func (st fleetStatus) show(w *table) {
	controller := st.Controller
	if controller == "" {
		controller = "none elected"
	}
	w.line("fleet %s  target %s  committed %s  controller %s", st.Fleet, dash(st.Target.Number), dash(st.Committed.Number), controller)
	if len(st.Instances) == 0 {
		w.line("no instance is registered")
	}
	w.line("")
	head := []any{"GROUP", "EPOCH", "REVISION", "DIGEST", "READY", "BACK"}
	tried := slices.ContainsFunc(st.Groups, func(g groupStatus) bool { return g.Candidate != nil })
	if tried {
		head = append(head, "CANDIDATE")
	}
	w.row(head...)
	for _, g := range st.Groups {
		note := ""
		if g.Preparing {
			note = " (preparing)"
		}
		cells := []any{g.Group, g.Epoch, dash(g.Stable.Number), shortDigest(g.Stable.Digest), fmt.Sprintf("%d/%d%s", g.Ready, g.Registered, note), numbers(g.Back)}
		if tried {
			cells = append(cells, g.candidate())
		}
		w.row(cells...)
	}
	if len(st.Instances) > 0 {
		w.line("")
		w.row("INSTANCE", "GROUP", "REVISION", "EPOCH", "SINCE", "STATE")
	}
	shown, alike := fold(st.Instances)
	for _, i := range shown {
		rev, epoch, since := "-", "-", "-"
		if i.Serving != nil {
			rev, epoch, since = dash(i.Serving.Revision), itoa(i.Serving.Epoch), i.Serving.Since.Local().Format(time.TimeOnly)
		}
		w.row(i.Instance, i.Group, rev, epoch, since, i.state())
	}
	for _, a := range alike {
		w.line("… %d more in %s serve revision %s, epoch %d: ok (-o json names them)", a.more, a.group, dash(a.revision), a.epoch)
	}
	for _, r := range st.Rollouts {
		why := r.Why
		if r.Hold != nil || phaseOf(&r) == wantsApproval {
			why = "" // it stands below
		}
		w.line("\n%s of revision %s by %s: %s %s", r.Kind, dash(r.To.Number), r.By, phaseOf(&r), why)
		if place := placeText(&r); place != "" {
			w.line("  strategy %s, %s", strategyName(&r), place)
		}
		if r.Hold != nil && phaseOf(&r) != wantsApproval {
			w.line("  held by %s: %s", r.Hold.By, r.Hold.Why)
		}
		if out := wayOut(&r); out != "" {
			w.line("  %s", out)
		}
	}
	for _, d := range st.Condemned {
		w.line("\ncondemned: %s: %s", d.Digest.Short(), d.Why)
	}
	for _, b := range st.Broken {
		w.line("\nunreadable record: %s: %s", b.Key, b.Why)
	}
}

// candidate says what else a group serves, and to whom.
func (g groupStatus) candidate() string {
	if g.Candidate == nil {
		return "-"
	}
	text := itoa(g.Candidate.Number)
	if len(g.Candidate.Instances) > 0 {
		text += " on " + strings.Join(g.Candidate.Instances, ",")
	}
	if share := candidateShare(g.Candidate); share != "-" {
		text += " for " + share
	}
	return text
}

// state says in a few words how an instance is.
func (i instanceStatus) state() string {
	var notes []string
	add := func(on bool, format string, args ...any) {
		if on {
			notes = append(notes, fmt.Sprintf(format, args...))
		}
	}
	add(i.Frozen != "", "frozen: %s", i.Frozen)
	add(!i.Pinned.IsZero(), "PINNED to %s: routerd ctl unpin on its machine ends it", shortDigest(i.Pinned))
	add(i.Evicted, "evicted: out of traffic until it serves what is committed")
	add(i.Stale != "", "stale: %s", i.Stale)
	add(len(i.Quarantined) > 0, "quarantined: %d", len(i.Quarantined))
	if i.Preparing != nil {
		notes = append(notes, "preparing "+i.Preparing.Digest.Short()+": "+i.Preparing.Stage)
	}
	if i.Refused != nil {
		notes = append(notes, "refused "+i.Refused.Digest.Short()+": "+i.Refused.Why)
	}
	for _, l := range i.Lacks {
		notes = append(notes, fmt.Sprintf("lacks revision %d: %s", l.Number, l.Why))
	}
	if i.Serving == nil && len(notes) == 0 {
		notes = append(notes, "serves nothing yet")
	}
	if len(notes) == 0 {
		return "ok"
	}
	return strings.Join(notes, "; ")
}

func servingText(s *rollout.Serving) string {
	if s == nil {
		return "-"
	}
	return fmt.Sprintf("%d/%d", s.Revision, s.Epoch)
}

func shortDigest(d version.Digest) string {
	if d.IsZero() {
		return "-"
	}
	return d.Short()
}

func numbers(refs []version.Ref) string {
	if len(refs) == 0 {
		return "-"
	}
	out := make([]string, len(refs))
	for i, r := range refs {
		out[i] = itoa(r.Number)
	}
	return strings.Join(out, ",")
}
