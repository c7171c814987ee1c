package telemetry

import (
	"cmp"
	"context"
	"iter"
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
// A route gets series of its own with its first request, up to MaxRoutes of
// them in a process's life; those that come later are counted together as
// route "other", so that a large table cannot flood a metrics store.
type Requests struct {
	MaxRoutes int // 0 for 1000

	started time.Time
	mu      sync.Mutex
	sources []CounterSource
	named   map[string]bool
}

// otherRoutes names the routes that have no series of their own.
const otherRoutes = "other"

// NewRequests makes metrics without a source.
func NewRequests() *Requests {
	return &Requests{started: time.Now(), named: map[string]bool{}}
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
	perRoute, perRevision := q.read()
	keys := make([]series, 0, len(perRoute))
	for k := range perRoute {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b series) int {
		return cmp.Or(cmp.Compare(a.revision, b.revision), cmp.Compare(a.route, b.route))
	})
	sum := func(name, unit, desc string, points []metricdata.DataPoint[int64]) metricdata.Metrics {
		return metricdata.Metrics{Name: name, Unit: unit, Description: desc, Data: metricdata.Sum[int64]{
			DataPoints: points, Temporality: metricdata.CumulativeTemporality, IsMonotonic: true,
		}}
	}
	var requests, in, out, panics []metricdata.DataPoint[int64]
	for _, k := range keys {
		t := perRoute[k]
		labels := []attribute.KeyValue{attribute.Int64("revision", k.revision), attribute.String("route", k.route)}
		point := func(v uint64, more ...attribute.KeyValue) metricdata.DataPoint[int64] {
			return metricdata.DataPoint[int64]{
				Attributes: attribute.NewSet(append(slices.Clone(labels), more...)...),
				StartTime:  q.started, Time: now, Value: int64(v),
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
			sum(metricRequests, "{request}", "Requests by revision, route and class of status; route is empty where none took them", requests),
			sum(metricBytesIn, "By", "Bytes of request bodies that were forwarded, by revision and route", in),
			sum(metricBytesOut, "By", "Bytes of response bodies that were sent, by revision and route", out),
			sum(metricPanics, "{panic}", "Requests that ended in a panic, by revision and route", panics),
			{Name: metricDuration, Unit: "s", Description: "Time from a request's head to the end of its response, by revision", Data: q.histogram(perRevision, now)},
		},
	}}, nil
}

func statusClass(class int) string {
	if class == 0 {
		return "none"
	}
	return strconv.Itoa(class) + "xx"
}

func (q *Requests) read() (map[series]engine.Totals, map[int64]engine.Totals) {
	q.mu.Lock()
	defer q.mu.Unlock()
	most := q.MaxRoutes
	if most == 0 {
		most = 1000
	}
	perRoute, perRevision := map[series]engine.Totals{}, map[int64]engine.Totals{}
	for _, src := range q.sources {
		for key, t := range src.All() {
			name := key.Route
			if name != "" && !q.named[name] {
				if len(q.named) < most {
					q.named[name] = true
				} else {
					name = otherRoutes
				}
			}
			k := series{key.Ref.Number, name}
			sum, all := perRoute[k], perRevision[k.revision]
			sum.Merge(&t)
			all.Merge(&t)
			perRoute[k], perRevision[k.revision] = sum, all
		}
	}
	return perRoute, perRevision
}

// histogram gives the durations in every second bucket of the engine's: powers
// of two.
func (q *Requests) histogram(perRevision map[int64]engine.Totals, now time.Time) metricdata.Histogram[float64] {
	h := metricdata.Histogram[float64]{Temporality: metricdata.CumulativeTemporality}
	revisions := make([]int64, 0, len(perRevision))
	for r := range perRevision {
		revisions = append(revisions, r)
	}
	slices.Sort(revisions)
	for _, r := range revisions {
		t := perRevision[r]
		p := metricdata.HistogramDataPoint[float64]{
			Attributes: attribute.NewSet(attribute.Int64("revision", r)), StartTime: q.started, Time: now,
			Sum: time.Duration(t.Nanos).Seconds(),
		}
		var n uint64
		last := len(t.Latency) - 1
		for i, v := range t.Latency {
			n += v
			p.Count += v
			if i == last || i%2 == 1 {
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
