package main

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/version"
)

// measureChange asks what an instance pays for one route among very many:
// first for what must be done (fetch, decode, compile, test), then for all that an
// agent does, on a real etcd and with a state directory.
func measureChange(ctx context.Context, b *bench) ([]Figure, error) {
	figures, err := changeAlone(ctx, b)
	if err != nil {
		return figures, err
	}
	runtime.GC()
	more, err := changeByAgent(ctx, b)
	return append(figures, more...), err
}

func changeAlone(ctx context.Context, b *bench) ([]Figure, error) {
	table := manyTeams(b.of(100, 10), 10, 1000)
	first, err := version.Encode(table)
	if err != nil {
		return nil, err
	}
	fetcher := &counted{MapFetcher: version.MapFetcher{}}
	fetcher.put(first)
	whole, err := fetcher.size(first)
	if err != nil {
		return nil, err
	}
	cache := version.NewCache(4096)
	lib := engine.NewLibrary(proxy.Options{}, middleware.Env{})
	loaded, _, err := version.Load(ctx, first.Digest, first.ManifestBytes, fetcher, cache)
	if err != nil {
		return nil, err
	}
	serving, err := compile(ctx, loaded, lib, nil)
	if err != nil {
		return nil, err
	}
	var bytes, cpus, loads, compiles, tests []float64
	for n := range b.of(40, 5) {
		table = withOneChanged(table, n)
		next, err := version.Encode(table)
		if err != nil {
			return nil, err
		}
		fetcher.put(next)
		fetcher.bytes = len(next.PackedManifest())
		runtime.GC() // what making the change left is the publisher's

		used, began := cpu(), time.Now()
		t, _, err := version.Load(ctx, next.Digest, next.ManifestBytes, fetcher, cache)
		if err != nil {
			return nil, err
		}
		fetched := time.Now()
		e, err := compile(ctx, t, lib, serving)
		if err != nil {
			return nil, err
		}
		compiled := time.Now()
		if err := e.RunTests().Err(); err != nil {
			return nil, err
		}
		tested := time.Now()
		cpus = append(cpus, ms(cpu()-used))
		bytes = append(bytes, 100*float64(fetcher.bytes)/float64(whole))
		loads, compiles, tests = append(loads, ms(fetched.Sub(began))), append(compiles, ms(compiled.Sub(fetched))), append(tests, ms(tested.Sub(compiled)))
		serving.Release()
		serving = e
	}
	return []Figure{
		figure("bytes fetched, of the whole", median(bytes), "%").atMost(2).note("of %d KiB, the manifest included; at most %s %%", whole/1024, short(quantile(bytes, 1))),
		figure("processor time: fetch, decode, compile, test", median(cpus), "ms").atMost(20).note("p90 %s ms", short(quantile(cpus, 0.9))),
		figure("  time to fetch from memory and decode", median(loads), "ms"),
		figure("  time to compile", median(compiles), "ms"),
		figure("  time to run all route tests", median(tests), "ms"),
	}, nil
}

// changeByAgent has one agent follow changes. The publisher and the controller
// run in this process too, so what the processor did for them is told apart by
// when it did it: from when the publish was answered to when the agent switched.
func changeByAgent(ctx context.Context, b *bench) (_ []Figure, err error) {
	table := manyTeams(b.of(100, 10), 10, 1000)
	f, err := newFleet(ctx, b, fleetOptions{agents: 1})
	if err != nil {
		return nil, err
	}
	defer func() { err = f.close(err) }()
	if _, err := f.publish(ctx, table); err != nil {
		return nil, err
	}
	var cpus, took, fetched []float64
	for n := range b.of(20, 3) {
		f.fetched.Store(0)
		table = withOneChanged(table, n)
		t, err := f.publish(ctx, table)
		if err != nil {
			return nil, fmt.Errorf("change %d: %w", n, err)
		}
		cpus = append(cpus, ms(t.cpuAtLast-t.cpuAtPublished))
		took = append(took, ms(t.last().Sub(t.began)))
		fetched = append(fetched, float64(f.fetched.Load())/1024)
	}
	return []Figure{
		figure("processor time of an agent with its disk, and of the controller", median(cpus), "ms").atMost(20).
			note("publish answered → serving; compile at %d %% of a core; p90 %s ms", compilePercent, short(quantile(cpus, 0.9))),
		figure("  publish → serving", median(took), "ms"),
		figure("  fetched from etcd", median(fetched), "KiB"),
	}, nil
}
