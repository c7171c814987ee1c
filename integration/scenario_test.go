//go:build integration

package integration

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/testcontainers/testcontainers-go"

	"routerd.dev/integration/harness"
	"routerd.dev/integration/history"
	"routerd.dev/internal/version"
)

var (
	groundKind = flag.String("ground", "auto", "what scenarios stand on: containers, processes, or auto: containers where a Docker engine answers")
	shortForm  = flag.Bool("short-form", false, "only the scenarios of CI")
	named      = flag.String("scenarios", "", "only scenarios whose name this regular expression finds")
	faults     = flag.Int("faults", 0, "repeat scenarios in random order until this many have run; 0 for each once")
	requests   = flag.Int("requests", 0, "and until this many requests were sent")
	rate       = flag.Int("rate", 200, "requests a second on a fleet while scenarios run")
)

// scenarios lists all of them.
func scenarios() []harness.Scenario {
	return slices.Concat(
		etcdScenarios(), crashScenarios(), strikeScenarios(), networkScenarios(),
		hostScenarios(), rolloutScenarios(), stormScenarios())
}

// TestScenarios puts a fleet under load, makes one fault after the other, and
// after each holds everything that was seen of the fleet against what it promises.
func TestScenarios(t *testing.T) {
	list := scenarios()
	unique(t, list)
	wanted, err := regexp.Compile(*named)
	if err != nil {
		t.Fatalf("-scenarios: %v", err)
	}
	list = slices.DeleteFunc(list, func(s harness.Scenario) bool {
		return !wanted.MatchString(s.Name) || *shortForm && !s.Short
	})
	if len(list) == 0 {
		t.Fatal("no scenario is wanted: see -scenarios and -short-form")
	}
	kind, why := chooseGround(t)
	r := &runner{kind: kind, report: newReport(kind, why)}
	defer func() {
		r.report.save(t)
		fmt.Print(r.report.table())
	}()
	for _, s := range list {
		if s.Ground != "" && s.Ground != kind && (*groundKind != "auto" || s.Ground == "containers") {
			r.report.add(row{Scenario: s.Name, Ground: s.Ground, Result: notRun, Why: s.Why})
		}
	}
	list = slices.DeleteFunc(list, func(s harness.Scenario) bool {
		return s.Ground != "" && s.Ground != kind && (*groundKind != "auto" || s.Ground == "containers")
	})
	if !soaks() {
		r.round(t, list)
		return
	}
	rng := random(t)
	for n := 0; r.report.Faults < *faults || r.report.Requests < *requests; n++ {
		before := r.report.Faults
		t.Run(fmt.Sprintf("round %d", n+1), func(t *testing.T) { r.round(t, r.some(rng, list)) })
		if r.report.Faults == before {
			t.Fatal("a round ran no scenario")
		}
	}
}

// soaks tells whether scenarios are repeated.
func soaks() bool { return *faults > 0 || *requests > 0 }

// unique fails for names that two scenarios have.
func unique(t *testing.T, list []harness.Scenario) {
	t.Helper()
	seen := map[string]bool{}
	for _, s := range list {
		if seen[s.Name] || s.Name == "" || s.Bound <= 0 || s.Ground != "" && s.Why == "" {
			t.Errorf("scenario %q: its name is not its own, or it has no bound, or a ground and no reason for it", s.Name)
		}
		seen[s.Name] = true
	}
}

// chooseGround is the ground of scenarios that have no need of either, and in
// words why it is that.
func chooseGround(t *testing.T) (kind, why string) {
	t.Helper()
	switch *groundKind {
	case "containers", "processes":
		return *groundKind, "-ground"
	case "auto":
	default:
		t.Fatalf("-ground %s: want containers, processes or auto", *groundKind)
	}
	p, err := testcontainers.NewDockerProvider()
	if err == nil {
		defer p.Close()
		err = p.Health(t.Context())
	}
	if err == nil {
		return "containers", "a Docker engine answers"
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("CI needs a Docker engine: %v", err)
	}
	why = fmt.Sprintf("no Docker engine answers: %v", err)
	fmt.Printf("\n*** %s\n*** The scenarios run on PROCESSES of this machine and proxies in this process, not in containers.\n\n", why)
	return "processes", why
}

// A runner runs scenarios and keeps what came of them.
type runner struct {
	kind   string
	report *report
}

// some is what one round of a soak runs: each scenario once, in random order,
// but no more than are still to be run.
func (r *runner) some(rng *rand.Rand, list []harness.Scenario) []harness.Scenario {
	list = slices.Clone(list)
	rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	if left := *faults - r.report.Faults; left > 0 && left < len(list) {
		list = list[:left]
	}
	return list
}

// A site of a world, and the scenarios that share it.
type shared struct {
	kind    string
	options harness.WorldOptions
	list    []harness.Scenario
}

// round runs each scenario once. Those that need the same world share it, until
// one fails: the next gets a new one.
func (r *runner) round(t *testing.T, list []harness.Scenario) {
	var worlds []*shared
	for _, s := range list {
		kind := cmp.Or(s.Ground, r.kind)
		i := slices.IndexFunc(worlds, func(w *shared) bool { return w.kind == kind && w.options == s.World })
		if i < 0 {
			i = len(worlds)
			worlds = append(worlds, &shared{kind: kind, options: s.World})
		}
		worlds[i].list = append(worlds[i].list, s)
	}
	for n, w := range worlds {
		for len(w.list) > 0 {
			left := len(w.list)
			t.Run(fmt.Sprintf("world %d on %s", n+1, w.kind), func(t *testing.T) { r.inWorld(t, w) })
			if len(w.list) == left { // the world itself did not come to be
				r.report.add(row{Scenario: w.list[0].Name, Ground: w.kind, Result: failed, Why: "its world did not start"})
				w.list = w.list[1:]
			}
		}
	}
}

// inWorld runs the scenarios of w.list in one world, until one fails, and takes
// from the list what it ran.
func (r *runner) inWorld(t *testing.T, w *shared) {
	s := newStage(t, w)
	for len(w.list) > 0 {
		next := w.list[0]
		w.list = w.list[1:]
		res := row{Scenario: next.Name, Ground: w.kind, Bound: next.Bound.Seconds(), Result: failed}
		ok := t.Run(next.Name, func(t *testing.T) { s.run(t, next, &res) })
		if ok {
			res.Result = passed
		}
		r.report.add(res)
		r.report.save(t)
		if soaks() {
			t.Logf("%d of %d faults, %d of %d requests, %d violations", r.report.Faults, *faults, r.report.Requests, *requests, r.report.Violations)
		}
		if !ok {
			return
		}
	}
}

// A stage is a world, and everything that is seen of it.
type stage struct {
	*harness.World
	etcd   *recording
	counts harness.Counts // at the beginning of the scenario of the moment
}

func newStage(t *testing.T, w *shared) *stage {
	t.Helper()
	if w.kind == "containers" {
		return stageOn(t, harness.NewContainers(t, bin), bin, w.options)
	}
	return stageOn(t, harness.NewProcesses(t, bin), bin, w.options)
}

func stageOn(t *testing.T, g harness.Ground, b harness.Binaries, o harness.WorldOptions) *stage {
	t.Helper()
	s := &stage{World: harness.NewWorld(t, b, g, o)}
	s.Recorder = harness.NewRecorder(s.Fleet, harness.RecorderOptions{Rate: *rate})
	s.etcd = record(t, s.ClientConfig(), s.Recorder.Begun())
	s.Recorder.Start()
	t.Cleanup(s.Recorder.Stop)
	return s
}

// run makes the fault, waits for the fleet to be one again within the bound,
// publishes, and holds everything that was seen so far against the promises.
func (s *stage) run(t *testing.T, sc harness.Scenario, res *row) {
	s.counts = s.Recorder.Counts()
	began := time.Now()
	defer func() {
		now := s.Recorder.Counts()
		res.Seconds = time.Since(began).Seconds()
		res.Requests, res.Excused, res.Failed = now.Requests-s.counts.Requests, now.Excused-s.counts.Excused, now.Failed-s.counts.Failed
		res.Looked, res.Violations = s.check(t)
	}()
	sc.Run(t, s.World)
	ended := time.Now()
	harness.Until(t, sc.Bound, "the fleet is one again", s.Converged)
	res.Converged = time.Since(ended).Seconds()
	if err := s.Publish("--wait", "--timeout", "30s"); err != nil {
		t.Fatalf("a publish after it: %v", err)
	}
	s.etcd.complete(t)
}

// check fails the test for what is broken.
func (s *stage) check(t *testing.T) (history.Looked, []history.Violation) {
	t.Helper()
	found, looked := s.seen(t)
	for _, v := range found {
		t.Errorf("%s is broken, %d times:\n\t%s", v.Rule, v.Times, strings.Join(v.What, "\n\t"))
	}
	return looked, found
}

// seen holds everything that was seen so far against the promises.
func (s *stage) seen(t *testing.T) ([]history.Violation, history.Looked) {
	t.Helper()
	h := &history.History{
		Start: s.Recorder.Begun(), Samples: s.Recorder.Samples(), Skewed: s.Skewed(),
	}
	var err error
	if !t.Failed() {
		if h.Final, err = s.history(); err != nil {
			t.Error(err)
		}
	}
	// What is read last is seen last: an answer's commit is among the writes.
	h.Answers = s.Recorder.Answers()
	h.Acked = s.Acked()
	logsOf(t, s.Instances, h)
	if !t.Failed() {
		s.etcd.complete(t)
	}
	for _, l := range s.etcd.into(h) {
		t.Errorf("the history is not whole: %s", l)
	}
	return history.Check(h)
}

// history is what routectl lists.
func (s *stage) history() ([]version.Revision, error) {
	var all []version.Revision
	out, err := s.Routectl("", "history", "-n", "0", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &all)
	}
	return all, err
}
