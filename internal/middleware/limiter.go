package middleware

import (
	"sync"
	"sync/atomic"
	"time"
)

// A limiter is a token bucket for each key. Keys are spread over shards, each
// with a lock of its own, and bounded in number: a new one takes the place of
// one whose bucket is full again (which is as good as forgotten), or, past the
// limits, of the one used longest ago, which then starts anew.
//
// A bucket is one number, the instant at which it would be full again (the
// generic cell rate algorithm, ITU-T I.371): a request moves it on by one
// interval, and may not move it more than burst intervals past now.
type limiter struct {
	interval time.Duration // for one token
	burst    time.Duration // for a whole bucket
	now      func() time.Time
	start    time.Time // buckets count from here, by the monotonic clock
	budget   *keyBudget

	shards atomic.Pointer[[limiterShards]limiterShard] // made at the first request
}

const (
	limiterShards = 64
	// MaxLimiterKeys is how many keys one rateLimit tells apart at a time, and
	// MaxLibraryKeys how many all of a library do; past it each shard of a
	// limiter still has one.
	MaxLimiterKeys = 64 << 10
	MaxLibraryKeys = 1 << 20

	keysPerShard = MaxLimiterKeys / limiterShards
)

// A keyBudget is shared by the limiters of a library.
type keyBudget struct{ used atomic.Int64 }

func (b *keyBudget) take() bool {
	if b.used.Add(1) <= MaxLibraryKeys {
		return true
	}
	b.used.Add(-1)
	return false
}

type limiterShard struct {
	mu      sync.Mutex
	at      map[uint64]int32 // into buckets
	buckets []bucket
	paid    int   // buckets that the budget was asked for
	newest  int32 // ends of the list by last use; -1 when it is empty
	oldest  int32
	_       [64]byte // keeps neighbours' locks off this cache line
}

type bucket struct {
	key          uint64
	full         time.Duration // since limiter.start
	newer, older int32         // -1 at the ends
}

func newLimiter(interval time.Duration, burst int, env Env) *limiter {
	l := &limiter{interval: interval, burst: interval * time.Duration(burst), now: env.Now, start: env.Now(), budget: env.keys}
	if l.budget == nil {
		l.budget = &keyBudget{}
	}
	return l
}

// take takes a token of the key's bucket. Without one it takes nothing and
// returns how long it is until there is.
func (l *limiter) take(key uint64) time.Duration {
	now := l.now().Sub(l.start)
	shards := l.shards.Load()
	if shards == nil {
		l.shards.CompareAndSwap(nil, new([limiterShards]limiterShard))
		shards = l.shards.Load()
	}
	s := &shards[key%limiterShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.bucket(key, now, l.budget)
	full := max(b.full, now) + l.interval
	if wait := full - now - l.burst; wait > 0 {
		return wait
	}
	b.full = full
	return 0
}

// release gives the keys back to the budget. The limiter may still be asked
// afterwards; what it then holds is not counted.
func (l *limiter) release() {
	shards := l.shards.Load()
	if shards == nil {
		return
	}
	for i := range shards {
		s := &shards[i]
		s.mu.Lock()
		l.budget.used.Add(-int64(s.paid))
		s.paid = 0
		s.mu.Unlock()
	}
}

// bucket finds or makes the key's bucket and puts it at the list's head.
func (s *limiterShard) bucket(key uint64, now time.Duration, budget *keyBudget) *bucket {
	i, ok := s.at[key]
	switch {
	case ok && i == s.newest:
		return &s.buckets[i]
	case ok:
		s.unlink(i)
	default:
		i = s.slot(now, budget)
		s.buckets[i] = bucket{key: key}
		s.at[key] = i
	}
	s.push(i)
	return &s.buckets[i]
}

// slot returns a bucket that is on no list.
func (s *limiterShard) slot(now time.Duration, budget *keyBudget) int32 {
	if s.at == nil {
		s.at = map[uint64]int32{}
		s.newest, s.oldest = -1, -1
	}
	if n := len(s.buckets); n == 0 || n < keysPerShard && s.buckets[s.oldest].full > now && budget.take() {
		if n > 0 {
			s.paid++ // the first of a shard is free
		}
		s.buckets = append(s.buckets, bucket{})
		return int32(n)
	}
	i := s.oldest
	s.unlink(i)
	delete(s.at, s.buckets[i].key)
	return i
}

func (s *limiterShard) push(i int32) {
	b := &s.buckets[i]
	b.newer, b.older = -1, s.newest
	if s.newest >= 0 {
		s.buckets[s.newest].newer = i
	}
	s.newest = i
	if s.oldest < 0 {
		s.oldest = i
	}
}

func (s *limiterShard) unlink(i int32) {
	b := &s.buckets[i]
	if b.newer >= 0 {
		s.buckets[b.newer].older = b.older
	} else {
		s.newest = b.older
	}
	if b.older >= 0 {
		s.buckets[b.older].newer = b.newer
	} else {
		s.oldest = b.newer
	}
}
