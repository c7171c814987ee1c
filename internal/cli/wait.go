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

// waiting is the flags of the commands that ask for a switch.
type waiting struct {
	wait       bool
	timeout    time.Duration
	straggler  string
	allowFewer bool
}

func (w *waiting) flags(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.BoolVar(&w.wait, "wait", false, "show progress and return when every registered instance serves it")
	fs.DurationVar(&w.timeout, "timeout", time.Minute, "with --wait, how long; preparing is given up after the same time")
	fs.StringVar(&w.straggler, "straggler", "abort", "when an instance is not ready in time: abort, or wait for it")
	fs.BoolVar(&w.allowFewer, "allow-fewer", false, "switch though fewer than half of the instances of the last commit are registered")
	_ = cmd.RegisterFlagCompletionFunc("straggler", cobra.FixedCompletions([]string{"abort", "wait"}, cobra.ShellCompDirectiveNoFileComp))
}

// apply puts the flags into an intent.
func (w *waiting) apply(i *rollout.Intent) error {
	switch p := rollout.Straggler(w.straggler); p {
	case rollout.StragglerAbort, rollout.StragglerWait:
		i.Straggler = p
	default:
		return fail(ExitUsage, fmt.Errorf("--straggler %s: want abort or wait", w.straggler), "")
	}
	if w.timeout <= 0 {
		return fail(ExitUsage, errors.New("--timeout must be more than 0"), "")
	}
	i.Timeout, i.AllowFewer = w.timeout, w.allowFewer
	return nil
}

// reached is what a command that waited found at the end.
type reached struct {
	Rollout   string           `json:"rollout"`
	Phase     rollout.Phase    `json:"phase"`
	Revision  int64            `json:"revision,omitempty"`
	Epochs    map[string]int64 `json:"epochs,omitempty"`
	Instances []string         `json:"instances"` // that serve it
	Seconds   float64          `json:"seconds"`
}

// A progress follows one rollout and says what is new about it.
type progress struct {
	c    *command
	s    *store.Store
	id   string
	said map[string]string // the last word about each instance
	head string            // the last word about the rollout
}

// follow waits until the rollout of this id ended well and every registered
// instance of its groups serves what it committed. The error says who did not
// get there and why.
func (c *command) follow(ctx context.Context, s *store.Store, id string, timeout time.Duration) (reached, error) {
	start := c.env.Now()
	// The controller gives up at the timeout and says why: that answer is
	// better than our own, so it gets a moment to arrive.
	ctx, cancel := context.WithTimeout(ctx, timeout+2*time.Second)
	defer cancel()
	p := &progress{c: c, s: s, id: id, said: map[string]string{}}
	const look = 50 * time.Millisecond // reports wake nobody
	tick := time.NewTicker(look)
	defer tick.Stop()
	var last error
	for {
		res, done, err := p.look(ctx)
		if done {
			res.Seconds = c.env.Now().Sub(start).Seconds()
			return res, err
		}
		if err != nil {
			last = err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return res, fail(ExitFailed, errors.New("interrupted; the switch goes on without you"), "routectl status --watch")
			}
			return res, p.late(timeout, last)
		case <-tick.C:
		}
	}
}

// look reads where the rollout is. An error without done is passing trouble.
func (p *progress) look(ctx context.Context) (reached, bool, error) {
	r, err := p.s.Rollout(ctx, p.id)
	switch {
	case errors.Is(err, store.ErrNotFound):
		leader, err := p.s.Leader(ctx)
		if err == nil && leader == "" {
			err = errors.New("no controller is elected: start an instance with --controller")
		}
		if err != nil {
			p.say(err.Error())
		}
		return reached{}, false, err
	case err != nil:
		p.say(err.Error())
		return reached{}, false, err
	}
	res := reached{Rollout: r.ID, Phase: r.Phase, Revision: r.To.Number, Epochs: r.Epochs, Instances: []string{}}
	v, err := p.s.View(ctx)
	if err != nil {
		p.say(err.Error())
		return res, false, err
	}
	switch r.Phase {
	case rollout.PhaseRefused, rollout.PhaseAborted:
		return res, true, fail(ExitFailed, fmt.Errorf("%s: %s", r.Phase, r.Why), "nothing was switched; every instance serves what it served")
	case rollout.PhaseSuperseded:
		return res, true, fail(ExitConflict, fmt.Errorf("superseded by %s: %s", r.SupersededBy, r.Why), "routectl status --watch shows the later one")
	}
	behind := p.instances(v, r, &res)
	if r.Phase == rollout.PhaseDone {
		if behind == "" {
			return res, true, nil
		}
		return res, false, errors.New(behind)
	}
	why := string(r.Phase)
	if r.Why != "" {
		why += ": " + r.Why
	}
	p.say(why)
	return res, false, errors.New(strings.TrimPrefix(why+"; "+behind, "; "))
}

// instances says what is new about each registered instance, notes who serves
// what was committed, and returns who does not, and why.
func (p *progress) instances(v *rollout.View, r rollout.Rollout, res *reached) string {
	groups := r.Groups
	if len(groups) == 0 {
		groups = sorted(v.Groups)
	}
	var behind []string
	for _, g := range groups {
		for _, name := range sorted(v.Ready[g]) {
			report, state := v.Reports[name], "waiting"
			switch epoch, ok := r.Epochs[g]; {
			case ok && serves(report, epoch, v.Groups[g].Stable.Digest, r.To.Digest):
				state = fmt.Sprintf("serves revision %d (epoch %d)", report.Serving.Revision, report.Serving.Epoch)
				res.Instances = append(res.Instances, name)
			case report.Frozen != "":
				state = "frozen: " + report.Frozen
			case ok:
				state = "committed, not switched yet"
			case report.Refused != nil && report.Refused.Nonce == r.Nonces[g]:
				state = "refused: " + report.Refused.Why
			case r.Nonces[g] != "" && v.Ready[g][name].Nonce == r.Nonces[g]:
				state = "ready"
			case report.Preparing != nil:
				state = report.Preparing.Stage
			}
			if !strings.HasPrefix(state, "serves") {
				behind = append(behind, name+": "+state)
			}
			if p.said[name] != state {
				p.said[name] = state
				p.c.say("  %-20s %-10s %s", name, g, state)
			}
		}
	}
	return strings.Join(behind, ", ")
}

// serves tells whether a report says that the instance serves the epoch, or a
// later one of the same group. A later one may serve another digest by now.
func serves(r rollout.Report, epoch int64, stable, to version.Digest) bool {
	return r.Serving != nil && r.Serving.Epoch >= epoch &&
		(r.Serving.Epoch > epoch || to.IsZero() || r.Serving.Digest == to || r.Serving.Digest == stable)
}

func (p *progress) say(head string) {
	if p.head != head {
		p.head = head
		p.c.say("%s", head)
	}
}

func (p *progress) late(timeout time.Duration, last error) error {
	why := "no answer from etcd"
	if last != nil {
		why = last.Error()
	}
	return fail(ExitNotReached, fmt.Errorf("not every instance serves it after %v: %s", timeout, why),
		"it may still get there: routectl status --watch; routectl rollback takes it back")
}

// finish reports an intent that was put, and with --wait follows it to its end.
func (c *command) finish(ctx context.Context, s *store.Store, id string, w waiting, what string) error {
	if !w.wait {
		return nil
	}
	res, err := c.follow(ctx, s, id, w.timeout)
	if err != nil {
		return err
	}
	return c.print(res, func(t *table) {
		t.line("%s: revision %d is served by %s after %.2f s", what, res.Revision, plural(len(res.Instances), "instance"), res.Seconds)
	})
}
