package cli

import (
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// dryRun begins the outcome of a dry run: by which strategy the controller
// would play the intent. While no group serves anything there are no steps:
// nothing could be compared with, nor gone back to.
func dryRun(v *rollout.View, i *rollout.Intent) outcome {
	out := outcome{DryRun: true, Strategy: rollout.AllAtOnce}
	for _, g := range v.Groups {
		if !g.Stable.IsZero() {
			out.Strategy, out.FirstUse = strategyOf(v, i), v.Fleet.Settings.FirstUse
		}
	}
	if out.FirstUse == out.Strategy {
		out.FirstUse = ""
	}
	return out
}

// reportDryRun shows what would change; would is zero when there is nothing to publish.
func (c *command) reportDryRun(out outcome, target version.Ref, made composed, would store.Published) error {
	rev := would.Revision
	out.Target, out.Digest, out.Revision, out.Changed = target.Number, made.snap.Digest, rev.Number, rev.Number != 0
	if !out.Changed {
		out.Revision, out.Strategy, out.FirstUse = target.Number, "", ""
	}
	switch {
	case made.snap.Digest == target.Digest:
		out.Difference = &version.Difference{Modules: []version.ModuleDifference{}}
	case !made.anew:
		diff := version.Diff(made.base, made.next)
		out.Difference = &diff
	}
	return c.print(out, func(t *table) {
		switch {
		case !out.Changed && made.anew:
			t.line("revision %d has exactly this and is served already; there is nothing to publish, but publish brings back the pieces of it that etcd lost", target.Number)
			return
		case !out.Changed:
			t.line("revision %d has exactly this and is served already; there is nothing to publish", target.Number)
			return
		case out.Difference == nil:
			t.line("what changes cannot be told: etcd lost pieces of revision %d", target.Number)
		case out.Difference.Empty():
			t.line("no differences: revision %d has exactly this, but not every group serves it", target.Number)
		default:
			t.text(out.Difference.String())
		}
		on := "as the first"
		if !target.IsZero() {
			on = "on revision " + itoa(target.Number)
		}
		by := out.Strategy
		if out.FirstUse != "" {
			by += ", or " + out.FirstUse + " at the first use of a feature"
		}
		t.line("would publish revision %d (%s, %s) %s, and switch to it by strategy %s; nothing was written",
			rev.Number, rev.Digest.Short(), plural(rev.Routes, "route"), on, by)
	})
}
