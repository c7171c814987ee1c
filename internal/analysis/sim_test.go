package analysis

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// The simulation: requests that arrive at random, go to a side by chance, fail
// by chance and take a log-normal time. Each test names its seed.

// A load is what one route gets.
type load struct {
	name   string
	part   float64 // of the traffic; the rest of 1 is on routes that did not change
	errors float64 // stable's share
	median float64 // seconds
	sigma  float64 // of the logarithm
	worse  float64 // what the candidate adds to errors
	slow   float64 // by what the candidate multiplies the time; 0 for 1
	tail   float64 // by what it multiplies the slowest 3 %; 0 for 1
	absent bool    // stable does not have it
}

// A world is a group under traffic.
type world struct {
	rng    *rand.Rand
	rate   int // requests a second
	share  float64
	loads  []load
	tables [][2][]uint8 // by load and side: buckets at even steps of probability
	sample Sample
}

const steps = 4096

func newWorld(seed uint64, rate int, share float64, loads ...load) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 0x9e3779b9)), rate: rate, share: share, sample: Sample{Routes: map[string]Pair{}}}
	total := 0.0
	for _, l := range loads {
		total += l.part
	}
	if total < 1 {
		loads = append(loads, load{part: 1 - total, median: 0.01, sigma: 0.6, errors: 0.0005})
	}
	w.loads = loads
	for _, l := range loads {
		slow, tail := max(l.slow, 1), max(l.tail, 1)
		w.tables = append(w.tables, [2][]uint8{logNormal(l.median, l.sigma, 1), logNormal(l.median*slow, l.sigma, tail)})
		if l.name != "" {
			w.sample.Routes[l.name] = Pair{}
		}
	}
	return w
}

func logNormal(median, sigma, tail float64) []uint8 {
	t := make([]uint8, steps)
	for i := range t {
		p := (float64(i) + 0.5) / steps
		x := median * math.Exp(sigma*math.Sqrt2*math.Erfinv(2*p-1))
		if p > 0.97 {
			x *= tail
		}
		t[i] = uint8(BucketOf(time.Duration(x * 1e9)))
	}
	return t
}

// second lets one second pass.
func (w *world) second() {
	pairs := make([]Pair, len(w.loads))
	for range w.rate {
		at, u := 0, w.rng.Float64()
		for at < len(w.loads)-1 && u >= w.loads[at].part {
			u -= w.loads[at].part
			at++
		}
		bits := w.rng.Uint64()
		l, side, c := &w.loads[at], 0, &pairs[at].Stable
		p := l.errors
		if float64(bits>>40)/(1<<24) < w.share {
			side, c, p = 1, &pairs[at].Candidate, l.errors+l.worse
		} else if l.absent {
			w.sample.All.Stable.Requests++
			w.sample.All.Stable.NotFound++
			continue
		}
		c.Requests++
		c.Latency[w.tables[at][side][bits%steps]]++
		if p > 0 && w.rng.Float64() < p {
			c.Errors++
		}
	}
	for i, l := range w.loads {
		w.sample.All.Merge(&pairs[i])
		if l.name != "" {
			p := w.sample.Routes[l.name]
			p.Merge(&pairs[i])
			w.sample.Routes[l.name] = p
		}
	}
}

func (w *world) judge(c Config, seconds int) Result {
	return Judge(c, Comparison{Groups: map[string]Sample{"main": w.sample}, Seconds: float64(seconds)})
}

// until plays until the verdict, at most for so many seconds.
func (w *world) until(c Config, want Verdict, most int) (second int, res Result) {
	for s := 1; s <= most; s++ {
		w.second()
		if res = w.judge(c, s); res.Verdict == want {
			return s, res
		}
	}
	return 0, res
}

func flagship(seed uint64) *world {
	return newWorld(seed, 2000, 0.25, load{name: "shop/checkout", part: 0.01, median: 0.02, sigma: 0.5, worse: 0.03})
}

func routeName(i int) string { return fmt.Sprintf("shop/r%03d", i) }
