package simulate

import (
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/rollout"
)

var (
	three   = map[string][]string{"canary": {"c"}, "main": {"a", "b"}}
	joining = map[string][]string{"canary": {"c"}, "main": {"a"}} // z comes
	one     = map[string][]string{"main": {"a", "b"}}
)

// judged is an analysis that a second of data decides.
var judged = rollout.PlanStep{Analysis: &rollout.AnalysisStep{
	Config: analysis.Config{MinSeconds: 1, Metrics: map[string]analysis.Metric{"ratio": {Off: true}}},
}}

var (
	commit   = rollout.PlanStep{Commit: &rollout.CommitStep{}}
	baked    = rollout.PlanStep{Bake: &rollout.BakeStep{For: rollout.Duration(4 * time.Second)}}
	canaried = rollout.PlanStep{Canary: &rollout.CanaryStep{Instances: "1"}}
	half     = rollout.PlanStep{Share: &rollout.ShareStep{Percent: 50}}
	approval = rollout.PlanStep{Pause: &rollout.PauseStep{Approval: true, For: rollout.Duration(10 * time.Second)}}
)

// plans are what is explored with steps.
var plans = map[string]rollout.Strategy{
	"canary": {Name: "canary", Waves: []rollout.Wave{{Groups: []string{"*"}, Steps: []rollout.PlanStep{canaried, judged, commit}}}},
	"share": {Name: "share", OnControllerLoss: rollout.LossRollback, Waves: []rollout.Wave{
		{Groups: []string{"canary"}, Steps: []rollout.PlanStep{half, judged, commit}},
		{Groups: []string{"*"}, Steps: []rollout.PlanStep{commit, baked}},
	}},
	"pause": {Name: "pause", Straggler: rollout.StragglerEvict, Waves: []rollout.Wave{
		{Groups: []string{"*"}, Steps: []rollout.PlanStep{commit, approval}},
	}},
}

// switching is a fleet that was just asked to switch to revision 3.
func switching(t *testing.T, groups map[string][]string, plan string) *Fleet {
	t.Helper()
	f := running(t, groups)
	if p, ok := plans[plan]; ok {
		if problems := p.Validate(); len(problems) > 0 {
			t.Fatal(problems)
		}
		f.strategies = f.strategies.with(plan, p)
	}
	f.Ask(rollout.Intent{ID: "r1", Kind: rollout.IntentSwitch, To: Ref(3), Strategy: plan})
	return f
}

// TestExplore tries every interleaving of what three instances, the controllers
// and an operator do while the fleet switches, within the bounds, and holds the
// laws in each state: I2, I3, I4, and those of checkChange. From each state it
// ends once faults end, or waits for an operator or for data.
func TestExplore(t *testing.T) {
	before := debug.SetGCPercent(400)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	planned := scene{coarse: true, data: true, patient: true, tick: 20 * time.Second}
	hasty := planned
	hasty.patient = false
	coarse := scene{coarse: true, joiner: "main"}
	for _, e := range []struct {
		name   string
		groups map[string][]string
		plan   string
		how    scene
		left   bounds
		short  bounds
		sees   string // what some way must show
	}{
		{"every deed apart", three, "", scene{}, bounds{Refusals: 1, Aborts: 1, Total: 1}, bounds{Refusals: 1}, "r1 is refused"},
		{"deaths, elections, refusals", three, "", coarse, bounds{Deaths: 2, Elections: 2, Refusals: 1}, bounds{Deaths: 1, Elections: 2, Refusals: 1}, "r1 is done"},
		{"with one that joins", joining, "", coarse, bounds{Deaths: 2, Joins: 1, Elections: 2, Refusals: 1}, bounds{Joins: 1, Elections: 1, Refusals: 1}, "r1 is done"},
		{"with one that lost what is in force", joining, "", coarse, bounds{Deaths: 1, Joins: 1, Elections: 1, Losses: 1, Rollbacks: 1, Total: 3}, bounds{Joins: 1, Losses: 1}, "commit main to 3 at epoch 3 over z"},
		{"operators and leases", three, "", coarse, bounds{Deaths: 1, Lapses: 1, Aborts: 1, Rollbacks: 1, Elections: 1, Total: 2}, bounds{Lapses: 1, Aborts: 1, Rollbacks: 1, Total: 1}, "rollback1 is done"},
		{"plan: canary, analysis, commit", one, "canary", planned, bounds{Deaths: 1, Refusals: 1, Aborts: 1, Rollbacks: 1, Absences: 1, Total: 1}, bounds{Aborts: 1}, "r1 is rolled-back"},
		{"plan: share, analysis, commit, then bake", joining, "share", planned, bounds{Deaths: 1, Refusals: 1, Aborts: 1, Rollbacks: 1, Absences: 1, Total: 1}, bounds{Absences: 1}, "r1 is returning"},
		{"plan: commit, pause, stragglers evicted", one, "pause", hasty, bounds{Deaths: 1, Aborts: 1, Total: 1}, bounds{Refusals: 1}, "without b"},
	} {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			s := e.how
			s.fleet, s.step, s.left, s.every = switching(t, e.groups, e.plan), rollout.Step, e.left, 16
			if testing.Short() || raceDetector {
				s.left = e.short
			}
			x := explore(s)
			bad := x.verdict()
			if ways := strings.Join(x.labels, "\n"); !strings.Contains(ways, e.sees) {
				t.Errorf("no way leads to %q: what is explored is not what it was meant to be", e.sees)
			}
			t.Logf("%d states, %d transitions, depth %d", len(x.traces), x.moves, x.depth)
			if bad != "" {
				t.Errorf("%s", bad)
			}
		})
	}
}

// A breaker is a step that does something wrong.
func breaker(edit func(v *rollout.View, c *rollout.Change)) stepFunc {
	return func(v *rollout.View, now time.Time) (rollout.Change, time.Time) {
		c, next := rollout.Step(v, now)
		c.Groups, c.Rollouts = slices.Clone(c.Groups), slices.Clone(c.Rollouts)
		edit(v, &c)
		return c, next
	}
}

// early commits as soon as it prepares: it takes everyone for ready.
func early(v *rollout.View, now time.Time) (rollout.Change, time.Time) {
	w := *v
	w.Ready = make(map[string]map[string]rollout.Ready)
	for g, said := range v.Ready {
		w.Ready[g] = make(map[string]rollout.Ready)
		for name, r := range said {
			if p, ok := v.Prepares[g]; ok {
				r.Nonce = p.Nonce
			}
			w.Ready[g][name] = r
		}
	}
	c, next := rollout.Step(&w, now)
	c.Ready = nil
	return c, next
}

// TestLawsCanFail plays broken steps and a broken etcd: the checker finds each,
// and prints how.
func TestLawsCanFail(t *testing.T) {
	shared := scene{coarse: true, data: true, patient: true, tick: 20 * time.Second}
	for _, e := range []struct {
		name string
		want string
		plan string
		left bounds
		lax  lax
		step stepFunc
	}{
		{"etcd does not hold the barrier", "I2", "", bounds{Joins: 1}, lax{ready: true}, rollout.Step},
		{"etcd lets the deposed write", "I4", "", bounds{Elections: 1}, lax{term: true}, rollout.Step},
		{"etcd does not see what changed", "after abort", "", bounds{Aborts: 1}, lax{stale: true}, rollout.Step},
		{"a commit without barrier", "I2", "", bounds{}, lax{}, early},
		{"an epoch is used again", "I3", "", bounds{}, lax{}, breaker(func(v *rollout.View, c *rollout.Change) {
			for i := range c.Groups {
				c.Groups[i].Epoch = v.Groups[c.Groups[i].Group].Epoch
			}
		})},
		{"a set without what is served", "not in its set", "", bounds{}, lax{ready: true}, breaker(func(_ *rollout.View, c *rollout.Change) {
			for i := range c.Groups {
				c.Groups[i].Set = c.Groups[i].Set[1:]
			}
		})},
		{"a nonce is used again", "which is not new", "", bounds{}, lax{}, breaker(func(_ *rollout.View, c *rollout.Change) {
			for i := range c.Prepares {
				c.Prepares[i].Nonce = "used-1"
			}
		})},
		{"too large a share", "its step says", "share", bounds{}, lax{}, breaker(func(_ *rollout.View, c *rollout.Change) {
			for i := range c.Groups {
				if x := c.Groups[i].Candidate; x != nil {
					more := *x
					more.Permyriad = 6000
					c.Groups[i].Candidate = &more
				}
			}
		})},
		{"an answer is forgotten", "an intent waits", "", bounds{}, lax{}, breaker(func(_ *rollout.View, c *rollout.Change) { *c = rollout.Change{} })},
		{"it writes without end", "forever", "", bounds{}, lax{}, breaker(func(v *rollout.View, c *rollout.Change) {
			if c.IsZero() && len(v.Rollouts) > 0 {
				r := v.Rollouts[0]
				r.From = "x"[:1-len(r.From)] // which only a recovery reads
				c.Rollouts = []rollout.Rollout{r}
			}
		})},
		{"maps decide", "another order", "", bounds{}, lax{}, breaker(func(v *rollout.View, c *rollout.Change) {
			for name := range v.Instances {
				if len(c.Rollouts) > 0 {
					c.Rollouts[0].Why = name
				}
				break
			}
		})},
		{"the target stays", "target still", "", bounds{Refusals: 1}, lax{}, breaker(func(v *rollout.View, c *rollout.Change) { c.Fleet = nil })},
	} {
		t.Run(e.name, func(t *testing.T) {
			s := scene{coarse: true, joiner: "main"}
			groups := three
			if e.plan != "" {
				s, groups = shared, joining
			}
			s.fleet, s.step, s.left, s.most = switching(t, groups, e.plan), e.step, e.left, 50_000
			s.fleet.lax = e.lax
			bad := explore(s).verdict()
			if !strings.Contains(bad, e.want) {
				t.Fatalf("want a violation that says %q, got %q", e.want, bad)
			}
			t.Log(bad)
		})
	}
}

func ExampleParseFault() {
	f, err := ParseFault("at=30s instance=canary-1 kind=die")
	fmt.Println(f, err)
	// Output: at=30s kind=die instance=canary-1 <nil>
}
