package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"routerd.dev/internal/agent"
	"routerd.dev/internal/controller"
	"routerd.dev/internal/engine"
	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
	"routerd.dev/internal/telemetry"
	"routerd.dev/internal/version"
)

// An instrument is one metric as its maker described it.
type instrument struct {
	name, kind, unit, doc string
}

// prometheus is the metric's name on the /metrics page.
func (i instrument) prometheus() string {
	name := strings.ReplaceAll(i.name, ".", "_")
	switch i.unit {
	case "s":
		name += "_seconds"
	case "By":
		name += "_bytes"
	}
	if i.kind == "counter" && !strings.HasSuffix(name, "_total") {
		name += "_total"
	}
	return name
}

// collect has every part of an instance make its instruments on a meter that
// notes them. Nothing listens and nothing is contacted: the agent's life is
// over before it begins.
func collect(ctx context.Context) (_ []instrument, err error) {
	rec := &recorder{}
	s, err := store.Open(store.Config{Endpoints: []string{"127.0.0.1:1"}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	lib := engine.NewLibrary(proxy.Options{}, middleware.Env{})
	defer func() { err = errors.Join(err, lib.Upstreams.Close()) }()

	a, err := agent.New(
		agent.Deps{Store: s, Snapshots: s, Switch: engine.NewSwitch(engine.FrontOptions{}), Library: lib, Cache: version.NewCache(1)},
		agent.Options{Who: rollout.Instance{Instance: "docs", Group: "docs"}, Meter: rec})
	if err != nil {
		return nil, err
	}
	over, end := context.WithCancel(ctx)
	end()
	if err := a.Run(over); err != nil {
		return nil, err
	}
	if _, err := controller.New(controller.Of(s), controller.Options{ID: "docs", Meter: rec}); err != nil {
		return nil, err
	}
	if err := collectTelemetry(ctx, rec, a, lib); err != nil {
		return nil, err
	}
	slices.SortFunc(rec.all, func(x, y instrument) int { return cmp.Compare(x.name, y.name) })
	return slices.Compact(rec.all), nil
}

func collectTelemetry(ctx context.Context, rec *recorder, a *agent.Agent, lib *engine.Library) (err error) {
	t, err := telemetry.New(ctx, telemetry.Config{Instance: "docs", Group: "docs"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Shutdown(ctx)) }()
	t.Meter = rec
	if err := t.Observe(telemetry.Sources{
		Instance: a,
		Pools:    func() proxy.Stats { return proxy.Stats{} },
		Unserved: func() uint64 { return 0 },
	}); err != nil {
		return err
	}
	// What the data plane counts has no instruments.
	t.Requests.Add(lib.Counters)
	scopes, err := t.Requests.Produce(ctx)
	if err != nil {
		return err
	}
	for _, s := range scopes {
		for _, m := range s.Metrics {
			kind := "gauge"
			// The type is one of OpenTelemetry's SDK, which only telemetry knows.
			switch data := fmt.Sprintf("%T", m.Data); {
			case strings.Contains(data, ".Sum["):
				kind = "counter"
			case strings.Contains(data, ".Histogram["):
				kind = "histogram"
			}
			rec.note(m.Name, kind, m.Unit, m.Description)
		}
	}
	return nil
}

// A recorder is a meter that notes what is made and measures nothing.
type recorder struct {
	noop.Meter
	all []instrument
}

func (r *recorder) note(name, kind, unit, doc string) {
	r.all = append(r.all, instrument{name, kind, unit, doc})
}

func (r *recorder) Int64Counter(name string, o ...metric.Int64CounterOption) (metric.Int64Counter, error) {
	c := metric.NewInt64CounterConfig(o...)
	r.note(name, "counter", c.Unit(), c.Description())
	return r.Meter.Int64Counter(name, o...)
}

func (r *recorder) Int64UpDownCounter(name string, o ...metric.Int64UpDownCounterOption) (metric.Int64UpDownCounter, error) {
	c := metric.NewInt64UpDownCounterConfig(o...)
	r.note(name, "gauge", c.Unit(), c.Description())
	return r.Meter.Int64UpDownCounter(name, o...)
}

func (r *recorder) Int64Gauge(name string, o ...metric.Int64GaugeOption) (metric.Int64Gauge, error) {
	c := metric.NewInt64GaugeConfig(o...)
	r.note(name, "gauge", c.Unit(), c.Description())
	return r.Meter.Int64Gauge(name, o...)
}

func (r *recorder) Float64Counter(name string, o ...metric.Float64CounterOption) (metric.Float64Counter, error) {
	c := metric.NewFloat64CounterConfig(o...)
	r.note(name, "counter", c.Unit(), c.Description())
	return r.Meter.Float64Counter(name, o...)
}

func (r *recorder) Float64Histogram(name string, o ...metric.Float64HistogramOption) (metric.Float64Histogram, error) {
	c := metric.NewFloat64HistogramConfig(o...)
	r.note(name, "histogram", c.Unit(), c.Description())
	return r.Meter.Float64Histogram(name, o...)
}

func (r *recorder) Int64Histogram(name string, o ...metric.Int64HistogramOption) (metric.Int64Histogram, error) {
	c := metric.NewInt64HistogramConfig(o...)
	r.note(name, "histogram", c.Unit(), c.Description())
	return r.Meter.Int64Histogram(name, o...)
}

func (r *recorder) Int64ObservableGauge(name string, o ...metric.Int64ObservableGaugeOption) (metric.Int64ObservableGauge, error) {
	c := metric.NewInt64ObservableGaugeConfig(o...)
	r.note(name, "gauge", c.Unit(), c.Description())
	return r.Meter.Int64ObservableGauge(name, o...)
}

func (r *recorder) Int64ObservableCounter(name string, o ...metric.Int64ObservableCounterOption) (metric.Int64ObservableCounter, error) {
	c := metric.NewInt64ObservableCounterConfig(o...)
	r.note(name, "counter", c.Unit(), c.Description())
	return r.Meter.Int64ObservableCounter(name, o...)
}

func (r *recorder) Int64ObservableUpDownCounter(name string, o ...metric.Int64ObservableUpDownCounterOption) (metric.Int64ObservableUpDownCounter, error) {
	c := metric.NewInt64ObservableUpDownCounterConfig(o...)
	r.note(name, "gauge", c.Unit(), c.Description())
	return r.Meter.Int64ObservableUpDownCounter(name, o...)
}

func (r *recorder) Float64ObservableGauge(name string, o ...metric.Float64ObservableGaugeOption) (metric.Float64ObservableGauge, error) {
	c := metric.NewFloat64ObservableGaugeConfig(o...)
	r.note(name, "gauge", c.Unit(), c.Description())
	return r.Meter.Float64ObservableGauge(name, o...)
}

func (r *recorder) Float64ObservableCounter(name string, o ...metric.Float64ObservableCounterOption) (metric.Float64ObservableCounter, error) {
	c := metric.NewFloat64ObservableCounterConfig(o...)
	r.note(name, "counter", c.Unit(), c.Description())
	return r.Meter.Float64ObservableCounter(name, o...)
}

func metricsPage(all []instrument) []byte {
	var b bytes.Buffer
	b.WriteString(generated + metricsIntro)
	b.WriteString("| OpenTelemetry | at /metrics | kind | unit | means |\n|---|---|---|---|---|\n")
	for _, i := range all {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | %s |\n", i.name, i.prometheus(), i.kind, i.unit, strings.ReplaceAll(i.doc, "|", "\\|"))
	}
	return b.Bytes()
}

const metricsIntro = `# Metrics

Every instance shows its metrics at ` + "`/metrics`" + ` of its admin listener, for Prometheus, and sends
them by OTLP when the standard variables ask for it (` + "`OTEL_EXPORTER_OTLP_ENDPOINT`" + `, ` + "`OTEL_METRICS_EXPORTER`" + `).
What an instance measures of itself carries its ` + "`group` and `instance`" + `; what the data plane counts
carries ` + "`revision`" + ` and ` + "`route`" + `, so a new revision can be told from the one before. A histogram has
` + "`_bucket`, `_sum` and `_count`" + ` at /metrics. The Go runtime's metrics (` + "`go_…`" + `) and the
process's (` + "`process_…`" + `) are there too.

To be told about first: ` + "`routerd_frozen`, `routerd_quarantined`, `routerd_disk_failing`" + ` above 0, ` + "`routerd_stale_seconds`" + `
above a minute, and ` + "`routerd_revision`" + ` that differs within a group for longer than a switch takes.

`
