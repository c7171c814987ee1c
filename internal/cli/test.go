package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/route"
	"routerd.dev/internal/version"
)

// tested is one route test with what came of it.
type tested struct {
	Module string `json:"module"`
	Test   string `json:"test"`
	Passed bool   `json:"passed"`
	Got    string `json:"got"` // the route, or the status without one
	Why    string `json:"why,omitempty"`
}

func newTestCmd(c *command) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "test -f PATH…",
		Short: "Run the route tests of files and list what came of each",
		Long: `Run the route tests of files and list what came of each. validate, publish and
every instance run the same tests and refuse a revision that fails one.`,
		Example: `  routectl test -f shop.yaml
  routectl test -f routes/ -o json`,
		RunE: func(cmd *cobra.Command, more []string) error {
			mods, err := c.readFiles(slices.Concat(files, more))
			if err != nil {
				return err
			}
			c.doing("compiling")
			t := &route.Table{Modules: mods}
			e, err := engine.Compile(cmd.Context(), version.Ref{}, t, nil, engine.Options{})
			if err != nil {
				return err
			}
			problems := e.RunTests()
			results := runTests(e, t, problems)
			if err := c.print(results, func(w *table) {
				for _, r := range results {
					verdict := "pass"
					if !r.Passed {
						verdict = "FAIL"
					}
					w.row(verdict, r.Module, r.Test, r.Got)
				}
				if len(results) == 0 {
					w.line("the files hold no tests")
				}
			}); err != nil {
				return err
			}
			return problems.Err()
		},
	}
	takeFiles(cmd, &files, "route file, folder, or - for standard input; more may follow it, or another -f")
	return cmd
}

// runTests lists every test, with the problem that stands at it if it failed.
func runTests(e *engine.Engine, t *route.Table, problems route.Problems) []tested {
	failed := map[string]string{}
	for _, p := range problems {
		field, _, _ := strings.Cut(p.Field, ".")
		failed[p.Module+"/"+field] = p.Message
	}
	out := []tested{}
	for _, m := range t.Modules {
		for i, test := range m.Tests {
			head := engine.TestHead(&test)
			x := e.Explain(&head)
			r := tested{Module: m.Name, Test: test.Name, Got: x.Route}
			if r.Test == "" {
				r.Test = test.Method + " " + test.URL
			}
			if r.Got == "" {
				r.Got = fmt.Sprint(x.Status)
			}
			var bad bool
			r.Why, bad = failed[fmt.Sprintf("%s/tests[%d]", m.Name, i)]
			r.Passed = !bad
			out = append(out, r)
		}
	}
	return out
}
