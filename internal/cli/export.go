package cli

import (
	"fmt"
	"os"

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
standard output, a document a module, or with --dir a file a module into a
folder that exists. No link in it is followed that leads out of it.
-o json writes JSON, which holds one module: name it, or use --dir.`,
		Example: `  routectl export > all.yaml
  routectl export 41 --dir routes/`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: c.completeRevisions(1),
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
				if ext == ".json" && dir == "" && len(t.Modules) != 1 {
					return fail(ExitUsage, fmt.Errorf("revision %d has %s, and a JSON file holds one", rev.Number, plural(len(t.Modules), "module")),
						"name one with --module, or write a file each with --dir")
				}
				var folder *os.Root // names of modules are etcd's: none leads out of it
				if dir != "" {
					if folder, err = os.OpenRoot(dir); err != nil {
						return fmt.Errorf("export: %w", err)
					}
					defer folder.Close()
				}
				for i, m := range t.Modules {
					b, err := encode(m)
					if err != nil {
						return err
					}
					if folder != nil {
						if err := folder.WriteFile(m.Name+ext, b, 0o644); err != nil {
							return fmt.Errorf("export module %s: %w", m.Name, err)
						}
						continue
					}
					if i > 0 && ext == ".yaml" {
						b = append([]byte("---\n"), b...)
					}
					if err := c.write(b); err != nil {
						return err
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
