package agent

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

const (
	maxWait = 100 * time.Millisecond // the longest an instance waits for the instant a commit names
	maxWhy  = 300                    // bytes of a reason that goes into etcd
	keep    = 3                      // good assignments remembered

	minRetry = 200 * time.Millisecond // before a digest that failed is tried again
	maxRetry = 30 * time.Second
)

// A core decides what this instance holds, serves and says. It is told what
// was seen and what was done, and its plan says what is to be done next; both
// are pure functions of the calls made. Because a plan says what ought to be
// and not what changed, nothing depends on records coming once, in order or
// at all.
type core struct {
	instance, group string

	fleet string // whose epochs count here; empty until disk or etcd named one

	at      int64 // etcd's revision of the newest record followed
	records int   // how many records were seen: a read that was overtaken is void
	doubt   bool  // a record says that etcd went back: a linearizable read must tell

	target   *rollout.Assignment // what to serve
	activate time.Time           // when
	prepare  *rollout.Prepare

	good       []rollout.Assignment // served by this instance, newest first, at most keep
	floor      int64                // highest epoch ever served, also before a restart
	serving    *serving
	admitted   bool // by the transaction that makes a joining instance one of the group
	registered bool // under instances/; what is said counts
	fromDisk   bool // etcd was out of reach for too long: disk state may be served
	reads      bool // meanwhile etcd tells what is in force
	frozen     string

	held        map[version.Digest]bool
	failed      map[version.Digest]failure
	quarantined map[version.Digest]bool
	refusal     *rollout.Refusal // newest

	highestEpoch, highestRevision int64
}

// serving is what requests are served by, and why.
type serving struct {
	rollout.Assignment
	choice
	since  time.Time
	source Origin
}

// A choice is what this instance makes of an assignment: the whole of it, but
// for candidates on other instances and for quarantined digests.
type choice struct {
	stable    version.Ref
	candidate *rollout.Candidate
	fallback  bool // stable is not the assignment's: that one is quarantined
}

// main is what most requests are served by.
func (c choice) main() version.Ref {
	if c.candidate != nil && c.candidate.Permyriad >= 10000 {
		return c.candidate.Ref
	}
	return c.stable
}

func (c choice) refs() []version.Ref {
	if c.candidate == nil {
		return []version.Ref{c.stable}
	}
	return []version.Ref{c.stable, c.candidate.Ref}
}

// A failure is why a digest is not held.
type failure struct {
	nonce     rollout.Nonce // of the set it was built for
	why       string
	permanent bool // trying again under the same nonce is of no use
	tries     int
	retry     time.Time
}

// A record is what the two keys of a group say at one revision of etcd.
type record struct {
	at         int64
	fleet      string // the id beside them; empty when etcd has none
	assignment *rollout.Assignment
	prepare    *rollout.Prepare

	// confirmed: it was read linearizably, after the first `after` records had
	// been seen. Only such a read can say that etcd went back.
	confirmed bool
	after     int
}

// A plan is what ought to be.
type plan struct {
	build   []job                   // what is to be held and is not, most urgent first
	keep    map[version.Digest]bool // all else is dropped
	swap    *serving                // to be served now
	wake    time.Time               // when to look again without an event; zero for never
	ready   *rollout.Ready          // what the ready key is to say; nil for nothing yet
	confirm bool                    // read the group linearizably
}

// A job is a digest to build, and for which set.
type job struct {
	version.Ref
	nonce rollout.Nonce
}

func newCore(instance, group string) *core {
	return &core{
		instance: instance, group: group,
		held:        map[version.Digest]bool{},
		failed:      map[version.Digest]failure{},
		quarantined: map[version.Digest]bool{},
	}
}

// remember takes up what a former life left on disk.
func (c *core) remember(m memory, quarantined []version.Digest) {
	c.fleet, c.good, c.floor = m.Fleet, m.Good, m.Served
	c.highestEpoch, c.highestRevision = m.HighestEpoch, m.HighestRevision
	for _, a := range m.Good {
		c.floor = max(c.floor, a.Epoch)
		c.sawNumbers(a.Epoch, a.Set)
	}
	c.highestEpoch = max(c.highestEpoch, c.floor)
	for _, d := range quarantined {
		c.quarantined[d] = true
	}
}

// memory is what the disk is to remember.
func (c *core) memory() memory {
	m := memory{
		Fleet: c.fleet, Group: c.group, Good: c.good, Served: c.floor,
		HighestEpoch: c.highestEpoch, HighestRevision: c.highestRevision,
	}
	if c.target != nil && c.target.Epoch > c.floor && c.frozen == "" {
		m.Received = c.target
	}
	return m
}

// saw takes a record. A late, repeated or reordered one changes nothing.
func (c *core) saw(r record, now time.Time) {
	if r.confirmed && r.after != c.records {
		return // overtaken; doubt stands, so it is read again
	}
	c.records++
	if r.at < c.at && !r.confirmed {
		// Reordered, or an etcd restored from an older copy.
		c.doubt = true
		return
	}
	switch why := c.contradiction(r); {
	case c.thaws(r.assignment) && (why != "" || c.frozen != ""):
		c.thaw(r.fleet)
	case why != "" && !r.confirmed && c.frozen == "":
		c.doubt = true
		return
	case why != "" || c.frozen != "":
		c.at, c.doubt = r.at, false
		if why != "" {
			c.freeze(why)
		}
		return
	}
	if c.floor == 0 {
		c.fleet = r.fleet // nothing was served yet: whatever etcd says is right
	}
	c.at, c.doubt = r.at, false
	c.prepare = r.prepare
	if r.prepare != nil {
		c.sawNumbers(0, r.prepare.Set)
	}
	c.follow(r.assignment, now)
	c.forget()
}

// contradiction tells how a record cannot follow what was served here.
func (c *core) contradiction(r record) string {
	a := r.assignment
	switch {
	case c.floor == 0:
		return ""
	case r.fleet == "":
		return fmt.Sprintf("etcd holds no fleet, this instance serves fleet %s", c.fleet)
	case r.fleet != c.fleet:
		return fmt.Sprintf("etcd holds fleet %s, this instance serves fleet %s", r.fleet, c.fleet)
	case a == nil:
		return fmt.Sprintf("groups/%s is gone, epoch %d was served", c.group, c.floor)
	case a.Epoch < c.floor:
		return fmt.Sprintf("groups/%s is at epoch %d, epoch %d was served", c.group, a.Epoch, c.floor)
	}
	if g := c.newest(); g != nil && g.Epoch == a.Epoch && !same(g, a) {
		return fmt.Sprintf("groups/%s says other things of epoch %d than were served", c.group, a.Epoch)
	}
	return ""
}

func (c *core) newest() *rollout.Assignment {
	if len(c.good) == 0 {
		return nil
	}
	return &c.good[0]
}

// follow makes a the assignment to serve. It does not contradict what was
// served.
func (c *core) follow(a *rollout.Assignment, now time.Time) {
	if a == nil {
		c.target = nil
		return
	}
	c.sawNumbers(a.Epoch, a.Set)
	if c.target != nil && same(c.target, a) {
		return
	}
	c.target = a
	c.activate = now.Add(min(max(a.Instant.Sub(now), 0), maxWait))
	if c.serving != nil && c.serving.source == SourceDisk && same(&c.serving.Assignment, a) {
		c.serving.source = SourceEtcd
	}
}

func (c *core) sawNumbers(epoch int64, set []version.Ref) {
	c.highestEpoch = max(c.highestEpoch, epoch)
	for _, r := range set {
		c.highestRevision = max(c.highestRevision, r.Number)
	}
}

// freeze stops following etcd: what is served stays.
func (c *core) freeze(why string) {
	c.frozen = rollout.FrozenStoreWentBack + ": " + why
	c.prepare = nil
	c.target = nil
	if c.serving != nil {
		c.target = &c.serving.Assignment
	}
}

// thaws tells whether an assignment ends a freeze: an operator's recovery made
// it or one before it, above every epoch served here. Nothing else does: that
// etcd looks right again is no proof that nothing was lost.
func (c *core) thaws(a *rollout.Assignment) bool { return a != nil && a.Recovered > c.floor }

func (c *core) thaw(fleet string) {
	c.frozen = ""
	if c.fleet != fleet {
		// What is remembered is another fleet's; the floor stays, so that the
		// epochs of this instance only grow.
		c.fleet, c.good = fleet, nil
	}
}

// built tells that a digest is held.
func (c *core) built(d version.Digest) {
	c.held[d] = true
	delete(c.failed, d)
}

// dropped tells that a digest is held no more.
func (c *core) dropped(d version.Digest) { delete(c.held, d) }

// refused tells that a digest could not be built.
func (c *core) refused(j job, why string, permanent bool, now time.Time) {
	f := c.failed[j.Digest]
	f.nonce, f.why, f.permanent, f.tries = j.nonce, line(why), permanent, f.tries+1
	f.retry = now.Add(min(minRetry<<min(f.tries-1, 10), maxRetry))
	c.failed[j.Digest] = f
	if permanent {
		c.refusal = &rollout.Refusal{Nonce: j.nonce, Digest: j.Digest, Why: f.why, Time: now}
	}
}

// switched tells that s is served.
func (c *core) switched(s *serving, now time.Time) {
	s.since = now
	c.serving = s
	c.fromDisk = false
	if c.frozen != "" {
		c.target = &s.Assignment // its whole set is held, for a recovery from here
	}
	c.floor = max(c.floor, s.Epoch)
	if g := c.newest(); g == nil || s.Epoch > g.Epoch {
		c.good = append([]rollout.Assignment{s.Assignment}, c.good...)
		c.good = c.good[:min(len(c.good), keep)]
	}
}

// left tells that the lease is gone: nothing that was said counts any more.
func (c *core) left() { c.registered, c.admitted = false, false }

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
		if !c.holds(ch.refs()) {
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

func (c *core) holds(refs []version.Ref) bool {
	return !slices.ContainsFunc(refs, func(r version.Ref) bool { return !c.held[r.Digest] })
}

// holdsSet is like holds, but a digest in force that is quarantined here counts
// as held: such an instance stays ready, or the fleet could never leave it.
func (c *core) holdsSet(set []version.Ref) bool {
	return !slices.ContainsFunc(set, func(r version.Ref) bool {
		return !c.held[r.Digest] && !(c.quarantined[r.Digest] && c.inForce(r.Digest))
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
		if c.held[r.Digest] {
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

// same tells whether two assignments are the same commit.
func same(a, b *rollout.Assignment) bool {
	if a.Epoch != b.Epoch || a.Nonce != b.Nonce || a.Stable.Digest != b.Stable.Digest || (a.Candidate == nil) != (b.Candidate == nil) {
		return false
	}
	x, y := a.Candidate, b.Candidate
	return x == nil || (x.Digest == y.Digest && x.Permyriad == y.Permyriad && x.Salt == y.Salt && x.Key == y.Key && slices.Equal(x.Instances, y.Instances))
}

// line brings a reason to one bounded line of text.
func line(s string) string {
	s = strings.ToValidUTF8(strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }), "; "), "?")
	if len(s) > maxWhy {
		s = strings.ToValidUTF8(s[:maxWhy-3], "") + "..."
	}
	return s
}
