//go:build integration

package integration

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"routerd.dev/integration/harness"
	"routerd.dev/internal/rollout"
)

// leader is the instance that is the controller now.
func (s *shop) leader(t *testing.T) *harness.Instance {
	t.Helper()
	return (&site{Fleet: s.Fleet}).victim(t, "controller", 0)
}

// TestControllerKilledInEveryPhase kills the controller when a rollout has come
// to each of its phases. The next one goes on where it was, and no request fails
// but those to the killed instance while it was down.
func TestControllerKilledInEveryPhase(t *testing.T) {
	t.Parallel() // it mostly waits
	// The controllers are in a group of their own: killing a canary is another test's.
	s := newShop(t, harness.FleetOptions{Groups: []string{"control", "control", "main", "main", "main"}, Controllers: 2, Args: []string{"--lease-ttl", "3s"}}, 0, 0, 0)
	s.must(t, `apiVersion: routerd/v1
strategy: long
waves:
  - groups: [main]
    steps:
      - canary: {instances: 1}
      - pause: {for: 1s, unjudged: true}
      - share: {percent: 50, key: "header:X-User"}
      - analysis: {minSeconds: 2, minRequests: 50, minRouteRequests: 5}
      - pause: {approval: true, unjudged: true}
      - commit: {}
      - bake: {for: 3s}
  - groups: [control]
    steps: [{commit: {}}]
`, "strategy", "apply", "-f", "-")
	past := func(step int) func(rolloutRecord) bool {
		return func(r rolloutRecord) bool { return r.Cursor.Wave > 0 || r.Cursor.Step >= step }
	}
	at := map[string]func(rolloutRecord) bool{
		"preparing":  func(r rolloutRecord) bool { return r.Phase != "" },
		"canary":     past(1),
		"share":      past(3),
		"approval":   past(4),
		"bake":       past(6),
		"going back": func(r rolloutRecord) bool { return r.Phase == rollout.PhaseReturning || r.Phase.Final() },
	}
	stop := s.shoppers(t, 400)
	revision := 1
	phases := []string{"preparing", "canary", "share", "approval", "bake", "going back"}
	if *shortForm { // scenarios kill it in other phases
		phases = []string{"canary", "bake", "going back"}
	}
	for _, phase := range phases {
		revision++
		s.must(t, s.routes(revision, revision%2 == 0), "publish", "-f", "-", "-m", phase, "--strategy", "long")
		approve := phase == "bake"
		if approve || phase == "going back" {
			s.until(t, 60*time.Second, "it waits for an approval", func(r rolloutRecord) bool {
				return r.Cursor.Wave == 0 && r.Cursor.Step == 4 && r.Phase == rollout.PhaseRunning
			})
			if approve {
				s.must(t, "", "rollout", "approve")
			} else {
				s.must(t, "", "rollout", "abort")
			}
		}
		s.until(t, 60*time.Second, "it is at "+phase, at[phase])
		i := s.leader(t)
		i.Crash()
		i.Start()
		killed := time.Now()
		(&site{Fleet: s.Fleet}).untilServes(t, i)
		want := rollout.PhaseDone
		if phase == "going back" {
			want = rollout.PhaseRolledBack
		}
		approved := approve
		r := s.until(t, 90*time.Second, "it ends", func(r rolloutRecord) bool {
			if !approved && !r.Phase.Final() && r.Cursor.Wave == 0 && r.Cursor.Step == 4 && phase != "going back" {
				s.must(t, "", "rollout", "approve")
				approved = true
			}
			return r.Phase.Final()
		})
		if r.Phase != want {
			t.Errorf("killed at %s: the rollout ended as %s: %s", phase, r.Phase, r.Why)
		}
		t.Logf("controller killed at %s: it ended as %s %v later: %s", phase, r.Phase, r.Ended.Sub(killed).Round(time.Millisecond), r.Why)
		serves := int64(revision)
		if want == rollout.PhaseRolledBack {
			serves--
		}
		s.compositionOf(t, serves)
	}
	t.Logf("%d requests", stop())
}

// TestNoControllerForLong: all controllers are gone for longer than the
// strategy's grace. With hold, the next goes on; with rollback, it goes back.
func TestNoControllerForLong(t *testing.T) {
	t.Parallel() // it mostly waits
	for _, policy := range []string{"hold", "rollback"} {
		t.Run(policy, func(t *testing.T) {
			s := newShop(t, harness.FleetOptions{Groups: []string{"main", "main", "main"}, Controllers: 1, Args: []string{"--lease-ttl", "3s"}}, 0, 0, 0)
			s.must(t, "apiVersion: routerd/v1\nstrategy: alone\nonControllerLoss: "+policy+`
controllerGrace: 5s
waves:
  - groups: ['*']
    steps:
      - share: {percent: 50, key: "header:X-User"}
      - pause: {approval: true, unjudged: true}
      - commit: {}
`, "strategy", "apply", "-f", "-")
			s.must(t, s.routes(2, false), "publish", "-f", "-", "-m", "second", "--strategy", "alone")
			s.until(t, 30*time.Second, "it waits", func(r rolloutRecord) bool { return r.Cursor.Step == 1 })
			i := s.leader(t)
			i.Crash()
			r := s.rollouts(t)[0]
			harness.Until(t, 30*time.Second, "the rollout was left alone for long enough", func() error {
				if left := time.Until(r.Alive); left > 0 {
					return fmt.Errorf("%v left", left)
				}
				return nil
			})
			i.Start()
			(&site{Fleet: s.Fleet}).untilServes(t, i)
			if policy == "rollback" {
				s.until(t, 30*time.Second, "it went back", func(r rolloutRecord) bool { return r.Phase == rollout.PhaseRolledBack })
				s.compositionOf(t, 1)
				return
			}
			s.until(t, 30*time.Second, "it is held", func(r rolloutRecord) bool { return r.Hold != nil && r.Hold.Operator })
			s.must(t, "", "rollout", "approve")
			s.must(t, "", "rollout", "resume")
			s.until(t, 30*time.Second, "it is done", func(r rolloutRecord) bool { return r.Phase == rollout.PhaseDone })
			s.compositionOf(t, 2)
		})
	}
}

// TestStoppedControllerWritesNothing stops the controller in the middle of a
// rollout for longer than its lease, and wakes it when another has taken over (I4).
func TestStoppedControllerWritesNothing(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newShop(t, harness.FleetOptions{Groups: []string{"main", "main", "main"}, Controllers: 3, Args: []string{"--lease-ttl", "3s"}}, 0, 0, 0)
	h := recordOf(t, s.Endpoints)
	s.strategy(t, "slow", `share: {percent: 50, key: "header:X-User"}`, "pause: {approval: true, unjudged: true}", "commit: {}")
	s.must(t, s.routes(2, false), "publish", "-f", "-", "-m", "second", "--strategy", "slow")
	s.until(t, 30*time.Second, "it waits", func(r rolloutRecord) bool { return r.Cursor.Step == 1 })
	old := s.leader(t)
	old.Signal(syscall.SIGSTOP)
	harness.Until(t, 60*time.Second, "another controller is elected", func() error {
		st, err := s.Status()
		if err == nil && (st.Controller == "" || st.Controller == old.Instance) {
			err = fmt.Errorf("it is %q", st.Controller)
		}
		return err
	})
	s.must(t, "", "rollout", "approve")
	old.Signal(syscall.SIGCONT)
	s.until(t, 60*time.Second, "it is done", func(r rolloutRecord) bool { return r.Phase == rollout.PhaseDone })
	s.compositionOf(t, 2)
	h.complete(t)
	if terms := h.terms(); !slices.Contains(terms[:max(0, len(terms)-1)], old.Instance) {
		t.Fatalf("the terms were of %v, want of %s and then of another", terms, old.Instance)
	}
	t.Logf("%d changes of controllers held against I4", obeyed(t, h, s.Instances).Fenced)
}

// terms names who was elected, in order.
func (h *recording) terms() (out []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.writes {
		if w.Key == "election/leader" && w.Version == 1 {
			out = append(out, string(w.Value))
		}
	}
	return out
}

// TestClientsDoNotGoBackInTime: the etcd of one instance falls silent, and the
// fleet changes to and fro inside its set, which needs nothing of that
// instance. Clients move between all instances at random. Without a token they see
// older epochs again; with it they do not.
func TestClientsDoNotGoBackInTime(t *testing.T) {
	t.Parallel() // it mostly waits
	e := harness.StartEtcd(t, bin, 3)
	relay := harness.StartRelay(t, e.Endpoints[0])
	key := filepath.Join(t.TempDir(), "token.key")
	if err := os.WriteFile(key, []byte(strings.Repeat("0123456789abcdef", 4)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &shop{good: worker(t, 0, 0), other: worker(t, 0, 0), Fleet: harness.StartFleet(t, bin, e.Endpoints, harness.FleetOptions{
		Groups: []string{"main", "main", "main"}, Controllers: 2, Args: []string{"--lease-ttl", "60s", "--token-key", key},
		Via: func(n int) []string {
			if n == 2 {
				return []string{relay.Addr}
			}
			return e.Endpoints
		},
	})}
	(&site{Fleet: s.Fleet}).joined(t)
	for n := 1; n <= 2; n++ {
		s.must(t, s.routes(n, false), "publish", "-f", "-", "-m", strconv.Itoa(n), "--wait")
	}
	for _, with := range []bool{false, true} {
		stop := s.wanderers(t, 20, with)
		relay.Silence()
		// Inside the set: the silent instance's ready key, under a long lease,
		// says that it holds it.
		s.must(t, "", "rollback")
		behind := func() error { // the others have moved
			for _, i := range s.Instances[:2] {
				st, err := i.Status()
				if err != nil {
					return err
				}
				if st.Serving.Epoch <= s.epochOf(t, s.Instances[2]) {
					return fmt.Errorf("%s is at epoch %d", i.Instance, st.Serving.Epoch)
				}
			}
			return nil
		}
		harness.Until(t, 20*time.Second, "two instances have moved, one has not", behind)
		// Some thousand requests while one is behind.
		moved := time.Now()
		harness.Until(t, 20*time.Second, "clients have wandered", func() error {
			if time.Since(moved) < 3*time.Second {
				return fmt.Errorf("not for long enough")
			}
			return behind()
		})
		relay.Resume()
		s.converged(t)
		steps, back := stop()
		t.Logf("token %v: %d moves between instances, %d steps back in time", with, steps, back)
		switch {
		case with && back > 0:
			t.Errorf("with the token clients went back %d times", back)
		case !with && back == 0:
			t.Error("without the token nobody went back: this test shows nothing")
		}
		s.must(t, "", "switch", "2", "--wait")
		s.converged(t)
	}
}

func (s *shop) epochOf(t *testing.T, i *harness.Instance) int64 {
	t.Helper()
	st, err := i.Status()
	if err != nil {
		t.Fatal(err)
	}
	return st.Serving.Epoch
}

func (s *shop) converged(t *testing.T) {
	t.Helper()
	harness.Until(t, 60*time.Second, "the fleet is one", s.Converged)
}

// wanderers are clients each of whose requests goes to another instance. stop
// tells how many moves there were, and how many led to an earlier epoch.
func (s *shop) wanderers(t *testing.T, clients int, token bool) (stop func() (moves, back int)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var wg sync.WaitGroup
	var moves, back int
	for range clients {
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}, Timeout: 10 * time.Second}
			defer client.CloseIdleConnections()
			var held string
			var epoch int64
			for ctx.Err() == nil {
				i := s.Instances[rand.IntN(len(s.Instances))]
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+i.HTTP+"/revision", nil)
				if err != nil {
					panic(err) // the address is ours
				}
				if token && held != "" {
					req.Header.Set("Routerd-Token", held)
				}
				resp, err := client.Do(req)
				if err != nil {
					if ctx.Err() == nil {
						t.Error(err)
					}
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				at, err := strconv.ParseInt(resp.Header.Get("Routerd-Epoch"), 10, 64)
				if err != nil {
					t.Error(err)
					return
				}
				if got := resp.Header.Get("Routerd-Token"); got != "" {
					held = got
				}
				mu.Lock()
				moves++
				if at < epoch {
					back++
				}
				mu.Unlock()
				epoch = max(epoch, at)
				time.Sleep(time.Millisecond) // a client's pace
			}
		})
	}
	end := sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	t.Cleanup(end)
	return func() (int, int) {
		end()
		return moves, back
	}
}

// TestPinWithoutEtcd is the break-glass: with all of etcd gone, an operator pins
// one instance to the revision before, and takes the pin off again.
func TestPinWithoutEtcd(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newShop(t, harness.FleetOptions{Groups: []string{"main", "main"}, Controllers: 1}, 0, 0, 0)
	s.must(t, s.routes(2, false), "publish", "-f", "-", "-m", "second", "--wait")
	i := s.Instances[0]
	ctl := func(args ...string) {
		t.Helper()
		out, err := harness.Ctl(s.Bin, i, args...)
		if err != nil {
			t.Fatalf("routerd ctl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	serves := func(i *harness.Instance, revision string) error {
		resp, err := http.Get("http://" + i.HTTP + "/revision")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if got := resp.Header.Get("Routerd-Revision"); got != revision {
			return fmt.Errorf("it serves revision %s", got)
		}
		return nil
	}
	now, err := i.Ready()
	if err != nil {
		t.Fatal(err)
	}
	untilOnDisk(t, i, now.Epoch) // what it is killed before it remembers it cannot start from
	for _, m := range s.etcd.Members {
		m.Kill()
	}
	ctl("pin", "1")
	harness.Until(t, 10*time.Second, "the pinned instance serves revision 1", func() error { return serves(i, "1") })
	if err := serves(s.Instances[1], "2"); err != nil {
		t.Errorf("the other instance: %v", err)
	}
	i.Crash()
	i.Start()
	(&site{Fleet: s.Fleet}).untilServes(t, i)
	if err := serves(i, "1"); err != nil {
		t.Errorf("after a restart without etcd: %v", err)
	}
	for _, m := range s.etcd.Members {
		m.Start()
	}
	harness.Until(t, 60*time.Second, "status says that it is pinned", func() error {
		out, err := s.Routectl("", "status")
		if err == nil && !strings.Contains(out, "PINNED") {
			err = fmt.Errorf("it does not:\n%s", out)
		}
		return err
	})
	ctl("unpin")
	harness.Until(t, 10*time.Second, "it serves what the fleet does", func() error { return serves(i, "2") })
}
