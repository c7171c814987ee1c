package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"routerd.dev/internal/route"
	"routerd.dev/internal/routefile"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
	"routerd.dev/internal/yamlfile"
)

// shownRevision is a revision with what stands in it.
type shownRevision struct {
	version.Revision
	Files []*yamlfile.Node `json:"files"` // a route file a module
}

func newShowCmd(c *command) *cobra.Command {
	var module string
	cmd := &cobra.Command{
		Use:   "show [REVISION]",
		Short: "Show a revision: who published it, and its routes",
		Long: `Show a revision: who published it and why, and its routes in the order in
which they are tried. REVISION is a number, target (the default), committed or
head.`,
		Example: `  routectl show
  routectl show 41 --module shop
  routectl show head -o json`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: c.completeRevisions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withStore(func(s *store.Store) error {
				rev, t, err := c.fetch(cmd, s, args, module)
				if err != nil {
					return err
				}
				shown := shownRevision{Revision: rev, Files: []*yamlfile.Node{}}
				for _, m := range t.Modules {
					b, err := routefile.EncodeJSON(m)
					if err != nil {
						return err
					}
					n, err := yamlfile.ParseJSON(b)
					if err != nil {
						return fmt.Errorf("show module %s: %w", m.Name, err)
					}
					shown.Files = append(shown.Files, n)
				}
				return c.print(shown, func(w *table) { showTable(w, rev, t) })
			})
		},
	}
	cmd.Flags().StringVar(&module, "module", "", "only this module")
	return cmd
}

// fetch reads the revision that args name, the target without, and its table,
// cut to one module if one is named.
func (c *command) fetch(cmd *cobra.Command, s *store.Store, args []string, module string) (version.Revision, *route.Table, error) {
	name := "target"
	if len(args) > 0 {
		name = args[0]
	}
	rev, err := revision(cmd.Context(), s, name)
	if err != nil {
		return rev, nil, err
	}
	t, err := loadRevision(cmd.Context(), s, rev.Ref())
	if err != nil || module == "" {
		return rev, t, err
	}
	for _, m := range t.Modules {
		if m.Name == module {
			return rev, &route.Table{Modules: []*route.Module{m}}, nil
		}
	}
	return rev, nil, fail(ExitFailed, fmt.Errorf("revision %d has no module %q", rev.Number, module), "routectl show lists its modules")
}

func showTable(w *table, rev version.Revision, t *route.Table) {
	w.line("revision  %d", rev.Number)
	w.line("digest    %s", rev.Digest)
	w.line("parent    %s", dash(rev.Parent))
	w.line("author    %s", rev.Author)
	w.line("time      %s", rev.Time.Local().Format(time.DateTime))
	w.line("message   %s", rev.Message)
	for _, m := range t.Modules {
		w.line("\nmodule %s: %s, %s, %s", m.Name, plural(len(m.Routes), "route"), plural(len(m.Upstreams), "upstream"), plural(len(m.Tests), "test"))
		w.row("  ROUTE", "HOSTS", "METHODS", "PATH", "ACTION")
		for i := range m.Routes {
			r := &m.Routes[i]
			w.row("  "+r.Name, orAny(r.Hosts), orAny(r.Methods), pathOf(r), actionOf(r))
		}
	}
}
