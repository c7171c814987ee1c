package cli

import (
	"context"
	"errors"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

func TestStepText(t *testing.T) {
	ten := rollout.Duration(10 * time.Minute)
	for want, step := range map[string]rollout.PlanStep{
		"canary: 1 instance of each group":                    {Canary: &rollout.CanaryStep{Instances: "1"}},
		"canary: 2 instances of each group":                   {Canary: &rollout.CanaryStep{Instances: "2"}},
		"canary: 25% of each group's instances":               {Canary: &rollout.CanaryStep{Instances: "25%"}},
		"share: 0.05 % of requests by client":                 {Share: &rollout.ShareStep{Percent: 0.05}},
		"share: 25 % of requests by cookie:id":                {Share: &rollout.ShareStep{Percent: 25, Key: "cookie:id"}},
		"match: header X-Test = 1":                            {Match: &rollout.MatchStep{Match: rollout.Match{Header: "X-Test", Value: "1"}}},
		"match: cookie beta":                                  {Match: &rollout.MatchStep{Match: rollout.Match{Cookie: "beta"}}},
		"analysis":                                            {Analysis: &rollout.AnalysisStep{}},
		"analysis, checks slo, web":                           {Analysis: &rollout.AnalysisStep{Checks: []rollout.Check{{Name: "slo"}, {Name: "web"}}}},
		"pause for 10m":                                       {Pause: &rollout.PauseStep{For: ten}},
		"pause until it is approved":                          {Pause: &rollout.PauseStep{Approval: true}},
		"pause until it is approved, within 10m, or go back":  {Pause: &rollout.PauseStep{Approval: true, For: ten}},
		"pause until it is approved, 10m at most, then go on": {Pause: &rollout.PauseStep{Approval: true, For: ten, Otherwise: rollout.OtherwiseContinue}},
		"commit":       {Commit: &rollout.CommitStep{}},
		"bake for 10m": {Bake: &rollout.BakeStep{For: ten}},
		"bake for 10m and 1000 requests, checks slo": {Bake: &rollout.BakeStep{For: ten, Requests: 1000, Checks: []rollout.Check{{Name: "slo"}}}},
		"bake 1000 requests":                         {Bake: &rollout.BakeStep{Requests: 1000}},
		"pause for 1h30m":                            {Pause: &rollout.PauseStep{For: rollout.Duration(90 * time.Minute)}},
	} {
		if got := stepText(step); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestWayOut: whatever waits for an operator names the command that ends it,
// and nothing else does.
func TestWayOut(t *testing.T) {
	plan := func(steps ...rollout.PlanStep) *rollout.Strategy {
		return &rollout.Strategy{Name: "s", Waves: []rollout.Wave{{Groups: []string{"a"}, Steps: steps}}}
	}
	approval := plan(rollout.PlanStep{Pause: &rollout.PauseStep{Approval: true}})
	analysing := plan(rollout.PlanStep{Analysis: &rollout.AnalysisStep{}})
	paused, waits := &rollout.Hold{By: "ann", Operator: true}, &rollout.Hold{By: "controller"}
	for name, x := range map[string]struct {
		r           rollout.Rollout
		phase, want string
	}{
		"no plan":             {rollout.Rollout{Phase: rollout.PhasePreparing}, "preparing", ""},
		"runs":                {rollout.Rollout{Phase: rollout.PhaseRunning, Plan: analysing}, "running", ""},
		"no data":             {rollout.Rollout{Phase: rollout.PhaseRunning, Plan: analysing, Hold: waits}, "held", "promote"},
		"paused":              {rollout.Rollout{Phase: rollout.PhaseRunning, Plan: analysing, Hold: paused}, "held", "resume"},
		"approval":            {rollout.Rollout{Phase: rollout.PhaseRunning, Plan: approval}, "wants approval", "approve"},
		"approval, held":      {rollout.Rollout{Phase: rollout.PhaseRunning, Plan: approval, Hold: waits}, "wants approval", "approve"},
		"approval, paused":    {rollout.Rollout{Phase: rollout.PhaseRunning, Plan: approval, Hold: paused}, "held", "resume"},
		"approved":            {rollout.Rollout{Phase: rollout.PhaseRunning, Plan: approval, Cursor: rollout.Cursor{Approved: true}}, "running", ""},
		"approval, preparing": {rollout.Rollout{Phase: rollout.PhasePreparing, Plan: approval}, "preparing", ""},
		"returning":           {rollout.Rollout{Phase: rollout.PhaseReturning, Plan: approval, Hold: waits}, "held", ""},
		"done":                {rollout.Rollout{Phase: rollout.PhaseDone, Plan: approval, Hold: paused}, "done", ""},
		"past its end":        {rollout.Rollout{Phase: rollout.PhaseRunning, Plan: approval, Cursor: rollout.Cursor{Wave: 1}}, "running", ""},
	} {
		x.r.ID = "id"
		if got := phaseOf(&x.r); got != x.phase {
			t.Errorf("%s: phase %q, want %q", name, got, x.phase)
		}
		got := wayOut(&x.r)
		if x.want == "" && got != "" || x.want != "" && !strings.Contains(got, "routectl rollout "+x.want+" id ") || x.want != "" && !strings.Contains(got, "routectl rollout abort id") {
			t.Errorf("%s: way out %q, want %q", name, got, x.want)
		}
	}
}

func TestCandidateText(t *testing.T) {
	ref := version.Ref{Number: 2}
	for want, a := range map[string]rollout.Assignment{
		"revision 1":                             {},
		"revision 1, and revision 2 on a-1, a-2": {Candidate: &rollout.Candidate{Ref: ref, Instances: []string{"a-1", "a-2"}}},
		"revision 1, and revision 2 for 12.5 %":  {Candidate: &rollout.Candidate{Ref: ref, Permyriad: 1250}},
		"revision 1, and revision 2 for 0 %":     {Candidate: &rollout.Candidate{Ref: ref}},
		"revision 1, and revision 2 on a-1 and for 1 %, header T = 1": {
			Candidate: &rollout.Candidate{Ref: ref, Instances: []string{"a-1"}, Permyriad: 100, Match: &rollout.Match{Header: "T", Value: "1"}},
		},
		"revision 1, and revision 2 for cookie beta": {Candidate: &rollout.Candidate{Ref: ref, Match: &rollout.Match{Cookie: "beta"}}},
	} {
		a.Stable = version.Ref{Number: 1}
		if got := groupText(a); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestEvidenceTable(t *testing.T) {
	res := analysis.Result{Verdict: analysis.Fail, Why: "errors on shop/order", Findings: []analysis.Finding{
		{Group: "main", Route: "shop/order", Metric: "errors", Verdict: analysis.Fail, Stable: 0.001, Candidate: 0.031, Effect: 0.03, Why: "in words"},
		{Group: "main", Metric: "latency", Quantile: 0.99, Verdict: analysis.Fail, Stable: 0.012, Candidate: 0.0156, Effect: 0.3},
		{Group: "main", Metric: "panics", Verdict: analysis.Fail, DryRun: true, Candidate: 0.5, Effect: 0.5},
		{Group: "edge", Metric: "requests", Verdict: analysis.Inconclusive, Stable: 7, Candidate: 3, Needed: 50},
		{Group: "edge", Metric: "notFound", Verdict: analysis.Pass},
	}}
	w := &table{}
	w.tabs = tabwriter.NewWriter(&w.out, 0, 8, 2, ' ', 0)
	evidenceTable(w, &res)
	_ = w.tabs.Flush()
	want := `fail: errors on shop/order
GROUP  ROUTE       METRIC       STABLE  CANDIDATE  EFFECT      VERDICT
main   shop/order  errors       0.1 %   3.1 %      +3 points   fail
main   -           latency p99  12ms    15.6ms     +30 %       fail
main   -           panics       0 %     50 %       +50 points  fail (dry run)
edge   -           requests     7       3          50 wanted   inconclusive
edge   -           notFound     0 %     0 %        +0 points   pass
`
	if d := cmp.Diff(want, w.out.String()); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if d := cmp.Diff([]string{"in words", "main, all routes: latency p99 15.6ms, stable 12ms (+30 %)"}, failures(&res)); d != "" {
		t.Errorf("failures: -want +got\n%s", d)
	}
	if failures(nil) != nil {
		t.Error("failures of no analysis")
	}
}

// TestRecorded: what another epoch, process or revision counted is not judged,
// and a group that is not compared, or is of another wave, is not there.
func TestRecorded(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	one, two := version.Ref{Number: 1, Digest: version.DigestOf([]byte("1"))}, version.Ref{Number: 2, Digest: version.DigestOf([]byte("2"))}
	measure := func(name, group, boot string, epoch int64, to version.Ref, n uint64) rollout.Measure {
		return rollout.Measure{
			Instance: name, Group: group, Boot: boot, Epoch: epoch, New: to.Digest,
			Sample: analysis.Sample{All: analysis.Pair{Candidate: analysis.Counts{Requests: n}}},
		}
	}
	v := &rollout.View{
		Groups: map[string]rollout.Assignment{
			"a": {Epoch: 5, Rollout: "r", Stable: one, Candidate: &rollout.Candidate{Ref: two, Permyriad: 100, Key: "cookie:id"}, Instant: now.Add(-time.Minute)},
			"b": {Epoch: 5, Rollout: "r", Stable: one},
			"c": {Epoch: 5, Rollout: "other", Stable: one, Candidate: &rollout.Candidate{Ref: two}},
			"d": {Epoch: 4, Rollout: "r", Stable: one, Candidate: &rollout.Candidate{Ref: two, Instances: []string{"d-1"}, Permyriad: 7}},
			"e": {Epoch: 5, Rollout: "r", Stable: two, Against: one}, // of the wave before
		},
		Ready:     map[string]map[string]rollout.Ready{"a": {"a-1": {}, "a-2": {}, "a-3": {}, "a-4": {}}, "b": {"b-1": {}}, "e": {"e-1": {}}},
		Instances: map[string]rollout.Instance{"a-1": {Boot: "x"}, "a-2": {Boot: "x"}, "a-3": {Boot: "new"}, "a-4": {Boot: "x"}, "a-5": {Boot: "x"}, "b-1": {Boot: "x"}, "e-1": {Boot: "x"}},
		Measures: map[string]rollout.Measure{
			"a-1": measure("a-1", "a", "x", 5, two, 1),
			"a-2": measure("a-2", "a", "x", 4, two, 10),
			"a-3": measure("a-3", "a", "x", 5, two, 100),
			"a-4": measure("a-4", "a", "x", 5, one, 1000),
			"a-5": measure("a-5", "a", "x", 5, two, 7), // it has no ready key in the group
			"b-1": measure("b-1", "b", "x", 5, two, 10000),
			"e-1": measure("e-1", "e", "x", 5, two, 100000),
		},
	}
	r := &rollout.Rollout{
		Intent: rollout.Intent{ID: "r", To: two}, Origin: map[string]version.Ref{"a": one, "b": one, "c": one, "d": one, "e": one}, Phase: rollout.PhaseRunning,
		Plan: &rollout.Strategy{Waves: []rollout.Wave{{Groups: []string{"e"}}, {Groups: []string{"a", "b", "c", "d"}, Steps: []rollout.PlanStep{
			{Analysis: &rollout.AnalysisStep{Config: analysis.Config{MinSeconds: 7}}}, {Commit: &rollout.CommitStep{}}, {Bake: &rollout.BakeStep{}},
		}}}},
		Cursor: rollout.Cursor{Wave: 1, Since: now.Add(-time.Hour)},
	}
	got := recorded(v, r, now)
	want := &recordedComparison{
		Groups:  map[string]analysis.Sample{"a": {All: analysis.Pair{Candidate: analysis.Counts{Requests: 1}}}, "d": {}},
		Seconds: 60, Wanted: map[string]int{"a": 100}, Keyless: true,
	}
	if d := cmp.Diff(want, got.Comparison); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if len(got.Measures) != 1 || got.Config.MinSeconds != 7 {
		t.Errorf("%d measures, config %+v", len(got.Measures), got.Config)
	}
	v.Groups["a"] = rollout.Assignment{Epoch: 5, Rollout: "r", Stable: two, Against: one}
	r.Cursor.Step = 2
	if of := recorded(v, r, now).Comparison; !of.Before || len(of.Wanted) != 0 || of.Groups["a"].All.Candidate.Requests != 1 {
		t.Errorf("after the commit: %+v", of)
	}
}

func TestInstanceState(t *testing.T) {
	digest := version.DigestOf([]byte("x"))
	serving := &rollout.Serving{Epoch: 1}
	for want, i := range map[string]instanceStatus{
		"ok":                 {Serving: serving},
		"serves nothing yet": {},
		"PINNED to " + digest.Short() + ": routerd ctl unpin on its machine ends it": {Serving: serving, Pinned: digest},
		"evicted: out of traffic until it serves what is committed; stale: no etcd":  {Serving: serving, Evicted: true, Stale: "no etcd"},
	} {
		if got := i.state(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestAborted: an abort that found nothing under way ended nothing.
func TestAborted(t *testing.T) {
	for name, x := range map[string]struct {
		answer rollout.Rollout
		err    error
		code   int
		says   string
	}{
		"aborted":       {rollout.Rollout{Phase: rollout.PhaseDone, Why: "aborted id"}, nil, ExitDone, "aborted; "},
		"nothing":       {rollout.Rollout{Phase: rollout.PhaseDone, Why: "no rollout is in progress: nothing to abort"}, nil, ExitFailed, "nothing to abort"},
		"over":          {rollout.Rollout{Phase: rollout.PhaseDone, Why: "rollout id is not in progress: nothing to abort"}, nil, ExitFailed, "nothing to abort"},
		"no way back":   {rollout.Rollout{Phase: rollout.PhaseRefused, Why: "there is no way back"}, nil, ExitFailed, "refused: there is no way back"},
		"no controller": {rollout.Rollout{}, context.DeadlineExceeded, ExitDone, "on record"},
	} {
		var said strings.Builder
		c := &command{env: Env{Stdout: &said, Stderr: &said}}
		err := c.aborted("id", x.answer, x.err)
		if err != nil {
			c.env.explain(err)
		}
		if exitCode(err) != x.code || !strings.Contains(said.String(), x.says) {
			t.Errorf("%s: code %d: %s", name, exitCode(err), said.String())
		}
	}
}

// TestPatience: without --timeout an intent leaves to the fleet how long preparing
// may take, and who waits learns it from the record.
func TestPatience(t *testing.T) {
	for _, args := range [][]string{nil, {"--timeout", "1m"}} {
		var w waiting
		var i rollout.Intent
		cmd := &cobra.Command{}
		w.flags(cmd)
		if err := errors.Join(cmd.ParseFlags(args), w.apply(&i)); err != nil {
			t.Fatal(err)
		}
		if want := time.Duration(len(args)/2) * time.Minute; i.Timeout != want || w.timeout != time.Minute {
			t.Errorf("%v: timeout %v, want %v; waits %v", args, i.Timeout, want, w.timeout)
		}
	}
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC) // another clock than ours
	p := &progress{out: &outcome{}}
	for _, x := range []struct {
		r    rollout.Rollout
		want time.Duration
	}{
		{rollout.Rollout{Phase: rollout.PhasePending}, 0},
		{rollout.Rollout{Phase: rollout.PhasePreparing, Started: now, Deadline: now.Add(5 * time.Minute)}, 5 * time.Minute},
		{rollout.Rollout{Phase: rollout.PhaseAborted, Started: now}, 5 * time.Minute}, // its record has none any more
		{rollout.Rollout{Phase: rollout.PhaseRunning, Started: now}, 0},
	} {
		if p.note(x.r); p.most != x.want {
			t.Errorf("%s: %v, want %v", x.r.Phase, p.most, x.want)
		}
	}
}

// TestCheckPlan: a second rollout over the same groups is refused before
// anything is sent, unless it supersedes; one in a single step stands in
// nobody's way.
func TestCheckPlan(t *testing.T) {
	plan, _ := rollout.Builtin("canary")
	under := func(r rollout.Rollout) *rollout.View {
		r.ID, r.Kind, r.Phase = "id", rollout.IntentSwitch, rollout.PhaseRunning
		return &rollout.View{
			Groups:   map[string]rollout.Assignment{"a": {}, "b": {}},
			Rollouts: []rollout.Rollout{r}, Strategies: map[string]rollout.Strategy{"own": {Name: "own"}},
		}
	}
	origin := map[string]version.Ref{"a": {}}
	for name, x := range map[string]struct {
		r    rollout.Rollout
		i    rollout.Intent
		code int
	}{
		"same group":     {rollout.Rollout{Plan: &plan, Origin: origin}, rollout.Intent{Groups: []string{"a", "b"}}, ExitConflict},
		"all groups":     {rollout.Rollout{Plan: &plan, Origin: origin}, rollout.Intent{}, ExitConflict},
		"other group":    {rollout.Rollout{Plan: &plan, Origin: origin}, rollout.Intent{Groups: []string{"b"}}, ExitDone},
		"supersedes":     {rollout.Rollout{Plan: &plan, Origin: origin}, rollout.Intent{Supersede: true}, ExitDone},
		"without a plan": {rollout.Rollout{}, rollout.Intent{}, ExitDone},
		"own":            {rollout.Rollout{}, rollout.Intent{Strategy: "own"}, ExitDone},
		"unknown":        {rollout.Rollout{}, rollout.Intent{Strategy: "nobody"}, ExitUsage},
	} {
		x.i.Timeout = time.Minute
		if got := exitCode(checkPlan(under(x.r), &x.i)); got != x.code {
			t.Errorf("%s: code %d, want %d", name, got, x.code)
		}
		if want := x.i.Strategy != "own"; want != (x.i.Timeout == time.Minute) && x.code == ExitDone {
			t.Errorf("%s: timeout %v: a strategy with steps has its own", name, x.i.Timeout)
		}
	}
	v := under(rollout.Rollout{})
	v.Fleet.Settings.Strategy = "nobody"
	if got := exitCode(checkPlan(v, &rollout.Intent{})); got != ExitUsage {
		t.Errorf("an unknown default: code %d", got)
	}
}
