package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/route"
	"routerd.dev/internal/routefile"
	"routerd.dev/internal/version"
)

// checked is what `validate -o json` gives.
type checked struct {
	Valid    bool           `json:"valid"`
	Modules  int            `json:"modules"`
	Routes   int            `json:"routes"`
	Tests    int            `json:"tests"`
	Digest   version.Digest `json:"digest,omitzero"` // of these modules as a whole table
	Problems []problem      `json:"problems"`
}

// problem is a route.Problem with its severity in words.
type problem struct {
	Severity string `json:"severity"`
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Module   string `json:"module,omitempty"`
	Route    string `json:"route,omitempty"`
	Field    string `json:"field,omitempty"`
	Message  string `json:"message"`
	Hint     string `json:"hint,omitempty"`
}

func newValidateCmd(c *command) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "validate -f PATH…",
		Short: "Check route files as every instance will, without etcd",
		Long: `Check route files as every instance will, without etcd: form, patterns,
ambiguities, upstreams, middlewares and limits, and the route tests. Every
problem is reported, with file, line and field.

publish checks again, together with the other modules of the fleet.`,
		Example: `  routectl validate -f routes/
  generate | routectl validate -f - -o json`,
		Args: usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			if len(files) == 0 {
				return fail(ExitUsage, errors.New("no route file given"), "name files, folders or - with -f")
			}
			read, err := routefile.Read(files, c.env.Stdin)
			if err != nil {
				return fail(ExitInvalid, err, "")
			}
			mods, problems := routefile.Parse(read)
			t := &route.Table{Modules: mods}
			problems = append(problems, engine.Check(t)...)
			out := checked{Valid: problems.Err() == nil, Modules: len(mods), Problems: []problem{}}
			for _, m := range mods {
				out.Routes += len(m.Routes)
				out.Tests += len(m.Tests)
			}
			if out.Valid {
				snap, err := version.Encode(t)
				if err != nil {
					return err
				}
				out.Digest = snap.Digest
			}
			for _, p := range problems {
				severity := "error"
				if p.Severity == route.Warning {
					severity = "warning"
				}
				out.Problems = append(out.Problems, problem{severity, p.Place.File, p.Place.Line, p.Module, p.Route, p.Field, p.Message, p.Hint})
			}
			if c.output != "table" {
				if err := c.print(out, nil); err != nil || out.Valid {
					return err
				}
				return problems
			}
			if !out.Valid {
				return problems
			}
			for _, w := range problems {
				c.say("warning: %v", w)
			}
			return c.print(out, func(w *table) {
				w.line("valid: %s, %s, %s passed", plural(out.Modules, "module"), plural(out.Routes, "route"), plural(out.Tests, "test"))
			})
		},
	}
	cmd.Flags().StringArrayVarP(&files, "file", "f", nil, "route file, folder, or - for standard input; may be repeated")
	return cmd
}
