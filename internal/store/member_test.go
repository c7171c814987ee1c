package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

func TestTwinRefused(t *testing.T) {
	s := fleet(t)
	ready(t, s, "main", "a", "n1")
	unchanged(t, s, func() {
		_, err := again(t, s).Join(t.Context(), rollout.Instance{Instance: "a", Group: "main", Boot: "other", Address: "10.0.0.2:80"}, 0)
		wantErr(t, err, ErrTwin, "10.0.0.1:80", "boot-a")
		var twin *TwinError
		if !errors.As(err, &twin) || twin.Instance != "a" || twin.Boot != "boot-a" || twin.Expires <= 0 || twin.Expires > DefaultTTL {
			t.Errorf("error %#v", twin)
		}
	})
}

func TestOfManyTwinsOneJoins(t *testing.T) {
	s := fleet(t)
	for round := range 10 {
		var wg sync.WaitGroup
		joined := make([]*Membership, 6)
		for i := range joined {
			wg.Go(func() {
				var err error
				who := rollout.Instance{Instance: fmt.Sprint("a", round), Group: "main", Boot: fmt.Sprint(i)}
				if joined[i], err = s.Join(t.Context(), who, 0); err != nil && !errors.Is(err, ErrTwin) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		n := 0
		for _, m := range joined {
			if m != nil {
				n++
				must(t, m.Leave(t.Context()))
			}
		}
		if n != 1 {
			t.Errorf("%d joined", n)
		}
	}
}

// What the same boot says while it joins again is not set back.
func TestJoinAgainKeepsTheLastWord(t *testing.T) {
	s := fleet(t)
	for range 20 {
		first := ready(t, s, "main", "a", "n0")
		var wg sync.WaitGroup
		last := rollout.Nonce("n0")
		begun := make(chan struct{})
		wg.Go(func() {
			for i := 1; ; i++ {
				n := rollout.Nonce(fmt.Sprint("n", i))
				if err := first.Put(t.Context(), rollout.Ready{Nonce: n}); err != nil {
					if !errors.Is(err, ErrLostMembership) {
						t.Error(err)
					}
					return
				}
				last = n
				if i == 3 {
					close(begun)
				}
			}
		})
		<-begun
		second, err := s.Join(t.Context(), rollout.Instance{Instance: "a", Group: "main", Boot: "boot-a"}, 0)
		if errors.Is(err, ErrConflict) { // the first was quicker three times
			second = first
			must(t, first.Leave(t.Context()))
		} else {
			must(t, err)
		}
		wg.Wait()
		if got := rawGet(t, s, "ready/main/a"); second != first && got != string(last) {
			t.Fatalf("ready key is %s, the last put was %s", got, last)
		}
		must(t, first.Leave(t.Context()))
		must(t, second.Leave(t.Context()))
	}
}

func TestDeadTwinsNameIsFree(t *testing.T) {
	s := fleet(t)
	m := join(t, s, "main", "a")
	must(t, m.Leave(t.Context()))
	n, err := s.Join(t.Context(), rollout.Instance{Instance: "a", Group: "main", Boot: "other"}, 0)
	must(t, err)
	must(t, n.Leave(t.Context()))
}

// An instance whose lease went without its keys, as when etcd was away for
// long, is the same instance still: it keeps what it said, and the end of the
// old lease takes nothing away.
func TestSameBootTakesOver(t *testing.T) {
	s := fleet(t)
	first := ready(t, s, "main", "a", "n1")
	second := join(t, again(t, s), "main", "a")
	must(t, first.Leave(t.Context()))
	v := view(t, s)
	if v.Ready["main"]["a"].Nonce != "n1" || v.Instances["a"].Boot != "boot-a" {
		t.Fatalf("view %+v", v)
	}
	must(t, second.Put(t.Context(), rollout.Ready{Nonce: "n2"}))
}

func TestJoinChecksNames(t *testing.T) {
	s := fleet(t)
	for _, who := range []rollout.Instance{
		{Instance: "a/b", Group: "main", Boot: "x"},
		{Instance: "a", Group: "", Boot: "x"},
		{Instance: strings.Repeat("a", MaxName+1), Group: "main", Boot: "x"},
		{Instance: "a", Group: "main"},
	} {
		unchanged(t, s, func() {
			if _, err := s.Join(t.Context(), who, 0); err == nil {
				t.Errorf("%+v joined", who)
			}
		})
	}
}

func TestAdmitStopsOnWhatMoved(t *testing.T) {
	for name, between := range map[string]func(*testing.T, *Store){
		"commit":          func(t *testing.T, s *Store) { rawPut(t, s, "groups/main", `{"group":"main","epoch":2}`) },
		"new prepare":     func(t *testing.T, s *Store) { rawPut(t, s, "prepare/main", `{"group":"main","nonce":"n2"}`) },
		"withdrawal":      func(t *testing.T, s *Store) { rawDelete(t, s, "prepare/main") },
		"lost assignment": func(t *testing.T, s *Store) { rawDelete(t, s, "groups/main") },
	} {
		t.Run(name, func(t *testing.T) {
			s := fleet(t)
			rawPut(t, s, "groups/main", `{"group":"main","epoch":1}`)
			if name != "new prepare" {
				rawPut(t, s, "prepare/main", `{"group":"main","nonce":"n1"}`)
			}
			m := join(t, s, "main", "a")
			st, err := s.Group(t.Context(), "main")
			must(t, err)
			between(t, s)
			unchanged(t, s, func() { wantErr(t, m.Admit(t.Context(), st, "n1"), ErrStale) })
			if st, err = s.Group(t.Context(), "main"); err != nil {
				t.Fatal(err)
			}
			must(t, m.Admit(t.Context(), st, "n1"))
			must(t, m.Put(t.Context(), rollout.Ready{Nonce: "n2"}))
		})
	}
}

func TestNonceIsFirstPutByAdmit(t *testing.T) {
	s := fleet(t)
	m := join(t, s, "main", "a")
	unchanged(t, s, func() {
		if err := m.Put(t.Context(), rollout.Ready{Nonce: "n1"}); err == nil {
			t.Error("put without having been admitted")
		}
	})
	must(t, m.Put(t.Context(), rollout.Ready{}))
	must(t, m.Put(t.Context(), rollout.Ready{Nonce: "n1"}))
	if got := rawGet(t, s, "ready/main/a"); got != "n1" {
		t.Errorf("ready key is %q", got)
	}
}

// Own keys: gone or another's means not ready, and nothing is put back.
func TestOwnKeysGoneOrForeign(t *testing.T) {
	for name, harm := range map[string]func(*testing.T, *Store){
		"instance gone":    func(t *testing.T, s *Store) { rawDelete(t, s, "instances/a") },
		"instance foreign": func(t *testing.T, s *Store) { rawPut(t, s, "instances/a", `{"instance":"a","boot":"other"}`) },
		"ready gone":       func(t *testing.T, s *Store) { rawDelete(t, s, "ready/main/a") },
		"ready foreign":    func(t *testing.T, s *Store) { rawPut(t, s, "ready/main/a", "n7") },
	} {
		t.Run(name, func(t *testing.T) {
			s := fleet(t)
			m := ready(t, s, "main", "a", "n1")
			harm(t, s)
			unchanged(t, s, func() {
				wantErr(t, m.Put(t.Context(), rollout.Ready{Nonce: "n2"}), ErrLostMembership)
				wantErr(t, m.Put(t.Context(), rollout.Ready{}), ErrLostMembership)
				wantErr(t, m.Report(t.Context(), rollout.Report{}), ErrLostMembership)
				wantErr(t, m.Admit(t.Context(), GroupState{}, "n2"), ErrLostMembership)
			})
			select {
			case <-m.Lost():
			default:
				t.Error("Lost is not closed")
			}
		})
	}
}

func TestReportStopsOnForeignInstance(t *testing.T) {
	s := fleet(t)
	m := ready(t, s, "main", "a", "n1")
	rawPut(t, s, "instances/a", `{"instance":"a","boot":"other"}`)
	unchanged(t, s, func() { wantErr(t, m.Report(t.Context(), rollout.Report{}), ErrLostMembership, "another's") })
}

func TestLeaseLossIsNoticed(t *testing.T) {
	s := fleet(t)
	m, err := s.Join(t.Context(), rollout.Instance{Instance: "a", Group: "main", Boot: "x"}, time.Second)
	must(t, err)
	t.Cleanup(func() { _ = m.Leave(context.Background()) })
	if _, err := raw(t, s).Revoke(t.Context(), m.lease.id); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Lost():
	case <-time.After(20 * time.Second):
		t.Fatal("Lost is not closed")
	}
	unchanged(t, s, func() { wantErr(t, m.Put(t.Context(), rollout.Ready{}), ErrLostMembership) })
}

// A put whose answer was lost is the membership's own.
func TestLostAnswerIsTakenOver(t *testing.T) {
	s := fleet(t)
	m := join(t, s, "main", "a")
	if _, err := raw(t, s).Put(t.Context(), s.key("ready/main/a"), "none", clientv3.WithLease(m.lease.id)); err != nil {
		t.Fatal(err)
	}
	must(t, m.Put(t.Context(), rollout.Ready{Nonce: "n1"}))
	if got := rawGet(t, s, "ready/main/a"); got != "n1" {
		t.Errorf("ready key is %q", got)
	}
}

func TestLeaveTakesEverything(t *testing.T) {
	s := fleet(t)
	before := dump(t, s)
	m := ready(t, s, "main", "a", "n1")
	must(t, m.Report(t.Context(), rollout.Report{HighestEpoch: 3}))
	if r := view(t, s).Reports["a"]; r.Boot != "boot-a" || r.Group != "main" || r.HighestEpoch != 3 {
		t.Errorf("report %+v", r)
	}
	must(t, m.Leave(t.Context()))
	if after := dump(t, s); len(after) != len(before) {
		t.Errorf("left behind: %v", after)
	}
	<-m.Lost()
}

// The lease outlives the client that took it.
func TestLeaseSurvivesANewClient(t *testing.T) {
	s := fleet(t)
	m, err := s.Join(t.Context(), rollout.Instance{Instance: "a", Group: "main", Boot: "x"}, 3*time.Second)
	must(t, err)
	t.Cleanup(func() { _ = m.Leave(context.Background()) })
	s.renew(raw(t, s), "for the test")
	select {
	case <-m.Lost():
		t.Fatal("lost")
	case <-time.After(m.lease.ttl + m.lease.ttl/2): // without renewals it would be long gone
	}
	must(t, m.Report(t.Context(), rollout.Report{}))
}

func TestReadyText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rollout.Ready{Instance: "i", Group: "g"}
		switch rapid.IntRange(0, 5).Draw(t, "kind") {
		case 1:
			r.Nonce = rollout.Nonce(rapid.StringMatching(`[0-9a-f]{8,32}`).Draw(t, "nonce"))
		case 2:
			r.Refused = true
			r.Nonce = rollout.Nonce(rapid.StringMatching(`[0-9a-f]{8,32}`).Draw(t, "nonce"))
			r.Why = rapid.String().Draw(t, "why")
		case 3:
			r.Evicted = true
			r.Nonce = rollout.Nonce(rapid.StringMatching(`[0-9a-f]{0,32}`).Draw(t, "nonce"))
		case 4, 5:
			r.Evicted = rapid.Bool().Draw(t, "out")
			r.Nonce = rollout.Nonce(rapid.StringMatching(`[0-9a-f]{8,32}`).Draw(t, "nonce"))
			for i := range rapid.IntRange(1, 3).Draw(t, "lacks") {
				r.Lacks = append(r.Lacks, version.DigestOf([]byte{byte(i)}))
			}
		}
		// One range compare says that a whole group holds a nonce.
		if held := encodeReady(r) == string(r.Nonce); held != (r.Nonce != "" && !r.Refused && !r.Evicted && r.Lacks == nil) {
			t.Fatalf("%+v is written as %q", r, encodeReady(r))
		}
		if got := decodeReady("g", "i", encodeReady(r)); !got.Equal(&r) {
			t.Fatalf("%+v became %+v", r, got)
		}
	})
}

// A process that is known to be dead makes way at once, but what it held is
// not what its successor holds.
func TestFormerMakesWay(t *testing.T) {
	s := fleet(t)
	dead := ready(t, s, "main", "a", "n1")
	m, err := s.Join(t.Context(), rollout.Instance{Instance: "a", Group: "main", Boot: "second", Former: []string{"boot-0", "boot-a"}}, 0)
	must(t, err)
	t.Cleanup(func() { _ = m.Leave(context.Background()) })
	v := view(t, s)
	if v.Instances["a"].Boot != "second" || len(v.Ready["main"]) != 0 {
		t.Errorf("instances %+v, ready %+v", v.Instances, v.Ready)
	}
	if err := dead.Report(t.Context(), rollout.Report{}); !errors.Is(err, ErrLostMembership) {
		t.Errorf("the former still reports: %v", err)
	}
	if _, err := s.Join(t.Context(), rollout.Instance{Instance: "a", Group: "main", Boot: "third", Former: []string{"boot-0", "boot-a"}}, 0); !errors.Is(err, ErrTwin) {
		t.Errorf("a third joined over a living second: %v", err)
	}
}

// A ready key that somebody deleted is noticed by the next report: until then
// a commit could miss the instance.
func TestReportNoticesALostReadyKey(t *testing.T) {
	s := fleet(t)
	m := ready(t, s, "main", "a", "n1")
	_, err := raw(t, s).Delete(t.Context(), s.readyKey("main", "a"))
	must(t, err)
	if err := m.Report(t.Context(), rollout.Report{}); !errors.Is(err, ErrLostMembership) {
		t.Errorf("report: %v", err)
	}
	<-m.Lost()
}

// A ready key without its instance's key is of a process that is gone, here one
// that was in another group meanwhile: who joins does not hold what it held.
func TestI2_JoinerDoesNotInheritReadiness(t *testing.T) {
	for name, instance := range map[string]string{"absent": "", "unreadable": "{"} {
		t.Run(name, func(t *testing.T) {
			s := fleet(t)
			rawPut(t, s, "ready/main/a", "n1")
			if instance != "" {
				rawPut(t, s, "instances/a", instance)
			}
			m := join(t, s, "main", "a")
			if got := view(t, s).Ready["main"]; len(got) != 0 {
				t.Errorf("it is ready for what another held: %+v", got)
			}
			st, err := s.Group(t.Context(), "main")
			must(t, err)
			must(t, m.Admit(t.Context(), st, "n2"))
		})
	}
}

// A refusal without end comes out of a View as it would have been written.
func TestEndlessReasonIsCut(t *testing.T) {
	s := fleet(t)
	rawPut(t, s, "ready/main/a", "refused n1 "+strings.Repeat("x", 1<<20))
	if r := view(t, s).Ready["main"]["a"]; !r.Refused || r.Nonce != "n1" || len(r.Why) > maxWhy+len("…") {
		t.Errorf("refused %v %s, %d bytes", r.Refused, r.Nonce, len(r.Why))
	}
}
