package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// serves returns a core that serves revision 1 in epoch 1, and a function that
// tells it what etcd says next.
func serves(t *testing.T, now time.Time) (*core, func(*rollout.Assignment, *rollout.Prepare)) {
	t.Helper()
	c := newCore("me", "g")
	c.admitted = true
	c.built(ref(1).Digest)
	at := int64(0)
	see := func(a *rollout.Assignment, p *rollout.Prepare) {
		at++
		c.saw(record{at: at, fleet: "f", assignment: a, prepare: p}, now)
	}
	see(first(), nil)
	c.switched(c.plan(now).swap, now)
	return c, see
}

func first() *rollout.Assignment {
	return &rollout.Assignment{Group: "g", Epoch: 1, Nonce: "n1", Stable: ref(1), Set: []version.Ref{ref(1)}}
}

func second() *rollout.Assignment {
	return &rollout.Assignment{Group: "g", Epoch: 2, Nonce: "n2", Stable: ref(2), Set: []version.Ref{ref(2), ref(1)}}
}

func tooSlow(who ...string) *rollout.Prepare {
	return &rollout.Prepare{Group: "g", Nonce: "n2", Set: []version.Ref{ref(2), ref(1)}, Evict: who}
}

func wantReady(t *testing.T, c *core, now time.Time, nonce rollout.Nonce, evicted bool) {
	t.Helper()
	r := c.plan(now).ready
	if r == nil || r.Nonce != nonce || r.Evicted != evicted || c.evicted.IsZero() == evicted {
		t.Fatalf("ready %+v, evicted since %v; want nonce %s, evicted %v", r, c.evicted, nonce, evicted)
	}
}

func TestEvictedUntilItServesWhatIsCommitted(t *testing.T) {
	now := time.Unix(1000, 0)
	c, see := serves(t, now)
	see(first(), tooSlow("other"))
	wantReady(t, c, now, "n1", false)
	see(first(), tooSlow("other", "me"))
	wantReady(t, c, now, "n2", true)
	if p := c.plan(now); p.swap != nil || len(p.build) != 1 || p.build[0].Ref != ref(2) {
		t.Fatalf("evicted, it has to build on and serve on: %+v", p)
	}
	see(second(), tooSlow("other", "me")) // the commit is told before the prepare's end
	wantReady(t, c, now, "n2", true)
	see(second(), nil)
	wantReady(t, c, now, "n2", true)
	c.built(ref(2).Digest)
	p := c.plan(now)
	if c.evicted.IsZero() || p.swap == nil || p.swap.Epoch != 2 {
		t.Fatalf("in traffic before it switched, or no switch: %+v", p.swap)
	}
	c.switched(p.swap, now)
	wantReady(t, c, now, "n2", false)
}

func TestEvictedAndThePrepareIsWithdrawn(t *testing.T) {
	now := time.Unix(1000, 0)
	c, see := serves(t, now)
	see(first(), tooSlow("me"))
	wantReady(t, c, now, "n2", true)
	see(first(), nil)
	wantReady(t, c, now, "n1", false)
}

// TestOneThatHoldsTheSetIsNotLate: whoever is ready by the time it is told to
// go, or becomes so, is in traffic and says so.
func TestOneThatHoldsTheSetIsNotLate(t *testing.T) {
	now := time.Unix(1000, 0)
	c, see := serves(t, now)
	see(first(), tooSlow("me"))
	wantReady(t, c, now, "n2", true)
	c.built(ref(2).Digest)
	wantReady(t, c, now, "n2", false)
	see(first(), tooSlow("me"))
	wantReady(t, c, now, "n2", false)
}

func TestWhoIsNotEvicted(t *testing.T) {
	now := time.Unix(1000, 0)
	t.Run("pinned", func(t *testing.T) {
		c, see := serves(t, now)
		c.pin = &Pin{Ref: ref(1)}
		see(first(), tooSlow("me"))
		wantReady(t, c, now, "n1", false)
		c.pin = nil
		wantReady(t, c, now, "n2", true)
		c.pin = &Pin{Ref: ref(1)} // comes back
		wantReady(t, c, now, "n1", false)
	})
	t.Run("frozen", func(t *testing.T) {
		c, see := serves(t, now)
		see(first(), tooSlow("me"))
		wantReady(t, c, now, "n2", true)
		c.freeze("test")
		wantReady(t, c, now, "", false)
	})
	t.Run("refuses", func(t *testing.T) {
		c, see := serves(t, now)
		see(first(), tooSlow("me"))
		c.refused(job{Ref: ref(2), nonce: "n2"}, "bad", true, now)
		if r := c.plan(now).ready; !r.Refused || !c.evicted.IsZero() {
			t.Errorf("%+v, evicted since %v", r, c.evicted)
		}
	})
	t.Run("serves nothing", func(t *testing.T) {
		c := newCore("me", "g")
		c.saw(record{at: 1, fleet: "f", assignment: first(), prepare: tooSlow("me")}, now)
		if r := c.plan(now).ready; r != nil || !c.evicted.IsZero() {
			t.Errorf("%+v, evicted since %v", r, c.evicted)
		}
	})
}

// TestBalancersNoticeFirst: readiness goes at once, and is told of after the delay.
func TestBalancersNoticeFirst(t *testing.T) {
	now := time.Unix(1000, 0)
	c, see := serves(t, now)
	c.evictDelay = time.Second
	see(first(), tooSlow("me"))
	p := c.plan(now)
	if c.evicted.IsZero() || p.ready.Nonce != "n1" || p.ready.Evicted || !p.wake.Equal(now.Add(time.Second)) {
		t.Fatalf("evicted since %v, ready %+v, looks again at %v", c.evicted, p.ready, p.wake)
	}
	wantReady(t, c, now.Add(time.Second), "n2", true)
}

// slowSnapshots hold back what they are asked for until they may go on.
type slowSnapshots struct {
	Snapshots
	of   version.Digest
	goOn chan struct{}
}

func (s *slowSnapshots) Manifest(ctx context.Context, d version.Digest) ([]byte, error) {
	if d == s.of {
		select {
		case <-s.goOn:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return s.Snapshots.Manifest(ctx, d)
}

func TestEvictedTakesNoTrafficAndComesBack(t *testing.T) {
	f := initFleet(t, shared)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(1, "n1", one)
	slow := &slowSnapshots{of: two.Digest, goOn: make(chan struct{})}
	f.slow = func(s Snapshots) Snapshots { slow.Snapshots = s; return slow }
	m := f.join("a")
	m.awaitEpoch(1)
	f.awaitReady("a", "n1")

	f.put("prepare/g", rollout.Prepare{Group: "g", Nonce: "n2", Set: []version.Ref{two, one}, Evict: []string{"a"}})
	f.awaitReady("a", "evicted n2")
	if r := m.Ready(); r.Ready || hasPrefix(r.Why, "evicted") != "" {
		t.Errorf("it said that it is out of traffic, and is %+v", r)
	}
	if s := m.Status(); !s.Evicted || s.Ready != "evicted n2" || m.body() != "one" {
		t.Errorf("it serves on: %+v, %q", s, m.body())
	}
	eventually(t, func() string {
		if r := f.report("a"); !r.Evicted || r.Nonce != "" {
			return fmt.Sprintf("report %+v", r)
		}
		return ""
	})
	// It may be left behind, on record, and catches up.
	f.commit(2, "n2", two, one)
	f.delete("prepare/g")
	m.await("behind", func(s Status) bool { return s.HighestEpoch == 2 && s.Evicted })
	if m.body() != "one" || m.Ready().Ready {
		t.Errorf("behind, it serves %q, ready %+v", m.body(), m.Ready())
	}
	close(slow.goOn)
	m.awaitEpoch(2)
	f.awaitReady("a", "n2")
	if r := m.Ready(); !r.Ready || m.body() != "two" {
		t.Errorf("%+v, serves %q", r, m.body())
	}
	if got := m.epochs(); !slices.Equal(got, []int64{1, 2}) {
		t.Errorf("epochs %v", got)
	}
}

// TestEvictedJoinsAgain: the lease is lost while it is evicted; it says so again.
func TestEvictedJoinsAgain(t *testing.T) {
	f := initFleet(t, shared)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(1, "n1", one)
	slow := &slowSnapshots{of: two.Digest, goOn: make(chan struct{})}
	f.slow = func(s Snapshots) Snapshots { slow.Snapshots = s; return slow }
	m := f.join("a")
	f.awaitReady("a", "n1")
	f.put("prepare/g", rollout.Prepare{Group: "g", Nonce: "n2", Set: []version.Ref{two, one}, Evict: []string{"a"}})
	f.awaitReady("a", "evicted n2")
	f.delete("instances/a")
	f.delete("ready/g/a")
	f.awaitReady("a", "evicted n2")
	f.delete("prepare/g")
	f.awaitReady("a", "n1")
	if !m.Ready().Ready {
		t.Errorf("%+v", m.Ready())
	}
	close(slow.goOn)
}

// sickWith is a core that serves epoch 1 and cannot have what epoch 2 is.
func sickWith(t *testing.T, now time.Time) (*core, func(*rollout.Assignment, *rollout.Prepare)) {
	t.Helper()
	c, see := serves(t, now)
	see(second(), nil)
	p := c.plan(now)
	if len(p.build) != 1 || p.build[0].Ref != ref(2) {
		t.Fatalf("builds %+v", p.build)
	}
	c.lacks(p.build[0], "fetch chunk: it is not there", now)
	return c, see
}

func third() *rollout.Prepare {
	return &rollout.Prepare{Group: "g", Nonce: "n3", Set: []version.Ref{ref(3), ref(2), ref(1)}}
}

func wantLacks(t *testing.T, c *core, now time.Time, nonce rollout.Nonce, out bool, lacks ...version.Digest) {
	t.Helper()
	r := c.plan(now).ready
	if r == nil || r.Refused || r.Nonce != nonce || r.Evicted != out || !slices.Equal(r.Lacks, lacks) {
		t.Fatalf("ready %+v, want %s, out %v, lacks %v", r, nonce, out, lacks)
	}
}

// The next revision is the cure for who cannot have the one in force: it is built,
// that of the present is no reason to refuse it, and what is lacking is said.
func TestCuredByTheNextRevision(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, out := range []bool{false, true} {
		t.Run(fmt.Sprint("out of traffic ", out), func(t *testing.T) {
			c, see := sickWith(t, now)
			if out {
				c.stepped(now)
			}
			wantLacks(t, c, now, "n2", out, ref(2).Digest)
			see(second(), third())
			p := c.plan(now)
			if len(p.build) != 1 || p.build[0].Ref != ref(3) {
				t.Fatalf("builds %+v: what failed is to wait for its time", p.build)
			}
			wantLacks(t, c, now, "n2", out, ref(2).Digest) // not before all else is held
			c.built(ref(3).Digest)
			wantLacks(t, c, now, "n3", out, ref(2).Digest)
			see(&rollout.Assignment{Group: "g", Epoch: 3, Nonce: "n3", Stable: ref(3), Set: third().Set}, nil)
			p = c.plan(now)
			if p.swap == nil || p.swap.Epoch != 3 {
				t.Fatalf("no switch: %+v", p)
			}
			c.switched(p.swap, now)
			wantLacks(t, c, now, "n3", false, ref(2).Digest)
			if !c.evicted.IsZero() {
				t.Error("it serves what is committed, and stays out of traffic")
			}
			if s := c.sickness(); len(s) != 1 || s[0].Ref != ref(2) || s[0].Why == "" {
				t.Errorf("lacks %+v", s)
			}
			// And the revision after that, also by one that is told that it is slow.
			fourth := &rollout.Prepare{Group: "g", Nonce: "n4", Set: []version.Ref{ref(4), ref(3), ref(2)}, Evict: []string{"me"}}
			see(c.target, fourth)
			wantLacks(t, c, now, "n4", true) // it is
			c.built(ref(4).Digest)
			c.plan(now)
			wantLacks(t, c, now, "n4", false, ref(2).Digest)
			c.built(ref(2).Digest)
			wantReady(t, c, now, "n4", false)
			if s := c.sickness(); s != nil {
				t.Errorf("lacks %+v", s)
			}
		})
	}
}

// Whoever only has not got it yet waits, and who cannot have what is new refuses it.
func TestWhoIsNotSick(t *testing.T) {
	now := time.Unix(1000, 0)
	t.Run("etcd did not answer", func(t *testing.T) {
		c, see := serves(t, now)
		see(second(), third())
		c.refused(c.plan(now).build[0], "no answer", false, now)
		c.built(ref(3).Digest)
		wantLacks(t, c, now, "", false)
	})
	t.Run("new", func(t *testing.T) {
		c, see := sickWith(t, now)
		see(second(), third())
		c.refused(c.plan(now).build[0], "does not compile", true, now)
		if r := c.plan(now).ready; !r.Refused || r.Nonce != "n3" || r.Why != "does not compile" {
			t.Errorf("%+v", r)
		}
	})
	t.Run("new, and tried before", func(t *testing.T) { // under another nonce: it is tried again first
		c, see := sickWith(t, now)
		see(second(), third())
		c.refused(c.plan(now).build[0], "does not compile", true, now)
		again := third()
		again.Nonce = "n4"
		see(second(), again)
		wantLacks(t, c, now, "n2", false, ref(2).Digest)
	})
	t.Run("hangs", func(t *testing.T) { // in force: no reason to refuse, and not tried again
		c, see := serves(t, now)
		see(second(), nil)
		c.hangs(c.plan(now).build[0], "building it hangs", now)
		see(second(), third())
		now := now.Add(time.Hour)
		if p := c.plan(now); len(p.build) != 1 || p.build[0].Ref != ref(3) {
			t.Errorf("builds %+v", p.build)
		}
		c.built(ref(3).Digest)
		if r := c.plan(now).ready; r.Refused || r.Nonce != "n3" || len(r.Lacks) != 1 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("serves nothing", func(t *testing.T) {
		c := newCore("me", "g")
		c.saw(record{at: 1, fleet: "f", assignment: second()}, now)
		c.lacks(c.plan(now).build[0], "it is not there", now)
		c.built(ref(1).Digest)
		c.dropped(ref(2).Digest)
		wantLacks(t, c, now, "n2", true, ref(2).Digest) // registered, so that another is prepared here, too
		if why := c.behind(now); !strings.Contains(why, "revision 2 is not held: it is not there: routectl recover --from") {
			t.Errorf("says %q", why)
		}
		c.refused(job{Ref: ref(2), nonce: "n2"}, "does not compile", true, now)
		if why := c.behind(now); !strings.Contains(why, "revision 2 is not held: does not compile: publish another") {
			t.Errorf("says %q", why)
		}
		c.built(ref(2).Digest)
		c.dropped(ref(1).Digest)
		c.lacks(job{Ref: ref(1), nonce: "n2"}, "it is not there", now)
		if why := c.behind(now); !strings.Contains(why, "revision 1, which is kept for the way back, is not held: it is not there: routectl recover --from") {
			t.Errorf("says %q", why)
		}
	})
}
