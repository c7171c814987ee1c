package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/route"
)

// measureSwitch publishes and rolls back in fleets of several sizes. Every
// route is another in each revision, so that nothing of it can be kept: all is
// uploaded, fetched by each instance, decoded, compiled and tested.
func measureSwitch(ctx context.Context, b *bench) ([]Figure, error) {
	sync, err := syncTime(b.dir)
	if err != nil {
		return nil, err
	}
	all := []Figure{figure("this disk makes 2 KiB last", sync, "ms").note("etcd waits for it in each write")}
	checked := takeTurns(5, runtime.GC, func() { engine.Check(thousand(0)) })[1]
	all = append(all, figure("before it: the publisher checks 1,000 routes", median(each(checked, milli)), "ms").note("not part of what follows"))
	fleets := []fleetOptions{{agents: 1}, {agents: 5}, {agents: 50, memory: true}, {agents: 50}}
	if info, err := os.Stat(memoryDir); err != nil || !info.IsDir() {
		fleets = slices.Delete(fleets, 2, 3)
	}
	if b.quick {
		fleets = fleets[:2]
	}
	for _, o := range fleets {
		fs, err := switches(ctx, b, o)
		if err != nil {
			return all, fmt.Errorf("%d instances: %w", o.agents, err)
		}
		all = append(all, fs...)
	}
	return all, nil
}

// thousand is the n-th table of 1,000 routes.
func thousand(n int) *route.Table {
	return oneHost(restPaths(1000), respond(fmt.Sprintf("revision %d", n)))
}

func switches(ctx context.Context, b *bench, o fleetOptions) (_ []Figure, err error) {
	f, err := newFleet(ctx, b, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = f.close(err) }()
	next := 0
	publish := func() (*trip, error) {
		next++
		return f.publish(ctx, thousand(next))
	}
	for range 2 { // so that there is something to go back to, and nothing is cold
		if _, err := publish(); err != nil {
			return nil, err
		}
	}
	var forth, back []*trip
	for range b.of(40, 3) {
		t, err := publish()
		if err != nil {
			return nil, err
		}
		forth = append(forth, t)
		if t, err = f.rollback(ctx); err != nil {
			return nil, fmt.Errorf("rollback: %w", err)
		}
		back = append(back, t)
	}
	name := fmt.Sprintf("%d: ", o.agents)
	if o.memory {
		name = fmt.Sprintf("%d, state in memory: ", o.agents)
	}
	b.say("switch: %d instances done", o.agents)
	return append(tripFigures(o.agents, name+"publish", forth), tripFigures(o.agents, name+"rollback", back)...), nil
}

// tripFigures says how long trips took and where the time went.
func tripFigures(agents int, what string, trips []*trip) []Figure {
	total := over(trips, func(t *trip) float64 { return ms(t.last().Sub(t.began)) })
	spread := func(vs []float64) string {
		return fmt.Sprintf("p90 %s, p99 %s ms of %d", short(quantile(vs, 0.9)), short(quantile(vs, 0.99)), len(vs))
	}
	whole := figure(what+" → last serving", median(total), "ms").note("median; %s", spread(total))
	if agents == 5 {
		whole = whole.atMost(50)
	}
	all := []Figure{whole}
	for _, s := range stageNames(trips) {
		took := over(trips, func(t *trip) float64 { return t.stage(s) })
		all = append(all, figure("    "+s, median(took), "ms").note("p90 %s ms", short(quantile(took, 0.9))))
	}
	committed := over(trips, func(t *trip) float64 { return ms(t.last().Sub(t.commit.began)) })
	last := figure(what+": commit → last, p99", quantile(committed, 0.99), "ms").
		note("from the call that commits, the lead to the instant is in it; median %s; %s ms of processor time from its answer to the last",
			short(median(committed)), short(median(over(trips, func(t *trip) float64 { return ms(t.cpuAtLast - t.cpuAtCommit) }))))
	if agents == 50 {
		last = last.atMost(50)
	}
	skew := over(trips, func(t *trip) float64 { return ms(t.last().Sub(t.first())) })
	used := over(trips, func(t *trip) float64 { return ms(t.cpuAtLast-t.cpuAtBegin) / float64(agents) })
	looks := over(trips, func(t *trip) float64 { return float64(len(t.looks)) })
	var slow []float64
	lost := 0
	for _, t := range trips {
		slow = append(slow, t.looks...)
		lost += t.lost
	}
	return append(all, last,
		figure(what+": first swap → last", median(skew), "ms").note("median; %s", spread(skew)),
		figure(what+": processor time, each instance", median(used), "ms").note("of this process: its share of publisher and controller is in it"),
		figure(what+": reads of the controller", median(looks), "").note("median %s ms each; %d of its writes in all came too late", short(median(slow)), lost),
	)
}

func over(trips []*trip, f func(*trip) float64) []float64 {
	vs := make([]float64, len(trips))
	for i, t := range trips {
		vs[i] = f(t)
	}
	return vs
}

// stageNames are those of the first trip: all go the same way.
func stageNames(trips []*trip) (names []string) {
	for _, s := range trips[0].stages() {
		names = append(names, s.name)
	}
	return names
}

func (t *trip) stage(name string) float64 {
	for _, s := range t.stages() {
		if s.name == name {
			return s.ms
		}
	}
	return 0
}
