package rollout

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"routerd.dev/internal/version"
)

// commit decides: from the named instant on, every group of ms serves where
// it was to go. With override, registered instances that are late are named
// instead of waited for.
func (d *draft) commit(r *Rollout, ms []move, override string) {
	override = brief(override, maxWhy)
	d.place(r, ms, override, func(m move, a *Assignment) { a.Stable, a.Back = m.to, d.backAfter(r, m) })
	if r.Kind == IntentSwitch {
		d.bake(r.To.Digest)
	}
	d.withdraw(r)
	d.end(r, PhaseDone, override)
	d.audit(r, "commit", override, groupsOf(ms), ms[0].to)
	d.settle()
}

// place puts a new assignment for every group of ms, which edit makes of the
// present one without its candidate, under the nonce that is wanted. It returns
// the epoch.
func (d *draft) place(r *Rollout, ms []move, override string, edit func(move, *Assignment)) int64 {
	var epoch int64
	var registered int
	for _, m := range ms {
		epoch = max(epoch, d.highest(m.group))
		registered += len(m.regs)
	}
	epoch++ // Only grows: a late agent must refuse what is lower.
	instant := d.now.Add(lead(d.fleet.Settings, registered))
	back := r.Kind == IntentRollback || r.Phase == PhaseReturning
	r.Epochs = clone(r.Epochs)
	for _, m := range ms {
		a := Assignment{
			Group: m.group, Epoch: epoch, Nonce: d.wanted(m), Set: m.from.Set,
			Stable: m.from.Stable, Back: m.from.Back, Instant: instant,
			Ready: len(m.regs), Members: len(m.regs), Rollout: r.ID, Recovered: m.from.Recovered,
		}
		if !m.warm {
			a.Set = d.prepares[m.group].Set
		}
		if back && len(lost([]move{m})) > 0 {
			a.Members = m.from.members() // A rollback during mass lease loss must not make the loss the rule.
		}
		late := d.late(m)
		if len(late) > 0 || override != "" && r.AllowFewer && len(lost([]move{m})) > 0 {
			a.Override = &Override{Why: override, Instances: late}
		}
		a.Ready -= len(late)
		d.demand(m, a.Nonce, late)
		edit(m, &a)
		d.groups[m.group] = a
		r.Epochs[m.group] = epoch
		if len(m.regs) > 0 {
			d.serve(m.to.Digest)
		}
	}
	return epoch
}

// demand adds what the transaction must find for m to be committed.
func (d *draft) demand(m move, n Nonce, late []string) {
	switch {
	case len(m.regs) == 0:
		d.c.Empty = append(d.c.Empty, m.group)
	case len(late) == 0:
		if d.c.Ready == nil {
			d.c.Ready = make(map[string]Nonce)
		}
		d.c.Ready[m.group] = n
	default:
		d.c.Settled = append(d.c.Settled, m.group) // The override names all who are late, or nothing is written.
	}
}

func (d *draft) serve(x version.Digest) {
	if !d.v.Served[x] && !slices.Contains(d.c.Serve, x) {
		d.c.Serve = append(d.c.Serve, x)
	}
}

// bake marks x as what a rollout of was done.
func (d *draft) bake(x version.Digest) {
	if !d.v.Baked[x] && !slices.Contains(d.c.Bake, x) {
		d.c.Bake = append(d.c.Bake, x)
	}
}

// lead is the time from a commit to its instant: enough for the last watcher.
func lead(s Settings, registered int) time.Duration {
	if s.Lead > 0 {
		return min(s.Lead, MaxLead)
	}
	return min(10*time.Millisecond+time.Duration(registered)*50*time.Microsecond, MaxLead)
}

// settle notes the newest revision that every group committed.
func (d *draft) settle() {
	var all version.Ref
	for _, g := range slices.Sorted(maps.Keys(d.groups)) {
		a := d.groups[g]
		switch {
		case a.Candidate != nil || a.Stable.IsZero():
			return
		case all.IsZero():
			all = a.Stable
		case a.Stable.Digest != all.Digest:
			return
		case a.Stable.Number > all.Number:
			all = a.Stable
		}
	}
	if !all.IsZero() {
		d.fleet.Committed = all
	}
}

// complete ends r, whose groups all are where they were to go without it.
func (d *draft) complete(r *Rollout) {
	why := "already served"
	if len(d.groups) == 0 && r.Kind == IntentSwitch && len(r.Groups) == 0 {
		d.fleet.Committed = r.To
		why = "there is no group yet: the first starts with it"
	}
	d.withdraw(r)
	d.end(r, PhaseDone, why)
	d.audit(r, "done", why, d.scope(r), r.To)
	d.settle()
}

// refuse ends r because an instance will not hold what it asks for.
func (d *draft) refuse(r *Rollout, said Ready) {
	why := fmt.Sprintf("%s refused it: %s", said.Instance, said.Why)
	if r.Phase == PhaseFirst && len(r.FirstTried) > 0 {
		d.condemn(r, fmt.Sprintf("%s died while preparing it first, then %s", join(r.FirstTried, " and "), why))
		return
	}
	if r.committed() {
		d.fail(r, why)
		return
	}
	d.withdraw(r)
	d.restore(r)
	d.end(r, PhaseRefused, why)
	d.audit(r, "refuse", why, d.scope(r), r.To)
}

// condemn ends r, and every later attempt to prepare its digest.
func (d *draft) condemn(r *Rollout, why string) {
	d.c.Condemn = append(d.c.Condemn, Condemned{Digest: r.To.Digest, Why: brief(why, maxWhy), Time: d.now})
	if r.committed() {
		d.turnBack(r, controllerName, "condemned: "+why) // It cannot go on, whatever an operator wants.
		return
	}
	d.withdraw(r)
	d.restore(r)
	d.end(r, PhaseRefused, "condemned: "+why)
	d.audit(r, "condemn", why, d.scope(r), r.To)
}

// reject ends r before it did anything.
func (d *draft) reject(r *Rollout, p Phase, why string) {
	d.restore(r)
	d.end(r, p, why)
	d.audit(r, string(p), why, r.Groups, r.To)
}

// abort ends r and keeps what is committed; with a plan it goes back then.
func (d *draft) abort(r *Rollout, who, why string) {
	switch {
	case r.committed() && who == controllerName:
		d.fail(r, why)
		return
	case r.committed():
		d.turnBack(r, who, why)
		return
	}
	d.withdraw(r)
	d.restore(r)
	d.end(r, PhaseAborted, why)
	d.audit(r, "abort", fmt.Sprintf("%s: %s", who, why), d.scope(r), r.To)
}

// supersede ends r because by asks for something else for its groups.
func (d *draft) supersede(r *Rollout, by string) {
	d.withdraw(r)
	r.SupersededBy = by
	d.end(r, PhaseSuperseded, "by "+by)
	d.audit(r, "supersede", "by "+by, d.scope(r), r.To)
}

func (d *draft) end(r *Rollout, p Phase, why string) {
	r.Phase, r.Why, r.Ended, r.Deadline, r.Hold = p, why, d.now, time.Time{}, nil
	d.put(*r)
}

// withdraw takes r's prepares back; instances put back the nonce in force.
func (d *draft) withdraw(r *Rollout) {
	for g, p := range d.prepares {
		if p.Rollout == r.ID {
			delete(d.prepares, g)
		}
	}
	r.Nonces = nil
}

// restore gives the target back that r replaced, so that nobody's later
// publish composes on what was taken back.
func (d *draft) restore(r *Rollout) {
	if r.Target.IsZero() {
		return
	}
	prev := r.PrevTarget
	if prev.IsZero() {
		prev = d.fleet.Committed
	}
	if d.fleet.Target.Digest == r.Target.Digest {
		d.fleet.Target = prev
	}
	d.inherit(r, prev)
}

// inherit keeps rollouts in progress, which were composed on r's revision,
// from giving it back as target.
func (d *draft) inherit(r *Rollout, prev version.Ref) {
	for _, o := range slices.Clone(d.active) {
		if o.ID != r.ID && o.Kind == IntentSwitch && o.PrevTarget.Digest == r.Target.Digest {
			o.PrevTarget = prev
			d.put(o)
		}
	}
}

func join(names []string, sep string) string {
	if n := slices.Index(names, ""); n >= 0 { // a ready key that somebody wrote by hand
		names = slices.Clone(names)
		names[n] = `"" (a key without a name)`
	}
	return strings.Join(names, sep)
}
