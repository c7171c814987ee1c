package rollout

import (
	"slices"

	"routerd.dev/internal/version"
)

// MaxGroups is how many groups a fleet has: a commit may concern them all, and
// etcd takes 128 compares a transaction.
const MaxGroups = 100

const (
	maxBack  = 8 // how far a rollback without a name can go
	keptBack = 2 // how many of these a set holds, ready for use
)

// controllerName stands in the audit for what no operator asked for.
const controllerName = "controller"

// setOf is what a prepared set names: what is to be served, what is served now, and
// what was stable last. A condemned digest is in it only if it is served.
func (d *draft) setOf(to, now version.Ref, back []version.Ref) []version.Ref {
	set := make([]version.Ref, 0, 2+keptBack)
	for _, r := range []version.Ref{to, now} {
		if !r.IsZero() && !has(set, r.Digest) {
			set = append(set, r)
		}
	}
	kept := 0
	for _, r := range back {
		if kept == keptBack {
			break
		}
		if has(set, r.Digest) || d.condemned(r.Digest) {
			continue
		}
		set, kept = append(set, r), kept+1
	}
	return set
}

// pushed is the way back after from was left by going forward to another
// revision: newest first, each once, bounded.
func pushed(from Assignment, to version.Ref) []version.Ref {
	var back []version.Ref
	for _, r := range append([]version.Ref{from.Stable}, from.Back...) {
		if !r.IsZero() && r.Digest != to.Digest && !has(back, r.Digest) && len(back) < maxBack {
			back = append(back, r)
		}
	}
	return back
}

// popped is the way back after from went back to a revision: never forward
// again.
func popped(from Assignment, to version.Ref) []version.Ref {
	if i := slices.IndexFunc(from.Back, func(r version.Ref) bool { return r.Digest == to.Digest }); i >= 0 {
		return slices.Clone(from.Back[i+1:])
	}
	notOlder := func(r version.Ref) bool { return r.Number >= to.Number }
	return slices.DeleteFunc(slices.Clone(from.Back), notOlder)
}

func has(set []version.Ref, d version.Digest) bool {
	return slices.ContainsFunc(set, func(r version.Ref) bool { return r.Digest == d })
}

func (d *draft) condemned(x version.Digest) bool {
	_, ok := d.v.Condemned[x]
	return ok
}
