package analysis

import (
	"fmt"
	"math"
	"testing"
)

// TestBounded: what hurts is kept, of evidence too long for a record, and JSON can say it.
func TestBounded(t *testing.T) {
	r := Result{Verdict: Fail}
	for n := range 500 {
		r.Findings = append(r.Findings, Finding{Route: fmt.Sprint(n), Verdict: Pass})
	}
	for n := range MaxFindings {
		r.Findings = append(r.Findings, Finding{Route: fmt.Sprint("dry", n), Verdict: Fail, DryRun: true})
	}
	r.Findings = append(r.Findings,
		Finding{Route: "unsure", Verdict: Inconclusive, Evidence: math.NaN()},
		Finding{Route: "bad", Verdict: Fail, Effect: math.Inf(1)})
	got := r.Bounded().Findings
	if len(got) != MaxFindings || got[0].Route != "bad" || got[1].Route != "unsure" || got[2].Route != "dry0" {
		t.Fatalf("%d findings, first %+v", len(got), got[:min(3, len(got))])
	}
	if got[0].Effect != math.MaxFloat64 || got[1].Evidence != 0 {
		t.Errorf("%+v", got[:2])
	}
	if len(r.Findings) != 552 || r.Findings[0].Route != "0" || !math.IsInf(r.Findings[551].Effect, 1) {
		t.Error("what was given was changed")
	}
}
