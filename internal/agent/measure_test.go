package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/engine"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// traffic is what a front end would have counted, and what was written of it.
type traffic struct {
	old, new atomic.Uint64
	routes   int
	block    bool          // writing never ends, whatever is said
	stuck    chan struct{} // of the bubble: ends it at last
	fails    func(rollout.Measure) error

	mu    sync.Mutex
	wrote []rollout.Measure
	at    []time.Time
}

func (c *traffic) compare(_, _ *engine.Engine, most int) analysis.Sample {
	p := analysis.Pair{Stable: analysis.Counts{Requests: c.old.Load()}, Candidate: analysis.Counts{Requests: c.new.Load()}}
	s := analysis.Sample{All: p, Routes: map[string]analysis.Pair{}}
	for i := range min(c.routes, most) {
		s.Routes[fmt.Sprintf("m/%03d", i)] = p
	}
	return s
}

func (c *traffic) send(_ context.Context, m rollout.Measure) error {
	if c.block {
		<-c.stuck
	}
	if c.fails != nil {
		if err := c.fails(m); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrote, c.at = append(c.wrote, m), append(c.at, time.Now())
	return nil
}

func (c *traffic) last(t *testing.T) rollout.Measure {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.wrote) == 0 {
		t.Fatal("nothing was written")
	}
	return c.wrote[len(c.wrote)-1]
}

func (c *traffic) writes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.wrote)
}

// metered is inBubble with a meter that reads and writes c.
func metered(t *testing.T, c *traffic, f func(p *loop, see func(record), sw *swaps)) {
	inBubble(t, func(p *loop, see func(record), sw *swaps) {
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		c.stuck = make(chan struct{})
		if err := p.do(ctx, func(p *loop) {
			for n := 1; n <= 3; n++ {
				p.engines[ref(n).Digest] = &engine.Engine{}
			}
			p.meter.compare, p.meter.send = c.compare, c.send
		}); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { p.meter.run(ctx) })
		f(p, see, sw)
		cancel()
		close(c.stuck)
		wg.Wait()
	})
}

func candidate(epoch int64, c rollout.Candidate, ready int) record {
	r := assigned(epoch, 1, time.Now())
	c.Ref = ref(2)
	r.assignment.Candidate, r.assignment.Ready = &c, ready
	return r
}

func against(epoch int64, stable, old int) record {
	r := assigned(epoch, stable, time.Now())
	r.assignment.Against = ref(old)
	return r
}

// TestMeasuresCountSinceTheSwitch: what was counted before it does not show, but
// for what a bake is compared with.
func TestMeasuresCountSinceTheSwitch(t *testing.T) {
	c := &traffic{routes: 1}
	metered(t, c, func(_ *loop, see func(record), _ *swaps) {
		c.old.Store(1000)
		c.new.Store(50)
		time.Sleep(time.Minute)
		if n := c.writes(); n != 0 {
			t.Errorf("%d measures though there is nothing to compare", n)
		}
		switched := time.Now()
		see(candidate(2, rollout.Candidate{Permyriad: 100}, 1))
		c.old.Add(90)
		c.new.Add(10)
		time.Sleep(3 * time.Second)
		m := c.last(t)
		if m.Epoch != 2 || m.Old != ref(1).Digest || m.New != ref(2).Digest || !m.Since.Equal(switched) {
			t.Errorf("%+v", m)
		}
		for _, p := range []analysis.Pair{m.Sample.All, m.Sample.Routes["m/000"]} {
			if p.Stable.Requests != 90 || p.Candidate.Requests != 10 {
				t.Errorf("%d and %d requests, want 90 and 10", p.Stable.Requests, p.Candidate.Requests)
			}
		}
		see(candidate(3, rollout.Candidate{Permyriad: 500}, 1))
		c.new.Add(7)
		time.Sleep(3 * time.Second)
		if m := c.last(t); m.Epoch != 3 || m.Sample.All.Stable.Requests != 0 || m.Sample.All.Candidate.Requests != 7 {
			t.Errorf("%+v", m.Sample.All)
		}
		// A bake: revision 2 is stable now, beside what 1 did before.
		see(against(4, 2, 1))
		c.old.Add(1000) // late ones: after the switch, so they do not count
		c.new.Add(5)
		time.Sleep(3 * time.Second)
		m = c.last(t)
		for _, p := range []analysis.Pair{m.Sample.All, m.Sample.Routes["m/000"]} {
			if m.Epoch != 4 || m.Old != ref(1).Digest || m.New != ref(2).Digest || p.Stable.Requests != 1090 || p.Candidate.Requests != 5 {
				t.Errorf("epoch %d: %d and %d requests, want 1090 and 5", m.Epoch, p.Stable.Requests, p.Candidate.Requests)
			}
		}
		n := c.writes()
		see(assigned(5, 2, time.Now()))
		time.Sleep(time.Minute)
		if c.writes() != n {
			t.Error("measured on when nothing was to be compared any more")
		}
	})
}

func TestSampleLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(what string) analysis.Sample {
			pair := func() analysis.Pair {
				return analysis.Pair{
					Stable:    analysis.Counts{Requests: rapid.Uint64Range(0, 1e6).Draw(t, what)},
					Candidate: analysis.Counts{Requests: rapid.Uint64Range(0, 1e6).Draw(t, what), Errors: 1},
				}
			}
			return analysis.Sample{All: pair(), Rest: pair(), Routes: map[string]analysis.Pair{"a": pair(), "b": pair()}}
		}
		base, more := draw("base"), draw("more")
		now := draw("none")
		now = analysis.Sample{}
		now.Merge(&base)
		now.Merge(&more)
		c := comparison{before: rapid.Bool().Draw(t, "before")}
		s := c.sample(&now, &base)
		check := func(name string, got, base, more analysis.Pair) {
			stable := more.Stable
			if c.before {
				stable = base.Stable
			}
			if got.Candidate != more.Candidate || got.Stable != stable {
				t.Fatalf("%s: %d and %d requests", name, got.Stable.Requests, got.Candidate.Requests)
			}
		}
		check("all", s.All, base.All, more.All)
		check("rest", s.Rest, base.Rest, more.Rest)
		for name, p := range s.Routes {
			check(name, p, base.Routes[name], more.Routes[name])
		}
		if len(s.Routes) != 2 || now.Routes["a"].Candidate.Requests != base.Routes["a"].Candidate.Requests+more.Routes["a"].Candidate.Requests {
			t.Fatal("routes were lost, or the reading was changed")
		}
		if f := fold(s, 1); len(f.Routes) != 1 || f.More != 1 || f.Rest.Candidate.Requests != s.Rest.Candidate.Requests+s.Routes["b"].Candidate.Requests {
			t.Fatalf("folded: %d routes, %d more", len(f.Routes), f.More)
		}
	})
}

// TestMeasuresKeepTheirRate in groups of any size, and say nothing new only now
// and then.
func TestMeasuresKeepTheirRate(t *testing.T) {
	for _, x := range []struct {
		ready int
		want  time.Duration
	}{{0, time.Second}, {100, time.Second}, {1000, 5 * time.Second}, {4000, 20 * time.Second}} {
		c := &traffic{}
		metered(t, c, func(_ *loop, see func(record), _ *swaps) {
			see(candidate(2, rollout.Candidate{Permyriad: 100}, x.ready))
			between := func(d time.Duration, busy bool) int {
				before, end := c.writes(), time.Now().Add(d)
				for time.Now().Before(end) {
					if busy {
						c.new.Add(1)
					}
					time.Sleep(100 * time.Millisecond)
				}
				return c.writes() - before
			}
			near := func(what string, got int, every, of time.Duration) {
				if want := int(of / every); got < want-2 || got > want+2 {
					t.Errorf("%d instances, %s: %d measures, want about %d", x.ready, what, got, want)
				}
			}
			near("busy", between(5*time.Minute, true), x.want, 5*time.Minute)
			near("idle", between(4*time.Minute, false), max(x.want, measureAnyway), 4*time.Minute)
			between(time.Minute+measureLater, true)
			near("later", between(5*time.Minute, true), max(x.want, measureLater), 5*time.Minute)
		})
	}
}

// TestABlockedMeasureDelaysNoSwitch: a write that never ends, and ignores that it should.
func TestABlockedMeasureDelaysNoSwitch(t *testing.T) {
	c := &traffic{block: true}
	metered(t, c, func(_ *loop, see func(record), sw *swaps) {
		see(candidate(2, rollout.Candidate{Permyriad: 100}, 1))
		time.Sleep(time.Minute)
		for epoch := int64(3); epoch < 6; epoch++ {
			now := time.Now()
			r := candidate(epoch, rollout.Candidate{Permyriad: 100 * int(epoch)}, 1)
			r.assignment.Instant = now.Add(10 * time.Millisecond)
			see(r)
			time.Sleep(rollout.MaxLead)
			synctest.Wait()
			if n := len(sw.at); sw.epochs[n-1] != epoch || sw.at[n-1].Sub(now) != 10*time.Millisecond {
				t.Errorf("switched to %v at %v", sw.epochs, sw.at)
			}
		}
	})
}

func TestAFailedMeasureIsDropped(t *testing.T) {
	c := &traffic{routes: 40}
	var tries int
	c.fails = func(m rollout.Measure) error {
		if tries++; tries < 3 {
			return errors.New("etcd is away")
		}
		if len(m.Sample.Routes) > 10 {
			return fmt.Errorf("put: %w", store.ErrTooLarge)
		}
		return nil
	}
	metered(t, c, func(p *loop, see func(record), _ *swaps) {
		see(candidate(2, rollout.Candidate{Permyriad: 100}, 1))
		c.new.Add(3)
		time.Sleep(12 * time.Second)
		m := c.last(t)
		if m.Sample.All.Candidate.Requests != 3 || len(m.Sample.Routes) > 10 || m.Sample.More != 40-len(m.Sample.Routes) ||
			m.Sample.Rest.Candidate.Requests != uint64(3*m.Sample.More) {
			t.Errorf("%d routes, %d more: %d requests", len(m.Sample.Routes), m.Sample.More, m.Sample.Rest.Candidate.Requests)
		}
		n := c.writes()
		p.meter.resend() // the lease ended, and the measure with it
		time.Sleep(2 * time.Second)
		if c.writes() != n+1 {
			t.Errorf("%d writes after the lease was lost, want 1", c.writes()-n)
		}
	})
}

// TestWhoMeasures: each instance of a group with a candidate, also one that
// serves only one side; none that is pinned.
func TestWhoMeasures(t *testing.T) {
	c := &traffic{}
	metered(t, c, func(p *loop, see func(record), _ *swaps) {
		for i, who := range [][]string{{"me"}, {"other"}} {
			see(candidate(int64(2+i), rollout.Candidate{Instances: who}, 2))
			c.new.Add(1)
			time.Sleep(2 * time.Second)
			if m := c.last(t); m.Epoch != int64(2+i) || m.Sample.All.Candidate.Requests != 1 {
				t.Errorf("candidate on %v: %+v", who, m.Sample.All)
			}
		}
		if err := p.do(context.Background(), func(p *loop) { p.pinned(&Pin{Ref: ref(3)}) }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		n := c.writes()
		c.new.Add(5)
		time.Sleep(time.Minute)
		if c.writes() != n {
			t.Error("a pinned instance measures")
		}
		if err := p.do(context.Background(), func(p *loop) { p.pinned(nil) }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		c.new.Add(2)
		time.Sleep(2 * time.Second)
		if m := c.last(t); m.Epoch != 3 || m.Sample.All.Candidate.Requests != 2 {
			t.Errorf("unpinned: %+v", m.Sample.All)
		}
	})
}

// TestKeysOutliveWhatIsHeld: when an engine comes or goes, the front end
// forgets the keys it saw; the measure does not.
func TestKeysOutliveWhatIsHeld(t *testing.T) {
	c := &traffic{}
	metered(t, c, func(p *loop, see func(record), _ *swaps) {
		var front atomic.Uint64 // the key it was asked by since the last Swap
		p.meter.keys = func() (stable, cand analysis.KeySet) {
			stable.Add(front.Load())
			cand.Add(1000 + front.Load())
			return stable, cand
		}
		see(candidate(2, rollout.Candidate{Permyriad: 100}, 1))
		front.Store(1)
		if err := p.do(context.Background(), func(p *loop) { p.changed = true }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		front.Store(2)
		c.new.Add(1)
		time.Sleep(2 * time.Second)
		m := c.last(t)
		var want analysis.KeySet
		want.Add(1)
		want.Add(2)
		if m.Sample.StableKeys != want || m.Sample.CandidateKeys == (analysis.KeySet{}) {
			t.Errorf("keys %v", m.Sample.StableKeys)
		}
		// Another epoch begins anew, and one without a share has no keys.
		see(candidate(3, rollout.Candidate{Permyriad: 200}, 1))
		c.new.Add(1)
		time.Sleep(2 * time.Second)
		want = analysis.KeySet{}
		want.Add(2)
		if m := c.last(t); m.Epoch != 3 || m.Sample.StableKeys != want {
			t.Errorf("epoch %d: keys %v", m.Epoch, m.Sample.StableKeys)
		}
		see(candidate(4, rollout.Candidate{Match: &rollout.Match{Header: "X"}}, 1))
		c.new.Add(1)
		time.Sleep(2 * time.Second)
		if m := c.last(t); m.Epoch != 4 || m.Sample.StableKeys != (analysis.KeySet{}) {
			t.Errorf("epoch %d: keys %v", m.Epoch, m.Sample.StableKeys)
		}
	})
}

// TestMeasuredInEtcd has real requests counted by real engines.
func TestMeasuredInEtcd(t *testing.T) {
	f := initFleet(t, shared)
	one := f.publish(table("one"))
	two := f.publish(table("two", route.Route{Name: "more", Path: "/more", Action: route.Action{Respond: &route.Respond{}}}))
	f.commit(1, "n1", one)
	o := f.options("a")
	o.MeasureEvery = 20 * time.Millisecond
	m := f.start(o)
	m.awaitEpoch(1)
	f.prepare("n2", "", two, one)
	f.awaitReady("a", "n2")
	ask := func(tester bool) string {
		r := httptest.NewRequest("GET", "/", nil)
		if tester {
			r.Header.Set("X-Tester", "yes")
		}
		w := httptest.NewRecorder()
		m.front.ServeHTTP(w, r)
		return w.Body.String()
	}
	ask(false)
	a := rollout.Assignment{
		Group: "g", Epoch: 2, Nonce: "n2", Set: []version.Ref{two, one}, Stable: one, Instant: time.Now().UTC(), Ready: 1,
		Candidate: &rollout.Candidate{Ref: two, Match: &rollout.Match{Header: "X-Tester", Value: "yes"}},
	}
	f.put("groups/g", a)
	measured := func() (r rollout.Measure) {
		if s := f.get("measures/a"); s != "" {
			if err := json.Unmarshal([]byte(s), &r); err != nil {
				t.Fatal(err)
			}
		}
		return r
	}
	eventually(t, func() string {
		if r := measured(); r.Epoch != 2 {
			return "epoch 2 is not measured"
		}
		return ""
	})
	if s, c := ask(false), ask(true); s != "one" || c != "two" {
		t.Errorf("everybody gets %q, testers %q", s, c)
	}
	ask(true)
	eventually(t, func() string {
		r := measured()
		if all := r.Sample.All; all.Stable.Requests != 1 || all.Candidate.Requests != 2 || r.Sample.Routes["m/root"].Candidate.Requests != 2 {
			return fmt.Sprintf("%+v", r)
		}
		if r.Boot != m.o.Who.Boot || r.Instance != "a" || r.Group != "g" || len(r.Sample.Routes) != 2 {
			return fmt.Sprintf("%+v", r)
		}
		return ""
	})
	// The commit, watched beside what was there before.
	a.Epoch, a.Stable, a.Candidate, a.Against = 3, two, nil, one
	f.put("groups/g", a)
	m.awaitEpoch(3)
	eventually(t, func() string {
		if r := measured(); r.Epoch != 3 || r.Old != one.Digest || r.New != two.Digest || r.Sample.All.Stable.Requests != 2 || r.Sample.All.Candidate.Requests != 0 {
			return fmt.Sprintf("%+v", r)
		}
		return ""
	})
}
