package engine

import (
	"iter"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"routerd.dev/internal/version"
)

// Counters count requests for each revision and route. They are read while
// they are written: a reading is not of one instant, but loses nothing.
type Counters struct {
	shards int // a power of two

	mu      sync.Mutex
	engines []*engineCounters
	retired Totals // of engines that were dropped, all routes together
}

// NewCounters makes counters for the number of processors there is now.
func NewCounters() *Counters {
	n := min(runtime.GOMAXPROCS(0), maxShards)
	return &Counters{shards: 1 << bits.Len(uint(n-1))}
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
	Status   [6]uint64 // by hundreds: Status[2] is of 200..299; Status[0] of requests that were sent none
	BytesIn  uint64    // of request bodies
	BytesOut uint64    // of response bodies
	Panics   uint64
	Nanos    uint64 // sum of durations
	Latency  Histogram
}

// Requests is how many requests were counted.
func (t *Totals) Requests() uint64 {
	var n uint64
	for _, v := range t.Status {
		n += v
	}
	return n
}

// Merge adds o to t.
func (t *Totals) Merge(o *Totals) {
	for i, v := range o.Status {
		t.Status[i] += v
	}
	t.BytesIn += o.BytesIn
	t.BytesOut += o.BytesOut
	t.Panics += o.Panics
	t.Nanos += o.Nanos
	for i, v := range o.Latency {
		t.Latency[i] += v
	}
}

// A Histogram counts durations in buckets that grow by a half of a power of
// two each: bucket i holds what is at most Bound(i), the last one everything
// longer. Histograms are merged by adding.
type Histogram [histogramBuckets]uint64

const (
	histogramBuckets = 44
	histogramMin     = 5 // the first bucket ends at 2^5 µs
)

// Bound is the upper end of bucket i; that of the last one is a day.
func (Histogram) Bound(i int) time.Duration {
	if i >= histogramBuckets-1 {
		return 24 * time.Hour
	}
	base := time.Microsecond << (histogramMin + i/2)
	return base + base/2*time.Duration(i%2)
}

func bucketOf(d time.Duration) int {
	if d <= time.Microsecond<<histogramMin {
		return 0
	}
	us := uint64((d - 1) / time.Microsecond) // what is at a bound belongs to it
	exp := bits.Len64(us) - 1
	half := int(us >> (exp - 1) & 1)
	return min(2*(exp-histogramMin)+1+half, histogramBuckets-1)
}

// Quantile returns a duration that the part q of what was counted does not
// exceed: the end of its bucket. Zero when nothing was counted.
func (h *Histogram) Quantile(q float64) time.Duration {
	var n uint64
	for _, v := range h {
		n += v
	}
	if n == 0 {
		return 0
	}
	want := uint64(q * float64(n))
	var seen uint64
	for i, v := range h {
		if seen += v; seen > want || seen == n {
			return h.Bound(i)
		}
	}
	return h.Bound(histogramBuckets - 1)
}

// engineCounters are one engine's, allocated for a route when it has its first
// request.
type engineCounters struct {
	owner   *Counters
	ref     version.Ref
	parts   []*part
	routes  [][]atomic.Pointer[routeCounter] // by part.slot, then entry.index
	noRoute routeCounter
}

// A routeCounter starts with one shard and gets more when it turns out to be
// busy: most routes of a large table are not.
type routeCounter struct {
	first shard
	more  atomic.Pointer[[]shard]
}

// busy is how many requests a route has in its first shard before it gets
// more.
const busy = 4096

// A shard is written mostly by one processor. It fills whole cache lines.
type shard struct {
	requests [6]atomic.Uint64
	bytesIn  atomic.Uint64
	bytesOut atomic.Uint64
	panics   atomic.Uint64
	nanos    atomic.Uint64
	latency  [histogramBuckets]atomic.Uint64
	_        [10]uint64
}

func (c *Counters) add(e *Engine) *engineCounters {
	slots := 0
	for _, p := range e.parts {
		slots = max(slots, p.slot+1)
	}
	ec := &engineCounters{owner: c, ref: e.ref, parts: e.parts, routes: make([][]atomic.Pointer[routeCounter], slots)}
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
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := make([]*engineCounters, 0, len(c.engines))
	for _, ec := range c.engines {
		if keep(ec) {
			kept = append(kept, ec)
			continue
		}
		ec.each(func(_ string, t *Totals) { c.retired.Merge(t) })
	}
	c.engines = kept
}

// All yields the totals of every route that had a request, and of requests
// without a route, for each engine that is kept. A key may come more than once, when a
// revision was compiled again: its totals add up.
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
		ec.each(func(_ string, t *Totals) { sum.Merge(t) })
	}
	return sum
}

func (ec *engineCounters) each(f func(name string, t *Totals)) {
	for _, p := range ec.parts {
		for i := range ec.routes[p.slot] {
			if rc := ec.routes[p.slot][i].Load(); rc != nil {
				f(p.entries[i].name, rc.totals())
			}
		}
	}
	if t := ec.noRoute.totals(); t.Requests() > 0 {
		f("", t)
	}
}

func (rc *routeCounter) totals() *Totals {
	t := new(Totals)
	rc.first.addTo(t)
	if more := rc.more.Load(); more != nil {
		for i := range *more {
			(*more)[i].addTo(t)
		}
	}
	return t
}

func (s *shard) addTo(t *Totals) {
	for i := range s.requests {
		t.Status[i] += s.requests[i].Load()
	}
	t.BytesIn += s.bytesIn.Load()
	t.BytesOut += s.bytesOut.Load()
	t.Panics += s.panics.Load()
	t.Nanos += s.nanos.Load()
	for i := range s.latency {
		t.Latency[i] += s.latency[i].Load()
	}
}

// count adds one request. at is the number of the caller's shard.
func (ec *engineCounters) count(r *Record, e *entry, at int) {
	rc := &ec.noRoute
	if e != nil {
		rc = ec.of(e)
	}
	class := r.Status / 100
	if class < 0 || class > 5 {
		class = 0
	}
	s := rc.shard(ec.owner.shards, at, class)
	s.requests[class].Add(1)
	if r.BytesIn > 0 {
		s.bytesIn.Add(uint64(r.BytesIn))
	}
	if r.BytesOut > 0 {
		s.bytesOut.Add(uint64(r.BytesOut))
	}
	if r.Panic != nil {
		s.panics.Add(1)
	}
	s.nanos.Add(uint64(r.Duration))
	s.latency[bucketOf(r.Duration)].Add(1)
}

func (ec *engineCounters) of(e *entry) *routeCounter {
	at := &ec.routes[e.part.slot][e.index]
	if rc := at.Load(); rc != nil {
		return rc
	}
	at.CompareAndSwap(nil, new(routeCounter))
	return at.Load()
}

func (rc *routeCounter) shard(shards, at, class int) *shard {
	if more := rc.more.Load(); more != nil {
		return &(*more)[at&(shards-1)]
	}
	if shards > 1 && rc.first.requests[class].Load() >= busy {
		more := make([]shard, shards)
		rc.more.CompareAndSwap(nil, &more)
		return &(*rc.more.Load())[at&(shards-1)]
	}
	return &rc.first
}
