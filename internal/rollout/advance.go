package rollout

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"routerd.dev/internal/version"
)

const (
	defaultPrepare = 2 * time.Minute
	rollbackWait   = time.Second // for stragglers of a rollback inside the set
)

// advanceAny moves the first rollout that can move.
func (d *draft) advanceAny() bool {
	for _, r := range slices.Clone(d.active) {
		d.advance(r)
		if len(d.c.Rollouts) > 0 {
			return true
		}
	}
	return false
}

// advance does the next thing for r, whose own maps it does not change.
func (d *draft) advance(r Rollout) {
	if r.Plan != nil {
		d.play(r)
		return
	}
	ms := d.moves(&r)
	if len(ms) == 0 {
		d.complete(&r)
		return
	}
	if said, ok := d.refusal(&r, ms); ok {
		d.refuse(&r, said)
		return
	}
	asked := cold(ms)
	if most := d.deadlineOf(&r, len(asked) == 0); r.Deadline.After(most) && !most.IsZero() {
		r.Deadline = most // It was named by a clock that is ahead of this one.
	}
	if why := d.frozenText(ms); why != "" {
		d.wait(&r, ms, why)
		return
	}
	switch {
	case len(asked) == 0:
		r.Phase = PhaseCommitting
	case d.wantsFirst(&r, asked):
		if !d.askFirst(&r, asked) {
			return
		}
		d.askAll(&r, asked)
	default:
		d.askAll(&r, asked)
	}
	d.decide(&r, ms, len(asked) == 0)
}

// decide commits ms if that is allowed, and waits otherwise.
func (d *draft) decide(r *Rollout, ms []move, inSet bool) {
	late := slices.ContainsFunc(ms, d.waits)
	back := r.Kind == IntentRollback && inSet
	gone := lost(ms)
	switch {
	case d.held:
		d.wait(r, ms, "")
	case late && back && d.over(r):
		d.commit(r, ms, fmt.Sprintf("rollback waited %v for %s", rollbackWait, d.lateText(ms)))
	case late:
		d.wait(r, ms, "")
	case len(gone) > 0 && !back && !r.AllowFewer:
		d.wait(r, ms, lostText(gone))
	case len(gone) > 0 && !back:
		d.commit(r, ms, strings.TrimSuffix(fmt.Sprintf("%s allowed it: %s; %s", r.By, lostText(gone), d.sparedText(ms)), "; "))
	default:
		d.commit(r, ms, d.sparedText(ms))
	}
}

// wantsFirst tells whether one instance is to prepare before the others: for a
// digest never served, unless nobody has ever been there to prepare it.
func (d *draft) wantsFirst(r *Rollout, asked []move) bool {
	if r.To.IsZero() || d.v.Served[r.To.Digest] || r.Phase == PhasePreparing {
		return false
	}
	return slices.ContainsFunc(asked, func(m move) bool { return len(m.regs) > 0 || m.from.members() > 0 })
}

// askFirst has one instance prepare, and tells whether it holds the set.
func (d *draft) askFirst(r *Rollout, asked []move) bool {
	if r.Phase == PhaseFirst {
		switch at := d.firstState(r, asked); at {
		case firstHolds:
			return true
		case firstDead:
			r.FirstTried = append(slices.Clone(r.FirstTried), r.First)
			if len(r.FirstTried) > 1 {
				d.condemn(r, fmt.Sprintf("%s died while preparing it first", join(r.FirstTried, " and ")))
				return false
			}
			d.withdraw(r)
		default:
			d.wait(r, asked, "")
			return false
		}
	}
	m, name, ok := d.chooseFirst(r, asked)
	if !ok {
		r.Phase, r.First, r.FirstBoot = PhasePending, "", ""
		d.wait(r, asked, "no instance is registered that could prepare it first")
		return false
	}
	r.Phase, r.First, r.FirstBoot, r.Why = PhaseFirst, name, d.v.Instances[name].Boot, ""
	d.prepare(r, m, name)
	d.audit(r, "prepare", name+" first", []string{m.group}, r.To)
	d.wait(r, asked, "")
	return false
}

type firstState int

const (
	firstBuilds firstState = iota
	firstHolds
	firstDead
)

// firstState tells how the instance asked first does. When every ready key is
// gone etcd lost them, and only another boot id proves that it died.
func (d *draft) firstState(r *Rollout, asked []move) firstState {
	if boot := d.v.Instances[r.First].Boot; boot != "" && boot != r.FirstBoot {
		return firstDead
	}
	anyone := false
	for _, m := range asked {
		for _, said := range m.regs {
			anyone = true
			if said.Instance != r.First {
				continue
			}
			if p := d.prepares[m.group]; p.Rollout == r.ID && said.Nonce == p.Nonce && (said.Whole() || d.lacksOther(m, said)) {
				return firstHolds
			}
			return firstBuilds
		}
	}
	if anyone {
		return firstDead
	}
	return firstBuilds
}

// chooseFirst picks the instance that prepares first: not one that died of it
// if there is another, rather a healthy one, then by group and name.
func (d *draft) chooseFirst(r *Rollout, asked []move) (move, string, bool) {
	var at move
	var who string
	best := -1
	for _, m := range asked {
		for _, said := range m.regs {
			if n := d.fitness(r, m, said); n > best {
				at, who, best = m, said.Instance, n
			}
		}
	}
	return at, who, best >= 0
}

func (d *draft) fitness(r *Rollout, m move, said Ready) int {
	n := 0
	if !slices.Contains(r.FirstTried, said.Instance) {
		n += 4
	}
	if said.Whole() && said.Nonce == m.from.Nonce {
		n += 2
	}
	if rep := d.v.Reports[said.Instance]; rep.Stale == "" && rep.Pinned.IsZero() && len(rep.Quarantined) == 0 {
		n++
	}
	return n
}

// askAll has every instance of asked hold the set.
func (d *draft) askAll(r *Rollout, asked []move) {
	var news []string
	for _, m := range asked {
		p, ok := d.prepares[m.group]
		switch {
		case !ok || p.Rollout != r.ID || p.Nonce != r.Nonces[m.group]:
			d.prepare(r, m, "")
			news = append(news, m.group)
		case p.First != "":
			p.First = "" // The nonce stays: who holds it is ready.
			d.prepares[m.group] = p
			news = append(news, m.group)
		}
	}
	r.Phase = PhasePreparing
	if len(news) > 0 {
		d.audit(r, "prepare", "", news, r.To)
	}
}

// prepare asks m's group, or only its instance first, to hold a new set.
func (d *draft) prepare(r *Rollout, m move, first string) {
	p := Prepare{
		Group: m.group, Nonce: d.fresh(), First: first, Rollout: r.ID,
		Set: d.setOf(m.to, m.from.Stable, d.backAfter(r, m)),
	}
	d.prepares[m.group] = p
	r.Nonces = clone(r.Nonces)
	r.Nonces[m.group] = p.Nonce
}

func (d *draft) backAfter(r *Rollout, m move) []version.Ref {
	if m.to.Digest == m.from.Stable.Digest {
		return m.from.Back // Only a candidate goes.
	}
	if r.Kind == IntentRollback {
		return popped(m.from, m.to)
	}
	return pushed(m.from, m.to)
}

// over tells whether r's deadline has passed.
func (d *draft) over(r *Rollout) bool {
	return !r.Deadline.IsZero() && !d.now.Before(r.Deadline)
}

// wait leaves r as it is until something happens, or ends it at its deadline.
func (d *draft) wait(r *Rollout, ms []move, why string) {
	if d.over(r) && !d.held {
		if why == "" {
			why = "not ready in time: " + d.lateText(d.inPhase(r, ms))
		}
		d.abort(r, controllerName, why)
		return
	}
	r.Why = why
	d.put(*r)
	d.look(r.Deadline)
}

// inPhase leaves of ms what r waits for: while one instance prepares first,
// the group of that instance.
func (d *draft) inPhase(r *Rollout, ms []move) []move {
	if r.Phase != PhaseFirst {
		return ms
	}
	var out []move
	for _, m := range ms {
		m.regs = slices.DeleteFunc(slices.Clone(m.regs), func(said Ready) bool { return said.Instance != r.First })
		if len(m.regs) > 0 {
			out = append(out, m)
		}
	}
	return out
}

// deadlineOf is when r, taken up now, has waited long enough. Zero: never.
func (d *draft) deadlineOf(r *Rollout, inSet bool) time.Time {
	switch {
	case r.Kind == IntentRollback && inSet:
		return d.now.Add(rollbackWait)
	case r.Straggler == StragglerWait:
		return time.Time{}
	case r.Timeout > 0:
		return d.now.Add(r.Timeout)
	case d.fleet.Settings.PrepareTimeout > 0:
		return d.now.Add(d.fleet.Settings.PrepareTimeout)
	default:
		return d.now.Add(defaultPrepare)
	}
}
