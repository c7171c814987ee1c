package telemetry

import (
	"context"
	"log/slog"
	"net/http"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"routerd.dev/internal/engine"
)

// Traced has a span made for each request that h serves. It stands outside of
// what is switched, and is h itself when no spans are exported.
func (t *Telemetry) Traced(h http.Handler) http.Handler {
	if !t.Tracing {
		return h
	}
	return otelhttp.NewHandler(h, "request",
		otelhttp.WithTracerProvider(t.Tracer), otelhttp.WithPropagators(t.Propagator),
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return r.Method }))
}

// Propagate returns what writes the span's context into the request that goes
// upstream; nil for a request without a recording span.
func (t *Telemetry) Propagate(ctx context.Context) func(http.Header) {
	if !trace.SpanFromContext(ctx).IsRecording() {
		return nil
	}
	return func(h http.Header) { t.Propagator.Inject(ctx, propagation.HeaderCarrier(h)) }
}

// Spans is an observer that writes on each request's span what served it; nil
// when no spans are exported.
func (t *Telemetry) Spans() engine.Observer {
	if !t.Tracing {
		return nil
	}
	return spans{}
}

type spans struct{}

// Request implements engine.Observer.
func (spans) Request(r *engine.Record) {
	span := trace.SpanFromContext(r.Context)
	if !span.IsRecording() {
		return
	}
	if r.Route != "" {
		span.SetName(r.Method + " " + r.Route)
	}
	span.SetAttributes(
		attribute.String("routerd.route", r.Route),
		attribute.Int64("routerd.revision", r.Revision.Number),
		attribute.Int64("routerd.epoch", r.Epoch),
		attribute.String("routerd.group", r.Group),
		attribute.String("routerd.instance", r.Instance),
		attribute.Bool("routerd.candidate", r.Candidate),
	)
	if r.Upstream != "" {
		span.SetAttributes(attribute.String("routerd.upstream", r.Upstream))
	}
	if r.Kind != "" && r.Status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, r.Kind)
	}
}

// Panics is an observer that logs what a middleware panicked with: a defect,
// never an operator's mistake.
func (t *Telemetry) Panics() engine.Observer { return panics{t.Logger} }

type panics struct{ log *slog.Logger }

// Request implements engine.Observer.
func (p panics) Request(r *engine.Record) {
	if r.Panic != nil {
		p.log.Error("a request panicked", "panic", r.Panic, "route", r.Route, "revision", r.Revision.Number, "stack", string(r.Stack))
	}
}
