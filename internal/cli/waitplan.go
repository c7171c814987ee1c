package cli

import (
	"errors"
	"fmt"
	"strings"

	"routerd.dev/internal/rollout"
)

// step says what is new about a rollout that has steps and has not ended. The
// error says what it waits for.
func (p *progress) step(v *rollout.View, r rollout.Rollout) error {
	if r.Phase != rollout.PhaseReturning {
		p.passed(r)
	}
	switch r.Phase {
	case rollout.PhaseRunning:
		p.once("phase", "")
	case rollout.PhaseReturning:
		p.once("phase", "goes back: "+returnWhy(&r))
	default:
		p.once("phase", phaseText(r))
		p.preparing(v, r)
	}
	for _, g := range r.Scope(v.Groups) {
		p.once("group "+g, fmt.Sprintf("  %-20s %s", g, groupText(v.Groups[g])))
	}
	if step, e := stepOf(&r), r.Evidence; e != nil && step != nil && (step.Analysis != nil || step.Bake != nil || step.Pause != nil && !r.Judged.IsZero()) {
		p.once("verdict "+placeText(&r), fmt.Sprintf("  analysis: %s%s", e.Verdict, colon(strings.Join(failures(e), "; "))))
	}
	p.holding(&r)
	return errors.New(p.waitsFor(&r))
}

// passed says every step up to the present one, also those that went by
// between two looks.
func (p *progress) passed(r rollout.Rollout) {
	at := r.Cursor
	for p.at.Wave < len(r.Plan.Waves) {
		if p.at.Step >= len(r.Plan.Waves[p.at.Wave].Steps) {
			p.at = rollout.Cursor{Wave: p.at.Wave + 1}
			continue
		}
		if r.Phase != rollout.PhaseDone && (p.at.Wave > at.Wave || p.at.Wave == at.Wave && p.at.Step > at.Step) {
			return
		}
		r.Cursor = p.at
		p.talk("%s", placeText(&r))
		p.at.Step++
	}
}

// preparing says how far the instances of the present wave are.
func (p *progress) preparing(v *rollout.View, r rollout.Rollout) {
	if stepOf(&r) != nil {
		r.Groups = r.Plan.Waves[r.Cursor.Wave].Groups
	}
	r.Epochs = nil // What it committed before is not what it prepares.
	p.instances(v, r)
}

// holding says how a rollout goes on that waits for an operator.
func (p *progress) holding(r *rollout.Rollout) {
	text := ""
	switch {
	case phaseOf(r) == wantsApproval:
		text = "waits for approval"
	case r.Hold != nil:
		text = fmt.Sprintf("held by %s: %s", r.Hold.By, r.Hold.Why)
	}
	if p.once("hold", text) && text != "" {
		p.talk("  %s", wayOut(r))
	}
}

// waitsFor sums up what a rollout waits for.
func (p *progress) waitsFor(r *rollout.Rollout) string {
	switch {
	case r.Phase == rollout.PhaseReturning:
		return "goes back: " + returnWhy(r)
	case phaseOf(r) == wantsApproval:
		return "it waits for approval: routectl rollout approve " + r.ID
	case r.Hold != nil:
		return "held by " + r.Hold.By + ": " + r.Hold.Why
	case r.Phase == rollout.PhaseRunning:
		return placeText(r) + colon(r.Why)
	}
	return p.missing(*r)
}

// once says text when it differs from what was said last about a thing, and
// tells whether it did. What is empty is only noted.
func (p *progress) once(thing, text string) bool {
	key := "/" + thing // no instance has such a name
	if p.said[key] == text {
		return false
	}
	p.said[key] = text
	if text != "" {
		p.talk("%s", text)
	}
	return true
}

// groupText says what a group was assigned.
func groupText(a rollout.Assignment) string {
	text := "revision " + dash(a.Stable.Number)
	cand := a.Candidate
	if cand == nil {
		return text
	}
	var on []string
	if len(cand.Instances) > 0 {
		on = append(on, "on "+strings.Join(cand.Instances, ", "))
	}
	if share := candidateShare(cand); share != "-" {
		on = append(on, "for "+share)
	}
	return fmt.Sprintf("%s, and revision %d %s", text, cand.Number, strings.Join(on, " and "))
}

// wentBack is the error of a rollout that went back: why, on what evidence, and
// how long it took.
func (p *progress) wentBack(r rollout.Rollout) error {
	p.out.Behind = nil
	text := "went back: " + returnWhy(&r)
	if ret := r.Return; ret != nil {
		for _, f := range failures(ret.Evidence) {
			p.talk("  %s", f)
		}
		if !ret.Over.IsZero() {
			text += fmt.Sprintf(" (every instance is back %s after the decision)", howLong(ret.Decided, ret.Over))
		}
	}
	return fail(ExitFailed, errors.New(text), "routectl rollout status "+r.ID+" shows where to, and the evidence")
}

func returnWhy(r *rollout.Rollout) string {
	if r.Return != nil && r.Return.Why != "" {
		return r.Return.Why
	}
	return r.Why
}

func colon(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}
