package cli

import (
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"routerd.dev/internal/buildinfo"
	"routerd.dev/internal/engine"
)

func newVersionCmd(c *command) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which build this is and what it can do",
		Long: `Say which build this is and what it can do: instances refuse a revision that
needs a capability they lack, so upgrade them before routectl.`,
		Example: `  routectl version -o json`,
		Args:    usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version      string   `json:"version"`
				Go           string   `json:"go"`
				Capabilities []string `json:"capabilities"`
			}{buildinfo.Version(), runtime.Version(), engine.Capabilities()}
			return c.print(v, func(w *table) {
				w.line("routectl %s (%s)", v.Version, v.Go)
				w.line("can: %s", strings.Join(v.Capabilities, " "))
			})
		},
	}
}
