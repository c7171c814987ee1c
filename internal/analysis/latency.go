package analysis

import (
	"math"
	"time"
)

// leastDelay is how many seconds count for latency at all, unless
// Metric.MinEffect is set: connections that are less used are a little slower.
const leastDelay = 0.0002

// leastTimed is how many requests of each side a quantile takes at least.
const leastTimed = 20

// quantiles are those that are judged, and where the tail begins of each.
func quantiles() [3]float64 { return [3]float64{0.5, 0.9, 0.99} }

// latency judges three quantiles, and keeps the one that says most.
func (j *judge) latency(sc scope) {
	st, ca := cumulate(&sc.pair.Stable.Latency), cumulate(&sc.pair.Candidate.Latency)
	if st.n < leastTimed || ca.n < leastTimed {
		return
	}
	least, delay := j.effect("latency", 0.1, j.of.Before), leastDelay
	if j.Metrics["latency"].MinEffect > 0 {
		delay = 0
	}
	m, asked := j.Metrics["latency"]
	// A busier hour or a restarted neighbour is slower, too: what was counted
	// earlier proves nothing of latency unless somebody asks for it.
	dry := m.DryRun || j.of.Before && !asked
	var worst finding
	for _, q := range quantiles() {
		s, sAt := st.quantile(q)
		c, cAt := ca.quantile(q)
		f := finding{
			Finding: Finding{
				Group: sc.group, Route: sc.route, Metric: "latency", DryRun: dry,
				Verdict: Pass, Quantile: q, Stable: s, Candidate: c, Effect: c/s - 1,
				Needed: 1 / (j.alpha * sc.weight * weightOfLatency),
			},
			stableOf: st.n, candidateOf: ca.n,
		}
		if f.Effect >= least && c-s >= delay {
			log, bad := slower(&st, &ca, sAt, cAt)
			f.Evidence = asEvidence(log)
			f.decide(bad)
		}
		if worst.Metric == "" || severity(&f) > severity(&worst) ||
			severity(&f) == severity(&worst) && f.Evidence > worst.Evidence {
			worst = f
		}
	}
	j.keep(worst)
}

// slower is the logarithm of an e-value against "the candidate is no slower
// than stable", from the bounds about the buckets from at to its candidate's:
// for each, the share of requests that took longer is a rate as any other. The
// average of these e-values over all bounds is an e-value, and so is any part
// of the sum, chosen by whatever was seen. Bad is how many of the candidate's
// requests are beyond one of them.
func slower(st, ca *cumulative, at, to int) (log, bad float64) {
	logs := append(make([]float64, 0, 16), math.Inf(-1))
	for i := max(0, at-1); i <= min(to, Buckets-2); i++ {
		k1 := ca.n - ca.upTo[i]
		e := logEvidence(st.n-st.upTo[i], st.n, k1, ca.n)
		logs = append(logs, e)
		if !math.IsInf(e, -1) {
			bad = max(bad, k1)
		}
	}
	return sumLogs(logs) - math.Log(Buckets-1), bad
}

// cumulative is how many durations are at most each bucket's bound.
type cumulative struct {
	n    float64
	upTo [Buckets]float64
}

func cumulate(h *Histogram) (c cumulative) {
	for i, v := range h {
		c.n += float64(v)
		c.upTo[i] = c.n
	}
	return c
}

// quantile estimates a quantile in seconds, as if durations spread evenly over
// the logarithm of their bucket, and tells the bucket.
func (c *cumulative) quantile(q float64) (seconds float64, bucket int) {
	want, before := q*c.n, 0.0
	i := 0
	for i < Buckets-1 && c.upTo[i] < want {
		before = c.upTo[i]
		i++
	}
	part := (want - before) / max(c.upTo[i]-before, 1)
	low, high := bounds(i)
	return low * math.Pow(high/low, part), i
}

// bounds are the ends of a bucket in seconds. The first one begins, and the
// last one ends, a quarter off its only bound, so that estimates stay finite
// and cautious.
func bounds(i int) (low, high float64) {
	var h Histogram
	switch i {
	case 0:
		high = h.Bound(0).Seconds()
		return high / 1.25, high
	case Buckets - 1:
		low = h.Bound(Buckets - 2).Seconds()
		return low, low * 1.25
	}
	return h.Bound(i - 1).Seconds(), h.Bound(i).Seconds()
}

func asDuration(seconds float64) time.Duration {
	return time.Duration(seconds * float64(time.Second))
}
