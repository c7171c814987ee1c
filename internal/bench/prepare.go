package main

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"
)

// measurePrepare loads a router with half of what it can do, and has it prepare
// another revision meanwhile, of which nothing is known yet, within routerd's
// default budget. Windows with and without that take turns.
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
	rounds := b.of(15, 3)
	var prepared [2][]float64 // how long decoding and compiling took
	latencies, err := l.during(ctx, most/2, phases*rounds, func(window func(int)) error {
		for round := range rounds {
			window(phases * round)
			time.Sleep(time.Second)
			for i, question := range []string{"decode", "compile"} {
				var took float64
				window(phases*round + 1 + i)
				if err := router.askFor(ctx, question, &took); err != nil {
					return err
				}
				prepared[i] = append(prepared[i], took)
			}
			window(phases*round + 3)
			time.Sleep(400 * time.Millisecond) // what it left is cleaned up
			window(-1)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// compare takes the requests of some phases of each round together, beside
	// those of its quiet phase.
	compare := func(name string, q float64, of ...int) Figure {
		var quiet, busy []float64
		for round := range rounds {
			at := latencies[phases*round:]
			var together []float64
			for _, phase := range of {
				together = append(together, at[phase]...)
			}
			quiet, busy = append(quiet, quantile(at[0], q)), append(busy, quantile(together, q))
		}
		return figure(name, median(busy), "ms").beside("without", median(quiet), ratioOf(busy, quiet))
	}
	return []Figure{
		figure("requests a second, as fast as it goes", most, "").note("half of it is asked for, on time"),
		figure("to fetch from memory and decode", median(prepared[0]), "ms"),
		figure("to compile and test", median(prepared[1]), "ms").note("with %d %% of a core", compilePercent),
		compare("p50 of requests meanwhile", 0.5, 1, 2),
		compare("p99 of requests meanwhile", 0.99, 1, 2).ratioAtMost(2).note("medians of %d prepares", rounds),
		compare("    while it decodes", 0.99, 1),
		compare("    while it compiles", 0.99, 2),
		compare("    in the 400 ms after it, when its garbage is collected", 0.99, 3),
		compare("p99.9 of requests meanwhile", 0.999, 1, 2),
	}, nil
}

// phases of a round: quiet, decoding, compiling, and what comes after.
const phases = 4

// during sends at a rate while do runs, which says to what window answers
// are counted from then on.
func (l *load) during(ctx context.Context, rate float64, windows int, do func(window func(int)) error) (latencies [][]float64, err error) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	l.window.Store(-1)
	var failed error
	var wg sync.WaitGroup
	wg.Go(func() { latencies, failed = l.run(ctx, rate, windows) })
	err = do(func(w int) { l.window.Store(int32(w)) })
	end()
	wg.Wait()
	return latencies, errors.Join(err, failed)
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
