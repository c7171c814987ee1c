package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"charm.land/fang/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"routerd.dev/internal/buildinfo"
	"routerd.dev/internal/store"
)

// command is what every command of one invocation shares.
type command struct {
	env     Env
	output  string // table, json or yaml
	printed bool   // a value: another YAML document needs a separator

	endpoints             []string
	prefix                string
	user, password        string
	caFile, cert, keyFile string

	talk sync.Mutex  // held while something is said
	slow *time.Timer // says what takes long; nil when nothing is being done
}

// New returns routectl with all its commands.
func New(env Env) *cobra.Command {
	c := &command{env: env}
	root := &cobra.Command{
		Use:   "routectl",
		Short: "Publish, explain, switch and roll back the routes of a routerd fleet",
		Long: `routectl publishes route files into a fleet of routerd instances, says which
route serves a request and why, and goes back.

A first session, with "routerd dev" running:

  routectl status                                who serves what
  routectl explain GET http://localhost/products/7
  routectl publish -f shop.yaml -m "new page" --wait
  routectl rollback --wait

Exit codes: 0 done, 1 failed or went back, 2 usage, 3 invalid routes or
strategy, 4 conflict or a flag must allow it, 5 not reached in time,
6 differences (diff --exit-code).
Every global flag can be given as an environment variable: --endpoints is
ROUTECTL_ENDPOINTS.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          onlyCommands,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fail(ExitUsage, err, fmt.Sprintf("%s --help lists the flags", cmd.CommandPath()))
	})
	fs := root.PersistentFlags()
	fs.StringSliceVar(&c.endpoints, "endpoints", []string{"127.0.0.1:2379"}, "where etcd listens for clients, separated by commas")
	fs.StringVar(&c.prefix, "prefix", "/routerd", "where the fleet lives in etcd: the prefix of its keys")
	fs.StringVar(&c.user, "user", "", "name of the etcd user")
	fs.StringVar(&c.password, "password", "", "password of the etcd user, or file:PATH to read it from a file")
	fs.StringVar(&c.caFile, "ca", "", "authority that signed etcd's certificates, a PEM file; turns TLS on")
	fs.StringVar(&c.cert, "cert", "", "client certificate for etcd, a PEM file")
	fs.StringVar(&c.keyFile, "key", "", "client key for etcd, a PEM file")
	fs.StringVarP(&c.output, "output", "o", "table", "form of the output: table, json or yaml")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Name() == "man" {
			reflow(root)
		}
		return c.complete(cmd.Flags())
	}

	for _, add := range commands() {
		root.AddCommand(add(c))
	}
	return root
}

// complete takes from the environment what was not given as a flag, and checks
// what all commands share.
func (c *command) complete(fs *pflag.FlagSet) error {
	var errs []error
	for _, name := range []string{"endpoints", "prefix", "user", "password", "ca", "cert", "key", "output"} {
		env := "ROUTECTL_" + strings.ToUpper(name)
		if v := c.env.Getenv(env); v != "" && !fs.Changed(name) {
			if err := fs.Set(name, v); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", env, err))
			}
		}
	}
	if !slices.Contains([]string{"table", "json", "yaml"}, c.output) {
		errs = append(errs, fmt.Errorf("-o %s: want table, json or yaml", c.output))
	}
	if (c.cert == "") != (c.keyFile == "") {
		errs = append(errs, errors.New("--cert goes with --key"))
	}
	if strings.Trim(c.prefix, "/") == "" { // every fleet is under it
		errs = append(errs, fmt.Errorf("--prefix %q: want one of the fleet's own, such as /routerd", c.prefix))
	}
	if err := errors.Join(errs...); err != nil {
		return fail(ExitUsage, err, "")
	}
	return nil
}

// open connects to etcd. The caller closes the store.
func (c *command) open() (*store.Store, error) {
	cfg := store.Config{Endpoints: c.endpoints, Prefix: c.prefix, Username: c.user, DialTimeout: 5 * time.Second}
	var err error
	if cfg.Password, err = store.LoadPassword(c.password); err != nil {
		return nil, err
	}
	if cfg.TLS, err = store.LoadTLS(c.caFile, c.cert, c.keyFile); err != nil {
		return nil, err
	}
	s, err := store.Open(cfg)
	if err != nil {
		return nil, fail(ExitUsage, err, "")
	}
	return s, nil
}

// withStore runs f with a store that is closed afterwards.
func (c *command) withStore(f func(*store.Store) error) error {
	s, err := c.open()
	if err != nil {
		return err
	}
	c.doing("waiting for etcd at %s", strings.Join(s.Endpoints(), ", "))
	defer c.doing("")
	return errors.Join(f(s), s.Close())
}

// usage makes an error about arguments one of usage.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return fail(ExitUsage, fmt.Errorf("%s does not take %s", cmd.CommandPath(), plural(len(args), "argument")), "usage: "+cmd.UseLine())
		}
		return nil
	}
}

// onlyCommands refuses a word that is no command, and names the one that was
// probably meant.
func onlyCommands(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2 // Cobra sets it only where it makes the error itself.
	hint := cmd.CommandPath() + " --help lists the commands"
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		hint = "did you mean " + cmd.CommandPath() + " " + strings.Join(s, " or ") + "? " + hint
	}
	return fail(ExitUsage, fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath()), hint)
}

// reflow joins the lines of each paragraph of the long texts: the manual page
// makes a paragraph of every line. What is indented stays.
func reflow(cmd *cobra.Command) {
	paragraphs := strings.Split(cmd.Long, "\n\n")
	for i, p := range paragraphs {
		if !strings.HasPrefix(p, " ") {
			paragraphs[i] = strings.ReplaceAll(p, "\n", " ")
		}
	}
	cmd.Long = strings.Join(paragraphs, "\n")
	for _, sub := range cmd.Commands() {
		reflow(sub)
	}
}

// Run runs routectl with these arguments and returns its exit code.
func Run(ctx context.Context, env Env, args []string) int {
	root := New(env)
	root.SetArgs(args)
	err := fang.Execute(ctx, root,
		fang.WithVersion(buildinfo.Version()),
		fang.WithErrorHandler(func(_ io.Writer, _ fang.Styles, err error) { env.explain(err) }))
	return exitCode(err)
}
