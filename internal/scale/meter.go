package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"routerd.dev/internal/store"
)

// What etcd says of itself, by names that hold since 3.5.
const (
	metricPuts     = "etcd_mvcc_put_total"
	metricRanges   = "etcd_mvcc_range_total"
	metricCalls    = "grpc_server_handled_total"
	metricMessages = "grpc_server_msg_received_total"
	metricSent     = "etcd_network_client_grpc_sent_bytes_total"
	metricReceived = "etcd_network_client_grpc_received_bytes_total"
	metricStored   = "etcd_debugging_mvcc_total_put_size_in_bytes"
	metricWatchers = "etcd_debugging_mvcc_watcher_total"
	metricDatabase = "etcd_mvcc_db_total_size_in_bytes"
)

// metrics are the sums of metrics over their labels.
type metrics map[string]float64

// parseMetrics reads Prometheus' text format, as far as etcd uses it.
func parseMetrics(r io.Reader) (metrics, error) {
	m := metrics{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		name, rest, labels := strings.Cut(line, "{")
		if labels {
			rest = rest[strings.LastIndexByte(rest, '}')+1:]
		} else {
			name, rest, _ = strings.Cut(line, " ")
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
		if err != nil {
			return nil, fmt.Errorf("metrics of etcd: %w in %.100q", err, line)
		}
		m[name] += v
	}
	return m, lines.Err()
}

// metrics asks every member and adds up what they say.
func (c *cluster) metrics(ctx context.Context) (metrics, error) {
	sum := metrics{}
	for _, e := range c.endpoints() {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e+"/metrics", nil)
		if err != nil {
			return nil, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, fmt.Errorf("metrics of etcd: %w", err)
		}
		m, err := parseMetrics(resp.Body)
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		for name, v := range m {
			sum[name] += v
		}
	}
	return sum, nil
}

// grown is how much a counter grew; one that is lower than before began anew
// with its process.
func grown(before, after metrics, name string) float64 {
	if after[name] < before[name] {
		return after[name]
	}
	return after[name] - before[name]
}

// A Phase is what one part of a fleet's life cost.
type Phase struct {
	Seconds float64 `json:"seconds"`

	// When instances were done with it, in milliseconds since its beginning.
	P50  float64 `json:"p50Ms,omitempty"`
	P99  float64 `json:"p99Ms,omitempty"`
	Last float64 `json:"lastMs,omitempty"`

	EtcdCPU       float64 `json:"etcdCpuSeconds"`
	EtcdPeak      float64 `json:"etcdPeakPercent"` // of a processor, over half a second
	EtcdMiB       float64 `json:"etcdPeakMiB"`
	ControllerCPU float64 `json:"controllerCpuSeconds"`
	AgentsCPU     float64 `json:"agentsCpuSeconds"`

	Puts     float64 `json:"puts"`
	Ranges   float64 `json:"ranges"`
	Calls    float64 `json:"calls"`
	Messages float64 `json:"messages"` // of clients, those on streams included
	Sent     float64 `json:"sentBytes"`
	Received float64 `json:"receivedBytes"`
	Stored   float64 `json:"storedBytes"` // keys and values that were put

	// How long etcd took to answer a linearizable read, as a further client saw it.
	AnswerP50  float64 `json:"answerP50Ms"`
	AnswerP99  float64 `json:"answerP99Ms"`
	AnswerMax  float64 `json:"answerMaxMs"`
	Unanswered int     `json:"unanswered,omitempty"`

	Views  int     `json:"controllerViews"`
	ViewMs float64 `json:"controllerViewMs"` // mean
	Lost   int     `json:"controllerLost,omitempty"`
}

// percent is etcd's share of a processor on average.
func (p Phase) percent() float64 { return 100 * p.EtcdCPU / p.Seconds }

// peakOver is the time over which etcd's peak is taken.
const peakOver = 500 * time.Millisecond

// A meter measures one phase.
type meter struct {
	r       *run
	began   time.Time
	before  metrics
	etcd    Usage
	control time.Duration
	agents  time.Duration

	stop    context.CancelFunc
	running sync.WaitGroup
	mu      sync.Mutex
	answers []float64
	p       Phase
}

// measure begins a phase.
func (r *run) measure(ctx context.Context) (*meter, error) {
	m := &meter{r: r}
	var err error
	if m.before, err = r.etcd.metrics(ctx); err != nil {
		return nil, err
	}
	if err := r.control.ask(ctx, "deeds", nil, nil); err != nil { // those before do not count
		return nil, err
	}
	if m.etcd, m.control, m.agents, err = r.usage(); err != nil {
		return nil, err
	}
	m.began = time.Now()
	background, stop := context.WithCancel(ctx)
	m.stop = stop
	m.running.Go(func() { m.sample(background) })
	m.running.Go(func() { m.probe(background) })
	return m, nil
}

// sample looks at etcd's peaks.
func (m *meter) sample(ctx context.Context) {
	const every = peakOver / 5
	type point struct {
		at  time.Time
		cpu time.Duration
	}
	var points []point
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		u, err := m.r.etcd.usage()
		now := time.Now()
		if err == nil {
			points = append(points, point{now, u.CPU})
			for len(points) > 1 && now.Sub(points[1].at) >= peakOver {
				points = points[1:]
			}
			m.mu.Lock()
			m.p.EtcdMiB = max(m.p.EtcdMiB, float64(u.RSS)/(1<<20))
			if d := now.Sub(points[0].at); d >= peakOver {
				m.p.EtcdPeak = max(m.p.EtcdPeak, 100*float64(u.CPU-points[0].cpu)/float64(d))
			}
			m.mu.Unlock()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// probe is one more client, who wants to know something every now and then.
func (m *meter) probe(ctx context.Context) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		began := time.Now()
		_, err := m.r.store.Fleet(ctx)
		took := ms(time.Since(began))
		m.mu.Lock()
		switch {
		case err == nil:
			m.answers = append(m.answers, took)
		case ctx.Err() == nil:
			m.p.Unanswered++
		}
		m.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// end ends the phase; at is when instances were done with it.
func (m *meter) end(ctx context.Context, began time.Time, at reached) (Phase, error) {
	m.stop()
	m.running.Wait()
	m.p.Seconds = time.Since(m.began).Seconds()
	etcd, control, agents, err := m.r.usage()
	if err != nil {
		return m.p, err
	}
	after, err := m.r.etcd.metrics(ctx)
	if err != nil {
		return m.p, err
	}
	var d Deeds
	if err := m.r.control.ask(ctx, "deeds", nil, &d); err != nil {
		return m.p, err
	}
	p := &m.p
	p.EtcdCPU, p.ControllerCPU, p.AgentsCPU = (etcd.CPU - m.etcd.CPU).Seconds(), (control - m.control).Seconds(), (agents - m.agents).Seconds()
	for into, name := range map[*float64]string{
		&p.Puts: metricPuts, &p.Ranges: metricRanges, &p.Calls: metricCalls, &p.Messages: metricMessages,
		&p.Sent: metricSent, &p.Received: metricReceived, &p.Stored: metricStored,
	} {
		*into = grown(m.before, after, name)
	}
	p.AnswerP50, p.AnswerP99, p.AnswerMax = quantile(m.answers, 0.5), quantile(m.answers, 0.99), quantile(m.answers, 1)
	p.Views, p.Lost = d.Views, d.Lost
	if d.Views > 0 {
		p.ViewMs = ms(d.Viewing) / float64(d.Views)
	}
	p.P50, p.P99, p.Last = spread(began, at)
	m.r.deeds = d
	return *p, nil
}

// spread says how long instances took, in milliseconds.
func spread(began time.Time, at reached) (p50, p99, last float64) {
	if len(at) == 0 {
		return 0, 0, 0
	}
	took := make([]float64, len(at))
	for i, t := range at {
		took[i] = ms(time.Unix(0, t).Sub(began))
	}
	return quantile(took, 0.5), quantile(took, 0.99), quantile(took, 1)
}

// quantile returns the smallest of vs that the part q of them does not exceed,
// 0 when there are none.
func quantile(vs []float64, q float64) float64 {
	if len(vs) == 0 {
		return 0
	}
	vs = slices.Sorted(slices.Values(vs))
	return vs[max(0, int(math.Ceil(q*float64(len(vs))))-1)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// until waits for cond, which says what is amiss, and asks it again after at
// least five times as long as it took: two thousand instances' records are not
// read for nothing.
func until(ctx context.Context, within time.Duration, what string, cond func(context.Context) error) error {
	deadline := time.Now().Add(within)
	for {
		began := time.Now()
		err := cond(ctx)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v: %w", what, within, err)
		}
		timer := time.NewTimer(max(50*time.Millisecond, 5*time.Since(began)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// whole returns nil when every instance is registered and ready and has
// reported, and nothing is under way.
func whole(s *store.Store, n int) func(context.Context) error {
	return func(ctx context.Context) error {
		v, err := s.View(ctx)
		if err != nil {
			return err
		}
		if len(v.Instances) != n || len(v.Ready[group]) != n {
			return fmt.Errorf("%d of %d instances are registered, %d said whether they are ready", len(v.Instances), n, len(v.Ready[group]))
		}
		if len(v.Reports) != n { // each writes its first one after it has joined
			return fmt.Errorf("%d of %d instances have reported", len(v.Reports), n)
		}
		if len(v.Rollouts)+len(v.Intents)+len(v.Prepares) > 0 {
			return fmt.Errorf("under way: %d rollouts, %d intents, %d prepares", len(v.Rollouts), len(v.Intents), len(v.Prepares))
		}
		for _, r := range v.Ready[group] {
			if !r.Whole() || r.Nonce != v.Groups[group].Nonce {
				return fmt.Errorf("%s is not ready: %+v", r.Instance, r)
			}
		}
		return nil
	}
}
