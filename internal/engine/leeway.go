package engine

import (
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// mostLeeway is the most that the garbage collector's percentage is raised to.
const mostLeeway = 400

// A Leeway lets garbage collection wait while a large revision is prepared:
// what a prepare allocates nearly all stays, so that collecting in the middle
// of it finds little, and takes processors from the requests. It is of the
// whole process, whose garbage collector it is; who embeds an engine in a
// program of his own has none. The nil Leeway does nothing. It may be used from
// many goroutines.
type Leeway struct {
	bytes int64

	mu     sync.Mutex
	takers int
	before int // the percentage; valid while there are takers
}

// NewLeeway makes a leeway of at most so many bytes of garbage. With a larger
// heap, where the usual percentage allows that much already, it changes nothing. A
// memory limit (GOMEMLIMIT) holds in any case.
func NewLeeway(bytes int64) *Leeway { return &Leeway{bytes: bytes} }

// Take raises the garbage collector's percentage until the last who took
// gives back. giveBack may be called more than once.
func (l *Leeway) Take() (giveBack func()) {
	if l == nil || l.bytes <= 0 {
		return func() {}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.takers++; l.takers == 1 {
		l.raise()
	}
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.takers--; l.takers == 0 {
			debug.SetGCPercent(l.before)
		}
	})
}

// raise sets the percentage by which the next collection comes once the leeway
// is used up. l.mu is held.
func (l *Leeway) raise() {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/gogc:percent"}}
	metrics.Read(live)
	heap, percent := int64(max(1, live[0].Value.Uint64())), int64(live[1].Value.Uint64())
	want := max(percent, min(mostLeeway, l.bytes*100/heap))
	if percent < 0 { // collection is off
		want = percent
	}
	l.before = debug.SetGCPercent(int(want))
}
