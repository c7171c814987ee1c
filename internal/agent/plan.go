package agent

import (
	"fmt"
	"slices"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// plan says what ought to be at now.
func (c *core) plan(now time.Time) plan {
	p := plan{confirm: c.doubt, keep: map[version.Digest]bool{}, ready: c.ready()}
	c.planBuilds(&p, now)
	c.planSwap(&p, now)
	return p
}

// planBuilds lists what is to be held: first what has to be served, then the
// rest of the set in force, then what is being prepared.
func (c *core) planBuilds(p *plan, now time.Time) {
	if c.serving != nil {
		for _, r := range c.serving.refs() {
			p.keep[r.Digest] = true
		}
	}
	if t := c.target; t != nil {
		c.want(p, now, t.Nonce, true, c.choose(t).refs())
	}
	if c.serving == nil && (c.target == nil || c.fromDisk) {
		// Also before etcd had its time to answer: most often it will say the same.
		if g := c.remembered(); g != nil {
			c.want(p, now, g.Nonce, true, c.choose(g).refs())
		}
	}
	if t := c.target; t != nil {
		c.want(p, now, t.Nonce, true, t.Set)
	}
	if c.prepare == nil {
		return
	}
	for _, r := range c.prepare.Set {
		p.keep[r.Digest] = p.keep[r.Digest] || c.held[r.Digest]
	}
	if _, refuses := c.refuses(c.prepare); !refuses && c.asked(c.prepare) {
		c.want(p, now, c.prepare.Nonce, false, c.prepare.Set)
	}
}

// want adds to the plan what of refs is to be built for nonce. What is in
// force is tried again and again; what is only prepared is refused once.
func (c *core) want(p *plan, now time.Time, nonce rollout.Nonce, inForce bool, refs []version.Ref) {
	for _, r := range refs {
		if r.IsZero() {
			continue
		}
		p.keep[r.Digest] = true
		if c.held[r.Digest] || c.quarantined[r.Digest] || slices.ContainsFunc(p.build, func(j job) bool { return j.Digest == r.Digest }) {
			continue
		}
		if f, ok := c.failed[r.Digest]; ok && (inForce || f.nonce == nonce) {
			if f.permanent && !inForce {
				continue
			}
			if now.Before(f.retry) {
				p.wakeAt(f.retry)
				continue
			}
		}
		p.build = append(p.build, job{Ref: r, nonce: nonce})
	}
}

func (p *plan) wakeAt(t time.Time) {
	if p.wake.IsZero() || t.Before(p.wake) {
		p.wake = t
	}
}

// planSwap decides what is to be served, and from when.
func (c *core) planSwap(p *plan, now time.Time) {
	switch {
	case c.target != nil && c.frozen == "" && (c.admitted || c.serving != nil) && !c.fromDisk:
		if c.serving != nil && c.target.Epoch <= c.serving.Epoch {
			return
		}
		ch := c.choose(c.target)
		if ch.stable.IsZero() || !c.holds(ch.refs()) {
			return
		}
		if now.Before(c.activate) {
			p.wakeAt(c.activate)
			return
		}
		p.swap = &serving{Assignment: *c.target, choice: ch, source: SourceEtcd}
	case c.serving == nil && (c.fromDisk || c.frozen != ""):
		if g := c.remembered(); g != nil && !(c.reads && c.frozen == "" && (c.target == nil || !same(g, c.target))) {
			if ch := c.choose(g); c.holds(ch.refs()) {
				p.swap = &serving{Assignment: *g, choice: ch, source: SourceDisk}
			}
		}
	}
}

// remembered is the newest remembered assignment that is not known to
// be beyond repair.
func (c *core) remembered() *rollout.Assignment {
	for i := range c.good {
		ch := c.choose(&c.good[i])
		if !slices.ContainsFunc(ch.refs(), func(r version.Ref) bool {
			return r.IsZero() || c.quarantined[r.Digest] || (c.failed[r.Digest].permanent && !c.held[r.Digest])
		}) {
			return &c.good[i]
		}
	}
	return nil
}

// choose says what this instance makes of an assignment.
func (c *core) choose(a *rollout.Assignment) choice {
	ch := choice{stable: a.Stable}
	if a.Candidate != nil && !c.quarantined[a.Candidate.Digest] {
		cand := *a.Candidate
		if len(cand.Instances) > 0 {
			cand.Permyriad = 0
			if slices.Contains(cand.Instances, c.instance) {
				cand.Permyriad = 10000
			}
		}
		if cand.Permyriad > 0 {
			ch.candidate = &cand
		}
	}
	if !c.quarantined[ch.stable.Digest] {
		return ch
	}
	for _, r := range c.ways(a) {
		if !c.quarantined[r.Digest] && !(c.failed[r.Digest].permanent && !c.held[r.Digest]) {
			ch.stable, ch.fallback = r, true
			break
		}
	}
	return ch
}

// ways lists what served well before an assignment's stable revision, newest
// first: what this instance served itself, then what the group did.
func (c *core) ways(a *rollout.Assignment) []version.Ref {
	var refs []version.Ref
	for _, g := range c.good {
		refs = append(refs, g.Stable)
	}
	return append(refs, a.Back...)
}

// holds tells whether all of refs are held. The zero ref is what a group is
// assigned before anything was published: there is nothing to hold.
func (c *core) holds(refs []version.Ref) bool {
	return !slices.ContainsFunc(refs, func(r version.Ref) bool { return !r.IsZero() && !c.held[r.Digest] })
}

// holdsSet is like holds, but a digest in force that is quarantined here counts
// as held: such an instance stays ready, or the fleet could never leave it.
func (c *core) holdsSet(set []version.Ref) bool {
	return !slices.ContainsFunc(set, func(r version.Ref) bool {
		return !r.IsZero() && !c.held[r.Digest] && !(c.quarantined[r.Digest] && c.inForce(r.Digest))
	})
}

func (c *core) inForce(d version.Digest) bool {
	return c.target != nil && slices.ContainsFunc(c.target.Set, func(r version.Ref) bool { return r.Digest == d })
}

// asked tells whether a prepare is this instance's turn.
func (c *core) asked(p *rollout.Prepare) bool { return p.First == "" || p.First == c.instance }

// refuses tells why this instance will not hold a prepare's set.
func (c *core) refuses(p *rollout.Prepare) (string, bool) {
	for _, r := range p.Set {
		if c.quarantined[r.Digest] && !c.inForce(r.Digest) && !c.held[r.Digest] {
			return fmt.Sprintf("revision %d (%s) is quarantined: it crashed this process twice", r.Number, r.Digest.Short()), true
		}
		if f, ok := c.failed[r.Digest]; ok && f.permanent && f.nonce == p.Nonce {
			return f.why, true
		}
	}
	return "", false
}

// ready says what the ready key is to hold: the nonce being prepared once its
// set and what is in force are held, else the nonce in force.
func (c *core) ready() *rollout.Ready {
	r := &rollout.Ready{Instance: c.instance, Group: c.group}
	if c.frozen != "" {
		return r // so that nothing commits
	}
	if p := c.prepare; p != nil && c.asked(p) {
		if why, refuses := c.refuses(p); refuses {
			r.Nonce, r.Refused, r.Why = p.Nonce, true, why
			return r
		}
		if c.holdsSet(p.Set) && (c.target == nil || c.holds(c.choose(c.target).refs())) {
			r.Nonce = p.Nonce
			return r
		}
	}
	if c.target != nil && c.holdsSet(c.target.Set) && c.holds(c.choose(c.target).refs()) {
		r.Nonce = c.target.Nonce
		return r
	}
	if c.serving == nil {
		return nil
	}
	return r
}

// behind tells why what is served is not what is committed; empty when it is.
func (c *core) behind(now time.Time) string {
	t := c.target
	if t == nil || c.frozen != "" || (c.serving != nil && c.serving.Epoch >= t.Epoch) || now.Before(c.activate) {
		return ""
	}
	for _, r := range c.choose(t).refs() {
		if r.IsZero() || c.held[r.Digest] {
			continue
		}
		if f, ok := c.failed[r.Digest]; ok {
			return fmt.Sprintf("epoch %d is committed, revision %d is not held: %s", t.Epoch, r.Number, f.why)
		}
		return fmt.Sprintf("epoch %d is committed, revision %d is not held yet", t.Epoch, r.Number)
	}
	return ""
}

// forget drops the failures of digests that nobody asks for any more.
func (c *core) forget() {
	asked := map[version.Digest]bool{}
	for _, a := range c.good {
		asked[a.Stable.Digest] = true
	}
	if c.target != nil {
		for _, r := range c.target.Set {
			asked[r.Digest] = true
		}
	}
	if c.prepare != nil {
		for _, r := range c.prepare.Set {
			asked[r.Digest] = true
		}
	}
	for d := range c.failed {
		if !asked[d] {
			delete(c.failed, d)
		}
	}
}

// outOfReach tells that etcd did not answer for the join timeout: what is on
// disk may be served. contact takes that back while nothing is served.
//
// reads: etcd is read but does not let the instance join. What it says is in
// force is then the only thing that may be served.
func (c *core) outOfReach(reads bool) { c.fromDisk, c.reads = c.serving == nil, reads }

func (c *core) contact() { c.fromDisk = false }
