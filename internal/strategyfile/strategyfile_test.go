package strategyfile

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/yamlfile"
)

// clean reads a file that has no problem.
func clean(t testing.TB, data string) []rollout.Strategy {
	t.Helper()
	all, problems := Read("s.yaml", []byte(data))
	for _, p := range problems {
		t.Errorf("%v", p)
	}
	return all
}

func TestRead(t *testing.T) {
	low := 0.99
	got := clean(t, `# two of them
apiVersion: routerd/v1
strategy: careful
description: first testers
straggler: evict
maxUnready: 25%
prepareTimeout: 90s
onControllerLoss: rollback
waves:
- groups: [edge]
  steps:
  - match: {header: X-Tester}
  - pause: {approval: true, for: 1h, otherwise: continue, unjudged: true}
  - canary: {instances: 2}
  - analysis:
      minRequests: 10
      metrics: {latency: {off: true}}
      inconclusiveLimit: 10m
      checks:
      - {name: smoke, web: {url: "https://x/run", headers: {X-A: "env:TOKEN"}, field: a.b}, min: 0.99, every: 15s}
  - commit:
  - bake: {for: 10m, requests: 1000, analysis: {confidence: 0.99}}
- name: rest
  groups: ["*"]
  oneByOne: true
  steps: [{share: {percent: 12.5, key: "cookie:session"}}, {analysis: }, {commit: {}}]
---
{"apiVersion": "routerd/v1", "strategy": "quick", "waves": [{"groups": ["*"], "steps": [{"commit": {}}]}]}
`)
	want := []rollout.Strategy{{
		Name: "careful", Description: "first testers", Straggler: rollout.StragglerEvict, MaxUnready: "25%",
		PrepareTimeout: rollout.Duration(90 * time.Second), OnControllerLoss: rollout.LossRollback,
		Waves: []rollout.Wave{
			{Groups: []string{"edge"}, Steps: []rollout.PlanStep{
				{Match: &rollout.MatchStep{Match: rollout.Match{Header: "X-Tester"}}},
				{Pause: &rollout.PauseStep{Approval: true, For: rollout.Duration(time.Hour), Otherwise: rollout.OtherwiseContinue, Unjudged: true}},
				{Canary: &rollout.CanaryStep{Instances: "2"}},
				{Analysis: &rollout.AnalysisStep{
					Config:            analysis.Config{MinRequests: 10, Metrics: map[string]analysis.Metric{"latency": {Off: true}}},
					InconclusiveLimit: rollout.Duration(10 * time.Minute),
					Checks: []rollout.Check{{
						Name: "smoke", Web: &rollout.WebCheck{URL: "https://x/run", Headers: map[string]string{"X-A": "env:TOKEN"}, Field: "a.b"},
						Min: &low, Every: rollout.Duration(15 * time.Second),
					}},
				}},
				{Commit: &rollout.CommitStep{}},
				{Bake: &rollout.BakeStep{For: rollout.Duration(10 * time.Minute), Requests: 1000, Config: &analysis.Config{Confidence: 0.99}}},
			}},
			{Name: "rest", Groups: []string{"*"}, OneByOne: true, Steps: []rollout.PlanStep{
				{Share: &rollout.ShareStep{Percent: 12.5, Key: "cookie:session"}},
				{Analysis: &rollout.AnalysisStep{}},
				{Commit: &rollout.CommitStep{}},
			}},
		},
	}, {
		Name: "quick", Waves: []rollout.Wave{{Groups: []string{"*"}, Steps: []rollout.PlanStep{{Commit: &rollout.CommitStep{}}}}},
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestProblems: each has its line and field, and all are told at once.
func TestProblems(t *testing.T) {
	const head = "apiVersion: routerd/v1\nstrategy: s\n"
	for name, c := range map[string]struct {
		data string
		want []string // line: field: a part of the message
	}{
		"not a map":     {"- a\n", []string{"1: : is a map, this is a list"}},
		"no version":    {"strategy: s\n", []string{"1: apiVersion: is missing"}},
		"future":        {"apiVersion: routerd/v2\nstrategy: s\n", []string{"1: apiVersion: does not read version"}},
		"another thing": {"apiVersion: v1\n", []string{"1: apiVersion: not the version"}},
		"a route file":  {"apiVersion: routerd/v1\nmodule: shop\n", []string{"2: module: this is a route file"}},
		"no name":       {"apiVersion: routerd/v1\nwaves: [{groups: [a], steps: [{commit: {}}]}]\n", []string{"1: strategy: is missing"}},
		"its name": {
			"apiVersion: routerd/v1\nstrategy: s s\nwaves: [{groups: [a], steps: [{commit: {}}]}]\n", []string{"2: strategy: want 1 to 63 letters"},
		},
		"called name": {head + "name: t\nwaves: [{groups: [a], steps: [{commit: {}}]}]\n", []string{"3: name: unknown field"}},
		"no waves":    {head, []string{"1: waves: want at least one"}},
		"unknown": {
			head + "waves:\n- groups: [a]\n  steps:\n  - canary: {instance: 1}\n  - commit: {}\n",
			[]string{"6: waves[0].steps[0].canary.instance: unknown field"},
		},
		"units and kinds": {
			head + "prepareTimeout: 10\nmaxUnready: many\nwaves:\n- groups: [a]\n  steps:\n  - pause: {for: 5}\n  - share: {percent: 25%}\n  - commit: {}\n",
			[]string{
				"3: prepareTimeout: without a unit", "4: maxUnready: want a number of instances", "8: waves[0].steps[0].pause.for: without a unit",
				"9: waves[0].steps[1].share.percent: want a number",
			},
		},
		"what Validate says": {
			head + "waves:\n- groups: [a, a]\n  steps:\n  - share: {percent: 50}\n  - share: {percent: 25}\n  - commit: {}\n  - bake:\n      checks:\n      - name: x\n        web: {url: nowhere}\n        min: 1\n",
			[]string{
				"4: waves[0].groups[1]: is in a wave already", "7: waves[0].steps[1].share.percent: only grows",
				"12: waves[0].steps[3].bake.checks[0].web.url: want http",
			},
		},
		"one wave cannot be read": {
			head + "waves:\n- groups: [a]\n  steps: [{comit: {}}]\n- groups: [b]\n  steps: [{share: {percent: 101}}, {commit: {}}]\n",
			[]string{"5: waves[0].steps[0].comit: unknown field", "7: waves[1].steps[0].share.percent: want 0 to 100"},
		},
		"twice": {
			head + "waves: [{groups: [a], steps: [{commit: }]}]\n---\n" + head + "waves: [{groups: [a], steps: [{commit: }]}]\n",
			[]string{"6: strategy: another strategy s at line 2"},
		},
		"syntax": {"apiVersion: [\n", []string{""}},
	} {
		t.Run(name, func(t *testing.T) {
			_, problems := Read("s.yaml", []byte(c.data))
			var got []string
			for _, p := range problems {
				got = append(got, fmt.Sprintf("%d: %s: %s", p.Line, p.Field, p.Message))
				if p.File != "s.yaml" || p.Line == 0 {
					t.Errorf("no place: %v", p)
				}
			}
			ok := len(got) == len(c.want)
			for i := range got {
				place, part := "", ""
				if ok && c.want[i] != "" {
					at := strings.LastIndex(c.want[i], ": ")
					place, part = c.want[i][:at+2], c.want[i][at+2:]
				}
				ok = ok && strings.HasPrefix(got[i], place) && strings.Contains(got[i], part)
			}
			if !ok {
				t.Errorf("problems\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestUnknownFieldsAreNamedWithWhatIsKnown(t *testing.T) {
	_, problems := Read("s.yaml", []byte("apiVersion: routerd/v1\nstrategy: s\nzzz: 1\nwaves: [{groups: [a], steps: [{commit: }]}]\n"))
	if len(problems) != 1 {
		t.Fatal(problems)
	}
	for _, known := range []string{"strategy", "waves", "maxUnready", "onControllerLoss", "manualRollback"} {
		if !strings.Contains(problems[0].Hint, known) {
			t.Errorf("hint %q does not name %s", problems[0].Hint, known)
		}
	}
	if strings.Contains(problems[0].Hint, " name") || strings.Contains(problems[0].Hint, "plan") {
		t.Errorf("hint %q names what files do not have", problems[0].Hint)
	}
}

// TestFormatOfBuiltins also shows how it looks.
func TestFormatOfBuiltins(t *testing.T) {
	for _, name := range rollout.BuiltinNames() {
		want, _ := rollout.Builtin(name)
		if d := cmp.Diff([]rollout.Strategy{want}, clean(t, string(Format(want)))); d != "" {
			t.Error(d)
		}
	}
	waves, _ := rollout.Builtin("waves")
	text := string(Format(waves))
	for _, line := range []string{"apiVersion: routerd/v1", "strategy: waves", "commit: {}", "bake: {for: 5m}"} {
		if !strings.Contains(text, line) {
			t.Errorf("%q is not in\n%s", line, text)
		}
	}
	s, _ := rollout.Builtin("canary")
	if text := string(Format(s)); !strings.Contains(text, "canary: {instances: 1}") {
		t.Error(text)
	}
	s.Description = "\xff"
	if all, problems := Read("s.yaml", Format(s)); len(all) != 0 || len(problems) != 0 {
		t.Errorf("what cannot be written is %v, %v", all, problems)
	}
}

// TestFormatReadsBack: whatever Validate accepts.
func TestFormatReadsBack(t *testing.T) {
	played := 0
	rapid.Check(t, func(t *rapid.T) {
		s := drawStrategy(t)
		if wrong := s.Validate(); len(wrong) > 0 {
			t.Fatalf("the generator is wrong: %v", wrong)
		}
		played++
		text := Format(s)
		got, problems := Read("s.yaml", text)
		if len(problems) > 0 {
			t.Fatalf("%v in\n%s", problems, text)
		}
		same(t, []rollout.Strategy{s}, got, text)
	})
	if played == 0 {
		t.Error("nothing was tried")
	}
}

func same(t interface{ Fatalf(string, ...any) }, want, got []rollout.Strategy, text []byte) {
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Fatalf("%s by\n%s", d, text)
	}
}

func drawStrategy(t *rapid.T) rollout.Strategy {
	duration := rapid.Custom(func(t *rapid.T) rollout.Duration { return rollout.Duration(rapid.Int64Range(0, 1<<45).Draw(t, "d")) })
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "1", "true", "null", "# x", "a: b", "- a", "10s", "~", "|", "a\n b\n"}))
	number := rapid.Float64Range(-1e12, 1e12)
	check := rapid.Custom(func(t *rapid.T) rollout.Check {
		low := number.Draw(t, "min")
		high := low + rapid.Float64Range(0, 1e12).Draw(t, "more")
		c := rollout.Check{
			Every: duration.Draw(t, "every"), Timeout: duration.Draw(t, "timeout"), Min: &low, Max: &high, Passes: rapid.IntRange(0, 9).Draw(t, "passes"),
			FailureLimit: rapid.IntRange(0, 9).Draw(t, "limit"), DryRun: rapid.Bool().Draw(t, "dry"),
		}
		if rapid.Bool().Draw(t, "web") {
			c.Web = &rollout.WebCheck{URL: "http://x/" + rapid.StringMatching(`[a-z]*`).Draw(t, "path"), Field: text.Draw(t, "field"), Headers: map[string]string{"X-A": "b: c"}}
		} else {
			c.Prometheus = &rollout.PrometheusCheck{Address: "https://prom:9090", Query: "q" + text.Draw(t, "query")}
		}
		return c
	})
	checks := func() []rollout.Check {
		cs := rapid.SliceOfN(check, 0, 3).Draw(t, "checks")
		for i := range cs {
			cs[i].Name = fmt.Sprint("c", i)
		}
		return cs
	}
	steps := []rollout.PlanStep{}
	if rapid.Bool().Draw(t, "canary") {
		steps = append(steps, rollout.PlanStep{Canary: &rollout.CanaryStep{Instances: rapid.SampledFrom([]rollout.Quantity{"1", "7", "12.5%", "100%"}).Draw(t, "q")}})
	}
	if rapid.Bool().Draw(t, "share") {
		steps = append(steps, rollout.PlanStep{Share: &rollout.ShareStep{
			Percent: float64(rapid.IntRange(0, 10000).Draw(t, "p")) / 100, Key: rapid.SampledFrom([]string{"", "client", "header:X-A", "cookie:y"}).Draw(t, "key"),
		}})
	}
	if len(steps) > 0 {
		steps = append(steps, rollout.PlanStep{Analysis: &rollout.AnalysisStep{
			Config: analysis.Config{
				Confidence: rapid.SampledFrom([]float64{0, 0.5, 0.99, 0.9999999}).Draw(t, "confidence"), MinSeconds: rapid.Float64Range(0, 1e6).Draw(t, "s"),
				MinRequests: rapid.Uint64().Draw(t, "n"), Metrics: map[string]analysis.Metric{"latency": {MinEffect: 0.25}, "errors": {DryRun: rapid.Bool().Draw(t, "dry")}},
			},
			InconclusiveLimit: duration.Draw(t, "limit"), Checks: checks(),
		}})
	}
	steps = append(steps,
		rollout.PlanStep{Pause: &rollout.PauseStep{Approval: true, For: duration.Draw(t, "for"), Unjudged: len(steps) > 0 && rapid.Bool().Draw(t, "unjudged")}},
		rollout.PlanStep{Commit: &rollout.CommitStep{}},
		rollout.PlanStep{Bake: &rollout.BakeStep{For: duration.Draw(t, "for"), Requests: rapid.Uint64Min(1).Draw(t, "n"), Checks: checks()}})
	return rollout.Strategy{
		Name: rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9._-]{0,20}`).Draw(t, "name"), Description: text.Draw(t, "description"),
		Straggler: rapid.SampledFrom([]rollout.Straggler{"", rollout.StragglerEvict}).Draw(t, "straggler"), PrepareTimeout: duration.Draw(t, "timeout"),
		MaxUnready: rapid.SampledFrom([]rollout.Quantity{"", "3", "0.5%"}).Draw(t, "q"), ManualRollback: rapid.Bool().Draw(t, "manual"),
		Waves: []rollout.Wave{{Name: text.Draw(t, "wave"), Groups: []string{"*", "no", "1e5"}, OneByOne: rapid.Bool().Draw(t, "one"), Steps: steps}},
	}
}

// TestEveryTypeIsOfDocuments: a field that a strategy gets later must not make
// the reader panic.
func TestEveryTypeIsOfDocuments(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var visit func(reflect.Type)
	visit = func(x reflect.Type) {
		if seen[x] || x == durationType {
			return
		}
		seen[x] = true
		switch x.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			visit(x.Elem())
		case reflect.Struct:
			for _, f := range fieldTypes(x) {
				visit(f)
			}
		case reflect.String, reflect.Bool, reflect.Int, reflect.Uint64, reflect.Float64:
		default:
			t.Errorf("%s: how is it read?", x)
		}
	}
	visit(documentType)
	if !seen[reflect.TypeFor[rollout.PrometheusCheck]()] || !seen[quantityType] {
		t.Error("not everything was visited")
	}
}

// TestExamples: what is there to learn from can be used.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../docs/strategies/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%d examples: %v", len(files), err)
	}
	var names []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all, problems := Read(f, b)
		for _, p := range problems {
			t.Error(p)
		}
		for _, s := range all {
			if s.Name+".yaml" != filepath.Base(f) || s.Description == "" || slices.Contains(names, s.Name) {
				t.Errorf("%s holds %s: %q", f, s.Name, s.Description)
			}
			names = append(names, s.Name)
			if _, builtin := rollout.Builtin(s.Name); builtin {
				t.Errorf("%s cannot be stored: it is built in", s.Name)
			}
			got, problems := Read(f, Format(s))
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			same(t, []rollout.Strategy{s}, got, b)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, name := range rollout.BuiltinNames() {
		s, _ := rollout.Builtin(name)
		f.Add(Format(s))
	}
	f.Add([]byte("apiVersion: routerd/v1\nstrategy: s\nprepareTimeout: 10\nwaves:\n- &w {groups: [a], steps: [{commit: }]}\n- *w\n---\n{}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, problems := Read("s.yaml", data)
		for _, p := range problems {
			if p.File == "" || p.Message == "" {
				t.Errorf("problem %+v", p)
			}
		}
		for _, s := range all {
			if wrong := s.Validate(); len(wrong) > 0 {
				t.Errorf("read what is not valid: %v", wrong)
			}
			text := Format(s)
			got, problems := Read("s.yaml", text)
			if len(problems) > 0 {
				t.Fatalf("%v in\n%s", yamlfile.Problems(problems), text)
			}
			same(t, []rollout.Strategy{s}, got, text)
		}
	})
}
