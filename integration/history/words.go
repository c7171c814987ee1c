package history

import (
	"maps"
	"slices"
	"time"

	"routerd.dev/internal/version"
)

// slow is how much later than its switch an instance may say so: it says it
// right after it, but this machine may let it wait.
const slow = 2 * time.Second

// checkSamples holds what each instance said over HTTP against what it
// answered (I12): it never says a later epoch than it serves, and an
// earlier one only for a moment.
func checkSamples(v *verdict, h *History, r *records) {
	type served struct{ lowest, highest []step } // of answers, by time
	by := map[string]*served{}
	for p := range h.Answers {
		if p.Fault != FaultNone {
			continue
		}
		s := by[p.Instance]
		if s == nil {
			s = &served{}
			by[p.Instance] = s
		}
		(*steps)(&s.highest).rise(p.Got, p.Epoch)
		s.lowest = append(s.lowest, step{At: p.Asked, Epoch: p.Epoch})
	}
	for _, s := range by {
		lowestAfter(s.lowest)
	}
	last := map[string]Sample{}
	for _, s := range h.Samples {
		if s.Epoch == 0 || by[s.Instance] == nil {
			continue
		}
		v.Reports++
		at := h.Start.Add(s.Asked).Format(clock)
		if least := steps(by[s.Instance].highest).floor(s.Asked - slow); s.Epoch < least {
			v.broken("I12", "%s said at %s that it serves epoch %d, it had answered with %d more than %v before", s.Instance, at, s.Epoch, least, slow)
		}
		if low, ok := after(by[s.Instance].lowest, s.Got); ok && low < s.Epoch {
			v.broken("I12", "%s said at %s that it serves epoch %d, and answered a later request with %d", s.Instance, at, s.Epoch, low)
		}
		if old := last[s.Instance]; s.Epoch < old.Epoch && s.Asked > old.Got {
			v.broken("I3", "%s said at %s that it serves epoch %d, it was %d before", s.Instance, at, s.Epoch, old.Epoch)
		}
		last[s.Instance] = s
		checkServed(v, r, s, at)
	}
}

// checkServed holds the revision that an instance says it serves against its
// epoch's.
func checkServed(v *verdict, r *records, s Sample, at string) {
	c := r.byEpoch[s.Group][s.Epoch]
	switch {
	case c == nil:
		v.broken("I2", "%s said at %s that it serves epoch %d of group %s, which was never committed", s.Instance, at, s.Epoch, s.Group)
	case s.Fallback || r.strayed[s.Instance]:
	case s.Digest != c.Stable.Digest && (c.Candidate == nil || s.Digest != c.Candidate.Digest):
		v.broken("I12", "%s said at %s that it serves %s in epoch %d of group %s, which is of %s", s.Instance, at, s.Digest.Short(), s.Epoch, s.Group, c.Stable.Digest.Short())
	}
}

// lowestAfter sorts by time and makes of each step's epoch the lowest of it and all after it.
func lowestAfter(s []step) {
	slices.SortFunc(s, func(a, b step) int { return int(a.At - b.At) })
	for i := len(s) - 2; i >= 0; i-- {
		s[i].Epoch = min(s[i].Epoch, s[i+1].Epoch)
	}
}

// after is the lowest epoch of answers to requests that were asked after t.
func after(lowest []step, t time.Duration) (int64, bool) {
	i, _ := slices.BinarySearchFunc(lowest, t, func(s step, t time.Duration) int {
		if s.At <= t {
			return -1
		}
		return 1
	})
	if i == len(lowest) {
		return 0, false
	}
	return lowest[i].Epoch, true
}

// A first is who of a group switched to an epoch before all others.
type first struct {
	at  time.Time
	who string
}

// checkLogs holds the commits against the instances' logs: each instance that
// was registered at a commit had logged that it holds the set before any
// instance of the group logged that it switched (I2), and no log has an epoch
// after a higher one (I3). The times are of one clock: those of skewed
// instances are left out.
func checkLogs(v *verdict, h *History, r *records) {
	held := prepared(h)
	switched := map[string]map[int64]first{} // by group, then epoch
	for _, name := range slices.Sorted(maps.Keys(h.Logs)) {
		group, epoch := h.Groups[name], int64(0)
		if switched[group] == nil {
			switched[group] = map[int64]first{}
		}
		for _, l := range h.Logs[name] {
			if l.Msg != "switched" {
				continue
			}
			v.Logs++
			if l.Epoch < epoch {
				v.broken("I3", "%s switched to epoch %d after epoch %d", name, l.Epoch, epoch)
			}
			epoch = l.Epoch
			if f, ok := switched[group][l.Epoch]; !h.Skewed[name] && (!ok || l.Time.Before(f.at)) {
				switched[group][l.Epoch] = first{at: l.Time, who: name}
			}
		}
	}
	seen := map[string]bool{} // a set is prepared once, whatever is committed of it
	for _, c := range r.commits {
		set := c.Group + " " + string(c.Nonce)
		f, ok := switched[c.Group][c.Epoch]
		if c.Override != nil || seen[set] || !ok {
			continue
		}
		seen[set] = true
		for _, i := range slices.Sorted(maps.Keys(c.ready)) {
			if at, ok := held[i][string(c.Nonce)]; ok && at.After(f.at) {
				v.broken("I2", "group %s epoch %d: %s switched at %s, %s held the set at %s", c.Group, c.Epoch, f.who, f.at.Format(clock), i, at.Format(clock))
			}
		}
	}
}

// checkAcked finds publishes that were told to be done and are not in the
// history as they were: neither in etcd's order, nor, of the last era, at the end.
func checkAcked(v *verdict, h *History, r *records) {
	final := map[int64]version.Revision{}
	for _, rev := range h.Final {
		final[rev.Number] = rev
	}
	for _, a := range h.Acked {
		v.Acked++
		same := func(rev version.Revision) bool { return rev.Digest == a.Digest && rev.Message == a.Message }
		if !slices.ContainsFunc(r.revisions[a.Revision], func(k revision) bool { return same(k.Revision) }) {
			v.broken("lost", "revision %d (%s, %q) was acknowledged and never written", a.Revision, a.Digest.Short(), a.Message)
			continue
		}
		if a.At.After(h.LastEra) && h.Final != nil && !same(final[a.Revision]) {
			v.broken("lost", "revision %d (%s, %q) was acknowledged and is not in the history at the end, which has %q there", a.Revision, a.Digest.Short(), a.Message, final[a.Revision].Message)
		}
	}
}
