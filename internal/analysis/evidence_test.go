package analysis

import (
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// TestEvidenceIsFairAtEachMoment sums over all ways in which the bad requests
// can fall on the two sides when they do not differ, by the exact chance of each:
// an e-value has a mean of at most 1.
func TestEvidenceIsFairAtEachMoment(t *testing.T) {
	sizes := []int{1, 2, 3, 5, 8, 15, 30, 60, 100, 300, 1000}
	if brief() {
		sizes = []int{1, 2, 5, 15, 60, 200}
	}
	highest := 0.0
	for _, n0 := range sizes {
		for _, n1 := range sizes {
			for k := 1; k < n0+n1; k += 1 + k/20 {
				mean := 0.0
				for k1 := max(0, k-n0); k1 <= min(k, n1); k1++ {
					chance := logChoose(float64(n1), float64(k1)) + logChoose(float64(n0), float64(k-k1)) - logChoose(float64(n0+n1), float64(k))
					mean += math.Exp(chance + logEvidence(float64(k-k1), float64(n0), float64(k1), float64(n1)))
				}
				if highest = max(highest, mean); mean > 1 {
					t.Fatalf("%d bad of %d and %d: mean %.4f, want at most 1", k, n0, n1, mean)
				}
			}
		}
	}
	if highest < 0.5 {
		t.Errorf("highest mean %.4f: the evidence is of no use", highest)
	}
	t.Logf("highest mean %.4f", highest)
}

// TestEvidenceKeepsItsPromiseWhenPeekedAt looks after every request at
// processes of which the candidate is no worse, and counts those that ever reach
// 1/α: Ville's inequality says that they are at most a part α.
func TestEvidenceKeepsItsPromiseWhenPeekedAt(t *testing.T) {
	runs, length := 800, 2000
	if brief() {
		runs, length = 150, 800
	}
	share := func(s float64) func(int) float64 { return func(int) float64 { return s } }
	for _, c := range []struct {
		name  string
		bad   func(i int) float64 // of both, at the i-th request
		share func(i int) float64 // of the candidate
	}{
		{"rare, 25 %", share(0.002), share(0.25)},
		{"2 %, share 1 %", share(0.02), share(0.01)},
		{"2 %, share 90 %", share(0.02), share(0.9)},
		{"20 %, half", share(0.2), share(0.5)},
		{"50 %, 25 %", share(0.5), share(0.25)},
		{"95 %, 10 %", share(0.95), share(0.1)},
		{"bad hours, 25 %", func(i int) float64 { return 0.3 * float64(i/(length/8)%2) }, share(0.25)},
		{"growing share, 5 %", share(0.05), func(i int) float64 { return 0.05 + 0.9*float64(i)/float64(length) }},
		{"stable first, 5 %", share(0.05), func(i int) float64 { return float64(i / (length / 2)) }},
		{"stable first, 50 %", share(0.5), func(i int) float64 { return float64(i / (length / 4)) }},
	} {
		rng := rand.New(rand.NewPCG(3, uint64(len(c.name))))
		levels := []float64{0.2, 0.05, 0.01}
		reached := make([]int, len(levels))
		for range runs {
			var n, k [2]float64
			most := 0.0
			for i := range length {
				side := 0
				if rng.Float64() < c.share(i) {
					side = 1
				}
				n[side]++
				if rng.Float64() < c.bad(i) {
					k[side]++
				}
				if side == 1 {
					most = max(most, logEvidence(k[0], n[0], k[1], n[1]))
				}
			}
			for l, alpha := range levels {
				if most >= -math.Log(alpha) {
					reached[l]++
				}
			}
		}
		for l, alpha := range levels {
			got := float64(reached[l]) / float64(runs)
			t.Logf("%s: %.4f reach 1/%g, promised %g", c.name, got, 1/alpha, alpha)
			if limit := alpha + 3*math.Sqrt(alpha*(1-alpha)/float64(runs)); got > limit {
				t.Errorf("%s: %.4f of the runs reach 1/%g, want at most %g", c.name, got, 1/alpha, alpha)
			}
		}
	}
}

// TestMoreBadRequestsAreMoreEvidence: of the candidate; and fewer of stable.
func TestMoreBadRequestsAreMoreEvidence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n0 := rapid.Uint64Range(1, 1<<rapid.IntRange(1, 24).Draw(t, "size of stable")).Draw(t, "n0")
		n1 := rapid.Uint64Range(1, 1<<rapid.IntRange(1, 24).Draw(t, "size of candidate")).Draw(t, "n1")
		k0 := rapid.Uint64Range(0, n0).Draw(t, "k0")
		k1 := rapid.Uint64Range(0, n1-1).Draw(t, "k1")
		before := logEvidence(float64(k0), float64(n0), float64(k1), float64(n1))
		after := logEvidence(float64(k0), float64(n0), float64(k1+1), float64(n1))
		if after < before-1e-6 {
			t.Fatalf("%d of %d beside %d of %d: %g, one bad request more: %g", k1, n1, k0, n0, before, after)
		}
		if k0 > 0 {
			if after := logEvidence(float64(k0-1), float64(n0), float64(k1), float64(n1)); after < before-1e-6 {
				t.Fatalf("%d of %d beside %d of %d: %g, one bad request of stable less: %g", k1, n1, k0, n0, before, after)
			}
		}
	})
}
