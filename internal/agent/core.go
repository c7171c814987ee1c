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
	maxWhy = 300 // bytes of a reason that goes into etcd
	keep   = 3   // good assignments remembered

	minRetry  = 200 * time.Millisecond // before a digest in force that failed is tried again, doubling
	soonRetry = 5 * time.Second        // at most, for what etcd may give any moment
	maxRetry  = 30 * time.Second       // at most, for what cannot be compiled
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

	pin     *Pin         // an operator's order: served whatever is committed
	pinning *version.Ref // to be held for one that is being given

	evictDelay time.Duration // from taking no traffic to saying so
	evicted    time.Time     // since when it takes no traffic; zero for not
	away       bool          // and that may be said
	own        bool          // it is out by its own wish, and the group's floor allowed that
	asking     bool          // it wishes to be
	notBefore  time.Time     // it is asked again

	held        map[version.Digest]bool
	failed      map[version.Digest]failure
	quarantined map[version.Digest]bool
	notYet      map[version.Digest]time.Time // quarantined, and not tried before where nothing else can serve
	refusal     *rollout.Refusal             // newest

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
	pinned    bool // stable is not the assignment's: an operator wants another
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
	hung      bool // nor under any other, in this process
	lost      bool // pieces are missing
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
		notYet:      map[version.Digest]time.Time{},
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

// forgive ends the quarantine of ds.
func (c *core) forgive(ds ...version.Digest) {
	for _, d := range ds {
		delete(c.quarantined, d)
		delete(c.notYet, d)
	}
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
	if r.fleet == "" && r.assignment != nil && (c.floor == 0 || !r.confirmed) {
		// The fleet was made, or restored, after the watch began, so its id is
		// not known yet. An assignment without one is no reason to do anything:
		// epochs are told apart by their fleet.
		c.doubt = !r.confirmed
		return
	}
	switch why := c.contradiction(r); {
	case c.thaws(r.assignment) && (why != "" || c.frozen != ""):
		if !r.confirmed {
			// The id beside it may still be that of a fleet that was deleted
			// meanwhile: the two keys are told one after the other.
			c.doubt = true
			return
		}
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
	c.activate = now.Add(min(max(a.Instant.Sub(now), 0), rollout.MaxLead))
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
	f.nonce, f.why, f.permanent, f.lost, f.tries = j.nonce, line(why), permanent, false, f.tries+1
	most := soonRetry
	if permanent {
		most = maxRetry
	}
	f.retry = now.Add(min(minRetry<<min(f.tries-1, 10), most))
	c.failed[j.Digest] = f
	if permanent {
		c.refusal = &rollout.Refusal{Nonce: j.nonce, Digest: j.Digest, Why: f.why, Time: now}
	}
}

// hangs tells that building a digest came to no end. In this process it is not
// tried again, for whatever set: each time costs a goroutine.
func (c *core) hangs(j job, why string, now time.Time) {
	c.refused(j, why, true, now)
	f := c.failed[j.Digest]
	f.hung = true
	c.failed[j.Digest] = f
}

// lacks tells that a digest could not be built because pieces are missing. A
// prepare is refused; in force it is tried again soon.
func (c *core) lacks(j job, why string, now time.Time) {
	c.refused(j, why, true, now)
	f := c.failed[j.Digest]
	f.lost = true
	if soon := now.Add(soonRetry); f.retry.After(soon) {
		f.retry = soon
	}
	c.failed[j.Digest] = f
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

// same tells whether two assignments are the same commit.
func same(a, b *rollout.Assignment) bool {
	if a.Epoch != b.Epoch || a.Nonce != b.Nonce || a.Stable.Digest != b.Stable.Digest || (a.Candidate == nil) != (b.Candidate == nil) {
		return false
	}
	x, y := a.Candidate, b.Candidate
	return x == nil || (x.Digest == y.Digest && x.Permyriad == y.Permyriad && x.Salt == y.Salt && x.Key == y.Key &&
		slices.Equal(x.Instances, y.Instances) && matchOf(x) == matchOf(y))
}

// matchOf is whom a candidate is for besides its share; zero for nobody.
func matchOf(c *rollout.Candidate) rollout.Match {
	if c.Match == nil {
		return rollout.Match{}
	}
	return *c.Match
}

// line brings a reason to one bounded line of text.
func line(s string) string {
	s = strings.ToValidUTF8(strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }), "; "), "?")
	if len(s) > maxWhy {
		s = strings.ToValidUTF8(s[:maxWhy-3], "") + "..."
	}
	return s
}
