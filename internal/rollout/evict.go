package rollout

import (
	"slices"
	"time"
)

// evictAnswer is how long an instance may take to leave traffic.
const evictAnswer = 30 * time.Second

// stragglers waits for those of ms who are late, and does at the deadline what
// the policy says. It tells whether a commit may go on, and names whom it
// leaves behind.
func (d *draft) stragglers(r *Rollout, ms []move) (behind string, ok bool) {
	switch {
	case !slices.ContainsFunc(ms, d.waits):
		return d.sparedText(ms), true
	case r.Straggler == StragglerEvict && d.over(r) && d.mayGoOn(r) && d.evict(r, ms):
		r.Deadline = d.now.Add(evictAnswer)
		d.stay(r, "")
		return "", false
	case r.Hold != nil && r.Hold.Operator:
		d.put(*r) // Nobody is late for what is not to be yet.
		return "", false
	default:
		d.wait(r, ms, "")
		return "", false
	}
}

// evicted tells that an instance took itself out of traffic as it was told to.
func (d *draft) evicted(m move, said Ready) bool {
	return said.Evicted && !said.Refused && said.Nonce == d.wanted(m)
}

// evict tells those who are late to take no traffic, as far as the floor of
// instances that stay ready allows. It tells whether it asked anyone anew.
func (d *draft) evict(r *Rollout, ms []move) bool {
	asked := false
	for _, m := range ms {
		late := d.tooLate(m)
		if len(late) > maxUnready(r.Plan, len(m.regs)) {
			return false
		}
		if m.warm && slices.ContainsFunc(m.regs, func(said Ready) bool { return !d.evicted(m, said) && slices.Contains(late, said.Instance) }) {
			return false // No prepare is under way that could tell them.
		}
	}
	for _, m := range ms {
		p, late := d.prepares[m.group], d.tooLate(m)
		if m.warm || len(late) == 0 || slices.Equal(p.Evict, late) {
			continue
		}
		p.Evict = late
		d.prepares[m.group] = p
		d.audit(r, "evict", join(late, ", "), []string{m.group}, r.To)
		asked = true
	}
	return asked
}

// tooLate lists who of m is late and takes no traffic then: not those whom the
// commit leaves out of nothing.
func (d *draft) tooLate(m move) []string {
	var late []string
	for _, said := range m.regs {
		if !d.holds(m, said) && (said.Evicted || !d.lacksOther(m, said)) {
			late = append(late, said.Instance)
		}
	}
	return late
}

// maxUnready is how many of n instances a rollout may tell to leave traffic.
func maxUnready(s *Strategy, n int) int { return MostUnready(s.MaxUnready, n) }

// MostUnready is how many of a group's n instances may be out of traffic at
// once: as many as q says, one where it says nothing, never all.
func MostUnready(q Quantity, n int) int {
	most, err := q.Of(n)
	if err != nil || q == "" {
		most = 1
	}
	return max(min(most, n-1), 0)
}
