//go:build integration

package integration

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"routerd.dev/integration/history"
)

var reportFile = flag.String("report", "", "write what came of the scenarios as JSON into this file")

// How a scenario ended.
const (
	passed = "passed"
	failed = "failed"
	notRun = "not run"
)

// A report is what came of the scenarios; README.md documents it.
type report struct {
	Ground    string    `json:"ground"`    // of scenarios that need none in particular
	GroundWhy string    `json:"groundWhy"` // why it is that
	Started   time.Time `json:"started"`
	Seconds   float64   `json:"seconds"`

	Faults     int `json:"faults"` // scenarios that were run, with repetitions
	Requests   int `json:"requests"`
	Excused    int `json:"excused"`
	Failed     int `json:"failed"`
	Violations int `json:"violations"`
	NotRun     int `json:"notRun"`

	Scenarios []row `json:"scenarios"` // in the order in which they were run
}

// A row is one run of one scenario.
type row struct {
	Scenario   string              `json:"scenario"`
	Ground     string              `json:"ground"`
	Result     string              `json:"result"` // passed, failed, not run
	Why        string              `json:"why,omitempty"`
	Requests   int                 `json:"requests"`
	Excused    int                 `json:"excused"`
	Failed     int                 `json:"failed"`
	Violations []history.Violation `json:"violations"`
	Converged  float64             `json:"convergedSeconds"` // from the fault's end
	Bound      float64             `json:"boundSeconds"`
	Seconds    float64             `json:"seconds"`
	Looked     history.Looked      `json:"looked"` // by the check after it, since the world began
}

func newReport(ground, why string) *report {
	return &report{Ground: ground, GroundWhy: why, Started: time.Now().UTC()}
}

func (r *report) add(w row) {
	if w.Violations == nil {
		w.Violations = []history.Violation{}
	}
	r.Scenarios = append(r.Scenarios, w)
	if w.Result == notRun {
		r.NotRun++
		return
	}
	r.Faults++
	r.Requests += w.Requests
	r.Excused += w.Excused
	r.Failed += w.Failed
	for _, v := range w.Violations {
		r.Violations += v.Times
	}
}

// save writes the file. A soak does so after each scenario: what ends it early,
// a night or an operator, leaves what was found.
func (r *report) save(t *testing.T) {
	t.Helper()
	r.Seconds = time.Since(r.Started).Seconds()
	if *reportFile == "" {
		return
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(*reportFile), 0o755)
	}
	if err == nil {
		err = os.WriteFile(*reportFile, append(b, '\n'), 0o644)
	}
	if err != nil {
		t.Errorf("-report: %v", err)
	}
}

// table is the report for people: one line for each scenario, of all its runs.
func (r *report) table() string {
	type line struct {
		row
		runs, violations int
	}
	var lines []*line
	for _, w := range r.Scenarios {
		i := slices.IndexFunc(lines, func(l *line) bool { return l.Scenario == w.Scenario && l.Ground == w.Ground })
		if i < 0 {
			i = len(lines)
			lines = append(lines, &line{row: row{Scenario: w.Scenario, Ground: w.Ground, Bound: w.Bound, Result: w.Result, Why: w.Why}})
		}
		l := lines[i]
		l.runs++
		l.Requests, l.Excused, l.Failed = l.Requests+w.Requests, l.Excused+w.Excused, l.Failed+w.Failed
		l.Converged = max(l.Converged, w.Converged)
		if w.Result == failed {
			l.Result, l.Why = failed, w.Why
		}
		for _, v := range w.Violations {
			l.violations += v.Times
		}
	}
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "\nSCENARIO\tGROUND\tRESULT\tRUNS\tREQUESTS\tEXCUSED\tFAILED\tVIOLATIONS\tONE AGAIN AFTER\tBOUND")
	for _, l := range lines {
		if l.Result == notRun {
			fmt.Fprintf(tw, "%s\t%s\t%s: %s\n", l.Scenario, l.Ground, l.Result, l.Why)
			continue
		}
		result := l.Result
		if l.Why != "" {
			result += ": " + l.Why
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%.1fs\t%.0fs\n", l.Scenario, l.Ground, result, l.runs, l.Requests, l.Excused, l.Failed, l.violations, l.Converged, l.Bound)
	}
	fmt.Fprintf(tw, "all\t%s\t\t%d\t%d\t%d\t%d\t%d\t\tin %.0fs\n", r.Ground, r.Faults, r.Requests, r.Excused, r.Failed, r.Violations, r.Seconds)
	_ = tw.Flush() // a Builder takes everything
	if r.Ground == "processes" {
		fmt.Fprintf(&b, "on PROCESSES, not in containers (%s)\n", r.GroundWhy)
	}
	return b.String() + "\n"
}
