//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"routerd.dev/integration/harness"
	"routerd.dev/internal/rollout"
)

const prefix = "/routerd/"

// A history is every write to the fleet's records, in etcd's own order. It
// is what can be proven about order across processes: etcd's revisions have no
// skew.
type history struct {
	mu     sync.Mutex
	writes []*clientv3.Event
	at     int64
	err    error
}

// record follows the records from the first one on until stop is called, which
// waits until everything written so far was seen.
func record(t *testing.T, endpoints []string) (h *history, stop func()) {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatalf("connect to etcd: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h = &history{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for resp := range c.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(1)) {
			h.mu.Lock()
			h.writes = append(h.writes, resp.Events...)
			if resp.Header != nil {
				h.at = max(h.at, resp.Header.Revision)
			}
			if err := resp.Err(); err != nil && ctx.Err() == nil {
				h.err = err
			}
			h.mu.Unlock()
		}
	}()
	end := sync.OnceFunc(func() {
		cancel()
		<-done
		_ = c.Close()
	})
	t.Cleanup(end)
	return h, func() {
		harness.Until(t, 10*time.Second, "the history is complete", func() error {
			ask, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			resp, err := c.Get(ask, prefix, clientv3.WithPrefix(), clientv3.WithLimit(1),
				clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend))
			if err != nil {
				return err
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			if len(resp.Kvs) > 0 && (len(h.writes) == 0 || h.writes[len(h.writes)-1].Kv.ModRevision < resp.Kvs[0].ModRevision) {
				return fmt.Errorf("etcd is at %d", resp.Kvs[0].ModRevision)
			}
			return h.err
		})
		end()
	}
}

// A commit is one write of a group's assignment, with what was registered at
// that revision.
type commit struct {
	rollout.Assignment
	at    int64
	ready map[string]string // by instance: the values of ready/<group>/
}

// commits replays the history and returns the commits, and what broke a rule:
//
//   - I2: a group's assignment was written while a registered instance did not
//     hold its nonce, without an override on record that names it;
//   - I3: a group's epoch did not grow.
func (h *history) commits() (all []commit, broken []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ready := map[string]map[string]string{} // by group
	epochs := map[string]int64{}
	apply := func(e *clientv3.Event) {
		name, ok := strings.CutPrefix(string(e.Kv.Key), prefix+"ready/")
		if !ok {
			return
		}
		group, instance, _ := strings.Cut(name, "/")
		if e.Type == clientv3.EventTypeDelete {
			delete(ready[group], instance)
			return
		}
		if ready[group] == nil {
			ready[group] = map[string]string{}
		}
		ready[group][instance] = string(e.Kv.Value)
	}
	for _, e := range h.writes {
		apply(e) // a transaction writes ready keys or assignments, never both
		group, ok := strings.CutPrefix(string(e.Kv.Key), prefix+"groups/")
		if !ok || e.Type == clientv3.EventTypeDelete {
			continue
		}
		c := commit{at: e.Kv.ModRevision, ready: maps.Clone(ready[group])}
		if err := json.Unmarshal(e.Kv.Value, &c.Assignment); err != nil {
			broken = append(broken, fmt.Sprintf("revision %d: %v", c.at, err))
			continue
		}
		if c.Epoch <= epochs[group] {
			broken = append(broken, fmt.Sprintf("I3: group %s: epoch %d was committed after %d", group, c.Epoch, epochs[group]))
		}
		first := epochs[group] == 0
		epochs[group] = c.Epoch
		for _, i := range slices.Sorted(maps.Keys(c.ready)) {
			waived := c.Override != nil && slices.Contains(c.Override.Instances, i)
			if !first && c.ready[i] != string(c.Nonce) && !waived {
				broken = append(broken, fmt.Sprintf("I2: group %s epoch %d (nonce %s) was committed while %s said %q", group, c.Epoch, c.Nonce, i, c.ready[i]))
			}
		}
		all = append(all, c)
	}
	return all, broken
}

// checkPrepared holds the commits against the instances' own logs: each
// instance that was registered at a commit had logged that it holds the set
// before any instance of the group logged that it switched. All logs are of one
// machine's clock. It returns how many switches it looked at.
func checkPrepared(t *testing.T, commits []commit, instances []*harness.Instance) (switches int) {
	t.Helper()
	held := map[string]map[string]time.Time{} // instance, nonce
	type first struct {
		at  time.Time
		who string
	}
	switched := map[string]map[int64]first{} // group, epoch
	for _, i := range instances {
		lines, err := i.Lines()
		if err != nil {
			t.Fatal(err)
		}
		held[i.Instance] = map[string]time.Time{}
		if switched[i.Group] == nil {
			switched[i.Group] = map[int64]first{}
		}
		epoch := int64(0)
		for _, l := range lines {
			switch l.Msg {
			case "prepared":
				held[i.Instance][l.Nonce] = l.Time
			case "switched":
				switches++
				if l.Epoch <= epoch {
					t.Errorf("I3: %s switched to epoch %d after epoch %d", i.Instance, l.Epoch, epoch)
				}
				epoch = l.Epoch
				if f, ok := switched[i.Group][l.Epoch]; !ok || l.Time.Before(f.at) {
					switched[i.Group][l.Epoch] = first{at: l.Time, who: i.Instance}
				}
			}
		}
	}
	seen := map[string]bool{}
	for _, c := range commits {
		set := c.Group + " " + string(c.Nonce)
		f, ok := switched[c.Group][c.Epoch]
		if c.Stable.IsZero() || c.Override != nil || seen[set] || !ok {
			continue
		}
		seen[set] = true
		for _, i := range slices.Sorted(maps.Keys(c.ready)) {
			at, ok := held[i][string(c.Nonce)]
			switch {
			case !ok:
				t.Errorf("I2: group %s epoch %d: %s never logged that it holds set %s", c.Group, c.Epoch, i, c.Nonce)
			case at.After(f.at):
				t.Errorf("I2: group %s epoch %d: %s switched at %v, %s held the set at %v", c.Group, c.Epoch, f.who, f.at, i, at)
			}
		}
	}
	return switches
}
