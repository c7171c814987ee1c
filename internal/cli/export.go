package cli

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"routerd.dev/internal/routefile"
	"routerd.dev/internal/store"
)

func newExportCmd(c *command) *cobra.Command {
	var module, dir string
	cmd := &cobra.Command{
		Use:   "export [REVISION]",
		Short: "Write a revision as route files",
		Long: `Write a revision as route files that publish back to the same digest: to
standard output, a document a module, or with --dir a file a module.
-o json writes JSON.`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: c.completeRevisions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withStore(func(s *store.Store) error {
				rev, t, err := c.fetch(cmd, s, args, module)
				if err != nil {
					return err
				}
				encode, ext := routefile.Encode, ".yaml"
				if c.output == "json" {
					encode, ext = routefile.EncodeJSON, ".json"
				}
				for i, m := range t.Modules {
					b, err := encode(m)
					if err != nil {
						return err
					}
					if dir != "" {
						if err := os.WriteFile(filepath.Join(dir, m.Name+ext), b, 0o644); err != nil {
							return fmt.Errorf("export module %s: %w", m.Name, err)
						}
						continue
					}
					if i > 0 && ext == ".yaml" {
						b = append([]byte("---\n"), b...)
					}
					if _, err := c.env.Stdout.Write(b); err != nil {
						return fmt.Errorf("export module %s: %w", m.Name, err)
					}
				}
				if dir != "" {
					c.say("revision %d: %s written to %s", rev.Number, plural(len(t.Modules), "file"), dir)
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&module, "module", "", "only this module")
	cmd.Flags().StringVar(&dir, "dir", "", "write a file a module into this folder")
	return cmd
}
