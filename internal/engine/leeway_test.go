package engine

import (
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
)

func gcPercent() int64 {
	s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64())
}

// The percentage is raised while anybody has taken, by no more than the leeway
// allows, and is what it was afterwards. It is the process's: the test is not
// parallel.
func TestLeewayIsGivenBack(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	runtime.GC()
	l := NewLeeway(math.MaxInt64 / 1000)
	first, second := l.Take(), l.Take()
	if got := gcPercent(); got != mostLeeway {
		t.Errorf("raised to %d", got)
	}
	first()
	first() // counts once
	if got := gcPercent(); got != mostLeeway {
		t.Errorf("%d while it is taken still", got)
	}
	second()
	if got := gcPercent(); got != 100 {
		t.Errorf("%d afterwards", got)
	}

	for name, l := range map[string]*Leeway{"none": nil, "of nothing": NewLeeway(0), "less than the heap has": NewLeeway(1)} {
		giveBack := l.Take()
		if got := gcPercent(); got != 100 {
			t.Errorf("%s: raised to %d", name, got)
		}
		giveBack()
	}

	debug.SetGCPercent(-1)
	giveBack := l.Take()
	giveBack()
	if got := debug.SetGCPercent(100); got != -1 {
		t.Errorf("collection was off and is at %d", got)
	}
}
