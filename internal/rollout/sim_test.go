package rollout

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"routerd.dev/internal/version"
)

// A world is etcd, a fleet and its controllers as values: small enough to try
// many schedules of, and strict: it checks the invariants at each write.
type world struct {
	now   time.Time
	rev   int64 // etcd's revision
	moved int64 // when groups, prepares, fleet or intents changed last
	term  int   // of the controller elected last
	seeds int
	boots int

	fleet     Fleet
	groups    map[string]Assignment
	prepares  map[string]Prepare
	ready     map[string]map[string]Ready
	instances map[string]Instance
	reports   map[string]Report
	intents   []Intent
	rollouts  map[string]Rollout
	order     []string // of rollouts, as they were put first
	condemned map[version.Digest]Condemned
	served    map[version.Digest]bool
	baked     map[version.Digest]bool
	revisions map[int64]version.Revision

	strategies map[string]Strategy
	measures   map[string]Measure
	checks     map[string]Checks

	fleetOf map[string]*inst
	bad     map[string]string         // instance/revision → why it refuses
	poison  map[string]bool           // instance/revision: building it kills
	sick    map[string]bool           // instance/revision: it cannot have it any more
	broken  []string                  // invariants that did not hold
	used    map[string]map[Nonce]bool // nonces ever used, by group: each once
	final   map[string]Rollout        // as it ended
}

// An inst is one process and its disk.
type inst struct {
	name, group, boot string
	up, frozen        bool
	holds             map[version.Digest]bool
	epoch             int64 // serves; 0 for nothing
	stable            version.Ref
	candidate         *Candidate
	against           version.Ref
	slow              bool // it never gets done
	rollout           string
	highest           int64 // ever served, on disk

	seen      bool // what it read last, perhaps old by now
	readAt    int64
	assigned  Assignment
	known     bool
	asked     Prepare
	preparing bool
}

var epoch0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newWorld() *world {
	return &world{
		now: epoch0, rev: 1,
		fleet:  Fleet{ID: "f1"},
		groups: map[string]Assignment{}, prepares: map[string]Prepare{}, ready: map[string]map[string]Ready{},
		instances: map[string]Instance{}, reports: map[string]Report{}, rollouts: map[string]Rollout{},
		condemned: map[version.Digest]Condemned{}, served: map[version.Digest]bool{}, revisions: map[int64]version.Revision{},
		baked: map[version.Digest]bool{}, strategies: map[string]Strategy{}, measures: map[string]Measure{}, checks: map[string]Checks{},
		fleetOf: map[string]*inst{}, bad: map[string]string{}, poison: map[string]bool{}, sick: map[string]bool{},
		used: map[string]map[Nonce]bool{}, final: map[string]Rollout{},
	}
}

func ref(n int64) version.Ref {
	return version.Ref{Number: n, Digest: version.DigestOf([]byte(fmt.Sprint(n)))}
}

func (w *world) breaks(format string, a ...any) {
	w.broken = append(w.broken, fmt.Sprintf(format, a...))
}

func (w *world) bump() { w.rev++ }
func (w *world) move() { w.rev++; w.moved = w.rev }

// view reads everything at one revision. Step must not change what it is given, so
// maps are copied and values shared.
func (w *world) view() *View {
	w.seeds++
	v := &View{
		At: w.rev, Seed: fmt.Sprintf("s%d", w.seeds), Fleet: w.fleet,
		Groups: maps.Clone(w.groups), Prepares: maps.Clone(w.prepares), Ready: map[string]map[string]Ready{},
		Instances: maps.Clone(w.instances), Reports: maps.Clone(w.reports), Intents: slices.Clone(w.intents),
		Condemned: maps.Clone(w.condemned), Served: maps.Clone(w.served), Revisions: maps.Clone(w.revisions),
		Baked: maps.Clone(w.baked), Strategies: maps.Clone(w.strategies), Measures: maps.Clone(w.measures), Checks: maps.Clone(w.checks),
	}
	for g, m := range w.ready {
		v.Ready[g] = maps.Clone(m)
	}
	for _, id := range w.order {
		if r := w.rollouts[id]; !r.Phase.Final() {
			v.Rollouts = append(v.Rollouts, r)
		}
	}
	return v
}

var (
	errStale    = errors.New("stale")
	errDeposed  = errors.New("deposed")
	errNotReady = errors.New("not ready")
)

// apply is the one transaction, with its conditions.
func (w *world) apply(term int, v *View, c Change) error {
	switch {
	case term != w.term:
		return errDeposed
	case w.moved > v.At:
		return errStale
	}
	for g, n := range c.Ready {
		if len(w.ready[g]) == 0 {
			return errNotReady
		}
		for _, r := range w.ready[g] {
			if r.Refused || r.Evicted || len(r.Lacks) > 0 || r.Nonce != n {
				return errNotReady
			}
		}
	}
	for _, g := range c.Empty {
		if len(w.ready[g]) > 0 {
			return errNotReady
		}
	}
	w.check(c)
	w.checkPlans(c)
	w.move()
	for _, a := range c.Groups {
		w.groups[a.Group] = a
	}
	for _, g := range c.Retire {
		delete(w.groups, g)
	}
	if c.Fleet != nil {
		w.fleet = *c.Fleet
	}
	for _, p := range c.Prepares {
		w.prepares[p.Group] = p
	}
	for _, g := range c.Withdraw {
		delete(w.prepares, g)
	}
	for _, r := range c.Rollouts {
		if _, ok := w.rollouts[r.ID]; !ok {
			w.order = append(w.order, r.ID)
		}
		w.rollouts[r.ID] = r
		if r.Phase.Final() {
			w.final[r.ID] = r
		}
	}
	w.intents = slices.DeleteFunc(w.intents, func(i Intent) bool { return slices.Contains(c.Done, i.ID) })
	for _, x := range c.Condemn {
		w.condemned[x.Digest] = x
	}
	for _, d := range c.Serve {
		w.served[d] = true
	}
	for _, d := range c.Bake {
		w.baked[d] = true
	}
	w.checkAfter()
	return nil
}

// check holds a change against I2 and I3 before it is carried out.
func (w *world) check(c Change) {
	for _, a := range c.Groups {
		old, had := w.groups[a.Group]
		if had && a.Epoch <= old.Epoch {
			w.breaks("I3: epoch of %s from %d to %d", a.Group, old.Epoch, a.Epoch)
		}
		if had && a.Override != nil && a.Candidate == nil && strings.HasPrefix(a.Override.Why, "not all of the set is held") {
			for _, name := range a.Override.Instances {
				if i := w.fleetOf[name]; i.up && i.boot == w.instances[name].Boot && !i.holds[a.Stable.Digest] {
					w.breaks("I2: %s/%s lacks what epoch %d serves, and nobody waited", a.Group, name, a.Epoch)
				}
			}
		}
		if !had || a.Override != nil {
			continue
		}
		if c.Ready[a.Group] != a.Nonce && !slices.Contains(c.Empty, a.Group) {
			w.breaks("I2: commit of %s without a condition", a.Group)
		}
		for name := range w.ready[a.Group] {
			i := w.fleetOf[name]
			for _, s := range a.Set {
				if i.up && i.boot == w.instances[name].Boot && !i.holds[s.Digest] {
					w.breaks("I2: %s/%s does not hold %d of the set of epoch %d", a.Group, name, s.Number, a.Epoch)
				}
			}
		}
		if a.Nonce != old.Nonce && w.prepares[a.Group].Nonce != a.Nonce && len(w.ready[a.Group]) > 0 {
			w.breaks("commit of %s under a nonce that nobody prepared", a.Group)
		}
		if a.Nonce == old.Nonce && fmt.Sprint(a.Set) != fmt.Sprint(old.Set) {
			w.breaks("nonce %s names two sets", a.Nonce)
		}
		if a.Candidate != nil && !has(a.Set, a.Candidate.Digest) {
			w.breaks("candidate of %s is not in its set", a.Group)
		}
		if !has(a.Set, a.Stable.Digest) {
			w.breaks("stable of %s is not in its set", a.Group)
		}
		if _, ok := w.condemned[a.Stable.Digest]; ok && a.Stable.Digest != old.Stable.Digest {
			w.breaks("%s goes to a condemned revision", a.Group)
		}
	}
	for _, p := range c.Prepares {
		if _, ok := w.condemned[p.Set[0].Digest]; ok {
			w.breaks("%s prepares a condemned revision", p.Group)
		}
		if old := w.prepares[p.Group]; old.Nonce != p.Nonce {
			if w.used[p.Group] == nil {
				w.used[p.Group] = map[Nonce]bool{}
			}
			if w.used[p.Group][p.Nonce] {
				w.breaks("nonce %s used twice", p.Nonce)
			}
			w.used[p.Group][p.Nonce] = true
		}
	}
	for _, r := range c.Rollouts {
		if f, ok := w.final[r.ID]; ok {
			w.breaks("rollout %s was %s and is now %s", r.ID, f.Phase, r.Phase)
		}
		if bad := r.Phase == PhaseRefused || r.Phase == PhaseAborted; bad && !r.Target.IsZero() {
			f := w.fleet
			if c.Fleet != nil {
				f = *c.Fleet
			}
			if f.Target.Digest == r.Target.Digest && r.PrevTarget.Digest != r.Target.Digest && f.Committed.Digest != r.Target.Digest {
				w.breaks("rollout %s is %s and still target", r.ID, r.Phase)
			}
		}
	}
}

// checkAfter: a group has at most one rollout in progress.
func (w *world) checkAfter() {
	in := map[string]string{}
	for _, r := range w.view().Rollouts {
		d := newDraft(w.view(), w.now)
		for _, g := range d.scope(&r) {
			if o, ok := in[g]; ok {
				w.breaks("rollouts %s and %s both move %s", o, r.ID, g)
			}
			in[g] = r.ID
		}
	}
}

// Instances.

func (w *world) start(name, group string) *inst {
	i, ok := w.fleetOf[name]
	if !ok {
		i = &inst{name: name, group: group}
		w.fleetOf[name] = i
	}
	w.boots++
	*i = inst{name: name, group: i.group, boot: fmt.Sprintf("b%d", w.boots), up: true, holds: map[version.Digest]bool{}, highest: i.highest}
	delete(w.ready[i.group], name)
	w.register(i)
	return i
}

func (w *world) register(i *inst) {
	w.instances[i.name] = Instance{Instance: i.name, Group: i.group, Boot: i.boot}
	w.report(i)
	w.bump()
}

func (w *world) report(i *inst) {
	r := Report{Instance: i.name, Group: i.group, Boot: i.boot, HighestEpoch: i.highest}
	if i.frozen {
		r.Frozen = FrozenStoreWentBack
	}
	if i.epoch > 0 {
		r.Serving = &Serving{Epoch: i.epoch, Revision: i.stable.Number, Digest: i.stable.Digest}
	}
	w.reports[i.name] = r
}

func (w *world) die(i *inst)   { i.up = false; i.seen = false; w.forget(i) }
func (w *world) crash(i *inst) { i.up = false; i.seen = false } // its lease still stands

// forget is the end of a lease.
func (w *world) forget(i *inst) {
	delete(w.ready[i.group], i.name)
	delete(w.instances, i.name)
	delete(w.reports, i.name)
	delete(w.measures, i.name)
	w.bump()
}

func (w *world) registered(i *inst) bool { _, ok := w.ready[i.group][i.name]; return ok }

// look reads what concerns i, and follows a commit that it is ready for.
func (w *world) look(i *inst) {
	i.seen, i.readAt = true, w.rev
	i.assigned, i.known = w.groups[i.group]
	i.asked, i.preparing = w.prepares[i.group]
	if _, ok := w.instances[i.name]; !ok {
		w.register(i) // lease lost: join again
	}
	if i.assigned.Epoch < i.highest || i.epoch > 0 && i.assigned.Epoch == i.epoch && i.assigned.Rollout != i.rollout {
		i.frozen = true
	}
	if i.frozen && i.known && i.assigned.Recovered > i.highest {
		i.frozen = false
	}
	if !i.frozen && i.epoch > 0 {
		w.follow(i)
	}
	if w.registered(i) && i.epoch < i.assigned.Epoch && !i.frozen {
		if r := w.ready[i.group][i.name]; (!r.Evicted || r.Nonce != i.assigned.Nonce) && len(r.Lacks) == 0 {
			w.ready[i.group][i.name] = Ready{Instance: i.name, Group: i.group} // none: it lacks the set
		}
	}
	w.report(i)
	w.bump()
}

func (w *world) follow(i *inst) {
	a := i.assigned
	if !i.known || a.Epoch <= i.epoch || !a.Stable.IsZero() && !i.holds[a.Stable.Digest] || a.Candidate != nil && !i.holds[a.Candidate.Digest] {
		return
	}
	if a.Epoch <= i.highest && i.epoch > 0 {
		w.breaks("I3: %s serves epoch %d after %d", i.name, a.Epoch, i.highest)
	}
	i.candidate, i.against = a.Candidate, a.Against
	delete(w.measures, i.name)
	i.epoch, i.stable, i.rollout, i.highest = a.Epoch, a.Stable, a.Rollout, max(i.highest, a.Epoch)
}

// act builds what i read that it should, and says so: perhaps late.
func (w *world) act(i *inst) {
	if !i.seen || i.frozen || !i.known {
		return
	}
	i.seen = false
	if i.slow {
		if i.preparing && w.registered(i) && slices.Contains(i.asked.Evict, i.name) {
			w.ready[i.group][i.name] = Ready{Instance: i.name, Group: i.group, Nonce: i.asked.Nonce, Evicted: true}
			w.bump()
		}
		return
	}
	nonce, set := i.assigned.Nonce, i.assigned.Set
	if i.preparing && w.registered(i) && (i.asked.First == "" || i.asked.First == i.name) {
		nonce, set = i.asked.Nonce, i.asked.Set
	}
	hold := map[version.Digest]bool{}
	var lacks []version.Digest
	for _, s := range set {
		key := fmt.Sprintf("%s/%d", i.name, s.Number)
		if w.poison[key] && !i.holds[s.Digest] {
			w.die(i)
			return
		}
		if why := w.bad[key]; why != "" {
			if w.registered(i) {
				w.ready[i.group][i.name] = Ready{Instance: i.name, Group: i.group, Nonce: nonce, Refused: true, Why: why}
				w.bump()
			}
			return
		}
		if w.sick[key] && !i.holds[s.Digest] && has(i.assigned.Set, s.Digest) {
			if i.epoch == 0 {
				return // it does not join without the whole set
			}
			lacks = append(lacks, s.Digest)
			continue
		}
		hold[s.Digest] = true
	}
	if !w.registered(i) {
		if w.groups[i.group].Epoch != i.assigned.Epoch || w.prepares[i.group].Nonce != i.asked.Nonce {
			return // not admitted: it reads again
		}
		if w.ready[i.group] == nil {
			w.ready[i.group] = map[string]Ready{}
		}
	}
	out := len(lacks) > 0 && i.epoch < i.assigned.Epoch && w.ready[i.group][i.name].Evicted
	w.ready[i.group][i.name] = Ready{Instance: i.name, Group: i.group, Nonce: nonce, Lacks: lacks, Evicted: out}
	maps.Copy(i.holds, hold)
	w.follow(i)
	if !i.stable.IsZero() {
		hold[i.stable.Digest] = true // what it serves is never released
	}
	if i.candidate != nil {
		hold[i.candidate.Digest] = true
	}
	i.holds = hold
	w.report(i)
	w.bump()
}

// sicken takes a revision from an instance for good, unless it serves it. It says so.
func (w *world) sicken(i *inst, n int64) {
	if d := ref(n).Digest; d == i.stable.Digest || i.candidate != nil && d == i.candidate.Digest {
		return
	}
	w.sick[fmt.Sprintf("%s/%d", i.name, n)] = true
	delete(i.holds, ref(n).Digest)
	if w.registered(i) && !w.ready[i.group][i.name].Evicted {
		w.ready[i.group][i.name] = Ready{Instance: i.name, Group: i.group}
	}
	w.bump()
}

// step runs the controller until nothing is left to do, and tells each change.
func (w *world) step(each func(Change)) time.Time {
	for range 1000 {
		v := w.view()
		c, next := Step(v, w.now)
		if c.IsZero() {
			return next
		}
		if err := w.apply(w.term, v, c); err != nil {
			w.breaks("apply: %v", err)
			return next
		}
		each(c)
	}
	w.breaks("it does not end")
	return time.Time{}
}

func (w *world) names() []string { return slices.Sorted(maps.Keys(w.fleetOf)) }

// settle lets every instance that is up catch up, and the controller with them.
func (w *world) settle() {
	for range 12 {
		w.step(func(Change) {})
		for _, n := range w.names() {
			if i := w.fleetOf[n]; i.up {
				w.look(i)
				w.act(i)
			}
		}
	}
}

// A copy is a backup of etcd.
type backup struct {
	fleet     Fleet
	groups    map[string]Assignment
	prepares  map[string]Prepare
	intents   []Intent
	rollouts  map[string]Rollout
	order     []string
	condemned map[version.Digest]Condemned
	served    map[version.Digest]bool
	baked     map[version.Digest]bool
	revisions map[int64]version.Revision
}

func (w *world) save() *backup {
	return &backup{
		w.fleet, maps.Clone(w.groups), maps.Clone(w.prepares), slices.Clone(w.intents), maps.Clone(w.rollouts),
		slices.Clone(w.order), maps.Clone(w.condemned), maps.Clone(w.served), maps.Clone(w.baked), maps.Clone(w.revisions),
	}
}

// restore puts an older copy back. Leases are over, the controller's too.
func (w *world) restore(b *backup) {
	w.fleet, w.groups, w.prepares, w.intents = b.fleet, maps.Clone(b.groups), maps.Clone(b.prepares), slices.Clone(b.intents)
	w.rollouts, w.order, w.condemned = maps.Clone(b.rollouts), slices.Clone(b.order), maps.Clone(b.condemned)
	w.served, w.baked, w.revisions = maps.Clone(b.served), maps.Clone(b.baked), maps.Clone(b.revisions)
	w.final = map[string]Rollout{}
	for id, r := range w.rollouts {
		if r.Phase.Final() {
			w.final[id] = r
		}
	}
	for _, i := range w.fleetOf {
		w.forget(i)
		i.seen = false
	}
	w.term++
	w.move()
}

// ask puts an intent as routectl does: with its compare on the target.
func (w *world) ask(in Intent) {
	in.Time, in.PrevTarget = w.now, w.fleet.Target
	if in.By == "" {
		in.By = "op"
	}
	if in.Kind == IntentSwitch {
		w.fleet.Target = in.To
	}
	w.intents = append(w.intents, in)
	w.move()
}

func (w *world) publish(n int64) {
	w.revisions[n] = version.Revision{Number: n, Digest: ref(n).Digest, Parent: w.fleet.Target.Number}
}
