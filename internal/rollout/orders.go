package rollout

import (
	"fmt"
	"time"
)

// takeOrder carries out what an operator wants of a rollout that has steps.
func (d *draft) takeOrder(r Rollout) {
	o, why := d.ordered(&r)
	if why != "" {
		d.reject(&r, PhaseRefused, why)
		return
	}
	var done string
	switch r.Kind {
	case IntentPromote:
		done, why = d.promote(o, &r)
	case IntentPause:
		done, why = d.pauseBy(o, &r)
	case IntentResume:
		done, why = d.resume(o)
	case IntentApprove:
		done, why = d.approve(o)
	}
	if why != "" {
		d.reject(&r, PhaseRefused, why)
		return
	}
	d.put(*o)
	d.end(&r, PhaseDone, done)
	d.audit(&r, string(r.Kind), fmt.Sprintf("%s: %s", o.ID, done), d.scope(o), o.To)
}

// ordered finds the rollout that r is about.
func (d *draft) ordered(r *Rollout) (*Rollout, string) {
	var found []Rollout
	for _, o := range d.active {
		if r.Rollout == o.ID || r.Rollout == "" && o.Plan != nil {
			found = append(found, o)
		}
	}
	switch {
	case len(found) == 0 && r.Rollout == "":
		return nil, "no rollout with steps is in progress"
	case len(found) == 0:
		return nil, fmt.Sprintf("rollout %s is not in progress", r.Rollout)
	case len(found) > 1:
		return nil, fmt.Sprintf("rollouts %s and %s are in progress: name one", found[0].ID, found[1].ID)
	case found[0].Plan == nil:
		return nil, fmt.Sprintf("rollout %s has no steps: it commits as soon as all are ready; abort it, or wait", found[0].ID)
	case found[0].Phase == PhaseReturning:
		return nil, fmt.Sprintf("rollout %s is on its way back", found[0].ID)
	}
	return &found[0], ""
}

// promote ends the waiting of o's present step; with Full, of all its steps.
func (d *draft) promote(o, r *Rollout) (done, why string) {
	d.letGo(o)
	o.Full = o.Full || r.Full
	switch s := o.step(); {
	case d.ending(o):
		return "", fmt.Sprintf("rollout %s is to be aborted", o.ID)
	case o.Full:
		return "every wave commits as soon as it is ready", ""
	case o.Phase != PhaseRunning || s.changes():
		return "it goes on as soon as all are ready", ""
	default:
		kind := s.Kind()
		held := d.held
		d.held = false // A cursor is no commit.
		d.stepOver(o)
		d.held = held
		return "past its " + kind, ""
	}
}

// pauseBy holds o for the operator of r. Going back is not held.
func (d *draft) pauseBy(o, r *Rollout) (done, why string) {
	text := "paused by " + r.By
	if r.Message != "" {
		text += ": " + r.Message
	}
	o.Hold = &Hold{By: r.By, Why: brief(text, maxWhy), Since: d.now, Operator: true}
	return "it goes on after routectl rollout resume", ""
}

// resume ends a hold; what led to it is looked at anew.
func (d *draft) resume(o *Rollout) (done, why string) {
	if o.Hold == nil {
		return "", fmt.Sprintf("rollout %s is not held", o.ID)
	}
	d.letGo(o)
	return "it goes on", ""
}

// letGo ends o's hold, and gives who is late their time again.
func (d *draft) letGo(o *Rollout) {
	o.Hold, o.Why = nil, ""
	if !o.Deadline.IsZero() {
		o.Deadline = d.deadlineOf(o, false)
	}
	o.Alive = d.now.Add(grace(o.Plan))
}

// approve gives o's pause what it waits for. What is to be confirmed after the
// last commit may be confirmed as soon as that was made.
func (d *draft) approve(o *Rollout) (done, why string) {
	atPause := o.Phase == PhaseRunning && o.step().Pause != nil && o.step().Pause.Approval
	if !atPause && d.revertAt(o) == (time.Time{}) {
		return "", fmt.Sprintf("rollout %s does not wait for an approval now", o.ID)
	}
	if atPause && !o.reverting() {
		o.Cursor.Approved = true // Of this pause, and of nothing after it.
	} else {
		o.Cursor.Confirmed = true
	}
	o.unhold()
	return "approved", ""
}
