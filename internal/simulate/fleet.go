package simulate

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// The reasons for which Apply writes nothing.
var (
	ErrDeposed  = errors.New("another controller was elected")
	ErrStale    = errors.New("a record changed since the view was read")
	ErrNotReady = errors.New("an instance is not ready, or came in between")
	ErrAway     = errors.New("etcd does not answer")
)

// A Fleet is etcd's records and the processes that use them, as one value: a
// copy of a Fleet (Clone) shares nothing that either of them can change.
type Fleet struct {
	now   time.Time
	rev   int64 // etcd's revision
	moved int64 // when groups, prepares, fleet or intents changed last
	term  int   // of the controller elected last
	seeds int
	boots int

	fleet      rollout.Fleet
	groups     table[string, rollout.Assignment]
	prepares   table[string, rollout.Prepare]
	mods       table[string, mods] // by group
	ready      table[string, map[string]rollout.Ready]
	saidAt     table[key, int64] // when each ready key was written last
	instances  table[string, rollout.Instance]
	reports    table[string, rollout.Report]
	measures   table[string, rollout.Measure]
	checks     table[string, rollout.Checks]
	condemned  table[version.Digest, rollout.Condemned]
	served     table[version.Digest, bool]
	baked      table[version.Digest, bool]
	strategies table[string, rollout.Strategy]
	revisions  table[int64, version.Revision]
	intents    []rollout.Intent  // in the order in which etcd took them
	rollouts   []rollout.Rollout // in progress, in the order in which they began
	active     *note             // of rollouts
	whole      *note             // of fleet
	ended      table[string, rollout.Rollout]

	procs    []*process // by name; never changed, but replaced
	bad      table[string, string]
	poison   table[string, bool]
	pending  *pending // what the elected controller is about to write
	old      *pending // what a deposed one still is
	broken   []string // laws that did not hold
	lax      lax
	numberOf map[version.Digest]int64 // of every revision, for bit masks and texts
}

// mods says when the two records that an instance watches were written last.
type mods struct{ assignment, prepare int64 }

// A key names an instance's ready key.
type key struct{ group, instance string }

// lax are the conditions that a broken etcd would leave out: only tests do.
type lax struct{ ready, term, stale bool }

// A pending change was decided on a view that may be old by now.
type pending struct {
	term   int
	at     int64
	seed   string
	change rollout.Change
	note   note
}

// start is when every simulation begins.
var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// NewFleet returns a fleet without groups or instances, in whose history are
// the revisions 1 to revisions. The first is committed and served, if there is one.
func NewFleet(revisions int) *Fleet {
	f := &Fleet{now: start, rev: 1, term: 1, fleet: rollout.Fleet{ID: "simulated"}, whole: new(note), numberOf: make(map[version.Digest]int64)}
	for n := range int64(revisions) {
		f.publish(version.Revision{Number: n + 1, Digest: Ref(n + 1).Digest, Parent: n})
	}
	if revisions > 0 {
		f.fleet.Target, f.fleet.Committed = Ref(1), Ref(1)
		f.served = f.served.with(Ref(1).Digest, true)
		f.baked = f.baked.with(Ref(1).Digest, true)
	}
	return f
}

// Ref is the name of the n-th revision of every simulation.
func Ref(n int64) version.Ref {
	return version.Ref{Number: n, Digest: version.DigestOf(fmt.Appendf(nil, "revision %d", n))}
}

func (f *Fleet) publish(r version.Revision) {
	f.revisions = f.revisions.with(r.Number, r)
	m := maps.Clone(f.numberOf)
	m[r.Digest] = r.Number
	f.numberOf = m
}

// Clone copies f.
func (f *Fleet) Clone() *Fleet {
	g := *f
	g.procs = slices.Clone(f.procs)
	g.broken = slices.Clone(f.broken)
	return &g
}

func (f *Fleet) breaks(format string, a ...any) {
	f.broken = append(f.broken, fmt.Sprintf(format, a...))
}

// View reads every record at one revision. Each has another seed.
func (f *Fleet) View() *rollout.View {
	f.seeds++
	return f.view(fmt.Sprintf("n%d", f.seeds))
}

func (f *Fleet) view(seed string) *rollout.View {
	return &rollout.View{
		At: f.rev, Seed: seed, Fleet: f.fleet,
		Groups: f.groups.m, Prepares: f.prepares.m, Ready: f.ready.m, Instances: f.instances.m, Reports: f.reports.m,
		Intents: f.intents, Rollouts: f.rollouts, Condemned: f.condemned.m, Served: f.served.m, Baked: f.baked.m,
		Strategies: f.strategies.m, Measures: f.measures.m, Checks: f.checks.m, Revisions: f.revisions.m,
	}
}

// Ask puts an intent, as routectl does: a switch takes the target with it.
func (f *Fleet) Ask(in rollout.Intent) {
	in.Time, in.PrevTarget = f.now, f.fleet.Target
	if in.By == "" {
		in.By = "operator"
	}
	if in.Kind == rollout.IntentSwitch {
		f.fleet.Target, f.whole = in.To, new(note)
	}
	f.intents = append(slices.Clip(f.intents), in)
	f.move()
}

func (f *Fleet) bump() { f.rev++ }
func (f *Fleet) move() { f.rev++; f.moved = f.rev }

// apply is the controller's transaction: it carries a change out wholly or not
// at all. It fails with ErrDeposed, ErrStale or ErrNotReady, in this order of
// precedence.
func (f *Fleet) apply(p *pending) error {
	if err := f.refuses(p); err != nil {
		return err
	}
	before := *f
	f.move()
	f.carry(&p.change)
	f.checkChange(&before, p)
	return nil
}

// refuses says why the transaction must not be carried out.
func (f *Fleet) refuses(p *pending) error {
	switch {
	case p.term != f.term && !f.lax.term:
		return ErrDeposed
	case f.moved > p.at && !f.lax.stale:
		return ErrStale
	}
	for g, n := range p.change.Ready {
		if f.lax.ready {
			break
		}
		if len(f.ready.m[g]) == 0 {
			return ErrNotReady
		}
		for _, r := range f.ready.m[g] {
			if !r.Whole() || r.Nonce != n {
				return ErrNotReady
			}
		}
	}
	for _, g := range p.change.Empty {
		if len(f.ready.m[g]) > 0 && !f.lax.ready {
			return ErrNotReady
		}
	}
	for _, g := range p.change.Settled {
		for k, at := range f.saidAt.m {
			if k.group == g && at > p.at && !f.lax.ready {
				return ErrStale
			}
		}
	}
	return nil
}

// carry writes what c says.
func (f *Fleet) carry(c *rollout.Change) {
	for _, a := range c.Groups {
		f.groups = f.groups.with(a.Group, a)
		f.touch(a.Group, func(m *mods) { m.assignment = f.rev })
	}
	for _, g := range c.Retire {
		f.groups = f.groups.without(g)
		f.touch(g, func(m *mods) { m.assignment = 0 })
	}
	if c.Fleet != nil {
		f.fleet, f.whole = *c.Fleet, new(note)
	}
	for _, p := range c.Prepares {
		f.prepares = f.prepares.with(p.Group, p)
		f.touch(p.Group, func(m *mods) { m.prepare = f.rev })
	}
	for _, g := range c.Withdraw {
		f.prepares = f.prepares.without(g)
		f.touch(g, func(m *mods) { m.prepare = 0 })
	}
	for _, r := range c.Rollouts {
		f.putRollout(r)
	}
	if len(c.Done) > 0 {
		f.intents = slices.DeleteFunc(slices.Clone(f.intents), func(i rollout.Intent) bool { return slices.Contains(c.Done, i.ID) })
	}
	for _, x := range c.Condemn {
		f.condemned = f.condemned.with(x.Digest, x)
	}
	for _, d := range c.Serve {
		f.served = f.served.with(d, true)
	}
	for _, d := range c.Bake {
		f.baked = f.baked.with(d, true)
	}
}

func (f *Fleet) putRollout(r rollout.Rollout) {
	rs := slices.Clone(f.rollouts)
	i := slices.IndexFunc(rs, func(o rollout.Rollout) bool { return o.ID == r.ID })
	switch {
	case r.Phase.Final():
		f.ended = f.ended.with(r.ID, r)
		f.checks = f.checks.without(r.ID)
		if i >= 0 {
			rs = slices.Delete(rs, i, i+1)
		}
	case i >= 0:
		rs[i] = r
	default:
		rs = append(rs, r)
	}
	slices.SortStableFunc(rs, func(a, b rollout.Rollout) int {
		if c := a.Started.Compare(b.Started); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	f.rollouts, f.active = rs, new(note)
}

func (f *Fleet) touch(group string, set func(*mods)) {
	m := f.mods.m[group]
	set(&m)
	f.mods = f.mods.with(group, m)
}

// say writes or, with nil, deletes a ready key.
func (f *Fleet) say(group, name string, r *rollout.Ready) {
	m := maps.Clone(f.ready.m[group])
	if r == nil {
		if _, ok := m[name]; !ok {
			return
		}
		delete(m, name)
	} else {
		if m == nil {
			m = make(map[string]rollout.Ready)
		}
		m[name] = *r
	}
	f.bump()
	f.ready = f.ready.with(group, m)
	if len(m) == 0 {
		f.ready = f.ready.without(group)
	}
	if r == nil {
		f.saidAt = f.saidAt.without(key{group, name})
	} else {
		f.saidAt = f.saidAt.with(key{group, name}, f.rev)
	}
}
