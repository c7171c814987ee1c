package middleware

import (
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"routerd.dev/internal/route"
)

// The limiter lets pass exactly what a token bucket lets pass, kept as a count
// of tokens that grows with time.
func TestRateLimitIsATokenBucket(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		interval := time.Duration(rapid.IntRange(1, 50).Draw(t, "interval")) * time.Millisecond
		burst := rapid.IntRange(1, 5).Draw(t, "burst")
		c := newClock()
		l := newLimiter(interval, burst, Env{Now: c.Now})
		type model struct {
			tokens time.Duration // in time, so that nothing is rounded
			at     time.Time
		}
		full := interval * time.Duration(burst)
		buckets := map[uint64]*model{}
		for range rapid.IntRange(1, 100).Draw(t, "requests") {
			c.now = c.now.Add(time.Duration(rapid.IntRange(0, 60).Draw(t, "pause")) * time.Millisecond)
			key := uint64(rapid.IntRange(0, 2).Draw(t, "key"))
			b := buckets[key]
			if b == nil {
				b = &model{tokens: full, at: c.now}
				buckets[key] = b
			}
			b.tokens = min(full, b.tokens+c.now.Sub(b.at))
			b.at = c.now
			var want time.Duration
			if b.tokens >= interval {
				b.tokens -= interval
			} else {
				want = interval - b.tokens
			}
			if got := l.take(key); got != want {
				t.Fatalf("key %d waits %v, want %v", key, got, want)
			}
		}
	})
}

func TestRateLimitAnswers(t *testing.T) {
	c := newClock()
	h := head(t, "rateLimit", `{"rate":2,"per":"10s","burst":2}`, Env{Now: c.Now})
	x := exchange()
	for range 2 {
		if a := h.Request(x); a != nil {
			t.Fatalf("within the burst: %+v", a)
		}
	}
	a := h.Request(x)
	if a == nil || a.Status != 429 {
		t.Fatalf("beyond the burst: %+v", a)
	}
	want := []route.Header{{Name: "Ratelimit", Value: `"rateLimit";r=0;t=5`}, {Name: "Ratelimit-Policy", Value: `"rateLimit";q=2;w=10`}, {Name: "Retry-After", Value: "5"}}
	for i, f := range a.Header {
		if f != want[i] {
			t.Errorf("field %v, want %v", f, want[i])
		}
	}
	c.now = c.now.Add(5 * time.Second)
	if a := h.Request(x); a != nil {
		t.Errorf("after Retry-After: %+v", a)
	}
}

func TestRateLimitKeys(t *testing.T) {
	client := func(s string) func(*Exchange) { return func(x *Exchange) { x.Client = netip.MustParseAddr(s) } }
	token := func(s string) func(*Exchange) { return func(x *Exchange) { x.Header.Set("X-Token", s) } }
	host := func(s string) func(*Exchange) { return func(x *Exchange) { x.Host = s } }
	rt := func(s string) func(*Exchange) { return func(x *Exchange) { x.Route = s } }
	for _, c := range []struct {
		key  string
		a, b func(*Exchange)
		same bool
	}{
		{"client", client("192.0.2.1"), client("192.0.2.2"), false},
		{"", client("192.0.2.1"), client("::ffff:192.0.2.1"), true},
		{"client", client("2001:db8::1"), client("2001:db8::2:3"), true},
		{"client", client("2001:db8::1"), client("2001:db8:0:1::1"), false},
		{"client", client("192.0.2.1"), func(x *Exchange) { client("192.0.2.1")(x); token("b")(x); rt("other")(x) }, true},
		{"header:x-token", token("a"), token("b"), false},
		{"header:X-Token", func(*Exchange) {}, func(x *Exchange) { client("192.0.2.9")(x) }, true},
		{"header:Host", host("a.example"), host("b.example"), false},
		{"header:host", host("a.example"), func(x *Exchange) { host("a.example")(x); client("192.0.2.9")(x) }, true},
		{"route", rt("a/b"), rt("a/c"), false},
		{"route", client("192.0.2.1"), client("192.0.2.2"), true},
	} {
		h := head(t, "rateLimit", `{"burst":1,"key":"`+c.key+`","per":"1h","rate":1}`, Env{})
		xa, xb := exchange(), exchange()
		c.a(xa)
		c.b(xb)
		if a := h.Request(xa); a != nil {
			t.Fatalf("first request: %+v", a)
		}
		if a := h.Request(xb); (a != nil) != c.same {
			t.Errorf("key %q: second request %+v, same bucket %v", c.key, a, c.same)
		}
	}
}

func TestRateLimitCountsExactlyUnderConcurrency(t *testing.T) {
	c := newClock()
	h := head(t, "rateLimit", `{"burst":1000,"per":"1h","rate":1}`, Env{Now: c.Now})
	var passed atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			x := exchange()
			for range 500 {
				if h.Request(x) == nil {
					passed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if passed.Load() != 1000 {
		t.Errorf("%d of 4000 passed, want 1000", passed.Load())
	}
}

func TestRateLimitKeysAreBounded(t *testing.T) {
	c := newClock()
	l := newLimiter(time.Hour, 1, Env{Now: c.Now})
	count := func() (n int) {
		for i := range l.shards.Load() {
			s := &l.shards.Load()[i]
			if len(s.at) != len(s.buckets) {
				t.Fatalf("shard %d has %d keys and %d buckets", i, len(s.at), len(s.buckets))
			}
			n += len(s.buckets)
		}
		return n
	}
	for key := range uint64(2 * MaxLimiterKeys) {
		c.now = c.now.Add(1)
		if l.take(key) != 0 {
			t.Fatalf("key %d is new and was limited", key)
		}
	}
	if n := count(); n != MaxLimiterKeys {
		t.Errorf("%d buckets, want %d", n, MaxLimiterKeys)
	}
	// Those used last are still known, those before are not.
	if l.take(2*MaxLimiterKeys-1) == 0 {
		t.Error("the newest key was forgotten")
	}
	if l.take(0) != 0 {
		t.Error("the oldest key was kept")
	}

	// Buckets that are full again are taken over before new ones are made.
	l = newLimiter(time.Second, 1, Env{Now: c.Now})
	for key := range uint64(10_000) {
		c.now = c.now.Add(2 * time.Second)
		l.take(key)
	}
	if n := count(); n != limiterShards {
		t.Errorf("%d buckets for keys that come one at a time, want %d", n, limiterShards)
	}
}

func TestRateLimitBudgetIsSharedAndGivenBack(t *testing.T) {
	c := newClock()
	lib := NewLibrary(Env{Now: c.Now})
	const config = `{"burst":1,"key":"header:K","per":"1h","rate":1}`
	fill := func(scope string) *Head {
		h, ps := lib.Head(scope, "rateLimit", config)
		if len(ps) > 0 {
			t.Fatal(ps)
		}
		x := exchange()
		for i := range 2000 {
			x.Header.Set("K", strconv.Itoa(i))
			h.Request(x)
		}
		return h
	}
	a, b := fill("a"), fill("b")
	used := lib.env.keys.used.Load()
	if used < 3000 || used > 4000 {
		t.Errorf("%d keys are on the budget for some 4000 in use", used)
	}
	lib.env.keys.used.Store(MaxLibraryKeys)
	fill("c") // no more room: still serves, with a key a shard
	if got := lib.env.keys.used.Load(); got != MaxLibraryKeys {
		t.Errorf("the budget is overdrawn: %d", got)
	}
	lib.env.keys.used.Store(used)
	lib.Keep(func(h *Head) bool { return h == b })
	if got := lib.env.keys.used.Load(); got >= used || got < 1500 {
		t.Errorf("%d keys on the budget after one of two limiters went, %d before", got, used)
	}
	lib.Keep(func(*Head) bool { return false })
	if got := lib.env.keys.used.Load(); got != 0 {
		t.Errorf("%d keys on the budget of an empty library", got)
	}
	_ = a
}
