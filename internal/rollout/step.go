package rollout

import (
	"maps"
	"reflect"
	"slices"
	"strconv"
	"time"

	"routerd.dev/internal/version"
)

// Step returns what is to be done next and, when that is nothing, the time at
// which to look again without an event; the zero time stands for: only on
// events. It returns at most one Change; after it was carried out, or failed,
// read a new View and step again. It does not keep or change v.
func Step(v *View, now time.Time) (Change, time.Time) {
	if v.Fleet.ID == "" {
		return Change{}, time.Time{} // Absence is not deletion: a fleet that is not there is not acted upon.
	}
	d := newDraft(v, now)
	switch {
	case d.welcome():
	case d.answer():
	case d.advanceAny():
	default:
		d.sweep()
	}
	return d.change(), d.next
}

// IsZero tells whether there is nothing to carry out.
func (c *Change) IsZero() bool { return reflect.DeepEqual(*c, Change{}) }

// A draft is the fleet as it will stand once the step is carried out. Its
// methods are the transitions.
type draft struct {
	v    *View
	now  time.Time
	next time.Time // when to look again
	held bool      // an intent waits behind this step: nothing may be committed

	fleet    Fleet
	groups   map[string]Assignment
	prepares map[string]Prepare
	active   []Rollout // in progress
	seeds    int

	reporters map[string][]string // by group; see reporting

	c Change // what cannot be told from the difference of the above to v
}

func newDraft(v *View, now time.Time) *draft {
	return &draft{
		v: v, now: now.UTC().Round(0),
		fleet:    v.Fleet,
		groups:   clone(v.Groups),
		prepares: clone(v.Prepares),
		active:   slices.DeleteFunc(slices.Clone(v.Rollouts), func(r Rollout) bool { return r.Phase.Final() }),
	}
}

// clone copies m, which may be nil, into a map that can be written.
func clone[V any](m map[string]V) map[string]V {
	out := make(map[string]V, len(m))
	maps.Copy(out, m)
	return out
}

// change puts together what the draft altered.
func (d *draft) change() Change {
	c := d.c
	for _, g := range slices.Sorted(maps.Keys(d.groups)) {
		if old, ok := d.v.Groups[g]; !ok || !reflect.DeepEqual(old, d.groups[g]) {
			c.Groups = append(c.Groups, d.groups[g])
		}
	}
	for _, g := range slices.Sorted(maps.Keys(d.prepares)) {
		if old, ok := d.v.Prepares[g]; !ok || !reflect.DeepEqual(old, d.prepares[g]) {
			c.Prepares = append(c.Prepares, d.prepares[g])
		}
	}
	for _, g := range slices.Sorted(maps.Keys(d.v.Prepares)) {
		if _, ok := d.prepares[g]; !ok {
			c.Withdraw = append(c.Withdraw, g)
		}
	}
	if d.fleet != d.v.Fleet {
		f := d.fleet
		c.Fleet = &f
	}
	return c
}

// put writes r, unless that changes nothing.
func (d *draft) put(r Rollout) {
	r.Why = brief(r.Why, maxWhy)
	i := slices.IndexFunc(d.active, func(a Rollout) bool { return a.ID == r.ID })
	switch {
	case i < 0 && !r.Phase.Final():
		d.active = append(d.active, r)
	case i >= 0 && reflect.DeepEqual(d.active[i], r):
		return
	case i >= 0 && r.Phase.Final():
		d.active = slices.Delete(d.active, i, i+1)
	case i >= 0:
		d.active[i] = r
	}
	if j := slices.IndexFunc(d.c.Rollouts, func(a Rollout) bool { return a.ID == r.ID }); j >= 0 {
		d.c.Rollouts[j] = r
		return
	}
	d.c.Rollouts = append(d.c.Rollouts, r)
}

// fresh returns a nonce that was never used.
func (d *draft) fresh() Nonce {
	d.seeds++
	return Nonce(d.v.Seed + "-" + strconv.Itoa(d.seeds))
}

// look asks for another step at t at the latest.
func (d *draft) look(t time.Time) {
	if !t.IsZero() && (d.next.IsZero() || t.Before(d.next)) {
		d.next = t
	}
}

func (d *draft) audit(r *Rollout, what, why string, groups []string, to version.Ref) {
	d.c.Audit = append(d.c.Audit, AuditEntry{
		Time: d.now, Who: r.By, What: what, Why: brief(why, maxWhy), Rollout: r.ID, Groups: groups, To: to,
	})
}

// welcome creates the groups that instances name and nobody knows, with the
// newest revision that every group committed. A group that some instance
// remembers has not been seen for the first time: etcd forgot it.
func (d *draft) welcome() bool {
	unknown := make(map[string]bool)
	for _, i := range d.v.Instances {
		if _, ok := d.groups[i.Group]; !ok {
			unknown[i.Group] = true
		}
	}
	var made []string
	for _, g := range slices.Sorted(maps.Keys(unknown)) {
		if len(d.groups) < MaxGroups && len(d.frozenIn(g)) == 0 {
			d.groups[g] = d.newGroup(g)
			made = append(made, g)
		}
	}
	if len(made) == 0 {
		return false
	}
	d.c.Audit = append(d.c.Audit, AuditEntry{Time: d.now, Who: controllerName, What: "group", Why: "seen for the first time", Groups: made, To: d.fleet.Committed})
	return true
}

// newGroup inherits the way back of a group that serves the same, so that a
// rollback of the fleet takes the new one along without preparing.
func (d *draft) newGroup(name string) Assignment {
	a := Assignment{Group: name, Epoch: max(d.highest(name), d.fleet.Floor) + 1, Nonce: d.fresh(), Stable: d.fleet.Committed, Instant: d.now}
	if a.Stable.IsZero() {
		return a
	}
	var like Assignment
	for _, g := range slices.Sorted(maps.Keys(d.v.Groups)) {
		if o := d.v.Groups[g]; o.Stable.Digest == a.Stable.Digest && o.Epoch > like.Epoch {
			like = o
		}
	}
	a.Back = slices.Clone(like.Back)
	a.Set = d.setOf(a.Stable, version.Ref{}, a.Back)
	return a
}

// sweep withdraws prepares and candidates that no rollout in progress stands for.
func (d *draft) sweep() {
	for _, g := range slices.Sorted(maps.Keys(d.prepares)) {
		id := d.prepares[g].Rollout
		_, known := d.groups[g]
		if !known || !slices.ContainsFunc(d.active, func(r Rollout) bool { return r.ID == id }) {
			delete(d.prepares, g)
		}
	}
	d.tidy()
}
