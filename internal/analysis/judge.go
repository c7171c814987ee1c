package analysis

import (
	"fmt"
	"maps"
	"math"
	"slices"
)

// rest is the route by which the changed routes beyond the list are shown.
const rest = "(rest)"

// Weights by which the error α is split. Routes get most of it: what hurts all
// requests alike shows on them too, while one route's trouble vanishes in the
// whole.
const (
	weightOfAll     = 0.25 // for all requests of a group, if it has changed routes
	weightOfLatency = 0.3
)

// leastBad is how many bad requests of the candidate a fail takes at least: one
// client that asks again is no evidence, whatever the arithmetic says.
const leastBad = 5

// suspicion is how far evidence is on its way to a fail, on a logarithmic
// scale, when it keeps a pass back: few requests that look bad must not pass
// just because the time is over.
const suspicion = 0.25

// A rate is a metric that is a share of requests.
type rate struct {
	name   string
	weight float64 // its part of α; with latency they are 1
	least  float64 // default of Metric.MinEffect
	fresh  bool    // judged on routes that stable does not have
	count  func(*Counts) uint64
}

func rates() []rate {
	return []rate{
		{"errors", 0.4, 0.005, true, func(c *Counts) uint64 { return c.Errors }},
		{"connect", 0.1, 0.005, true, func(c *Counts) uint64 { return c.Connect }},
		{"notFound", 0.1, 0.01, false, func(c *Counts) uint64 { return c.NotFound }},
		{"notAllowed", 0.05, 0.01, false, func(c *Counts) uint64 { return c.NotAllowed }},
		{"panics", 0.05, 0.0005, true, func(c *Counts) uint64 { return c.Panics }},
	}
}

// Judge compares both sides of each group. It may be called as often as one
// likes on growing samples without weakening its promise. It takes any
// numbers, also such that contradict each other.
func Judge(c Config, of Comparison) Result { return judged(c, of).result() }

// judged gathers what there is to say of each group.
func judged(c Config, of Comparison) *judge {
	j := &judge{Config: c.withDefaults(), of: of, rates: rates()}
	j.alpha = (1 - j.Confidence) / float64(max(1, len(of.Groups))) / j.weights()
	for _, name := range slices.Sorted(maps.Keys(of.Groups)) {
		s := of.Groups[name]
		j.group(name, &s)
	}
	return j
}

// A judge gathers findings.
type judge struct {
	Config
	of    Comparison
	rates []rate
	alpha float64 // of a group; times a scope's and a metric's weight it is the test's

	stable, candidate float64 // requests in all
	found             []finding
	missing           []string // what a pass needs besides, of the whole
}

// A finding is a Finding whose words are not made yet.
type finding struct {
	Finding
	stableOf, candidateOf float64 // requests of each
	needs                 uint64  // of the candidate; for metric requests
	note                  string
	suspect               bool // the effect counts and the evidence is on its way to a fail: no pass yet
	distrust              bool // the share of keys is off
}

// A scope is a route, or all requests, of a group.
type scope struct {
	group, route string
	weight       float64
	pair         *Pair
	all          *Pair // of its group
}

// weights is the sum of the weights of what is judged.
func (j *judge) weights() float64 {
	sum := 0.0
	for _, r := range j.rates {
		if !j.Metrics[r.name].Off {
			sum += r.weight
		}
	}
	if !j.Metrics["latency"].Off {
		sum += weightOfLatency
	}
	return max(sum, weightOfLatency) // all off: nothing is judged
}

func (j *judge) group(name string, s *Sample) {
	j.stable += float64(s.All.Stable.Requests)
	j.candidate += float64(s.All.Candidate.Requests)
	first := len(j.found)

	routes := slices.Sorted(maps.Keys(s.Routes))
	parts := len(routes)
	withRest := s.More > 0 || s.Rest.Stable.Requests > 0 || s.Rest.Candidate.Requests > 0
	if withRest {
		parts++
	}
	all := scope{group: name, weight: 1, pair: &s.All, all: &s.All}
	if parts > 0 {
		all.weight = weightOfAll
	}
	j.scope(all)
	j.enoughOfGroup(name, &s.All)
	for _, route := range routes {
		p := s.Routes[route]
		j.changed(scope{group: name, route: route, pair: &p, all: &s.All}, parts)
	}
	if withRest {
		j.changed(scope{group: name, route: rest, pair: &s.Rest, all: &s.All}, parts)
	}
	if wanted, ok := j.of.Wanted[name]; ok && !j.ratio(name, s, wanted) {
		j.distrust(j.found[first:])
	}
}

// changed judges one of a group's changed routes.
func (j *judge) changed(sc scope, of int) {
	sc.weight = (1 - weightOfAll) / float64(of)
	j.scope(sc)
	if n := sc.pair.Candidate.Requests; n < j.MinRouteRequests {
		j.lacking(sc, n, j.MinRouteRequests)
	}
}

func (j *judge) enoughOfGroup(name string, all *Pair) {
	sc := scope{group: name, pair: all}
	if n := all.Candidate.Requests; n < j.MinRouteRequests {
		j.lacking(sc, n, j.MinRouteRequests)
	}
	if n := all.Stable.Requests; n < j.MinRouteRequests {
		j.missing = append(j.missing, fmt.Sprintf("group %s has %s of %s requests of stable",
			name, count(float64(n)), count(float64(j.MinRouteRequests))))
	}
}

// lacking notes that a route, or a group, has too few requests for a pass.
func (j *judge) lacking(sc scope, n, needs uint64) {
	j.found = append(j.found, finding{
		Finding: Finding{
			Group: sc.group, Route: sc.route, Metric: "requests", Verdict: Inconclusive,
			Stable: float64(sc.pair.Stable.Requests), Candidate: float64(n),
			Evidence: float64(n), Needed: float64(needs),
		},
		needs: needs,
	})
}

func (j *judge) scope(sc scope) {
	for i := range j.rates {
		if r := &j.rates[i]; !j.Metrics[r.name].Off {
			j.rate(sc, r)
		}
	}
	if !j.Metrics["latency"].Off {
		j.latency(sc)
	}
}

// rate judges one share of requests.
func (j *judge) rate(sc scope, r *rate) {
	st, ca := &sc.pair.Stable, &sc.pair.Candidate
	least := j.effect(r.name, r.least, j.of.Before)
	note, chance := "", math.Inf(1)
	if st.Requests == 0 && sc.route != "" && ca.Requests > 0 {
		// A route that stable does not have, or where nobody asked it yet: it
		// is compared with all of stable's requests, and only a disaster
		// counts.
		if !r.fresh {
			return
		}
		st, least = &sc.all.Stable, max(least, freshEffect)
		note, chance = "stable has no such requests: its whole", chanceOfNone(sc)
	}
	n0, n1 := float64(st.Requests), float64(ca.Requests)
	k0, k1 := min(float64(r.count(st)), n0), min(float64(r.count(ca)), n1)
	if n0 == 0 || n1 == 0 || k0+k1 == 0 && sc.route != "" {
		return
	}
	f := finding{
		Finding: Finding{
			Group: sc.group, Route: sc.route, Metric: r.name, DryRun: j.Metrics[r.name].DryRun,
			Stable: k0 / n0, Candidate: k1 / n1, Effect: k1/n1 - k0/n0,
			Needed: 1 / (j.alpha * sc.weight * r.weight),
		},
		stableOf: n0, candidateOf: n1, note: note,
	}
	if f.Effect >= least {
		f.Evidence = asEvidence(min(logEvidence(k0, n0, k1, n1), chance))
		f.decide(k1)
	} else {
		f.Verdict = Pass
	}
	j.keep(f)
}

// keep takes note of what was found, but for routes that are fine when there
// are more than can be shown.
func (j *judge) keep(f finding) {
	if f.Evidence > 0 || f.Route == "" || len(j.found) < mostFindings {
		j.found = append(j.found, f)
	}
}

// decide sets the verdict of an effect that counts, by its evidence.
func (f *finding) decide(bad float64) {
	switch {
	case f.Evidence >= f.Needed && bad >= leastBad:
		f.Verdict = Fail
	case f.Evidence >= math.Pow(f.Needed, suspicion):
		f.Verdict, f.suspect = Inconclusive, true
	default:
		f.Verdict = Pass
	}
}

// freshEffect is the least share of bad requests on a new route beyond stable's
// share of all that counts: a new route may well be a little worse than the rest.
const freshEffect = 0.05

// chanceOfNone is the logarithm of an e-value against "stable has this route
// too": by its part of all requests, how surprising it is that it got none.
func chanceOfNone(sc scope) float64 {
	n0, n1 := float64(sc.all.Stable.Requests), float64(sc.all.Candidate.Requests)
	return float64(sc.pair.Candidate.Requests) * math.Log1p(n0/max(n1, 1))
}

// distrust takes back what was found in a group whose share of keys is off.
func (j *judge) distrust(found []finding) {
	for i := range found {
		if f := &found[i]; f.Verdict == Fail && f.Metric != "ratio" {
			f.Verdict, f.distrust = Inconclusive, true
		}
	}
}

// asEvidence is an e-value by its logarithm, finite.
func asEvidence(log float64) float64 { return math.Exp(min(log, 690)) }
