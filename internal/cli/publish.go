package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// publishing is the flags of publish.
type publishing struct {
	files       []string
	message     string
	module      string
	all         bool
	expect      int64
	noSwitch    bool
	allowShrink bool
	waiting
}

func newPublishCmd(c *command) *cobra.Command {
	var p publishing
	cmd := &cobra.Command{
		Use:   "publish -f PATH… [-m MESSAGE]",
		Short: "Publish route files as a new revision and switch the fleet to it",
		Long: `Publish route files as a new revision and switch the fleet to it.

The modules named in the files replace their namesakes in the target; the rest
stays. --all replaces the whole table. Everything is checked first, exactly as
every instance will check it. A publish that would take away every route, more
than a third of them, or a whole host asks for --allow-shrink. Publishing what
is live already makes no revision and no switch.`,
		Example: `  routectl publish -f shop.yaml -m "new product page" --wait
  routectl publish -f routes/ --all -m "all of it"
  generate | routectl publish -f - -m "from the generator" --expect 41`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var intent *rollout.Intent
			switch {
			case p.noSwitch && p.wait:
				return fail(ExitUsage, errors.New("--no-switch leaves nothing to --wait for"), "")
			case !p.noSwitch:
				intent = &rollout.Intent{Kind: rollout.IntentSwitch}
				if err := p.apply(intent); err != nil {
					return err
				}
			}
			mods, err := c.readFiles(p.files)
			if err != nil {
				return err
			}
			if p.module != "" && (len(mods) != 1 || mods[0].Name != p.module) {
				return fail(ExitInvalid, fmt.Errorf("the files hold %s, not just module %s", moduleNames(mods), p.module), "")
			}
			return c.withStore(func(s *store.Store) error { return c.publish(cmd.Context(), s, p, mods, intent) })
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVarP(&p.files, "file", "f", nil, "route file, folder, or - for standard input; may be repeated")
	fs.StringVarP(&p.message, "message", "m", "", "what changes and why, for the history")
	fs.StringVar(&p.module, "module", "", "refuse files that hold another module than this")
	fs.BoolVar(&p.all, "all", false, "replace the whole table: modules that the files do not name go")
	fs.Int64Var(&p.expect, "expect", 0, "refuse when the target is another revision than this")
	fs.BoolVar(&p.noSwitch, "no-switch", false, "add the revision to the history and switch nothing")
	fs.BoolVar(&p.allowShrink, "allow-shrink", false, "allow taking away many routes or a whole host")
	p.flags(cmd)
	return cmd
}

// maxComposes is how often a publish starts again because another publish came
// in between. Each time it composes on what the other one made.
const maxComposes = 5

func (c *command) publish(ctx context.Context, s *store.Store, p publishing, mods []*route.Module, intent *rollout.Intent) error {
	for try := 1; ; try++ {
		fleet, err := s.Fleet(ctx)
		if err != nil {
			return err
		}
		if p.expect != 0 && fleet.Target.Number != p.expect {
			if fleet.Target.IsZero() {
				return fail(ExitConflict, fmt.Errorf("there is no target yet, and so not revision %d", p.expect), "leave --expect out to publish the first")
			}
			return fail(ExitConflict, fmt.Errorf("the target is revision %d, not %d: somebody published meanwhile", fleet.Target.Number, p.expect),
				fmt.Sprintf("routectl diff %d target shows what changed", p.expect))
		}
		snap, err := c.compose(ctx, s, fleet.Target, p, mods)
		if err != nil {
			return err
		}
		c.doing("publishing")
		done, err := s.Publish(ctx, store.PublishRequest{
			Snapshot: snap, Parent: fleet.Target, Author: c.env.author(), Message: p.message, Intent: intent,
		})
		switch {
		case errors.Is(err, store.ErrNothingChanged):
			return c.print(outcome{Revision: fleet.Target.Number, Digest: snap.Digest}, func(t *table) {
				t.line("revision %d has exactly this and is served already; nothing was published", fleet.Target.Number)
			})
		case errors.Is(err, store.ErrConflict) && p.expect == 0 && try < maxComposes:
			continue
		case err != nil:
			return err
		}
		return c.reportPublished(ctx, s, p, done)
	}
}

// compose puts the modules into the target's table and checks the result as
// every instance will.
func (c *command) compose(ctx context.Context, s *store.Store, target version.Ref, p publishing, mods []*route.Module) (*version.Snapshot, error) {
	base, err := loadRevision(ctx, s, target)
	if err != nil {
		return nil, err
	}
	next := version.Compose(base, mods, p.all)
	c.doing("checking %s of %s", plural(countRoutes(next), "route"), plural(len(next.Modules), "module"))
	problems := engine.Check(next)
	if err := problems.Err(); err != nil {
		return nil, err
	}
	c.warn(problems)
	if reasons := version.Shrink(base, next); len(reasons) > 0 && !p.allowShrink {
		return nil, fail(ExitConflict, fmt.Errorf("this takes much away: %s", strings.Join(reasons, "; ")),
			"routectl diff -f shows it; --allow-shrink allows it")
	}
	return version.Encode(next)
}

func (c *command) reportPublished(ctx context.Context, s *store.Store, p publishing, done store.Published) error {
	rev := done.Revision
	c.say("published revision %d (%s): %s, %s sent (%d bytes), %d were there", rev.Number, rev.Digest.Short(),
		plural(rev.Routes, "route"), plural(done.Uploaded.Chunks, "chunk"), done.Uploaded.Bytes, done.Uploaded.Known)
	out := outcome{Revision: rev.Number, Digest: rev.Digest, Changed: true, Uploaded: &done.Uploaded}
	if done.Intent != nil {
		out.Rollout = done.Intent.ID
	}
	if p.wait {
		return c.conclude(ctx, s, out, p.waiting, "switched")
	}
	return c.print(out, func(t *table) {
		if done.Intent == nil {
			t.line("revision %d is in the history; routectl switch %d serves it", rev.Number, rev.Number)
		} else {
			t.line("revision %d is being prepared; routectl status --watch follows it", rev.Number)
		}
	})
}

func countRoutes(t *route.Table) int {
	n := 0
	for _, m := range t.Modules {
		n += len(m.Routes)
	}
	return n
}

func moduleNames(mods []*route.Module) string {
	names := make([]string, len(mods))
	for i, m := range mods {
		names[i] = m.Name
	}
	return "modules " + strings.Join(names, ", ")
}
