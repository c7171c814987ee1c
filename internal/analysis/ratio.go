package analysis

import "math"

const (
	// strictRatio is the part of α that a false alarm about a share of keys may
	// have besides, and mostRatio how much that is at most: it holds a rollout up.
	strictRatio = 0.1
	mostRatio   = 1e-4

	// perKey is how much more the share of requests varies than if each had a
	// key of its own: 1 + the square of the coefficient of variation of
	// requests by key, taken for 5.
	perKey = 26

	// tuned is the number of keys at which a wrong share is found soonest.
	tuned = 1000
)

// ratio tells whether the candidate got the share of keys it was to get, as far
// as can be told. If not, the two sides do not stand for the same clients, and
// nothing else that was counted in the group can be trusted.
func (j *judge) ratio(group string, s *Sample, wanted int) (fine bool) {
	m := j.Metrics["ratio"]
	w := float64(wanted) / 10000
	if m.Off || !(w > 0 && w < 1) {
		return true
	}
	f := finding{Finding: Finding{
		Group: group, Metric: "ratio", DryRun: m.DryRun, Verdict: Pass, Stable: w,
		Needed: float64(max(1, len(j.of.Groups))) / min(strictRatio*(1-j.Confidence), mostRatio),
	}}
	k0, full0 := s.StableKeys.Estimate()
	k1, full1 := s.CandidateKeys.Estimate()
	n := k0 + k1
	if n == 0 {
		return true
	}
	noise := 0.0 // of the estimates, as a variance of k1 − w·n
	if full0 || full1 {
		n0, n1 := float64(s.All.Stable.Requests), float64(s.All.Candidate.Requests)
		if n0+n1 == 0 {
			return true
		}
		f.Candidate, f.stableOf, f.candidateOf = n1/(n0+n1), n0, n1
		f.note = "requests, for there are too many keys to count"
		n /= perKey
	} else {
		f.Candidate, f.stableOf, f.candidateOf = k1/n, k0, k1
		f.note = "keys"
		noise = (1-w)*(1-w)*countingNoise(k1) + w*w*countingNoise(k0)
	}
	f.Effect = f.Candidate - w
	if !(full0 || full1) || !j.of.Keyless || f.Effect > 0 {
		off, rho := n*f.Effect, tuned*w*(1-w)
		v := n*w*(1-w) + noise + rho
		f.Evidence = asEvidence(off*off/(2*v) + 0.5*math.Log(rho/v))
	}
	off := f.Evidence >= f.Needed && math.Abs(f.Effect) >= m.MinEffect
	if off {
		f.Verdict = Inconclusive
	}
	j.found = append(j.found, f)
	return !off || m.DryRun
}

// countingNoise is the variance of linear counting's estimate of n keys
// (Whang et al., 1990).
func countingNoise(n float64) float64 {
	t := n / keyBits
	return keyBits * (math.Exp(t) - t - 1)
}
