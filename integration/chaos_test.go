//go:build integration

package integration

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"routerd.dev/integration/harness"
	"routerd.dev/internal/agent"
)

// TestConvergesWhateverIsKilled kills, again and again, at a random moment of
// a publish, the instance that is the controller, another instance or an etcd
// member, with SIGKILL, and starts it again. The publish may fail; but each time
// the fleet must come to serve one revision, which is the target, and no request
// to an instance that was not killed may fail.
func TestConvergesWhateverIsKilled(t *testing.T) {
	rng := random(t)
	s := newSite(t, "--lease-ttl", "3s", "--join-timeout", "3s")
	h, complete := record(t, s.Endpoints)
	stop := s.load(t, 50)
	struck := map[string]time.Time{}
	away, one := map[string][]time.Duration{}, map[string][]time.Duration{}
	for n := range *strikes {
		kind := []string{"controller", "instance", "etcd"}[n%3]
		before, after := time.Duration(rng.IntN(250))*time.Millisecond, time.Duration(rng.IntN(1000))*time.Millisecond
		published := make(chan error, 1)
		start := time.Now()
		go func() { published <- s.publish("--wait", "--timeout", "20s") }()
		time.Sleep(before) // the moment is what varies
		switch kind {
		case "etcd":
			m := s.etcd.Members[rng.IntN(len(s.etcd.Members))]
			t.Logf("strike %d: %s after %v, for %v", n, m.Name, before, after)
			m.Kill()
			time.Sleep(after)
			m.Start()
		default:
			i := s.victim(t, kind, rng.IntN(len(s.Instances)))
			// By design two ends within the trial of a digest put it under
			// quarantine, and the instance serves another than the fleet.
			if again := time.Until(struck[i.Instance].Add(12 * time.Second)); again > 0 {
				time.Sleep(again)
			}
			struck[i.Instance] = time.Now()
			i.Crash()
			time.Sleep(after)
			i.Start()
			d := s.untilServes(t, i)
			away[kind] = append(away[kind], d)
			t.Logf("strike %d: %s (%s) after %v, for %v, served again %v after its start", n, i.Instance, kind, before, after, d)
		}
		if err := <-published; err != nil {
			t.Logf("strike %d: the publish under way: %v", n, err)
		}
		harness.Until(t, 30*time.Second, fmt.Sprintf("the fleet is one after strike %d", n), s.Converged)
		one[kind] = append(one[kind], time.Since(start))
	}
	s.etcd.Await(t)
	if err := s.publish("--wait"); err != nil {
		t.Errorf("after all strikes: %v", err)
	}
	for _, kind := range slices.Sorted(maps.Keys(one)) {
		t.Logf("killed %s: one again %v after the publish began in the median, %v at worst", kind, median(one[kind]), slices.Max(one[kind]).Round(time.Millisecond))
		if ds := away[kind]; len(ds) > 0 {
			t.Logf("killed %s: did not serve for %v after its start in the median, %v at worst", kind, median(ds), slices.Max(ds))
		}
	}
	stop()
	s.verdict(t)
	complete()
	commits, broken := h.commits()
	for _, b := range broken {
		t.Error(b)
	}
	t.Logf("%d commits held against I2 and I3", len(commits))
}

// TestKilledAtItsStart kills an instance, and the one started in its place
// before it has joined. The name is its own all the while and nobody else can have
// it, so the third is back at once and waits for no lease of those before it.
func TestKilledAtItsStart(t *testing.T) {
	s := newSite(t)
	i := s.Instances[4]
	s.proven(t, i)
	stop := s.load(t, 20)
	for lived := 5 * time.Millisecond; lived <= 50*time.Millisecond; lived += 5 * time.Millisecond {
		i.Crash()
		i.Start()
		time.Sleep(lived) // the moment is what varies
		i.Kill()
		i.Start()
		d := s.untilServes(t, i)
		t.Logf("killed, and killed again %v after its start: served %v after its third start", lived, d)
		if d > 5*time.Second {
			t.Errorf("killed again %v after its start: did not serve for %v", lived, d)
		}
		harness.Until(t, 30*time.Second, "the fleet is one", s.Converged)
	}
	stop()
	s.verdict(t)
}

// proven waits until an instance has served what it serves for so long that two
// kills do not put it under quarantine.
func (s *site) proven(t *testing.T, i *harness.Instance) {
	t.Helper()
	harness.Until(t, 30*time.Second, i.Instance+" has proven its digest", func() error {
		st, err := i.Status()
		if err != nil {
			return err
		}
		trial := filepath.Join(i.StateDir, ".trials", i.Group, st.Serving.Digest.String())
		if _, err := os.Stat(trial); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is there (%v)", trial, err)
		}
		// The trial is closed a moment before the disk knows that it ended well.
		seen, err := os.ReadFile(filepath.Join(i.StateDir, st.Fleet, i.Group, "seen"))
		if _, proven, ok := strings.Cut(string(seen), `"proven":[`); err != nil || !ok || !strings.Contains(proven, st.Serving.Digest.String()) {
			return fmt.Errorf("the disk does not say so yet (%v)", err)
		}
		return nil
	})
}

// TestLostStateDirectory: an instance that was killed and comes back with an
// empty disk cannot prove that the name is its own: it waits for its old lease,
// and no longer.
func TestLostStateDirectory(t *testing.T) {
	const ttl = 4 * time.Second
	s := newSite(t, "--lease-ttl", ttl.String())
	i := s.Instances[3]
	stop := s.load(t, 20)
	i.Crash()
	if err := os.RemoveAll(i.StateDir); err != nil {
		t.Fatal(err)
	}
	i.Start()
	d := s.untilServes(t, i)
	t.Logf("served %v after its start, with a lease of %v", d, ttl)
	if d > ttl+4*time.Second {
		t.Errorf("did not serve for %v, its lease was %v", d, ttl)
	}
	harness.Until(t, 30*time.Second, "the fleet is one", s.Converged)
	stop()
	s.verdict(t)
}

// victim is the instance that is the controller, or one that is not.
func (s *site) victim(t *testing.T, kind string, choice int) *harness.Instance {
	t.Helper()
	var leader string
	harness.Until(t, 20*time.Second, "a controller is elected", func() error {
		st, err := s.Status()
		if err == nil && st.Controller == "" {
			err = fmt.Errorf("nobody is")
		}
		leader = st.Controller
		return err
	})
	for n := range s.Instances {
		i := s.Instances[(choice+n)%len(s.Instances)]
		if (i.Instance == leader) == (kind == "controller") {
			return i
		}
	}
	t.Fatalf("no instance is %s", leader)
	return nil
}

// untilServes waits until a started instance is ready, and returns how long
// that took.
func (s *site) untilServes(t *testing.T, i *harness.Instance) time.Duration {
	t.Helper()
	start := time.Now()
	harness.Until(t, 40*time.Second, i.Instance+" serves again", func() error {
		_, err := i.Ready()
		return err
	})
	i.Back()
	return time.Since(start).Round(time.Millisecond)
}

// TestI5_ServesAndRestartsWithoutEtcd kills all of etcd under load, restarts
// every routerd, and brings etcd back: requests are answered as before, from
// disk, and the fleet catches up.
func TestI5_ServesAndRestartsWithoutEtcd(t *testing.T) {
	s := newSite(t, "--lease-ttl", "3s", "--join-timeout", "1s")
	for range 3 {
		if err := s.publish("--wait"); err != nil {
			t.Fatal(err)
		}
	}
	stop := s.load(t, 50)
	epochs := map[string]int64{}
	for _, i := range s.Instances {
		r, err := i.Ready()
		if err != nil {
			t.Fatal(err)
		}
		epochs[i.Instance] = r.Epoch
	}
	for _, m := range s.etcd.Members {
		m.Kill()
	}
	for _, i := range s.Instances {
		harness.Until(t, 30*time.Second, i.Instance+" says that it is stale", func() error {
			st, err := i.Status()
			if err == nil && (st.Stale == "" || st.Etcd.Reachable) {
				err = fmt.Errorf("stale: %q, etcd: %+v", st.Stale, st.Etcd)
			}
			return err
		})
	}
	t.Log("etcd is gone and every instance says so")
	for n, i := range s.Instances {
		if n%2 == 0 {
			i.Crash()
		} else {
			i.Down()
			i.Signal(syscall.SIGTERM)
			if err := i.Exit(20 * time.Second); err != nil {
				t.Errorf("%s ended with %v", i.Instance, err)
			}
		}
		i.Start()
		d := s.untilServes(t, i)
		r, err := i.Ready()
		switch {
		case err != nil:
			t.Error(err)
		case r.Source != agent.SourceDisk || r.Epoch != epochs[i.Instance]:
			t.Errorf("%s serves epoch %d from %s, want epoch %d from disk", i.Instance, r.Epoch, r.Source, epochs[i.Instance])
		}
		t.Logf("%s serves from disk %v after its start", i.Instance, d)
	}
	for _, i := range s.Instances {
		resp, err := http.Get("http://" + i.HTTP + "/own")
		if err != nil {
			t.Error(err)
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := fmt.Sprintf("%d /own", s.mark); err != nil || strings.TrimSpace(string(body)) != want {
			t.Errorf("%s answers %q (%v), want %q", i.Instance, body, err, want)
		}
	}
	for _, m := range s.etcd.Members {
		m.Start()
	}
	s.etcd.Await(t)
	start := time.Now()
	harness.Until(t, 60*time.Second, "the fleet caught up", s.Converged)
	t.Logf("the fleet caught up %v after etcd was back", time.Since(start).Round(time.Millisecond))
	if err := s.publish("--wait"); err != nil {
		t.Error(err)
	}
	stop()
	s.verdict(t)
}
