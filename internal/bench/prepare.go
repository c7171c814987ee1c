package main

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"
)

// measurePrepare loads a router with half of what it can do, and has it prepare
// another revision meanwhile, of which nothing is known yet, within routerd's default
// budget. Windows with and without that take turns.
func measurePrepare(ctx context.Context, b *bench) (_ []Figure, err error) {
	backend, err := b.startChild(ctx, "backend", nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, backend.stop()) }()
	router, err := b.startChild(ctx, "front", frontSpec{Backend: backend.Address, Path: proxiedPattern, Routes: 999, Prepare: b.of(100, 10)})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, router.stop()) }()

	l := &load{address: router.Address, host: benchHost, path: proxiedPath}
	most := math.Inf(1)
	for range 3 { // others may use the machine too: what it can do at least
		m, err := l.most(ctx)
		if err != nil {
			return nil, err
		}
		most = min(most, m)
	}
	pairs := b.of(12, 3)
	loaded, end := context.WithCancel(ctx)
	defer end()
	var latencies [][]float64
	var failed error
	var wg sync.WaitGroup
	l.window.Store(-1)
	wg.Go(func() { latencies, failed = l.run(loaded, most/2, 2*pairs) })
	var decodes, compiles []float64
	for pair := range pairs {
		var took [2]float64
		time.Sleep(300 * time.Millisecond) // what the last prepare left is cleaned up
		l.window.Store(int32(2 * pair))
		time.Sleep(time.Second)
		l.window.Store(int32(2*pair + 1))
		err = router.askFor(ctx, "prepare", &took)
		l.window.Store(-1)
		if err != nil {
			break
		}
		decodes, compiles = append(decodes, took[0]), append(compiles, took[1])
	}
	end()
	wg.Wait()
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	compare := func(name string, q float64) Figure {
		var quiet, busy []float64
		for p := range pairs {
			quiet, busy = append(quiet, quantile(latencies[2*p], q)), append(busy, quantile(latencies[2*p+1], q))
		}
		return figure(name, median(busy), "ms").beside("without", median(quiet), ratioOf(busy, quiet))
	}
	requests := 0
	for p := range pairs {
		requests += len(latencies[2*p+1])
	}
	return []Figure{
		figure("requests a second, as fast as it goes", most, "").note("half of it is asked for, on time"),
		figure("to fetch from memory and decode", median(decodes), "ms"),
		figure("to compile and test", median(compiles), "ms").note("with %d %% of a core", compilePercent),
		compare("p50 of requests meanwhile", 0.5),
		compare("p99 of requests meanwhile", 0.99).ratioAtMost(2).note("medians of %d prepares, %d requests", pairs, requests),
		compare("p99.9 of requests meanwhile", 0.999),
	}, nil
}

// most is how many requests a second are answered when each connection sends
// the next as soon as the last is answered.
func (l *load) most(ctx context.Context) (float64, error) {
	const seconds = 1
	l.window.Store(0)
	ctx, cancel := context.WithTimeout(ctx, seconds*time.Second)
	defer cancel()
	got, err := l.run(ctx, 0, 1)
	return float64(len(got[0])) / seconds, err
}
