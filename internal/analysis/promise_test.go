package analysis

import (
	"math"
	"slices"
	"testing"
	"time"
)

// brief tells that there is no time for the whole simulation: the race detector
// makes it ten times as slow. The whole runs by "go test ./internal/analysis".
func brief() bool { return testing.Short() || raceDetector }

// peek looks at the world as Judge does, without making words of it: the
// nearest that any test is to a fail (1: it fails), and whether one fails.
func (w *world) peek(c Config, of Comparison) (nearest float64, fails bool) {
	for _, f := range judged(c, of).found {
		if f.Metric != "requests" {
			nearest = max(nearest, f.Evidence/f.Needed)
		}
		fails = fails || f.Verdict == Fail
	}
	return nearest, fails
}

// TestSameCandidateNeverFails: candidates that are no worse, looked at each
// second for ten minutes, over all mixes of share and errors. At the default
// confidence none of 1,000 may fail; how near each came tells how many would
// have failed at others.
func TestSameCandidateNeverFails(t *testing.T) {
	perMix, seconds := 63, 600
	if brief() {
		perMix, seconds = 4, 120
	}
	var nearest []float64
	var passed []int
	for i, share := range []float64{0.01, 0.25, 0.5, 0.9} {
		for k, base := range []float64{0, 0.001, 0.01, 0.2} {
			for run := range perMix {
				w := newWorld(uint64(run+1000*k+10000*i), 60+run*2, share,
					load{name: "shop/a", part: 0.3, errors: base, median: 0.01, sigma: 0.5},
					load{name: "shop/b", part: 0.02, errors: base / 2, median: 0.05, sigma: 1},
					load{name: "shop/c", part: 0.2, errors: 2 * base, median: 0.002 * (1 + float64(run)/60), sigma: 0.15})
				most, pass := 0.0, 0
				for s := 1; s <= seconds; s++ {
					w.second()
					of := Comparison{Groups: map[string]Sample{"main": w.sample}, Seconds: float64(s)}
					near, fails := w.peek(Config{}, of)
					if most = max(most, near); fails {
						t.Fatalf("share %g, errors %g, run %d: %s", share, base, run, Judge(Config{}, of).Why)
					}
					if pass == 0 && s >= 60 && s%10 == 0 && Judge(Config{}, of).Verdict == Pass {
						pass = s
					}
				}
				nearest = append(nearest, most)
				if share > 0.1 {
					passed = append(passed, pass)
				}
			}
		}
	}
	t.Logf("%d analyses, each looked at %d times: none failed; promised at most %.1f", len(nearest), seconds, 0.001*float64(len(nearest)))
	for _, alpha := range []float64{0.5, 0.1, 0.05, 0.01} {
		failing := 0
		for _, near := range nearest {
			if near >= 0.001/alpha { // what a test needs is proportional to 1/α
				failing++
			}
		}
		got := float64(failing) / float64(len(nearest))
		t.Logf("at confidence %g: %.4f fail, promised at most %g", 1-alpha, got, alpha)
		if got > alpha {
			t.Errorf("at confidence %g: %.4f fail, promised %g", 1-alpha, got, alpha)
		}
	}
	slices.Sort(passed)
	t.Logf("from a share of 25 %% on they pass after %d s (median), %d s (95 %%)", passed[len(passed)/2], passed[len(passed)*95/100])
	if !brief() && passed[0] == 0 {
		t.Errorf("some never pass")
	}
}

// TestLowConfidenceKeepsItsPromise asks at confidences of 0.9 and 0.5, where
// false alarms can be counted, with both sides at the same time and one after
// the other.
func TestLowConfidenceKeepsItsPromise(t *testing.T) {
	runs := 200
	if brief() {
		runs = 40
	}
	c := Config{Confidence: 0.9, Metrics: map[string]Metric{}}
	for _, name := range Metrics() { // the least effect is no help here
		c.Metrics[name] = Metric{MinEffect: 1e-9}
	}
	for _, before := range []bool{false, true} {
		failed := map[float64]int{}
		for run := range runs {
			w := newWorld(uint64(run)+5e6, 100, 0.3,
				load{name: "shop/a", part: 0.5, errors: 0.05, median: 0.01, sigma: 0.5},
				load{name: "shop/b", part: 0.1, errors: 0.3, median: 0.02, sigma: 0.8})
			if before {
				w.share = 0
				for range 100 {
					w.second()
				}
				w.share = 1
			}
			most := 0.0
			for s := 1; s <= 200; s++ {
				w.second()
				near, fails := w.peek(c, Comparison{Groups: map[string]Sample{"main": w.sample}, Seconds: float64(s), Before: before})
				if most = max(most, near); fails {
					failed[0.9]++
					break
				}
			}
			if most >= 0.2 {
				failed[0.5]++ // what it needs is proportional to 1/α
			}
		}
		for _, confidence := range []float64{0.9, 0.5} {
			rate := float64(failed[confidence]) / float64(runs)
			t.Logf("one after the other %v, confidence %g: %.4f of %d fail, promised at most %g", before, confidence, rate, runs, 1-confidence)
			if rate > 1-confidence {
				t.Errorf("one after the other %v, confidence %g: %.4f fail", before, confidence, rate)
			}
		}
	}
}

// detect plays worlds that differ by seed and returns the seconds until each
// failed, sorted, how many never did, and how many passed first.
func detect(runs, most int, make func(seed uint64) *world) (at []int, never, passedFirst int) {
	for seed := range uint64(runs) {
		w := make(seed)
		passed, found := false, false
		for s := 1; s <= most && !found; s++ {
			w.second()
			of := Comparison{Groups: map[string]Sample{"main": w.sample}, Seconds: float64(s)}
			if _, found = w.peek(Config{}, of); found {
				at = append(at, s)
			} else if s >= 60 && !passed && Judge(Config{}, of).Verdict == Pass {
				passed = true
				passedFirst++
			}
		}
		if !found {
			never++
		}
	}
	slices.Sort(at)
	return at, never, passedFirst
}

func detectRuns() int {
	if brief() {
		return 8
	}
	return 100
}

// TestDetectionTimes: at 2,000 requests a second, by what is wrong.
func TestDetectionTimes(t *testing.T) {
	for _, c := range []struct {
		name       string
		rate       int
		share      float64
		load       load
		others     int // changed routes that are fine
		median     int // seconds, at most
		mostPassed float64
	}{
		{"flagship: 3 % errors, route 1 %, share 25 %", 2000, 0.25, load{part: 0.01, median: 0.02, sigma: 0.5, worse: 0.03}, 0, 60, 0.05},
		{"the same among 50 changed routes", 2000, 0.25, load{part: 0.01, median: 0.02, sigma: 0.5, worse: 0.03}, 49, 90, 0.05},
		{"3 % errors, route 1 %, share 50 %", 2000, 0.5, load{part: 0.01, median: 0.02, sigma: 0.5, worse: 0.03}, 0, 60, 0.05},
		{"3 % errors, route 1 %, share 5 %", 2000, 0.05, load{part: 0.01, median: 0.02, sigma: 0.5, worse: 0.03}, 0, 200, 0.3},
		{"every answer 5xx, route 1 %, share 1 %", 2000, 0.01, load{part: 0.01, median: 0.02, sigma: 0.5, worse: 1}, 0, 35, 0},
		{"1 % errors beside 0.1 %, route 10 %, share 25 %", 2000, 0.25, load{part: 0.1, median: 0.02, sigma: 0.5, errors: 0.001, worse: 0.009}, 0, 60, 0.05},
		{"22 % errors beside 20 %, route 10 %, share 25 %", 2000, 0.25, load{part: 0.1, median: 0.02, sigma: 0.5, errors: 0.2, worse: 0.02}, 0, 400, 1},
		{"latency +30 %, σ 0.5, route 1 %, share 25 %", 2000, 0.25, load{part: 0.01, median: 0.02, sigma: 0.5, slow: 1.3}, 0, 70, 0.05},
		{"latency +30 %, σ 1, route 1 %, share 25 %", 2000, 0.25, load{part: 0.01, median: 0.02, sigma: 1, slow: 1.3}, 0, 250, 1},
		{"slowest 3 % ×2, route 10 %, share 25 %", 2000, 0.25, load{part: 0.1, median: 0.02, sigma: 0.4, tail: 2}, 0, 30, 0},
	} {
		c.load.name = "shop/checkout"
		loads := []load{c.load}
		for i := range c.others {
			loads = append(loads, load{name: routeName(i), part: 0.01, errors: 0.0005, median: 0.01, sigma: 0.5})
		}
		at, never, passedFirst := detect(detectRuns(), 900, func(seed uint64) *world { return newWorld(seed+77, c.rate, c.share, loads...) })
		if never > 0 {
			t.Errorf("%s: %d of %d not found within 15 min", c.name, never, detectRuns())
			continue
		}
		t.Logf("%s: median %d s, 95 %%: %d s, worst %d s, passed first: %d of %d", c.name, at[len(at)/2], at[len(at)*95/100], at[len(at)-1], passedFirst, len(at))
		if at[len(at)/2] > c.median || float64(passedFirst) > math.Ceil(c.mostPassed*float64(len(at))) {
			t.Errorf("%s: want a median of at most %d s, and a part of %g that passes first", c.name, c.median, c.mostPassed)
		}
	}
}

// TestDilutedTroubleIsFound: one route of 1 % fails, the total looks fine.
func TestDilutedTroubleIsFound(t *testing.T) {
	w := newWorld(4, 2000, 0.25, load{name: "shop/checkout", part: 0.01, errors: 0.001, median: 0.02, sigma: 0.5, worse: 0.03})
	at, res := w.until(Config{}, Fail, 300)
	if at == 0 || res.Findings[0].Route != "shop/checkout" || res.Findings[0].Metric != "errors" {
		t.Fatalf("after %d s: %+v", at, res)
	}
	for _, f := range res.Findings {
		if f.Route == "" && f.Verdict != Pass {
			t.Errorf("all requests: %s", f.Why)
		}
	}
	w.sample.Routes = nil
	if res := w.judge(Config{}, 300); res.Verdict == Fail {
		t.Errorf("without routes it is diluted, and yet: %s", res.Why)
	}
}

// TestSlowerByThirtyPercentIsFoundEverywhere moves the latency through the
// buckets: at every place between two bounds, 30 % more is found with some
// hundred requests of the candidate, however near the times lie together; and
// equal times never fail.
func TestSlowerByThirtyPercentIsFoundEverywhere(t *testing.T) {
	places := 16
	if brief() {
		places = 6
	}
	worst := map[float64]uint64{}
	for _, sigma := range []float64{0.01, 0.05, 0.15, 0.5} {
		for bucket := 24; bucket < 28; bucket++ { // each of the four widths
			low, high := bounds(bucket)
			for place := range places {
				median := low * math.Pow(high/low, float64(place)/float64(places))
				w := newWorld(uint64(bucket*100+place), 100, 0.25,
					load{name: "shop/a", part: 1, median: median, sigma: sigma, slow: 1.3})
				if at, res := w.until(Config{}, Fail, 60); at == 0 {
					t.Errorf("σ %g, median %.3f of bucket %d: not found in 1,500 requests: %s", sigma, float64(place)/float64(places), bucket, res.Why)
				}
				worst[sigma] = max(worst[sigma], w.sample.All.Candidate.Requests)
				same := newWorld(uint64(bucket*100+place), 100, 0.25, load{name: "shop/a", part: 1, median: median, sigma: sigma})
				if at, res := same.until(Config{}, Fail, 60); at != 0 {
					t.Errorf("σ %g, median %.3f of bucket %d: equal, and yet: %s", sigma, float64(place)/float64(places), bucket, res.Why)
				}
			}
		}
		t.Logf("σ %g: found after at most %d requests of the candidate", sigma, worst[sigma])
		if worst[sigma] > 700 {
			t.Errorf("σ %g: it took up to %d requests", sigma, worst[sigma])
		}
	}
}

// TestSlightlySlowerDoesNotFail: 3 % is a difference, and none that counts.
func TestSlightlySlowerDoesNotFail(t *testing.T) {
	for place := range 8 {
		low, high := bounds(26)
		w := newWorld(uint64(place), 1000, 0.5, load{
			name: "shop/a", part: 1,
			median: low * math.Pow(high/low, float64(place)/8), sigma: 0.3, slow: 1.03,
		})
		if at, res := w.until(Config{}, Fail, 60); at != 0 {
			t.Errorf("place %d: %s", place, res.Why)
		}
	}
}

// TestTinyDelaysTakeAnExplicitEffect: 30 % of 0.1 ms are nobody's trouble unless
// someone says so.
func TestTinyDelaysTakeAnExplicitEffect(t *testing.T) {
	tiny := load{name: "shop/a", part: 1, median: 0.0001, sigma: 0.2, slow: 1.3}
	if at, res := newWorld(1, 200, 0.5, tiny).until(Config{}, Fail, 30); at != 0 {
		t.Error(res.Why)
	}
	set := Config{Metrics: map[string]Metric{"latency": {MinEffect: 0.1}}}
	if at, res := newWorld(1, 200, 0.5, tiny).until(set, Fail, 30); at == 0 {
		t.Error(res.Why)
	}
}

// TestShareOfKeys: a wrong one is found, and a right one, looked at each second, never is.
func TestShareOfKeys(t *testing.T) {
	runs := 200
	if brief() {
		runs = 30
	}
	for _, c := range []struct {
		wanted int
		actual float64
		keys   int // a second
		wrong  bool
	}{
		{2500, 0.25, 100, false},
		{100, 0.01, 100, false},
		{5000, 0.5, 10, false},
		{5000, 0.5, 420, false},
		{9000, 0.9, 250, false},
		{2500, 0.3, 100, true},
		{100, 0.03, 50, true},
		{5000, 0.4, 50, true},
		{1000, 0, 10, true},
	} {
		found := 0
		for run := range runs {
			w := newWorld(uint64(run)+31*uint64(c.wanted), 0, 0)
			for s := 1; s <= 100; s++ {
				for range c.keys {
					set := &w.sample.StableKeys
					if w.rng.Float64() < c.actual {
						set = &w.sample.CandidateKeys
					}
					set.Add(w.rng.Uint64())
				}
				j := &judge{Config: Config{}.withDefaults()}
				if !j.ratio("main", &w.sample, c.wanted) {
					found++
					break
				}
			}
		}
		t.Logf("wanted %d, actual %g: found in %d of %d", c.wanted, c.actual, found, runs)
		if c.wrong && found < runs || !c.wrong && found > 0 {
			t.Errorf("wanted %d, actual %g: found in %d of %d", c.wanted, c.actual, found, runs)
		}
	}
}

// TestJudgeIsQuick: a thousand routes within a few milliseconds; the bound is
// wide, for machines that do other things besides.
func TestJudgeIsQuick(t *testing.T) {
	of := large()
	best := time.Hour
	for range 10 {
		start := time.Now()
		Judge(Config{}, of)
		best = min(best, time.Since(start))
	}
	t.Logf("10 groups of 100 routes: %s", best)
	bound := 100 * time.Millisecond
	if raceDetector {
		bound *= 10
	}
	if best > bound {
		t.Errorf("10 groups of 100 routes take %s", best)
	}
}

func large() Comparison {
	groups := map[string]Sample{}
	for g := range 10 {
		loads := make([]load, 100)
		for i := range loads {
			loads[i] = load{name: routeName(i), part: 0.009, errors: 0.01, median: 0.01, sigma: 0.5}
		}
		w := newWorld(uint64(g), 20000, 0.25, loads...)
		for range 5 {
			w.second()
		}
		groups[routeName(g)] = w.sample
	}
	return Comparison{Groups: groups, Seconds: 100}
}

func BenchmarkJudge(b *testing.B) {
	of := large()
	b.ReportAllocs()
	for b.Loop() {
		Judge(Config{}, of)
	}
}
