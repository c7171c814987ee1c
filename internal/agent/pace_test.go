package agent

import (
	"testing"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

// TestReportsOfLargeGroupsAreRarer holds what etcd has to write when nothing
// happens: at most 200 reports a second of a group, however large.
func TestReportsOfLargeGroupsAreRarer(t *testing.T) {
	l := &link{every: 5 * time.Second}
	for ready, want := range map[int]time.Duration{0: 5 * time.Second, 1000: 5 * time.Second, 2000: 10 * time.Second} {
		w := wish{state: store.GroupState{Assignment: &rollout.Assignment{Ready: ready}}}
		if got := l.pace(w); got != want {
			t.Errorf("%d instances: a report each %v, want %v", ready, got, want)
		}
	}
	if got := l.pace(wish{}); got != l.every {
		t.Errorf("no assignment: a report each %v, want %v", got, l.every)
	}
}
