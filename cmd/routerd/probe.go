package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"routerd.dev/internal/daemon"
)

func newProbeCmd() *cobra.Command {
	var (
		o             daemon.ProbeOptions
		config, admin string
	)
	cmd := &cobra.Command{
		Use:   "probe [URL]",
		Short: "Ask whether an instance, or what answers at a URL, is well",
		Long: `Ask once, say the answer in one line, and end with 0 when it was a 2xx and with 1
when it was anything else or too late: a health check for containers and scripts,
which needs neither shell nor curl.

Without a URL it asks the instance on this machine: /readyz of its admin
listener, or /healthz with --alive. Where that is it finds as serve does, by
ROUTERD_ADMIN, ROUTERD_CONFIG or --config, or --admin; so give settings to a
container by environment or file, and its health check sees them too.

A container is to be restarted when it is not alive, and to get no requests
while it is not ready: an instance that waits for etcd is alive.`,
		Example: `  routerd probe
  routerd probe --alive --timeout 1s
  routerd probe http://127.0.0.1:2381/health
  routerd probe https://etcd-1:2379/health --ca ca.pem --cert probe.pem --key probe-key.pem`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("want at most one URL, got %d words", len(args))}
			}
			if len(args) == 1 {
				if args[0] == "" {
					return usageError{errors.New("the URL is empty; leave it out to ask the instance on this machine")}
				}
				o.URL = args[0]
			}
			if err := o.Check(); err != nil {
				return usageError{err}
			}
			cfg, err := settings(config, map[string]string{"admin": admin})
			if err != nil {
				return err
			}
			line, err := daemon.Probe(cmd.Context(), &cfg, o)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), line)
			return err
		},
	}
	o.Flags(cmd.Flags())
	cmd.Flags().StringVar(&admin, "admin", "", "the instance's admin listener; as serve has it if empty")
	cmd.Flags().StringVar(&config, "config", "", "its configuration file; ROUTERD_CONFIG names one too")
	return cmd
}

// settings are those that serve would have, with some given by flags; empty
// ones are not given.
func settings(path string, given map[string]string) (daemon.Config, error) {
	var cfg daemon.Config
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	cfg.Flags(fs)
	for name, v := range given {
		if v != "" {
			if err := fs.Set(name, v); err != nil {
				return cfg, usageError{err}
			}
		}
	}
	if path == "" {
		path = os.Getenv("ROUTERD_CONFIG")
	}
	if _, err := daemon.Load(fs, path, os.Environ()); err != nil {
		return cfg, usageError{err}
	}
	return cfg, nil
}

func newUpstreamCmd() *cobra.Command {
	var o daemon.UpstreamOptions
	cmd := &cobra.Command{
		Use:   "upstream",
		Short: "Run an example upstream, to have something to send requests to",
		Long: `Run an example upstream: it answers every request by saying what it was asked,
and streams the time at /events. It is what dev starts two of.`,
		Example: `  routerd upstream --listen 127.0.0.1:9001 --name A`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Check(); err != nil {
				return usageError{err}
			}
			return daemon.Upstream(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	o.Flags(cmd.Flags())
	return cmd
}
