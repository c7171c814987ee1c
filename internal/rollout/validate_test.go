package rollout

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
	"routerd.dev/internal/analysis"
)

// TestBuiltins: every fleet has these strategies, and nothing is wrong with
// them.
func TestBuiltins(t *testing.T) {
	if want := []string{"all-at-once", "waves", "canary", "linear"}; !slices.Equal(BuiltinNames(), want) {
		t.Errorf("built in are %q, want %q", BuiltinNames(), want)
	}
	for _, n := range BuiltinNames() {
		s, ok := Builtin(n)
		if p := s.Validate(); !ok || len(p) > 0 || s.Name != n || s.Description == "" {
			t.Errorf("%s: %v %q", n, ok, p)
		}
	}
	if _, ok := Builtin("none"); ok {
		t.Error("none is built in")
	}
	// The built-in ones go over any fleet, and name every group.
	for _, groups := range [][]string{{"main"}, {"canary"}, {"a", "canary", "z"}} {
		for _, n := range BuiltinNames() {
			s, _ := Builtin(n)
			plan, without := resolve(s, groups)
			var got []string
			for _, w := range plan.Waves {
				got = append(got, w.Groups...)
			}
			if n == "waves" && slices.Contains(groups, "canary") && got[0] != "canary" {
				t.Errorf("%s over %q begins with %s", n, groups, got[0])
			}
			if n == "waves" && len(plan.Waves) != len(groups) {
				t.Errorf("%s over %q has %d waves", n, groups, len(plan.Waves))
			}
			slices.Sort(got)
			if len(without) > 0 || !slices.Equal(got, groups) {
				t.Errorf("%s over %q goes to %q, not to %q", n, groups, got, without)
			}
			plan.Name = "again"
			if p := plan.Validate(); len(p) > 0 {
				t.Errorf("%s over %q: %q", n, groups, p)
			}
		}
	}
}

// TestValidate: each problem is told, with its field.
func TestValidate(t *testing.T) {
	f := func(v float64) *float64 { return &v }
	nan, inf := math.NaN(), math.Inf(1)
	share := func(p float64, key string) PlanStep { return PlanStep{Share: &ShareStep{Percent: p, Key: key}} }
	canary := func(q Quantity) PlanStep { return PlanStep{Canary: &CanaryStep{Instances: q}} }
	commit := commitStep()
	web := func(edit func(*Check)) []PlanStep {
		c := Check{Name: "web", Web: &WebCheck{URL: "https://check.example/x"}, Min: f(1)}
		edit(&c)
		return []PlanStep{share(1, ""), {Analysis: &AnalysisStep{Checks: []Check{c}}}, commit}
	}
	wave := func(steps ...PlanStep) func(*Strategy) { return func(s *Strategy) { s.Waves[0].Steps = steps } }
	bake := func(b BakeStep) func(*Strategy) { return wave(commit, PlanStep{Bake: &b}) }
	checked := func(edit func(*Check)) func(*Strategy) {
		return func(s *Strategy) { s.Waves[0].Steps = web(edit) }
	}
	cfg := func(c analysis.Config) func(*Strategy) {
		return wave(share(1, ""), PlanStep{Analysis: &AnalysisStep{Config: c}}, commit)
	}
	const at = "waves[0].steps"
	const check = at + "[1].analysis.checks[0]"
	for _, c := range []struct {
		edit func(*Strategy)
		want []string // the fields, in order
	}{
		{func(*Strategy) {}, nil},
		{func(s *Strategy) { s.Name = "" }, []string{"name"}},
		{func(s *Strategy) { s.Name = "a b" }, []string{"name"}},
		{func(s *Strategy) { s.Name = strings.Repeat("a", 64) }, []string{"name"}},
		{func(s *Strategy) { s.Waves = nil }, []string{"waves"}},
		{func(s *Strategy) { s.Waves[0].Groups = nil }, []string{"waves[0].groups"}},
		{func(s *Strategy) { s.Waves[0].Groups = []string{"a", "a/b"} }, []string{"waves[0].groups[1]"}},
		{func(s *Strategy) { s.Waves[0].Groups = []string{"a", "a"} }, []string{"waves[0].groups[1]"}},
		{func(s *Strategy) { s.Waves = append(s.Waves, s.Waves[0]) }, []string{"waves[1].groups[0]"}},
		{func(s *Strategy) { s.Straggler = "hope" }, []string{"straggler"}},
		{func(s *Strategy) { s.PrepareTimeout = -1 }, []string{"prepareTimeout"}},
		{func(s *Strategy) { s.MaxUnready = "0" }, []string{"maxUnready"}},
		{func(s *Strategy) { s.MaxUnready = "-1" }, []string{"maxUnready"}},
		{func(s *Strategy) { s.OnControllerLoss = "panic" }, []string{"onControllerLoss"}},
		{func(s *Strategy) { s.ControllerGrace = -1 }, []string{"controllerGrace"}},
		{func(s *Strategy) { s.ControllerGrace = 1e9 }, []string{"controllerGrace"}},
		{wave(), []string{at}},
		{wave(share(10, "")), []string{at}},
		{wave(PlanStep{}, commit), []string{at + "[0]"}},
		{wave(PlanStep{Share: &ShareStep{}, Commit: &CommitStep{}}, commit), []string{at + "[0]"}},
		{wave(commit, commit), []string{at + "[1].commit"}},
		{wave(commit, share(10, "")), []string{at + "[1].share"}},
		{wave(commit, canary("1")), []string{at + "[1].canary"}},
		{wave(commit, PlanStep{Match: &MatchStep{Match{Header: "X"}}}), []string{at + "[1].match"}},
		{wave(share(1, ""), commit, analysisStep()), []string{at + "[2].analysis"}},
		{wave(analysisStep(), commit), []string{at + "[0].analysis"}},
		{wave(bakeStep(1), commit), []string{at + "[0].bake"}},
		{wave(commit, PlanStep{Bake: &BakeStep{Config: &analysis.Config{}}}), []string{at + "[1].bake"}},
		{bake(BakeStep{}), []string{at + "[1].bake"}},
		{bake(BakeStep{Requests: 1}), nil},
		{wave(append([]PlanStep{commit}, slices.Repeat([]PlanStep{bakeStep(1)}, maxSteps-1)...)...), nil},
		{wave(append([]PlanStep{commit}, slices.Repeat([]PlanStep{bakeStep(1)}, maxSteps)...)...), []string{"waves"}},
		{wave(commit, PlanStep{Bake: &BakeStep{Requests: 1, Config: &analysis.Config{}}}), nil},
		{wave(share(10, ""), share(10, ""), commit), []string{at + "[1].share.percent"}},
		{wave(share(10, ""), share(5, ""), commit), []string{at + "[1].share.percent"}},
		{wave(share(0, ""), share(100, ""), commit), nil},
		{wave(share(-1, ""), commit), []string{at + "[0].share.percent"}},
		{wave(share(100.01, ""), commit), []string{at + "[0].share.percent"}},
		{wave(share(nan, ""), commit), []string{at + "[0].share.percent"}},
		{wave(share(0.005, ""), commit), []string{at + "[0].share.percent"}},
		{wave(share(0.01, ""), share(33.33, ""), share(99.99, "client"), commit), nil},
		{wave(share(1, "header:X-User"), share(2, "header:X-User"), commit), nil},
		{wave(share(1, "cookie:id"), share(2, ""), commit), []string{at + "[1].share.key"}},
		{wave(share(1, "cookie:"), commit), []string{at + "[0].share.key"}},
		{wave(share(1, "header:a b"), commit), []string{at + "[0].share.key"}},
		{wave(share(1, "ip"), commit), []string{at + "[0].share.key"}},
		{wave(canary("1"), share(5, ""), commit), nil},
		{wave(share(5, ""), canary("1"), commit), []string{at + "[1].canary"}},
		{wave(canary("2"), canary("1"), commit), []string{at + "[1].canary.instances"}},
		{wave(canary("50%"), canary("25%"), commit), []string{at + "[1].canary.instances"}},
		{wave(canary("2"), canary("50%"), commit), nil},
		{wave(canary("0"), commit), []string{at + "[0].canary.instances"}},
		{wave(canary(""), commit), []string{at + "[0].canary.instances"}},
		{wave(canary("many"), commit), []string{at + "[0].canary.instances"}},
		{wave(canary("101%"), commit), []string{at + "[0].canary.instances"}},
		{wave(PlanStep{Match: &MatchStep{}}, commit), []string{at + "[0].match"}},
		{wave(PlanStep{Match: &MatchStep{Match{Header: "X", Cookie: "y"}}}, commit), []string{at + "[0].match"}},
		{wave(PlanStep{Match: &MatchStep{Match{Header: "a:b"}}}, commit), []string{at + "[0].match.header"}},
		{wave(PlanStep{Match: &MatchStep{Match{Cookie: "a;b"}}}, commit), []string{at + "[0].match.cookie"}},
		{wave(PlanStep{Match: &MatchStep{Match{Cookie: "a"}}}, PlanStep{Match: &MatchStep{Match{Cookie: "b"}}}, commit), []string{at + "[1].match"}},
		{wave(PlanStep{Pause: &PauseStep{}}, commit), []string{at + "[0].pause"}},
		{wave(PlanStep{Pause: &PauseStep{For: -1}}, commit), []string{at + "[0].pause.for"}},
		{wave(PlanStep{Pause: &PauseStep{Approval: true}}, commit), nil},
		{wave(PlanStep{Pause: &PauseStep{Approval: true, For: 1, Otherwise: "maybe"}}, commit), []string{at + "[0].pause.otherwise"}},
		{wave(PlanStep{Pause: &PauseStep{For: 1, Otherwise: OtherwiseContinue}}, commit), []string{at + "[0].pause.otherwise"}},
		{wave(PlanStep{Pause: &PauseStep{For: 1, Unjudged: true}}, commit), []string{at + "[0].pause.unjudged"}},
		{wave(shareStep(1), PlanStep{Pause: &PauseStep{For: 1, Unjudged: true}}, commit), nil},
		{wave(commit, PlanStep{Pause: &PauseStep{For: 1, Unjudged: true}}), nil},
		{bake(BakeStep{For: -1}), []string{at + "[1].bake.for"}},
		{bake(BakeStep{For: 1, Config: &analysis.Config{Confidence: 2}}), []string{at + "[1].bake.analysis.confidence"}},
		{bake(BakeStep{Checks: []Check{{}}}), []string{at + "[1].bake.checks[0].name", at + "[1].bake.checks[0]", at + "[1].bake.checks[0]"}},
		{cfg(analysis.Config{Confidence: 0.4}), []string{at + "[1].analysis.confidence"}},
		{cfg(analysis.Config{Confidence: 1}), []string{at + "[1].analysis.confidence"}},
		{cfg(analysis.Config{Confidence: nan}), []string{at + "[1].analysis.confidence"}},
		{cfg(analysis.Config{MinSeconds: -1}), []string{at + "[1].analysis.minSeconds"}},
		{cfg(analysis.Config{MinSeconds: inf}), []string{at + "[1].analysis.minSeconds"}},
		{cfg(analysis.Config{Metrics: map[string]analysis.Metric{"speed": {}, "latency": {MinEffect: -1}}}), []string{at + "[1].analysis.metrics.latency.minEffect", at + "[1].analysis.metrics.speed"}},
		{wave(share(1, ""), PlanStep{Analysis: &AnalysisStep{InconclusiveLimit: -1}}, commit), []string{at + "[1].analysis.inconclusiveLimit"}},
		{checked(func(*Check) {}), nil},
		{checked(func(c *Check) { c.Name = "" }), []string{check + ".name"}},
		{checked(func(c *Check) { c.Prometheus = &PrometheusCheck{} }), []string{check}},
		{checked(func(c *Check) { c.Web = nil }), []string{check}},
		{checked(func(c *Check) { c.Web.URL = "check.example" }), []string{check + ".web.url"}},
		{checked(func(c *Check) { c.Web.URL = "ftp://check.example" }), []string{check + ".web.url"}},
		{checked(func(c *Check) { c.Web.URL = "http://me:secret@check.example" }), []string{check + ".web.url"}},
		{checked(func(c *Check) { c.Web.URL = "http://a b" }), []string{check + ".web.url"}},
		{checked(func(c *Check) { c.Web.Method = "G T" }), []string{check + ".web.method"}},
		{checked(func(c *Check) { c.Web.Headers = map[string]string{"X-A": "b", "Authorization": "env:TOKEN"} }), nil},
		{checked(func(c *Check) { c.Web.Headers = map[string]string{"Authorization": "secret"} }), []string{check + ".web.headers.Authorization"}},
		{checked(func(c *Check) { c.Web.Headers = map[string]string{"X-A": "env:"} }), []string{check + ".web.headers.X-A"}},
		{checked(func(c *Check) { c.Web.Headers = map[string]string{"X A": "b"} }), []string{check + ".web.headers.X A"}},
		{checked(func(c *Check) { c.Web.Headers = map[string]string{"X-A": "b\r\nc"} }), []string{check + ".web.headers.X-A"}},
		{checked(func(c *Check) { c.Web, c.Prometheus = nil, &PrometheusCheck{Address: "http://p:9090", Query: "up"} }), nil},
		{checked(func(c *Check) { c.Web, c.Prometheus = nil, &PrometheusCheck{Address: "p:9090"} }), []string{check + ".prometheus.address", check + ".prometheus.query"}},
		{checked(func(c *Check) { c.Every, c.Timeout = -1, -1 }), []string{check + ".every", check + ".timeout"}},
		{checked(func(c *Check) { c.Min = nil }), []string{check}},
		{checked(func(c *Check) { c.Min = &nan }), []string{check + ".min"}},
		{checked(func(c *Check) { c.Max = f(0.5) }), []string{check + ".min"}},
		{checked(func(c *Check) { c.FailureLimit, c.ErrorLimit, c.InconclusiveLimit, c.Passes = -1, -1, -1, -1 }), []string{check + ".failureLimit", check + ".errorLimit", check + ".inconclusiveLimit", check + ".passes"}},
		{func(s *Strategy) {
			s.Waves[0].Steps = web(func(*Check) {})
			a := s.Waves[0].Steps[1].Analysis
			a.Checks = append(a.Checks, a.Checks[0])
		}, []string{at + "[1].analysis.checks[1].name"}},
	} {
		s := Strategy{Name: "s", Waves: []Wave{{Groups: []string{"*"}, Steps: []PlanStep{commit}}}}
		c.edit(&s)
		var got []string
		for _, p := range s.Validate() {
			field, what, ok := strings.Cut(p, ": ")
			if !ok || what == "" {
				t.Errorf("%q has no field or no text", p)
			}
			got = append(got, field)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s\n got %q\nwant %q", dumpSteps(s), s.Validate(), c.want)
		}
	}
}

func dumpSteps(s Strategy) string { return fmt.Sprintf("%+v", s) }

// TestValidateTakesAnything: no strategy makes it panic.
func TestValidateTakesAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawStrategy(t, "s")
		if p := s.Validate(); len(p) > 0 {
			t.Fatalf("%q", p)
		}
		for range rapid.IntRange(1, 4).Draw(t, "edits") {
			w := &s.Waves[rapid.IntRange(0, len(s.Waves)-1).Draw(t, "wave")]
			i := rapid.IntRange(0, len(w.Steps)).Draw(t, "at")
			odd := rapid.SampledFrom([]PlanStep{
				{},
				{Canary: &CanaryStep{Instances: Quantity(rapid.String().Draw(t, "quantity"))}},
				{Share: &ShareStep{Percent: rapid.Float64().Draw(t, "percent"), Key: rapid.String().Draw(t, "key")}},
				{Match: &MatchStep{}},
				{Analysis: &AnalysisStep{Checks: []Check{{}}}, Bake: &BakeStep{}},
				{Commit: &CommitStep{}},
			}).Draw(t, "odd")
			w.Steps = slices.Insert(slices.Clone(w.Steps), i, odd)
		}
		s.Validate()
	})
}

// TestQuantity: a number is itself, a part is rounded up and exact.
func TestQuantity(t *testing.T) {
	for _, c := range []struct {
		q    Quantity
		n    int
		want int // -1: an error
	}{
		{"", 10, 0},
		{"3", 10, 3},
		{"30", 10, 30},
		{"25%", 8, 2},
		{"25%", 9, 3},
		{"100%", 7, 7},
		{"0%", 7, 0},
		{"33.33%", 3, 1},
		{"33.34%", 3, 2},
		{"0.01%", 1, 1},
		{"12.5%", 8, 1},
		{"1.005%", 8, -1},
		{"12.%", 8, -1},
		{".5%", 8, -1},
		{"100.01%", 8, -1},
		{"-1", 8, -1},
		{"+1", 8, -1},
		{"1e3", 8, -1},
		{"%", 8, -1},
		{" 1", 8, -1},
		{"99999999999", 8, -1},
	} {
		got, err := c.q.Of(c.n)
		if (err != nil) != (c.want < 0) || err == nil && got != c.want {
			t.Errorf("%q of %d is %d, %v; want %d", c.q, c.n, got, err, c.want)
		}
	}
}
