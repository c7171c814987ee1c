// Package telemetry builds what the other packages are given to speak with:
// a logger, a meter and a tracer, and the Prometheus page. Lower tiers see
// only the API's values (slog, OpenTelemetry's API), never this package.
//
// Metrics are always collected and shown at /metrics. They, and traces and
// logs, are also exported by OTLP when the standard OTEL variables ask for it
// (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_EXPORTER, …). Without them no
// span is made and a request pays nothing for tracing.
//
// # Concurrency
//
// Everything is safe for concurrent use after New. The access log has one
// writer goroutine, run by AccessLog.Run.
//
// # Failure
//
// Telemetry never stops traffic: an unreachable collector is logged, and an
// access log that cannot keep up drops lines and counts them.
package telemetry
