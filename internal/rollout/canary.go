package rollout

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"routerd.dev/internal/version"
)

// canaryGrace is how long a canary instance may be without its ready key.
const canaryGrace = 15 * time.Second

// chooseCanaries names the instances of m's group that serve the candidate: who
// is one stays one, others follow by a hash of the rollout and their name, so
// that the choice does not depend on who came first. Never all: a group of one
// has none.
func (d *draft) chooseCanaries(r *Rollout, m move, s *CanaryStep) []string {
	var names []string
	if c := m.from.Candidate; c != nil && m.from.Rollout == r.ID {
		names = slices.Clone(c.Instances)
	}
	want, err := s.Instances.Of(len(m.regs))
	if err != nil {
		return names
	}
	want = min(max(want, 1), len(m.regs)-1)
	var rest []string
	for _, said := range m.regs {
		if !said.Evicted && len(said.Lacks) == 0 && !slices.Contains(names, said.Instance) {
			rest = append(rest, said.Instance)
		}
	}
	slices.SortFunc(rest, func(a, b string) int {
		return cmp.Or(cmp.Compare(draw(r.Salt, a), draw(r.Salt, b)), cmp.Compare(a, b))
	})
	for len(names) < want && len(rest) > 0 {
		names, rest = append(names, rest[0]), rest[1:]
	}
	slices.Sort(names)
	return names
}

// draw is the place of an instance in the lot: rendezvous hashing (Thaler and
// Ravishankar, 1998).
func draw(salt, instance string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(salt))
	h.Write([]byte{0})
	h.Write([]byte(instance))
	x := h.Sum64() // Names that differ in their last letter are close: mix them (MurmurHash3's end).
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// canaries notes who serves the candidate of r's wave, and keeps what was
// noted of them.
func (d *draft) canaries(r *Rollout) map[string]Canary {
	out := make(map[string]Canary)
	for _, g := range r.wave().Groups {
		a := d.groups[g]
		if a.Candidate == nil || a.Rollout != r.ID {
			continue
		}
		for _, name := range a.Candidate.Instances {
			c, ok := r.Canaries[name]
			if !ok {
				c = Canary{Boot: d.v.Instances[name].Boot}
			}
			out[name] = c
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// grow adds canary instances where more instances came since: a part of more is
// more, and a group of one that had none may have one. It never swaps.
func (d *draft) grow(r *Rollout, ms []move) bool {
	var s *CanaryStep
	for _, before := range r.wave().Steps[:r.Cursor.Step] {
		if before.Share != nil || before.Commit != nil {
			return false
		}
		if before.Canary != nil {
			s = before.Canary
		}
	}
	if s == nil || !d.mayGoOn(r) || d.frozenText(ms) != "" || len(lost(ms)) > 0 {
		return false
	}
	var edits []move
	edit := make(map[string]func(*Assignment))
	for _, m := range ms {
		if f := d.editOf(r, m, &PlanStep{Canary: s}); f != nil && m.warm && len(d.late(m)) == 0 {
			edits, edit[m.group] = append(edits, m), f
		}
	}
	if len(edits) == 0 {
		return false
	}
	d.carryOut(r, edits, edit, "")
	d.put(*r)
	return true
}

// lostCanary takes r back when an instance that serves the candidate died: its
// boot id changed, or its ready key is gone for long. When a group lost most of its
// leases that says nothing of the candidate, and r holds.
func (d *draft) lostCanary(r *Rollout, ms []move) bool {
	names := sorted(r.Canaries)
	marks := clone(r.Canaries)
	for _, m := range ms {
		for _, name := range names {
			if c := m.from.Candidate; c == nil || !slices.Contains(c.Instances, name) {
				continue
			}
			mark, why := d.mark(m, name, marks[name])
			if why == "" {
				marks[name] = mark
				continue
			}
			delete(marks, name) // An operator who goes on nevertheless is not asked again.
			r.Canaries = marks
			d.fail(r, why)
			return true
		}
	}
	if len(names) > 0 {
		r.Canaries = marks
	}
	return false
}

// mark notes how the canary instance name of m does, and says why it is lost.
func (d *draft) mark(m move, name string, c Canary) (Canary, string) {
	here := slices.ContainsFunc(m.regs, func(said Ready) bool { return said.Instance == name })
	boot := d.v.Instances[name].Boot
	switch {
	case boot != "" && c.Boot != "" && boot != c.Boot:
		return c, fmt.Sprintf("canary instance %s died: it came back as another process", name)
	case here, len(lost([]move{m})) > 0:
		c.Gone = time.Time{}
	case c.Gone.IsZero() || c.Gone.After(d.now):
		c.Gone = d.now
		d.look(d.now.Add(canaryGrace))
	case !d.now.Before(c.Gone.Add(canaryGrace)):
		return c, fmt.Sprintf("canary instance %s is gone for %v", name, canaryGrace)
	default:
		d.look(c.Gone.Add(canaryGrace))
	}
	return c, ""
}

// quarantined takes r back when its revision crashed an instance so often
// that the instance does not serve it any more.
func (d *draft) quarantined(r *Rollout, ms []move) bool {
	if r.Plan.ManualRollback || !r.committed() {
		return false
	}
	for _, m := range ms {
		for _, said := range m.regs {
			rep := d.v.Reports[said.Instance]
			if rep.Boot == d.v.Instances[said.Instance].Boot && slices.Contains(rep.Quarantined, r.To.Digest) {
				d.fail(r, fmt.Sprintf("%s quarantined revision %d: it crashed there twice", said.Instance, r.To.Number))
				return true
			}
		}
	}
	return false
}

// tidy withdraws candidates that no rollout in progress stands for: theirs was
// superseded for other groups only. It is inside the set.
func (d *draft) tidy() {
	var ms []move
	for _, g := range sorted(d.groups) {
		a := d.groups[g]
		if a.Candidate == nil || slices.ContainsFunc(d.active, func(r Rollout) bool { return r.ID == a.Rollout }) {
			continue
		}
		m := move{group: g, from: a, to: a.Stable, regs: d.registered(g), warm: true}
		if d.frozenText([]move{m}) == "" {
			ms = append(ms, m)
		}
	}
	if len(ms) == 0 {
		return
	}
	r := Rollout{Intent: Intent{Kind: IntentRollback, By: controllerName}}
	d.place(&r, ms, "nobody's candidate is withdrawn", func(m move, a *Assignment) { a.Rollout = m.from.Rollout })
	d.audit(&r, "withdraw", "the rollout of this candidate was superseded", groupsOf(ms), version.Ref{})
	d.settle()
}
