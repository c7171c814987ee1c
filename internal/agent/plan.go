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
	c.traffic(now)
	p := plan{confirm: c.doubt, keep: map[version.Digest]bool{}, ready: c.ready()}
	if !c.evicted.IsZero() && !c.away {
		p.wakeAt(c.evicted.Add(c.evictDelay))
	}
	if t := c.wakeOut(now); !t.IsZero() {
		p.wakeAt(t)
	}
	c.planBuilds(&p, now)
	c.planSwap(&p, now)
	return p
}

// planBuilds lists what is to be held: first what an operator wants served,
// then what has to be served, then the rest of the set in force, then what is
// being prepared.
func (c *core) planBuilds(p *plan, now time.Time) {
	if c.serving != nil {
		for _, r := range c.serving.refs() {
			p.keep[r.Digest] = true
		}
	}
	c.wantPinned(p, now)
	if t := c.target; t != nil {
		c.want(p, now, t.Nonce, true, c.choose(t).refs())
	}
	if v := c.serving; v != nil {
		// Also while another is pinned: unpinning should take no time.
		c.want(p, now, v.Nonce, true, c.assigned(&v.Assignment).refs())
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
		if r.IsZero() || !inForce && c.inForce(r.Digest) {
			continue // what is in force is listed as such: no prepare makes it come sooner
		}
		p.keep[r.Digest] = true
		if c.held[r.Digest] || c.quarantined[r.Digest] && !c.lastResort(r.Digest) || slices.ContainsFunc(p.build, func(j job) bool { return j.Digest == r.Digest }) {
			continue
		}
		if t := c.notYet[r.Digest]; now.Before(t) {
			p.wakeAt(t)
			continue
		}
		if f, ok := c.failed[r.Digest]; ok && (inForce || f.hung || f.nonce == nonce) {
			if f.hung || f.permanent && !inForce {
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
	if ch, ok := c.repin(); ok {
		p.swap = &serving{Assignment: c.serving.Assignment, choice: ch, source: c.serving.source}
		return
	}
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
// be beyond repair. One that is quarantined is better than none.
func (c *core) remembered() *rollout.Assignment {
	for _, last := range []bool{false, true} {
		for i := range c.good {
			ch := c.choose(&c.good[i])
			if !slices.ContainsFunc(ch.refs(), func(r version.Ref) bool {
				return r.IsZero() || c.quarantined[r.Digest] && !last || (c.failed[r.Digest].permanent && !c.held[r.Digest])
			}) {
				return &c.good[i]
			}
		}
	}
	return nil
}

// lastResort tells whether d is what is to be served although it is quarantined,
// for want of anything else.
func (c *core) lastResort(d version.Digest) bool {
	chosen := func(a *rollout.Assignment) bool { return a != nil && c.choose(a).stable.Digest == d }
	if c.serving != nil {
		return chosen(&c.serving.Assignment) || chosen(c.target)
	}
	return chosen(c.target) || (c.target == nil || c.fromDisk) && chosen(c.remembered())
}

// choose says what this instance makes of an assignment.
func (c *core) choose(a *rollout.Assignment) choice {
	if c.obeysPin() {
		return choice{stable: c.pin.Ref, pinned: true}
	}
	return c.assigned(a)
}

// assigned is what it makes of one when nothing is pinned.
func (c *core) assigned(a *rollout.Assignment) choice {
	ch := choice{stable: a.Stable}
	if a.Candidate != nil && !c.quarantined[a.Candidate.Digest] {
		cand := *a.Candidate
		if len(cand.Instances) > 0 {
			cand.Permyriad = 0
			if slices.Contains(cand.Instances, c.instance) {
				cand.Permyriad = 10000
			}
		}
		if cand.Permyriad > 0 || cand.Match != nil {
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

// lacking lists what is not held of a set and of what is to be served. sick:
// all of it is in force and was tried in vain, so that waiting is of no use.
// Then a commit that goes elsewhere finds this instance no worse than it is.
func (c *core) lacking(set []version.Ref) (ds []version.Digest, sick bool) {
	sick = true
	miss := func(d version.Digest) {
		if !slices.Contains(ds, d) {
			ds = append(ds, d)
			sick = sick && c.inForce(d) && (c.failed[d].permanent || c.quarantined[d])
		}
	}
	for _, r := range set {
		if !c.holdsSet([]version.Ref{r}) {
			miss(r.Digest)
		}
	}
	if c.target != nil {
		for _, r := range c.choose(c.target).refs() {
			if !c.holds([]version.Ref{r}) {
				miss(r.Digest)
			}
		}
	}
	return ds, sick
}

// sickness says what of the set in force cannot be had, and why.
func (c *core) sickness() []rollout.Lack {
	if c.target == nil || c.frozen != "" {
		return nil
	}
	var out []rollout.Lack
	for _, r := range c.target.Set {
		if f, ok := c.failed[r.Digest]; ok && f.permanent && !c.held[r.Digest] {
			out = append(out, rollout.Lack{Ref: r, Why: f.why})
		}
	}
	return out
}

// refuses tells why this instance will not hold a prepare's set. What is in
// force is no reason: it is lacking already, and a refusal would keep the
// others from leaving it.
func (c *core) refuses(p *rollout.Prepare) (string, bool) {
	for _, r := range p.Set {
		if c.inForce(r.Digest) {
			continue
		}
		if c.quarantined[r.Digest] && !c.held[r.Digest] {
			return fmt.Sprintf("revision %d (%s) is quarantined: it crashed this process twice", r.Number, r.Digest.Short()), true
		}
		if f, ok := c.failed[r.Digest]; ok && f.permanent && (f.hung || f.nonce == p.Nonce) {
			return f.why, true
		}
	}
	return "", false
}

// ready says what the ready key is to hold: the nonce being prepared once its
// set and what is in force are held, else the nonce in force. Where only that is
// lacking which was lacking before, it says what.
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
		switch lacks, sick := c.lacking(p.Set); {
		case len(lacks) == 0:
			r.Nonce = p.Nonce
			return r
		case sick:
			r.Nonce, r.Lacks, r.Evicted = p.Nonce, lacks, c.outOfTraffic()
			return r
		}
		if c.away && c.named() {
			r.Nonce, r.Evicted = p.Nonce, true
			return r
		}
	}
	if c.target == nil {
		if c.serving == nil {
			return nil
		}
		return r
	}
	lacks, sick := c.lacking(c.target.Set)
	switch out := c.outOfTraffic(); {
	case len(lacks) == 0:
		r.Nonce = c.target.Nonce
	case sick:
		r.Nonce, r.Lacks, r.Evicted = c.target.Nonce, lacks, out
	case c.serving == nil:
		return nil
	case out:
		r.Nonce, r.Evicted = c.target.Nonce, true
	}
	return r
}

// outOfTraffic tells whether it takes no traffic, or wishes so. One that joins
// has none as long as it cannot serve what is committed.
func (c *core) outOfTraffic() bool {
	if c.serving == nil {
		return !c.holds(c.choose(c.target).refs()) // only asked where there is a target: else nothing is in force
	}
	return c.away || c.own || c.asking
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
		return fmt.Sprintf("epoch %d is committed, revision %d is not held", t.Epoch, r.Number) + c.wayOut(r)
	}
	if c.serving != nil {
		return ""
	}
	for _, r := range t.Set { // whoever joins serves nothing before it holds them all
		if !c.holdsSet([]version.Ref{r}) {
			return fmt.Sprintf("revision %d, which is kept for the way back, is not held", r.Number) + c.wayOut(r)
		}
	}
	return ""
}

// wayOut tells why r is not held, and what an operator can do about it.
func (c *core) wayOut(r version.Ref) string {
	f, ok := c.failed[r.Digest]
	switch {
	case !ok && c.quarantined[r.Digest]:
		return " yet: it is quarantined, and tried again soon, for there is nothing else: publish another revision, or routerd ctl forgive"
	case !ok:
		return " yet"
	case f.hung:
		return ": " + f.why + ": restart this instance"
	case f.lost:
		return ": " + f.why + ": routectl recover --from an instance that holds it"
	case f.permanent:
		return ": " + f.why + ": publish another revision"
	}
	return ": " + f.why
}

// forget drops the failures of digests that nobody asks for any more.
func (c *core) forget() {
	asked := map[version.Digest]bool{}
	for _, a := range c.good {
		asked[a.Stable.Digest] = true
	}
	if c.pin != nil {
		asked[c.pin.Digest] = true
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
	for d, f := range c.failed {
		if !asked[d] && !f.hung {
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
