// Package telemetry builds what the other packages are given to speak with:
// a logger, a meter and a tracer, and the Prometheus page. Lower tiers see
// only the API's values (slog, OpenTelemetry's API), never this package.
//
// Metrics are always collected and shown at /metrics. They, and traces and
// logs, are also exported by OTLP when the standard OTEL variables ask for it
// (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_EXPORTER, …). Without them no
// span is made and a request pays nothing for tracing.
//
// Metrics carry group and instance; spans, access log lines and what is logged
// of a request carry group, instance, revision, epoch and route besides. With
// tracing, access log lines name their trace.
//
// # Invariants
//
//   - A request is counted once, by revision and route; a series never goes
//     down while its revision is held.
//   - A line of the access log is one line of JSON, whatever a client sent.
//   - Who comes after routerd in a trace learns whether it is sampled.
//
// # Concurrency
//
// Everything is safe for concurrent use after New. The access log has one
// writer goroutine, run by AccessLog.Run. The exporters have theirs, which
// Shutdown ends.
//
// # Failure
//
// Telemetry never stops traffic: an unreachable collector is logged, once a
// minute, and an access log that cannot keep up, or write, drops lines and counts
// them. Only OTEL variables that ask for what there is not fail the start.
package telemetry
