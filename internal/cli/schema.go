package cli

import (
	"github.com/spf13/cobra"

	"routerd.dev/internal/middleware"
	"routerd.dev/internal/routefile"
)

func newSchemaCmd(c *command) *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Write the JSON Schema of a route file, for editors",
		Long: `Write the JSON Schema of a route file, with this build's middlewares. An editor
that knows it completes field names and marks mistakes; validate finds the rest.`,
		Example: `  routectl schema > route-file.json`,
		Args:    usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			b, err := routefile.Schema(MiddlewareKinds()...)
			if err != nil {
				return err
			}
			return c.write(b)
		},
	}
}

// MiddlewareKinds describes this build's middlewares for the schema and the
// reference of route files.
func MiddlewareKinds() []routefile.MiddlewareKind {
	var out []routefile.MiddlewareKind
	for _, k := range middleware.Kinds() {
		out = append(out, routefile.MiddlewareKind{Name: k.Name, Doc: k.Doc, Config: k.Config})
	}
	return out
}
