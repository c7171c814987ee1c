package analysis

// Counts is what one side of a comparison did on one route, or on all.
// Counts of several instances are added.
type Counts struct {
	Requests   uint64    `json:"requests"`
	Errors     uint64    `json:"errors,omitempty"`     // answered 5xx, or cut off by an upstream's failure
	Connect    uint64    `json:"connect,omitempty"`    // of Errors: no upstream could be connected
	NotFound   uint64    `json:"notFound,omitempty"`   // answered 404
	NotAllowed uint64    `json:"notAllowed,omitempty"` // answered 405
	Panics     uint64    `json:"panics,omitempty"`     // of Errors: this process panicked
	Latency    Histogram `json:"latency,omitzero"`     // of every request counted
}

// A Pair is both sides, counted over the same time.
type Pair struct {
	Stable    Counts `json:"stable"`
	Candidate Counts `json:"candidate"`
}

// A Sample is what the instances of one group counted. Those of several
// instances are added by Merge.
type Sample struct {
	All    Pair            `json:"all"`              // every request, also those that no route took
	Routes map[string]Pair `json:"routes,omitempty"` // of each route that the change touches, by module/name
	More   int             `json:"more,omitempty"`   // changed routes that are not among Routes: there were too many
	Rest   Pair            `json:"rest,omitzero"`    // these together

	// StableKeys and CandidateKeys count distinct keys of clients, where a
	// share is told by key.
	StableKeys    KeySet `json:"stableKeys,omitzero"`
	CandidateKeys KeySet `json:"candidateKeys,omitzero"`
}

// Merge adds what o counted to c.
func (c *Counts) Merge(o *Counts) { c.apply(o, func(a *uint64, b uint64) { *a += b }) }

// Sub takes away what base, an earlier reading of the same counters, counted.
func (c *Counts) Sub(base *Counts) { c.apply(base, func(a *uint64, b uint64) { *a -= min(*a, b) }) }

func (c *Counts) apply(o *Counts, f func(*uint64, uint64)) {
	f(&c.Requests, o.Requests)
	f(&c.Errors, o.Errors)
	f(&c.Connect, o.Connect)
	f(&c.NotFound, o.NotFound)
	f(&c.NotAllowed, o.NotAllowed)
	f(&c.Panics, o.Panics)
	for i, n := range o.Latency {
		f(&c.Latency[i], n)
	}
}

// Merge adds what o counted to p.
func (p *Pair) Merge(o *Pair) {
	p.Stable.Merge(&o.Stable)
	p.Candidate.Merge(&o.Candidate)
}

// Merge adds what another instance of the group counted.
func (s *Sample) Merge(o *Sample) {
	s.All.Merge(&o.All)
	if s.Routes == nil && len(o.Routes) > 0 {
		s.Routes = make(map[string]Pair, len(o.Routes))
	}
	for name, add := range o.Routes {
		p := s.Routes[name]
		p.Merge(&add)
		s.Routes[name] = p
	}
	s.More = max(s.More, o.More)
	s.Rest.Merge(&o.Rest)
	s.StableKeys.Merge(&o.StableKeys)
	s.CandidateKeys.Merge(&o.CandidateKeys)
}

// Sub takes away what base, an earlier reading of the same counters, counted;
// the key sets stay.
func (s *Sample) Sub(base *Sample) {
	sub := func(p *Pair, b *Pair) {
		p.Stable.Sub(&b.Stable)
		p.Candidate.Sub(&b.Candidate)
	}
	sub(&s.All, &base.All)
	sub(&s.Rest, &base.Rest)
	for name, p := range s.Routes {
		if b, ok := base.Routes[name]; ok {
			sub(&p, &b)
			s.Routes[name] = p
		}
	}
}
