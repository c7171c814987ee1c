package telemetry

import (
	"context"
	"net/http"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"routerd.dev/internal/engine"
)

// Traced has a span made for each request that h serves, the child of the one
// that the client's traceparent names. It stands outside of what is switched, and
// is h itself when no spans are exported.
func (t *Telemetry) Traced(h http.Handler) http.Handler {
	if !t.Tracing {
		return h
	}
	return otelhttp.NewHandler(h, "request",
		otelhttp.WithTracerProvider(t.Tracer), otelhttp.WithPropagators(t.Propagator),
		// Requests are measured already, by revision and route.
		otelhttp.WithMeterProvider(metricnoop.NewMeterProvider()),
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return spanMethod(r.Method) }))
}

// Propagate returns what writes the span's context into the request that goes
// upstream, also that of a span that is not sampled, so that all services of a
// trace decide alike; nil for a request without a span.
func (t *Telemetry) Propagate(ctx context.Context) func(http.Header) {
	if !trace.SpanContextFromContext(ctx).IsValid() {
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
	return spans{attribute.String("routerd.group", t.group), attribute.String("routerd.instance", t.instance)}
}

type spans struct{ group, instance attribute.KeyValue }

// Request implements engine.Observer.
func (s spans) Request(r *engine.Record) {
	span := trace.SpanFromContext(r.Context)
	if !span.IsRecording() {
		return
	}
	if r.Route != "" {
		span.SetName(spanMethod(r.Method) + " " + r.Route)
	}
	span.SetAttributes(
		s.group, s.instance,
		attribute.String("routerd.route", r.Route),
		attribute.Int64("routerd.revision", r.Revision.Number),
		attribute.Int64("routerd.epoch", r.Epoch),
		attribute.Bool("routerd.candidate", r.Candidate),
	)
	if r.Upstream != "" {
		span.SetAttributes(attribute.String("routerd.upstream", r.Upstream), attribute.Int("routerd.attempts", r.Attempts))
	}
	if r.Kind != "" {
		span.SetAttributes(attribute.String("routerd.failure", r.Kind))
	}
	if r.Err != nil {
		span.RecordError(r.Err)
	}
	if r.Kind != "" && r.Status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, r.Kind)
	}
}

// spanMethod is a method as a span's name may hold it. Any token is a method, and
// names are to be few: by OpenTelemetry's conventions it is HTTP for those that
// nobody defined.
func spanMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return method
	}
	return "HTTP"
}
