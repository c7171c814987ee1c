package cli

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"routerd.dev/internal/rollout"
)

// waveText names a wave of a plan: by its name, and the groups it moves.
func waveText(w rollout.Wave) string {
	groups := make([]string, len(w.Groups))
	for i, g := range w.Groups {
		if groups[i] = g; g == "*" {
			groups[i] = "every other group"
		}
	}
	text := strings.Join(groups, ", ")
	if w.OneByOne {
		text += ", one by one"
	}
	if w.Name == "" {
		return text
	}
	return w.Name + " (" + text + ")"
}

// stepText says in a few words what a step does.
func stepText(p rollout.PlanStep) string {
	switch {
	case p.Canary != nil:
		return "canary: " + quantityText(p.Canary.Instances)
	case p.Share != nil:
		return "share: " + percentText(p.Share.Percent) + " of requests by " + cmp.Or(p.Share.Key, "client")
	case p.Match != nil:
		return "match: " + matchText(&p.Match.Match)
	case p.Analysis != nil:
		return "analysis" + checksText(p.Analysis.Checks)
	case p.Pause != nil:
		if p.Pause.Unjudged {
			return "pause " + pauseText(p.Pause) + ", judging nothing"
		}
		return "pause " + pauseText(p.Pause)
	case p.Commit != nil:
		return "commit"
	case p.Bake != nil:
		return "bake" + bakeText(p.Bake)
	}
	return "nothing"
}

func quantityText(q rollout.Quantity) string {
	if n, err := strconv.Atoi(string(q)); err == nil {
		return plural(n, "instance") + " of each group"
	}
	return string(q) + " of each group's instances"
}

func percentText(p float64) string { return strconv.FormatFloat(p, 'f', -1, 64) + " %" }

func shareText(permyriad int) string { return percentText(float64(permyriad) / 100) }

func matchText(m *rollout.Match) string {
	text := "header " + m.Header
	if m.Cookie != "" {
		text = "cookie " + m.Cookie
	}
	if m.Value != "" {
		text += " = " + m.Value
	}
	return text
}

func checksText(checks []rollout.Check) string {
	if len(checks) == 0 {
		return ""
	}
	names := make([]string, len(checks))
	for i, c := range checks {
		names[i] = c.Name
	}
	return ", checks " + strings.Join(names, ", ")
}

func pauseText(p *rollout.PauseStep) string {
	switch {
	case !p.Approval:
		return "for " + durationText(p.For)
	case p.For == 0:
		return "until it is approved"
	case p.Otherwise == rollout.OtherwiseContinue:
		return "until it is approved, " + durationText(p.For) + " at most, then go on"
	}
	return "until it is approved, within " + durationText(p.For) + ", or go back"
}

func bakeText(b *rollout.BakeStep) string {
	var parts []string
	if b.For > 0 {
		parts = append(parts, "for "+durationText(b.For))
	}
	if b.Requests > 0 {
		parts = append(parts, fmt.Sprintf("%d requests", b.Requests))
	}
	text := strings.Join(parts, " and ")
	if text != "" {
		text = " " + text
	}
	return text + checksText(b.Checks)
}

// durationText leaves out the zero units at the end: 10m, not 10m0s.
func durationText(d rollout.Duration) string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// stepOf is the step at which a rollout is, nil without a plan or past its end.
func stepOf(r *rollout.Rollout) *rollout.PlanStep {
	if r.Plan == nil || r.Cursor.Wave >= len(r.Plan.Waves) {
		return nil
	}
	steps := r.Plan.Waves[r.Cursor.Wave].Steps
	if r.Cursor.Step >= len(steps) {
		return nil
	}
	return &steps[r.Cursor.Step]
}

// placeText says at which step a rollout is: empty without a plan.
func placeText(r *rollout.Rollout) string {
	step := stepOf(r)
	if step == nil {
		return ""
	}
	w := r.Plan.Waves[r.Cursor.Wave]
	return fmt.Sprintf("wave %d/%d %s, step %d/%d: %s", r.Cursor.Wave+1, len(r.Plan.Waves), waveText(w), r.Cursor.Step+1, len(w.Steps), stepText(*step))
}

// needsApproval tells whether a rollout waits for somebody to approve.
func needsApproval(r *rollout.Rollout) bool {
	step := stepOf(r)
	return r.Phase == rollout.PhaseRunning && step != nil && step.Pause != nil && step.Pause.Approval && !r.Cursor.Approved
}

// wayOut names the command that ends what a rollout waits for, empty when it
// waits for nobody.
func wayOut(r *rollout.Rollout) string {
	back := "; routectl rollout abort " + r.ID + " goes back"
	switch {
	case r.Phase.Final() || r.Phase == rollout.PhaseReturning:
		return ""
	case r.Hold != nil && r.Hold.Operator:
		return "routectl rollout resume " + r.ID + " goes on" + back
	case needsApproval(r):
		return "routectl rollout approve " + r.ID + " goes on" + back
	case r.Hold != nil:
		return "it goes on by itself once that is there; routectl rollout promote " + r.ID + " goes on without" + back
	}
	return ""
}

// howLong is the time from one moment to another, for people.
func howLong(from, to time.Time) string {
	d := max(0, to.Sub(from))
	if d < 10*time.Second {
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
