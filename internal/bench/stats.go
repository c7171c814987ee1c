package main

import (
	"math"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// takeTurns runs every function once in each round, one after the other, and
// returns for each function how many seconds its rounds took. A first round
// warms up and does not count.
func takeTurns(rounds int, fs ...func()) [][]float64 {
	took := make([][]float64, len(fs))
	for round := range rounds + 1 {
		for i, f := range fs {
			began := time.Now()
			f()
			if d := time.Since(began); round > 0 {
				took[i] = append(took[i], d.Seconds())
			}
		}
	}
	return took
}

// median returns the middle of vs, NaN when there are none.
func median(vs []float64) float64 { return quantile(vs, 0.5) }

// quantile returns the smallest of vs that the part q of them does not exceed,
// the mean of the two middle ones for a median of an even number.
func quantile(vs []float64, q float64) float64 {
	if len(vs) == 0 {
		return math.NaN()
	}
	vs = slices.Sorted(slices.Values(vs))
	if n := len(vs); q == 0.5 && n%2 == 0 {
		return (vs[n/2-1] + vs[n/2]) / 2
	}
	return vs[max(0, int(math.Ceil(q*float64(len(vs))))-1)]
}

// ratioOf returns the median of a[i]/b[i]: what took turns is compared with
// its neighbour.
func ratioOf(a, b []float64) float64 {
	var rs []float64
	for i := range min(len(a), len(b)) {
		rs = append(rs, a[i]/b[i])
	}
	return median(rs)
}

// each returns f of every value.
func each(vs []float64, f func(float64) float64) []float64 {
	out := make([]float64, len(vs))
	for i, v := range vs {
		out[i] = f(v)
	}
	return out
}

// heap returns how many bytes are in use.
func heap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what finalizers freed
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// allocations returns how often f allocates, as a whole number: what other
// goroutines allocate meanwhile does not count for much.
func allocations(runs int, f func()) float64 {
	var before, after runtime.MemStats
	f()
	runtime.ReadMemStats(&before)
	for range runs {
		f()
	}
	runtime.ReadMemStats(&after)
	return math.Floor(float64(after.Mallocs-before.Mallocs) / float64(runs))
}

// cpu returns the processor time that this process used, in user space and in
// the kernel.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
