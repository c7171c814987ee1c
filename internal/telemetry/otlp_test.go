package telemetry

import (
	"bytes"
	"context"
	"io"
	"log"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	traces "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/route"
	"routerd.dev/internal/routefile"
	"routerd.dev/internal/version"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard)
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		os.Stderr.WriteString(err.Error() + "\n")
		code = 1
	}
	os.Exit(code)
}

// A collector keeps what is exported to it by OTLP over HTTP.
type collector struct {
	mu       sync.Mutex
	spans    []*traces.Span
	records  []*logs.LogRecord
	metrics  map[string]*metrics.Metric
	resource map[string]string
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{metrics: map[string]*metrics.Metric{}, resource: map[string]string{}}
	srv := httptest.NewServer(c)
	t.Cleanup(srv.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", srv.URL)
	return c
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil || r.Header.Get("Content-Type") != "application/x-protobuf" {
		http.Error(w, "want protobuf", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch r.URL.Path {
	case "/v1/traces":
		var m coltrace.ExportTraceServiceRequest
		err = proto.Unmarshal(b, &m)
		for _, rs := range m.ResourceSpans {
			c.note(rs.Resource.GetAttributes())
			for _, ss := range rs.ScopeSpans {
				c.spans = append(c.spans, ss.Spans...)
			}
		}
	case "/v1/logs":
		var m collogs.ExportLogsServiceRequest
		err = proto.Unmarshal(b, &m)
		for _, rl := range m.ResourceLogs {
			for _, sl := range rl.ScopeLogs {
				c.records = append(c.records, sl.LogRecords...)
			}
		}
	case "/v1/metrics":
		var m colmetrics.ExportMetricsServiceRequest
		err = proto.Unmarshal(b, &m)
		for _, rm := range m.ResourceMetrics {
			for _, sm := range rm.ScopeMetrics {
				for _, one := range sm.Metrics {
					c.metrics[one.Name] = one
				}
			}
		}
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

func (c *collector) note(attrs []*common.KeyValue) {
	for _, a := range attrs {
		c.resource[a.Key] = a.Value.GetStringValue()
	}
}

func texts(attrs []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, a := range attrs {
		switch v := a.Value.GetValue().(type) {
		case *common.AnyValue_StringValue:
			out[a.Key] = v.StringValue
		case *common.AnyValue_IntValue:
			out[a.Key] = strings.TrimSpace(strings.Trim(a.Value.String(), "int_value:"))
		case *common.AnyValue_BoolValue:
			out[a.Key] = map[bool]string{true: "true", false: "false"}[v.BoolValue]
		}
	}
	return out
}

// A plane is a data plane with telemetry before one upstream that notes what it
// was sent.
type plane struct {
	tele   *Telemetry
	url    string
	sw     *engine.Switch
	access *bytes.Buffer
	log    *AccessLog
	asked  chan http.Header
}

func newPlane(t *testing.T, tele *Telemetry) *plane {
	t.Helper()
	p := &plane{tele: tele, asked: make(chan http.Header, 10), access: &bytes.Buffer{}}
	up := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { p.asked <- r.Header.Clone() }))
	t.Cleanup(up.Close)
	mods, problems := routefile.Parse([]routefile.File{{Name: "shop.yaml", Data: []byte(`
apiVersion: routerd/v1
module: shop
upstreams: {up: {targets: ["` + up.URL + `"]}}
routes:
  - {name: item, path: "/items/{id}", proxy: {upstream: up}}
  - {name: hi, path: /hi, respond: {body: hi}}
`)}})
	table := &route.Table{Modules: mods}
	if err := append(problems, engine.Check(table)...).Err(); err != nil {
		t.Fatal(err)
	}
	lib := engine.NewLibrary(proxy.Options{}, middleware.Env{})
	t.Cleanup(func() { _ = lib.Upstreams.Close() })
	tele.Requests.Add(lib.Counters)
	p.log = newAccessLog(nopCloser{p.access}, discard(), slog.String("group", "main"), slog.String("instance", "a"))
	e, err := engine.Compile(t.Context(), version.Ref{Number: 4}, table, lib, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o := engine.FrontOptions{Observer: Observers(tele.Spans(), tele.Panics(), p.log)}
	if tele.Tracing {
		o.Propagate = tele.Propagate
	}
	p.sw = engine.NewSwitch(o)
	front := httptest.NewServer(tele.Traced(p.sw))
	t.Cleanup(front.Close)
	p.url = front.URL
	p.swap(e)
	return p
}

func (p *plane) swap(e *engine.Engine) {
	p.sw.Swap(&engine.Serving{Group: "main", Instance: "a", Epoch: 9, Stable: e})
}

func (p *plane) get(t *testing.T, path string, header http.Header) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", p.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(r.Header, header)
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode
}

const (
	traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	spanID  = "00f067aa0ba902b7"
)

func hex(b []byte) string {
	const digits = "0123456789abcdef"
	var out strings.Builder
	for _, c := range b {
		out.WriteByte(digits[c>>4])
		out.WriteByte(digits[c&15])
	}
	return out.String()
}

func TestTraceMetricsAndLogsByOTLP(t *testing.T) {
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	c := newCollector(t)
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
	tele, err := New(t.Context(), Config{Version: "v1", Group: "main", Instance: "a", LogOutput: io.Discard, LogLevel: slog.LevelInfo})
	if err != nil {
		t.Fatal(err)
	}
	p := newPlane(t, tele)

	in := http.Header{"Traceparent": {"00-" + traceID + "-" + spanID + "-01"}, "Tracestate": {"vendor=x"}, "Baggage": {"k=v"}}
	if code := p.get(t, "/items/7", in); code != http.StatusOK {
		t.Fatalf("status %d", code)
	}
	upstream := <-p.asked
	p.get(t, "/nowhere", nil)
	p.sw.Swap(nil)
	p.get(t, "/hi", nil)
	tele.Logger.Info("switched", "revision", 4)
	tele.Logger.Debug("too quiet for the level")
	if err := tele.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) != 3 {
		t.Fatalf("%d spans, want one a request: %v", len(c.spans), c.spans)
	}
	span := c.spans[0]
	if hex(span.TraceId) != traceID || hex(span.ParentSpanId) != spanID || span.Kind != traces.Span_SPAN_KIND_SERVER {
		t.Errorf("trace %x, parent %x, kind %v: not the child of the client's", span.TraceId, span.ParentSpanId, span.Kind)
	}
	if want := "00-" + traceID + "-" + hex(span.SpanId) + "-01"; upstream.Get("Traceparent") != want || len(upstream["Traceparent"]) != 1 {
		t.Errorf("upstream was sent traceparent %q, want %q", upstream["Traceparent"], want)
	}
	if upstream.Get("Tracestate") != "vendor=x" || upstream.Get("Baggage") != "k=v" {
		t.Errorf("tracestate %q and baggage %q went upstream", upstream.Get("Tracestate"), upstream.Get("Baggage"))
	}
	if span.Name != "GET shop/item" {
		t.Errorf("span name %q", span.Name)
	}
	for i, want := range []map[string]string{
		{"routerd.route": "shop/item", "routerd.revision": "4", "routerd.epoch": "9", "routerd.group": "main", "routerd.instance": "a"},
		{"routerd.route": "", "routerd.revision": "4", "routerd.epoch": "9", "routerd.group": "main", "routerd.failure": "no-route"},
		{"routerd.route": "", "routerd.revision": "0", "routerd.epoch": "0", "routerd.group": "main", "routerd.failure": "not-ready"},
	} {
		got := texts(c.spans[i].Attributes)
		for k, v := range want {
			if g, ok := got[k]; !ok || g != v {
				t.Errorf("span %d: %s is %q, want %q", i, k, g, v)
			}
		}
	}
	if c.resource["service.name"] != "routerd" || c.resource["routerd.group"] != "main" || c.resource["deployment.environment"] != "test" {
		t.Errorf("resource %v", c.resource)
	}
	if len(c.records) != 1 || c.records[0].Body.GetStringValue() != "switched" {
		t.Errorf("log records %v, want the one of level info", c.records)
	}
	sum := c.metrics["routerd.requests"].GetSum()
	if !sum.GetIsMonotonic() || len(sum.GetDataPoints()) != 2 {
		t.Errorf("routerd.requests: %v", sum)
	}
	for name := range c.metrics {
		if strings.HasPrefix(name, "http.server") {
			t.Errorf("%s counts requests a second time", name)
		}
	}
	p.log.flush(true)
	if !strings.Contains(p.access.String(), `"trace":"`+traceID+`"`) {
		t.Errorf("the access log does not name the trace:\n%s", p.access)
	}
}

// TestSpanNamesAreFew: a client cannot make names by making up methods.
func TestSpanNamesAreFew(t *testing.T) {
	c := newCollector(t)
	tele, err := New(t.Context(), Config{LogOutput: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	p := newPlane(t, tele)
	for _, method := range []string{"OPTIONS", "PROPFIND", "get"} {
		for _, path := range []string{"/hi", "/nowhere"} {
			r := httptest.NewRequest(method, path, nil)
			tele.Traced(p.sw).ServeHTTP(httptest.NewRecorder(), r)
		}
	}
	if err := tele.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for _, s := range c.spans {
		names = append(names, s.Name)
	}
	if want := []string{"OPTIONS shop/hi", "OPTIONS", "HTTP shop/hi", "HTTP", "HTTP shop/hi", "HTTP"}; !slices.Equal(names, want) {
		t.Errorf("spans %q, want %q", names, want)
	}
}

// TestNotSampledIsPropagated: who comes after an unsampled span must not begin
// a trace of its own.
func TestNotSampledIsPropagated(t *testing.T) {
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	c := newCollector(t)
	t.Setenv("OTEL_TRACES_SAMPLER", "always_off")
	tele, err := New(t.Context(), Config{LogOutput: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	p := newPlane(t, tele)
	p.get(t, "/items/7", nil)
	if got := (<-p.asked).Get("Traceparent"); !strings.HasSuffix(got, "-00") {
		t.Errorf("traceparent %q, want one that is not sampled", got)
	}
	if err := tele.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if len(c.spans) != 0 {
		t.Errorf("%d spans were exported", len(c.spans))
	}
}

func TestWithoutTracingTheClientsContextGoesThrough(t *testing.T) {
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	tele := quiet(t)
	if tele.Tracing || tele.Spans() != nil {
		t.Error("spans are made though no variable asks for them")
	}
	h := http.NewServeMux()
	if tele.Traced(h) != http.Handler(h) {
		t.Error("a request pays for tracing")
	}
	p := newPlane(t, tele)
	sent := "00-" + traceID + "-" + spanID + "-01"
	p.get(t, "/items/7", http.Header{"Traceparent": {sent}})
	if got := (<-p.asked)["Traceparent"]; len(got) != 1 || got[0] != sent {
		t.Errorf("traceparent %q went upstream, want %q", got, sent)
	}
}

// TestUpgradeUnderTracing: otelhttp's writer must not hide what an upgrade
// needs.
func TestUpgradeUnderTracing(t *testing.T) {
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	newCollector(t)
	tele, err := New(t.Context(), Config{LogOutput: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer tele.Shutdown(t.Context())
	var missing []string
	srv := httptest.NewServer(tele.Traced(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if _, ok := w.(io.ReaderFrom); !ok {
			missing = append(missing, "io.ReaderFrom")
		}
		rc := http.NewResponseController(w)
		if err := rc.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			missing = append(missing, "deadlines: "+err.Error())
		}
		conn, _, err := rc.Hijack()
		if err != nil {
			missing = append(missing, "hijacking: "+err.Error())
			return
		}
		conn.Close()
	})))
	defer srv.Close()
	if res, err := http.Get(srv.URL); err == nil {
		res.Body.Close()
	}
	if missing != nil {
		t.Errorf("missing under tracing: %v", missing)
	}
}

func TestVariables(t *testing.T) {
	for _, c := range []struct {
		name      string
		env       map[string]string
		traces    bool
		wantError string
	}{
		{name: "nothing asked for"},
		{name: "disabled", env: map[string]string{"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}},
		{name: "an endpoint", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, traces: true},
		{name: "of one signal", env: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, traces: true},
		{name: "of another signal", env: map[string]string{"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://127.0.0.1:1/v1/logs"}},
		{name: "none", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"}},
		{name: "the page is there", env: map[string]string{"OTEL_METRICS_EXPORTER": "prometheus"}},
		{name: "unknown exporter", env: map[string]string{"OTEL_METRICS_EXPORTER": "zipkin"}, wantError: "OTEL_METRICS_EXPORTER=zipkin"},
		{name: "unknown traces exporter", env: map[string]string{"OTEL_TRACES_EXPORTER": "zipkin"}, wantError: "export traces"},
		{name: "unknown protocol", env: map[string]string{"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"}, wantError: "OTEL_EXPORTER_OTLP_PROTOCOL=smoke"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			tele, err := New(t.Context(), Config{LogOutput: io.Discard})
			if c.wantError != "" {
				if err == nil || !strings.Contains(err.Error(), c.wantError) {
					t.Errorf("error %v, want one that names %s", err, c.wantError)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tele.Tracing != c.traces {
				t.Errorf("tracing is %v", tele.Tracing)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_ = tele.Shutdown(ctx) // the collector of some is not there
		})
	}
}

// TestUnreachableCollector: it is said once, shutting down is bounded, and
// nothing stays behind (TestMain looks).
func TestUnreachableCollector(t *testing.T) {
	dead := httptest.NewServer(http.NotFoundHandler())
	u, err := url.Parse(dead.URL)
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+u.Host)
	var said bytes.Buffer
	tele, err := New(t.Context(), Config{LogOutput: &said})
	if err != nil {
		t.Fatal(err)
	}
	tele.TakeErrors()
	tele.Logger.Info("hello")
	_, span := tele.Tracer.Tracer("t").Start(t.Context(), "s")
	span.End()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if err := tele.Shutdown(ctx); err == nil {
		t.Error("nobody took it, and nobody says so")
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("shutting down took %v", took)
	}
	if n := strings.Count(said.String(), "telemetry is not exported"); n > 1 {
		t.Errorf("said %d times:\n%s", n, said.String())
	}
}

// BenchmarkRequest is what observing costs a request that is answered here.
func BenchmarkRequest(b *testing.B) {
	for _, c := range []struct {
		name    string
		observe func(*Telemetry) engine.Observer
	}{
		{"no observer", func(*Telemetry) engine.Observer { return nil }},
		{"as served", func(t *Telemetry) engine.Observer { return Observers(t.Spans(), t.Panics()) }},
		{"with access log", func(t *Telemetry) engine.Observer {
			return Observers(t.Spans(), t.Panics(), newAccessLog(nopCloser{io.Discard}, discard()))
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			tele := quiet(b)
			table := &route.Table{Modules: []*route.Module{{Name: "m", Routes: []route.Route{{
				Name: "hi", Path: "/hi", Action: route.Action{Respond: &route.Respond{Status: 200, Body: "hi"}},
			}}}}}
			route.Normalize(table)
			e, err := engine.Compile(b.Context(), version.Ref{Number: 1}, table, engine.NewLibrary(proxy.Options{}, middleware.Env{}), engine.Options{})
			if err != nil {
				b.Fatal(err)
			}
			sw := engine.NewSwitch(engine.FrontOptions{Observer: c.observe(tele)})
			sw.Swap(&engine.Serving{Stable: e})
			h := tele.Traced(sw)
			r := httptest.NewRequest("GET", "/hi", nil)
			w := httptest.NewRecorder()
			b.ReportAllocs()
			for b.Loop() {
				w.Body.Reset()
				h.ServeHTTP(w, r)
			}
		})
	}
}
