package engine

import (
	"iter"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/version"
)

// Counters count requests for each revision and route. They are read while they
// are written: a reading is not of one instant, but loses nothing. A request is
// counted when it ends; one whose engine was dropped before that is in Sum
// alone.
type Counters struct {
	shards int // a power of two

	mu      sync.Mutex
	engines []*engineCounters
	leaving map[*tally]bool // of engines that were dropped, while requests may be counted there
	retired Totals          // of those after that, all routes together

	changes changeCache
}

// NewCounters makes counters for the number of processors there is now.
func NewCounters() *Counters {
	n := min(runtime.GOMAXPROCS(0), maxShards)
	return &Counters{shards: 1 << bits.Len(uint(n-1)), leaving: map[*tally]bool{}}
}

// maxShards bounds what a busy route takes on a large machine.
const maxShards = 16

// A CounterKey is what is counted: a route of a revision, or the requests that
// no route took.
type CounterKey struct {
	Ref   version.Ref
	Route string // module/name; empty for requests without a route
}

// Totals are sums since the engine was compiled.
type Totals struct {
	Status     [6]uint64 // by hundreds: Status[2] is of 200..299; Status[0] of requests that were sent none
	NotFound   uint64    // of them: 404
	NotAllowed uint64    // 405
	Errors     uint64    // 5xx, or cut off because the upstream failed, or a panic
	Connect    uint64    // of Errors: no upstream could be connected
	Panics     uint64    // of Errors
	BytesIn    uint64    // of request bodies
	BytesOut   uint64    // of response bodies
	Nanos      uint64    // sum of durations
	Latency    analysis.Histogram
}

// Requests is how many requests were counted.
func (t *Totals) Requests() uint64 {
	var n uint64
	for _, v := range t.Status {
		n += v
	}
	return n
}

// Counts is what an analysis is made of.
func (t *Totals) Counts() analysis.Counts {
	return analysis.Counts{
		Requests: t.Requests(), Errors: t.Errors, Connect: t.Connect,
		NotFound: t.NotFound, NotAllowed: t.NotAllowed, Panics: t.Panics, Latency: t.Latency,
	}
}

// Merge adds o to t.
func (t *Totals) Merge(o *Totals) {
	for i, v := range o.Status {
		t.Status[i] += v
	}
	t.NotFound += o.NotFound
	t.NotAllowed += o.NotAllowed
	t.Errors += o.Errors
	t.Connect += o.Connect
	t.Panics += o.Panics
	t.BytesIn += o.BytesIn
	t.BytesOut += o.BytesOut
	t.Nanos += o.Nanos
	for i, v := range o.Latency {
		t.Latency[i] += v
	}
}

// engineCounters are one engine's. The engine has them, and each request that it
// serves, to its end.
type engineCounters struct {
	owner *Counters
	ref   version.Ref
	parts []*part
	tally
}

// A tally is what an engine counted. It may be read when its engineCounters are
// garbage: it is allocated apart from them, and knows neither routes nor
// engine.
type tally struct {
	routes  [][]atomic.Pointer[routeCounter] // by part.slot, then entry.index; allocated for a route when it has its first request
	noRoute *routeCounter
}

func (t *tally) addTo(sum *Totals) {
	for _, routes := range t.routes {
		for i := range routes {
			if rc := routes[i].Load(); rc != nil {
				rc.addTo(sum)
			}
		}
	}
	t.noRoute.addTo(sum)
}

func (c *Counters) add(e *Engine) *engineCounters {
	slots := 0
	for _, p := range e.parts {
		slots = max(slots, p.slot+1)
	}
	ec := &engineCounters{owner: c, ref: e.ref, parts: e.parts, tally: tally{routes: make([][]atomic.Pointer[routeCounter], slots), noRoute: new(routeCounter)}}
	for _, p := range e.parts {
		ec.routes[p.slot] = make([]atomic.Pointer[routeCounter], len(p.entries))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.engines = append(c.engines, ec)
	return ec
}

func (c *Counters) drop(ec *engineCounters) {
	c.keepIf(func(o *engineCounters) bool { return o != ec })
}

func (c *Counters) keep(inUse map[*engineCounters]bool) {
	c.keepIf(func(o *engineCounters) bool { return inUse[o] })
}

func (c *Counters) keepIf(keep func(*engineCounters) bool) {
	c.changes.keepIf(keep)
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := make([]*engineCounters, 0, len(c.engines))
	for _, ec := range c.engines {
		if keep(ec) {
			kept = append(kept, ec)
			continue
		}
		t := ec.tally
		c.leaving[&t] = true
		runtime.AddCleanup(ec, c.retire, &t) // each request holds ec to its end
	}
	c.engines = kept
}

// retire takes the last reading of an engine that was dropped.
func (c *Counters) retire(t *tally) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t.addTo(&c.retired)
	delete(c.leaving, t)
}

// All yields the totals of every route that had a request, and of requests
// without a route, for each engine that is kept. A key may come more than once,
// when a revision was compiled again: its totals add up.
func (c *Counters) All() iter.Seq2[CounterKey, Totals] {
	return func(yield func(CounterKey, Totals) bool) {
		c.mu.Lock()
		engines := c.engines
		c.mu.Unlock()
		for _, ec := range engines {
			more := true
			ec.each(func(name string, t *Totals) {
				more = more && yield(CounterKey{ec.ref, name}, *t)
			})
			if !more {
				return
			}
		}
	}
}

// Sum returns the totals of everything that was ever counted.
func (c *Counters) Sum() Totals {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := c.retired
	for _, ec := range c.engines {
		ec.addTo(&sum)
	}
	for t := range c.leaving {
		t.addTo(&sum)
	}
	return sum
}

// each calls f for every route that had a request. f must not keep t.
func (ec *engineCounters) each(f func(name string, t *Totals)) {
	var t Totals
	for _, p := range ec.parts {
		for i := range ec.routes[p.slot] {
			if rc := ec.routes[p.slot][i].Load(); rc != nil {
				t = Totals{}
				rc.addTo(&t)
				f(p.entries[i].name, &t)
			}
		}
	}
	t = Totals{}
	if ec.noRoute.addTo(&t); t.Requests() > 0 {
		f("", &t)
	}
}

// count adds one request. at is the number of the caller's shard.
func (ec *engineCounters) count(r *Record, e *entry, at int) {
	rc := ec.noRoute
	if e != nil {
		rc = ec.of(e)
	}
	ev := eventOf(r)
	if more := rc.busy(ec.owner.shards, ev.class); more != nil {
		more[at&(ec.owner.shards-1)].add(&ev)
		return
	}
	rc.first.add(&ev)
}

// of returns the counter of a route, which there is from its first request on.
func (ec *engineCounters) of(e *entry) *routeCounter {
	at := &ec.routes[e.part.slot][e.index]
	if rc := at.Load(); rc != nil {
		return rc
	}
	at.CompareAndSwap(nil, new(routeCounter))
	return at.Load()
}
