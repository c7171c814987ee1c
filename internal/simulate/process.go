package simulate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// A process is one routerd and its disk: what package agent does, without
// goroutines. It never changes; what it does makes another one.
type process struct {
	name, group, boot string
	up                bool
	joined            bool // it believes that its keys stand
	admitted          bool
	frozen            bool
	away              bool // out of traffic, as it was told to be for being slow

	saw  bool
	at   mods // of what it saw last
	want *rollout.Assignment
	asks *rollout.Prepare

	holds   bits
	failed  []failure
	serving *rollout.Assignment

	said rollout.Ready // what it put, if it spoke
	told words         // what it reported last
	sent bool

	// The disk.
	floor   int64 // the highest epoch it ever served
	highest int64 // the highest it ever saw
	crashes table[int64, int]
	lost    bits // what it can never have: its pieces are gone

	note *note
}

// bits are revisions by number.
type bits uint64

func (b bits) has(n int64) bool { return b&(1<<uint(n)) != 0 }

// A failure is a revision that it would not build, for which nonce.
type failure struct {
	number int64
	nonce  rollout.Nonce
	why    string
}

// words are what is compared of a report: that they differ is a reason to
// report anew.
type words struct {
	epoch, number, candidate, highest int64
	nonce                             rollout.Nonce
	evicted, frozen                   bool
}

// A job is a revision to build, and for which set.
type job struct {
	number  int64
	nonce   rollout.Nonce
	inForce bool
}

func (f *Fleet) find(name string) (int, *process) {
	i := slices.IndexFunc(f.procs, func(p *process) bool { return p.name == name })
	if i < 0 {
		return -1, nil
	}
	return i, f.procs[i]
}

// alter replaces the process named by one that do has changed.
func (f *Fleet) alter(name string, do func(*process)) {
	i, p := f.find(name)
	q := *p
	q.note = new(note)
	do(&q)
	q.holds &= f.keeps(&q)
	f.traffic(&q)
	f.procs = slices.Clone(f.procs)
	f.procs[i] = &q
}

// Start begins a process of a name: a new one, or a former one with its disk.
func (f *Fleet) Start(name, group string) {
	f.boots++
	q := &process{name: name, group: group, boot: fmt.Sprintf("b%d", f.boots), up: true, note: new(note)}
	f.procs = slices.Clone(f.procs)
	if i, old := f.find(name); old != nil {
		q.group, q.floor, q.highest, q.crashes, q.lost = old.group, old.floor, old.highest, old.crashes, old.lost
		f.procs[i] = q
		return
	}
	f.procs = append(f.procs, q)
	slices.SortFunc(f.procs, func(a, b *process) int { return strings.Compare(a.name, b.name) })
}

// number is a digest's revision.
func (f *Fleet) number(d version.Digest) int64 { return f.numberOf[d] }

func (f *Fleet) maskOf(set []version.Ref) bits {
	var b bits
	for _, r := range set {
		if !r.IsZero() {
			b |= 1 << uint(f.number(r.Digest))
		}
	}
	return b
}

// keysStand tells whether etcd has the process's keys still.
func (f *Fleet) keysStand(p *process) bool { return f.instances.m[p.name].Boot == p.boot }

// choose says what p serves of an assignment: stable, and the candidate if a
// share of its requests gets it. A candidate by name serves nothing else.
func (p *process) choose(a *rollout.Assignment) []version.Ref {
	out := []version.Ref{p.avoid(a)}
	c := a.Candidate
	switch {
	case c == nil || p.quarantined(c.Number):
	case len(c.Instances) > 0:
		if slices.Contains(c.Instances, p.name) {
			out = append(out, c.Ref)
		}
	case c.Permyriad > 0 || c.Match != nil:
		out = append(out, c.Ref)
	}
	return out
}

// avoid is the stable revision, or the newest before it that did not crash p.
func (p *process) avoid(a *rollout.Assignment) version.Ref {
	if p.quarantined(a.Stable.Number) {
		for _, r := range a.Back {
			if !p.quarantined(r.Number) {
				return r
			}
		}
	}
	return a.Stable
}

// quarantined: it crashed the process twice.
func (p *process) quarantined(n int64) bool { return p.crashes.m[n] > 1 }

// main is what most of p's requests get.
func (p *process) main() version.Ref {
	if p.serving == nil {
		return version.Ref{}
	}
	if c := p.serving.Candidate; c != nil && slices.Contains(c.Instances, p.name) && !p.quarantined(c.Number) {
		return c.Ref
	}
	return p.avoid(p.serving)
}

// keeps are the revisions that p does not let go of.
func (f *Fleet) keeps(p *process) bits {
	var b bits
	if p.serving != nil {
		b |= f.maskOf(p.choose(p.serving)) | f.maskOf([]version.Ref{p.serving.Against})
	}
	if p.want != nil {
		b |= f.maskOf(p.want.Set) | f.maskOf(p.choose(p.want))
	}
	if p.asks != nil {
		b |= f.maskOf(p.asks.Set)
	}
	return b
}

func (f *Fleet) holdsAll(p *process, set []version.Ref) bool {
	return f.maskOf(set)&^p.holds == 0
}

// missing are the revisions of a set that p does not hold: what is quarantined
// there and in force counts as held.
func (f *Fleet) missing(p *process, set []version.Ref) bits {
	lacks := f.maskOf(set) &^ p.holds
	for n := range int64(64) {
		if p.quarantined(n) && f.inForce(p).has(n) {
			lacks &^= 1 << uint(n)
		}
	}
	return lacks
}

func (f *Fleet) holdsSet(p *process, set []version.Ref) bool { return f.missing(p, set) == 0 }

// inForce are the revisions of the set in force, as far as p knows.
func (f *Fleet) inForce(p *process) bits {
	if p.want == nil {
		return 0
	}
	return f.maskOf(p.want.Set)
}

// hopeless tells whether p, which needs revision n, can never have it.
func (f *Fleet) hopeless(p *process, n int64) bool {
	return p.lost.has(n) || f.bad.has(bad(p.name, n))
}

// lacking are the revisions that p does not hold of a set and of what it is to
// serve. sick: each is in force, and waiting for it is of no use.
func (f *Fleet) lacking(p *process, set []version.Ref) (ds []version.Digest, sick bool) {
	lacks := f.missing(p, set)
	if p.want != nil {
		lacks |= f.maskOf(p.choose(p.want)) &^ p.holds
	}
	sick = true
	for n := range int64(64) {
		if lacks.has(n) {
			ds = append(ds, Ref(n).Digest)
			sick = sick && f.inForce(p).has(n) && (f.hopeless(p, n) || p.quarantined(n))
		}
	}
	return ds, sick
}

func (p *process) asked() bool {
	return p.asks != nil && (p.asks.First == "" || p.asks.First == p.name)
}

// refusing says why p will not hold the set that is being prepared.
func (f *Fleet) refusing(p *process) (string, bool) {
	for _, r := range p.asks.Set {
		if f.inForce(p).has(r.Number) {
			continue
		}
		if p.quarantined(r.Number) && !p.holds.has(r.Number) {
			return fmt.Sprintf("revision %d is quarantined: it crashed this process twice", r.Number), true
		}
		for _, x := range p.failed {
			if x.number == r.Number && x.nonce == p.asks.Nonce {
				return x.why, true
			}
		}
	}
	return "", false
}

// nextJob is what p builds next: first what is in force, then what is prepared.
func (f *Fleet) nextJob(p *process) (job, bool) {
	if !p.up || !p.saw || p.frozen {
		return job{}, false
	}
	lacks := func(n rollout.Nonce, inForce bool, set []version.Ref) (job, bool) {
		for _, r := range set {
			if r.IsZero() || p.holds.has(f.number(r.Digest)) || p.quarantined(r.Number) {
				continue
			}
			if inForce && f.hopeless(p, r.Number) {
				continue // tried again and again, to no avail
			}
			return job{number: f.number(r.Digest), nonce: n, inForce: inForce}, true
		}
		return job{}, false
	}
	if p.want != nil {
		if j, ok := lacks(p.want.Nonce, true, append(p.choose(p.want), p.want.Set...)); ok {
			return j, true
		}
	}
	if p.asked() {
		if _, refuses := f.refusing(p); !refuses {
			return lacks(p.asks.Nonce, false, p.asks.Set)
		}
	}
	return job{}, false
}

// ready is what p's ready key ought to say; false for nothing yet.
func (f *Fleet) readyOf(p *process) (rollout.Ready, bool) {
	r := rollout.Ready{Instance: p.name, Group: p.group}
	if p.frozen {
		return r, true
	}
	if p.asked() {
		if why, refuses := f.refusing(p); refuses {
			r.Nonce, r.Refused, r.Why = p.asks.Nonce, true, why
			return r, true
		}
		switch lacks, sick := f.lacking(p, p.asks.Set); {
		case len(lacks) == 0:
			r.Nonce = p.asks.Nonce
			return r, true
		case sick:
			r.Nonce, r.Lacks, r.Evicted = p.asks.Nonce, lacks, f.outOfTraffic(p)
			return r, true
		}
		if p.away && f.evicts(p) {
			r.Nonce, r.Evicted = p.asks.Nonce, true
			return r, true
		}
	}
	if p.want == nil {
		return r, p.serving != nil
	}
	lacks, sick := f.lacking(p, p.want.Set)
	switch {
	case len(lacks) == 0:
		r.Nonce = p.want.Nonce
	case sick:
		r.Nonce, r.Lacks, r.Evicted = p.want.Nonce, lacks, f.outOfTraffic(p)
	case p.serving == nil:
		return r, false
	case p.away:
		r.Nonce, r.Evicted = p.want.Nonce, true
	}
	return r, true
}

// outOfTraffic tells whether p takes no traffic. One that joins has none as
// long as it cannot serve what is committed.
func (f *Fleet) outOfTraffic(p *process) bool {
	if p.serving == nil {
		return p.want != nil && !f.holdsAll(p, p.choose(p.want))
	}
	return p.away
}

// traffic decides whether p is out of traffic: from when it is told to be,
// until it serves and holds what is committed.
func (f *Fleet) traffic(p *process) {
	switch {
	case p.serving == nil, p.frozen:
		p.away = false
	case f.evicts(p):
		p.away = true
	case p.want == nil || p.serving.Epoch >= p.want.Epoch && f.holdsSet(p, p.want.Set):
		p.away = false
	}
}

// evicts tells whether the prepare names p as too slow, and it is.
func (f *Fleet) evicts(p *process) bool {
	if !p.asked() || !slices.Contains(p.asks.Evict, p.name) {
		return false
	}
	if _, refuses := f.refusing(p); refuses {
		return false
	}
	return !f.holdsSet(p, p.asks.Set) || p.want != nil && !f.holdsAll(p, p.choose(p.want))
}

// wordsOf is what p would report.
func (f *Fleet) wordsOf(p *process) words {
	w := words{highest: p.highest, evicted: p.away, frozen: p.frozen}
	if p.serving != nil {
		w.epoch, w.number = p.serving.Epoch, p.main().Number
		if c := p.serving.Candidate; c != nil {
			w.candidate = c.Number
		}
	}
	if r, ok := f.readyOf(p); ok && r.Whole() {
		w.nonce = r.Nonce
	}
	return w
}

// The things that a process does, each one atomic. They are for those that
// may do it; see may.

// look reads what etcd says about p's group.
func (f *Fleet) look(name string) {
	f.alter(name, func(p *process) {
		p.saw, p.at = true, f.mods.m[p.group]
		p.want, p.asks = nil, nil
		if a, ok := f.groups.m[p.group]; ok {
			p.want = &a
		}
		if a, ok := f.prepares.m[p.group]; ok {
			p.asks = &a
		}
		f.follow(p)
	})
}

// lookCommit reads only the assignment: a commit is told at once, that its
// prepare is gone only after another read.
func (f *Fleet) lookCommit(name string) {
	f.alter(name, func(p *process) {
		a := f.groups.m[p.group]
		p.at.assignment, p.want = f.mods.m[p.group].assignment, &a
		f.follow(p)
	})
}

func (f *Fleet) follow(p *process) {
	switch {
	case p.want != nil && p.want.Recovered > p.floor:
		p.frozen = false
	case p.floor > 0 && (p.want == nil || p.want.Epoch < p.floor):
		p.frozen = true
	}
	if p.frozen {
		p.want, p.asks = p.serving, nil
		return
	}
	if p.want != nil {
		p.highest = max(p.highest, p.want.Epoch)
	}
	if p.asks == nil {
		p.failed = nil
	}
	p.failed = slices.DeleteFunc(slices.Clone(p.failed), func(x failure) bool { return p.asks == nil || x.nonce != p.asks.Nonce })
}

// join writes who p is, in place of a former process of that name.
func (f *Fleet) join(name string) {
	f.alter(name, func(p *process) {
		if old, ok := f.instances.m[name]; ok && old.Boot != p.boot {
			f.say(p.group, name, nil)
			f.reports, f.measures = f.reports.without(name), f.measures.without(name)
		}
		f.instances = f.instances.with(name, rollout.Instance{Instance: name, Group: p.group, Boot: p.boot, Started: f.now})
		f.bump()
		p.joined, p.admitted, p.said, p.sent = true, false, rollout.Ready{}, false
	})
}

// build ends the job under way: the revision is held, refused, or the process dies of it.
func (f *Fleet) build(name string) {
	_, p := f.find(name)
	j, _ := f.nextJob(p)
	if f.poison.has(bad(name, j.number)) {
		f.alter(name, func(p *process) { p.crashes = p.crashes.with(j.number, p.crashes.m[j.number]+1) })
		f.Die(name)
		return
	}
	if why := f.bad.m[bad(name, j.number)]; why != "" && !j.inForce {
		f.refuse(name, why)
		return
	}
	f.alter(name, func(p *process) { p.holds |= 1 << uint(j.number) })
}

// refuse ends the job under way: the revision cannot be built.
func (f *Fleet) refuse(name, why string) {
	_, p := f.find(name)
	j, _ := f.nextJob(p)
	f.alter(name, func(p *process) {
		p.failed = append(slices.Clip(p.failed), failure{number: j.number, nonce: j.nonce, why: why})
	})
}

func bad(name string, number int64) string { return fmt.Sprintf("%s/%d", name, number) }

// speak puts the ready key. The first nonce goes by admission, which fails when
// the group's records are not those that were read.
func (f *Fleet) speak(name string) {
	_, p := f.find(name)
	r, ok := f.readyOf(p)
	if !ok {
		r = rollout.Ready{Instance: name, Group: p.group}
	}
	if f.admits(p, r) && p.at != f.mods.m[p.group] {
		return // It reads again.
	}
	f.say(p.group, name, &r)
	f.alter(name, func(p *process) {
		p.admitted = p.admitted || f.admits(p, r)
		p.said = r
	})
}

func (f *Fleet) admits(p *process, r rollout.Ready) bool {
	return !p.admitted && r.Nonce != "" && !r.Refused && !r.Evicted
}

// serve switches to what is committed.
func (f *Fleet) serve(name string) {
	_, p := f.find(name)
	f.checkServe(p)
	f.alter(name, func(p *process) {
		p.serving = p.want
		p.floor = max(p.floor, p.want.Epoch)
	})
}

// report writes how p is.
func (f *Fleet) report(name string) {
	_, p := f.find(name)
	w := f.wordsOf(p)
	r := rollout.Report{Instance: name, Group: p.group, Boot: p.boot, Time: f.now, Nonce: w.nonce, HighestEpoch: w.highest, HighestRevision: w.number, Evicted: w.evicted}
	if p.serving != nil {
		r.Serving = &rollout.Serving{Epoch: w.epoch, Revision: w.number, Digest: Ref(w.number).Digest, Since: f.now}
	}
	if p.frozen {
		r.Frozen = rollout.FrozenStoreWentBack
	}
	for _, n := range slices.Sorted(maps.Keys(p.crashes.m)) {
		if p.quarantined(n) {
			r.Quarantined = append(r.Quarantined, Ref(n).Digest)
		}
	}
	if j, ok := f.nextJob(p); ok {
		r.Preparing = &rollout.Progress{Nonce: j.nonce, Digest: Ref(j.number).Digest, Stage: "compiling", Since: f.now}
	}
	f.reports = f.reports.with(name, r)
	f.bump()
	f.alter(name, func(p *process) { p.told, p.sent = w, true })
}

// Die ends a process. Its keys stand until its lease ends.
func (f *Fleet) Die(name string) {
	f.alter(name, func(p *process) {
		*p = process{name: p.name, group: p.group, boot: p.boot, floor: p.floor, highest: cmp.Or(p.floor, 0), crashes: p.crashes, lost: p.lost, note: new(note)}
	})
}

// Lapse ends an instance's lease: its keys go. A process that lives joins again.
func (f *Fleet) Lapse(name string) {
	_, p := f.find(name)
	f.say(p.group, name, nil)
	f.instances, f.reports, f.measures = f.instances.without(name), f.reports.without(name), f.measures.without(name)
	f.bump()
}
