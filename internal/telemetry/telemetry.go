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

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/bridges/otelslog"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/contrib/instrumentation/runtime"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
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
	Getenv    func(string) string
}

// Telemetry is what the rest of a process speaks with. Shutdown ends it.
type Telemetry struct {
	Logger     *slog.Logger
	Meter      metric.Meter
	Tracer     trace.TracerProvider
	Propagator propagation.TextMapPropagator
	Tracing    bool      // spans are exported: only then is a request worth one
	Requests   *Requests // what the data plane counts

	registry *prometheus.Registry
	closers  []func(context.Context) error
}

// scope names this project's instruments.
const scope = "routerd.dev"

// New builds the logger, meter and tracer. It opens no connection; exporters
// named by the OTEL variables connect in the background.
func New(ctx context.Context, cfg Config) (_ *Telemetry, err error) {
	if cfg.Getenv == nil {
		cfg.Getenv = os.Getenv
	}
	t := &Telemetry{
		Requests:   NewRequests(),
		registry:   prometheus.NewRegistry(),
		Propagator: propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}),
	}
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
	if env, err := resource.New(ctx, resource.WithFromEnv()); err == nil {
		if merged, err := resource.Merge(res, env); err == nil {
			res = merged
		}
	}
	if err := t.metrics(ctx, cfg, res); err != nil {
		return nil, err
	}
	if err := t.traces(ctx, cfg, res); err != nil {
		return nil, err
	}
	if err := t.logs(ctx, cfg, res); err != nil {
		return nil, err
	}
	return t, nil
}

// exported tells whether the OTEL variables ask for a signal ("TRACES",
// "METRICS" or "LOGS") to be exported.
func exported(getenv func(string) string, signal string) bool {
	if getenv("OTEL_SDK_DISABLED") == "true" {
		return false
	}
	if e := getenv("OTEL_" + signal + "_EXPORTER"); e != "" {
		return e != "none"
	}
	return getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") != ""
}

func (t *Telemetry) metrics(ctx context.Context, cfg Config, res *resource.Resource) error {
	prom, err := otelprom.New(otelprom.WithRegisterer(t.registry), otelprom.WithoutScopeInfo(), otelprom.WithProducer(t.Requests))
	if err != nil {
		return fmt.Errorf("build the metrics page: %w", err)
	}
	opts := []sdkmetric.Option{sdkmetric.WithResource(res), sdkmetric.WithReader(prom)}
	if exported(cfg.Getenv, "METRICS") {
		reader, err := t.metricReader(ctx, cfg)
		if err != nil {
			return fmt.Errorf("export metrics: %w", err)
		}
		opts = append(opts, sdkmetric.WithReader(reader))
	}
	mp := sdkmetric.NewMeterProvider(opts...)
	t.closers = append(t.closers, mp.Shutdown)
	t.Meter = mp.Meter(scope)
	if err := runtime.Start(runtime.WithMeterProvider(mp)); err != nil {
		return fmt.Errorf("measure the Go runtime: %w", err)
	}
	return nil
}

// metricReader exports by OTLP, with the request metrics, or as
// OTEL_METRICS_EXPORTER says.
func (t *Telemetry) metricReader(ctx context.Context, cfg Config) (sdkmetric.Reader, error) {
	if e := cfg.Getenv("OTEL_METRICS_EXPORTER"); e != "" && e != "otlp" {
		return autoexport.NewMetricReader(ctx)
	}
	protocol := cmp.Or(cfg.Getenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"), cfg.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL"), "http/protobuf")
	var exp sdkmetric.Exporter
	var err error
	switch protocol {
	case "grpc":
		exp, err = otlpmetricgrpc.New(ctx)
	case "http/protobuf":
		exp, err = otlpmetrichttp.New(ctx)
	default:
		return nil, fmt.Errorf("protocol %q: want grpc or http/protobuf", protocol)
	}
	if err != nil {
		return nil, err
	}
	return sdkmetric.NewPeriodicReader(exp, sdkmetric.WithProducer(t.Requests)), nil
}

func (t *Telemetry) traces(ctx context.Context, cfg Config, res *resource.Resource) error {
	t.Tracer = noop.NewTracerProvider()
	if !exported(cfg.Getenv, "TRACES") {
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
	if exported(cfg.Getenv, "LOGS") {
		exp, err := autoexport.NewLogExporter(ctx)
		if err != nil {
			return fmt.Errorf("export logs: %w", err)
		}
		lp := sdklog.NewLoggerProvider(sdklog.WithProcessor(sdklog.NewBatchProcessor(exp)), sdklog.WithResource(res))
		t.closers = append(t.closers, lp.Shutdown)
		h = slog.NewMultiHandler(h, otelslog.NewHandler(scope, otelslog.WithLoggerProvider(lp)))
	}
	t.Logger = slog.New(h)
	return nil
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
