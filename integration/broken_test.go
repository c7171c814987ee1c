//go:build integration

package integration

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"routerd.dev/integration/harness"
	"routerd.dev/integration/history"
)

// TestBrokenBuilds runs routerds from which one promise was taken by a build
// tag, on a small fleet and for a short time: the check must say which it is. A
// checker that finds nothing here would find nothing anywhere.
func TestBrokenBuilds(t *testing.T) {
	for _, c := range []struct {
		tag, rule, what string
		provoke         func(t *testing.T, w *harness.World)
	}{
		{"broken_barrier", "I2", "commits whoever is ready", func(*testing.T, *harness.World) {}},
		{"broken_fence", "I4", "believes that it is elected until it ends", depose},
		{"broken_swap", "I1", "switches the epoch first and the routes later", func(*testing.T, *harness.World) {}},
	} {
		t.Run(c.tag, func(t *testing.T) {
			broken := bin
			broken.RouterdPath = filepath.Join(t.TempDir(), "routerd")
			if err := harness.BuildRouterd(broken.RouterdPath, c.tag); err != nil {
				t.Fatal(err)
			}
			started := time.Now()
			s := stageOn(t, harness.NewProcesses(t, broken), broken, harness.WorldOptions{Groups: "main main main", Etcds: 1})
			c.provoke(t, s.World)
			var found []history.Violation
			for try := 0; try < 10 && !has(found, c.rule); try++ {
				// What such a fleet says to it is not what is looked at.
				if err := s.Publish("--wait", "--timeout", "5s"); err != nil {
					t.Logf("publish: %v", err)
				}
				found, _ = s.seen(t)
			}
			t.Logf("a routerd that %s: %v after %v", c.what, found, time.Since(started).Round(time.Millisecond))
			if !has(found, c.rule) {
				t.Errorf("the check did not say that %s is broken", c.rule)
			}
		})
	}
}

func has(found []history.Violation, rule string) bool {
	return slices.ContainsFunc(found, func(v history.Violation) bool { return v.Rule == rule })
}

// depose deletes the election key, as the end of its lease would, waits until
// another controller is elected, and stops that one: were it the first to
// write, the deposed one's writes would fail for another reason.
func depose(t *testing.T, w *harness.World) {
	t.Helper()
	c := w.Client(t)
	defer c.Close()
	const key = prefix + "election/leader"
	gone, err := c.Delete(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	var elected string
	harness.Until(t, 30*time.Second, "another controller is elected", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		resp, err := c.Get(ctx, key)
		if err == nil && (len(resp.Kvs) == 0 || resp.Kvs[0].CreateRevision < gone.Header.Revision) {
			err = errors.New("none is")
		}
		if err == nil {
			elected = string(resp.Kvs[0].Value)
		}
		return err
	})
	w.Down(elected)
	w.Pause(t, elected)
	t.Cleanup(func() { w.Resume(t, elected) })
}
