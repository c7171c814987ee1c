package simulate

import (
	"math"
	"slices"
	"strings"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// checkChange holds a change that was carried out on before against the laws.
// It reads what processes truly hold, which no controller can.
func (f *Fleet) checkChange(before *Fleet, p *pending) {
	if p.term != before.term {
		f.breaks("I4: a deposed controller wrote")
	}
	for _, a := range p.change.Groups {
		f.checkEpoch(before, a)
		f.checkBarrier(before, a)
		f.checkNonce(before, p, a)
		f.checkWay(before, a)
		f.checkShare(before, a)
		f.checkAborted(before, p, a)
	}
	for _, x := range p.change.Prepares {
		f.checkPrepare(before, p, x)
	}
	for _, r := range p.change.Rollouts {
		f.checkRollout(before, r)
	}
	f.checkScopes()
	for _, x := range f.procs {
		f.checkDuties(x)
	}
}

// checkEpoch is I3 in etcd: above every epoch that was, also on disks.
func (f *Fleet) checkEpoch(before *Fleet, a rollout.Assignment) {
	if old, had := before.groups.m[a.Group]; had && a.Epoch <= old.Epoch {
		f.breaks("I3: the epoch of group %s went from %d to %d", a.Group, old.Epoch, a.Epoch)
	}
	for _, x := range f.procs {
		if x.group == a.Group && a.Epoch <= x.floor {
			f.breaks("I3: group %s commits epoch %d, %s served %d", a.Group, a.Epoch, x.name, x.floor)
		}
	}
}

// checkBarrier is I2: whoever is registered holds the whole set, but for those
// that the override names.
func (f *Fleet) checkBarrier(before *Fleet, a rollout.Assignment) {
	for _, x := range before.procs {
		said, registered := before.ready.m[a.Group][x.name]
		switch {
		case x.group != a.Group || !registered || !x.up || !before.keysStand(x):
		case a.Override != nil && slices.Contains(a.Override.Instances, x.name):
		case said.Refused || said.Nonce != a.Nonce:
			f.breaks("I2: group %s commits epoch %d, %s says another nonce and no override names it", a.Group, a.Epoch, x.name)
		case !before.holdsSet(x, a.Set):
			f.breaks("I2: group %s commits epoch %d, %s does not hold its set and no override names it", a.Group, a.Epoch, x.name)
		}
	}
}

// checkNonce: a nonce names one set, was prepared by the group, and is never used again.
func (f *Fleet) checkNonce(before *Fleet, p *pending, a rollout.Assignment) {
	old, had := before.groups.m[a.Group]
	asked, asks := before.prepares.m[a.Group]
	switch {
	case had && a.Nonce == old.Nonce:
		if !slices.Equal(a.Set, old.Set) {
			f.breaks("nonce %s of group %s names two sets", a.Nonce, a.Group)
		}
	case asks && a.Nonce == asked.Nonce:
		if !slices.Equal(a.Set, asked.Set) {
			f.breaks("nonce %s of group %s was prepared as another set", a.Nonce, a.Group)
		}
	case !strings.HasPrefix(string(a.Nonce), p.seed+"-"):
		f.breaks("group %s commits under nonce %s, which nobody prepared", a.Group, a.Nonce)
	case had && a.Recovered != a.Epoch && len(before.ready.m[a.Group]) > 0:
		f.breaks("group %s commits under a new nonce without preparing it", a.Group)
	}
}

// checkWay: what is served is in the set, and not newly a condemned revision.
func (f *Fleet) checkWay(before *Fleet, a rollout.Assignment) {
	old := before.groups.m[a.Group]
	refs := []version.Ref{a.Stable}
	if a.Candidate != nil {
		refs = append(refs, a.Candidate.Ref)
	}
	for _, r := range refs {
		if r.IsZero() {
			continue
		}
		if !contains(a.Set, r) {
			f.breaks("group %s serves revision %d, which is not in its set", a.Group, r.Number)
		}
		if before.condemned.has(r.Digest) && old.Stable.Digest != r.Digest {
			f.breaks("group %s goes to the condemned revision %d", a.Group, r.Number)
		}
	}
}

func contains(set []version.Ref, r version.Ref) bool {
	return slices.ContainsFunc(set, func(o version.Ref) bool { return o.Digest == r.Digest })
}

// checkShare: a candidate gets no more than the step that its rollout reached.
func (f *Fleet) checkShare(before *Fleet, a rollout.Assignment) {
	c := a.Candidate
	if c == nil {
		return
	}
	i := slices.IndexFunc(f.rollouts, func(r rollout.Rollout) bool { return r.ID == a.Rollout })
	if i < 0 || f.rollouts[i].Plan == nil {
		f.breaks("group %s has a candidate, and no rollout with a plan is in progress for it", a.Group)
		return
	}
	r := f.rollouts[i]
	registered := len(before.ready.m[a.Group])
	share, canaries := 0, 0
	steps := r.Plan.Waves[r.Cursor.Wave].Steps
	for _, s := range steps[:min(r.Cursor.Step+1, len(steps))] {
		if s.Share != nil {
			share = max(share, int(math.Round(s.Share.Percent*100)))
		}
		if s.Canary != nil {
			if n, err := s.Canary.Instances.Of(registered); err == nil {
				canaries = max(canaries, n)
			}
		}
	}
	if c.Permyriad > share {
		f.breaks("group %s gives the candidate %d/10000, its step says %d", a.Group, c.Permyriad, share)
	}
	if n := len(c.Instances); n > canaries || n > 0 && registered > 1 && n >= registered {
		f.breaks("group %s has %d canaries of %d instances, its step says %d", a.Group, n, registered, canaries)
	}
}

// checkAborted: an abort that etcd has before a commit wins.
func (f *Fleet) checkAborted(before *Fleet, p *pending, a rollout.Assignment) {
	for _, in := range before.intents {
		about := in.Rollout == "" || in.Rollout == a.Rollout
		if in.Kind != rollout.IntentAbort || !about || slices.Contains(p.change.Done, in.ID) {
			continue
		}
		i := slices.IndexFunc(before.rollouts, func(r rollout.Rollout) bool { return r.ID == a.Rollout })
		if i >= 0 && before.rollouts[i].Kind == rollout.IntentSwitch && contains(newRefs(a), before.rollouts[i].To) {
			f.breaks("group %s commits revision %d after abort %s", a.Group, before.rollouts[i].To.Number, in.ID)
		}
	}
}

func newRefs(a rollout.Assignment) []version.Ref {
	out := []version.Ref{a.Stable}
	if a.Candidate != nil {
		out = append(out, a.Candidate.Ref)
	}
	return out
}

// checkPrepare: nonces are fresh, and nobody is asked to let go of what it serves.
func (f *Fleet) checkPrepare(before *Fleet, p *pending, x rollout.Prepare) {
	old, had := before.prepares.m[x.Group]
	if had && old.Nonce == x.Nonce {
		if !slices.Equal(old.Set, x.Set) {
			f.breaks("nonce %s of group %s is prepared as two sets", x.Nonce, x.Group)
		}
		return
	}
	if !strings.HasPrefix(string(x.Nonce), p.seed+"-") {
		f.breaks("group %s prepares nonce %s, which is not new", x.Group, x.Nonce)
	}
	if len(x.Set) > 0 && before.condemned.has(x.Set[0].Digest) {
		f.breaks("group %s prepares the condemned revision %d", x.Group, x.Set[0].Number)
	}
	if now, ok := f.groups.m[x.Group]; ok {
		for _, r := range newRefs(now) {
			if !r.IsZero() && !contains(x.Set, r) {
				f.breaks("group %s prepares a set without revision %d, which it serves", x.Group, r.Number)
			}
		}
	}
}

// checkRollout: an end is final, gives the target back when it is a bad one,
// and a way back is gone once.
func (f *Fleet) checkRollout(before *Fleet, r rollout.Rollout) {
	if was, ok := before.ended.m[r.ID]; ok {
		f.breaks("rollout %s was %s and is now %s", r.ID, was.Phase, r.Phase)
	}
	switch r.Phase {
	case rollout.PhaseRefused, rollout.PhaseAborted, rollout.PhaseRolledBack:
		taken := !r.Target.IsZero() && f.fleet.Target.Digest == r.Target.Digest
		if taken && r.PrevTarget.Digest != r.Target.Digest && f.fleet.Committed.Digest != r.Target.Digest {
			f.breaks("rollout %s is %s and its revision is target still", r.ID, r.Phase)
		}
	}
	i := slices.IndexFunc(before.rollouts, func(o rollout.Rollout) bool { return o.ID == r.ID })
	if i < 0 {
		return
	}
	if was := before.rollouts[i].Return; was != nil {
		if r.Return == nil || !r.Return.Decided.Equal(was.Decided) || !was.Committed.IsZero() && !r.Return.Committed.Equal(was.Committed) {
			f.breaks("rollout %s goes back twice", r.ID)
		}
		for g, e := range r.Epochs {
			if a := f.groups.m[g]; a.Epoch == e && a.Rollout == r.ID && before.groups.m[g].Epoch != e && contains(newRefs(a), r.To) {
				f.breaks("rollout %s went back, and brings revision %d to group %s again", r.ID, r.To.Number, g)
			}
		}
	}
}

// scope lists the groups that r concerns.
func (f *Fleet) scope(r *rollout.Rollout) []string {
	switch {
	case r.Goals != nil:
		return sorted(r.Goals)
	case len(r.Groups) > 0:
		return r.Groups
	default:
		return sorted(f.groups.m)
	}
}

// checkScopes: a group has at most one rollout in progress.
func (f *Fleet) checkScopes() {
	if len(f.rollouts) < 2 {
		return
	}
	in := make(map[string]string)
	for i := range f.rollouts {
		r := &f.rollouts[i]
		for _, g := range f.scope(r) {
			if o, ok := in[g]; ok {
				f.breaks("rollouts %s and %s both move group %s", o, r.ID, g)
			}
			in[g] = r.ID
		}
	}
}

// checkDuties: each revision that concerns an instance is in exactly one of
// hold, prepare, activate and release there, by what the records say.
func (f *Fleet) checkDuties(p *process) {
	a, ok := f.groups.m[p.group]
	if !p.up || !ok {
		return
	}
	named := f.maskOf(a.Set)
	if x, ok := f.prepares.m[p.group]; ok && (x.First == "" || x.First == p.name) {
		named |= f.maskOf(x.Set)
	}
	serves := f.maskOf(p.choose(&a))
	if p.serving != nil && p.serving.Epoch >= a.Epoch {
		serves = 0 // It does already.
	}
	var kept bits // what it serves now and goes on to serve
	if p.serving != nil && p.serving.Epoch == a.Epoch {
		kept = f.maskOf(p.choose(&a))
	}
	duties := [...]bits{
		serves,                     // activate
		named &^ serves & p.holds,  // hold
		named &^ serves &^ p.holds, // prepare
		p.holds&^named | kept&^named | serves&^named, // release
	}
	var once, twice bits
	for i, d := range duties {
		if i == 3 {
			d &= kept | serves // that it lets go of anything else is right
		}
		twice |= once & d
		once |= d
	}
	if bad := twice | kept&^named; bad != 0 || once&named != named {
		f.breaks("%s has not one of hold, prepare, activate and release for each revision: %b", p.name, bad)
	}
}

// checkServe: an instance serves what it holds, and never an epoch below one that it served.
func (f *Fleet) checkServe(p *process) {
	if p.want.Epoch < p.floor || p.serving != nil && p.want.Epoch <= p.serving.Epoch {
		f.breaks("I3: %s serves epoch %d after %d", p.name, p.want.Epoch, p.floor)
	}
	if !f.holdsAll(p, p.choose(p.want)) {
		f.breaks("%s serves epoch %d without holding it", p.name, p.want.Epoch)
	}
}
