package cli

import (
	"github.com/spf13/cobra"

	"routerd.dev/internal/store"
)

func newInitCmd(c *command) *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "Make an empty fleet under the prefix",
		Long: `Make an empty fleet under the prefix. A fleet that exists is left as it is, so
init can be run again. An instance that starts without a state of its own makes
the fleet too, so init is only needed where instances may not write there.`,
		Example: `  routectl init
  routectl init --prefix /staging/routes`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withStore(func(s *store.Store) error {
				f, created, err := s.Init(cmd.Context())
				if err != nil {
					return err
				}
				return c.print(struct {
					Fleet   string `json:"fleet"`
					Prefix  string `json:"prefix"`
					Created bool   `json:"created"`
				}{f.FleetID, s.Prefix(), created}, func(w *table) {
					if created {
						w.line("fleet %s made under %s", f.FleetID, s.Prefix())
					} else {
						w.line("fleet %s is there already under %s; nothing was changed", f.FleetID, s.Prefix())
					}
				})
			})
		},
	}
}
