package simulate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// A Transcript is what happened, line by line, and how it ended.
type Transcript struct {
	Lines   []Line           `json:"lines"`
	Rollout rollout.Rollout  `json:"rollout"`          // of the switch, as it ended or stood at the end
	Serving map[string]int64 `json:"serving"`          // by instance that lives: the revision that most of its requests get
	Took    time.Duration    `json:"took"`             // until the rollout ended, or the simulation was cut off
	Over    bool             `json:"over"`             // the rollout ended
	Broken  []string         `json:"broken,omitempty"` // laws that did not hold: defects of routerd
	Error   string           `json:"error,omitempty"`  // the scenario cannot be played: nothing else is filled in
}

// A Line is one thing that happened.
type Line struct {
	At   time.Duration `json:"at"` // since the start
	Who  string        `json:"who"`
	What string        `json:"what"`
}

// String gives a line for each, as "+1.5s  controller  commits …", and the end.
func (t Transcript) String() string {
	if t.Error != "" {
		return t.Error + "\n"
	}
	ats := make([]string, len(t.Lines))
	wide, who := 0, 0
	for i, l := range t.Lines {
		ats[i] = "+" + l.At.Round(time.Millisecond).String()
		wide, who = max(wide, len(ats[i])), max(who, len(l.Who))
	}
	var b strings.Builder
	for i, l := range t.Lines {
		fmt.Fprintf(&b, "%*s  %-*s  %s\n", wide, ats[i], who, l.Who, l.What)
	}
	b.WriteString("----\n")
	how := "is " + string(t.Rollout.Phase)
	if !t.Over {
		how += " still"
	}
	fmt.Fprintf(&b, "the rollout %s after %v", how, t.Took.Round(time.Millisecond))
	if t.Rollout.Why != "" {
		fmt.Fprintf(&b, ": %s", t.Rollout.Why)
	}
	b.WriteString("\n")
	if h := t.Rollout.Hold; h != nil {
		fmt.Fprintf(&b, "it waits: %s\n", h.Why)
	}
	if r := t.Rollout.Return; r != nil && !r.Over.IsZero() {
		fmt.Fprintf(&b, "the way back took %v from the decision to the last instance\n", r.Over.Sub(r.Decided).Round(time.Millisecond))
	}
	for _, n := range sorted(t.Serving) {
		fmt.Fprintf(&b, "%s serves revision %d\n", n, t.Serving[n])
	}
	for _, x := range t.Broken {
		fmt.Fprintf(&b, "a law of routerd did not hold, which is a defect: %s\n", x)
	}
	return b.String()
}

// lines says what a change did to a fleet that was as before.
func lines(before *Fleet, c *rollout.Change) []string {
	var out []string
	say := func(format string, a ...any) { out = append(out, fmt.Sprintf(format, a...)) }
	for _, p := range c.Prepares {
		old, had := before.prepares.m[p.Group]
		switch {
		case had && old.Nonce == p.Nonce && !slices.Equal(old.Evict, p.Evict):
			say("group %s is told to do without %s", p.Group, strings.Join(p.Evict, ", "))
		case p.First != "":
			say("asks %s to prepare %s first", p.First, revisions(p.Set))
		default:
			say("asks group %s to prepare %s", p.Group, revisions(p.Set))
		}
	}
	for _, a := range c.Groups {
		say("commits %s", assignment(a))
		if o := a.Override; o != nil {
			say("overrides a rule in group %s, without %s: %s", a.Group, strings.Join(o.Instances, ", "), o.Why)
		}
	}
	for _, g := range c.Withdraw {
		if !slices.ContainsFunc(c.Groups, func(a rollout.Assignment) bool { return a.Group == g }) {
			say("withdraws what group %s was to prepare", g)
		}
	}
	for _, x := range c.Condemn {
		say("condemns revision %d: %s", before.number(x.Digest), x.Why)
	}
	for _, r := range c.Rollouts {
		if s := progress(before, r); s != "" {
			say("%s", s)
		}
	}
	return out
}

// progress says how r went on; nothing when only its deadlines moved.
func progress(before *Fleet, r rollout.Rollout) string {
	var was rollout.Rollout
	if i := slices.IndexFunc(before.rollouts, func(o rollout.Rollout) bool { return o.ID == r.ID }); i >= 0 {
		was = before.rollouts[i]
	}
	verdict := func(r rollout.Rollout) string {
		if r.Evidence == nil || r.Phase != rollout.PhaseRunning {
			return ""
		}
		return string(r.Evidence.Verdict)
	}
	hold := func(r rollout.Rollout) string {
		if r.Hold == nil {
			return ""
		}
		return r.Hold.Why
	}
	same := was.Phase == r.Phase && was.Cursor.Wave == r.Cursor.Wave && was.Cursor.Step == r.Cursor.Step &&
		verdict(was) == verdict(r) && hold(was) == hold(r)
	if same && (verdict(r) != "" || was.Why == r.Why) {
		return ""
	}
	s := fmt.Sprintf("%s %s is %s", r.Kind, r.ID, r.Phase)
	if r.Kind == rollout.IntentAbort || !isSwitch(r.Kind) {
		s = fmt.Sprintf("%s is answered", r.Kind)
	}
	if step := r.Present(); step != nil {
		s += fmt.Sprintf(", wave %d, step %d, %s", r.Cursor.Wave+1, r.Cursor.Step+1, step.Kind())
	}
	switch {
	case was.Phase == r.Phase && verdict(r) != verdict(was):
		s += fmt.Sprintf(": the data so far: %s", r.Evidence.Why)
	case r.Why != "":
		s += ": " + r.Why
	}
	if h := hold(r); h != "" && h != r.Why {
		s += "; it waits: " + h
	}
	return s
}

func isSwitch(k rollout.IntentKind) bool {
	return k == rollout.IntentSwitch || k == rollout.IntentRollback
}

func assignment(a rollout.Assignment) string {
	s := fmt.Sprintf("group %s to epoch %d: revision %d", a.Group, a.Epoch, a.Stable.Number)
	if c := a.Candidate; c != nil {
		s += fmt.Sprintf(", and revision %d", c.Number)
		switch {
		case len(c.Instances) > 0:
			s += " on " + strings.Join(c.Instances, ", ")
		case c.Permyriad > 0:
			s += fmt.Sprintf(" for %g %% of the requests", float64(c.Permyriad)/100)
		}
		if c.Match != nil {
			s += " for testers"
		}
	}
	return s
}

func revisions(set []version.Ref) string {
	out := make([]string, len(set))
	for i, r := range set {
		out[i] = fmt.Sprint(r.Number)
	}
	return "{" + strings.Join(out, " ") + "}"
}
