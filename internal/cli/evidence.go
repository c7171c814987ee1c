package cli

import (
	"fmt"
	"strings"
	"time"

	"routerd.dev/internal/analysis"
)

// evidenceTable writes what an analysis rests on, in the order of its weight.
func evidenceTable(w *table, res *analysis.Result) {
	w.line("%s: %s", res.Verdict, strings.TrimPrefix(res.Why, string(res.Verdict)+": "))
	if len(res.Findings) == 0 {
		return
	}
	w.row("GROUP", "ROUTE", "METRIC", "STABLE", "CANDIDATE", "EFFECT", "VERDICT")
	for i := range res.Findings {
		f := &res.Findings[i]
		verdict := string(f.Verdict)
		if f.DryRun {
			verdict += " (dry run)"
		}
		w.row(f.Group, orDash(f.Route), metricText(f), sideText(f, f.Stable), sideText(f, f.Candidate), effectText(f), verdict)
	}
}

// failures are the findings for which a rollout goes back, as lines.
func failures(res *analysis.Result) []string {
	if res == nil {
		return nil
	}
	var out []string
	for i := range res.Findings {
		f := &res.Findings[i]
		if f.Verdict != analysis.Fail || f.DryRun {
			continue
		}
		if f.Why != "" {
			out = append(out, f.Why)
			continue
		}
		where := "all routes"
		if f.Route != "" {
			where = "route " + f.Route
		}
		out = append(out, fmt.Sprintf("%s, %s: %s %s, stable %s (%s)", f.Group, where, metricText(f), sideText(f, f.Candidate), sideText(f, f.Stable), effectText(f)))
	}
	return out
}

// The metrics whose values are no share of requests.
const (
	metricLatency  = "latency"  // seconds
	metricRequests = "requests" // how many there are, of those that a pass needs
)

func metricText(f *analysis.Finding) string {
	if f.Metric == metricLatency && f.Quantile > 0 {
		return "latency p" + trimZeros(fmt.Sprintf("%.1f", 100*f.Quantile))
	}
	return f.Metric
}

// sideText writes what one side did.
func sideText(f *analysis.Finding, v float64) string {
	switch f.Metric {
	case metricLatency:
		return time.Duration(v * float64(time.Second)).Round(10 * time.Microsecond).String()
	case metricRequests:
		return fmt.Sprintf("%.0f", v)
	}
	return trimZeros(fmt.Sprintf("%.3f", 100*v)) + " %"
}

func effectText(f *analysis.Finding) string {
	switch f.Metric {
	case metricLatency:
		return fmt.Sprintf("%+.0f %%", 100*f.Effect)
	case metricRequests:
		return fmt.Sprintf("%.0f wanted", f.Needed)
	}
	return trimZeros(fmt.Sprintf("%+.3f", 100*f.Effect)) + " points"
}

func trimZeros(s string) string {
	if !strings.Contains(s, ".") {
		return s
	}
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
