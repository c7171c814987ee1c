package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"routerd.dev/internal/agent"
	"routerd.dev/internal/daemon"
	"routerd.dev/internal/version"
)

// ctlFlags say which instance is meant.
type ctlFlags struct {
	config, stateDir, control string
	json                      bool
}

func (f *ctlFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.stateDir, "state-dir", "", "the instance's state directory; as serve has it if empty")
	fs.StringVar(&f.control, "control", "", "its unix socket; as serve has it if empty")
	fs.StringVar(&f.config, "config", "", "its configuration file; ROUTERD_CONFIG names one too")
	fs.BoolVar(&f.json, "json", false, "say it in JSON")
}

// controls finds the instance's socket where serve would put it.
func (f *ctlFlags) controls() (daemon.Controls, error) {
	cfg, err := settings(f.config, map[string]string{"state-dir": f.stateDir, "control": f.control})
	if err != nil {
		return daemon.Controls{}, err
	}
	return daemon.Controls{Socket: cfg.ControlPath()}, nil
}

func newCtlCmd() *cobra.Command {
	var f ctlFlags
	cmd := &cobra.Command{
		Use:   "ctl",
		Short: "Give orders to the instance on this machine, also while etcd is away",
		Long: `Give orders to the instance on this machine, by its unix socket. It needs no etcd:
pin is for when a revision does harm and etcd cannot be written.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f.add(cmd.PersistentFlags())
	cmd.AddCommand(newCtlStatusCmd(&f), newCtlPinCmd(&f), newCtlUnpinCmd(&f), newCtlForgiveCmd(&f))
	return cmd
}

func newCtlStatusCmd(f *ctlFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show what the instance serves, and what it can be pinned to",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.controls()
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), s)
			}
			return printStatus(cmd.OutOrStdout(), &s)
		},
	}
}

func newCtlPinCmd(f *ctlFlags) *cobra.Command {
	var by, why string
	cmd := &cobra.Command{
		Use:   "pin REVISION|DIGEST",
		Short: "Serve a revision that the instance holds, whatever is committed",
		Long: `Serve a revision that the instance holds in memory or on disk, named by its number
or the beginning of its digest, whatever is committed, until unpin. The instance
keeps following the epochs of its group, prepares and stays ready, and says everywhere that it
is pinned. A restart does not end it. Other instances are not touched: pin each.`,
		Example: `  routerd ctl pin 41 -m "42 breaks checkout, etcd is read-only"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("want one revision or digest, got %d words; routerd ctl status lists what can be pinned", len(args))}
			}
			c, err := f.controls()
			if err != nil {
				return err
			}
			r, err := c.Pin(cmd.Context(), daemon.PinOrder{To: args[0], By: by, Why: why})
			if err != nil {
				return err
			}
			return f.done(cmd, &r)
		},
	}
	cmd.Flags().StringVar(&by, "by", userName(), "who orders it")
	cmd.Flags().StringVarP(&why, "message", "m", "", "why")
	return cmd
}

func newCtlUnpinCmd(f *ctlFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "unpin",
		Short: "Serve again what the group is assigned",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.controls()
			if err != nil {
				return err
			}
			r, err := c.Unpin(cmd.Context())
			if err != nil {
				return err
			}
			return f.done(cmd, &r)
		},
	}
}

func newCtlForgiveCmd(f *ctlFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "forgive",
		Short: "End the quarantine of revisions that crashed the instance",
		Long: `End the quarantine of revisions that crashed the instance: they are tried again, at once where
they are what the group is assigned. Two crashes more bring the quarantine back.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.controls()
			if err != nil {
				return err
			}
			r, err := c.Forgive(cmd.Context())
			if err != nil {
				return err
			}
			return f.done(cmd, &r)
		},
	}
}

// done tells what is served after an order.
func (f *ctlFlags) done(cmd *cobra.Command, r *agent.PinResult) error {
	if r.Warning != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "routerd: %s\n", r.Warning)
	}
	if f.json {
		return printJSON(cmd.OutOrStdout(), r)
	}
	s := &r.Status
	text := s.Instance + ": "
	switch {
	case s.Serving == nil:
		text += "the order is taken, nothing is served yet"
	case s.Pin != nil && s.Pinned.IsZero():
		text += fmt.Sprintf("the order is taken, revision %d is still served", s.Serving.Revision)
	case s.Pin != nil:
		text += fmt.Sprintf("PINNED: revision %d (%s) is served, whatever is committed (epoch %d); routerd ctl unpin ends it", s.Serving.Revision, s.Pinned.Short(), s.Serving.Epoch)
	case !s.Pinned.IsZero():
		text += fmt.Sprintf("unpinned; revision %d is served until what is committed is held", s.Serving.Revision)
	default:
		text += fmt.Sprintf("not pinned: revision %d (%s) of epoch %d is served", s.Serving.Revision, s.Serving.Digest.Short(), s.Serving.Epoch)
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func printStatus(out io.Writer, s *daemon.ControlStatus) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("instance", "%s, group %s", s.Instance, s.Group)
	if v := s.Serving; v == nil {
		row("serving", "nothing")
	} else {
		row("serving", "revision %d (%s), epoch %d, since %s, known from %s", v.Revision, v.Digest.Short(), v.Epoch, v.Since.Format(time.RFC3339), v.Source)
		if c := v.Candidate; c != nil {
			row("candidate", "revision %d (%s), %.2f %% of keys", c.Number, c.Digest.Short(), float64(c.Permyriad)/100)
		}
	}
	if p := s.Pin; p != nil {
		state := "PINNED"
		if s.Pinned.IsZero() {
			state = "ordered, not obeyed"
		}
		row("pin", "%s: revision %d (%s), by %s, since %s: %s", state, p.Number, p.Digest.Short(), cmp.Or(p.By, "somebody"), p.Since.Format(time.RFC3339), cmp.Or(p.Why, "no reason given"))
	}
	ready := "no"
	if s.Readiness.Ready {
		ready = "yes"
	}
	row("ready", "%s: %s", ready, s.Readiness.Why)
	etcd := "answers"
	if !s.Etcd.Reachable {
		etcd = "does not answer since " + s.Etcd.Since.Format(time.RFC3339)
	}
	row("etcd", "%s", etcd)
	if n := len(s.Quarantined); n > 0 {
		row("quarantined", "%d that crashed it; routerd ctl forgive has them tried again", n)
	}
	for _, trouble := range []struct{ name, why string }{{"frozen", s.Frozen}, {"stale", s.Stale}, {"disk", s.Disk}} {
		if trouble.why != "" {
			row(trouble.name, "%s", trouble.why)
		}
	}
	row("can pin", "%s", refNames(s.Pinnable))
	return w.Flush()
}

func refNames(refs []version.Ref) string {
	if len(refs) == 0 {
		return "nothing"
	}
	var names []string
	for _, r := range slices.Backward(refs) {
		names = append(names, fmt.Sprintf("%d (%s)", r.Number, r.Digest.Short()))
	}
	return strings.Join(names, ", ")
}

func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return os.Getenv("USER")
}
