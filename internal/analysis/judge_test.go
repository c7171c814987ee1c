package analysis

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// even is a pair of n0 and n1 requests that took 10 ms each, k0 and k1 of them errors.
func even(n0, k0, n1, k1 uint64) Pair {
	side := func(n, k uint64) (c Counts) {
		c.Requests, c.Errors = n, k
		c.Latency[BucketOf(10*time.Millisecond)] = n
		return c
	}
	return Pair{Stable: side(n0, k0), Candidate: side(n1, k1)}
}

// enough is a comparison that passes.
func enough() Comparison {
	return Comparison{Seconds: 60, Groups: map[string]Sample{"main": {
		All:    even(3000, 0, 1000, 0),
		Routes: map[string]Pair{"shop/checkout": even(300, 0, 100, 0)},
	}}}
}

func with(edit func(s *Sample)) Comparison {
	of := enough()
	s := of.Groups["main"]
	edit(&s)
	of.Groups["main"] = s
	return of
}

func route(p Pair) func(*Sample) {
	return func(s *Sample) { s.Routes = map[string]Pair{"shop/checkout": p} }
}

// keys are n keys, others for each at.
func keys(n int, at uint64) (k KeySet) {
	rng := rand.New(rand.NewPCG(at, 5))
	for range n {
		k.Add(rng.Uint64())
	}
	return k
}

// TestVerdicts has a case for each rule of a verdict; why is a part of Why.
func TestVerdicts(t *testing.T) {
	failing := route(even(1260, 0, 420, 13))
	shared := func(stable, candidate int, edit func(*Sample)) Comparison {
		of := with(func(s *Sample) {
			s.StableKeys, s.CandidateKeys = keys(stable, 1), keys(candidate, 1<<40)
			if edit != nil {
				edit(s)
			}
		})
		of.Wanted = map[string]int{"main": 2500}
		return of
	}
	for _, c := range []struct {
		name   string
		config Config
		of     Comparison
		want   Verdict
		why    string
	}{
		{name: "enough and nothing worse", of: enough(), want: Pass, why: "pass: nothing is worse in 1,000 requests of the candidate and 3,000 of stable within 1m0s"},
		{name: "no group", of: Comparison{Seconds: 1000}, want: Inconclusive, why: "no group reported"},
		{name: "no data", of: Comparison{Seconds: 1000, Groups: map[string]Sample{"main": {}}}, want: Inconclusive, why: "group main has 0 of 50 requests of the candidate"},
		{name: "a group without data", of: func() Comparison { of := enough(); of.Groups["b"] = Sample{}; return of }(), want: Inconclusive, why: "group b has 0 of 50"},
		{name: "a group without stable", of: func() Comparison {
			of := enough()
			of.Groups["b"] = Sample{All: even(0, 0, 1000, 0)}
			return of
		}(), want: Inconclusive, why: "group b has 0 of 50 requests of stable"},
		{name: "too early", of: func() Comparison { of := enough(); of.Seconds = 59; return of }(), want: Inconclusive, why: "59 of 60 seconds"},
		{name: "time is not a number", of: func() Comparison { of := enough(); of.Seconds = math.NaN(); return of }(), want: Inconclusive},
		{name: "few of the candidate", config: Config{MinRequests: 1001}, of: enough(), want: Inconclusive, why: "the candidate has 1,000 of 1,001 requests in all"},
		{name: "few of stable", of: with(func(s *Sample) { s.All = even(499, 0, 1000, 0) }), want: Inconclusive, why: "stable has 499 of 500 requests in all"},
		{name: "few on a route", of: with(route(even(300, 0, 12, 0))), want: Inconclusive, why: "shop/checkout has 12 of 50 requests of the candidate in group main"},
		{name: "none on a route", of: with(route(Pair{})), want: Inconclusive, why: "shop/checkout has 0 of 50"},
		{name: "a removed route", of: with(route(even(300, 0, 0, 0))), want: Inconclusive, why: "perhaps it was removed"},
		{name: "more routes than listed, none asked", of: with(func(s *Sample) { s.More = 3 }), want: Inconclusive, why: "(rest) has 0 of 50"},
		{name: "more routes than listed", of: with(func(s *Sample) { s.More = 3; s.Rest = even(300, 0, 100, 0) }), want: Pass},
		{name: "the rest fails", of: with(func(s *Sample) { s.More = 3; s.Rest = even(1260, 0, 420, 13) }), want: Fail, why: "(rest) in main"},
		{name: "a route fails", of: with(failing), want: Fail, why: "fail: shop/checkout in main: errors 3.1 % of 420 requests, stable 0.0 % of 1,260 (e-value "},
		{name: "early, a route fails", of: func() Comparison { of := with(failing); of.Seconds = 2; return of }(), want: Fail},
		{name: "stable fails as often", of: with(route(even(1260, 39, 420, 13))), want: Pass},
		{name: "stable fails more", of: with(route(even(1260, 600, 420, 13))), want: Pass},
		{name: "suspicious, few", of: with(route(even(300, 0, 100, 4))), want: Inconclusive, why: "more requests will tell"},
		{name: "four bad requests never fail", of: with(func(s *Sample) { s.All = even(1e6, 0, 1000, 4); route(even(1e6, 0, 60, 4))(s) }), want: Inconclusive},
		{name: "certain, and too small to count", of: with(func(s *Sample) { s.All = even(4e6, 0, 1e6, 4900) }), want: Pass},
		{name: "a smaller effect counts", config: Config{Metrics: map[string]Metric{"errors": {MinEffect: 0.001}}}, of: with(func(s *Sample) { s.All = even(4e6, 0, 1e6, 4900) }), want: Fail},
		{name: "a bake takes twice the effect", of: func() Comparison {
			of := with(func(s *Sample) { s.All = even(4e6, 0, 1e6, 9900) })
			of.Before = true
			return of
		}(), want: Pass},
		{name: "twice the effect", of: func() Comparison {
			of := with(func(s *Sample) { s.All = even(4e6, 0, 1e6, 10100) })
			of.Before = true
			return of
		}(), want: Fail},
		{name: "off", config: Config{Metrics: map[string]Metric{"errors": {Off: true}}}, of: with(failing), want: Pass},
		{name: "dry run", config: Config{Metrics: map[string]Metric{"errors": {DryRun: true}}}, of: with(failing), want: Pass},
		{name: "suspicious in a dry run", config: Config{Metrics: map[string]Metric{"errors": {DryRun: true}}}, of: with(route(even(300, 0, 100, 4))), want: Pass},
		{name: "a new route is fine", of: with(route(even(0, 0, 100, 1))), want: Pass},
		{name: "a new route answers 5xx only", of: with(route(even(0, 0, 60, 60))), want: Fail, why: "errors 100.0 % of 60 requests, stable has no such requests: its whole 0.0 % of 3,000"},
		{name: "a new route, a few requests", of: with(func(s *Sample) { s.All = even(3000, 0, 1000, 4); route(even(0, 0, 4, 4))(s) }), want: Inconclusive},
		{name: "nobody asked stable for it yet", of: with(func(s *Sample) { s.All = even(500, 0, 9500, 8); route(even(0, 0, 8, 8))(s) }), want: Inconclusive},
		{name: "404 on a new route", of: with(func(s *Sample) {
			p := even(0, 0, 100, 0)
			p.Candidate.NotFound = 100
			route(p)(s)
		}), want: Pass},
		{name: "404", of: with(func(s *Sample) { s.All.Candidate.NotFound = 40 }), want: Fail, why: "notFound 4.0 %"},
		{name: "405", of: with(func(s *Sample) { s.All.Candidate.NotAllowed = 40 }), want: Fail, why: "notAllowed 4.0 %"},
		{name: "panics", of: with(func(s *Sample) { s.All.Candidate.Panics = 10 }), want: Fail, why: "panics 1.0 %"},
		{name: "connect", of: with(func(s *Sample) { s.All.Candidate.Connect = 20 }), want: Fail, why: "connect 2.0 %"},
		{name: "the share is right", of: shared(3000, 1000, nil), want: Pass},
		{name: "the share is wrong", of: shared(3000, 3000, nil), want: Inconclusive, why: "and was to have 25.0 %: the comparison cannot be trusted"},
		{name: "what fails cannot be trusted", of: shared(3000, 3000, failing), want: Inconclusive, why: "cannot be trusted"},
		{name: "another group can", of: func() Comparison {
			of := shared(3000, 3000, nil)
			of.Groups["b"] = with(failing).Groups["main"]
			return of
		}(), want: Fail, why: "shop/checkout in b"},
		{name: "the share is wrong, dry", config: Config{Metrics: map[string]Metric{"ratio": {DryRun: true}}}, of: shared(3000, 3000, failing), want: Fail},
		{name: "the share is off", config: Config{Metrics: map[string]Metric{"ratio": {Off: true}}}, of: shared(3000, 3000, nil), want: Pass},
		{name: "too many keys, requests are right", of: shared(400000, 400000, nil), want: Pass},
		{name: "too many keys, requests are nearly right", of: shared(400000, 400000, func(s *Sample) { s.All = even(7700, 0, 2300, 0) }), want: Pass},
		{name: "too many keys, requests are not", of: shared(400000, 400000, func(s *Sample) { s.All = even(1500, 0, 1500, 0) }), want: Inconclusive, why: "50.0 % of the requests"},
		{name: "too many keys, few requests of the candidate", of: shared(400000, 400000, func(s *Sample) { s.All = even(30000, 0, 1000, 0) }), want: Inconclusive},
		{name: "too many keys, many requests without", of: func() Comparison {
			of := shared(400000, 400000, func(s *Sample) { s.All = even(30000, 0, 1000, 0) })
			of.Keyless = true
			return of
		}(), want: Pass},
	} {
		t.Run(c.name, func(t *testing.T) {
			res := Judge(c.config, c.of)
			if res.Verdict != c.want || !strings.Contains(res.Why, c.why) || !strings.HasPrefix(res.Why, string(c.want)+": ") {
				t.Errorf("got %s\nwant %s with %q", res.Why, c.want, c.why)
			}
		})
	}
}

// TestErrorIsSplit: the chances of a false alarm that all tests may have add up
// to what is promised, also with metrics off.
func TestErrorIsSplit(t *testing.T) {
	side := func(n uint64) Counts {
		c := even(n, 9, n, 9).Stable
		c.Connect, c.NotFound, c.NotAllowed, c.Panics = 9, 9, 9, 9
		return c
	}
	pair := Pair{side(3000), side(1000)}
	for _, config := range []Config{{}, {Confidence: 0.9, Metrics: map[string]Metric{"panics": {Off: true}, "latency": {Off: true}}}} {
		s := Sample{All: pair, Routes: map[string]Pair{"a/a": pair, "a/b": pair}, More: 1, Rest: pair}
		res := Judge(config, Comparison{Groups: map[string]Sample{"main": s, "edge": {All: pair}}, Seconds: 60})
		sum := 0.0
		for _, f := range res.Findings {
			sum += 1 / f.Needed
		}
		if want := 1 - config.withDefaults().Confidence; math.Abs(sum/want-1) > 1e-9 {
			t.Errorf("%+v: the parts add up to %g, want %g", config, sum, want)
		}
	}
}

// TestDryRunIsRecorded: as a failed finding that nothing follows from.
func TestDryRunIsRecorded(t *testing.T) {
	res := Judge(Config{Metrics: map[string]Metric{"errors": {DryRun: true}}}, with(route(even(1260, 0, 420, 13))))
	if f := res.Findings[0]; f.Verdict != Fail || !f.DryRun || f.Metric != "errors" {
		t.Errorf("first finding %+v", f)
	}
}

// TestFindingsAreBounded and begin with the worst.
func TestFindingsAreBounded(t *testing.T) {
	res := Judge(Config{}, with(func(s *Sample) {
		s.Routes = map[string]Pair{}
		for i := range uint64(200) {
			s.Routes[routeName(int(i))] = even(1260, 0, 420, i)
		}
	}))
	if len(res.Findings) != mostFindings || res.Findings[0].Route != routeName(199) {
		t.Errorf("%d findings, the first of %s", len(res.Findings), res.Findings[0].Route)
	}
	if !strings.Contains(res.Why, ", and ") {
		t.Errorf("why: %s", res.Why)
	}
	if !slices.IsSortedFunc(res.Findings, func(a, b Finding) int {
		switch {
		case a.Evidence > b.Evidence:
			return -1
		case a.Evidence < b.Evidence:
			return 1
		}
		return 0
	}) {
		t.Error("findings are not sorted")
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		name string
		Config
		want []string
	}{
		{name: "zero"},
		{name: "full", Config: Config{Confidence: 0.5, MinSeconds: 1, Metrics: map[string]Metric{"errors": {MinEffect: 0.1}, "latency": {MinEffect: 2, DryRun: true}, "ratio": {Off: true}}}},
		{name: "numbers", Config: Config{Confidence: 1, MinSeconds: -1}, want: []string{"confidence: ", "minSeconds: "}},
		{name: "not numbers", Config: Config{Confidence: math.NaN(), MinSeconds: math.NaN(), Metrics: map[string]Metric{"errors": {MinEffect: math.NaN()}}}, want: []string{"confidence: ", "minSeconds: ", "metrics.errors.minEffect: "}},
		{
			name: "metrics", Config: Config{Metrics: map[string]Metric{"5xx": {}, "errors": {MinEffect: 1}, "latency": {MinEffect: -1}, "panics": {Off: true, DryRun: true}}},
			want: []string{"metrics.5xx: unknown metric; there are errors, ", "metrics.errors.minEffect: ", "metrics.latency.minEffect: ", "metrics.panics.dryRun: "},
		},
		{name: "nothing left", Config: Config{Metrics: map[string]Metric{"errors": {Off: true}, "connect": {Off: true}, "notFound": {Off: true}, "notAllowed": {DryRun: true}, "panics": {Off: true}, "latency": {Off: true}}}, want: []string{"metrics: "}},
	} {
		got := c.Validate()
		if len(got) != len(c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
			continue
		}
		for i := range got {
			if !strings.HasPrefix(got[i], c.want[i]) {
				t.Errorf("%s: %q, want %q", c.name, got[i], c.want[i])
			}
		}
	}
}

// drawn are counts as they may come from anywhere.
func drawnCounts(t *rapid.T) (c Counts) {
	c.Requests = rapid.OneOf(rapid.Uint64Range(0, 3000), rapid.Uint64()).Draw(t, "requests")
	few := rapid.OneOf(rapid.Just(uint64(0)), rapid.Uint64Range(0, 50), rapid.Uint64())
	c.Errors, c.Connect, c.NotFound = few.Draw(t, "errors"), few.Draw(t, "connect"), few.Draw(t, "notFound")
	c.NotAllowed, c.Panics = few.Draw(t, "notAllowed"), few.Draw(t, "panics")
	for range rapid.IntRange(0, 4).Draw(t, "buckets") {
		c.Latency[rapid.IntRange(0, Buckets-1).Draw(t, "bucket")] = few.Draw(t, "count")
	}
	return c
}

func drawnSample(t *rapid.T) Sample {
	pair := rapid.Custom(func(t *rapid.T) Pair { return Pair{drawnCounts(t), drawnCounts(t)} })
	s := Sample{All: pair.Draw(t, "all"), Rest: pair.Draw(t, "rest"), More: rapid.IntRange(0, 2).Draw(t, "more")}
	s.Routes = rapid.MapOfN(rapid.SampledFrom([]string{"a/a", "a/b", "b/c"}), pair, 0, 3).Draw(t, "routes")
	for range rapid.IntRange(0, 3).Draw(t, "keys") {
		s.StableKeys.Add(rapid.Uint64().Draw(t, "key"))
		s.CandidateKeys.Add(rapid.Uint64().Draw(t, "key"))
	}
	return s
}

// TestLaws: any numbers give a verdict that can be written down, always the
// same one; a fail names what failed, a pass has no failing and no missing thing.
func TestLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		of := Comparison{
			Seconds: rapid.Float64().Draw(t, "seconds"), Before: rapid.Bool().Draw(t, "before"), Keyless: rapid.Bool().Draw(t, "keyless"),
			Groups: rapid.MapOfN(rapid.SampledFrom([]string{"main", "edge"}), rapid.Custom(drawnSample), 0, 2).Draw(t, "groups"),
			Wanted: rapid.MapOf(rapid.SampledFrom([]string{"main", "edge"}), rapid.IntRange(-1, 10001)).Draw(t, "wanted"),
		}
		c := Config{Confidence: rapid.SampledFrom([]float64{0, 0.5, 0.9, 0.999999, -3, 7}).Draw(t, "confidence")}
		res := Judge(c, of)
		text, err := json.Marshal(res)
		if err != nil {
			t.Fatal(err)
		}
		var back Result
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(res, back); diff != "" {
			t.Fatal(diff)
		}
		if diff := cmp.Diff(res, Judge(c, of)); diff != "" {
			t.Fatal("judged twice: ", diff)
		}
		failing := slices.ContainsFunc(res.Findings, func(f Finding) bool { return f.Verdict == Fail && !f.DryRun })
		holding := slices.ContainsFunc(res.Findings, func(f Finding) bool { return f.Verdict == Inconclusive && !f.DryRun })
		if failing != (res.Verdict == Fail) || holding && res.Verdict == Pass || strings.Contains(res.Why, "\n") {
			t.Fatalf("%s: %+v", res.Why, res.Findings)
		}
	})
}

// TestMoreFailuresNeverHelp: an error more of the candidate never turns a
// fail into anything else, nor what is inconclusive into a pass.
func TestMoreFailuresNeverHelp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n0, n1 := rapid.Uint64Range(1, 5000).Draw(t, "n0"), rapid.Uint64Range(50, 5000).Draw(t, "n1")
		k0, k1 := rapid.Uint64Range(0, n0/4).Draw(t, "k0"), rapid.Uint64Range(0, n1-1).Draw(t, "k1")
		more := rapid.Uint64Range(1, n1-k1).Draw(t, "more")
		before := Judge(Config{}, with(route(even(n0, k0, n1, k1))))
		after := Judge(Config{}, with(route(even(n0, k0, n1, k1+more))))
		order := []Verdict{Pass, Inconclusive, Fail}
		if slices.Index(order, after.Verdict) < slices.Index(order, before.Verdict) {
			t.Fatalf("%s\nwith %d errors more: %s", before.Why, more, after.Why)
		}
	})
}

// TestMergeTakesAnyOrder, and Sub takes back what Merge added.
func TestMergeTakesAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.Custom(drawnSample), 1, 4).Draw(t, "parts")
		shuffled := rapid.Permutation(parts).Draw(t, "shuffled")
		a, b := merged(parts), merged(shuffled)
		if diff := cmp.Diff(a, b); diff != "" {
			t.Fatal(diff)
		}
		x, y := rapid.Uint64Range(0, 1000).Draw(t, "x"), rapid.Uint64Range(0, 1000).Draw(t, "y")
		sum := Sample{All: even(x, 1, y, 2)}
		base := sum
		sum.Merge(&Sample{All: even(y, 3, x, 4)})
		sum.Sub(&base)
		if diff := cmp.Diff(sum.All, even(y, 3, x, 4)); diff != "" {
			t.Fatal(diff)
		}
	})
}

func merged(parts []Sample) (sum Sample) {
	for i := range parts {
		p := parts[i]
		p.Routes = maps.Clone(p.Routes)
		sum.Merge(&p)
	}
	return sum
}

// TestMergedIsAsIfCountedTogether: the verdict on two instances' sum is that
// on one instance which saw everything.
func TestMergedIsAsIfCountedTogether(t *testing.T) {
	w := flagship(9)
	for range 40 {
		w.second()
	}
	one, half := w.sample, w.sample
	one.Routes, half.Routes = maps.Clone(w.sample.Routes), maps.Clone(w.sample.Routes)
	for range 40 {
		w.second()
	}
	other := w.sample
	other.Routes = maps.Clone(other.Routes)
	other.Sub(&half)
	sum := merged([]Sample{other, one})
	of := func(s Sample) Comparison { return Comparison{Groups: map[string]Sample{"main": s}, Seconds: 80} }
	if diff := cmp.Diff(Judge(Config{}, of(w.sample)), Judge(Config{}, of(sum))); diff != "" {
		t.Error(diff)
	}
}

func ExampleJudge() {
	res := Judge(Config{}, with(route(even(1260, 0, 420, 13))))
	fmt.Println(res.Why)
	// Output: fail: shop/checkout in main: errors 3.1 % of 420 requests, stable 0.0 % of 1,260 (e-value 3.1e+07, needs 3.3e+03)
}
