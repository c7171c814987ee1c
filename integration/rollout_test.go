//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"routerd.dev/integration/harness"
	"routerd.dev/internal/analysis"
	"routerd.dev/internal/rollout"
)

// A shop is a fleet whose routes are proxied to a good upstream, and from some
// revision on one of them to another.
type shop struct {
	*harness.Fleet
	etcd        *harness.Etcd
	good, other *httptest.Server
	seen        *sightings
}

// A worker answers after a time that varies by a fifth, and fails a share of
// the requests.
func worker(t *testing.T, takes time.Duration, fails float64) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if takes > 0 {
			time.Sleep(takes + time.Duration((rand.Float64()-0.5)*0.4*float64(takes))) // the work
		}
		if rand.Float64() < fails {
			http.Error(w, "out of stock", http.StatusInternalServerError)
			return
		}
		_, _ = w.Write([]byte("ok"))
	}))
	t.Cleanup(s.Close)
	return s
}

// newShop starts three etcd members and instances in the groups, and publishes
// the first revision, all of whose routes go to a good worker.
func newShop(t *testing.T, o harness.FleetOptions, takes time.Duration, fails float64, otherTakes time.Duration) *shop {
	t.Helper()
	e := harness.StartEtcd(t, bin, 3)
	s := &shop{
		etcd: e, good: worker(t, takes, 0), other: worker(t, otherTakes, fails), seen: newSightings(),
		Fleet: harness.StartFleet(t, bin, e.Endpoints, o),
	}
	(&site{Fleet: s.Fleet}).joined(t)
	s.must(t, s.routes(1, false), "publish", "-f", "-", "-m", "first", "--wait")
	return s
}

// routes is a route file. In the other revision /checkout goes to the other
// worker; n tells revisions apart that are otherwise alike.
func (s *shop) routes(n int, other bool) string {
	checkout := "good"
	if other {
		checkout = "other"
	}
	return fmt.Sprintf(`apiVersion: routerd/v1
module: shop
upstreams:
  good: {targets: [%q]}
  other: {targets: [%q]}
routes:
  - {name: cart, path: /cart, proxy: {upstream: good}}
  - {name: checkout, path: /checkout, proxy: {upstream: %s}}
  - {name: revision, path: /revision, respond: "%d"}
`, s.good.URL, s.other.URL, checkout, n)
}

func (s *shop) must(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := s.Routectl(stdin, args...)
	if err != nil {
		t.Fatalf("routectl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// strategy applies a strategy of one wave over all groups.
func (s *shop) strategy(t *testing.T, name string, steps ...string) {
	t.Helper()
	s.must(t, fmt.Sprintf("apiVersion: routerd/v1\nstrategy: %s\nwaves:\n  - groups: ['*']\n    steps:\n      - %s\n", name, strings.Join(steps, "\n      - ")),
		"strategy", "apply", "-f", "-")
}

// A rolloutRecord is what tests read of a rollout.
type rolloutRecord struct {
	ID       string
	Phase    rollout.Phase
	Why      string
	Cursor   rollout.Cursor
	Hold     *rollout.Hold
	Evidence *analysis.Result
	Return   *rollout.Return
	Alive    time.Time
	Ended    time.Time
}

// rollouts lists the fleet's rollouts, newest first.
func (s *shop) rollouts(t *testing.T) []rolloutRecord {
	t.Helper()
	var all []rolloutRecord
	if err := json.Unmarshal([]byte(s.must(t, "", "rollout", "list", "-o", "json")), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// the newest rollout, once it is as wanted.
func (s *shop) until(t *testing.T, within time.Duration, what string, is func(rolloutRecord) bool) rolloutRecord {
	t.Helper()
	var r rolloutRecord
	harness.Until(t, within, what, func() error {
		if all := s.rollouts(t); len(all) > 0 {
			r = all[0]
		}
		if !is(r) {
			return fmt.Errorf("rollout %s is %s at step %d: %s %+v", r.ID, r.Phase, r.Cursor.Step, r.Why, r.Hold)
		}
		return nil
	})
	return r
}

// sightings are what clients saw.
type sightings struct {
	mu       sync.Mutex
	answers  map[int64]int // by revision
	bad      map[int64]int // of these, 5xx
	firstBad time.Time
	last     map[int64]time.Time // answer of a revision
}

func newSightings() *sightings {
	return &sightings{answers: map[int64]int{}, bad: map[int64]int{}, last: map[int64]time.Time{}}
}

func (s *sightings) look(resp *http.Response) error {
	rev, err := strconv.ParseInt(resp.Header.Get("Routerd-Revision"), 10, 64)
	if err != nil {
		return fmt.Errorf("revision: %w (%s)", err, resp.Status)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.answers[rev]++
	s.last[rev] = now
	if resp.StatusCode >= 500 {
		s.bad[rev]++
		if s.firstBad.IsZero() {
			s.firstBad = now
		}
	}
	return nil
}

// shoppers put every instance under an open-loop load: of a hundred requests
// one is of /checkout and one of /revision. stop fails the test for every
// request without an answer.
func (s *shop) shoppers(t *testing.T, rate int) (stop func() (sent int)) {
	t.Helper()
	var stops []func() harness.Result
	for at, i := range s.Instances {
		load := harness.Load{Rate: rate / len(s.Instances), Excused: i.Excused, New: func(n int) (*http.Request, func(*http.Response, []byte) error) {
			path := "/cart"
			switch (n + at) % 100 {
			case 0:
				path = "/checkout"
			case 50:
				path = "/revision"
			}
			req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+i.HTTP+path, nil)
			if err != nil {
				panic(err) // the address is ours
			}
			req.Header.Set("X-User", fmt.Sprintf("user-%d", rand.IntN(20000)))
			return req, func(resp *http.Response, _ []byte) error { return s.seen.look(resp) }
		}}
		stops = append(stops, load.Background(t))
	}
	return func() (sent int) {
		t.Helper()
		for n, stop := range stops {
			res := stop()
			sent += res.Sent
			if res.Failed > 0 {
				t.Errorf("%s: %d of %d requests had no answer: %s", s.Instances[n].Instance, res.Failed, res.Sent, strings.Join(res.Errors, "\n\t"))
			}
		}
		return sent
	}
}

const shopRate = 2000 // requests a second, all instances together

// TestFailingCandidateGoesBack: the candidate gets a quarter of the clients;
// three percent of its requests on one changed route, which has a hundredth of
// the traffic, fail. The fleet must notice and go back by itself, and no switch
// may lose a request.
func TestFailingCandidateGoesBack(t *testing.T) {
	s := newShop(t, harness.FleetOptions{Groups: []string{"main", "main", "main", "main", "main"}, Controllers: 3}, 0, 0.03, 0)
	s.goesBack(t, "errors")
}

// TestSlowerCandidateGoesBack: the changed route takes 30 % longer.
func TestSlowerCandidateGoesBack(t *testing.T) {
	s := newShop(t, harness.FleetOptions{Groups: []string{"main", "main", "main", "main", "main"}, Controllers: 3}, 10*time.Millisecond, 0, 13*time.Millisecond)
	s.goesBack(t, "latency")
}

func (s *shop) goesBack(t *testing.T, metric string) {
	t.Helper()
	s.strategy(t, "quarter", `share: {percent: 25, key: "header:X-User"}`, "analysis: {minSeconds: 300}", "commit: {}")
	stop := s.shoppers(t, shopRate)
	began := time.Now()
	s.must(t, s.routes(2, true), "publish", "-f", "-", "-m", "worse", "--strategy", "quarter")
	r := s.until(t, 4*time.Minute, "it went back", func(r rolloutRecord) bool { return r.Phase == rollout.PhaseRolledBack })
	sent := stop()
	if r.Return == nil || r.Return.Evidence == nil {
		t.Fatalf("no evidence is on record: %+v", r.Return)
	}
	failing := slices.ContainsFunc(r.Return.Evidence.Findings, func(f analysis.Finding) bool {
		return f.Metric == metric && f.Route == "shop/checkout" && f.Verdict == "fail"
	})
	if !failing {
		t.Errorf("the evidence does not name %s of shop/checkout: %+v", metric, r.Return.Evidence)
	}
	from := s.seen.firstBad
	if from.IsZero() {
		from = began // every answer of a slow route is a bad one
	}
	share := float64(s.seen.answers[2]) / float64(s.seen.answers[1]+s.seen.answers[2])
	t.Logf("%s: %s", metric, r.Return.Why)
	t.Logf("%d requests, none without an answer; the candidate answered %d (%.1f %% of all), %d of them with a 5xx",
		sent, s.seen.answers[2], 100*share, s.seen.bad[2])
	t.Logf("first bad answer → verdict %v → commit %v → last answer of the candidate %v",
		r.Return.Decided.Sub(from).Round(time.Millisecond), r.Return.Committed.Sub(r.Return.Decided).Round(time.Millisecond),
		s.seen.last[2].Sub(r.Return.Committed).Round(time.Millisecond))
	t.Logf("first bad answer → last instance back: %v", s.seen.last[2].Sub(from).Round(time.Millisecond))
	if s.seen.bad[1] > 0 {
		t.Errorf("stable answered %d requests with a 5xx", s.seen.bad[1])
	}
	s.compositionOf(t, 1)
}

// compositionOf fails unless the fleet serves revision and publishing composes
// on it.
func (s *shop) compositionOf(t *testing.T, revision int64) {
	t.Helper()
	harness.Until(t, 20*time.Second, fmt.Sprintf("every instance serves revision %d", revision), func() error {
		st, err := s.Status()
		if err != nil {
			return err
		}
		if st.Target.Number != revision {
			return fmt.Errorf("target is %d", st.Target.Number)
		}
		for _, i := range s.Instances {
			is, err := i.Status()
			if err != nil {
				return err
			}
			if is.Serving == nil || is.Serving.Revision != revision || is.Serving.Candidate != nil {
				return fmt.Errorf("%s serves %+v", i.Instance, is.Serving)
			}
		}
		return nil
	})
}

// TestNoTrafficHolds: an analysis without requests neither passes nor fails.
func TestNoTrafficHolds(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newShop(t, harness.FleetOptions{Groups: []string{"main", "main"}, Controllers: 1}, 0, 0, 0)
	s.strategy(t, "brief", `share: {percent: 25, key: "header:X-User"}`, "analysis: {minSeconds: 1}", "commit: {}")
	s.must(t, s.routes(2, true), "publish", "-f", "-", "-m", "idle", "--strategy", "brief")
	r := s.until(t, 30*time.Second, "it holds", func(r rolloutRecord) bool { return r.Hold != nil })
	if r.Evidence == nil || r.Evidence.Verdict != "inconclusive" {
		t.Errorf("evidence %+v", r.Evidence)
	}
	t.Logf("held: %s", r.Hold.Why)
	s.must(t, "", "rollout", "promote")
	s.until(t, 30*time.Second, "it is done once promoted", func(r rolloutRecord) bool { return r.Phase == rollout.PhaseDone })
	s.compositionOf(t, 2)
}

// TestShareByKey: ten percent of the keys get the candidate, the same on every
// instance; and none goes back while the share grows and instances come and go.
func TestShareByKey(t *testing.T) {
	s := newShop(t, harness.FleetOptions{Groups: []string{"main", "main", "main"}, Controllers: 2}, 0, 0, 0)
	grow := []string{}
	for _, p := range []string{"1", "5", "10", "25", "100"} {
		grow = append(grow, `share: {percent: `+p+`, key: "header:X-User"}`, "pause: {approval: true, unjudged: true}")
	}
	s.strategy(t, "grow", append(grow, "commit: {}")...)
	s.must(t, s.routes(2, false), "publish", "-f", "-", "-m", "second", "--strategy", "grow")
	had := map[string]bool{}
	keys := make([]string, 10000)
	for i := range keys {
		keys[i] = fmt.Sprintf("user-%d", i)
	}
	for n, percent := range []float64{1, 5, 10, 25, 100} {
		s.until(t, 30*time.Second, fmt.Sprintf("it waits at %v %%", percent), func(r rolloutRecord) bool { return r.Phase == rollout.PhaseRunning && r.Cursor.Step == 2*n+1 })
		if n == 2 { // one leaves and comes back
			i := s.Instances[2]
			i.Crash()
			i.Start()
			(&site{Fleet: s.Fleet}).untilServes(t, i)
		}
		has := s.askAll(t, keys)
		for k := range had {
			if !has[k] {
				t.Errorf("%s had the candidate and lost it at %v %%", k, percent)
			}
		}
		p := float64(len(has)) / float64(len(keys))
		low, high := wilson(len(has), len(keys))
		t.Logf("wanted %v %%: measured %.2f %%, interval %.2f to %.2f", percent, 100*p, 100*low, 100*high)
		if want := percent / 100; want < low || want > high {
			t.Errorf("wanted %v, the interval is %v to %v", want, low, high)
		}
		had = has
		s.must(t, "", "rollout", "approve")
	}
	s.until(t, 30*time.Second, "it is done", func(r rolloutRecord) bool { return r.Phase == rollout.PhaseDone })
}

// askAll tells which keys get revision 2, and fails when instances differ.
func (s *shop) askAll(t *testing.T, keys []string) map[string]bool {
	t.Helper()
	has := make([]map[string]bool, len(s.Instances))
	var wg sync.WaitGroup
	for n, i := range s.Instances {
		has[n] = map[string]bool{}
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}}
			defer client.CloseIdleConnections()
			for _, k := range keys {
				req, err := http.NewRequest(http.MethodGet, "http://"+i.HTTP+"/revision", nil)
				if err != nil {
					panic(err) // the address is ours
				}
				req.Header.Set("X-User", k)
				resp, err := client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				if resp.Body.Close(); resp.Header.Get("Routerd-Revision") == "2" {
					has[n][k] = true
				}
			}
		})
	}
	wg.Wait()
	for n := range has {
		if !maps.Equal(has[0], has[n]) {
			t.Errorf("%s and %s do not agree on who gets the candidate: %d and %d keys", s.Instances[0].Instance, s.Instances[n].Instance, len(has[0]), len(has[n]))
		}
	}
	return has[0]
}

// wilson is the score interval of a share (Wilson, 1927). Each run has another
// salt, so it is wide: a share that is right is out of it once in more than a
// million times.
func wilson(hits, of int) (low, high float64) {
	const z = 5
	n, p := float64(of), float64(hits)/float64(of)
	mid := (p + z*z/(2*n)) / (1 + z*z/n)
	half := z / (1 + z*z/n) * math.Sqrt(p*(1-p)/n+z*z/(4*n*n))
	return mid - half, min(1, mid+half)
}
