package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/route"
	"routerd.dev/internal/routefile"
)

func newImportCmd(c *command) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "import",
		Short:   "Make route files of what other tools know",
		Example: `  routectl import table api.txt --module api --respond`,
		Args:    onlyCommands,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newImportTableCmd(c))
	return cmd
}

func newImportTableCmd(c *command) *cobra.Command {
	var (
		module, upstream string
		hosts            []string
		respond          bool
	)
	cmd := &cobra.Command{
		Use:   "table FILE",
		Short: "Make a route file of lines METHOD /path/{param}",
		Long: `Make a route file of lines METHOD /path/{param} and write it to standard output,
as YAML, or as JSON with -o json. FILE may be - for standard input. With
--upstream every route goes to that URL; with --respond every route answers
with its own name, for trying a table out.`,
		Example: `  routectl import table api.txt --module api --host api.example.com --upstream http://10.0.0.1:8080 > api.yaml
  routectl import table api.txt --module api --respond | routectl publish -f - -m "try the table"`,
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			if (upstream == "") == !respond {
				return fail(ExitUsage, errors.New("want either --upstream URL or --respond"), "")
			}
			if module == "" {
				return fail(ExitUsage, errors.New("--module is missing"), "name the module that the routes belong to")
			}
			name, in, err := c.openTable(args[0])
			if err != nil {
				return err
			}
			routes, problems := routefile.ParseTable(name, in)
			if err := errors.Join(problems.Err(), in.Close()); err != nil {
				return err
			}
			m := &route.Module{Name: module, Routes: routes}
			for i := range m.Routes {
				r := &m.Routes[i]
				r.Hosts = hosts
				if respond {
					r.Action.Respond = &route.Respond{Body: module + "/" + r.Name + "\n"}
				} else {
					r.Action.Proxy = &route.Proxy{Upstream: module}
				}
			}
			if !respond {
				m.Upstreams = []route.Upstream{{Name: module, Targets: []route.Target{{URL: upstream}}}}
			}
			route.NormalizeModule(m)
			checked := engine.Check(&route.Table{Modules: []*route.Module{m}})
			if err := checked.Err(); err != nil {
				return err
			}
			encode := routefile.Encode
			if c.output == "json" {
				encode = routefile.EncodeJSON
			}
			b, err := encode(m)
			if err != nil {
				return err
			}
			if err := c.write(b); err != nil {
				return err
			}
			c.say("%s of module %s", plural(len(m.Routes), "route"), module)
			return nil
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&module, "module", "", "name of the module")
	fs.StringSliceVar(&hosts, "host", nil, "host of every route; any if absent; may be repeated")
	fs.StringVar(&upstream, "upstream", "", "URL that every route is sent to")
	fs.BoolVar(&respond, "respond", false, "every route answers with its own name")
	return cmd
}

func (c *command) openTable(path string) (string, io.ReadCloser, error) {
	if path == "-" {
		return "standard input", io.NopCloser(c.env.Stdin), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", nil, fmt.Errorf("import table: %w", err)
	}
	return path, f, nil
}
