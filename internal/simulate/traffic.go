package simulate

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// Traffic is what clients ask of a fleet. The zero value is 100 requests a
// second for each group, one of a thousand of which fails, with a median of 20
// ms, a tenth of them on one route that the change touches.
type Traffic struct {
	Rate    float64            `json:"rate,omitempty"`    // requests a second of each group; 0 for 100, negative for none
	Groups  map[string]float64 `json:"groups,omitempty"`  // of one group, instead; 0 for none
	Errors  float64            `json:"errors,omitempty"`  // the part that fails, whatever serves it; 0 for 0.001, negative for none
	Latency time.Duration      `json:"latency,omitempty"` // the median; 0 for 20 ms
	Clients int                `json:"clients,omitempty"` // different ones, of each group; 0 for 1000

	// Routes are those that the change touches; none for one, simulated/changed,
	// with a tenth of the requests.
	Routes []RouteTraffic `json:"routes,omitempty"`
}

// A RouteTraffic is one changed route.
type RouteTraffic struct {
	Name  string  `json:"name"`  // module/route
	Share float64 `json:"share"` // of all requests, 0 to 1

	// What the new revision does worse there: a part that fails besides, and a
	// factor of the latency, 0 for 1.
	Errors  float64 `json:"errors,omitempty"`
	Latency float64 `json:"latency,omitempty"`
}

func (t Traffic) withDefaults() Traffic {
	if t.Rate == 0 {
		t.Rate = 100
	}
	if t.Errors == 0 {
		t.Errors = 0.001
	}
	if t.Latency == 0 {
		t.Latency = 20 * time.Millisecond
	}
	if t.Clients == 0 {
		t.Clients = 1000
	}
	if len(t.Routes) == 0 {
		t.Routes = []RouteTraffic{{Name: "simulated/changed", Share: 0.1}}
	}
	t.Routes = slices.Clone(t.Routes)
	return t
}

func (t *Traffic) rate(group string) float64 {
	if r, ok := t.Groups[group]; ok {
		return max(r, 0)
	}
	return max(t.Rate, 0)
}

// worsen adds a fault of the new revision, on one route or on all changed ones.
func (t *Traffic) worsen(f Fault) {
	for i := range t.Routes {
		r := &t.Routes[i]
		switch {
		case f.Route != "" && f.Route != r.Name:
		case f.Kind == FaultErrors:
			r.Errors = f.Rate
		case f.Kind == FaultLatency:
			r.Latency = f.Factor
		}
	}
}

// A meter counts what one process served since it switched.
type meter struct {
	epoch    int64
	since    time.Time
	last     time.Time
	sample   analysis.Sample
	prepared bool // what was before a watched commit is counted
}

// A client draws requests from chance.
type client struct {
	t Traffic
	r *rand.Rand
}

// count adds to m what p served from m.last to now, of a group with n
// instances that serve.
func (c *client) count(m *meter, p *process, n int, now time.Time) {
	a := p.serving
	seconds := now.Sub(m.last).Seconds()
	m.last = now
	requests := c.poisson(c.t.rate(p.group) / float64(max(n, 1)) * seconds)
	cand := a.Candidate
	switch {
	case cand == nil: // watched after a commit
		if !m.prepared {
			m.prepared = true
			c.serve(&m.sample, false, c.poisson(c.t.rate(p.group)/float64(max(n, 1))*60))
		}
		c.serve(&m.sample, true, requests)
	case len(cand.Instances) > 0:
		c.serve(&m.sample, slices.Contains(cand.Instances, p.name), requests)
	default:
		news := c.binomial(requests, float64(cand.Permyriad)/10000)
		c.serve(&m.sample, true, news)
		c.serve(&m.sample, false, requests-news)
		c.keys(&m.sample, cand, requests)
	}
}

// serve adds n requests that one side served.
func (c *client) serve(s *analysis.Sample, candidate bool, n uint64) {
	side := func(p *analysis.Pair) *analysis.Counts {
		if candidate {
			return &p.Candidate
		}
		return &p.Stable
	}
	left, share := n, 1.0
	for _, r := range c.t.Routes {
		k := c.binomial(left, r.Share/max(share, r.Share))
		left, share = left-k, share-r.Share
		errors, latency := max(c.t.Errors, 0), c.t.Latency
		if candidate {
			errors += r.Errors
			if r.Latency > 0 {
				latency = time.Duration(float64(latency) * r.Latency)
			}
		}
		counts := c.counts(k, errors, latency)
		if s.Routes == nil {
			s.Routes = make(map[string]analysis.Pair)
		}
		pair := s.Routes[r.Name]
		side(&pair).Merge(&counts)
		s.Routes[r.Name] = pair
		side(&s.All).Merge(&counts)
	}
	rest := c.counts(left, max(c.t.Errors, 0), c.t.Latency)
	side(&s.All).Merge(&rest)
}

// spread is how latencies lie about their median: log-normal, as measured
// services mostly do.
const spread = 0.6

func (c *client) counts(n uint64, errors float64, median time.Duration) analysis.Counts {
	out := analysis.Counts{Requests: n, Errors: c.binomial(n, min(errors, 1))}
	left, below := n, 0.0
	for i := range out.Latency {
		if left == 0 {
			break
		}
		x := math.Log(float64(out.Latency.Bound(i)) / float64(median))
		upTo := 0.5 * (1 + math.Erf(x/spread/math.Sqrt2))
		k := left
		if i < len(out.Latency)-1 && below < 1 {
			k = c.binomial(left, min((upTo-below)/(1-below), 1))
		}
		out.Latency[i], left, below = k, left-k, upTo
	}
	return out
}

// keys notes which clients asked, as far as they can be told.
func (c *client) keys(s *analysis.Sample, cand *rollout.Candidate, requests uint64) {
	salt := version.DigestOf([]byte(cand.Salt))
	for range min(requests, 500) {
		id := mix(c.r.Uint64N(uint64(c.t.Clients)) + uint64(salt[0])<<32 + uint64(salt[1])<<40)
		if id%10000 < uint64(cand.Permyriad) {
			s.CandidateKeys.Add(mix(id))
		} else {
			s.StableKeys.Add(mix(id))
		}
	}
}

// mix spreads x over all bits (splitmix64, Steele, Lea and Flood, 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// exact is up to how many trials chance is drawn one by one; above, by the
// normal distribution.
const exact = 200

func (c *client) binomial(n uint64, p float64) uint64 {
	switch {
	case n == 0 || p <= 0:
		return 0
	case p >= 1:
		return n
	case p > 0.5:
		return n - c.binomial(n, 1-p)
	case n <= exact:
		var k uint64
		for range n {
			if c.r.Float64() < p {
				k++
			}
		}
		return k
	case float64(n)*p < 50:
		return min(c.poisson(float64(n)*p), n)
	}
	mean := float64(n) * p
	k := math.Round(mean + c.r.NormFloat64()*math.Sqrt(mean*(1-p)))
	return uint64(min(max(k, 0), float64(n)))
}

func (c *client) poisson(mean float64) uint64 {
	switch {
	case mean <= 0:
		return 0
	case mean > 50:
		return uint64(max(math.Round(mean+c.r.NormFloat64()*math.Sqrt(mean)), 0))
	}
	limit, k, product := math.Exp(-mean), uint64(0), c.r.Float64()
	for product > limit {
		k++
		product *= c.r.Float64()
	}
	return k
}
