package rollout

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/version"
)

const (
	returnReports = 10 * time.Second       // for instances to say that they serve what was gone back to
	reportsEvery  = 200 * time.Millisecond // how often that is looked at: reports wake nobody
)

// fail is what a failure leads to: r goes back, or holds if its plan wants an
// operator to decide.
func (d *draft) fail(r *Rollout, why string) {
	if r.Phase == PhaseReturning {
		return // Once it goes back nothing else matters.
	}
	if r.Plan.ManualRollback && r.committed() {
		d.stuckAt(r, why, why+": abort it, or promote it")
		return
	}
	d.turnBack(r, controllerName, why)
}

// turnBack sends r back to where its groups were, or were baked last, once.
// When nothing was committed there is nothing to go back from; when there is no
// way back it holds.
func (d *draft) turnBack(r *Rollout, by, why string) {
	if r.Phase == PhaseReturning {
		return
	}
	if !r.committed() {
		d.withdraw(r)
		d.restore(r)
		d.end(r, PhaseAborted, why)
		d.audit(r, "abort", fmt.Sprintf("%s: %s", by, why), d.scope(r), r.To)
		return
	}
	ms, stuck := d.wayBack(r, by == controllerName)
	if r.Return != nil || len(stuck) > 0 {
		no := fmt.Sprintf("%s; there is no way back for %s in what its instances hold: routectl rollback REV, or promote it", why, join(stuck, ", "))
		d.stuckAt(r, why, no)
		return
	}
	if aside := d.asideText(r, ms); aside != "" {
		why += "; back " + aside
	}
	r.Phase, r.Why, r.Hold = PhaseReturning, why, nil
	r.Return = &Return{Why: brief(why, maxWhy), By: by, Decided: d.now}
	if r.Evidence != nil && !r.Judged.IsZero() && r.Evidence.Verdict == analysis.Fail {
		r.Return.Evidence = r.Evidence
	}
	r.Deadline = d.now.Add(rollbackWait)
	r.First, r.FirstBoot = "", ""
	d.withdraw(r)
	d.restore(r)
	d.audit(r, "return", fmt.Sprintf("%s: %s", by, why), d.scope(r), r.To)
	d.comeBack(r)
}

// stuckAt holds r for an operator after a failure. What it says is not
// written anew with each look, which would call for another.
func (d *draft) stuckAt(r *Rollout, why, hold string) {
	if r.Hold != nil && r.Hold.Operator {
		d.stay(r, r.Why)
		return
	}
	d.holdForOperator(r, hold)
	d.stay(r, why)
}

// byItself tells that no operator decided to go back.
func (r *Return) byItself() bool { return r != nil && r.By == controllerName }

// backTo says where group g goes back to from what r did there. An operator's
// way leads to r's origin; what goes back by itself goes to what was baked, if
// the set has any such.
func (d *draft) backTo(r *Rollout, g string, byItself bool) (version.Ref, bool) {
	a, origin := d.groups[g], r.Origin[g]
	fit := !origin.IsZero() && !d.condemned(origin.Digest) && has(a.Set, origin.Digest)
	stays := a.Stable.Digest == origin.Digest
	if r.Return != nil && !r.Return.Committed.IsZero() && a.Stable.Digest != r.To.Digest {
		return a.Stable, true // It went back already: nobody goes forward from there.
	}
	if byItself && !stays && r.Epochs[g] > 0 && !(fit && d.v.Baked[origin.Digest]) {
		if to, ok := d.lastBaked(r, a); ok {
			return to, true
		}
	}
	switch {
	case stays:
		return a.Stable, true // Only a candidate goes, if there is one.
	case fit:
		return origin, true
	case a.Stable.Digest != r.To.Digest:
		return a.Stable, true
	}
	return d.lastBaked(r, a)
}

// lastBaked is the newest revision on a's way back that a rollout brought to its
// end, and that is in the set in force.
func (d *draft) lastBaked(r *Rollout, a Assignment) (version.Ref, bool) {
	i := slices.IndexFunc(a.Back, func(b version.Ref) bool {
		return b.Digest != r.To.Digest && d.v.Baked[b.Digest] && !d.condemned(b.Digest) && has(a.Set, b.Digest)
	})
	if i < 0 {
		return version.Ref{}, false
	}
	return a.Back[i], true
}

// asideText says which of ms go elsewhere than r came from, and why.
func (d *draft) asideText(r *Rollout, ms []move) string {
	var out []string
	for _, m := range ms {
		origin, own := r.Origin[m.group]
		if !own || origin.Digest == m.to.Digest {
			continue
		}
		why := "was never baked"
		switch {
		case d.condemned(origin.Digest):
			why = "is condemned"
		case !has(m.from.Set, origin.Digest):
			why = "is not held any more"
		}
		if s := fmt.Sprintf("to revision %d: revision %d %s", m.to.Number, origin.Number, why); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return strings.Join(out, ", ")
}

// wayBack lists the moves by which r goes back, and the groups that cannot.
func (d *draft) wayBack(r *Rollout, byItself bool) (ms []move, stuck []string) {
	for _, g := range sorted(r.Origin) {
		a, ok := d.groups[g]
		if !ok || a.Stable.Digest == r.To.Digest && r.Origin[g].IsZero() {
			continue // retired, or it served nothing before
		}
		to, ok := d.backTo(r, g, byItself)
		switch {
		case !ok:
			stuck = append(stuck, g)
		case a.Stable.Digest != to.Digest || a.Candidate != nil:
			ms = append(ms, move{group: g, from: a, to: to, regs: d.registered(g), warm: true})
		}
	}
	for _, g := range d.adopted(r) {
		if to, ok := d.adoptedBackTo(r, d.groups[g], byItself); ok {
			ms = append(ms, move{group: g, from: d.groups[g], to: to, regs: d.registered(g), warm: true})
		}
	}
	return ms, stuck
}

// adoptedBackTo says where a group goes that was given r's revision when it came.
func (d *draft) adoptedBackTo(r *Rollout, a Assignment, byItself bool) (version.Ref, bool) {
	if to, ok := d.lastBaked(r, a); ok && byItself {
		return to, true
	}
	i := slices.IndexFunc(a.Back, func(b version.Ref) bool { return !d.condemned(b.Digest) && has(a.Set, b.Digest) })
	if i < 0 {
		return version.Ref{}, false
	}
	return a.Back[i], true
}

// adopted lists groups that came while r went on and were given its revision,
// because every other group had committed it.
func (d *draft) adopted(r *Rollout) []string {
	var out []string
	for _, g := range sorted(d.groups) {
		a := d.groups[g]
		_, own := r.Origin[g]
		if !own && a.Rollout == "" && a.Stable.Digest == r.To.Digest && !a.Instant.Before(r.Started) &&
			!slices.ContainsFunc(d.active, func(o Rollout) bool { return o.ID != r.ID && slices.Contains(d.scope(&o), g) }) {
			out = append(out, g)
		}
	}
	return out
}

// widen has a rollback that ends a rollout on its way back take the rest of
// that way, too.
func (d *draft) widen(r *Rollout, goals map[string]version.Ref) {
	for i := range d.active {
		o := &d.active[i]
		if o.Phase != PhaseReturning || !d.overlap(o, r) {
			continue
		}
		ms, _ := d.wayBack(o, o.Return.byItself())
		for _, m := range ms {
			if _, ok := goals[m.group]; !ok {
				goals[m.group] = m.to
			}
		}
	}
}

// comeBack commits the way back, waits until all say that they serve it, and
// ends r.
func (d *draft) comeBack(r *Rollout) {
	if r.Return == nil { // No step writes it so; it goes back all the same.
		r.Return = &Return{Why: r.Why, By: controllerName, Decided: d.now}
	}
	if r.Return.Committed.IsZero() {
		if !d.commitReturn(r) {
			return
		}
	}
	if most := d.now.Add(returnReports); r.Deadline.After(most) {
		r.Deadline = most
	}
	behind, pinned := d.notBack(r)
	switch {
	case len(behind) == 0 && len(pinned) > 0:
		d.rolledBack(r, fmt.Sprintf("%s (all but those that are pinned to something else: %s)", r.Return.Why, join(pinned, ", ")))
	case len(behind) == 0:
		ret := *r.Return
		ret.Over = d.now
		r.Return = &ret
		d.rolledBack(r, ret.Why)
	case d.over(r):
		d.rolledBack(r, fmt.Sprintf("%s (not known to serve it: %s)", r.Return.Why, join(append(behind, pinned...), ", ")))
	default:
		d.stay(r, fmt.Sprintf("%s: gone back, and waits for %s", r.Return.Why, join(behind, ", ")))
		d.look(d.now.Add(reportsEvery))
	}
}

func (d *draft) rolledBack(r *Rollout, why string) {
	d.end(r, PhaseRolledBack, why)
	d.audit(r, "rolled-back", why, d.scope(r), r.To)
}

// commitReturn is the one commit that goes back. It waits for stragglers as
// long as a rollback does.
func (d *draft) commitReturn(r *Rollout) bool {
	if most := d.now.Add(rollbackWait); r.Deadline.After(most) {
		r.Deadline = most
	}
	ms, stuck := d.wayBack(r, r.Return.byItself())
	why := ""
	if len(stuck) > 0 {
		why = fmt.Sprintf("there is no way back for %s: routectl rollback REV", join(stuck, ", "))
	} else {
		why = d.frozenText(ms)
	}
	if why != "" || d.held {
		if why != "" {
			d.holdUntil(r, why)
		}
		d.put(*r)
		return false
	}
	r.unhold()
	waits := slices.ContainsFunc(ms, func(m move) bool {
		return slices.ContainsFunc(m.regs, func(said Ready) bool {
			return !d.holds(m, said) && !said.Evicted && !d.lacksOther(m, said)
		})
	})
	if waits && !d.over(r) {
		d.stay(r, fmt.Sprintf("%s: going back, and waits for %s", r.Return.Why, d.lateText(ms)))
		return false
	}
	override := ""
	if slices.ContainsFunc(ms, func(m move) bool { return len(d.late(m)) > 0 }) {
		override = brief(fmt.Sprintf("rollback waited %v for %s", rollbackWait, d.lateText(ms)), maxWhy)
	}
	ret := *r.Return
	ret.Committed, ret.To = d.now, make(map[string]int64, len(ms))
	if len(ms) > 0 {
		d.place(r, ms, override, func(m move, a *Assignment) { a.Stable, a.Back = m.to, popBack(m) })
		d.audit(r, "commit", strings.TrimSuffix("back to "+goalsText(ms)+": "+override, ": "), groupsOf(ms), ms[0].to)
	}
	target := d.fleet.Target
	for _, m := range ms {
		ret.To[m.group] = m.to.Number
		// Nobody is to compose on what is condemned, or was gone back behind.
		if d.passedBy(r, m) && (target == d.fleet.Target || m.to.Number > target.Number) {
			target = m.to
		}
	}
	d.fleet.Target = target
	r.Return, r.Canaries = &ret, nil
	r.Deadline = d.now.Add(returnReports)
	d.settle()
	return true
}

// passedBy tells that the target is what m's group came from, and where it did not
// go back to because that must not be served, or was never baked and is served
// nowhere any more.
func (d *draft) passedBy(r *Rollout, m move) bool {
	origin, own := r.Origin[m.group]
	if !own || d.fleet.Target.Digest != origin.Digest {
		return false
	}
	if d.condemned(origin.Digest) {
		return true
	}
	return r.Return.byItself() && m.to.Digest != origin.Digest && !d.v.Baked[origin.Digest] && !d.serves(origin.Digest)
}

// serves tells that some group has x for stable.
func (d *draft) serves(x version.Digest) bool {
	for _, a := range d.groups {
		if a.Stable.Digest == x {
			return true
		}
	}
	return false
}

// goalsText names the revisions that ms go to, and by which groups if they differ.
func goalsText(ms []move) string {
	groups := make(map[int64][]string)
	for _, m := range ms {
		groups[m.to.Number] = append(groups[m.to.Number], m.group)
	}
	var out []string
	for _, n := range slices.Sorted(maps.Keys(groups)) {
		s := fmt.Sprintf("revision %d", n)
		if len(groups) > 1 {
			s += " in " + join(groups[n], ", ")
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

func popBack(m move) []version.Ref {
	if m.to.Digest == m.from.Stable.Digest {
		return m.from.Back
	}
	return popped(m.from, m.to)
}

// notBack names the registered instances that do not say yet that they serve
// what r went back to, and those that never will: an operator pinned them.
func (d *draft) notBack(r *Rollout) (behind, pinned []string) {
	for _, g := range sorted(r.Return.To) {
		a, ok := d.groups[g]
		if !ok || a.Rollout != r.ID {
			continue
		}
		for _, said := range d.registered(g) {
			switch rep := d.v.Reports[said.Instance]; {
			case rep.Serving == nil || rep.Serving.Epoch < a.Epoch:
				behind = append(behind, said.Instance)
			case !rep.Pinned.IsZero() && rep.Serving.Digest != a.Stable.Digest:
				pinned = append(pinned, said.Instance)
			}
		}
	}
	return behind, pinned
}
