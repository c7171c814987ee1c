package store

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"routerd.dev/internal/rollout"
)

// However many step out in one moment, no more get through than the floor
// allows; who comes back makes room.
func TestStepOutKeepsTheFloor(t *testing.T) {
	s := fleet(t)
	const n = 6
	var ms []*Membership
	for i := range n {
		ms = append(ms, ready(t, again(t, s), "main", fmt.Sprint("i", i), "n1"))
	}
	ready(t, s, "edge", "other", "n1") // of another group
	for _, c := range []struct {
		want    int
		setting rollout.Quantity
	}{{1, ""}, {3, "50%"}, {n - 1, "100%"}} {
		must(t, s.SetSettings(t.Context(), "me", func(x *rollout.Settings) error { x.MaxUnready = c.setting; return nil }))
		var wg sync.WaitGroup
		errs := make([]error, n)
		for i, m := range ms {
			wg.Go(func() {
				for errs[i] = ErrStale; errors.Is(errs[i], ErrStale); {
					errs[i] = m.StepOut(t.Context(), "n1")
				}
			})
		}
		wg.Wait()
		out := 0
		for i, err := range errs {
			got := rawGet(t, s, fmt.Sprintf("ready/main/i%d", i))
			switch {
			case err == nil && got == "evicted n1":
				out++
			case err == nil || !errors.Is(err, ErrFloor) || got != "n1":
				t.Errorf("i%d: %v, says %q", i, err, got)
			}
		}
		if out != c.want {
			t.Errorf("%d are out, want %d with maxUnready %q", out, c.want, c.setting)
		}
		for _, m := range ms {
			must(t, m.Put(t.Context(), rollout.Ready{Nonce: "n1"}))
		}
	}
	// Who is out already may say so again.
	must(t, ms[0].StepOut(t.Context(), "n1"))
	must(t, ms[0].StepOut(t.Context(), "n2"))
	wantErr(t, ms[1].StepOut(t.Context(), "n2"), nil)
}

func TestTheLastOneMayNotStepOut(t *testing.T) {
	s := fleet(t)
	m := ready(t, s, "main", "a", "n1")
	wantErr(t, m.StepOut(t.Context(), "n1"), ErrFloor, "0 of 1")
	must(t, s.SetSettings(t.Context(), "me", func(x *rollout.Settings) error { x.MaxUnready = "100%"; return nil }))
	wantErr(t, m.StepOut(t.Context(), "n1"), ErrFloor)
	err := s.SetSettings(t.Context(), "me", func(x *rollout.Settings) error { x.MaxUnready = "most"; return nil })
	if err == nil || !strings.Contains(err.Error(), "maxUnready") {
		t.Errorf("a floor that is none: %v", err)
	}
}

// A stream of renewals that falls silent, while etcd is well, costs no lease:
// that is found out in time, and gone on with over a new connection.
func TestSilentRenewalsCostNoLease(t *testing.T) {
	h := newHanging(t, strings.TrimPrefix(shared.endpoint(), "unix://"))
	s := openAt(t, Config{Prefix: "/" + t.Name() + "/", Endpoints: []string{"unix://" + h.path}})
	const ttl = 6 * time.Second // the longer, the less a busy machine matters
	l, err := s.grant(t.Context(), "take a lease", ttl)
	must(t, err)
	defer func() { must(t, l.release(t.Context(), "give it back")) }()
	h.silence()
	client, began := raw(t, s), time.Now()
	eventually(t, "the client is another", func() bool { c, err := s.etcd(t.Context()); return err == nil && c != client })
	t.Logf("found out after %s", time.Since(began))
	select {
	case <-l.lost:
		t.Fatal("the lease is lost")
	case <-time.After(ttl + ttl/2):
	}
	resp, err := raw(t, s).TimeToLive(t.Context(), l.id)
	if err != nil || resp.TTL <= 0 {
		t.Errorf("the lease lives %d s: %v", resp.TTL, err)
	}
}

// An etcd that says nothing is told as stale within the bounds that are promised.
func TestSilentEtcdIsToldInTime(t *testing.T) {
	h := newHanging(t, strings.TrimPrefix(shared.endpoint(), "unix://"))
	s := openAt(t, Config{Prefix: "/" + t.Name() + "/", Endpoints: []string{"unix://" + h.path}})
	_, _, err := s.Init(t.Context())
	must(t, err)
	ch := states(t, s, "main", WatchOptions{})
	await(t, ch, "it is read", func(g GroupState) bool { return g.At > 0 })
	h.hang()
	began := time.Now()
	await(t, ch, "it is stale", func(g GroupState) bool { return g.Err != nil })
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("told after %s", took)
	}
}
