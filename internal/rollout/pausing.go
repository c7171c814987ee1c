package rollout

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"routerd.dev/internal/analysis"
)

const (
	// For so long a pause looks at its data as often as an analysis does, then
	// less often: instances count less often then, too, and a pause may last
	// for days.
	waitFresh = 10 * time.Minute
	waitLater = 5 * time.Second
)

// pause waits for its time, or for an approval. What serves meanwhile is judged.
func (d *draft) pause(r *Rollout, ms []move, s *PauseStep) {
	if r.Full && !r.reverting() {
		d.goOn(r)
		return
	}
	until := r.Cursor.Since.Add(time.Duration(s.For))
	if r.reverting() {
		until = d.revertAt(r)
	}
	over := s.For > 0 && !d.now.Before(until)
	approved := s.Approval && (r.Cursor.Approved || r.reverting() && r.Cursor.Confirmed)
	switch {
	case over && s.Approval && !approved && s.Otherwise != OtherwiseContinue: // also what fails and must not go back for that
		d.turnBack(r, controllerName, fmt.Sprintf("nobody approved it within %v", time.Duration(s.For)))
	case d.alarmed(r, ms, s):
	case approved:
		d.goOn(r)
	case over:
		d.goOn(r)
	case s.Approval:
		d.waitFor(r, "it waits for an approval: routectl rollout approve "+r.ID)
	default:
		d.stay(r, "it pauses until "+until.Format(time.TimeOnly))
	}
	if s.For > 0 && until.After(d.now) {
		d.look(until)
	}
}

// alarmed judges what serves during a pause, as an analysis or a bake would: a
// failure goes back at once, and nothing follows from anything else. It tells
// whether there was one.
func (d *draft) alarmed(r *Rollout, ms []move, s *PauseStep) bool {
	if s.Unjudged || r.Full {
		return false
	}
	committed := r.pastCommit()
	of := d.comparison(r, ms, committed)
	if len(of.Groups) == 0 {
		return false // Nothing serves that could be compared.
	}
	every := d.waitEvery(r)
	d.look(d.now.Add(every))
	result := judge(r.JudgedBy(), of)
	d.evidence(r, result, every) // Why it pauses stays to be read.
	if result.Verdict != analysis.Fail {
		return false
	}
	failed := "during a pause the analysis failed: "
	if committed {
		failed = "during a pause it did worse after the commit: "
	}
	d.fail(r, failed+bare(result))
	return true
}

// waitEvery is how often data is looked at while nothing but data, a person or
// time can end the present step.
func (d *draft) waitEvery(r *Rollout) time.Duration {
	if d.now.Sub(r.Cursor.Since) >= waitFresh {
		return waitLater
	}
	return watchEvery
}

// judges tells that s compares what a commit before it brought.
func (s *PlanStep) judges() bool { return s.Bake != nil || s.Pause != nil && !s.Pause.Unjudged }

// pastCommit tells that the present wave committed.
func (r *Rollout) pastCommit() bool {
	return slices.ContainsFunc(r.wave().Steps[:r.Cursor.Step], func(s PlanStep) bool { return s.Commit != nil })
}

// JudgedBy is what r's present step judges by; the defaults for a step that
// does not judge. A pause has no configuration of its own and takes that of the
// analysis or bake of its wave before it, else after it; of two, the one on its
// side of the commit.
func (r *Rollout) JudgedBy() analysis.Config {
	s := r.Present()
	if s == nil {
		return analysis.Config{}
	}
	if c, ok := s.config(); ok || s.Pause == nil {
		return c
	}
	steps, committed := r.wave().Steps, r.pastCommit()
	near := slices.Clone(steps[:r.Cursor.Step])
	slices.Reverse(near)
	near = append(near, steps[r.Cursor.Step+1:]...)
	for i := range near {
		if c, ok := near[i].config(); ok && (near[i].Bake != nil) == committed {
			return c
		}
	}
	for i := range near {
		if c, ok := near[i].config(); ok {
			return besides(c, committed)
		}
	}
	return analysis.Config{}
}

// config is what s judges by, if it is there to judge.
func (s *PlanStep) config() (analysis.Config, bool) {
	switch {
	case s.Analysis != nil:
		return s.Analysis.Config, true
	case s.Bake != nil && s.Bake.Config != nil:
		return *s.Bake.Config, true
	}
	return analysis.Config{}, s.Bake != nil
}

// besides is c for a pause on the other side of the commit. There latency is
// only judged where somebody asked for it of such a comparison: an analysis
// that names it did not.
func besides(c analysis.Config, committed bool) analysis.Config {
	if committed && !c.Metrics["latency"].Off {
		c.Metrics = maps.Clone(c.Metrics)
		delete(c.Metrics, "latency")
	}
	return c
}

// reverting tells that r is at the pause that Intent.Revert put at the end.
func (r *Rollout) reverting() bool {
	last := len(r.Plan.Waves) - 1
	return r.Revert > 0 && r.Cursor.Wave == last && r.Cursor.Step == len(r.wave().Steps)-1
}

// unconfirmed takes r back that nobody confirmed in time, also when it still
// watches what it committed last.
func (d *draft) unconfirmed(r *Rollout) bool {
	at := d.revertAt(r)
	if r.Revert == 0 || r.Cursor.Confirmed || at.IsZero() {
		return false
	}
	d.look(at)
	if d.now.Before(at) {
		return false
	}
	d.turnBack(r, controllerName, fmt.Sprintf("nobody approved it within %v", r.Revert))
	return true
}

// revertAt is when r goes back unless it was approved: counted from its last
// commit; zero before that.
func (d *draft) revertAt(r *Rollout) time.Time {
	last := len(r.Plan.Waves) - 1
	if r.Revert == 0 || r.Cursor.Wave != last {
		return time.Time{}
	}
	i := slices.IndexFunc(r.wave().Steps, func(s PlanStep) bool { return s.Commit != nil })
	if r.Cursor.Step <= i {
		return time.Time{}
	}
	var at time.Time
	for _, g := range r.wave().Groups {
		if a, ok := d.groups[g]; ok && a.Rollout == r.ID && a.Instant.After(at) {
			at = a.Instant
		}
	}
	if at.IsZero() {
		at = r.Cursor.Since
	}
	return at.Add(r.Revert)
}
