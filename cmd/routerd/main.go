// Command routerd is an HTTP router whose routes change with its fleet's.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"charm.land/fang/v2"
	"github.com/spf13/cobra"

	"routerd.dev/internal/buildinfo"
	"routerd.dev/internal/daemon"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once: an operator who presses twice
	// means it.
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// The exit codes of routerd.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2 // the command line or the settings are wrong
)

// run runs routerd with these arguments and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRootCmd()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := fang.Execute(ctx, root, fang.WithVersion(buildinfo.Version()),
		fang.WithErrorHandler(func(_ io.Writer, _ fang.Styles, err error) { fmt.Fprintf(stderr, "routerd: %v\n", err) }))
	var usage usageError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case err != nil:
		return exitFailed
	}
	return exitDone
}

// A usageError is one of the command line's or of the settings.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// noArgs refuses words that are neither commands nor flags.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown command %q for %q; %s --help lists what there is", args[0], cmd.CommandPath(), cmd.CommandPath())}
	}
	return nil
}

func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "routerd",
		Short: "An HTTP router whose routes change with its fleet's, in one step",
		Long: `routerd is an HTTP router. Instances that share an etcd prefix are a fleet: they
prepare each published revision of the routes in the background and switch to
it together, when all of them are ready.

  routerd dev      a whole fleet on this machine, to try it
  routerd serve    one instance
  routerd ctl      orders to an instance on this machine
  routerd probe    a health check of an instance, or of anything that speaks HTTP
  routerd upstream an example upstream, to have something to send requests to`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; %s --help lists the flags", err, cmd.CommandPath())}
	})
	root.AddCommand(newServeCmd(), newDevCmd(), newCtlCmd(), newProbeCmd(), newUpstreamCmd())
	return root
}

func newServeCmd() *cobra.Command {
	var (
		cfg   daemon.Config
		path  string
		print bool
	)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run one instance",
		Long: `Run one instance of a fleet, or, with --embedded-etcd, a fleet on a single
machine.

Every setting can stand in a file (--config, a map of the flags' names), in the
environment (ROUTERD_STATE_DIR for --state-dir) and as a flag; flags are
stronger than the environment, the environment than the file. --print-config
shows the result and where each value came from.

SIGTERM drains: readiness goes, requests finish, the lease is given back.`,
		Example: `  routerd serve --group edge --endpoints etcd1:2379,etcd2:2379,etcd3:2379 --http :80
  routerd serve --embedded-etcd --controller --state-dir ./state`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if path == "" {
				path = os.Getenv("ROUTERD_CONFIG")
			}
			origins, err := daemon.Load(cmd.Flags(), path, os.Environ())
			if err != nil {
				return usageError{err}
			}
			if print {
				return daemon.PrintConfig(cmd.OutOrStdout(), cmd.Flags(), origins)
			}
			if err := cfg.Check(); err != nil {
				return usageError{err}
			}
			return daemon.Serve(cmd.Context(), cfg)
		},
	}
	cfg.Flags(cmd.Flags())
	cmd.Flags().StringVar(&path, "config", "", "configuration file, YAML; ROUTERD_CONFIG names one too")
	cmd.Flags().BoolVar(&print, "print-config", false, "show every setting with where it came from, and end")
	return cmd
}

func newDevCmd() *cobra.Command {
	var o daemon.DevOptions
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole fleet on this machine, to try it",
		Long: `Run a whole fleet in one process: an etcd, three instances in two groups behind
one front port, two example upstreams, and the examples published as revision 1.
It needs no set-up and leaves nothing behind.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Check(); err != nil {
				return usageError{err}
			}
			return daemon.Dev(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	o.Flags(cmd.Flags())
	return cmd
}
