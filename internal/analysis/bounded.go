package analysis

import (
	"cmp"
	"math"
	"slices"
)

// MaxFindings is how many findings a record holds.
const MaxFindings = 50

// Bounded is r for a record: with at most MaxFindings, those that say most (what
// failed, what is not decided, then both of dry runs), and with numbers that JSON can say.
// r itself is not changed.
func (r Result) Bounded() Result {
	all := slices.Clone(r.Findings)
	if len(all) > MaxFindings {
		slices.SortStableFunc(all, func(a, b Finding) int { return cmp.Compare(a.rank(), b.rank()) })
		all = all[:MaxFindings]
	}
	for i := range all {
		all[i] = all[i].finite()
	}
	r.Findings = all
	return r
}

// rank is lower for what says more.
func (f *Finding) rank() int {
	switch {
	case f.Verdict == Pass:
		return 4
	case f.DryRun && f.Verdict == Inconclusive:
		return 3
	case f.DryRun: // nothing follows from it
		return 2
	case f.Verdict == Inconclusive:
		return 1
	}
	return 0
}

// finite is f as JSON can say it: the step from no errors to some is an infinite
// one.
func (f Finding) finite() Finding {
	for _, v := range []*float64{&f.Stable, &f.Candidate, &f.Effect, &f.Evidence, &f.Needed} {
		if math.IsNaN(*v) {
			*v = 0
		}
		*v = max(-math.MaxFloat64, min(*v, math.MaxFloat64))
	}
	return f
}
