package harness

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A Load sends requests at a fixed rate and does not wait for answers before
// it sends the next: a slow fleet cannot hide by slowing its load down.
type Load struct {
	Rate int // requests a second
	// New makes the n-th request at the moment it is sent, and what says if its
	// answer is wrong. The answer's body has been read.
	New func(n int) (*http.Request, func(*http.Response, []byte) error)
	// Excused tells whether a request under way between two times may fail,
	// because the test had killed whom it was sent to; nil for never.
	Excused func(from, to time.Time) bool
}

// Result is what came of a load.
type Result struct {
	Sent, Failed, Excused int
	Errors                []string        // the first few failures that are not excused
	Latencies             []time.Duration // of good answers, sorted
}

// Quantile returns the latency below which the share q of the answers came.
func (r Result) Quantile(q float64) time.Duration {
	if len(r.Latencies) == 0 {
		return 0
	}
	return r.Latencies[min(len(r.Latencies)-1, int(q*float64(len(r.Latencies))))]
}

// maxInFlight bounds a load's open requests: past it a request counts as
// failed, since nobody would wait that long.
const maxInFlight = 2048

// A run is a load that is running.
type run struct {
	Load
	client   *http.Client
	inFlight atomic.Int64
	wg       sync.WaitGroup
	mu       sync.Mutex
	res      Result
}

// Run sends requests until ctx ends and waits for the last answers.
func (l Load) Run(ctx context.Context) Result {
	r := &run{Load: l, client: &http.Client{
		Transport:     &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
		Timeout:       10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	defer r.client.CloseIdleConnections()
	start := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for sent := 0; ; {
		select {
		case <-ctx.Done():
			r.wg.Wait()
			r.res.Sent = sent
			slices.Sort(r.res.Latencies)
			return r.res
		case now := <-tick.C:
			for due := int(now.Sub(start).Seconds() * float64(l.Rate)); sent < due; sent++ {
				n := sent
				if r.inFlight.Add(1) > maxInFlight {
					r.inFlight.Add(-1)
					r.count(now, now, fmt.Errorf("more than %d requests open", maxInFlight))
					continue
				}
				r.wg.Go(func() {
					defer r.inFlight.Add(-1)
					from := time.Now()
					err := r.one(n)
					r.count(from, time.Now(), err)
				})
			}
		}
	}
}

func (r *run) one(n int) error {
	req, check := r.New(n)
	resp, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil {
		err = check(resp, body)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", req.Method, req.URL, err)
	}
	return nil
}

func (r *run) count(from, to time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.res.Latencies = append(r.res.Latencies, to.Sub(from))
	case r.Excused != nil && r.Excused(from, to):
		r.res.Excused++
	default:
		r.res.Failed++
		if len(r.res.Errors) < 10 {
			r.res.Errors = append(r.res.Errors, fmt.Sprintf("%s +%v: %v", from.Format("15:04:05.000"), to.Sub(from).Round(time.Millisecond), err))
		}
	}
}

// Background runs the load until stop is called, which returns its result.
// The test's end stops it, too.
func (l Load) Background(t *testing.T) (stop func() Result) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan Result, 1)
	go func() { done <- l.Run(ctx) }()
	stop = sync.OnceValue(func() Result {
		cancel()
		return <-done
	})
	t.Cleanup(func() { stop() })
	return stop
}
