//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"routerd.dev/integration/harness"
	"routerd.dev/internal/rollout"
)

// wary is a rollout that stops at a canary, judges a share, and waits for an
// approval before it commits; then the other groups follow. It begins with a
// group of which nobody stands for election: that a canary which dies takes the
// rollout back is shown elsewhere. Latency is not judged: what a fault does to
// it, and that the load asks stable for other routes, is not the candidate's
// doing.
const wary = `apiVersion: routerd/v1
strategy: wary
waves:
  - groups: [edge]
    steps:
      - canary: {instances: 1}
      - pause: {approval: true}
      - share: {percent: 50, key: "header:X-Client"} # all of the load comes from one address
      - analysis: {minSeconds: 2, minRequests: 20, minRouteRequests: 5, metrics: {latency: {off: true}}}
      - pause: {approval: true}
      - commit: {}
  - groups: ['*']
    steps: [{commit: {}}]
`

const (
	stepCanary, stepAnalysis, stepApproval = 1, 3, 4

	// faultLasts is how long a fault is there while a rollout goes on: less than
	// a lease, so that nobody is given up.
	faultLasts = 3 * time.Second
	// rolloutEnds is the most time from a fault's end to the rollout's: what it
	// would take anyhow, and what finding the fault out and getting over it may
	// take.
	rolloutEnds = 10*time.Second + detection + recovery
)

// A duringFault is one that a rollout has to get over.
type duringFault struct {
	name  string
	short bool
	deaf  bool // etcd may take no orders meanwhile
	take  func(t *testing.T, w *harness.World) (end func())
}

func rolloutFaults() []duringFault {
	var cuts []duringFault
	for _, how := range []harness.Cut{harness.CutIn, harness.CutOut, harness.CutSlow, harness.CutOpen} {
		cuts = append(cuts,
			duringFault{name: fmt.Sprintf("controller %v", how), take: func(t *testing.T, w *harness.World) func() {
				c := w.Controller(t).Instance
				w.Cut(t, c, how)
				return func() { w.Mend(t, c) }
			}},
			duringFault{name: fmt.Sprintf("etcd member %v", how), deaf: true, take: func(t *testing.T, w *harness.World) func() {
				m := w.Leader(t)
				w.Cut(t, m, how)
				return func() {
					w.Mend(t, m)
					w.AwaitEtcd(t)
				}
			}})
	}
	return append(cuts, []duringFault{
		{name: "controller killed", short: true, take: func(t *testing.T, w *harness.World) func() {
			c := w.Controller(t).Instance
			w.Crash(t, c)
			return func() { w.Revive(t, c) }
		}},
		{name: "instance killed and restarted", take: func(t *testing.T, w *harness.World) func() {
			i := bystander(t, w)
			w.Crash(t, i)
			w.Revive(t, i)
			return func() {}
		}},
		{name: "etcd majority paused", short: true, deaf: true, take: func(t *testing.T, w *harness.World) func() {
			leader := w.Leader(t)
			gone := append(slices.DeleteFunc(w.Members(), func(m string) bool { return m == leader })[:len(w.Members())/2], leader)
			for _, m := range gone {
				w.Pause(t, m)
			}
			return func() {
				for _, m := range gone {
					w.Resume(t, m)
				}
				w.AwaitEtcd(t)
			}
		}},
		{name: "group cut off from etcd", take: func(t *testing.T, w *harness.World) func() {
			for _, i := range groupOf(w, "edge") {
				w.Cut(t, i, harness.CutBoth)
			}
			return func() {
				for _, i := range groupOf(w, "edge") {
					w.Mend(t, i)
				}
			}
		}},
		{name: "etcd member killed", take: func(t *testing.T, w *harness.World) func() {
			m := w.Leader(t)
			w.Kill(t, m)
			return func() {
				w.Start(t, m)
				w.AwaitEtcd(t)
			}
		}},
	}...)
}

// rolloutScenarios make the basic faults while a rollout is under way: it ends
// as it would have without them.
func rolloutScenarios() []harness.Scenario {
	var all []harness.Scenario
	for _, f := range rolloutFaults() {
		for _, during := range []struct {
			name  string
			short bool
			run   func(t *testing.T, w *harness.World, f duringFault)
		}{
			{"a canary", f.name == "etcd majority paused", duringCanary},
			{"an analysis", f.name == "controller killed", duringAnalysis},
			{"a rollback", f.short, duringRollback},
		} {
			all = append(all, harness.Scenario{
				Name: f.name + " during " + during.name, Bound: recovery, Short: during.short, World: faulted,
				Run: func(t *testing.T, w *harness.World) {
					prelude(t, w)
					during.run(t, w, f)
				},
			})
		}
	}
	return all
}

// trial is a module of one route, which is all that a rollout changes: of each
// changed route an analysis wants to have seen requests.
func trial(n int64) string {
	return fmt.Sprintf("apiVersion: routerd/v1\nmodule: trial\nroutes:\n  - {name: trial, path: /trial, respond: \"%d\"}\n", n)
}

// begins publishes with the wary strategy, and returns when its canary serves.
// Clients ask for what it changes until the test ends.
func begins(t *testing.T, w *harness.World) {
	t.Helper()
	order(t, w, wary, "strategy", "apply", "-f", "-")
	n := time.Now().UnixNano()
	order(t, w, trial(n), "publish", "-f", "-", "-m", "before", "--wait")
	w.UntilConverged(t, recovery)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, name := range groupOf(w, "edge") {
		wg.Go(func() { visit(ctx, "http://"+w.Instance(name).HTTP+"/trial") })
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	order(t, w, trial(n+1), "publish", "-f", "-", "-m", "trial", "--strategy", "wary")
	untilRollout(t, w, time.Minute, "its canary serves", at(stepCanary))
}

// visit asks for a page again and again. What comes is the load's to judge.
func visit(ctx context.Context, url string) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	client := &http.Client{Timeout: time.Second}
	defer client.CloseIdleConnections()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return
		}
		req.Header.Set("X-Client", strconv.Itoa(n)) // by whom the share is told
		resp, err := client.Do(req)
		if err != nil {
			continue
		}
		_, _ = io.Copy(io.Discard, resp.Body) // else the connection is not used again
		_ = resp.Body.Close()
	}
}

// hold makes the fault, goes on with the rollout by an order, and ends the
// fault. An order that etcd cannot take comes after it.
func (f duringFault) hold(t *testing.T, w *harness.World, goOn func()) {
	t.Helper()
	end := f.take(t, w)
	if !f.deaf {
		goOn()
	}
	<-time.After(faultLasts) // how long the fault is
	end()
	if f.deaf {
		goOn()
	}
}

// The fault comes while the canary serves alone, and what comes next is ordered
// while it lasts.
func duringCanary(t *testing.T, w *harness.World, f duringFault) {
	begins(t, w)
	f.hold(t, w, func() { order(t, w, "", "rollout", "approve") })
	untilRollout(t, w, rolloutEnds, "it waits to be approved", at(stepApproval))
	order(t, w, "", "rollout", "approve")
	ends(t, w, rollout.PhaseDone)
}

// untilJudged begins a rollout and takes it to where a share is judged.
func untilJudged(t *testing.T, w *harness.World) {
	t.Helper()
	begins(t, w)
	order(t, w, "", "rollout", "approve")
	untilRollout(t, w, time.Minute, "it is judged", at(stepAnalysis))
}

// The fault comes while a share is judged.
func duringAnalysis(t *testing.T, w *harness.World, f duringFault) {
	untilJudged(t, w)
	f.hold(t, w, func() {})
	untilRollout(t, w, rolloutEnds, "it waits to be approved", at(stepApproval))
	order(t, w, "", "rollout", "approve")
	ends(t, w, rollout.PhaseDone)
}

// The fault comes while it goes back: the order comes with it.
func duringRollback(t *testing.T, w *harness.World, f duringFault) {
	untilJudged(t, w)
	f.hold(t, w, func() { order(t, w, "", "rollout", "abort", "-m", "to see it go back") })
	ends(t, w, rollout.PhaseRolledBack)
}

// order runs routectl, again while etcd is without a leader.
func order(t *testing.T, w *harness.World, stdin string, args ...string) {
	t.Helper()
	harness.Until(t, detection, fmt.Sprint(args), func() error {
		_, err := w.Routectl(stdin, args...)
		return err
	})
}

// A rolloutState is what scenarios read of a rollout.
type rolloutState struct {
	ID     string
	Phase  rollout.Phase
	Why    string
	Cursor rollout.Cursor

	Evidence *struct{ Why string } // of the newest analysis
}

// at tells whether a rollout has come to a step of its first wave.
func at(step int) func(rolloutState) bool {
	return func(r rolloutState) bool { return r.Cursor.Wave > 0 || r.Cursor.Step >= step }
}

// untilRollout waits until the newest rollout is as wanted.
func untilRollout(t *testing.T, w *harness.World, within time.Duration, what string, is func(rolloutState) bool) rolloutState {
	t.Helper()
	var newest rolloutState
	harness.Until(t, within, what, func() error {
		out, err := w.Routectl("", "rollout", "list", "-o", "json")
		if err != nil {
			return err
		}
		var all []rolloutState
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			return err
		}
		if len(all) == 0 {
			return errors.New("there is no rollout")
		}
		if newest = all[0]; !is(newest) {
			evidence := ""
			if newest.Evidence != nil {
				evidence = "; " + newest.Evidence.Why
			}
			return fmt.Errorf("rollout %s is %s at step %d: %s%s", newest.ID, newest.Phase, newest.Cursor.Step, newest.Why, evidence)
		}
		if newest.Phase.Final() && newest.Phase != rollout.PhaseDone && newest.Phase != rollout.PhaseRolledBack {
			t.Fatalf("rollout %s ended as %s: %s", newest.ID, newest.Phase, newest.Why)
		}
		return nil
	})
	return newest
}

// ends waits for the rollout's end, which must be the wanted one.
func ends(t *testing.T, w *harness.World, want rollout.Phase) {
	t.Helper()
	start := time.Now()
	r := untilRollout(t, w, rolloutEnds, "it ends", func(r rolloutState) bool { return r.Phase.Final() })
	if r.Phase != want {
		t.Errorf("the rollout ended as %s, want %s: %s", r.Phase, want, r.Why)
	}
	t.Logf("the rollout ended as %s %v after the fault: %s", r.Phase, time.Since(start).Round(time.Millisecond), r.Why)
}

func groupOf(w *harness.World, group string) (names []string) {
	for _, i := range w.Instances {
		if i.Group == group {
			names = append(names, i.Instance)
		}
	}
	return names
}

// bystander is an instance of the rollout's first group that serves no
// candidate alone: it is a canary to nobody.
func bystander(t *testing.T, w *harness.World) string {
	t.Helper()
	var other string
	harness.Until(t, recovery, "one of edge is a canary", func() error {
		canary := ""
		for _, name := range groupOf(w, "edge") {
			st, err := w.Instance(name).Status()
			if err != nil {
				return err
			}
			if st.Serving != nil && st.Serving.Candidate != nil {
				canary = name // of one that serves it alone only
			} else {
				other = name
			}
		}
		if canary == "" || other == "" {
			// A share is served by all: nobody is a canary.
			if other = groupOf(w, "edge")[0]; canary == "" {
				return errors.New("nobody serves the candidate")
			}
		}
		return nil
	})
	return other
}
