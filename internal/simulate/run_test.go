package simulate

import (
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"routerd.dev/internal/rollout"
)

var firstSeed = flag.Uint64("seed", 0, "of the first random run; 0 for another each time")

var update = flag.Bool("update", false, "rewrite testdata/*.txt with what is simulated now")

// scenarios are those of testdata.
func scenarios(t *testing.T) map[string]Scenario {
	builtin := func(name string) rollout.Strategy {
		s, ok := rollout.Builtin(name)
		if !ok {
			t.Fatalf("no strategy %s", name)
		}
		return s
	}
	faults := func(lines ...string) []Fault {
		var out []Fault
		for _, l := range lines {
			f, err := ParseFault(l)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, f)
		}
		return out
	}
	fleet := map[string]int{"canary": 1, "main": 2}
	paused := rollout.Strategy{Name: "paused", Waves: []rollout.Wave{{Groups: []string{"*"}, Steps: []rollout.PlanStep{
		{Share: &rollout.ShareStep{Percent: 25}}, {Pause: &rollout.PauseStep{Approval: true}}, {Commit: &rollout.CommitStep{}},
	}}}}
	return map[string]Scenario{
		"all-at-once":      {Groups: fleet},
		"canary":           {Groups: fleet, Plan: builtin("canary")},
		"errors":           {Groups: fleet, Plan: builtin("canary"), Faults: faults("at=1m30s kind=errors rate=0.3")},
		"no-traffic":       {Groups: fleet, Plan: builtin("canary"), Traffic: Traffic{Rate: -1}, Until: 10 * time.Minute},
		"waves-idle":       {Groups: fleet, Plan: builtin("waves"), Traffic: Traffic{Rate: -1}, Until: 10 * time.Minute},
		"paused-errors":    {Groups: fleet, Plan: paused, Faults: faults("at=1m30s kind=errors rate=0.3")},
		"waves-aborted":    {Groups: fleet, Plan: builtin("waves"), Faults: faults("at=30s kind=die instance=main-1 for=20s", "at=1m kind=controller-die", "at=7m kind=abort")},
		"refused":          {Groups: fleet, Faults: faults("at=0s kind=refuse instance=main-2")},
		"condemned":        {Groups: fleet, Faults: faults("at=0s kind=poison instance=canary-1 for=2s", "at=0s kind=poison instance=main-1 for=2s")},
		"slow":             {Groups: fleet, Faults: faults("at=0s kind=slow instance=main-1 factor=1000")},
		"joins":            {Groups: fleet, Faults: faults("at=400ms kind=join instance=late group=main")},
		"deposed":          {Groups: fleet, Faults: faults("at=1ms kind=controller-change")},
		"etcd-away":        {Groups: fleet, Faults: faults("at=400ms kind=etcd-away for=20s")},
		"pause-and-resume": {Groups: fleet, Plan: builtin("waves"), Faults: faults("at=10s kind=pause", "at=20m kind=resume", "at=20m30s kind=promote full=true")},
	}
}

// TestTranscripts plays scenarios and compares with testdata/*.txt, which are
// there to be read.
func TestTranscripts(t *testing.T) {
	all := scenarios(t)
	for _, name := range sorted(all) {
		t.Run(name, func(t *testing.T) {
			got := Run(all[name])
			if got.Error != "" || len(got.Broken) > 0 {
				t.Fatalf("%s%q", got.Error, got.Broken)
			}
			if again := Run(all[name]); again.String() != got.String() {
				t.Fatalf("not the same when played again:\n%s", cmp.Diff(got.String(), again.String()))
			}
			if _, err := json.Marshal(got); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); d != "" {
				t.Errorf("go test -run Transcripts -update rewrites it (-want +got):\n%s", d)
			}
		})
	}
}

// TestEnds holds how each scenario ends, whatever its transcript looks like.
func TestEnds(t *testing.T) {
	want := map[string]rollout.Phase{
		"all-at-once": rollout.PhaseDone, "canary": rollout.PhaseDone, "errors": rollout.PhaseRolledBack,
		"no-traffic": rollout.PhaseRunning, "waves-idle": rollout.PhaseRunning, "paused-errors": rollout.PhaseRolledBack, "waves-aborted": rollout.PhaseRolledBack, "refused": rollout.PhaseRefused,
		"condemned": rollout.PhaseRefused, "slow": rollout.PhaseAborted, "joins": rollout.PhaseDone, "deposed": rollout.PhaseDone,
		"etcd-away": rollout.PhaseDone, "pause-and-resume": rollout.PhaseDone,
	}
	for name, s := range scenarios(t) {
		got := Run(s)
		if got.Rollout.Phase != want[name] {
			t.Errorf("%s ends %s, want %s: %s", name, got.Rollout.Phase, want[name], got.Rollout.Why)
		}
		if want[name] == rollout.PhaseRunning && got.Rollout.Hold == nil {
			t.Errorf("%s is not held: %s", name, got.Rollout.Why)
		}
		serves := int64(2)
		if want[name] == rollout.PhaseDone {
			serves = 3
		}
		for i, n := range got.Serving {
			if n != serves && want[name] != rollout.PhaseRunning {
				t.Errorf("%s: %s serves revision %d in the end, want %d", name, i, n, serves)
			}
		}
	}
}

// TestRandomRuns plays long scenarios of large fleets with many faults. Each
// prints the seed by which it is played again.
func TestRandomRuns(t *testing.T) {
	runs := 20
	if testing.Short() || raceDetector {
		runs = 3
	}
	seed := *firstSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	for i := range runs {
		s := randomScenario(seed + uint64(i))
		got := Run(s)
		if got.Error != "" || len(got.Broken) > 0 {
			t.Errorf("seed %d: %s%q\n%v\n%s", seed+uint64(i), got.Error, got.Broken, s.Faults, got)
		}
		if !got.Over && got.Rollout.Hold == nil { // The slowest plan takes 25 min.
			t.Errorf("seed %d: it does not end\n%s", seed+uint64(i), got)
		}
	}
	t.Logf("%d runs; -seed %d plays them again", runs, seed)
}

// randomScenario is ten instances in four groups, and up to eight faults.
func randomScenario(seed uint64) Scenario {
	r := rand.New(rand.NewPCG(seed, 2))
	s := Scenario{
		Groups: map[string]int{"a": 1, "b": 2, "canary": 2, "main": 5}, Seed: seed, Until: time.Hour,
		Traffic: Traffic{Rate: float64(20 + r.IntN(200))}, Known: r.IntN(4) == 0,
	}
	names := rollout.BuiltinNames()
	s.Plan, _ = rollout.Builtin(names[r.IntN(len(names))])
	s.Plan.Straggler = []rollout.Straggler{"", rollout.StragglerEvict}[r.IntN(2)]
	s.Plan.OnControllerLoss = []rollout.Loss{"", rollout.LossRollback}[r.IntN(2)]
	for range r.IntN(9) {
		f := Fault{At: time.Duration(r.ExpFloat64() * float64(time.Minute)), Kind: kinds[r.IntN(len(kinds))]}
		switch g := sorted(s.Groups)[r.IntN(4)]; {
		case f.Kind == FaultJoin:
			f.Instance, f.Group = "late"+string(rune('a'+len(s.Faults))), g
		case slices.Contains(needsInstance, f.Kind):
			f.Instance = name(g, 1+r.IntN(s.Groups[g]))
		case f.Kind == FaultErrors:
			f.Rate = r.Float64()
		case f.Kind == FaultLatency:
			f.Factor = 1 + r.ExpFloat64()
		}
		if r.IntN(2) == 0 {
			f.For = time.Duration(1+r.IntN(60)) * time.Second
		}
		s.Faults = append(s.Faults, f)
	}
	return s
}

// TestParseFault: what is printed reads back, and what is wrong is named.
func TestParseFault(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 500 {
		for _, f := range randomScenario(r.Uint64()).Faults {
			if got, err := ParseFault(f.String()); err != nil || got != f {
				t.Fatalf("%s: %+v, %v", f, got, err)
			}
		}
	}
	for text, want := range map[string]string{
		"at=1s": "kind=", "kind=die": "at=", "at=x kind=die": "duration", "at=1s kind=explode": "die, restart",
		"at=1s kind=die at=2s": "twice", "at=1s kind=errors rate=2": "0 to 1", "at=1s kind=slow factor=NaN": "above 0",
		"at=1s die": "name=value", "at=1s kind=die who=a": "want one of at",
	} {
		if _, err := ParseFault(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want it to say %q", text, err, want)
		}
	}
	for _, s := range []Scenario{
		{},
		{Groups: map[string]int{"main": 0}},
		{Groups: map[string]int{"main": 2000}},
		{Groups: map[string]int{"main": 1}, Faults: []Fault{{Kind: FaultDie, Instance: "main-2"}}},
		{Groups: map[string]int{"main": 1}, Faults: []Fault{{Kind: FaultDie, Instance: "main-01"}}},
		{Groups: map[string]int{"main": 1}, Faults: []Fault{{Kind: FaultErrors}}},
		{Groups: map[string]int{"main": 1}, Plan: rollout.Strategy{Waves: []rollout.Wave{{}}}},
	} {
		if got := Run(s); got.Error == "" {
			t.Errorf("%+v is played", s)
		}
	}
}
