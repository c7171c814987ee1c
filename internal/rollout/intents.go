package rollout

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"routerd.dev/internal/version"
)

// answer takes up the oldest intent.
func (d *draft) answer() bool {
	if len(d.v.Intents) == 0 {
		return false
	}
	in := d.v.Intents[0]
	d.held = len(d.v.Intents) > 1
	d.c.Done = []string{in.ID}
	r := Rollout{Intent: in, Phase: PhasePending, Started: d.now}
	switch in.Kind {
	case IntentSwitch:
		d.takeSwitch(r)
	case IntentRollback:
		d.takeRollback(r)
	case IntentAbort:
		d.takeAbort(r)
	case IntentRecover:
		d.takeRecover(r)
	case IntentRetire:
		d.takeRetire(r)
	case IntentPromote, IntentPause, IntentResume, IntentApprove:
		d.takeOrder(r)
	default:
		d.reject(&r, PhaseRefused, fmt.Sprintf("this controller does not know intents of kind %q", in.Kind))
	}
	return true
}

// takeSwitch starts moving groups to a revision that the operator named.
func (d *draft) takeSwitch(r Rollout) {
	r.Target = r.To
	why := d.unfit(&r)
	if why == "" {
		why = d.busy(&r)
	}
	if why == "" {
		why = d.choosePlan(&r)
	}
	if why != "" {
		d.reject(&r, PhaseRefused, why)
		return
	}
	d.clear(&r)
	ms := d.moves(&r)
	r.Deadline = d.deadlineOf(&r, len(cold(ms)) == 0)
	d.audit(&r, "switch", noted(&r), d.scope(&r), r.To)
	d.advance(r)
}

// unfit says why r's revision cannot go where r asks.
func (d *draft) unfit(r *Rollout) string {
	if why := d.unknown(r.Groups); why != "" {
		return why
	}
	if r.To.IsZero() {
		return "" // back to what was stable
	}
	if rev, ok := d.v.Revisions[r.To.Number]; !ok || rev.Digest != r.To.Digest {
		return fmt.Sprintf("revision %d %s is not in the history: routectl history lists what is", r.To.Number, r.To.Digest.Short())
	}
	if c, ok := d.v.Condemned[r.To.Digest]; ok {
		return fmt.Sprintf("revision %d is condemned: %s; publish another", r.To.Number, c.Why)
	}
	return d.takenBack(r)
}

// takenBack says why r's revision, composed on what a rollback in progress
// takes back, must not bring it back.
func (d *draft) takenBack(r *Rollout) string {
	for _, o := range d.active {
		if r.Kind != IntentSwitch || o.Kind != IntentRollback || !d.overlap(&o, r) {
			continue
		}
		for _, m := range d.moves(&o) {
			if d.v.Revisions[r.To.Number].Parent == m.from.Stable.Number && r.PrevTarget.Digest == m.from.Stable.Digest {
				if !o.Target.IsZero() {
					r.PrevTarget = o.Target
				} else {
					r.PrevTarget = m.to
				}
				return fmt.Sprintf("it was composed on revision %d, which rollback %s takes back: publish again", m.from.Stable.Number, o.ID)
			}
		}
	}
	return ""
}

func (d *draft) unknown(groups []string) string {
	for _, g := range slices.Sorted(slices.Values(groups)) {
		if _, ok := d.groups[g]; !ok {
			return fmt.Sprintf("there is no group %s: the groups are %s", g, join(slices.Sorted(maps.Keys(d.groups)), ", "))
		}
	}
	return ""
}

// takeRollback starts moving groups back, each to what was stable before it
// or all to the revision named.
func (d *draft) takeRollback(r Rollout) {
	if why := d.unfit(&r); why != "" {
		d.reject(&r, PhaseRefused, why)
		return
	}
	goals, without := d.goals(&r)
	d.widen(&r, goals)
	if len(goals) == 0 {
		d.reject(&r, PhaseAborted, fmt.Sprintf("nothing to go back to in %s: name a revision, routectl rollback REV", join(without, ", ")))
		return
	}
	was := d.fleet.Target
	d.clear(&r)
	r.Goals = goals
	r.PrevTarget = version.Ref{}
	ms := d.moves(&r)
	d.retarget(&r, ms, was)
	r.Deadline = d.deadlineOf(&r, len(cold(ms)) == 0)
	why := r.Message
	if len(without) > 0 {
		why = strings.TrimSpace(fmt.Sprintf("%s (nothing to go back to in %s)", why, join(without, ", ")))
	}
	d.audit(&r, "rollback", why, d.scope(&r), r.To)
	d.advance(r)
}

// goals says where each group goes back to, and which have no way back.
func (d *draft) goals(r *Rollout) (goals map[string]version.Ref, without []string) {
	goals = make(map[string]version.Ref)
	for _, g := range d.scope(r) {
		if !r.To.IsZero() {
			goals[g] = r.To
			continue
		}
		if d.apart(r, g) {
			continue
		}
		if o := d.playing(g); o != nil {
			// Whatever its step, it is what the rollout does that is taken back.
			if to, ok := d.backTo(o, g, o.Phase == PhaseReturning && o.Return.byItself()); ok {
				goals[g] = to
			} else {
				without = append(without, g)
			}
			continue
		}
		i := slices.IndexFunc(d.groups[g].Back, func(b version.Ref) bool { return !d.condemned(b.Digest) })
		if i < 0 {
			without = append(without, g)
			continue
		}
		goals[g] = d.groups[g].Back[i]
	}
	return goals, without
}

// apart tells that r, which names nothing, leaves group g alone: a rollout with
// steps is in progress, whose doing it takes back, and g neither is moved by any
// nor serves what one brings.
func (d *draft) apart(r *Rollout, g string) bool {
	steps := false
	for i := range d.active {
		o := &d.active[i]
		if slices.Contains(d.scope(o), g) || d.groups[g].Stable.Digest == o.To.Digest {
			return false
		}
		steps = steps || o.Plan != nil
	}
	return steps && len(r.Groups) == 0
}

// retarget makes publishing compose on where r goes, if what r takes back is
// target, or was until r superseded the rollout that brought it. It does so when r
// is taken up: a publisher meanwhile must not compose on what goes away.
func (d *draft) retarget(r *Rollout, ms []move, was version.Ref) {
	taken := false
	var to version.Ref
	for _, m := range ms {
		if m.to.Number > to.Number {
			to = m.to
		}
		taken = taken || m.from.Stable.Digest == d.fleet.Target.Digest || m.from.Stable.Digest == was.Digest
	}
	if taken {
		r.Target, r.PrevTarget = to, d.fleet.Target
		d.fleet.Target = to
	}
}

// clear supersedes what is in progress over r's groups.
func (d *draft) clear(r *Rollout) {
	base := func(o Rollout) bool { return o.Kind == IntentSwitch && o.Target.Digest == r.PrevTarget.Digest }
	for {
		over := slices.DeleteFunc(slices.Clone(d.active), func(o Rollout) bool { return !d.overlap(&o, r) })
		if len(over) == 0 {
			return
		}
		// What r was composed on goes last: it knows by then which target was good.
		o := over[0]
		if i := slices.IndexFunc(over, func(o Rollout) bool { return !base(o) }); i >= 0 {
			o = over[i]
		}
		switch {
		case r.Kind != IntentSwitch:
			d.restore(&o)
		case base(o):
			r.PrevTarget = o.PrevTarget // A refusal of r must not give back what it supersedes.
		case o.Kind == IntentSwitch:
			d.inherit(&o, o.PrevTarget)
		}
		d.supersede(&o, r.ID)
	}
}

func (d *draft) overlap(a, b *Rollout) bool {
	if a.everywhere() || b.everywhere() {
		return true
	}
	in := d.scope(b)
	return slices.ContainsFunc(d.scope(a), func(g string) bool { return slices.Contains(in, g) })
}

// everywhere tells that r concerns every group, also those to come.
func (r *Rollout) everywhere() bool {
	return r.Plan == nil && r.Goals == nil && len(r.Groups) == 0
}

// takeAbort ends the rollout that r names, or all in progress.
func (d *draft) takeAbort(r Rollout) {
	var ended, stuck []string
	gone := make(map[int64]version.Ref) // what was to come with them, by number: the target before
	match := func(o Rollout) bool {
		return (r.Rollout == "" || o.ID == r.Rollout) && !slices.Contains(ended, o.ID) && !slices.Contains(stuck, o.ID)
	}
	for {
		// Read anew each time: ending one may alter the others.
		i := slices.IndexFunc(d.active, match)
		if i < 0 {
			break
		}
		o := d.active[i]
		why := "by " + r.By
		if r.Message != "" {
			why += ": " + r.Message
		}
		d.abort(&o, r.By, why)
		if !o.Phase.Final() && o.Phase != PhaseReturning {
			stuck = append(stuck, o.ID) // Nothing was taken back.
			continue
		}
		if o.Kind == IntentSwitch {
			gone[o.Target.Number] = o.PrevTarget
		}
		ended = append(ended, o.ID)
	}
	for _, in := range d.v.Intents[1:] {
		// Named, it goes too, though it came after the abort.
		if in.ID == r.Rollout {
			o := Rollout{Intent: in, Started: d.now}
			if in.Kind == IntentSwitch {
				o.Target = in.To
			}
			d.c.Done = append(d.c.Done, in.ID)
			d.abort(&o, r.By, "by "+r.By)
			gone[o.Target.Number] = o.PrevTarget // of no number if it was to go back
			ended = append(ended, o.ID)
			continue
		}
		// Published on top after the abort was asked for and before it was
		// answered: it would bring back what was aborted.
		parent := d.v.Revisions[in.To.Number].Parent
		if prev, ok := gone[parent]; ok && parent != 0 && in.Kind == IntentSwitch && in.PrevTarget.Number == parent {
			o := Rollout{Intent: in, Started: d.now, Target: in.To}
			o.PrevTarget = prev
			d.c.Done = append(d.c.Done, in.ID)
			d.reject(&o, PhaseAborted, fmt.Sprintf("it was composed on revision %d, which abort %s took back: publish again", parent, r.ID))
			gone[in.To.Number] = prev
			ended = append(ended, o.ID)
		}
	}
	switch {
	case len(stuck) > 0:
		why := fmt.Sprintf("there is no way back for rollout %s, which holds: routectl rollback REV, or promote it", join(stuck, ", "))
		if len(ended) > 0 {
			why += "; aborted " + join(ended, ", ")
		}
		d.end(&r, PhaseRefused, why)
	case len(ended) > 0:
		d.end(&r, PhaseDone, "aborted "+join(ended, ", "))
	case r.Rollout != "":
		d.end(&r, PhaseDone, fmt.Sprintf("rollout %s is not in progress: nothing to abort", r.Rollout))
	default:
		d.end(&r, PhaseDone, "no rollout is in progress: nothing to abort")
	}
}

// takeRetire forgets groups that have no instances.
func (d *draft) takeRetire(r Rollout) {
	why := d.unknown(r.Groups)
	if len(r.Groups) == 0 {
		why = "name the groups to retire"
	}
	for _, g := range d.scope(&r) {
		var who []string
		for _, said := range d.registered(g) {
			who = append(who, said.Instance)
		}
		for _, name := range slices.Sorted(maps.Keys(d.v.Instances)) {
			if d.v.Instances[name].Group == g && !slices.Contains(who, name) {
				who = append(who, name)
			}
		}
		if why == "" && len(who) > 0 {
			why = fmt.Sprintf("group %s has instances: stop %s first", g, join(who, ", "))
		}
	}
	if why != "" {
		d.reject(&r, PhaseAborted, why)
		return
	}
	for _, g := range d.scope(&r) {
		d.fleet.Floor = max(d.fleet.Floor, d.groups[g].Epoch)
		delete(d.groups, g)
		delete(d.prepares, g)
		d.c.Retire = append(d.c.Retire, g)
		d.c.Empty = append(d.c.Empty, g)
	}
	d.end(&r, PhaseDone, "")
	d.audit(&r, "retire", r.Message, d.c.Retire, version.Ref{})
	d.settle()
}
