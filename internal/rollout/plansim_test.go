package rollout

import (
	"math"
	"slices"

	"routerd.dev/internal/analysis"
)

// checkPlans holds a change against the laws of rollouts with plans, before it
// is carried out.
func (w *world) checkPlans(c Change) {
	for _, r := range c.Rollouts {
		old := w.rollouts[r.ID]
		if old.Return != nil && r.Return != nil && (!old.Return.Decided.Equal(r.Return.Decided) || !old.Return.Committed.IsZero() && !old.Return.Committed.Equal(r.Return.Committed)) {
			w.breaks("rollout %s goes back twice", r.ID)
		}
		if old.Return != nil && r.Phase != PhaseReturning && r.Phase != PhaseRolledBack && r.Phase != PhaseSuperseded {
			w.breaks("rollout %s was on its way back and is %s", r.ID, r.Phase)
		}
		if before, after := old.Cursor, r.Cursor; after.Wave < before.Wave || after.Wave == before.Wave && after.Step < before.Step {
			w.breaks("rollout %s went from step %d.%d to %d.%d", r.ID, before.Wave, before.Step, after.Wave, after.Step)
		}
		if old.Hold != nil && old.Hold.Operator && r.Hold != nil && r.Phase != PhaseReturning && (r.Cursor.Wave != old.Cursor.Wave || r.Cursor.Step != old.Cursor.Step) {
			w.breaks("rollout %s went on while it was held", r.ID)
		}
		if ret := r.Return; ret != nil && ret.By == controllerName && !ret.Committed.IsZero() && (old.Return == nil || old.Return.Committed.IsZero()) {
			w.checkReturn(c, old)
		}
	}
	for _, a := range c.Groups {
		w.checkCandidate(c, a)
	}
}

// checkReturn: what a rollout did is taken back by itself to what was baked, if
// anything that may be served was, in the set in force.
func (w *world) checkReturn(c Change, old Rollout) {
	for _, a := range c.Groups {
		was := w.groups[a.Group]
		if _, own := old.Origin[a.Group]; !own || old.Epochs[a.Group] == 0 || w.baked[a.Stable.Digest] {
			continue
		}
		for _, b := range was.Back {
			if _, bad := w.condemned[b.Digest]; !bad && b.Digest != old.To.Digest && w.baked[b.Digest] && has(was.Set, b.Digest) {
				w.breaks("%s goes back to revision %d, which was never baked, and not to %d", a.Group, a.Stable.Number, b.Number)
			}
		}
	}
}

// checkCandidate: a candidate never has more than the steps done so far give
// it, and only a rollout in progress gives it anything.
func (w *world) checkCandidate(c Change, a Assignment) {
	old := w.groups[a.Group]
	i := slices.IndexFunc(c.Rollouts, func(r Rollout) bool { return r.ID == a.Rollout })
	if a.Candidate == nil {
		return
	}
	if i < 0 || c.Rollouts[i].Plan == nil || c.Rollouts[i].Phase.Final() {
		w.breaks("%s has a candidate that no rollout stands for", a.Group)
		return
	}
	r := c.Rollouts[i]
	if r.Phase == PhaseReturning {
		w.breaks("%s gets a candidate on the way back", a.Group)
	}
	if r.Hold != nil && r.Hold.Operator {
		w.breaks("%s gets a candidate while the rollout is held", a.Group)
	}
	if a.Candidate.Digest != r.To.Digest || a.Stable.Digest != old.Stable.Digest {
		w.breaks("%s: stable %d, candidate %d", a.Group, a.Stable.Number, a.Candidate.Number)
	}
	wave := r.Plan.Waves[r.Cursor.Wave]
	if !slices.Contains(wave.Groups, a.Group) {
		w.breaks("%s gets a candidate in the wave %v", a.Group, wave.Groups)
		return
	}
	most, canaries := 0, 0
	n := len(w.ready[a.Group])
	for _, s := range wave.Steps[:r.Cursor.Step] {
		switch {
		case s.Share != nil:
			most, canaries = max(most, int(math.Round(s.Share.Percent*100))), 0
		case s.Canary != nil:
			q, _ := s.Canary.Instances.Of(n)
			canaries = max(canaries, min(max(q, 1), n-1))
		}
	}
	var had []string
	if old.Candidate != nil && old.Rollout == a.Rollout {
		had = old.Candidate.Instances
		if a.Candidate.Permyriad < old.Candidate.Permyriad || a.Candidate.Salt != old.Candidate.Salt && old.Candidate.Salt != "" {
			w.breaks("%s: keys go back to stable: %+v after %+v", a.Group, a.Candidate, old.Candidate)
		}
		if len(a.Candidate.Instances) > 0 && slices.ContainsFunc(had, func(n string) bool { return !slices.Contains(a.Candidate.Instances, n) }) {
			w.breaks("%s: canary instances go from %v to %v", a.Group, had, a.Candidate.Instances)
		}
	}
	if a.Candidate.Permyriad > most {
		w.breaks("%s: share of %d, its step allows %d", a.Group, a.Candidate.Permyriad, most)
	}
	if got := len(a.Candidate.Instances); got > max(canaries, len(had)) {
		w.breaks("%s: %d canary instances, its step allows %d of %d", a.Group, got, canaries, n)
	}
}

// measure has i report what it counted since it switched: so many requests of
// either side, of which some failed.
func (w *world) measure(i *inst, oldN, oldBad, newN, newBad uint64) {
	m := Measure{Instance: i.name, Group: i.group, Boot: i.boot, Epoch: i.epoch, Time: w.now, Old: i.stable.Digest}
	switch {
	case i.candidate != nil:
		m.New = i.candidate.Digest
	case !i.against.IsZero():
		m.New, m.Old = i.stable.Digest, i.against.Digest
	default:
		return
	}
	m.Sample.All = analysis.Pair{Stable: counts(oldN, oldBad), Candidate: counts(newN, newBad)}
	w.measures[i.name] = m
	w.bump()
}

func counts(n, bad uint64) analysis.Counts {
	c := analysis.Counts{Requests: n, Errors: bad}
	c.Latency[20] = n // all took as long
	return c
}
