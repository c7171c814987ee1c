package agent

import (
	"fmt"
	"testing"
	"time"

	"routerd.dev/internal/version"
)

// TestFiftyAgentsInOneProcess prepares and switches a fleet of fifty, and tells
// how long the last one took.
func TestFiftyAgentsInOneProcess(t *testing.T) {
	const n = 50
	f := initFleet(t, shared)
	refs := []version.Ref{f.publish(table("0")), f.publish(table("1"))}
	f.commit(1, "n1", refs[0])
	var members []*member
	for i := range n {
		o := f.options(fmt.Sprintf("i%02d", i))
		o.LeaseTTL, o.ReportEvery = 10*time.Second, 5*time.Second
		members = append(members, f.start(o))
	}
	for _, m := range members {
		m.awaitEpoch(1)
	}
	began := time.Now()
	f.prepare("n2", "", refs[1], refs[0])
	for i := range n {
		f.awaitReady(fmt.Sprintf("i%02d", i), "n2")
	}
	prepared := time.Since(began)
	// Warm switches within the set: no preparing.
	var worst, slowest time.Duration
	for e := int64(2); e < 12; e++ {
		a := f.commit(e, "n2", refs[(e+1)%2], refs[e%2])
		for _, m := range members {
			s := m.awaitEpoch(e)
			worst = max(worst, s.Serving.Since.Sub(a.Instant))
			slowest = max(slowest, time.Duration(s.SkewMicros)*time.Microsecond)
		}
	}
	t.Logf("%d agents: prepared in %v, last to switch %v after the instant", n, prepared, max(worst, slowest))
	for _, m := range members {
		if got := m.body(); got != "0" {
			t.Errorf("%s serves %q", m.o.Who.Instance, got)
		}
	}
}
