package telemetry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/bridges/otelslog"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/contrib/instrumentation/runtime"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/exporters/stdout/stdoutmetric"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Config says who speaks and how loudly. The zero value logs text at level
// info to standard error.
type Config struct {
	Version   string
	Instance  string
	Group     string
	LogFormat string     // "text" or "json"; empty for text
	LogLevel  slog.Level // the least level that is written
	LogOutput io.Writer  // nil for standard error
}

// Telemetry is what the rest of a process speaks with. Shutdown ends it.
type Telemetry struct {
	Logger     *slog.Logger
	Meter      metric.Meter
	Tracer     trace.TracerProvider
	Propagator propagation.TextMapPropagator
	Tracing    bool      // spans are exported: only then is a request worth one
	Requests   *Requests // what the data plane counts

	group, instance string
	who             []attribute.KeyValue // group and instance, on every metric
	console         *slog.Logger         // Logger without OTLP
	registry        *prometheus.Registry
	closers         []func(context.Context) error
}

// scope names this project's instruments.
const scope = "routerd.dev"

// New builds the logger, meter and tracer. Exporters named by the OTEL
// variables connect in the background; a variable that asks for what there is
// not is an error.
func New(ctx context.Context, cfg Config) (_ *Telemetry, err error) {
	t := &Telemetry{
		registry:   prometheus.NewRegistry(),
		Propagator: propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}),
		group:      cfg.Group, instance: cfg.Instance,
		who: []attribute.KeyValue{attribute.String("group", cfg.Group), attribute.String("instance", cfg.Instance)},
	}
	t.Requests = NewRequests(t.who...)
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Shutdown(ctx))
		}
	}()
	res := resource.NewSchemaless(
		attribute.String("service.name", "routerd"),
		attribute.String("service.version", cfg.Version),
		attribute.String("service.instance.id", cfg.Instance),
		attribute.String("routerd.group", cfg.Group),
	)
	env, err := resource.New(ctx, resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("read OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	if res, err = resource.Merge(res, env); err != nil {
		return nil, fmt.Errorf("describe this process: %w", err)
	}
	if err := t.metrics(ctx, res); err != nil {
		return nil, err
	}
	if err := t.traces(ctx, res); err != nil {
		return nil, err
	}
	if err := t.logs(ctx, cfg, res); err != nil {
		return nil, err
	}
	return t, nil
}

// exported tells whether the OTEL variables ask for a signal ("TRACES",
// "METRICS" or "LOGS") to be exported.
func exported(signal string) bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	if e := os.Getenv("OTEL_" + signal + "_EXPORTER"); e != "" {
		return e != "none"
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") != ""
}

func (t *Telemetry) metrics(ctx context.Context, res *resource.Resource) error {
	prom, err := otelprom.New(otelprom.WithRegisterer(t.registry), otelprom.WithoutScopeInfo(), otelprom.WithProducer(t.Requests))
	if err != nil {
		return fmt.Errorf("build the metrics page: %w", err)
	}
	opts := []sdkmetric.Option{sdkmetric.WithResource(res), sdkmetric.WithReader(prom)}
	if exported("METRICS") {
		exp, err := metricExporter(ctx)
		if err != nil {
			return fmt.Errorf("export metrics: %w", err)
		}
		if exp != nil {
			opts = append(opts, sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exp, sdkmetric.WithProducer(t.Requests))))
		}
	}
	mp := sdkmetric.NewMeterProvider(opts...)
	t.closers = append(t.closers, mp.Shutdown)
	t.Meter = mp.Meter(scope)
	if err := runtime.Start(runtime.WithMeterProvider(mp)); err != nil {
		return fmt.Errorf("measure the Go runtime: %w", err)
	}
	// Descriptors, memory and start time, by the names that every process has.
	if err := t.registry.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})); err != nil {
		return fmt.Errorf("measure the process: %w", err)
	}
	return nil
}

// metricExporter is what the OTEL variables name, nil for what the metrics
// page does already. autoexport would do, but knows producers of metrics, which
// Requests is, for a whole process only.
func metricExporter(ctx context.Context) (sdkmetric.Exporter, error) {
	switch e := cmp.Or(os.Getenv("OTEL_METRICS_EXPORTER"), "otlp"); e {
	case "prometheus":
		return nil, nil
	case "console":
		return stdoutmetric.New()
	case "otlp":
	default:
		return nil, fmt.Errorf("OTEL_METRICS_EXPORTER=%s: want otlp, console, prometheus or none", e)
	}
	switch p := cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"), os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL"), "http/protobuf"); p {
	case "grpc":
		return otlpmetricgrpc.New(ctx)
	case "http/protobuf":
		return otlpmetrichttp.New(ctx)
	default:
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL=%s: want grpc or http/protobuf", p)
	}
}

func (t *Telemetry) traces(ctx context.Context, res *resource.Resource) error {
	t.Tracer = noop.NewTracerProvider()
	if !exported("TRACES") {
		return nil
	}
	exp, err := autoexport.NewSpanExporter(ctx)
	if err != nil {
		return fmt.Errorf("export traces: %w", err)
	}
	tp := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exp), sdktrace.WithResource(res))
	t.closers = append(t.closers, tp.Shutdown)
	t.Tracer, t.Tracing = tp, true
	return nil
}

func (t *Telemetry) logs(ctx context.Context, cfg Config, res *resource.Resource) error {
	out := cfg.LogOutput
	if out == nil {
		out = os.Stderr
	}
	opts := &slog.HandlerOptions{Level: cfg.LogLevel}
	var h slog.Handler
	switch cfg.LogFormat {
	case "", "text":
		h = slog.NewTextHandler(out, opts)
	case "json":
		h = slog.NewJSONHandler(out, opts)
	default:
		return fmt.Errorf("log format %q: want text or json", cfg.LogFormat)
	}
	t.console = slog.New(h)
	if exported("LOGS") {
		exp, err := autoexport.NewLogExporter(ctx)
		if err != nil {
			return fmt.Errorf("export logs: %w", err)
		}
		lp := sdklog.NewLoggerProvider(sdklog.WithProcessor(sdklog.NewBatchProcessor(exp)), sdklog.WithResource(res))
		t.closers = append(t.closers, lp.Shutdown)
		h = slog.NewMultiHandler(h, atLeast{cfg.LogLevel, otelslog.NewHandler(scope, otelslog.WithLoggerProvider(lp))})
	}
	t.Logger = slog.New(h)
	return nil
}

// atLeast holds a handler that has no level of its own to one.
type atLeast struct {
	level slog.Level
	slog.Handler
}

// Enabled implements slog.Handler.
func (a atLeast) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= a.level && a.Handler.Enabled(ctx, l)
}

// WithAttrs implements slog.Handler.
func (a atLeast) WithAttrs(attrs []slog.Attr) slog.Handler {
	return atLeast{a.level, a.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (a atLeast) WithGroup(name string) slog.Handler {
	return atLeast{a.level, a.Handler.WithGroup(name)}
}

// TakeErrors has what OpenTelemetry itself fails at, such as an unreachable
// collector, logged here, once a minute at most and never by OTLP. It holds for
// the whole process.
func (t *Telemetry) TakeErrors() {
	const pause = time.Minute
	var (
		mu   sync.Mutex
		next time.Time
		more int
	)
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if now.Before(next) {
			more++
			return
		}
		t.console.Warn("telemetry is not exported", "err", err, "unsaid", more)
		next, more = now.Add(pause), 0
	}))
}

// MetricsPage serves the metrics in Prometheus' formats.
func (t *Telemetry) MetricsPage() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{Registry: t.registry, ErrorHandling: promhttp.ContinueOnError})
}

// Shutdown sends what is still unsent, within ctx, and ends exporting.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	var errs []error
	for _, c := range slices.Backward(t.closers) {
		errs = append(errs, c(ctx))
	}
	t.closers = nil
	return errors.Join(errs...)
}
