package telemetry

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"routerd.dev/internal/engine"
)

// A CounterSource is where request metrics come from; *engine.Counters is one.
type CounterSource interface {
	All() iter.Seq2[engine.CounterKey, engine.Totals]
}

// Requests turns the engine's counters into metrics when they are asked for,
// so that a request pays for no instrument.
//
// A route gets series of its own with its first request, up to MaxRoutes routes
// at a time; those of a revision that come later are counted together as route
// "other", so that a large table cannot flood a metrics store. A series never
// goes down while its revision is held, and ends with it; when the revision comes
// again, it begins anew.
type Requests struct {
	MaxRoutes int // 0 for 1000

	who     []attribute.KeyValue // on every series
	mu      sync.Mutex
	sources []CounterSource
	read    time.Time // when the last metrics were made
	routes  map[series]begun
	total   map[int64]begun
	names   map[int64]*names // by revision
	users   map[string]int   // in how many revisions a route has series of its own
}

// names are the routes of one revision that have series of their own.
type names struct {
	own map[string]bool
	// full: a route was counted as "other", and one that got its own series
	// now might have been among them.
	full bool
}

// begun is a series since it began.
type begun struct {
	at       time.Time
	requests uint64 // of the last reading
	totals   engine.Totals
}

// otherRoutes names the routes that have no series of their own.
const otherRoutes = "other"

// NewRequests makes metrics without a source, with attributes that stand on
// all of them.
func NewRequests(who ...attribute.KeyValue) *Requests {
	return &Requests{who: who, read: time.Now(), names: map[int64]*names{}, users: map[string]int{}}
}

// Add has the metrics count what src counts.
func (q *Requests) Add(src CounterSource) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sources = append(q.sources, src)
}

type series struct {
	revision int64
	route    string
}

// The names of the request metrics, as OpenTelemetry has them; the Prometheus
// page writes _ for . and adds units.
const (
	metricRequests = "routerd.requests"
	metricDuration = "routerd.request.duration"
	metricBytesIn  = "routerd.request.received"
	metricBytesOut = "routerd.request.sent"
	metricPanics   = "routerd.request.panics"
)

// Produce implements the SDK's Producer.
func (q *Requests) Produce(context.Context) ([]metricdata.ScopeMetrics, error) {
	now := time.Now()
	perRoute, perRevision := q.readAll(now)
	keys := slices.SortedFunc(maps.Keys(perRoute), func(a, b series) int {
		return cmp.Or(cmp.Compare(a.revision, b.revision), cmp.Compare(a.route, b.route))
	})
	sum := func(name, unit, desc string, points []metricdata.DataPoint[int64]) metricdata.Metrics {
		return metricdata.Metrics{Name: name, Unit: unit, Description: desc, Data: metricdata.Sum[int64]{
			DataPoints: points, Temporality: metricdata.CumulativeTemporality, IsMonotonic: true,
		}}
	}
	var requests, in, out, panics []metricdata.DataPoint[int64]
	for _, k := range keys {
		t, start := perRoute[k].totals, perRoute[k].at
		labels := append(q.who[:len(q.who):len(q.who)], attribute.Int64("revision", k.revision), attribute.String("route", k.route))
		point := func(v uint64, more ...attribute.KeyValue) metricdata.DataPoint[int64] {
			return metricdata.DataPoint[int64]{
				Attributes: attribute.NewSet(append(slices.Clone(labels), more...)...),
				StartTime:  start, Time: now, Value: int64(v),
			}
		}
		for class, n := range t.Status {
			if n > 0 {
				requests = append(requests, point(n, attribute.String("status", statusClass(class))))
			}
		}
		in = append(in, point(t.BytesIn))
		out = append(out, point(t.BytesOut))
		if t.Panics > 0 {
			panics = append(panics, point(t.Panics))
		}
	}
	return []metricdata.ScopeMetrics{{
		Scope: instrumentation.Scope{Name: scope},
		Metrics: []metricdata.Metrics{
			sum(metricRequests, "{request}", "Requests by revision, route and class of status; route is empty where none took them.", requests),
			sum(metricBytesIn, "By", "Bytes of request bodies that were forwarded, by revision and route.", in),
			sum(metricBytesOut, "By", "Bytes of response bodies that were sent, by revision and route.", out),
			sum(metricPanics, "{panic}", "Requests that ended in a panic, by revision and route.", panics),
			{Name: metricDuration, Unit: "s", Description: "Time from a request's head to the end of its response, by revision.", Data: q.histogram(perRevision, now)},
		},
	}}, nil
}

func statusClass(class int) string {
	if class == 0 {
		return "none"
	}
	return strconv.Itoa(class) + "xx"
}

// readAll adds up what the sources count, by route and by revision, and tells
// since when.
func (q *Requests) readAll(now time.Time) (map[series]begun, map[int64]begun) {
	q.mu.Lock()
	defer q.mu.Unlock()
	perRoute, perRevision := map[series]begun{}, map[int64]begun{}
	for _, src := range q.sources {
		for key, t := range src.All() {
			k := series{key.Ref.Number, q.nameOf(key.Ref.Number, key.Route)}
			sum, all := perRoute[k], perRevision[k.revision]
			sum.totals.Merge(&t)
			all.totals.Merge(&t)
			perRoute[k], perRevision[k.revision] = sum, all
		}
	}
	q.routes, q.total = since(q.routes, perRoute, q.read), since(q.total, perRevision, q.read)
	for revision, n := range q.names {
		if _, held := perRevision[revision]; held {
			continue
		}
		delete(q.names, revision)
		for route := range n.own {
			if q.users[route]--; q.users[route] == 0 {
				delete(q.users, route)
			}
		}
	}
	q.read = now
	return q.routes, q.total
}

// nameOf tells under which name a route is counted, always the same for one
// revision.
func (q *Requests) nameOf(revision int64, route string) string {
	if route == "" {
		return route
	}
	n := q.names[revision]
	if n == nil {
		n = &names{own: map[string]bool{}}
		q.names[revision] = n
	}
	switch {
	case n.own[route]:
	case n.full || q.users[route] == 0 && len(q.users) >= cmp.Or(q.MaxRoutes, 1000):
		n.full = true
		return otherRoutes
	default:
		n.own[route] = true
		q.users[route]++
	}
	return route
}

// since notes when each series of now began: one that was not there before, or
// is smaller than it was, after the last reading.
func since[K comparable](before, now map[K]begun, last time.Time) map[K]begun {
	for k, v := range now {
		v.requests = v.totals.Requests()
		if b, ok := before[k]; ok && b.requests <= v.requests {
			v.at = b.at
		} else {
			v.at = last
		}
		now[k] = v
	}
	return now
}

// histogram gives the durations in buckets that are made of four of the
// engine's: each twice as long as the one before.
func (q *Requests) histogram(perRevision map[int64]begun, now time.Time) metricdata.Histogram[float64] {
	h := metricdata.Histogram[float64]{Temporality: metricdata.CumulativeTemporality}
	for _, r := range slices.Sorted(maps.Keys(perRevision)) {
		t := perRevision[r].totals
		p := metricdata.HistogramDataPoint[float64]{
			Attributes: attribute.NewSet(append(q.who[:len(q.who):len(q.who)], attribute.Int64("revision", r))...),
			StartTime:  perRevision[r].at, Time: now,
			Sum: time.Duration(t.Nanos).Seconds(),
		}
		var n uint64
		last := len(t.Latency) - 1
		for i, v := range t.Latency {
			n += v
			p.Count += v
			if i == last || i%4 == 2 {
				p.BucketCounts = append(p.BucketCounts, n)
				n = 0
				if i != last {
					p.Bounds = append(p.Bounds, t.Latency.Bound(i).Seconds())
				}
			}
		}
		h.DataPoints = append(h.DataPoints, p)
	}
	return h
}
