package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

func ref(n int64) version.Ref {
	return version.Ref{Number: n, Digest: version.DigestOf([]byte{byte(n)})}
}

// TestEvents: each transition is told once, and nothing else is.
func TestEvents(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0).UTC() }
	base := rollout.Rollout{
		Intent: rollout.Intent{ID: "r", Kind: rollout.IntentSwitch, To: ref(2), By: "ann"}, Phase: rollout.PhaseRunning,
		Plan: &rollout.Strategy{Name: "s"}, Cursor: rollout.Cursor{Step: 1},
		Origin: map[string]version.Ref{"a": ref(1), "b": ref(1)},
	}
	with := func(do func(*rollout.Rollout)) rollout.Rollout {
		r := base
		do(&r)
		return r
	}
	view := func(r ...rollout.Rollout) *rollout.View {
		return &rollout.View{Fleet: rollout.Fleet{ID: "f"}, Rollouts: r, Groups: map[string]rollout.Assignment{
			"a": {Group: "a", Stable: ref(1)}, "b": {Group: "b", Stable: ref(1)},
			"late": {Group: "late", Stable: ref(1)}, // it came after the rollout had begun
		}}
	}
	failed := &analysis.Result{Verdict: analysis.Fail, Why: "errors", Findings: []analysis.Finding{
		{Route: "m/x", Verdict: analysis.Fail, Effect: math.Inf(1)}, {Route: "m/y", Verdict: analysis.Pass},
	}}
	commit := func(id string, n int64) rollout.Assignment {
		return rollout.Assignment{Group: "a", Stable: ref(n), Rollout: id}
	}
	for name, c := range map[string]struct {
		v    *rollout.View
		ch   rollout.Change
		want []string
	}{
		"taken up":        {view(), rollout.Change{Rollouts: []rollout.Rollout{base}}, []string{"started"}},
		"refused at once": {view(), rollout.Change{Rollouts: []rollout.Rollout{with(func(r *rollout.Rollout) { r.Phase = rollout.PhaseRefused })}}, []string{"refused"}},
		"looked at":       {view(base), rollout.Change{Rollouts: []rollout.Rollout{with(func(r *rollout.Rollout) { r.Evidence = failed; r.Alive = at(9) })}}, nil},
		"next step":       {view(base), rollout.Change{Rollouts: []rollout.Rollout{with(func(r *rollout.Rollout) { r.Cursor.Step = 2 })}}, []string{"step"}},
		"held":            {view(base), rollout.Change{Rollouts: []rollout.Rollout{with(func(r *rollout.Rollout) { r.Hold = &rollout.Hold{By: "ben", Why: "lunch", Since: at(1)} })}}, []string{"held"}},
		"held still": {
			view(with(func(r *rollout.Rollout) { r.Hold = &rollout.Hold{Why: "no data", Since: at(1)} })),
			rollout.Change{Rollouts: []rollout.Rollout{with(func(r *rollout.Rollout) { r.Hold = &rollout.Hold{Why: "3 of 50", Since: at(1)} })}},
			nil,
		},
		"held anew": {
			view(with(func(r *rollout.Rollout) { r.Hold = &rollout.Hold{Why: "no data", Since: at(1)} })),
			rollout.Change{Rollouts: []rollout.Rollout{with(func(r *rollout.Rollout) { r.Hold = &rollout.Hold{Why: "lunch", Since: at(2)} })}},
			[]string{"held"},
		},
		"canary":    {view(base), rollout.Change{Rollouts: []rollout.Rollout{base}, Groups: []rollout.Assignment{commit("r", 1)}}, nil},
		"committed": {view(base), rollout.Change{Rollouts: []rollout.Rollout{base}, Groups: []rollout.Assignment{commit("r", 2)}}, []string{"committed"}},
		"another's": {view(base), rollout.Change{Rollouts: []rollout.Rollout{base}, Groups: []rollout.Assignment{commit("q", 2)}}, nil},
		"done": {
			view(base),
			rollout.Change{Rollouts: []rollout.Rollout{with(func(r *rollout.Rollout) { r.Phase = rollout.PhaseDone })}, Groups: []rollout.Assignment{commit("r", 2)}},
			[]string{"committed", "done"},
		},
		"returning": {
			view(base), rollout.Change{
				Rollouts: []rollout.Rollout{with(func(r *rollout.Rollout) {
					r.Phase, r.Return = rollout.PhaseReturning, &rollout.Return{Why: "it fails", Evidence: failed, By: "controller"}
				})},
				Groups: []rollout.Assignment{commit("r", 3)},
			}, []string{"returning"},
		},
		"back": {
			view(with(func(r *rollout.Rollout) { r.Phase = rollout.PhaseReturning })),
			rollout.Change{Rollouts: []rollout.Rollout{with(func(r *rollout.Rollout) {
				r.Phase, r.Return = rollout.PhaseRolledBack, &rollout.Return{Why: "it fails", Decided: at(10), Over: at(13)}
			})}},
			[]string{"rolled-back"},
		},
		"aborted": {view(base), rollout.Change{Rollouts: []rollout.Rollout{
			with(func(r *rollout.Rollout) { r.Phase = rollout.PhaseAborted }),
			{Intent: rollout.Intent{ID: "q", Kind: rollout.IntentAbort}, Phase: rollout.PhaseDone},
		}}, []string{"aborted"}},
		"condemned": {
			view(base),
			rollout.Change{Rollouts: []rollout.Rollout{with(func(r *rollout.Rollout) { r.Phase = rollout.PhaseRefused })}, Condemn: []rollout.Condemned{{Digest: ref(2).Digest, Why: "died"}}},
			[]string{"refused", "condemned"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, e := range eventsOf(c.v, c.ch, at(20)) {
				got = append(got, e.Event)
				if e.Fleet != "f" || e.Rollout != "r" || !e.Time.Equal(at(20)) || e.Revision != ref(2) {
					t.Errorf("event %+v", e)
				}
				if _, err := json.Marshal(e); err != nil {
					t.Error(err)
				}
				switch e.Event {
				case "committed":
					if !slices.Equal(e.Groups, []string{"a"}) {
						t.Errorf("groups %v", e.Groups)
					}
				case "step":
					if e.Step != 3 || e.Wave != 1 || e.Strategy != "s" || !slices.Equal(e.Groups, []string{"a", "b"}) {
						t.Errorf("event %+v", e)
					}
				case "returning":
					if e.Why != "it fails" || e.By != "controller" || len(e.Evidence.Failures) != 1 || e.Evidence.Failures[0].Effect != math.MaxFloat64 {
						t.Errorf("event %+v", e)
					}
				case "rolled-back":
					if e.RecoverSeconds != 3 {
						t.Errorf("recovered in %v s", e.RecoverSeconds)
					}
				case "condemned":
					if e.Why != "died" {
						t.Errorf("event %+v", e)
					}
				}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
	if !math.IsInf(failed.Findings[0].Effect, 1) {
		t.Error("the evidence was changed")
	}
}

// A hook is a webhook that keeps what it was told.
type hook struct {
	*httptest.Server
	mu     sync.Mutex
	cond   *sync.Cond
	bodies []string
	signed []string
	answer func(n int) int // status of the n-th call, from 1
}

func newHook(t *testing.T, answer func(n int) int) *hook {
	h := &hook{answer: answer}
	h.cond = sync.NewCond(&h.mu)
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		h.mu.Lock()
		h.bodies = append(h.bodies, string(b))
		h.signed = append(h.signed, r.Header.Get(SignatureHeader))
		status := h.answer(len(h.bodies))
		h.cond.Broadcast()
		h.mu.Unlock()
		if status == http.StatusFound {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(h.Close)
	return h
}

// await returns what was told when it was told so often.
func (h *hook) await(t *testing.T, n int) (bodies, signed []string) {
	t.Helper()
	late := time.AfterFunc(20*time.Second, func() { h.mu.Lock(); h.cond.Broadcast(); h.mu.Unlock() })
	defer late.Stop()
	deadline := time.Now().Add(20 * time.Second)
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.bodies) < n {
		if time.Now().After(deadline) {
			t.Fatalf("told %d times, want %d", len(h.bodies), n)
		}
		h.cond.Wait()
	}
	return slices.Clone(h.bodies), slices.Clone(h.signed)
}

// telling runs a notifier, with its counts by outcome.
func telling(t *testing.T, o NotifyOptions) (n *notifier, counts func() map[string]int64, stop func()) {
	t.Helper()
	reader := metric.NewManualReader()
	c, err := New(&script{}, Options{Notify: o, Meter: metric.NewMeterProvider(metric.WithReader(reader)).Meter("test")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { c.n.run(ctx) })
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return c.n, func() map[string]int64 { return sums(t, reader, "routerd.controller.notifications", "outcome") }, stop
}

// sums reads a counter by one of its attributes.
func sums(t *testing.T, reader *metric.ManualReader, name, by string) map[string]int64 {
	t.Helper()
	var rm metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &rm); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, sm := range rm.ScopeMetrics {
		for _, m := range sm.Metrics {
			if s, ok := m.Data.(metricdata.Sum[int64]); ok && m.Name == name {
				for _, p := range s.DataPoints {
					v, _ := p.Attributes.Value("outcome")
					if by != "outcome" {
						v, _ = p.Attributes.Value("phase")
					}
					got[v.AsString()] += p.Value
				}
			}
		}
	}
	return got
}

// TestNotify: in order, signed, again until it is taken.
func TestNotify(t *testing.T) {
	h := newHook(t, func(n int) int {
		return map[int]int{1: 500, 2: http.StatusFound}[n] + map[bool]int{true: 204}[n > 2]
	})
	key := []byte("secret")
	n, counts, stop := telling(t, NotifyOptions{URLs: []string{h.URL + "/path"}, Key: key, Backoff: time.Millisecond})
	n.put(t.Context(), Event{Event: "started", ID: "1"})
	n.put(t.Context(), Event{Event: "done", ID: "2", Why: "<ok>"})
	bodies, signed := h.await(t, 4)
	var events []string
	for i, b := range bodies {
		var e Event
		if err := json.Unmarshal([]byte(b), &e); err != nil {
			t.Fatal(err)
		}
		events = append(events, e.Event)
		unix, _, _ := strings.Cut(strings.TrimPrefix(signed[i], "t="), ",")
		sec, err := strconv.ParseInt(unix, 10, 64)
		if err != nil || signed[i] != Sign(key, time.Unix(sec, 0), []byte(b)) || time.Since(time.Unix(sec, 0)) > time.Minute {
			t.Errorf("signature %q: %v", signed[i], err)
		}
	}
	if d := cmp.Diff([]string{"started", "started", "started", "done"}, events); d != "" {
		t.Error(d)
	}
	stop()
	if d := cmp.Diff(map[string]int64{"sent": 2}, counts()); d != "" {
		t.Error(d)
	}
}

// TestSignature is by the formula that receivers are told.
func TestSignature(t *testing.T) {
	// printf '1700000000.{}' | openssl dgst -sha256 -hmac secret
	const want = "t=1700000000,v1=b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163"
	if got := Sign([]byte("secret"), time.Unix(1700000000, 0), []byte("{}")); got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
}

// TestNotifyGivesUp after five tries, and goes on with the next.
func TestNotifyGivesUp(t *testing.T) {
	h := newHook(t, func(n int) int {
		if n <= notifyTries {
			return 503
		}
		return 200
	})
	n, counts, stop := telling(t, NotifyOptions{URLs: []string{h.URL}, Backoff: time.Millisecond})
	n.put(t.Context(), Event{Event: "started"})
	n.put(t.Context(), Event{Event: "done"})
	bodies, signed := h.await(t, notifyTries+1)
	if !strings.Contains(bodies[notifyTries], `"done"`) || signed[0] != "" {
		t.Errorf("told %v, signed %q", bodies, signed[0])
	}
	stop()
	if d := cmp.Diff(map[string]int64{"failed": 1, "sent": 1}, counts()); d != "" {
		t.Error(d)
	}
}

// TestHungWebhook: what waits for it is bounded, the others are told, nobody
// waits for it.
func TestHungWebhook(t *testing.T) {
	release := make(chan struct{})
	reached := make(chan struct{}, 1)
	hung := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		select {
		case reached <- struct{}{}:
		default:
		}
		<-release
	}))
	defer hung.Close()
	defer close(release)
	good := newHook(t, func(int) int { return 200 })
	n, counts, _ := telling(t, NotifyOptions{URLs: []string{hung.URL, good.URL}, Timeout: time.Minute, Queue: 10})
	n.put(t.Context(), Event{ID: "first"})
	<-reached
	for i := range 100 {
		n.put(t.Context(), Event{ID: fmt.Sprint(i)})
		good.await(t, i+2)
	}
	if c := counts(); c["dropped"] != 90 {
		t.Errorf("counts %v", c)
	}
	left := n.doors[0].queue
	if len(left) != 10 || left[0].id != "90" || left[9].id != "99" {
		t.Errorf("%d wait, from %s", len(left), left[0].id)
	}
}

// TestLastWord: what was done last is told though the controller ends, but
// nobody waits long for it.
func TestLastWord(t *testing.T) {
	h := newHook(t, func(n int) int { return 200 })
	release := make(chan struct{})
	hung := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer hung.Close()
	defer close(release)
	n, _, stop := telling(t, NotifyOptions{URLs: []string{h.URL, hung.URL}, Timeout: time.Minute})
	for i := range 3 {
		n.put(t.Context(), Event{ID: fmt.Sprint(i)})
	}
	began := time.Now()
	stop()
	if d := time.Since(began); d > notifyGrace+5*time.Second {
		t.Errorf("it took %v to end", d)
	}
	h.await(t, 3)
}

func TestNotifyChecksItsURLs(t *testing.T) {
	for _, u := range []string{"", "nowhere", "ftp://x/y", "http://", "http://%zz"} {
		_, err := New(&script{}, Options{Notify: NotifyOptions{URLs: []string{u + "?token=s3cret"}}})
		if err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v", u, err)
		}
	}
	err := short(errors.New("x"))
	if err.Error() != "x" {
		t.Error(err)
	}
}

// TestHungWebhookDelaysNoCommit, and what is done is told, on a real fleet.
func TestHungWebhookDelaysNoCommit(t *testing.T) {
	release := make(chan struct{})
	hung := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer hung.Close()
	defer close(release)
	h := newHook(t, func(int) int { return 200 })
	f := newFleet(t)
	stop := f.control(Of(f.open()), Options{ID: "c1", Notify: NotifyOptions{URLs: []string{hung.URL, h.URL}, Timeout: 30 * time.Second}})
	f.instance("a", "main")
	var last string
	for _, word := range []string{"one", "two", "three"} {
		began := time.Now()
		rev, id := f.publish(word)
		f.await(word, all(rev, "a"))
		f.ended(id)
		if d := time.Since(began); d > 10*time.Second {
			t.Errorf("%s took %v", word, d)
		}
		last = id
	}
	var got []string
	for n := 1; len(got) == 0 || got[len(got)-1] != "done"; n++ {
		bodies, _ := h.await(t, n)
		var e Event
		if err := json.Unmarshal([]byte(bodies[n-1]), &e); err != nil {
			t.Fatal(err)
		}
		if e.Rollout == last {
			got = append(got, e.Event)
		}
	}
	if d := cmp.Diff([]string{"started", "committed", "done"}, got); d != "" {
		t.Error(d)
	}
	stop()
}

// TestActive counts by phase while it is elected, and nothing after.
func TestActive(t *testing.T) {
	reader := metric.NewManualReader()
	m, err := newMeters(metric.NewMeterProvider(metric.WithReader(reader)).Meter("test"))
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		phases []rollout.Phase
		want   map[string]int64
	}{
		{[]rollout.Phase{rollout.PhaseRunning, rollout.PhaseRunning, rollout.PhasePreparing}, map[string]int64{"running": 2, "preparing": 1}},
		{[]rollout.Phase{rollout.PhaseRunning}, map[string]int64{"running": 1, "preparing": 0}},
		{nil, map[string]int64{"running": 0, "preparing": 0}},
	} {
		var v *rollout.View
		if c.phases != nil {
			v = &rollout.View{}
			for _, p := range c.phases {
				v.Rollouts = append(v.Rollouts, rollout.Rollout{Phase: p})
			}
		}
		m.seen(t.Context(), v)
		if d := cmp.Diff(c.want, sums(t, reader, "routerd.rollout.active", "phase")); d != "" {
			t.Errorf("%d: %s", i, d)
		}
	}
}
