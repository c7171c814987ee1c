package analysis

import "testing"

// TestLatencyOfABake: what was counted earlier proves nothing of latency, unless
// the strategy names it. Errors are judged all the same.
func TestLatencyOfABake(t *testing.T) {
	slow := Sample{}
	for range 2000 {
		slow.All.Stable.Latency[20]++
		slow.All.Candidate.Latency[40]++
	}
	slow.All.Stable.Requests, slow.All.Candidate.Requests = 2000, 2000
	failing := slow
	failing.All.Candidate.Errors = 1000
	for _, c := range []struct {
		what   string
		sample Sample
		before bool
		config Config
		want   Verdict
	}{
		{"slower at the same time", slow, false, Config{}, Fail},
		{"slower than before", slow, true, Config{}, Pass},
		{"slower than before, and asked for", slow, true, Config{Metrics: map[string]Metric{"latency": {}}}, Fail},
		{"failing more than before", failing, true, Config{}, Fail},
	} {
		got := Judge(c.config, Comparison{Groups: map[string]Sample{"main": c.sample}, Seconds: 600, Before: c.before})
		if got.Verdict != c.want {
			t.Errorf("%s: %s (%s), want %s", c.what, got.Verdict, got.Why, c.want)
		}
	}
}
