package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/printable"
	"routerd.dev/internal/route"
	"routerd.dev/internal/routefile"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// readFiles reads the modules of the files, folders and "-" that -f names. It
// shows every problem of their form and fails if one is an error.
func (c *command) readFiles(paths []string) ([]*route.Module, error) {
	files, err := c.read(paths)
	if err != nil {
		return nil, err
	}
	mods, problems := routefile.Parse(files)
	if err := problems.Err(); err != nil {
		// More may be wrong in what could be read: say all of it at once.
		more := engine.Check(&route.Table{Modules: mods})
		return nil, append(problems, more...)
	}
	c.warn(problems)
	return mods, nil
}

// read reads the files, folders and "-" that -f names.
func (c *command) read(paths []string) ([]routefile.File, error) {
	if len(paths) == 0 {
		return nil, fail(ExitUsage, errors.New("no route file given"), "name files, folders or - with -f")
	}
	files, err := routefile.Read(paths, c.env.Stdin)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return nil, fail(ExitFailed, err, "")
	case err != nil:
		return nil, fail(ExitInvalid, err, "an empty source is never read as \"delete all\"")
	}
	return files, nil
}

// warn shows the warnings among problems.
func (c *command) warn(problems route.Problems) {
	const most = 20
	warnings := inOrder(problems.Warnings())
	for i, w := range warnings {
		if i == most {
			c.say("warning: and %d more like these", len(warnings)-most)
			return
		}
		c.say("warning: %v", w)
	}
}

// loadRevision reads the table of a revision out of etcd, verified.
func loadRevision(ctx context.Context, s *store.Store, ref version.Ref) (*route.Table, error) {
	if ref.IsZero() {
		return &route.Table{}, nil
	}
	manifest, err := s.Manifest(ctx, ref.Digest)
	if err != nil {
		return nil, fmt.Errorf("read revision %d: %w", ref.Number, err)
	}
	t, _, err := version.Load(ctx, ref.Digest, manifest, s, nil)
	if err != nil {
		return nil, fmt.Errorf("read revision %d: %w", ref.Number, err)
	}
	return t, nil
}

// revision finds the revision that an argument names: a number, "target",
// "committed" or "head".
func revision(ctx context.Context, s *store.Store, arg string) (version.Revision, error) {
	var n int64
	switch arg {
	case "target", "committed":
		fleet, err := s.Fleet(ctx)
		if err != nil {
			return version.Revision{}, err
		}
		if n = fleet.Target.Number; arg == "committed" {
			n = fleet.Committed.Number
		}
	case "head":
		head, err := s.Head(ctx)
		if err != nil {
			return version.Revision{}, err
		}
		n = head
	default:
		v, err := strconv.ParseInt(strings.TrimPrefix(arg, "r"), 10, 64)
		if err != nil || v < 1 {
			return version.Revision{}, fail(ExitUsage, fmt.Errorf("revision %q: want a number, target, committed or head", arg), "routectl history lists the revisions")
		}
		n = v
	}
	if n == 0 {
		return version.Revision{}, fail(ExitFailed, errors.New("nothing has been published yet"), "routectl publish -f FILE -m MESSAGE")
	}
	rev, err := s.Revision(ctx, n)
	if errors.Is(err, store.ErrNotFound) {
		return rev, fail(ExitFailed, fmt.Errorf("there is no revision %d", n), "routectl history lists the revisions")
	}
	return rev, err
}

// A completion offers words for an argument or a flag.
type completion func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completeRevisions offers the newest revisions with their messages, for at
// most so many arguments.
func (c *command) completeRevisions(most int) completion {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		out, directive := c.offer(cmd, func(ctx context.Context, s *store.Store) (out []string, err error) {
			revs, err := s.History(ctx, 20, 0)
			for _, r := range revs {
				out = append(out, fmt.Sprintf("%d\t%s", r.Number, r.Message))
			}
			return out, err
		})
		return out, directive | cobra.ShellCompDirectiveKeepOrder
	}
}

// completeGroups offers the fleet's groups.
func (c *command) completeGroups(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return c.offer(cmd, func(ctx context.Context, s *store.Store) ([]string, error) {
		v, err := s.View(ctx)
		if err != nil {
			return nil, err
		}
		return sorted(v.Groups), nil
	})
}

// offer asks etcd for words, for a shell that waits: not for long.
func (c *command) offer(cmd *cobra.Command, ask func(context.Context, *store.Store) ([]string, error)) (out []string, _ cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*noticeable)
	defer cancel()
	err := c.complete(cmd.Flags()) // no PreRun before a completion
	if err == nil {
		err = c.withStore(func(s *store.Store) (err error) {
			c.doing("") // a shell shows no talk
			out, err = ask(ctx, s)
			return err
		})
	}
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	for i, word := range out { // a tab parts it from what is said of it
		name, about, _ := strings.Cut(word, "\t")
		out[i] = strings.TrimSuffix(printable.Text(name)+"\t"+printable.Text(about), "\t")
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// plural gives "1 route" or "3 routes".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}
