package cli

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

func newDiffCmd(c *command) *cobra.Command {
	var (
		files         []string
		all, exitCode bool
	)
	cmd := &cobra.Command{
		Use:   "diff [A [B]] | -f PATH…",
		Short: "Show what changes between two revisions, or between the target and files",
		Long: `Show what changes from revision A to revision B, or, with -f, from the target to
what publishing these files would make of it. One revision is compared with
the target. With --exit-code, differences end with code 6.`,
		Example: `  routectl diff 41 42
  routectl diff -f shop.yaml --exit-code`,
		Args: func(cmd *cobra.Command, args []string) error {
			i := slices.IndexFunc(args, namesRevision)
			switch {
			case len(files) > 0 && i >= 0:
				return fail(ExitUsage, fmt.Errorf("%s is a revision, and -f compares files with the target: name revisions, or files", args[i]),
					"routectl diff A B, or routectl diff -f PATH; a file of that name is ./"+args[i])
			case len(files) > 0:
				return nil // they are paths
			case len(args) == 0:
				return fail(ExitUsage, errors.New("name revisions, or files with -f"), "routectl diff A B, or routectl diff -f PATH")
			}
			return usage(cobra.MaximumNArgs(2))(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(files) > 0 {
				files, args = slices.Concat(files, args), nil
			}
			return c.withStore(func(s *store.Store) error {
				a, b, err := c.sides(cmd, s, args, files, all)
				if err != nil {
					return err
				}
				d := version.Diff(a, b)
				if err := c.print(d, func(w *table) {
					if d.Empty() {
						w.line("no differences")
					} else {
						w.text(d.String())
					}
				}); err != nil {
					return err
				}
				if exitCode && !d.Empty() {
					return fail(ExitDifferences, errQuiet, "")
				}
				return nil
			})
		},
	}
	cmd.Flags().StringArrayVarP(&files, "file", "f", nil, "compare the target with this route file, folder, or - for standard input; more may follow it, or another -f")
	_ = cmd.RegisterFlagCompletionFunc("file", completeFiles)
	cmd.ValidArgsFunction = behindFiles(&files, c.completeRevisions(2))
	cmd.Flags().BoolVar(&all, "all", false, "with -f: as publish --all, modules that the files do not name go")
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "end with code 6 when there are differences")
	return cmd
}

// errQuiet ends a command with its code and says nothing: the output did.
var errQuiet = errors.New("differences")

func (c *command) sides(cmd *cobra.Command, s *store.Store, args, files []string, all bool) (a, b *route.Table, err error) {
	ctx := cmd.Context()
	if len(files) > 0 {
		mods, err := c.readFiles(files)
		if err != nil {
			return nil, nil, err
		}
		fleet, err := s.Fleet(ctx)
		if err != nil {
			return nil, nil, err
		}
		base, err := loadRevision(ctx, s, fleet.Target)
		if err != nil {
			return nil, nil, err
		}
		return base, version.Compose(base, mods, all), nil
	}
	if len(args) == 1 {
		args = append(args, "target")
	}
	var tables [2]*route.Table
	for i, arg := range args {
		rev, err := revision(ctx, s, arg)
		if err != nil {
			return nil, nil, err
		}
		if tables[i], err = loadRevision(ctx, s, rev.Ref()); err != nil {
			return nil, nil, fmt.Errorf("diff: %w", err)
		}
	}
	return tables[0], tables[1], nil
}
