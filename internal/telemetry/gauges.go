package telemetry

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"routerd.dev/internal/agent"
	"routerd.dev/internal/buildinfo"
	"routerd.dev/internal/proxy"
)

// An Instance is who knows how the instance is; *agent.Agent is one.
type Instance interface {
	Ready() agent.Readiness
	Status() agent.Status
}

// Sources are what is looked at whenever metrics are asked for. None may be
// missing but AccessLog.
type Sources struct {
	Instance Instance
	Pools    func() proxy.Stats
	Unserved func() uint64 // requests that came while nothing was served
	// Connections are those of clients, upgraded ones left out.
	Connections func() int64
	AccessLog   *AccessLog
}

// Observe adds the metrics of what has no instruments of its own. It is called
// once.
func (t *Telemetry) Observe(src Sources) error {
	var (
		errs        []error
		instruments []metric.Observable
	)
	gauge := func(name, unit, doc string) metric.Int64ObservableGauge {
		g, err := t.Meter.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(doc))
		errs, instruments = append(errs, err), append(instruments, g)
		return g
	}
	counter := func(name, unit, doc string) metric.Int64ObservableCounter {
		c, err := t.Meter.Int64ObservableCounter(name, metric.WithUnit(unit), metric.WithDescription(doc))
		errs, instruments = append(errs, err), append(instruments, c)
		return c
	}
	build := gauge("routerd.build", "", "1; its attributes say which build runs.")
	ready := gauge("routerd.ready", "", "1 while traffic may be sent here, as /readyz says.")
	joined := gauge("routerd.joined", "", "1 while the instance is registered in etcd.")
	draining := gauge("routerd.draining", "", "1 once the instance is told to end.")
	etcd := gauge("routerd.etcd.reachable", "", "1 while etcd answers.")
	unserved := counter("routerd.unserved", "{request}", "Requests answered with 503 because nothing was served yet.")
	connections := gauge("routerd.connections", "{connection}", "Connections of clients, upgraded ones left out.")
	upstreams := gauge("routerd.proxy.upstreams", "{upstream}", "Upstreams in use, by their definition.")
	idle := gauge("routerd.proxy.connections.idle", "{connection}", "Idle connections to upstreams.")
	down := gauge("routerd.proxy.targets.down", "{target}", "Targets that are passed over because they refused a connection.")
	tunnels := gauge("routerd.proxy.tunnels", "{tunnel}", "Upgraded connections, such as WebSockets, that are open.")
	dropped := counter("routerd.access_log.dropped", "{line}", "Lines of the access log that were not written.")
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("make instruments: %w", err)
	}
	who := metric.WithAttributeSet(attribute.NewSet(t.who...))
	b := buildinfo.Read()
	what := metric.WithAttributeSet(attribute.NewSet(append(t.who[:len(t.who):len(t.who)],
		attribute.String("version", buildinfo.Version()), attribute.String("commit", b.Commit), attribute.String("go", b.Go))...))
	_, err := t.Meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s, pools := src.Instance.Status(), src.Pools()
		o.ObserveInt64(build, 1, what)
		o.ObserveInt64(ready, flag(src.Instance.Ready().Ready), who)
		o.ObserveInt64(joined, flag(s.Joined), who)
		o.ObserveInt64(draining, flag(s.Draining), who)
		o.ObserveInt64(etcd, flag(s.Etcd.Reachable), who)
		o.ObserveInt64(unserved, int64(src.Unserved()), who)
		o.ObserveInt64(connections, src.Connections(), who)
		o.ObserveInt64(upstreams, int64(pools.Upstreams), who)
		o.ObserveInt64(idle, int64(pools.Idle), who)
		o.ObserveInt64(down, int64(pools.Down), who)
		o.ObserveInt64(tunnels, int64(pools.Tunnels), who)
		if src.AccessLog != nil {
			o.ObserveInt64(dropped, src.AccessLog.Dropped(), who)
		}
		return nil
	}, instruments...)
	if err != nil {
		return fmt.Errorf("register instruments: %w", err)
	}
	return nil
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
