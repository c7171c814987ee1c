package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// waiting is the flags of the commands that ask for a switch.
type waiting struct {
	wait       bool
	timeout    time.Duration
	straggler  string
	allowFewer bool

	fs *pflag.FlagSet
}

func (w *waiting) flags(cmd *cobra.Command) {
	w.fs = cmd.Flags()
	w.fs.BoolVar(&w.wait, "wait", false, "show progress and return when every registered instance serves it")
	w.fs.DurationVar(&w.timeout, "timeout", time.Minute, "with --wait, how long; if this is given preparing is given up after the same time, else after the setting prepareTimeout, which is waited for, too; a strategy with steps has a time of its own for preparing, and is waited for without end unless this is given")
	w.fs.StringVar(&w.straggler, "straggler", "", "when an instance is not ready in time: abort, wait for it, or evict: leave it behind, out of traffic; without, as the strategy says, else abort")
	w.fs.BoolVar(&w.allowFewer, "allow-fewer", false, "switch though fewer than half of the instances of the last commit are registered")
	_ = cmd.RegisterFlagCompletionFunc("straggler", cobra.FixedCompletions(stragglers(), cobra.ShellCompDirectiveNoFileComp))
}

func stragglers() []string {
	return []string{string(rollout.StragglerAbort), string(rollout.StragglerWait), string(rollout.StragglerEvict)}
}

// given tells that somebody said how long. Otherwise a rollout with steps is
// waited for however long it takes: its pauses may wait for a person.
func (w *waiting) given() bool { return w.fs != nil && w.fs.Changed("timeout") }

// apply puts the flags into an intent.
func (w *waiting) apply(i *rollout.Intent) error {
	if w.straggler != "" && !slices.Contains(stragglers(), w.straggler) {
		return fail(ExitUsage, fmt.Errorf("--straggler %s: want abort, wait or evict", w.straggler), "")
	}
	i.Straggler = rollout.Straggler(w.straggler)
	if w.timeout <= 0 {
		return fail(ExitUsage, errors.New("--timeout must be more than 0"), "")
	}
	i.AllowFewer = w.allowFewer
	if w.given() {
		i.Timeout = w.timeout
	}
	return nil
}

// An outcome is what publish, switch, rollback and recover give with -o: what
// was asked for and, with --wait, what came of it, also when it failed.
type outcome struct {
	Revision  int64            `json:"revision,omitempty"`
	Digest    version.Digest   `json:"digest,omitzero"`
	Changed   bool             `json:"changed"`           // false: it was so already
	DryRun    bool             `json:"dryRun,omitempty"`  // nothing was written, and changed is what publish would do
	Rollout   string           `json:"rollout,omitempty"` // its id
	Uploaded  *store.Uploaded  `json:"uploaded,omitempty"`
	Phase     rollout.Phase    `json:"phase,omitempty"`
	Why       string           `json:"why,omitempty"`
	Epochs    map[string]int64 `json:"epochs,omitempty"`    // what was committed, by group
	Instances []string         `json:"instances,omitempty"` // that serve it
	Behind    []behind         `json:"behind,omitempty"`    // that do not
	Seconds   float64          `json:"seconds,omitempty"`

	// Of a rollout with steps.
	Strategy string           `json:"strategy,omitempty"`
	Step     string           `json:"step,omitempty"` // where it was when the waiting ended
	Hold     *rollout.Hold    `json:"hold,omitempty"`
	Evidence *analysis.Result `json:"evidence,omitempty"`
	Return   *rollout.Return  `json:"return,omitempty"`

	// Of a dry run.
	Target     int64               `json:"target,omitempty"`     // the revision that it was composed on
	FirstUse   string              `json:"firstUse,omitempty"`   // the strategy at the first use of a feature, instead of a quicker one
	Difference *version.Difference `json:"difference,omitempty"` // to the target; absent when etcd lost pieces of that

	goals []int64 // the revisions that the groups went to
}

// behind is an instance that does not serve what it should, and why.
type behind struct {
	Instance string `json:"instance"`
	Group    string `json:"group"`
	Why      string `json:"why"`
}

// finish reports an intent that was put, and with --wait follows it to its end.
func (c *command) finish(ctx context.Context, s *store.Store, id string, w waiting, what string) error {
	return c.conclude(ctx, s, outcome{Changed: true, Rollout: id}, w, what)
}

// conclude prints what came of an intent that was put; with --wait at its end,
// without as far as out says.
func (c *command) conclude(ctx context.Context, s *store.Store, out outcome, w waiting, what string) error {
	if !w.wait {
		return c.print(out, func(*table) {})
	}
	start := c.env.Now()
	err := c.follow(ctx, s, &out, w)
	out.Seconds = c.env.Now().Sub(start).Seconds()
	if err != nil && c.output == "table" {
		return err
	}
	return errors.Join(err, c.print(out, func(t *table) {
		if !out.Changed {
			t.line("%s", out.Why)
			return
		}
		served := "by " + plural(len(out.Instances), "instance")
		if len(out.Instances) == 0 {
			served = "by the first instance that comes: none is registered"
		}
		t.line("%s: %s is served %s after %.2f s", what, out.revisions(), served, out.Seconds)
	}))
}

// A progress follows one rollout and says what is new about it.
type progress struct {
	c     *command
	s     *store.Store
	out   *outcome
	said  map[string]string // the last word about each instance
	head  string            // the last word about the rollout
	spoke time.Time         // when the last word was said

	most    time.Duration  // after that the controller gives up preparing; 0: never, or it is not known yet
	planned bool           // the rollout has steps
	at      rollout.Cursor // the first of them that was not named yet
}

// How long nothing may be new before the waiting is explained again: a rollout
// with steps takes minutes, and waits for people.
const (
	stillAfter  = 5 * time.Second
	stillInPlan = time.Minute
)

// follow waits until the rollout that out names ended well and every
// registered instance of its groups serves what it committed, and notes in out
// what it found. The error says who did not get there and why.
func (c *command) follow(ctx context.Context, s *store.Store, out *outcome, w waiting) error {
	// The controller gives up at the timeout and says why: that answer is
	// better than our own, so it gets a moment to arrive.
	began, patience := time.Now(), w.timeout
	p := &progress{c: c, s: s, out: out, said: map[string]string{}, spoke: c.env.Now()}
	c.doing("")
	// Reports wake nobody. Steps take long, and while two revisions are
	// compared a view is large.
	const look, lookInPlan = 20 * time.Millisecond, 250 * time.Millisecond
	tick := time.NewTicker(look)
	defer tick.Stop()
	last := errors.New("nothing is known yet")
	for {
		ctx, cancel := ctx, func() {}
		if !w.given() {
			patience = max(patience, p.most)
		}
		if !p.planned || w.given() {
			ctx, cancel = context.WithDeadline(ctx, began.Add(patience).Add(2*time.Second))
		}
		done, err := p.look(ctx)
		if done {
			cancel()
			return err
		}
		if p.planned {
			tick.Reset(lookInPlan)
		}
		if ctx.Err() == nil { // else the look was cut short and knows nothing
			last = err
			p.still(err)
		}
		select {
		case <-ctx.Done():
			cancel()
			if errors.Is(ctx.Err(), context.Canceled) {
				return fail(ExitFailed, errors.New("interrupted; what was asked for goes on"), "routectl status --watch follows it; routectl abort ends it")
			}
			return p.late(patience, last)
		case <-tick.C:
			cancel()
		}
	}
}

// late says that the rollout takes longer than somebody wanted to wait.
func (p *progress) late(timeout time.Duration, last error) error {
	if p.planned {
		return fail(ExitNotReached, fmt.Errorf("rollout %s is not over after %v: %w", p.out.Rollout, timeout, last),
			"it goes on: routectl rollout status --watch follows it; routectl rollout abort takes it back")
	}
	return fail(ExitNotReached, fmt.Errorf("not every instance serves it after %v: %w", timeout, last),
		"it may still get there: routectl status --watch; routectl rollback takes it back")
}

// look reads where the rollout is. The error says what is waited for, or, when
// it is done, why it did not end well.
func (p *progress) look(ctx context.Context) (done bool, err error) {
	// The view first: when it has no intent any more, the rollout is there.
	v, err := p.s.View(ctx)
	if err != nil {
		return false, err
	}
	r, err := p.s.Rollout(ctx, p.out.Rollout)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return p.unanswered(ctx, v)
	case err != nil:
		return false, err
	}
	p.note(r)
	if r.Phase.Final() && r.Phase != rollout.PhaseDone {
		// What the last look found stays; those that were ready are not to blame.
		p.out.Behind = slices.DeleteFunc(p.out.Behind, func(b behind) bool { return b.Why == stateReady })
	}
	switch r.Phase {
	case rollout.PhaseAborted:
		if after := cmp.Or(r.Timeout, p.most); after > 0 && !r.Ended.Before(r.Started.Add(after)) {
			return true, fail(ExitNotReached, fmt.Errorf("given up after %v: %s", after.Round(time.Millisecond), r.Why), "nothing was switched; --timeout gives more time, --straggler wait any time")
		}
		return true, fail(ExitFailed, fmt.Errorf("aborted: %s", r.Why), "nothing was switched; every instance serves what it served")
	case rollout.PhaseRefused:
		return true, fail(ExitFailed, fmt.Errorf("refused: %s", r.Why), "nothing was switched; every instance serves what it served")
	case rollout.PhaseSuperseded:
		return true, fail(ExitConflict, fmt.Errorf("superseded: %s", r.Why), "routectl status --watch shows the later one")
	case rollout.PhaseRolledBack:
		return true, p.wentBack(r)
	}
	if r.Kind == rollout.IntentRecover && r.Phase == rollout.PhaseDone && len(r.Epochs) == 0 {
		p.out.Changed = false // nothing was frozen
		return true, nil
	}
	if r.Plan != nil && r.Phase != rollout.PhaseDone {
		return false, p.step(v, r)
	}
	if r.Plan != nil {
		p.passed(r)
	}
	p.say(phaseText(r))
	p.instances(v, r)
	if r.Phase == rollout.PhaseDone && len(p.out.Behind) == 0 {
		return true, nil
	}
	return false, errors.New(p.missing(r))
}

// note keeps for the output what the record says.
func (p *progress) note(r rollout.Rollout) {
	p.planned = p.planned || r.Plan != nil
	o := p.out
	o.Phase, o.Why, o.Epochs = r.Phase, r.Why, r.Epochs
	o.Hold, o.Evidence, o.Return, o.Step = r.Hold, r.Evidence, r.Return, ""
	if r.Plan != nil {
		o.Strategy = r.Plan.Name
	}
	if !r.Phase.Final() {
		o.Step = placeText(&r)
		p.most = 0
		if !r.Deadline.IsZero() {
			p.most = r.Deadline.Sub(r.Started) // by one clock, which need not be ours
		}
	}
}

// unanswered tells why there is no rollout yet, or that there never will be.
func (p *progress) unanswered(ctx context.Context, v *rollout.View) (done bool, err error) {
	asked := slices.ContainsFunc(v.Intents, func(i rollout.Intent) bool { return i.ID == p.out.Rollout })
	if !asked {
		return true, fail(ExitFailed, fmt.Errorf("etcd knows nothing of %s any more: it was restored from an older copy, or gc took it", p.out.Rollout),
			"routectl status shows who serves what; routectl audit, what happened")
	}
	leader, err := p.s.Leader(ctx)
	if err != nil {
		return false, err
	}
	if leader == "" {
		return false, errors.New("no controller is elected to carry it out: an instance with --controller has to run")
	}
	return false, fmt.Errorf("controller %s has not taken it up yet", leader)
}

func phaseText(r rollout.Rollout) string {
	text := map[rollout.Phase]string{
		rollout.PhasePending:    "waiting",
		rollout.PhaseFirst:      r.First + " prepares it first",
		rollout.PhasePreparing:  "every instance prepares it",
		rollout.PhaseCommitting: "every instance holds it",
		rollout.PhaseRunning:    "under way",
		rollout.PhaseReturning:  "it goes back",
		rollout.PhaseDone:       "committed",
	}[r.Phase]
	if r.Why != "" {
		text += ": " + r.Why
	}
	return text
}

// members are a group's instances: those that are registered, and those that
// are joining, who will serve what was committed in a moment.
func members(v *rollout.View, group string) []string {
	names := maps.Clone(v.Ready[group])
	if names == nil {
		names = map[string]rollout.Ready{}
	}
	for name, i := range v.Instances {
		if i.Group == group {
			names[name] = v.Ready[group][name]
		}
	}
	return sorted(names)
}

// instances says what is new about each registered instance, and notes who
// serves what was committed and who does not.
func (p *progress) instances(v *rollout.View, r rollout.Rollout) {
	groups := r.Groups
	switch {
	case len(r.Epochs) > 0:
		groups = sorted(r.Epochs)
	case len(groups) == 0:
		groups = sorted(v.Groups)
	}
	p.out.Instances, p.out.Behind = nil, nil
	goals := map[int64]bool{}
	for _, g := range groups {
		goal := r.To
		if to, ok := r.Goals[g]; ok {
			goal = to
		}
		if goal.IsZero() {
			goal = v.Groups[g].Stable
		}
		goals[goal.Number] = true
		for _, name := range members(v, g) {
			state, there := instanceText(v, r, g, name, goal)
			if there {
				p.out.Instances = append(p.out.Instances, name)
			} else {
				p.out.Behind = append(p.out.Behind, behind{name, g, state})
			}
			if p.said[name] != state {
				p.said[name] = state
				p.talk("  %-20s %-10s %s", name, g, state)
			}
		}
	}
	p.out.goals = slices.Sorted(maps.Keys(goals))
	if len(p.out.goals) == 1 {
		p.out.Revision = p.out.goals[0]
	}
}

// stateReady is what is said of an instance that holds what was asked for.
const stateReady = "ready"

// instanceText says how far an instance is, and whether it is there. One that
// serves a later epoch is: it was there in between.
func instanceText(v *rollout.View, r rollout.Rollout, group, name string, goal version.Ref) (state string, there bool) {
	report, ready, nonce := v.Reports[name], v.Ready[group][name], r.Nonces[group]
	s, epoch := report.Serving, r.Epochs[group]
	switch {
	case epoch > 0 && s != nil && s.Epoch > epoch:
		return fmt.Sprintf("serves revision %d by now (epoch %d)", s.Revision, s.Epoch), true
	case epoch > 0 && s != nil && s.Epoch == epoch && s.Digest == goal.Digest, r.Phase == rollout.PhaseDone && epoch == 0 && s != nil && s.Digest == goal.Digest:
		return fmt.Sprintf("serves revision %d (epoch %d)", s.Revision, s.Epoch), true
	case report.Frozen != "":
		return "frozen: " + report.Frozen, false
	case epoch > 0 && s != nil && s.Epoch == epoch:
		return fmt.Sprintf("keeps revision %d: quarantined or pinned, see status", s.Revision), false
	case epoch > 0 && report.Stale != "":
		return "committed, not switched yet: " + report.Stale, false
	case epoch > 0:
		return "committed, not switched yet", false
	case nonce != "" && ready.Nonce == nonce && ready.Refused:
		return "refused: " + ready.Why, false
	case nonce != "" && ready.Nonce == nonce:
		return stateReady, false
	case report.Preparing != nil && report.Preparing.Nonce == nonce:
		return report.Preparing.Stage, false
	case report.Stale != "":
		return "not ready: " + report.Stale, false
	}
	return "waiting", false
}

// missing says what is waited for.
func (p *progress) missing(r rollout.Rollout) string {
	var parts []string
	for _, b := range p.out.Behind {
		parts = append(parts, b.Instance+": "+b.Why)
	}
	if r.Phase != rollout.PhaseDone || len(parts) == 0 {
		parts = append([]string{phaseText(r)}, parts...)
	}
	return strings.Join(parts, "; ")
}

func (p *progress) talk(format string, args ...any) {
	p.spoke = p.c.env.Now()
	p.c.say(format, args...)
}

// say tells where the rollout is, once.
func (p *progress) say(head string) {
	if p.head != head {
		p.head = head
		p.talk("%s", head)
	}
}

// still says again what is waited for when nothing was new for a while.
func (p *progress) still(why error) {
	after := stillAfter
	if p.planned {
		after = stillInPlan
	}
	if why != nil && p.c.env.Now().Sub(p.spoke) >= after {
		p.talk("still waiting: %v", why)
	}
}

// revisions names what the groups serve now: one revision, but a rollback may
// have taken groups to different ones.
func (o outcome) revisions() string {
	numbers := o.goals
	if len(numbers) == 0 {
		numbers = []int64{o.Revision}
	}
	parts := make([]string, len(numbers))
	for i, n := range numbers {
		parts[i] = itoa(n)
	}
	if len(parts) == 1 {
		return "revision " + parts[0]
	}
	return "revisions " + strings.Join(parts, ", ")
}
