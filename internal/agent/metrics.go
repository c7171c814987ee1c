package agent

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"routerd.dev/internal/engine"
)

// metrics are the agent's instruments. All carry the attributes group and
// instance.
type metrics struct {
	prepare, swap, skew metric.Float64Histogram
	switches, refused   metric.Int64Counter
	who                 []attribute.KeyValue
	attrs               metric.MeasurementOption // who
	meter               metric.Meter
}

func newMetrics(meter metric.Meter, group, instance string) (*metrics, error) {
	who := []attribute.KeyValue{attribute.String("group", group), attribute.String("instance", instance)}
	m := &metrics{meter: meter, who: who, attrs: metric.WithAttributeSet(attribute.NewSet(who...))}
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
func (m *metrics) observe(status func() Status, tokens func() engine.TokenCounts) (metric.Registration, error) {
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
	pinned := gauge("routerd.pinned", "1 while the instance serves what an operator pinned it to, whatever is committed.", "")
	evicted := gauge("routerd.evicted", "1 while the instance is out of traffic: it was too slow for a prepare, or cannot serve what is committed.", "")
	fromDisk := gauge("routerd.from_disk", "1 while the epoch served is remembered on disk and not confirmed by etcd.", "")
	disk := gauge("routerd.disk.failing", "1 while the state directory cannot be written.", "")
	used, err := m.meter.Int64ObservableCounter("routerd.tokens", metric.WithUnit("{request}"), metric.WithDescription(
		"Requests that brought a token, by use: held (of a later epoch, served by what the client saw), missing (of a later epoch, not held), refused (likewise, answered 503), current, older, foreign, expired, forged."))
	errs = append(errs, err)
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
		o.ObserveInt64(pinned, flag(!s.Pinned.IsZero()), m.attrs)
		o.ObserveInt64(evicted, flag(s.Evicted), m.attrs)
		o.ObserveInt64(fromDisk, flag(s.Serving != nil && s.Serving.Source == SourceDisk), m.attrs)
		o.ObserveInt64(disk, flag(s.Disk != ""), m.attrs)
		for _, t := range m.tokens(tokens()) {
			o.ObserveInt64(used, int64(t.n), t.use)
		}
		var age float64
		if !s.StaleSince.IsZero() {
			age = max(0, time.Since(s.StaleSince).Seconds())
		}
		o.ObserveFloat64(stale, age, m.attrs)
		return nil
	}, epoch, revision, holds, frozen, quarantined, pinned, evicted, fromDisk, disk, used, stale)
}

// A tokenUse is how many tokens came to one end.
type tokenUse struct {
	use metric.MeasurementOption
	n   uint64
}

func (m *metrics) tokens(c engine.TokenCounts) []tokenUse {
	var out []tokenUse
	for _, t := range []struct {
		use string
		n   uint64
	}{
		{"held", c.Held},
		{"missing", c.Missing},
		{"refused", c.Refused},
		{"current", c.Current},
		{"older", c.Older},
		{"foreign", c.Foreign},
		{"expired", c.Expired},
		{"forged", c.Forged},
	} {
		out = append(out, tokenUse{metric.WithAttributeSet(attribute.NewSet(append(m.who[:len(m.who):len(m.who)], attribute.String("use", t.use))...)), t.n})
	}
	return out
}
