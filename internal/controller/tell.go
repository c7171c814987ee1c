package controller

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"routerd.dev/internal/check"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

// tell logs what was carried out.
func (c *Controller) tell(ctx context.Context, v *rollout.View, ch rollout.Change) {
	for _, a := range ch.Groups {
		level, attrs := slog.LevelInfo, []any{
			"group", a.Group, "epoch", a.Epoch, "revision", a.Stable.Number, "digest", a.Stable.Digest.Short(),
			"ready", a.Ready, "rollout", a.Rollout,
		}
		if a.Override != nil {
			level = slog.LevelWarn
			attrs = append(attrs, "override", a.Override.Why, "without", a.Override.Instances)
		}
		what := "committed"
		if _, ok := v.Groups[a.Group]; !ok {
			what = "group made"
		}
		c.log.Log(ctx, level, what, attrs...)
	}
	for _, p := range ch.Prepares {
		c.log.InfoContext(ctx, "asked to prepare", "group", p.Group, "nonce", p.Nonce, "first", p.First, "rollout", p.Rollout)
	}
	if len(ch.Withdraw) > 0 && len(ch.Groups) == 0 {
		c.log.InfoContext(ctx, "withdrew prepares", "groups", ch.Withdraw)
	}
	for _, g := range ch.Retire {
		c.log.InfoContext(ctx, "group retired", "group", g)
	}
	for _, x := range ch.Condemn {
		c.log.ErrorContext(ctx, "digest condemned", "digest", x.Digest, "why", x.Why)
	}
	for i := range ch.Rollouts {
		c.tellRollout(ctx, v, &ch.Rollouts[i])
	}
	for _, e := range eventsOf(v, ch, time.Now().UTC()) {
		e.ID = store.NewID(e.Time)
		c.n.put(ctx, e)
		if e.Strategy == "" {
			continue // of a switch in one step all is said already
		}
		c.log.InfoContext(ctx, "event", "event", e.Event, "rollout", e.Rollout, "wave", e.Wave, "step", e.Step,
			"groups", e.Groups, "why", e.Why, "by", e.By, "recoverSeconds", e.RecoverSeconds)
	}
}

// tellRollout logs a rollout that is new or in another phase, or waits for
// something else: one under way is written anew with each look at its data.
func (c *Controller) tellRollout(ctx context.Context, v *rollout.View, r *rollout.Rollout) {
	i := slices.IndexFunc(v.Rollouts, func(o rollout.Rollout) bool { return o.ID == r.ID })
	if i >= 0 && v.Rollouts[i].Phase == r.Phase && (v.Rollouts[i].Why == r.Why || r.Phase == rollout.PhaseRunning) {
		return
	}
	level := slog.LevelInfo
	if r.Phase == rollout.PhaseRefused || r.Phase == rollout.PhaseAborted || r.Return != nil || !r.Phase.Final() && r.Why != "" {
		level = slog.LevelWarn
	}
	c.log.Log(ctx, level, "rollout", "rollout", r.ID, "kind", r.Kind, "phase", r.Phase, "revision", r.To.Number, "why", r.Why, "by", r.By)
}

// meters are what the controller measures of itself and of rollouts.
type meters struct {
	leading metric.Int64UpDownCounter
	steps   metric.Int64Counter
	step    metric.Float64Histogram
	commit  metric.Float64Histogram
	prepare metric.Float64Histogram
	ended   metric.Int64Counter
	checks  metric.Int64Counter
	notify  metric.Int64Counter
	recover metric.Float64Histogram
	active  metric.Int64UpDownCounter

	counted map[rollout.Phase]int64 // what active stands at; only the loop uses it
}

func newMeters(m metric.Meter) (*meters, error) {
	if m == nil {
		m = noop.NewMeterProvider().Meter("")
	}
	var errs []error
	seconds := func(name, doc string, bounds ...float64) metric.Float64Histogram {
		h, err := m.Float64Histogram(name, metric.WithDescription(doc), metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(bounds...))
		errs = append(errs, err)
		return h
	}
	count := func(name, doc string) metric.Int64Counter {
		n, err := m.Int64Counter(name, metric.WithDescription(doc))
		errs = append(errs, err)
		return n
	}
	fast := []float64{.001, .002, .005, .01, .02, .05, .1, .25, .5, 1, 5}
	x := &meters{
		steps:   count("routerd.controller.steps", "Steps by outcome: applied, nothing, stale, not-ready, deposed, unread, failed."),
		step:    seconds("routerd.controller.step.duration", "Time of one step: read, decide, write.", fast...),
		commit:  seconds("routerd.controller.commit.duration", "Time of the transaction that commits.", fast...),
		prepare: seconds("routerd.rollout.prepare.duration", "From taking up a rollout to its commit, of those in one step.", .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 15, 60, 300),
		ended:   count("routerd.rollout.ended", "Rollouts by how they ended: done, refused, aborted, superseded, rolled-back."),
		checks:  count("routerd.controller.checks", "Checks asked by outcome: pass, fail, inconclusive, error."),
		notify:  count("routerd.controller.notifications", "Notifications by outcome: sent, failed, dropped."),
		recover: seconds("routerd.rollout.recover.duration", "From the verdict, or the abort, until every instance was back.", .1, .25, .5, 1, 2, 3, 5, 10, 30),
	}
	var err error
	x.leading, err = m.Int64UpDownCounter("routerd.controller.leading", metric.WithDescription("1 while this controller is elected."))
	errs = append(errs, err)
	x.active, err = m.Int64UpDownCounter("routerd.rollout.active", metric.WithDescription("Rollouts under way by phase, as the elected controller sees them."))
	errs = append(errs, err)
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		return nil, fmt.Errorf("make controller's instruments: %w", errs[i])
	}
	return x, nil
}

func (m *meters) lead(ctx context.Context, n int64) {
	m.leading.Add(context.WithoutCancel(ctx), n)
}

func (m *meters) stepped(ctx context.Context, began time.Time, outcome string) {
	m.steps.Add(ctx, 1, metric.WithAttributes(attribute.String("outcome", outcome)))
	m.step.Record(ctx, time.Since(began).Seconds(), metric.WithAttributes(attribute.String("outcome", outcome)))
}

func (m *meters) applied(ctx context.Context, ch rollout.Change, writing time.Time) {
	if len(ch.Groups) > 0 {
		m.commit.Record(ctx, time.Since(writing).Seconds())
	}
	for _, r := range ch.Rollouts {
		if !r.Phase.Final() {
			continue
		}
		m.ended.Add(ctx, 1, metric.WithAttributes(attribute.String("kind", string(r.Kind)), attribute.String("phase", string(r.Phase))))
		if r.Phase == rollout.PhaseRolledBack && r.Return != nil {
			m.recover.Record(ctx, recoverTime(&r).Seconds())
		}
		if len(r.Epochs) > 0 && r.Plan == nil {
			m.prepare.Record(ctx, r.Ended.Sub(r.Started).Seconds(), metric.WithAttributes(attribute.String("kind", string(r.Kind))))
		}
	}
}

// seen measures which rollouts are under way; nil: this controller is no longer
// the one that knows.
func (m *meters) seen(ctx context.Context, v *rollout.View) {
	now := map[rollout.Phase]int64{}
	if v != nil {
		for i := range v.Rollouts {
			now[v.Rollouts[i].Phase]++
		}
	}
	for phase, n := range m.counted {
		if _, ok := now[phase]; !ok && n != 0 {
			now[phase] = 0
		}
	}
	for phase, n := range now {
		if d := n - m.counted[phase]; d != 0 {
			m.active.Add(context.WithoutCancel(ctx), d, metric.WithAttributes(attribute.String("phase", string(phase))))
		}
	}
	m.counted = now
}

func (m *meters) asked(ctx context.Context, c rollout.Check, value float64, ok bool, err error) {
	outcome := "fail"
	switch {
	case err != nil:
		outcome = "error"
	case !ok:
		outcome = "inconclusive"
	case check.Passes(c, value):
		outcome = "pass"
	}
	m.checks.Add(ctx, 1, metric.WithAttributes(attribute.String("outcome", outcome)))
}

func (m *meters) notified(ctx context.Context, outcome string) {
	m.notify.Add(ctx, 1, metric.WithAttributes(attribute.String("outcome", outcome)))
}
