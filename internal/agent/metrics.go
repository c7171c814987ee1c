package agent

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics are the agent's instruments. All carry the attributes group and
// instance.
type metrics struct {
	prepare, swap, skew metric.Float64Histogram
	switches, refused   metric.Int64Counter
	attrs               metric.MeasurementOption
	meter               metric.Meter
}

func newMetrics(meter metric.Meter, group, instance string) (*metrics, error) {
	m := &metrics{meter: meter, attrs: metric.WithAttributeSet(attribute.NewSet(
		attribute.String("group", group), attribute.String("instance", instance)))}
	var errs []error
	keep := func(err error) { errs = append(errs, err) }
	histogram := func(name, doc string, buckets ...float64) metric.Float64Histogram {
		h, err := meter.Float64Histogram(name, metric.WithDescription(doc), metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(buckets...))
		keep(err)
		return h
	}
	counter := func(name, doc string) metric.Int64Counter {
		c, err := meter.Int64Counter(name, metric.WithDescription(doc))
		keep(err)
		return c
	}
	m.prepare = histogram("routerd.prepare.duration", "From a prepare that is this instance's turn to holding its whole set.", .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60)
	m.swap = histogram("routerd.switch.duration", "What a switch takes on this instance, from deciding to the first request served by it.", 1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
	m.skew = histogram("routerd.switch.skew", "How long after the instant that a commit named the switch was done.", 1e-4, 5e-4, .001, .0025, .005, .01, .025, .05, .1, .5, 1, 10, 60)
	m.switches = counter("routerd.switches", "Switches done.")
	m.refused = counter("routerd.refused", "Digests this instance would not prepare.")
	return m, errors.Join(errs...)
}

// observe reports what a status says until the returned registration ends.
func (m *metrics) observe(status func() Status) (metric.Registration, error) {
	var errs []error
	gauge := func(name, doc, unit string) metric.Int64ObservableGauge {
		g, err := m.meter.Int64ObservableGauge(name, metric.WithDescription(doc), metric.WithUnit(unit))
		errs = append(errs, err)
		return g
	}
	epoch := gauge("routerd.epoch", "Epoch served; 0 for none.", "")
	revision := gauge("routerd.revision", "Number of the revision that most requests are served by.", "")
	holds := gauge("routerd.holds", "Digests held, compiled and tested.", "")
	frozen := gauge("routerd.frozen", "1 while the instance follows no commit: etcd knows less than it served.", "")
	quarantined := gauge("routerd.quarantined", "Digests that crashed this instance too often.", "")
	fromDisk := gauge("routerd.from_disk", "1 while the epoch served is remembered on disk and not confirmed by etcd.", "")
	disk := gauge("routerd.disk.failing", "1 while the state directory cannot be written.", "")
	stale, err := m.meter.Float64ObservableGauge("routerd.stale", metric.WithDescription("How long what is served may not be what is committed; 0 while it is."), metric.WithUnit("s"))
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	flag := func(b bool) int64 {
		if b {
			return 1
		}
		return 0
	}
	return m.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := status()
		var e, r int64
		if s.Serving != nil {
			e, r = s.Serving.Epoch, s.Serving.Revision
		}
		o.ObserveInt64(epoch, e, m.attrs)
		o.ObserveInt64(revision, r, m.attrs)
		o.ObserveInt64(holds, int64(len(s.Holds)), m.attrs)
		o.ObserveInt64(frozen, flag(s.Frozen != ""), m.attrs)
		o.ObserveInt64(quarantined, int64(len(s.Quarantined)), m.attrs)
		o.ObserveInt64(fromDisk, flag(s.Serving != nil && s.Serving.Source == SourceDisk), m.attrs)
		o.ObserveInt64(disk, flag(s.Disk != ""), m.attrs)
		var age float64
		if !s.StaleSince.IsZero() {
			age = max(0, time.Since(s.StaleSince).Seconds())
		}
		o.ObserveFloat64(stale, age, m.attrs)
		return nil
	}, epoch, revision, holds, frozen, quarantined, fromDisk, disk, stale)
}
