package rollout

import (
	"encoding"
	"fmt"
	"time"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/version"
)

// A Strategy says by which steps a revision reaches the fleet, and what sends
// it back. It is data: package strategyfile reads it, Step plays it. Validate
// tells what is wrong with one.
type Strategy struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`

	// Waves follow each other: the groups of a wave move together, one step
	// at a time, and the next wave begins when the last step is over.
	Waves []Wave `json:"waves"`

	Straggler      Straggler `json:"straggler,omitempty"`      // abort, wait or evict; empty for abort
	PrepareTimeout Duration  `json:"prepareTimeout,omitempty"` // of each wave; 0 for the fleet's setting
	MaxUnready     Quantity  `json:"maxUnready,omitempty"`     // of a group at once, when stragglers are evicted; zero for 1; never all

	// OnControllerLoss says what a controller does that finds the rollout left
	// alone for longer than ControllerGrace: hold (default), or go back.
	OnControllerLoss Loss     `json:"onControllerLoss,omitempty"`
	ControllerGrace  Duration `json:"controllerGrace,omitempty"` // 0 for 1 min; 5 s at least

	// ManualRollback: a failure holds the rollout for an operator instead of
	// going back by itself.
	ManualRollback bool `json:"manualRollback,omitempty"`
}

// Loss is a policy for the time without a controller.
type Loss string

// The policies. Empty stands for hold.
const (
	LossHold     Loss = "hold"
	LossRollback Loss = "rollback"
)

// A Wave moves some groups.
type Wave struct {
	Name   string     `json:"name,omitempty"`
	Groups []string   `json:"groups"` // names, or "*" for those that no other wave names
	Steps  []PlanStep `json:"steps"`

	// OneByOne: its groups do not move together but one after the other, in the
	// order named, those of "*" by name. A rollout's Plan has a wave for each
	// then.
	OneByOne bool `json:"oneByOne,omitempty"`
}

// A PlanStep is one thing to do; exactly one field is set. Canary, Share and
// Match come before Commit, Bake after it, and every wave has one Commit.
type PlanStep struct {
	Canary   *CanaryStep   `json:"canary,omitempty"`
	Share    *ShareStep    `json:"share,omitempty"`
	Match    *MatchStep    `json:"match,omitempty"`
	Analysis *AnalysisStep `json:"analysis,omitempty"`
	Pause    *PauseStep    `json:"pause,omitempty"`
	Commit   *CommitStep   `json:"commit,omitempty"`
	Bake     *BakeStep     `json:"bake,omitempty"`
}

// CanaryStep gives the candidate some instances of each group of the wave,
// by name: at least one, and never all. Who is one stays one.
type CanaryStep struct {
	Instances Quantity `json:"instances"`
}

// ShareStep gives the candidate a share of the requests of each group of the
// wave. A key that has the candidate keeps it while the share grows.
type ShareStep struct {
	Percent float64 `json:"percent"`       // 0 to 100, in steps of 0.01
	Key     string  `json:"key,omitempty"` // client (default), header:NAME or cookie:NAME; requests without it get stable
}

// MatchStep gives the candidate the requests of testers, whatever the share.
// It stays in force until the wave's commit.
type MatchStep struct {
	Match
}

// A Match tells a tester's request: that has this header or cookie, with this
// value if one is named.
type Match struct {
	Header string `json:"header,omitempty"`
	Cookie string `json:"cookie,omitempty"`
	Value  string `json:"value,omitempty"` // empty for any
}

// AnalysisStep compares candidate and stable until the candidate passed or
// failed. Without enough data it is inconclusive and holds; InconclusiveLimit
// says for how long.
type AnalysisStep struct {
	analysis.Config

	// After it has been inconclusive for so long the rollout goes back; 0 for
	// never: it holds for an operator.
	InconclusiveLimit Duration `json:"inconclusiveLimit,omitempty"`
	Checks            []Check  `json:"checks,omitempty"` // asked of others, besides
}

// PauseStep waits. With Approval it waits for routectl rollout approve; then
// For, if set, is how long at most, and Otherwise what happens after that. What
// serves meanwhile is judged, candidate beside stable or what was committed
// beside what was before it: a failure goes back.
type PauseStep struct {
	For       Duration  `json:"for,omitempty"`
	Approval  bool      `json:"approval,omitempty"`
	Otherwise Otherwise `json:"otherwise,omitempty"`
	Unjudged  bool      `json:"unjudged,omitempty"` // nothing is judged during it
}

// Otherwise is what becomes of a pause that nobody approved in time.
type Otherwise string

// What happens without an approval. Empty stands for rollback.
const (
	OtherwiseRollback Otherwise = "rollback"
	OtherwiseContinue Otherwise = "continue"
)

// CommitStep makes the candidate the stable revision of the wave's groups.
type CommitStep struct{}

// BakeStep watches what was committed, beside what was stable before it, for a
// time and a number of requests; a failure goes back. With For at least one
// request must have been served: until then it holds.
type BakeStep struct {
	For      Duration         `json:"for,omitempty"`
	Requests uint64           `json:"requests,omitempty"` // of the wave's groups together
	Config   *analysis.Config `json:"analysis,omitempty"` // nil for the defaults
	Checks   []Check          `json:"checks,omitempty"`
}

// A Check is a question to a system outside the fleet; exactly one of Web and
// Prometheus is set. The controller asks it.
type Check struct {
	Name       string           `json:"name"`
	Web        *WebCheck        `json:"web,omitempty"`
	Prometheus *PrometheusCheck `json:"prometheus,omitempty"`
	Every      Duration         `json:"every,omitempty"`   // 0 for 10 s
	Timeout    Duration         `json:"timeout,omitempty"` // 0 for 5 s

	// A value passes when it is at least Min and at most Max, as far as they
	// are set. No value (an empty result, NaN) is inconclusive.
	Min *float64 `json:"min,omitempty"`
	Max *float64 `json:"max,omitempty"`

	FailureLimit      int  `json:"failureLimit,omitempty"`      // more answers in a row that do not pass than this: failed
	ErrorLimit        int  `json:"errorLimit,omitempty"`        // more errors in a row than this: the rollout holds
	InconclusiveLimit int  `json:"inconclusiveLimit,omitempty"` // more answers in a row without a value than this: the rollout holds
	Passes            int  `json:"passes,omitempty"`            // how many answers must pass; 0 for 1
	DryRun            bool `json:"dryRun,omitempty"`            // recorded, and nothing follows from it
}

// WebCheck reads a number from a JSON answer.
type WebCheck struct {
	URL     string            `json:"url"`
	Method  string            `json:"method,omitempty"`  // empty for GET
	Headers map[string]string `json:"headers,omitempty"` // a value env:NAME is the controller's environment variable
	Field   string            `json:"field,omitempty"`   // of the answer, as a.b.0.c; empty: 2xx is 1, else 0
}

// PrometheusCheck reads the value of an instant query that gives one sample.
type PrometheusCheck struct {
	Address string            `json:"address"` // http(s)://host:port, with a path if there is one
	Query   string            `json:"query"`
	Headers map[string]string `json:"headers,omitempty"`
}

// Checks is what the checks of one rollout's present step answered: written
// by the controller that asks, begun anew with each step.
type Checks struct {
	Rollout string                 `json:"rollout"`
	Wave    int                    `json:"wave"`
	Step    int                    `json:"step"`
	Results map[string]CheckResult `json:"results"` // by name of the check
}

// A CheckResult sums up the answers to one check.
type CheckResult struct {
	Asked        time.Time `json:"asked"` // the newest
	Value        *float64  `json:"value,omitempty"`
	Error        string    `json:"error,omitempty"`
	Passed       int       `json:"passed,omitempty"` // in all
	Failed       int       `json:"failed,omitempty"` // the last three: in a row until now
	Errors       int       `json:"errors,omitempty"`
	Inconclusive int       `json:"inconclusive,omitempty"`
}

// A Measure is what one instance counted since it switched to Epoch: what is
// new beside what is old. With a candidate, old is stable and new the
// candidate, at the same time. After a commit that is watched
// (Assignment.Against), new is stable since the switch, and old is Against
// before it.
type Measure struct {
	Instance string          `json:"instance"`
	Group    string          `json:"group"`
	Boot     string          `json:"boot"`
	Epoch    int64           `json:"epoch"`
	Time     time.Time       `json:"time"`
	Since    time.Time       `json:"since"` // of the switch to Epoch
	Old      version.Digest  `json:"old"`
	New      version.Digest  `json:"new"`
	Sample   analysis.Sample `json:"sample"` // Stable is old, Candidate is new
}

// A Hold is why a rollout waits for an operator.
type Hold struct {
	By    string    `json:"by"` // who paused it, or controller
	Why   string    `json:"why"`
	Since time.Time `json:"since"`

	// Operator: only resume, promote or abort ends it. Otherwise it ends by itself
	// with what it waits for: data, an approval, instances.
	Operator bool `json:"operator,omitempty"`
}

// A Return is a rollout's way back.
type Return struct {
	Why       string           `json:"why"`
	Evidence  *analysis.Result `json:"evidence,omitempty"`
	By        string           `json:"by"`                 // controller, or who aborted it
	Decided   time.Time        `json:"decided"`            // the verdict, or the abort
	Committed time.Time        `json:"committed,omitzero"` // the commit that goes back
	Over      time.Time        `json:"over,omitzero"`      // every registered instance said that it serves it
	To        map[string]int64 `json:"to,omitempty"`       // revision by group
}

// A Duration is written as 1m30s. At least 0.
type Duration time.Duration

var _ interface {
	encoding.TextMarshaler
	encoding.TextUnmarshaler
} = (*Duration)(nil)

// MarshalText writes d as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads, and refuses what is less than zero.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v < 0 {
		return fmt.Errorf("duration %.40q: want one like 30s, 10m or 1h30m", b)
	}
	*d = Duration(v)
	return nil
}

// A Quantity is a number of instances, "3", or a part of them, "25%", rounded up.
type Quantity string
