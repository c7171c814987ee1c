package rollout

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"routerd.dev/internal/analysis"
)

const defaultMinSeconds = 60 // of an analysis, as analysis.Config says

// analyse compares the candidate with stable, and goes on, back or waits.
func (d *draft) analyse(r *Rollout, ms []move, s *AnalysisStep) {
	if r.Full {
		d.goOn(r)
		return
	}
	d.look(d.now.Add(watchEvery))
	result := judge(s.Config, d.comparison(r, ms, false))
	checks := d.checked(r, s.Checks)
	d.note(r, result, watchEvery)
	waited := d.now.Sub(r.Cursor.Since)
	limit, least := time.Duration(s.InconclusiveLimit), seconds(cmp.Or(s.MinSeconds, defaultMinSeconds))
	switch {
	case d.ruled(r, ms, result, checks, "the analysis failed: "):
	case result.Verdict == analysis.Pass && checks.waits == "":
		r.unhold()
		d.goOn(r)
	case limit > 0 && waited >= limit:
		d.fail(r, fmt.Sprintf("the analysis was inconclusive for %v: %s", limit, cmp.Or(checks.waits, bare(result))))
	case result.Verdict == analysis.Pass:
		d.waitFor(r, checks.waits)
	case waited > least+2*watchEvery:
		d.waitFor(r, fmt.Sprintf("the analysis is inconclusive after %v: promote it, abort it, or wait for more data", least))
	default:
		r.unhold()
		d.stay(r, r.Why)
	}
}

// watchBake watches what was committed, beside what was stable before it.
func (d *draft) watchBake(r *Rollout, ms []move, s *BakeStep) {
	if r.Full {
		d.goOn(r)
		return
	}
	elapsed := d.now.Sub(r.Cursor.Since)
	if s.For == 0 && s.Requests == 0 && len(s.Checks) == 0 {
		d.goOn(r)
		return
	}
	every := watchEvery
	if elapsed >= time.Duration(s.For) {
		every = d.waitEvery(r) // It may wait for days.
	}
	d.look(d.now.Add(every))
	of := d.comparison(r, ms, true)
	result := judge(r.JudgedBy(), of)
	checks := d.checked(r, s.Checks)
	d.note(r, result, every)
	var served uint64
	for _, sample := range of.Groups {
		served += sample.All.Candidate.Requests
	}
	switch {
	case d.ruled(r, ms, result, checks, "it did worse after the commit: "):
	case elapsed < time.Duration(s.For):
		r.unhold()
		d.stay(r, "it bakes until "+r.Cursor.Since.Add(time.Duration(s.For)).Format(time.TimeOnly))
		d.look(r.Cursor.Since.Add(time.Duration(s.For)))
	case served < s.Requests:
		d.waitFor(r, fmt.Sprintf("it bakes until it served %d requests", s.Requests))
	case served == 0 && s.For > 0:
		d.waitFor(r, idleText(of)) // A time in which nobody asked is no success.
	case checks.waits != "":
		d.waitFor(r, checks.waits)
	default:
		r.unhold()
		d.goOn(r)
	}
}

// idleText says that a bake is over in which no request was counted, and how it
// goes on.
func idleText(of analysis.Comparison) string {
	if len(of.Groups) == 0 {
		return "it baked, and nothing is counted where nothing was served before: promote it, or abort it"
	}
	return "it baked, and nobody asked the new revision for anything: promote it, abort it, or wait for requests"
}

// ruled does what an analysis and a bake do alike: a failure goes back, before
// anything else; instances that are away and checks that cannot tell hold. It
// tells whether there was any.
func (d *draft) ruled(r *Rollout, ms []move, result analysis.Result, checks opinion, failed string) bool {
	switch {
	case result.Verdict == analysis.Fail:
		d.fail(r, failed+bare(result))
	case checks.failed != "":
		d.fail(r, checks.failed)
	case len(lost(ms)) > 0:
		d.waitFor(r, awayText(lost(ms)))
	case checks.holds != "":
		d.waitFor(r, checks.holds)
	default:
		return false
	}
	return true
}

// waitFor holds r until what it names has come.
func (d *draft) waitFor(r *Rollout, why string) {
	d.holdUntil(r, why)
	d.stay(r, why)
}

// awayText says why a step waits for the instances of groups.
func awayText(gone []move) string {
	out := make([]string, len(gone))
	for i, m := range gone {
		out[i] = fmt.Sprintf("group %s has %d of the %d instances of its last commit: it goes on when they are back; abort goes back now", m.group, len(m.regs), m.from.members())
	}
	return strings.Join(out, "; ")
}

// note writes what an analysis found, and that it is why r stands where it is.
func (d *draft) note(r *Rollout, result analysis.Result, look time.Duration) {
	if d.evidence(r, result, look) {
		r.Why = fmt.Sprintf("%s so far: %s", result.Verdict, bare(*r.Evidence))
	}
}

// evidence writes what was found: at once when the verdict changed, else at every
// other look, or each would be a write that calls for another look.
func (d *draft) evidence(r *Rollout, result analysis.Result, look time.Duration) bool {
	same := r.Evidence != nil && r.Evidence.Verdict == result.Verdict
	if same && d.now.Sub(r.Judged) < 2*look && !r.Judged.After(d.now) {
		return false
	}
	result = result.Bounded()
	result.Why = brief(result.Why, maxWhy)
	r.Evidence, r.Judged = &result, d.now
	return true
}

// judge says whether what is new does worse.
func judge(c analysis.Config, of analysis.Comparison) analysis.Result {
	if len(of.Groups) == 0 {
		return analysis.Result{Verdict: analysis.Inconclusive, Why: "no group has a candidate: a canary needs two instances at least"}
	}
	return analysis.Judge(c, of)
}

// comparison is what the instances of r's wave counted: a candidate beside
// stable, or, before, what was committed beside what was there before it.
func (d *draft) comparison(r *Rollout, ms []move, before bool) analysis.Comparison {
	of := analysis.Comparison{Groups: d.samples(r, ms, before), Wanted: make(map[string]int), Before: before}
	began := r.Cursor.Since
	for _, m := range ms {
		if _, ok := of.Groups[m.group]; ok && m.from.Instant.After(began) {
			began = m.from.Instant
		}
		if c := m.from.Candidate; c != nil && !before && len(c.Instances) == 0 && c.Permyriad > 0 {
			of.Wanted[m.group] = c.Permyriad
			of.Keyless = of.Keyless || c.Key != "" && c.Key != "client"
		}
	}
	of.Seconds = max(d.now.Sub(began).Seconds(), 0)
	return of
}

// Compared is what v's instances counted for the present step of r, as the step
// judges it, and the measures that it is made of. It has no groups where
// nothing is compared.
func Compared(v *View, r *Rollout, now time.Time) (analysis.Comparison, []Measure) {
	if r.Present() == nil {
		return analysis.Comparison{}, nil
	}
	d := newDraft(v, now)
	ms, committed := d.waveMoves(r), r.pastCommit()
	return d.comparison(r, ms, committed), d.counted(r, ms, committed)
}

// samples adds what the instances of each group counted since the commit in force.
func (d *draft) samples(r *Rollout, ms []move, before bool) map[string]analysis.Sample {
	out := make(map[string]analysis.Sample)
	for _, m := range ms {
		if m.compares(r, before) {
			out[m.group] = analysis.Sample{}
		}
	}
	for _, x := range d.counted(r, ms, before) {
		s := out[x.Group]
		s.Merge(&x.Sample)
		out[x.Group] = s
	}
	return out
}

// compares tells that r has m's group serve a candidate, or, before, what is to
// be compared with what was there before it.
func (m *move) compares(r *Rollout, before bool) bool {
	return m.from.Rollout == r.ID && (before && !m.from.Against.IsZero() || !before && m.from.Candidate != nil)
}

// counted lists, by instance, what was counted since the commit in force. What
// another process or an earlier epoch counted is not of it.
func (d *draft) counted(r *Rollout, ms []move, before bool) (out []Measure) {
	epochs := make(map[string]Assignment)
	for _, m := range ms {
		if m.compares(r, before) {
			epochs[m.group] = m.from
		}
	}
	for _, name := range sorted(d.v.Measures) {
		x := d.v.Measures[name]
		a, ok := epochs[x.Group]
		if _, registered := d.v.Ready[x.Group][name]; !registered {
			continue // who has no ready key in the group may not be of it
		}
		if !ok || x.Epoch != a.Epoch || x.Boot != d.v.Instances[name].Boot || x.New != r.To.Digest {
			continue
		}
		out = append(out, x)
	}
	return out
}

// An opinion is what others say of a step: it failed, it holds, or they have
// not all passed it.
type opinion struct{ failed, holds, waits string }

// checked sums up what the checks of r's present step answered.
func (d *draft) checked(r *Rollout, checks []Check) opinion {
	var o opinion
	got := d.v.Checks[r.ID]
	if got.Wave != r.Cursor.Wave || got.Step != r.Cursor.Step {
		got.Results = nil // of another step
	}
	for i := range checks {
		c := &checks[i]
		res := got.Results[c.Name]
		switch {
		case c.DryRun:
		case res.Failed > c.FailureLimit:
			o.failed = cmp.Or(o.failed, fmt.Sprintf("check %s failed %d times in a row%s", c.Name, res.Failed, valueText(res)))
		case res.Errors > c.ErrorLimit:
			o.holds = cmp.Or(o.holds, fmt.Sprintf("check %s cannot be asked: %s", c.Name, brief(res.Error, 300)))
		case res.Inconclusive > c.InconclusiveLimit:
			o.holds = cmp.Or(o.holds, fmt.Sprintf("check %s answers without a value", c.Name))
		case res.Passed < max(c.Passes, 1):
			o.waits = cmp.Or(o.waits, fmt.Sprintf("check %s has not passed yet", c.Name))
		}
	}
	return o
}

func valueText(res CheckResult) string {
	if res.Value == nil {
		return ""
	}
	return fmt.Sprintf(", last with %v", *res.Value)
}

// seconds is s, or what is as good as forever.
func seconds(s float64) time.Duration {
	const most = 100 * 365 * 24 * time.Hour
	return time.Duration(min(s, most.Seconds()) * float64(time.Second))
}

// bare is what a result says, without its verdict in front.
func bare(r analysis.Result) string { return strings.TrimPrefix(r.Why, string(r.Verdict)+": ") }
