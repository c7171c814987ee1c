package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	first       bool
	noSwitch    bool
	allowShrink bool
	dryRun      bool
	planning
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
is live already makes no revision and no switch.

--dry-run does all of this but write: it checks the files with what is live now,
shows what would change and which revision would come of it, and ends with the
code that publish would end with. It needs only to read: the CI of a pull
request runs it as a user of etcd with the reader's role. By which strategy the
switch would go is said, not played; routectl rollout simulate does that.

By --strategy, or the fleet's default, the switch goes step by step. --wait then
shows every step, and waits as long as the rollout takes, unless --timeout says
how long: 0 when it is done, 1 when it went back, 5 when the time is over.`,
		Example: `  routectl publish -f shop.yaml -m "new product page" --wait
  routectl publish -f routes/ --all -m "all of it"
  routectl publish -f shop.yaml -m "new checkout" --strategy canary --wait
  routectl publish -f routes/*.yaml --dry-run
  generate | routectl publish -f - -m "from the generator" --expect 41`,
		RunE: func(cmd *cobra.Command, more []string) error {
			var intent *rollout.Intent
			switch {
			case p.dryRun && (p.wait || p.noSwitch || p.revert != 0):
				return fail(ExitUsage, errors.New("--dry-run changes nothing: --wait, --no-switch and --revert-after do not go with it"), "")
			case p.first && p.expect != 0:
				return fail(ExitUsage, errors.New("--first is for a fleet without a target, --expect names one"), "")
			case p.noSwitch && (p.wait || p.planning != planning{}):
				return fail(ExitUsage, errors.New("--no-switch leaves nothing to --wait for, nor to go by a strategy"), "")
			case !p.noSwitch:
				intent = &rollout.Intent{Kind: rollout.IntentSwitch}
				if err := errors.Join(p.waiting.apply(intent), p.planning.apply(intent)); err != nil {
					return err
				}
			}
			mods, err := c.readFiles(slices.Concat(p.files, more))
			if err != nil {
				return err
			}
			if p.module != "" && (len(mods) != 1 || mods[0].Name != p.module) {
				return fail(ExitInvalid, fmt.Errorf("the files hold %s, not just module %s", moduleNames(mods), p.module), "")
			}
			return c.withStore(func(s *store.Store) error { return c.publish(cmd.Context(), s, p, mods, intent) })
		},
	}
	takeFiles(cmd, &p.files, "route file, folder, or - for standard input; more may follow it, or another -f")
	fs := cmd.Flags()
	fs.StringVarP(&p.message, "message", "m", "", "what changes and why, for the history")
	fs.StringVar(&p.module, "module", "", "refuse files that hold another module than this")
	fs.BoolVar(&p.all, "all", false, "replace the whole table: modules that the files do not name go")
	fs.Int64Var(&p.expect, "expect", 0, "refuse when the target is another revision than this")
	fs.BoolVar(&p.first, "first", false, "do nothing when the fleet has a target already: for a script that may run again")
	fs.BoolVar(&p.noSwitch, "no-switch", false, "add the revision to the history and switch nothing")
	fs.BoolVar(&p.allowShrink, "allow-shrink", false, "allow taking away many routes or a whole host")
	fs.BoolVar(&p.dryRun, "dry-run", false, "check against the live fleet and show what would change; write nothing")
	p.planning.flags(c, cmd)
	p.waiting.flags(cmd)
	return cmd
}

// maxComposes is how often a publish starts again because another publish came
// in between. Each time it composes on what the other one made.
const maxComposes = 5

func (c *command) publish(ctx context.Context, s *store.Store, p publishing, mods []*route.Module, intent *rollout.Intent) error {
	var would outcome
	if intent != nil {
		v, err := s.View(ctx)
		if err != nil {
			return err
		}
		if err := checkPlan(v, intent); err != nil {
			return err
		}
		would = dryRun(v, intent)
	}
	for try := 1; ; try++ {
		fleet, err := s.Fleet(ctx)
		if err != nil {
			return err
		}
		if err := checkExpected(fleet.Target, p.expect); err != nil {
			return err
		}
		if p.first && !fleet.Target.IsZero() {
			return c.print(outcome{Revision: fleet.Target.Number, Digest: fleet.Target.Digest, DryRun: p.dryRun}, func(t *table) {
				t.line("the fleet has revision %d already; nothing was published", fleet.Target.Number)
			})
		}
		if fleet.Target.IsZero() && intent != nil && !(p.all && p.allowShrink) {
			if err := checkFirst(ctx, s); err != nil {
				return err
			}
		}
		made, err := c.compose(ctx, s, fleet.Target, p, mods)
		if err != nil {
			return err
		}
		req := store.PublishRequest{
			Snapshot: made.snap, Parent: fleet.Target, Author: c.env.author(), Message: p.message, Intent: intent, Anew: made.anew,
		}
		var done store.Published
		if p.dryRun {
			done, err = s.WouldPublish(ctx, req)
		} else {
			c.doing("publishing")
			done, err = s.Publish(ctx, req)
		}
		switch {
		case p.dryRun && (err == nil || errors.Is(err, store.ErrNothingChanged)):
			return c.reportDryRun(would, fleet.Target, made, done)
		case errors.Is(err, store.ErrNothingChanged):
			if done.Uploaded.Bytes > 0 {
				c.say("put the pieces of revision %d back: %s (%d bytes)", fleet.Target.Number, plural(done.Uploaded.Chunks, "chunk"), done.Uploaded.Bytes)
			}
			return c.print(outcome{Revision: fleet.Target.Number, Digest: made.snap.Digest}, func(t *table) {
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

// checkExpected refuses another target than the one that was named, if one was.
func checkExpected(target version.Ref, expect int64) error {
	switch {
	case expect == 0 || target.Number == expect:
		return nil
	case target.IsZero():
		return fail(ExitConflict, fmt.Errorf("there is no target yet, and so not revision %d", expect), "leave --expect out to publish the first")
	}
	return fail(ExitConflict, fmt.Errorf("the target is revision %d, not %d: somebody published meanwhile", target.Number, expect),
		fmt.Sprintf("routectl diff %d target shows what changed", expect))
}

// checkFirst refuses to publish on nothing while something is served: what the
// files do not name would be gone, and nobody asked.
func checkFirst(ctx context.Context, s *store.Store) error {
	v, err := s.View(ctx)
	if err != nil {
		return err
	}
	for _, g := range sorted(v.Groups) {
		if serves := v.Groups[g].Stable; !serves.IsZero() {
			return fail(ExitConflict, fmt.Errorf("the fleet has no target to compose on, and group %s serves revision %d, of which all would go that the files do not name", g, serves.Number),
				fmt.Sprintf("routectl switch %d makes it the target; --all --allow-shrink replaces everything", serves.Number))
		}
	}
	return nil
}

// composed is a table that passed every check of publish.
type composed struct {
	base, next *route.Table // base is nil when etcd lost pieces of it
	snap       *version.Snapshot
	anew       bool // send every piece
}

// compose puts the modules into the target's table and checks the result as
// every instance will. Pieces of a target that cannot be read are sent anew:
// those of the result may be among them.
func (c *command) compose(ctx context.Context, s *store.Store, target version.Ref, p publishing, mods []*route.Module) (made composed, err error) {
	base, lost := loadRevision(ctx, s, target)
	if lost != nil && !lostPieces(lost) {
		return made, lost
	}
	next := version.Compose(base, mods, p.all)
	c.doing("checking %s of %s", plural(countRoutes(next), "route"), plural(len(next.Modules), "module"))
	problems := engine.Check(next)
	if err := problems.Err(); err != nil {
		return made, err
	}
	c.warn(problems)
	made = composed{base: base, next: next, anew: lost != nil}
	if made.snap, err = version.Encode(next); err != nil {
		return made, err
	}
	if lost != nil {
		return made, c.onLost(lost, target, made.snap, p)
	}
	if reasons := version.Shrink(base, next); len(reasons) > 0 && !p.allowShrink {
		return made, fail(ExitConflict, fmt.Errorf("this takes much away: %s", strings.Join(reasons, "; ")),
			"routectl diff -f shows it; --allow-shrink allows it")
	}
	return made, nil
}

// lostPieces tells that a piece of a snapshot is missing or damaged in etcd.
func lostPieces(err error) bool {
	for _, is := range []error{store.ErrNotFound, store.ErrCorrupt, version.ErrNoChunk, version.ErrCorrupt} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// onLost tells whether to publish though etcd lost pieces of the target: what
// is the very same brings them back, and only a whole table needs nothing of it.
func (c *command) onLost(lost error, target version.Ref, snap *version.Snapshot, p publishing) error {
	switch {
	case snap.Digest == target.Digest:
		return nil
	case !p.all:
		return fail(ExitFailed, fmt.Errorf("compose on the target: %w", lost),
			"routectl recover --from an instance that serves it brings its pieces back, and so does publish --all of the files it was made of; --all --allow-shrink replaces everything")
	case !p.allowShrink:
		return fail(ExitConflict, fmt.Errorf("what this takes away cannot be told: %w", lost),
			"routectl recover --from an instance that serves it brings its pieces back; --allow-shrink does without")
	}
	c.say("nobody can tell what this takes away: %v", lost)
	return nil
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
