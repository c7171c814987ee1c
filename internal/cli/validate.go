package cli

import (
	"slices"
	"strings"

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
	Column   int    `json:"column,omitempty"`
	Module   string `json:"module,omitempty"`
	Route    string `json:"route,omitempty"`
	Field    string `json:"field,omitempty"`
	Message  string `json:"message"`
	Hint     string `json:"hint,omitempty"`
}

// valid replaces what is not UTF-8, which a wrong file may hold and JSON cannot.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func newValidateCmd(c *command) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "validate -f PATH…",
		Short: "Check route files as every instance will, without etcd",
		Long: `Check route files as every instance will, without etcd: form, patterns,
ambiguities, upstreams, middlewares and limits, and the route tests. Every
problem is reported, with file, line and field.

publish checks again, together with the other modules of the fleet; so does
publish --dry-run, and changes nothing.`,
		Example: `  routectl validate -f routes/
  routectl validate -f routes/*.yaml
  generate | routectl validate -f - -o json`,
		RunE: func(_ *cobra.Command, more []string) error {
			read, err := c.read(slices.Concat(files, more))
			if err != nil {
				return err
			}
			c.doing("checking")
			mods, problems := routefile.Parse(read)
			t := &route.Table{Modules: mods}
			problems = inOrder(append(problems, engine.Check(t)...))
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
				out.Problems = append(out.Problems, problem{
					Severity: severity, File: valid(p.Place.File), Line: p.Place.Line, Column: p.Place.Column,
					Module: valid(p.Module), Route: valid(p.Route), Field: valid(p.Field), Message: valid(p.Message), Hint: valid(p.Hint),
				})
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
			c.warn(problems)
			return c.print(out, func(w *table) {
				w.line("valid: %s, %s, %s passed", plural(out.Modules, "module"), plural(out.Routes, "route"), plural(out.Tests, "test"))
			})
		},
	}
	takeFiles(cmd, &files, "route file, folder, or - for standard input; more may follow it, or another -f")
	return cmd
}
