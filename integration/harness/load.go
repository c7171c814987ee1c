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

func get(url string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}

// A Load sends requests at a fixed rate and does not wait for answers before
// it sends the next: a slow fleet cannot hide by slowing its load down.
type Load struct {
	Rate  int                                              // requests a second
	Next  func(n int) *http.Request                        // the n-th request
	Check func(*http.Response, []byte) error               // what is wrong with an answer
	Fail  func(req *http.Request, at time.Time, err error) // told of every failure; may be nil
}

// Result is what came of a load.
type Result struct {
	Sent, Failed int
	Errors       []string // the first few
	Latencies    []time.Duration
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

// Run sends requests until ctx ends and waits for the last answers.
func (l Load) Run(ctx context.Context) Result {
	client := &http.Client{
		Transport:     &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
		Timeout:       10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	defer client.CloseIdleConnections()
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		res      Result
		inFlight atomic.Int64
	)
	fail := func(req *http.Request, at time.Time, err error) {
		mu.Lock()
		defer mu.Unlock()
		res.Failed++
		if len(res.Errors) < 10 {
			res.Errors = append(res.Errors, fmt.Sprintf("%s %s %s: %v", at.Format("15:04:05.000"), req.Method, req.URL, err))
		}
		if l.Fail != nil {
			l.Fail(req, at, err)
		}
	}
	one := func(n int) {
		defer wg.Done()
		defer inFlight.Add(-1)
		req, start := l.Next(n), time.Now()
		err := func() error {
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				return err
			}
			return l.Check(resp, body)
		}()
		took := time.Since(start)
		if err != nil {
			fail(req, start, err)
			return
		}
		mu.Lock()
		res.Latencies = append(res.Latencies, took)
		mu.Unlock()
	}
	start := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for sent := 0; ; {
		select {
		case <-ctx.Done():
			wg.Wait()
			res.Sent = sent
			slices.Sort(res.Latencies)
			return res
		case now := <-tick.C:
			for due := int(now.Sub(start).Seconds() * float64(l.Rate)); sent < due; sent++ {
				if inFlight.Add(1) > maxInFlight {
					inFlight.Add(-1)
					fail(l.Next(sent), now, fmt.Errorf("more than %d requests open", maxInFlight))
					continue
				}
				wg.Add(1)
				go one(sent)
			}
		}
	}
}

// Background runs the load until stop is called, which returns its result.
func (l Load) Background(t *testing.T) (stop func() Result) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan Result, 1)
	go func() { done <- l.Run(ctx) }()
	var once sync.Once
	var res Result
	stop = func() Result {
		once.Do(func() { cancel(); res = <-done })
		return res
	}
	t.Cleanup(func() { stop() })
	return stop
}
