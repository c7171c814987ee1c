package controller

import (
	"cmp"
	"slices"
	"time"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// The events that are told. A rollout that ends is told by its phase: done,
// refused, aborted, superseded, rolled-back.
const (
	EventStarted   = "started"
	EventStep      = "step"      // it is at another step of its plan
	EventCommitted = "committed" // groups serve another revision for good
	EventHeld      = "held"      // it waits
	EventReturning = "returning" // it goes back
	EventCondemned = "condemned" // a digest is never prepared again
)

// An Event is what became of a rollout by one change.
type Event struct {
	ID       string             `json:"id"` // never used twice: who is told twice can tell
	Event    string             `json:"event"`
	Time     time.Time          `json:"time"`
	Fleet    string             `json:"fleet"`
	Rollout  string             `json:"rollout,omitempty"`
	Kind     rollout.IntentKind `json:"kind,omitempty"`
	Phase    rollout.Phase      `json:"phase,omitempty"`
	Revision version.Ref        `json:"revision,omitzero"`
	Groups   []string           `json:"groups,omitempty"`
	Strategy string             `json:"strategy,omitempty"`
	Wave     int                `json:"wave,omitempty"` // from 1, of a plan
	Step     int                `json:"step,omitempty"` // likewise
	By       string             `json:"by,omitempty"`
	Why      string             `json:"why,omitempty"`
	Evidence *Summary           `json:"evidence,omitempty"`

	// RecoverSeconds is how long the way back took, from the verdict until
	// every instance served what it went back to.
	RecoverSeconds float64 `json:"recoverSeconds,omitempty"`
}

// A Summary is an analysis in short.
type Summary struct {
	Verdict  analysis.Verdict   `json:"verdict"`
	Why      string             `json:"why"`
	Failures []analysis.Finding `json:"failures,omitempty"` // at most 5
}

// eventsOf tells what a change did to rollouts, in the order in which it
// happened. Their IDs are not set.
func eventsOf(v *rollout.View, ch rollout.Change, now time.Time) []Event {
	var all []Event
	for i := range ch.Rollouts {
		r := &ch.Rollouts[i]
		if r.Kind != rollout.IntentSwitch && r.Kind != rollout.IntentRollback {
			continue
		}
		var was *rollout.Rollout
		if j := slices.IndexFunc(v.Rollouts, func(o rollout.Rollout) bool { return o.ID == r.ID }); j >= 0 {
			was = &v.Rollouts[j]
		}
		all = append(all, rolloutEvents(v, ch, was, r, now)...)
	}
	for _, c := range ch.Condemn {
		e := Event{Event: EventCondemned, Time: now, Fleet: v.Fleet.ID, Revision: version.Ref{Digest: c.Digest}, Why: c.Why}
		if j := slices.IndexFunc(ch.Rollouts, func(o rollout.Rollout) bool { return o.To.Digest == c.Digest }); j >= 0 {
			e.Rollout, e.Revision = ch.Rollouts[j].ID, ch.Rollouts[j].To
		}
		all = append(all, e)
	}
	return all
}

// rolloutEvents tells what became of one rollout; was is nil for a new one.
func rolloutEvents(v *rollout.View, ch rollout.Change, was, r *rollout.Rollout, now time.Time) (all []Event) {
	base := Event{
		Time: now, Fleet: v.Fleet.ID, Rollout: r.ID, Kind: r.Kind, Phase: r.Phase, Revision: r.To, Groups: r.Scope(v.Groups),
		By: r.By, Why: r.Why, Evidence: summary(r.Evidence),
	}
	if r.Plan != nil {
		base.Strategy, base.Wave, base.Step = r.Plan.Name, r.Cursor.Wave+1, r.Cursor.Step+1
	}
	tell := func(event string, with func(*Event)) {
		e := base
		e.Event = event
		if with != nil {
			with(&e)
		}
		all = append(all, e)
	}
	if was == nil && !r.Phase.Final() {
		tell(EventStarted, nil)
	}
	if was != nil && r.Phase == rollout.PhaseRunning && (was.Cursor.Wave != r.Cursor.Wave || was.Cursor.Step != r.Cursor.Step) {
		tell(EventStep, nil)
	}
	if moved := committed(v, ch, r); len(moved) > 0 && r.Return == nil {
		tell(EventCommitted, func(e *Event) { e.Groups = moved })
	}
	if h := r.Hold; h != nil && !r.Phase.Final() && (was == nil || was.Hold == nil || !was.Hold.Since.Equal(h.Since)) {
		tell(EventHeld, func(e *Event) { e.Why, e.By = h.Why, h.By })
	}
	back := func(e *Event) {
		if t := r.Return; t != nil {
			e.Why, e.By = t.Why, t.By
			e.Evidence = cmp.Or(summary(t.Evidence), e.Evidence)
		}
	}
	if r.Phase == rollout.PhaseReturning && (was == nil || was.Phase != rollout.PhaseReturning) {
		tell(EventReturning, back)
	}
	if r.Phase.Final() {
		tell(string(r.Phase), func(e *Event) {
			if r.Phase == rollout.PhaseRolledBack {
				back(e)
				e.RecoverSeconds = recoverTime(r).Seconds()
			}
		})
	}
	return all
}

// committed are the groups whose stable revision r's part of the change moves.
func committed(v *rollout.View, ch rollout.Change, r *rollout.Rollout) (groups []string) {
	for _, a := range ch.Groups {
		if a.Rollout == r.ID && a.Stable.Digest != v.Groups[a.Group].Stable.Digest {
			groups = append(groups, a.Group)
		}
	}
	slices.Sort(groups)
	return groups
}

// recoverTime is how long a rollout's way back took; 0 if it had none.
func recoverTime(r *rollout.Rollout) time.Duration {
	t := r.Return
	if t == nil || t.Decided.IsZero() {
		return 0
	}
	over := t.Over
	if over.IsZero() {
		over = r.Ended
	}
	return max(0, over.Sub(t.Decided))
}

func summary(r *analysis.Result) *Summary {
	if r == nil {
		return nil
	}
	s := &Summary{Verdict: r.Verdict, Why: r.Why}
	for _, f := range r.Bounded().Findings {
		if f.Verdict == analysis.Fail && !f.DryRun && len(s.Failures) < 5 {
			s.Failures = append(s.Failures, f)
		}
	}
	return s
}
