package rollout

import (
	"fmt"
	"math"
	"slices"
	"time"

	"routerd.dev/internal/version"
)

// watchEvery is how often data is looked at: it wakes nobody.
const watchEvery = time.Second

// play does the next thing for r, which has a plan. Going back comes before
// going on, and nothing holds it up.
func (d *draft) play(r Rollout) {
	if r.Phase == PhaseReturning {
		d.comeBack(&r)
		return
	}
	if d.leftAlone(&r) || d.unconfirmed(&r) {
		return
	}
	d.bound(&r)
	ms := d.waveMoves(&r)
	if len(ms) == 0 || r.Cursor.Epoch == 0 && arrived(ms) {
		d.nextWave(&r) // Its groups were retired, or serve it already.
		return
	}
	if said, ok := d.refusal(&r, ms); ok {
		d.refuse(&r, said)
		return
	}
	if d.lostCanary(&r, ms) || d.quarantined(&r, ms) {
		return
	}
	if r.Phase != PhaseRunning && !d.begin(&r, ms) {
		return
	}
	d.playStep(&r, ms)
}

// bound renews what says that a controller is at work, and brings times that
// a clock named which is ahead of this one back to now.
func (d *draft) bound(r *Rollout) {
	g := grace(r.Plan)
	if left := r.Alive.Sub(d.now); left <= g/2 || left > g {
		r.Alive = d.now.Add(g)
	}
	d.look(r.Alive.Add(-g / 2))
	if r.Cursor.Since.After(d.now) {
		r.Cursor.Since = d.now
	}
	if most := d.deadlineOf(r, false); !r.Deadline.IsZero() && r.Deadline.After(most) && !most.IsZero() {
		r.Deadline = most
	}
}

// leftAlone applies the policy for a rollout that no controller looked after.
func (d *draft) leftAlone(r *Rollout) bool {
	if r.Alive.IsZero() || !d.now.After(r.Alive) {
		return false
	}
	why := "no controller looked after it since " + r.Alive.Add(-grace(r.Plan)).Format(time.TimeOnly)
	r.Alive = d.now.Add(grace(r.Plan))
	if r.Plan.OnControllerLoss == LossRollback {
		d.turnBack(r, controllerName, why)
		return true
	}
	d.holdForOperator(r, why+": resume it, or abort it")
	d.put(*r)
	return true
}

// holdForOperator lets r go on only when an operator says so.
func (d *draft) holdForOperator(r *Rollout, why string) {
	if r.Hold != nil && r.Hold.Operator {
		return // Who held it first is asked first.
	}
	r.Hold = &Hold{By: controllerName, Why: brief(why, maxWhy), Since: d.now, Operator: true}
	d.audit(r, "hold", why, d.scope(r), r.To)
}

// holdUntil notes what r waits for, and lets it go on when that comes.
func (d *draft) holdUntil(r *Rollout, why string) {
	switch {
	case r.Hold == nil:
		r.Hold = &Hold{By: controllerName, Why: brief(why, maxWhy), Since: d.now}
	case !r.Hold.Operator && r.Hold.Why != why:
		h := *r.Hold
		h.Why = brief(why, maxWhy)
		r.Hold = &h
	}
}

// unhold ends a hold that was not an operator's to end.
func (r *Rollout) unhold() {
	if r.Hold != nil && !r.Hold.Operator {
		r.Hold = nil
	}
}

// mayGoOn tells whether nothing forbids to move r forward.
func (d *draft) mayGoOn(r *Rollout) bool {
	return !d.held && (r.Hold == nil || !r.Hold.Operator)
}

// Present returns the step under way; nil when none is: while r prepares, goes
// back or has no plan.
func (r *Rollout) Present() *PlanStep {
	if r.Plan == nil || r.Phase != PhaseRunning || r.Cursor.Wave >= len(r.Plan.Waves) || r.Cursor.Step >= len(r.wave().Steps) {
		return nil
	}
	return r.step()
}

// Checks lists what is to be asked of others while s is under way.
func (s *PlanStep) Checks() []Check {
	switch {
	case s == nil:
		return nil
	case s.Analysis != nil:
		return s.Analysis.Checks
	case s.Bake != nil:
		return s.Bake.Checks
	}
	return nil
}

func (r *Rollout) wave() *Wave     { return &r.Plan.Waves[r.Cursor.Wave] }
func (r *Rollout) step() *PlanStep { return &r.wave().Steps[r.Cursor.Step] }

// committed tells that r's plan put an assignment: ending it means going back.
func (r *Rollout) committed() bool { return r.Plan != nil && len(r.Epochs) > 0 }

// changes tells that a step is done by a commit.
func (s *PlanStep) changes() bool {
	return s.Canary != nil || s.Share != nil || s.Match != nil || s.Commit != nil
}

// waveMoves lists the groups of r's wave that there are, wherever they stand.
func (d *draft) waveMoves(r *Rollout) []move {
	if r.Cursor.Wave >= len(r.Plan.Waves) {
		return nil
	}
	var out []move
	for _, g := range slices.Sorted(slices.Values(r.wave().Groups)) {
		if a, ok := d.groups[g]; ok {
			out = append(out, move{group: g, from: a, to: r.To, regs: d.registered(g), warm: has(a.Set, r.To.Digest)})
		}
	}
	return out
}

// arrived tells that every group serves what it is to get, and nothing else.
func arrived(ms []move) bool {
	return !slices.ContainsFunc(ms, func(m move) bool {
		return m.from.Stable.Digest != m.to.Digest || m.from.Candidate != nil
	})
}

// begin has the wave's instances prepare, and lets its steps begin when all
// hold the set.
func (d *draft) begin(r *Rollout, ms []move) bool {
	if _, ok := d.gather(r, ms); !ok {
		return false
	}
	if !d.mayGoOn(r) {
		d.stay(r, "")
		return false
	}
	r.Phase, r.Why, r.Deadline = PhaseRunning, "", time.Time{}
	r.Cursor.Since = d.now
	return true
}

// gather has every instance of ms hold what the next commit needs. It tells
// whether they do, and whom an override must name.
func (d *draft) gather(r *Rollout, ms []move) (override string, ok bool) {
	if why := d.frozenText(ms); why != "" {
		d.waitFor(r, why)
		return "", false
	}
	if len(lost(ms)) == 0 {
		r.unhold()
	}
	asked := cold(ms)
	switch {
	case len(asked) == 0:
	case r.Phase == PhaseRunning && !d.unasked(r, asked):
	case r.Phase != PhaseRunning && d.wantsFirst(r, asked) && !d.askFirst(r, asked):
		return "", false
	default:
		d.askAll(r, asked)
	}
	return d.assembled(r, ms)
}

// unasked tells that a group has no prepare of r: it was made anew.
func (d *draft) unasked(r *Rollout, asked []move) bool {
	return slices.ContainsFunc(asked, func(m move) bool {
		p, ok := d.prepares[m.group]
		return !ok || p.Rollout != r.ID || p.Nonce != r.Nonces[m.group]
	})
}

// assembled tells whether all of ms are ready, or may be left behind.
func (d *draft) assembled(r *Rollout, ms []move) (override string, ok bool) {
	if gone := lost(ms); len(gone) > 0 && !r.AllowFewer {
		d.waitFor(r, awayText(gone))
		return "", false
	} else if len(gone) > 0 {
		override = fmt.Sprintf("%s allowed it: %s", r.By, lostText(gone))
	}
	behind, ok := d.stragglers(r, ms)
	if !ok {
		return "", false
	}
	if behind != "" {
		override = behind
	}
	r.unhold()
	return override, true
}

// stay writes r as it is, for the reason why.
func (d *draft) stay(r *Rollout, why string) {
	r.Why = why
	d.put(*r)
	if r.Deadline.After(d.now) {
		d.look(r.Deadline)
	}
}

// playStep does the step that r is at, as far as that is possible now.
func (d *draft) playStep(r *Rollout, ms []move) {
	if !r.step().changes() && d.grow(r, ms) {
		return
	}
	s := r.step()
	switch {
	case s.changes():
		d.changeStep(r, ms, s)
	case s.Pause != nil:
		d.pause(r, ms, s.Pause)
	case s.Analysis != nil:
		d.analyse(r, ms, s.Analysis)
	case s.Bake != nil:
		d.watchBake(r, ms, s.Bake)
	}
}

// changeStep carries out a step that is one commit.
func (d *draft) changeStep(r *Rollout, ms []move, s *PlanStep) {
	var edits []move
	edit := make(map[string]func(*Assignment))
	for _, m := range ms {
		if f := d.editOf(r, m, s); f != nil {
			edits, edit[m.group] = append(edits, m), f
		}
	}
	if len(edits) == 0 {
		if !d.mayGoOn(r) {
			d.stay(r, "")
			return
		}
		d.stepOver(r)
		return
	}
	if r.Deadline.IsZero() {
		r.Deadline = d.deadlineOf(r, false)
	}
	override, ok := d.gather(r, ms)
	if !ok {
		return
	}
	if !d.mayGoOn(r) {
		d.stay(r, "")
		return
	}
	d.carryOut(r, edits, edit, override)
	if s.Commit != nil {
		d.settle()
	}
	d.stepOver(r)
}

// carryOut commits edits as one.
func (d *draft) carryOut(r *Rollout, ms []move, edit map[string]func(*Assignment), override string) {
	override = brief(override, maxWhy)
	r.Cursor.Epoch = d.place(r, ms, override, func(m move, a *Assignment) { edit[m.group](a) })
	r.Canaries = d.canaries(r)
	for _, m := range ms {
		delete(d.prepares, m.group) // What it asked for is the nonce in force now.
	}
	r.Nonces = clone(r.Nonces)
	for _, m := range ms {
		delete(r.Nonces, m.group)
	}
	if len(r.Nonces) == 0 {
		r.Nonces = nil
	}
	why := "canary" // One more, when the step is another.
	if s := r.step(); s.changes() {
		why = s.Kind()
	}
	if override != "" {
		why += ": " + override
	}
	d.audit(r, "commit", why, groupsOf(ms), r.To)
}

// editOf says how step s changes the assignment of m's group; nil when it
// does not.
func (d *draft) editOf(r *Rollout, m move, s *PlanStep) func(*Assignment) {
	if s.Commit != nil {
		return d.commitEdit(r, m)
	}
	if m.from.Stable.IsZero() || m.from.Stable.Digest == r.To.Digest {
		return nil // There is nothing to share requests with.
	}
	var c Candidate
	if now := m.from.Candidate; now != nil && m.from.Rollout == r.ID {
		c = *now
	}
	was := c
	c.Ref = r.To
	switch {
	case s.Canary != nil:
		c.Instances = d.chooseCanaries(r, m, s.Canary)
		if len(c.Instances) == 0 {
			return nil
		}
	case s.Share != nil:
		c.Instances = nil
		c.Permyriad, c.Salt, c.Key = int(math.Round(s.Share.Percent*100)), r.Salt, s.Share.key()
	default:
		match := s.Match.Match
		c.Match = &match
	}
	if m.warm && equal(was, c) {
		return nil
	}
	return func(a *Assignment) { a.Candidate = &c }
}

func equal(a, b Candidate) bool {
	same := func(x, y *Match) bool { return x == y || x != nil && y != nil && *x == *y }
	return a.Ref == b.Ref && a.Permyriad == b.Permyriad && a.Salt == b.Salt && a.Key == b.Key &&
		slices.Equal(a.Instances, b.Instances) && same(a.Match, b.Match)
}

func (d *draft) commitEdit(r *Rollout, m move) func(*Assignment) {
	if m.from.Stable.Digest == r.To.Digest && m.from.Candidate == nil {
		return nil
	}
	var against version.Ref
	if slices.ContainsFunc(r.wave().Steps[r.Cursor.Step:], func(s PlanStep) bool { return s.judges() }) {
		against = m.from.Stable
	}
	return func(a *Assignment) {
		a.Stable, a.Back, a.Against = m.to, d.backAfter(r, m), against
	}
}

// stepOver goes to the next step, and to the next wave after the last.
func (d *draft) stepOver(r *Rollout) {
	r.Cursor = Cursor{Wave: r.Cursor.Wave, Step: r.Cursor.Step + 1, Since: d.now, Epoch: r.Cursor.Epoch, Confirmed: r.Cursor.Confirmed}
	r.Why, r.Deadline, r.Hold = "", time.Time{}, nil
	r.Judged = time.Time{}
	if r.Cursor.Step >= len(r.wave().Steps) {
		d.nextWave(r)
		return
	}
	d.put(*r)
}

// nextWave begins the next wave, or ends r after the last.
func (d *draft) nextWave(r *Rollout) {
	if !d.mayGoOn(r) {
		d.stay(r, "")
		return
	}
	r.Cursor = Cursor{Wave: r.Cursor.Wave + 1, Since: d.now}
	r.Hold, r.Canaries = nil, nil
	if r.Cursor.Wave >= len(r.Plan.Waves) {
		d.finish(r)
		return
	}
	r.Phase, r.Why, r.First, r.FirstBoot = PhasePending, "", "", ""
	r.Deadline = d.deadlineOf(r, false)
	d.put(*r)
}

// finish ends r: every wave is over.
func (d *draft) finish(r *Rollout) {
	r.Cursor = Cursor{Wave: len(r.Plan.Waves)}
	d.bake(r.To.Digest)
	d.withdraw(r)
	d.end(r, PhaseDone, d.leftOver(r))
	d.audit(r, "done", r.Why, d.scope(r), r.To)
	d.settle()
}

// leftOver names groups that came while r went on and serve something else.
func (d *draft) leftOver(r *Rollout) string {
	var who []string
	for _, g := range sorted(d.groups) {
		if _, ok := r.Origin[g]; !ok && len(r.Groups) == 0 && d.groups[g].Stable.Digest != r.To.Digest {
			who = append(who, g)
		}
	}
	if len(who) == 0 {
		return r.Note
	}
	return fmt.Sprintf("not %s, which came meanwhile: routectl switch %d --group", join(who, ", "), r.To.Number)
}

// goOn steps over the present step, unless that is forbidden now.
func (d *draft) goOn(r *Rollout) {
	if !d.mayGoOn(r) {
		d.stay(r, "")
		return
	}
	d.stepOver(r)
}
