package daemon

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// labeled makes a meter whose counters and histograms say group and instance
// with every value. The controller's own do not: it belongs to the fleet, and which
// instance it runs in is known here.
func labeled(m metric.Meter, group, instance string) metric.Meter {
	return labeledMeter{m, metric.WithAttributeSet(attribute.NewSet(
		attribute.String("group", group), attribute.String("instance", instance)))}
}

type labeledMeter struct {
	metric.Meter
	who metric.MeasurementOption
}

// Int64Counter implements metric.Meter.
func (m labeledMeter) Int64Counter(name string, o ...metric.Int64CounterOption) (metric.Int64Counter, error) {
	c, err := m.Meter.Int64Counter(name, o...)
	return labeledCounter{c, m.who}, err
}

// Int64UpDownCounter implements metric.Meter.
func (m labeledMeter) Int64UpDownCounter(name string, o ...metric.Int64UpDownCounterOption) (metric.Int64UpDownCounter, error) {
	c, err := m.Meter.Int64UpDownCounter(name, o...)
	return labeledUpDown{c, m.who}, err
}

// Float64Histogram implements metric.Meter.
func (m labeledMeter) Float64Histogram(name string, o ...metric.Float64HistogramOption) (metric.Float64Histogram, error) {
	h, err := m.Meter.Float64Histogram(name, o...)
	return labeledHistogram{h, m.who}, err
}

type labeledCounter struct {
	metric.Int64Counter
	who metric.MeasurementOption
}

// Add implements metric.Int64Counter.
func (c labeledCounter) Add(ctx context.Context, n int64, o ...metric.AddOption) {
	c.Int64Counter.Add(ctx, n, append(o[:len(o):len(o)], c.who)...)
}

type labeledUpDown struct {
	metric.Int64UpDownCounter
	who metric.MeasurementOption
}

// Add implements metric.Int64UpDownCounter.
func (c labeledUpDown) Add(ctx context.Context, n int64, o ...metric.AddOption) {
	c.Int64UpDownCounter.Add(ctx, n, append(o[:len(o):len(o)], c.who)...)
}

type labeledHistogram struct {
	metric.Float64Histogram
	who metric.MeasurementOption
}

// Record implements metric.Float64Histogram.
func (h labeledHistogram) Record(ctx context.Context, v float64, o ...metric.RecordOption) {
	h.Float64Histogram.Record(ctx, v, append(o[:len(o):len(o)], h.who)...)
}
