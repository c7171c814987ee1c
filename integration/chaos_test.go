//go:build integration

package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"routerd.dev/integration/harness"
)

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
