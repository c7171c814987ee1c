package analysis

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	mostFindings = 50
	mostNamed    = 3 // of what is missing, in one line
)

// Severities from which on a finding prevents a pass, and is a failure.
const (
	holding = 4
	failing = 8
)

// severity orders findings: the highest decides.
func severity(f *finding) int {
	switch {
	case f.DryRun && f.Verdict == Fail:
		return holding - 1
	case f.DryRun && f.Verdict == Inconclusive:
		return holding - 2
	case f.DryRun:
		return 0
	case f.Verdict == Fail:
		return failing
	case f.Verdict == Inconclusive && f.Metric == "ratio":
		return holding + 3
	case f.distrust:
		return holding + 2
	case f.suspect:
		return holding + 1
	case f.Verdict == Inconclusive:
		return holding
	}
	return 0
}

// rank puts a finding in its place: the worst first.
type rank struct {
	severity int
	near     float64 // to what it needs
	*finding
}

func (f *finding) rank() rank {
	near := f.Evidence / f.Needed
	if f.Metric == "requests" {
		near = -near // the fewer, the worse
	}
	return rank{severity(f), near, f}
}

// worse orders ranks without ties.
func worse(a, b rank) int {
	if a.severity != b.severity || a.near != b.near {
		return cmp.Or(cmp.Compare(b.severity, a.severity), cmp.Compare(b.near, a.near))
	}
	return cmp.Or(
		cmp.Compare(b.Effect, a.Effect),
		cmp.Compare(a.Group, b.Group),
		cmp.Compare(a.Route, b.Route),
		cmp.Compare(a.Metric, b.Metric),
	)
}

// result draws the conclusion.
func (j *judge) result() Result {
	ranks := make([]rank, len(j.found))
	for i := range j.found {
		ranks[i] = j.found[i].rank()
	}
	slices.SortFunc(ranks, worse)
	res := Result{Verdict: Pass}
	failed := 0
	var missing []string
	for _, r := range ranks {
		switch {
		case r.severity == failing:
			failed++
		case r.severity >= holding && len(missing) < mostNamed:
			missing = append(missing, r.text())
		case r.severity >= holding:
			missing = append(missing, "") // only counted
		}
	}
	missing = append(missing, j.short()...)
	switch {
	case failed > 0:
		res.Verdict, res.Why = Fail, "fail: "+ranks[0].text()
		if failed > 1 {
			res.Why += fmt.Sprintf(", and %d more", failed-1)
		}
	case len(missing) > 0:
		res.Verdict, res.Why = Inconclusive, "inconclusive: "+strings.Join(missing[:min(len(missing), mostNamed)], "; ")
		if more := len(missing) - mostNamed; more > 0 {
			res.Why += fmt.Sprintf("; and %d more", more)
		}
	default:
		res.Why = fmt.Sprintf("pass: nothing is worse in %s requests of the candidate and %s of stable within %s",
			count(j.candidate), count(j.stable), asDuration(min(j.of.Seconds, 1e9)).Round(time.Second))
	}
	for _, r := range ranks[:min(len(ranks), mostFindings)] {
		r.Why = r.text()
		res.Findings = append(res.Findings, r.Finding)
	}
	return res
}

// short tells what the whole lacks for a pass.
func (j *judge) short() []string {
	missing := j.missing
	if len(j.of.Groups) == 0 {
		missing = append(missing, "no group reported")
	}
	least := float64(j.MinRequests)
	if len(j.of.Groups) > 0 && j.candidate < least {
		missing = append(missing, fmt.Sprintf("the candidate has %s of %s requests in all", count(j.candidate), count(least)))
	}
	if len(j.of.Groups) > 0 && j.stable < least {
		missing = append(missing, fmt.Sprintf("stable has %s of %s requests in all", count(j.stable), count(least)))
	}
	if !(j.of.Seconds >= j.MinSeconds) {
		missing = append(missing, fmt.Sprintf("%.0f of %.0f seconds are over", max(j.of.Seconds, 0), j.MinSeconds))
	}
	return missing
}

// text is the finding in one line.
func (f *finding) text() string {
	where := f.Route + " in " + f.Group
	if f.Route == "" {
		where = "all requests in " + f.Group
	}
	switch f.Metric {
	case "requests":
		return f.requestsText()
	case "ratio":
		text := fmt.Sprintf("the candidate has %s of the %s in group %s, and was to have %s",
			percent(f.Candidate), cmp.Or(f.note, "keys"), f.Group, percent(f.Stable))
		if f.Verdict == Inconclusive {
			text += ": the comparison cannot be trusted"
		}
		return text + f.evidenceText()
	case "latency":
		return fmt.Sprintf("%s: p%g %s of %s requests, stable %s of %s%s", where, 100*f.Quantile,
			latencyText(f.Candidate), count(f.candidateOf), latencyText(f.Stable), count(f.stableOf), f.evidenceText())
	}
	stable := "stable"
	if f.note != "" {
		stable = f.note
	}
	return fmt.Sprintf("%s: %s %s of %s requests, %s %s of %s%s", where, f.Metric,
		percent(f.Candidate), count(f.candidateOf), stable, percent(f.Stable), count(f.stableOf), f.evidenceText())
}

func (f *finding) requestsText() string {
	if f.Route == "" {
		return fmt.Sprintf("group %s has %s of %d requests of the candidate", f.Group, count(f.Candidate), f.needs)
	}
	text := fmt.Sprintf("%s has %s of %d requests of the candidate in group %s", f.Route, count(f.Candidate), f.needs, f.Group)
	if f.Candidate == 0 && f.Stable >= float64(f.needs) {
		text += fmt.Sprintf(", stable %s: perhaps it was removed", count(f.Stable))
	}
	return text
}

// evidenceText tells how sure it is, where the effect counts.
func (f *finding) evidenceText() string {
	if f.Evidence == 0 {
		return ""
	}
	text := fmt.Sprintf(" (e-value %.2g, needs %.2g)", f.Evidence, f.Needed)
	switch {
	case f.distrust:
		return text + ": does not count, for the share of keys is off"
	case f.suspect:
		return text + ": more requests will tell"
	}
	return text
}

// percent shows a share, with as many digits as it takes to tell it from none.
func percent(share float64) string {
	p := 100 * share
	digits := 1
	for p > 0 && digits < 4 && p < 2*math.Pow10(-digits) {
		digits++
	}
	return strconv.FormatFloat(p, 'f', digits, 64) + " %"
}

// count shows a number with commas.
func count(n float64) string {
	if n >= 1e15 {
		return strconv.FormatFloat(n, 'g', 3, 64)
	}
	s := strconv.FormatFloat(math.Round(n), 'f', 0, 64)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// latencyText shows seconds with three digits.
func latencyText(seconds float64) string {
	d := asDuration(seconds)
	unit := time.Duration(1)
	for unit*1000 <= d {
		unit *= 10
	}
	return d.Round(unit).String()
}
