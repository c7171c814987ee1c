package telemetry

import (
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"pgregory.net/rapid"

	"routerd.dev/internal/agent"
	"routerd.dev/internal/analysis"
	"routerd.dev/internal/engine"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/version"
)

// counted is a CounterSource that a test fills.
type counted map[engine.CounterKey]engine.Totals

func (c counted) All() iter.Seq2[engine.CounterKey, engine.Totals] {
	return func(yield func(engine.CounterKey, engine.Totals) bool) {
		for k, t := range c {
			if !yield(k, t) {
				return
			}
		}
	}
}

func (c counted) add(revision int64, route string, n uint64) {
	k := engine.CounterKey{Ref: version.Ref{Number: revision}, Route: route}
	t := c[k]
	t.Status[2] += n
	t.BytesOut += 10 * n
	t.Nanos += n * uint64(time.Millisecond)
	t.Latency[analysis.BucketOf(time.Millisecond)] += n
	c[k] = t
}

func (c counted) drop(revision int64) {
	for k := range c {
		if k.Ref.Number == revision {
			delete(c, k)
		}
	}
}

func quiet(t testing.TB) *Telemetry {
	t.Helper()
	tele, err := New(t.Context(), Config{Version: "v1", Group: "main", Instance: "a", LogOutput: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tele.Shutdown(t.Context()); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	return tele
}

// page reads the metrics page as Prometheus does.
func page(t testing.TB, tele *Telemetry) map[string]*dto.MetricFamily {
	t.Helper()
	w := httptest.NewRecorder()
	tele.MetricsPage().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(w.Body)
	if err != nil {
		t.Fatalf("the page does not parse: %v", err)
	}
	return families
}

func labels(m *dto.Metric) string {
	var out []string
	for _, l := range m.Label {
		out = append(out, l.GetName()+"="+l.GetValue())
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func values(f *dto.MetricFamily) map[string]float64 {
	out := map[string]float64{}
	for _, m := range f.GetMetric() {
		out[labels(m)] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return out
}

func TestRequestMetricsOnThePage(t *testing.T) {
	tele := quiet(t)
	src := counted{}
	src.add(7, "shop/item", 3)
	src.add(7, "", 2)
	k := engine.CounterKey{Ref: version.Ref{Number: 7}, Route: "shop/item"}
	totals := src[k]
	totals.Status[5], totals.Status[0], totals.Panics, totals.BytesIn = 1, 1, 1, 5
	src[k] = totals
	tele.Requests.Add(src)

	families := page(t, tele)
	got := values(families["routerd_requests_total"])
	want := map[string]float64{
		"group=main instance=a revision=7 route=shop/item status=2xx":  3,
		"group=main instance=a revision=7 route=shop/item status=5xx":  1,
		"group=main instance=a revision=7 route=shop/item status=none": 1,
		"group=main instance=a revision=7 route= status=2xx":           2,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("routerd_requests_total:\n got %v\nwant %v", got, want)
	}
	for name, sum := range map[string]float64{
		"routerd_request_sent_bytes_total": 50, "routerd_request_received_bytes_total": 5, "routerd_request_panics_total": 1,
	} {
		var n float64
		for _, v := range values(families[name]) {
			n += v
		}
		if n != sum || families[name].GetType() != dto.MetricType_COUNTER {
			t.Errorf("%s: %v as %v, want %v as a counter", name, n, families[name].GetType(), sum)
		}
	}
	h := families["routerd_request_duration_seconds"].GetMetric()[0].GetHistogram()
	if h.GetSampleCount() != 5 || h.GetSampleSum() != 0.005 {
		t.Errorf("duration: %d requests in %v s, want 5 in 0.005 s", h.GetSampleCount(), h.GetSampleSum())
	}
	bound := (1536 * time.Microsecond).Seconds() // the bounds are 48 µs, doubled again and again
	for _, b := range h.GetBucket() {
		if want := b.GetUpperBound() >= bound; want != (b.GetCumulativeCount() == 5) {
			t.Errorf("bucket %v holds %d", b.GetUpperBound(), b.GetCumulativeCount())
		}
	}
}

// TestCountersOnlyGrow takes any order of requests, readings and switches: no
// series goes down while its revision is held, and nothing is counted twice
// or lost, however few routes have series of their own.
func TestCountersOnlyGrow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := NewRequests()
		q.MaxRoutes = rapid.IntRange(1, 4).Draw(t, "most")
		src := counted{}
		q.Add(src)
		before := map[series]uint64{}
		t.Repeat(map[string]func(*rapid.T){
			"request": func(t *rapid.T) {
				route := fmt.Sprintf("m/r%d", rapid.IntRange(0, 9).Draw(t, "route"))
				src.add(rapid.Int64Range(1, 3).Draw(t, "revision"), route, 1)
			},
			"drop": func(t *rapid.T) {
				r := rapid.Int64Range(1, 3).Draw(t, "revision")
				src.drop(r)
				q.readAll(time.Now()) // a revision that is dropped and made again between two readings may go down
				for k := range before {
					if k.revision == r {
						delete(before, k)
					}
				}
			},
			"": func(t *rapid.T) {
				perRoute, _ := q.readAll(time.Now())
				own := map[string]bool{}
				var sum uint64
				for k, v := range perRoute {
					n := v.totals.Requests()
					if n < before[k] {
						t.Fatalf("%v went down from %d to %d", k, before[k], n)
					}
					before[k] = n
					sum += n
					if k.route != otherRoutes {
						own[k.route] = true
					}
				}
				for k := range before {
					if _, there := perRoute[k]; !there {
						t.Fatalf("%v is gone while its revision is held", k)
					}
				}
				if len(own) > q.MaxRoutes {
					t.Fatalf("%d routes have series of their own, at most %d may", len(own), q.MaxRoutes)
				}
				var want uint64
				for _, v := range src {
					want += v.Requests()
				}
				if sum != want {
					t.Fatalf("%d requests are shown, %d were counted", sum, want)
				}
			},
		})
	})
}

func TestSeriesThatBeginsAnewSaysSo(t *testing.T) {
	q := NewRequests()
	src := counted{}
	q.Add(src)
	src.add(1, "m/a", 5)
	t0 := time.Now().Add(time.Second)
	first, _ := q.readAll(t0)
	again, _ := q.readAll(t0.Add(time.Second))
	k := series{1, "m/a"}
	if first[k].at != again[k].at {
		t.Error("a series that goes on began twice")
	}
	src.drop(1)
	src.add(1, "m/a", 2)
	anew, _ := q.readAll(t0.Add(2 * time.Second))
	if want := t0.Add(time.Second); !anew[k].at.Equal(want) {
		t.Errorf("began at %v, want %v: the reading before it was made anew", anew[k].at, want)
	}
}

type anInstance struct {
	status agent.Status
	ready  bool
}

func (i anInstance) Status() agent.Status   { return i.status }
func (i anInstance) Ready() agent.Readiness { return agent.Readiness{Ready: i.ready} }

func TestGauges(t *testing.T) {
	tele := quiet(t)
	log := newAccessLog(nopCloser{io.Discard}, slog.New(slog.DiscardHandler))
	log.dropped.Store(9)
	err := tele.Observe(Sources{
		Instance: anInstance{agent.Status{Joined: true, Etcd: agent.Etcd{Reachable: true}}, true},
		Pools:    func() proxy.Stats { return proxy.Stats{Upstreams: 4, Idle: 3, Down: 2, Tunnels: 1} },
		Unserved: func() uint64 { return 11 }, Connections: func() int64 { return 12 }, AccessLog: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	families := page(t, tele)
	for name, want := range map[string]float64{
		"routerd_ready": 1, "routerd_joined": 1, "routerd_draining": 0, "routerd_etcd_reachable": 1,
		"routerd_unserved_total": 11, "routerd_connections": 12, "routerd_access_log_dropped_total": 9,
		"routerd_proxy_upstreams": 4, "routerd_proxy_connections_idle": 3, "routerd_proxy_targets_down": 2, "routerd_proxy_tunnels": 1,
	} {
		if got := values(families[name]); len(got) != 1 || got["group=main instance=a"] != want {
			t.Errorf("%s: %v, want %v of this group and instance", name, got, want)
		}
	}
	for l, v := range values(families["routerd_build"]) {
		if v != 1 || !strings.Contains(l, "version=") || !strings.Contains(l, "go=go1") {
			t.Errorf("routerd_build{%s} %v", l, v)
		}
	}
	for _, standard := range []string{"process_open_fds", "process_start_time_seconds", "go_goroutine_count"} {
		if families[standard] == nil {
			t.Errorf("no %s", standard)
		}
	}
}
