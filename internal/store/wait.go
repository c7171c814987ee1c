package store

import (
	"context"
	"math/rand/v2"
	"time"
)

// jitter returns a random time between d and 1.5 d, so that a fleet does not
// come back as one.
func jitter(d time.Duration) time.Duration {
	return d + rand.N(d/2+1)
}

// backoff returns how long to wait after the try-th failure in a row: from
// 100 ms, doubling, to 5 s, jittered.
func backoff(try int) time.Duration {
	return jitter(min(100*time.Millisecond<<min(try, 10), 5*time.Second))
}

// pause waits for d, or returns ctx's error when it ends before.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
