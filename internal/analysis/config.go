package analysis

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// A Config says what is compared and how sure a verdict must be. The zero
// value is usable: each field says what zero stands for.
type Config struct {
	// Confidence is the promise: of analyses of a candidate that is no worse
	// than stable, at most 1 − Confidence fail, however often each is looked at.
	// 0 for DefaultConfidence; below 1, at least 0.5.
	Confidence float64 `json:"confidence,omitempty"`

	MinSeconds       float64 `json:"minSeconds,omitempty"`       // no pass before; 0 for 60
	MinRequests      uint64  `json:"minRequests,omitempty"`      // of the candidate and of stable in all, before a pass; 0 for 500
	MinRouteRequests uint64  `json:"minRouteRequests,omitempty"` // of the candidate on each changed route, and of both in each group, before a pass; 0 for 50

	// Metrics alter or switch off what is judged, by its name: errors, connect,
	// notFound, notAllowed, panics, latency, ratio.
	Metrics map[string]Metric `json:"metrics,omitempty"`
}

// A Metric alters how one of them is judged.
type Metric struct {
	Off    bool `json:"off,omitempty"`
	DryRun bool `json:"dryRun,omitempty"` // judged and recorded, and nothing follows from it

	// MinEffect is the least difference that counts: for shares of requests, as
	// a part of all (0.005: half a percent); for latency, relative (0.1: ten
	// percent); for ratio, of the share of keys. 0 for the metric's default:
	// errors and connect 0.005, notFound and notAllowed 0.01, panics 0.0005,
	// ratio none, latency 0.1 and at least 0.2 ms.
	MinEffect float64 `json:"minEffect,omitempty"`
}

// DefaultConfidence is what analyses promise unless told otherwise.
const DefaultConfidence = 0.999

// Metrics are the names that Config.Metrics may have, in the order in which
// they are shown.
func Metrics() []string {
	return []string{"errors", "connect", "notFound", "notAllowed", "panics", "latency", "ratio"}
}

// Validate tells what is wrong with c, each as "field.path: what".
func (c Config) Validate() []string {
	var problems []string
	add := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if !usable(c.Confidence) {
		add("confidence: must be at least 0.5 and below 1")
	}
	if !(c.MinSeconds >= 0) || math.IsInf(c.MinSeconds, 1) {
		add("minSeconds: must be a number of seconds, not below 0")
	}
	off := 0
	for _, name := range slices.Sorted(maps.Keys(c.Metrics)) {
		m := c.Metrics[name]
		if !slices.Contains(Metrics(), name) {
			add("metrics.%s: unknown metric; there are %s", name, strings.Join(Metrics(), ", "))
			continue
		}
		if m.Off && m.DryRun {
			add("metrics.%s.dryRun: must not be set beside off", name)
		}
		switch {
		case name == "latency" && (!(m.MinEffect >= 0) || m.MinEffect > 100):
			add("metrics.%s.minEffect: must be from 0 to 100: 0.1 is ten percent", name)
		case name != "latency" && !(m.MinEffect >= 0 && m.MinEffect < 1):
			add("metrics.%s.minEffect: must be at least 0 and below 1: 0.005 is half a percent", name)
		}
		if name != "ratio" && (m.Off || m.DryRun) {
			off++
		}
	}
	if off == len(Metrics())-1 {
		add("metrics: must leave one besides ratio that is neither off nor a dry run")
	}
	return problems
}

func usable(confidence float64) bool {
	return confidence == 0 || confidence >= 0.5 && confidence < 1
}

// withDefaults puts in what zero stands for. A confidence that Validate
// refuses counts as none.
func (c Config) withDefaults() Config {
	if c.Confidence == 0 || !usable(c.Confidence) {
		c.Confidence = DefaultConfidence
	}
	if !(c.MinSeconds > 0) {
		c.MinSeconds = 60
	}
	if c.MinRequests == 0 {
		c.MinRequests = 500
	}
	if c.MinRouteRequests == 0 {
		c.MinRouteRequests = 50
	}
	return c
}

// effect is the least difference of a metric that counts. Before a bake's
// stable and candidate lies time, in which everything drifts: it takes twice as
// much.
func (c Config) effect(metric string, byDefault float64, before bool) float64 {
	least := byDefault
	if e := c.Metrics[metric].MinEffect; e > 0 {
		least = e
	}
	if before {
		least *= 2
	}
	return least
}

// A Verdict is what an analysis says so far.
type Verdict string

// The verdicts. Only Fail is final: the others may change with more data.
const (
	Pass         Verdict = "pass"
	Fail         Verdict = "fail"
	Inconclusive Verdict = "inconclusive" // not enough data, or data that cannot be trusted
)

// A Result is a verdict with what it rests on.
type Result struct {
	Verdict  Verdict   `json:"verdict"`
	Why      string    `json:"why"`                // one line, for people
	Findings []Finding `json:"findings,omitempty"` // the worst first, at most 50
}

// A Finding is what one metric says of one route, or of all (Route empty), in one group.
type Finding struct {
	Group   string  `json:"group"`
	Route   string  `json:"route,omitempty"`
	Metric  string  `json:"metric"` // one of Metrics, or requests: there are not enough for a pass
	Verdict Verdict `json:"verdict"`
	DryRun  bool    `json:"dryRun,omitempty"`

	Quantile  float64 `json:"quantile,omitempty"` // latency: which one
	Stable    float64 `json:"stable"`             // share of requests, or seconds; ratio: the share wanted; requests: how many
	Candidate float64 `json:"candidate"`          // likewise
	Effect    float64 `json:"effect"`             // candidate − stable, for latency candidate / stable − 1
	Evidence  float64 `json:"evidence"`           // an e-value, 0 where the effect is too small to count; it fails from Needed on
	Needed    float64 `json:"needed"`
	Why       string  `json:"why,omitempty"`
}

// A Comparison is what Judge is asked.
type Comparison struct {
	// Groups names every group of the comparison from its beginning on, also
	// those that reported nothing yet: the error is split among them.
	Groups  map[string]Sample
	Seconds float64 // since the comparison began

	// Wanted is the share of keys, in 1/10000, that the candidate of a group
	// was to get; groups without one are not tested for it.
	Wanted map[string]int

	// Keyless: requests may lack a key, and get stable then. That stable has
	// too many requests is no sign of a wrong share, once there are too many
	// keys to count.
	Keyless bool

	// Before: stable was counted before the candidate, not at the same time
	// (a bake). It takes twice the effect to fail then, and latency is a dry run
	// unless Config.Metrics names it.
	Before bool
}
