package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// steering is a command that asks the controller to do something with a
// rollout under way.
type steering struct {
	kind    rollout.IntentKind
	full    bool
	message string
	why     bool // a message is demanded
	done    string
}

func newPromoteCmd(c *command) *cobra.Command {
	st := &steering{kind: rollout.IntentPromote, done: "the present step of rollout %s is over"}
	cmd := &cobra.Command{
		Use:   "promote [ROLLOUT]",
		Short: "End the present step of a rollout and go on with the next",
		Long: `End the present step of a rollout, whatever it waits for, and go on with the
next. With --full every wave is committed, without the steps in between: what
the instances hold already takes milliseconds, the other groups prepare it
first. No instance is passed over: a commit still waits for all.`,
		Example: `  routectl rollout promote
  routectl rollout promote --full -m "tested by hand"`,
	}
	cmd.Flags().BoolVar(&st.full, "full", false, "commit every wave, without the steps in between")
	return c.steer(cmd, st)
}

func newPauseCmd(c *command) *cobra.Command {
	return c.steer(&cobra.Command{
		Use:   "pause [ROLLOUT] -m WHY",
		Short: "Hold a rollout where it is, until resume",
		Long: `Hold a rollout where it is: what has the candidate keeps it, and nothing more
gets it, until resume. A failure still goes back, and abort ends it.`,
		Example: `  routectl rollout pause -m "looking at the logs"`,
	}, &steering{kind: rollout.IntentPause, why: true, done: "rollout %s is held; routectl rollout resume goes on"})
}

func newResumeCmd(c *command) *cobra.Command {
	return c.steer(&cobra.Command{
		Use:   "resume [ROLLOUT]",
		Short: "Go on with a rollout that is held",
		Long: `Go on with a rollout that is held, by pause or because it could not tell
whether to go on. It goes on with the step at which it was.`,
		Example: `  routectl rollout resume`,
	}, &steering{kind: rollout.IntentResume, done: "rollout %s goes on"})
}

func newApproveCmd(c *command) *cobra.Command {
	return c.steer(&cobra.Command{
		Use:   "approve [ROLLOUT]",
		Short: "Approve what a rollout waits for",
		Long: `Approve what a rollout waits for: a pause with approval, or the confirmation
that --revert-after asks for.`,
		Example: `  routectl rollout approve -m "seen on the canary"`,
	}, &steering{kind: rollout.IntentApprove, done: "approved; rollout %s goes on"})
}

// steer completes a command that asks for one thing and waits for the
// controller's answer.
func (c *command) steer(cmd *cobra.Command, st *steering) *cobra.Command {
	what := "why, for the audit log"
	if st.why {
		what = "why, for those who find it held"
	}
	cmd.Args = usage(cobra.MaximumNArgs(1))
	cmd.ValidArgsFunction = c.completeRollouts
	cmd.Flags().StringVarP(&st.message, "message", "m", "", what)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if st.why && st.message == "" {
			return fail(ExitUsage, fmt.Errorf("%s without a reason", cmd.CommandPath()), "say why with -m: whoever finds it held wants to know")
		}
		return c.withStore(func(s *store.Store) error { return c.ask(cmd.Context(), s, st, args) })
	}
	return cmd
}

func (c *command) ask(ctx context.Context, s *store.Store, st *steering, args []string) error {
	r, err := steered(ctx, s, args)
	if err != nil {
		return err
	}
	i := rollout.Intent{Kind: st.kind, Rollout: r.ID, Full: st.full, By: c.env.author(), Message: st.message}
	if i, err = s.PutIntent(ctx, i, nil, version.Ref{}); err != nil {
		return err
	}
	c.doing("waiting for the controller")
	answer, err := answered(ctx, s, i.ID)
	if err != nil {
		return err
	}
	if answer.Phase != rollout.PhaseDone {
		return fail(ExitFailed, fmt.Errorf("%s: %s", answer.Phase, answer.Why), "routectl rollout status "+r.ID+" shows what it waits for")
	}
	return c.print(steeredRollout{Rollout: r.ID, Intent: i.ID, Why: answer.Why}, func(t *table) { t.line(st.done, r.ID) })
}

// steeredRollout is what promote, pause, resume and approve give with -o.
type steeredRollout struct {
	Rollout string `json:"rollout"`       // which was steered
	Intent  string `json:"intent"`        // the id of what was asked for
	Why     string `json:"why,omitempty"` // what the controller said
}

// answerTime is how long a controller may take for what needs no instance.
const answerTime = 10 * time.Second

// answered waits for what the controller makes of an intent.
func answered(ctx context.Context, s *store.Store, id string) (rollout.Rollout, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		r, err := s.Rollout(ctx, id)
		switch {
		case err == nil && r.Phase.Final():
			return r, nil
		case err != nil && !errors.Is(err, store.ErrNotFound) && ctx.Err() == nil:
			return r, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return r, fail(ExitFailed, errors.New("interrupted; what was asked for will be done"), "routectl rollout status shows it")
			}
			return r, fail(ExitNotReached, fmt.Errorf("no controller answered within %v; it will do what was asked for once there is one", answerTime),
				"an instance with --controller has to run; routectl status names the elected one")
		}
	}
}
