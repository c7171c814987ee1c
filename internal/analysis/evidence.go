package analysis

import (
	"math"
	"slices"
)

// The alternatives that evidence is averaged over: odds that the candidate
// raises by 5 %, by √2 times as much, and so on up to about 290 times, and
// without limit. doc.go says why by odds, and why these.
const (
	leastOdds     = 0.05
	oddsSteps     = 26
	weightOfSteps = 0.75 // together; the rest is for odds without limit
)

// mostCounted is how many requests are looked at: beyond it the arithmetic gets
// coarse, and counts are taken as so many in the same proportions.
const mostCounted = 1e12

// logEvidence is the logarithm of an e-value against "the candidate's requests
// are no more often bad than stable's": k0 of n0 requests of stable were bad,
// and k1 of n1 of the candidate. It is −Inf where the counts cannot speak.
func logEvidence(k0, n0, k1, n1 float64) float64 {
	if n := n0 + n1; n > 2*mostCounted {
		part := mostCounted / n
		return logEvidence(k0*part, n0*part, k1*part, n1*part)
	}
	n, k := n0+n1, k0+k1
	if n0 <= 0 || n1 <= 0 || k1 <= 0 || k >= n || k1*n0 <= k0*n1 {
		return math.Inf(-1) // no share of bad requests that exceeds stable's
	}
	share, p := n1/n, k/n
	if best(k0, n0, p)+best(k1, n1, p) < 1 {
		return math.Inf(-1) // no alternative is e times as likely: not worth the sum
	}
	var logs [oddsSteps + 1]float64
	d := leastOdds
	for i := range oddsSteps {
		logs[i] = logRatio(k0, n0, k1, n1, share, p, d)
		d *= math.Sqrt2
	}
	for i := range oddsSteps {
		logs[i] += math.Log(weightOfSteps / oddsSteps)
	}
	logs[oddsSteps] = math.Inf(-1)
	if k0 == 0 {
		// Odds without limit: all bad requests are the candidate's. The chance
		// of that is exact: of all ways to choose k of n, those that choose
		// from n1.
		logs[oddsSteps] = math.Log(1-weightOfSteps) + logChoose(n, k) - logChoose(n1, k)
	}
	return sumLogs(logs[:])
}

// best is the logarithm of how much likelier k of n become if their own share
// replaces p.
func best(k, n, p float64) float64 {
	log := 0.0
	if k > 0 {
		log = k * math.Log(k/n/p)
	}
	if k < n {
		log += (n - k) * math.Log((1-k/n)/(1-p))
	}
	return log
}

// logRatio is the logarithm of how much likelier k1 of the k bad requests are
// the candidate's if it multiplies the odds of being bad by 1+d than if it does
// not, given the totals: Fisher's conditional likelihood ratio, its
// normalisation by the method of Laplace.
func logRatio(k0, n0, k1, n1, share, p, d float64) float64 {
	// p0 and p1 have the odds ratio 1+d and p as their mean.
	b := 1 + (share-p)*d
	root := math.Sqrt(b*b + 4*(1-share)*d*p)
	p0 := 0.0
	if b > 0 {
		p0 = 2 * p / (b + root)
	} else {
		p0 = (root - b) / (2 * (1 - share) * d)
	}
	q0 := 1 - p0
	p1, q1 := (1+d)*p0/(1+d*p0), q0/(1+d*p0)
	q := 1 - p
	if p0 <= 0 || q1 <= 0 {
		return math.Inf(-1)
	}
	spread := (share*p1*q1 + (1-share)*p0*q0) / (p * q)
	return k1*math.Log(p1/p) + k0*math.Log(p0/p) +
		(n1-k1)*math.Log1p((p-p1)/q) + (n0-k0)*math.Log1p((p-p0)/q) +
		0.5*math.Log(spread)
}

// sumLogs is the logarithm of the sum of what these are the logarithms of.
func sumLogs(logs []float64) float64 {
	most := slices.Max(logs)
	if math.IsInf(most, -1) {
		return most
	}
	sum := 0.0
	for _, v := range logs {
		if v > most-40 {
			sum += math.Exp(v - most)
		}
	}
	return most + math.Log(sum)
}

// logChoose is the logarithm of the binomial coefficient n over k.
func logChoose(n, k float64) float64 {
	a, _ := math.Lgamma(n + 1)
	b, _ := math.Lgamma(k + 1)
	c, _ := math.Lgamma(n - k + 1)
	return a - b - c
}
