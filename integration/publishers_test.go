//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/integration/harness"
	"routerd.dev/integration/history"
	"routerd.dev/internal/cli"
	"routerd.dev/internal/version"
)

// TestPublishersAreLinearizable: four publishers publish their own modules at
// once, with --expect and without, and read target and history, while etcd
// members are killed and the controller loses its lease. There must be an order
// of all of it that explains what each was told; and what was acknowledged must
// be there.
func TestPublishersAreLinearizable(t *testing.T) {
	s := newSite(t, "--lease-ttl", "5s")
	st, err := s.Status()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	until, stop := context.WithCancel(t.Context())
	defer stop()
	book := &opBook{start: start}
	var publishers sync.WaitGroup
	for n := range 4 {
		publishers.Go(func() { book.publisher(until, s, n) })
	}
	s.disturb(t, book)
	stop()
	publishers.Wait()
	harness.Until(t, 60*time.Second, "the fleet is one", s.Converged)

	count := map[string]int{}
	var took []time.Duration
	for _, o := range book.ops {
		count[fmt.Sprintf("%s %s", o.Kind, o.Outcome)]++
		took = append(took, o.Return-o.Call)
	}
	t.Logf("%d publishes and reads in %v: %v; each took %v in the median, %v at most", len(book.ops), time.Since(start).Round(time.Second), count, median(took), slices.Max(took))
	for _, must := range []string{"publish done", "publish refused", "read target done", "read head done"} {
		if count[must] == 0 {
			t.Errorf("there was no %s: nothing was tried", must)
		}
	}
	if ok, why := history.Linearizable(st.Target.Number, book.ops, time.Minute); !ok {
		t.Errorf("lost: %s", why)
		for _, o := range book.ops {
			t.Logf("%+v", o)
		}
	}
	book.inHistory(t, s)
}

// An opBook is what the publishers did and were told.
type opBook struct {
	start time.Time
	mu    sync.Mutex
	ops   []history.Op
	acked []history.Ack
}

// publisher publishes and reads until told to end.
func (b *opBook) publisher(until context.Context, s *site, n int) {
	for k := 0; until.Err() == nil; k++ {
		var target int64
		b.do(history.Op{Client: n, Kind: history.OpTarget}, func(o *history.Op) error {
			st, err := s.Status()
			o.Revision, target = st.Target.Number, st.Target.Number
			return err
		})
		op := history.Op{Client: n, Kind: history.OpPublish}
		if k%2 == 0 {
			op.Expect = target
		}
		b.do(op, func(o *history.Op) error { return b.publish(s, o, fmt.Sprintf("%d-%d", n, k)) })
		b.do(history.Op{Client: n, Kind: history.OpHead}, func(o *history.Op) error {
			revs, err := s.revisions(1)
			if len(revs) > 0 {
				o.Revision = revs[0].Number
			}
			return err
		})
	}
}

// do notes what f does, and whether it is known to be done.
func (b *opBook) do(o history.Op, f func(*history.Op) error) {
	o.Call = time.Since(b.start)
	err := f(&o)
	o.Return = time.Since(b.start)
	var exit *exec.ExitError
	switch {
	case err == nil:
		o.Outcome = history.Done
	case errors.As(err, &exit) && exit.ExitCode() == cli.ExitConflict:
		o.Outcome = history.Refused
	default:
		o.Outcome = history.Unknown
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ops = append(b.ops, o)
}

// publish publishes a module of the publisher's own.
func (b *opBook) publish(s *site, o *history.Op, what string) error {
	file := fmt.Sprintf("apiVersion: routerd/v1\nmodule: own-%d\nroutes:\n  - {name: at, path: /own-%d, respond: %q}\n", o.Client, o.Client, what)
	args := []string{"publish", "-o", "json", "-f", "-", "-m", what}
	if o.Expect != 0 {
		args = append(args, "--expect", fmt.Sprint(o.Expect))
	}
	out, err := s.Routectl(file, args...)
	if err != nil {
		return err
	}
	a := history.Ack{At: time.Now(), Message: what}
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		return err
	}
	o.Revision = a.Revision
	b.mu.Lock()
	defer b.mu.Unlock()
	b.acked = append(b.acked, a)
	return nil
}

// inHistory fails for each acknowledged publish that is not in the history as
// it was.
func (b *opBook) inHistory(t *testing.T, s *site) {
	t.Helper()
	revs, err := s.revisions(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range b.acked {
		if !slices.ContainsFunc(revs, func(r version.Revision) bool {
			return r.Number == a.Revision && r.Digest == a.Digest && r.Message == a.Message
		}) {
			t.Errorf("lost: revision %d (%q) was acknowledged and is not in the history", a.Revision, a.Message)
		}
	}
}

// revisions are the newest of the history; all for 0.
func (s *site) revisions(most int) (all []version.Revision, err error) {
	out, err := s.Routectl("", "history", "-n", fmt.Sprint(most), "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &all)
	}
	return all, err
}

// disturb kills etcd members in turn and takes the controller's
// lease, each time when some publishes were done since.
func (s *site) disturb(t *testing.T, b *opBook) {
	t.Helper()
	some := func(what string) {
		t.Helper()
		b.mu.Lock()
		least := len(b.acked) + 2
		b.mu.Unlock()
		harness.Until(t, 60*time.Second, "two publishes "+what, func() error {
			b.mu.Lock()
			defer b.mu.Unlock()
			if len(b.acked) < least {
				return fmt.Errorf("%d of %d are done", len(b.acked), least)
			}
			return nil
		})
	}
	some("before any fault")
	for n, m := range s.etcd.Members[1:] {
		m.Kill()
		some(fmt.Sprintf("while etcd%d is away", n+1))
		m.Start()
		s.etcd.Await(t)
		s.takeLease(t)
		t.Logf("etcd%d is back and the term is over at %v", n+1, time.Since(b.start))
		some("while nobody is elected, or after that")
	}
}

// takeLease revokes the lease of the controller.
func (s *site) takeLease(t *testing.T) {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: s.Endpoints, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	harness.Until(t, 30*time.Second, "the controller's lease is taken", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		resp, err := c.Get(ctx, prefix+"election/leader")
		if err != nil {
			return err
		}
		if len(resp.Kvs) == 0 {
			return nil
		}
		_, err = c.Revoke(ctx, clientv3.LeaseID(resp.Kvs[0].Lease))
		return err
	})
}
