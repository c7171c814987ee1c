//go:build integration

package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"routerd.dev/integration/harness"
)

// A site is a fleet with what it proxies to and who looks at its answers.
type site struct {
	*harness.Fleet
	etcd     *harness.Etcd
	upstream *harness.Upstream
	judge    *harness.Judge
	mark     int
}

// newSite starts three etcd members and five instances in two groups, and
// publishes a first revision once all have joined.
func newSite(t *testing.T, args ...string) *site {
	t.Helper()
	up := harness.StartUpstream(t)
	e := harness.StartEtcd(t, bin, 3)
	s := &site{
		etcd: e, upstream: up, judge: harness.NewJudge(),
		Fleet: harness.StartFleet(t, bin, e.Endpoints, harness.FleetOptions{
			Groups: []string{"main", "main", "main", "edge", "edge"}, Controllers: 3, Args: args,
		}),
	}
	s.joined(t)
	if _, err := s.Routectl(harness.Ballast(300), "publish", "-f", "-", "-m", "ballast", "--wait"); err != nil {
		t.Fatal(err)
	}
	if err := s.publish(); err != nil {
		t.Fatal(err)
	}
	harness.Until(t, 20*time.Second, "every instance serves the first revision", s.Converged)
	return s
}

// joined waits until every instance is registered.
func (s *site) joined(t *testing.T) {
	t.Helper()
	harness.Until(t, 30*time.Second, "every instance has joined", func() error {
		for _, i := range s.Instances {
			st, err := i.Status()
			if err != nil {
				return err
			}
			if !st.Joined {
				return fmt.Errorf("%s: %+v", i.Instance, st.Etcd)
			}
		}
		return nil
	})
}

// publish publishes the next mark and waits for it.
func (s *site) publish(args ...string) error {
	s.mark++
	_, err := s.Routectl(harness.Marked(s.mark, s.upstream.URL), append([]string{"publish", "-f", "-", "-m", fmt.Sprint(s.mark)}, args...)...)
	return err
}

// load puts every instance under load; stop fails the test for each request
// that failed.
func (s *site) load(t *testing.T, rate int) (stop func() (sent int)) {
	t.Helper()
	var stops []func() harness.Result
	for _, i := range s.Instances {
		stops = append(stops, s.judge.Load(i, rate).Background(t))
	}
	return func() (sent int) {
		t.Helper()
		for n, stop := range stops {
			res := stop()
			sent += res.Sent
			i := s.Instances[n]
			t.Logf("%s: %d requests, %d excused, p50 %v, p99 %v", i.Instance, res.Sent, res.Excused,
				res.Quantile(.5).Round(10*time.Microsecond), res.Quantile(.99).Round(10*time.Microsecond))
			if res.Failed > 0 {
				t.Errorf("%s: %d of %d requests failed: %s", i.Instance, res.Failed, res.Sent, strings.Join(res.Errors, "\n\t"))
			}
		}
		return sent
	}
}

// verdict fails the test for every answer that does not fit its revision; the
// history has each revision's mark as its message, also of publishes that were
// given up on.
func (s *site) verdict(t *testing.T) {
	t.Helper()
	out, err := s.Routectl("", "history", "-o", "json", "--limit", "100000")
	if err != nil {
		t.Fatal(err)
	}
	var history []struct {
		Number  int64
		Message string
	}
	if err := json.Unmarshal([]byte(out), &history); err != nil {
		t.Fatalf("history -o json: %v: %s", err, out)
	}
	for _, r := range history {
		if mark, err := strconv.Atoi(r.Message); err == nil {
			s.judge.Published(r.Number, mark)
		}
	}
	wrong, answers, revisions := s.judge.Verdict()
	t.Logf("%d answers of %d revisions looked at", answers, revisions)
	for _, w := range wrong {
		t.Errorf("I1: %s", w)
	}
}

// vitals measures every instance while nothing goes on.
func (s *site) vitals(t *testing.T) map[string]harness.Vitals {
	t.Helper()
	s.upstream.CloseClientConnections()
	all := map[string]harness.Vitals{}
	for _, i := range s.Instances {
		v, err := i.Vitals()
		if err != nil {
			t.Fatal(err)
		}
		all[i.Instance] = v
	}
	return all
}

// watchStream holds an event stream open through an instance and tells when it
// ended, which it must not, and how many events came.
func watchStream(t *testing.T, addr string) (stop func() (events int, err error)) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatalf("open an event stream: %v", err)
	}
	var events int
	ended := make(chan error, 1)
	go func() {
		defer transport.CloseIdleConnections()
		defer resp.Body.Close()
		in := bufio.NewScanner(resp.Body)
		for in.Scan() {
			if data, ok := strings.CutPrefix(in.Text(), "data: "); ok {
				if data != fmt.Sprint(events) {
					ended <- fmt.Errorf("event %d came as %q", events, data)
					return
				}
				events++
			}
		}
		if ctx.Err() == nil {
			ended <- fmt.Errorf("the stream ended after %d events: %v", events, in.Err())
			return
		}
		ended <- nil
	}()
	return func() (int, error) {
		cancel()
		err := <-ended
		return events, err
	}
}

// An upgraded connection that says a line and expects it back.
type upgraded struct {
	net.Conn
	in *bufio.Reader
}

func upgrade(t *testing.T, addr string) *upgraded {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
	u := &upgraded{Conn: c, in: bufio.NewReader(c)}
	resp, err := http.ReadResponse(u.in, nil)
	if err != nil {
		t.Fatalf("upgrade: %v", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade: %s", resp.Status)
	}
	return u
}

func (u *upgraded) echo(line string) error {
	if err := u.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(u, line); err != nil {
		return err
	}
	got, err := u.in.ReadString('\n')
	if err != nil {
		return err
	}
	if got != "echo "+line+"\n" {
		return fmt.Errorf("said %q, got %q", line, got)
	}
	return nil
}

// TestI9_ManyChangesUnderLoad publishes and rolls back many times in a row
// under load on every instance. No request may fail (I9), no answer may mix
// revisions (I1), no commit may come before all hold its set (I2), no epoch may
// fall (I3), long streams must last, and nothing may be left over.
func TestI9_ManyChangesUnderLoad(t *testing.T) {
	s := newSite(t)
	h := recordOf(t, s.Endpoints)
	for range 4 { // so that sets are as large as they will be
		if err := s.publish("--wait"); err != nil {
			t.Fatal(err)
		}
	}
	before := s.vitals(t)

	stop := s.load(t, 100)
	var streams []func() (int, error)
	var upgrades []*upgraded
	for _, i := range s.Instances {
		streams = append(streams, watchStream(t, i.HTTP))
		upgrades = append(upgrades, upgrade(t, i.HTTP))
	}
	var took, back []time.Duration
	for n := range *changes {
		start := time.Now()
		var err error
		if n%4 == 3 {
			_, err = s.Routectl("", "rollback", "--wait")
			back = append(back, time.Since(start))
		} else {
			err = s.publish("--wait")
			took = append(took, time.Since(start))
		}
		if err != nil {
			t.Fatalf("change %d: %v", n, err)
		}
		for k, u := range upgrades {
			if err := u.echo(fmt.Sprint("change ", n)); err != nil {
				t.Errorf("I9: the upgraded connection through %s after change %d: %v", s.Instances[k].Instance, n, err)
			}
		}
	}
	harness.Until(t, 10*time.Second, "every instance serves the last change", s.Converged)
	for n, stop := range streams {
		if events, err := stop(); err != nil {
			t.Errorf("I9: the event stream through %s: %v", s.Instances[n].Instance, err)
		} else if events == 0 {
			t.Errorf("the event stream through %s gave no event", s.Instances[n].Instance)
		}
		upgrades[n].Close()
	}
	sent := stop()
	t.Logf("%d changes, %d requests; routectl publish --wait took %v, rollback --wait %v in the median", *changes, sent, median(took), median(back))
	s.verdict(t)

	looked := obeyed(t, h, s.Instances)
	if looked.Commits < *changes || looked.Logs == 0 {
		t.Errorf("looked at %+v, want at least %d commits", looked, *changes)
	}
	t.Logf("%d commits and %d switches held against the logs", looked.Commits, looked.Logs)

	harness.Until(t, 30*time.Second, "everything is back at the baseline", func() error {
		for name, now := range s.vitals(t) {
			was := before[name]
			if now.Goroutines > was.Goroutines+5 || now.Descriptors > was.Descriptors+4 || now.Heap > was.Heap+was.Heap/5+2<<20 {
				return fmt.Errorf("%s: %v, before %v", name, now, was)
			}
		}
		return nil
	})
	after := s.vitals(t)
	for _, i := range s.Instances {
		t.Logf("%s: %v; before: %v", i.Instance, after[i.Instance], before[i.Instance])
	}
}
