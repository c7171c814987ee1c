package agent

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"routerd.dev/internal/store"
)

// aheadStore is an etcd whose watch says nothing, and which knows epoch 2.
type aheadStore struct {
	Store
	reads *atomic.Int64
}

func (s aheadStore) Group(context.Context, string) (store.GroupState, error) {
	s.reads.Add(1)
	return store.GroupState{Group: "g", At: 9, FleetID: "f", Assignment: assigned(2, 2, time.Now()).assignment, AssignmentMod: 9}, nil
}

// TestAClientThatKnowsMoreHasTheGroupRead: at once, and not for every request.
func TestAClientThatKnowsMoreHasTheGroupRead(t *testing.T) {
	inBubble(t, func(p *loop, _ func(record), sw *swaps) {
		var reads atomic.Int64
		if err := p.do(context.Background(), func(p *loop) { p.deps.Store = aheadStore{p.deps.Store, &reads} }); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if reads.Load() != 0 {
			t.Fatalf("%d reads though no client knew more", reads.Load())
		}
		p.Behind()
		synctest.Wait()
		if reads.Load() != 1 {
			t.Fatalf("%d reads at once, want 1", reads.Load())
		}
		for range 1000 {
			p.Behind()
			time.Sleep(time.Millisecond)
		}
		if n := reads.Load(); n < 9 || n > 11 {
			t.Errorf("%d reads in a second, want about 10", n)
		}
		if n := len(sw.epochs); sw.epochs[n-1] != 2 {
			t.Errorf("epochs %v", sw.epochs)
		}
	})
}
