//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/integration/harness"
	"routerd.dev/internal/agent"
)

// cramped is the world of passwords and of an etcd that is soon full.
var cramped = harness.WorldOptions{Groups: "main main edge", Args: faulted.Args, Passwords: true, EtcdArgs: "--quota-backend-bytes=12582912"}

// prefix is that of every key of the fleet.
const prefix = "/routerd/"

// etcdScenarios are faults of what etcd holds, and of who it lets in.
func etcdScenarios() []harness.Scenario {
	one := func(name string, short bool, o harness.WorldOptions, run func(t *testing.T, w *harness.World)) harness.Scenario {
		return harness.Scenario{Name: name, Bound: recovery, Short: short, World: o, Run: run}
	}
	return []harness.Scenario{
		one("compaction while an instance is paused", true, faulted, compactedMeanwhile(freezing)),
		one("compaction while an instance is cut off", false, faulted, compactedMeanwhile(func(w *harness.World) away {
			return away{func(t testing.TB, node string) { w.Cut(t, node, harness.CutBoth) }, w.Mend}
		})),
		one("all leases revoked", true, faulted, allLeasesRevoked),
		one("lease lost with the process alive", true, faulted, oneLeaseRevoked),
		one("certificates rotated", true, faulted, certificatesRotated),
		one("etcd wiped", true, faulted, etcdWiped),
		one("older snapshot restored", true, faulted, olderRestored),
		one("user password changed", true, cramped, passwordChanged),
		one("NOSPACE alarm", true, cramped, outOfSpace),
	}
}

// compactedMeanwhile takes etcd's old versions away while an instance hears
// nothing, so that where it left off is no more.
func compactedMeanwhile(of func(w *harness.World) away) func(t *testing.T, w *harness.World) {
	return func(t *testing.T, w *harness.World) {
		prelude(t, w)
		i := w.Other(t, w.Controller(t))
		how := of(w)
		how.take(t, i.Instance)
		goesThrough(t, w, time.Minute) // its lease has to end first
		goesThrough(t, w, time.Minute)
		c, ctx := rootOf(t, w)
		resp, err := c.Get(ctx, "/")
		if err == nil {
			_, err = c.Compact(ctx, resp.Header.Revision, clientv3.WithCompactPhysical())
		}
		if err != nil {
			t.Fatalf("compact: %v", err)
		}
		how.bring(t, i.Instance)
	}
}

// rootOf is a client of etcd that may do everything, for the time of a test.
func rootOf(t *testing.T, w *harness.World) (*clientv3.Client, context.Context) {
	t.Helper()
	c := w.Client(t)
	t.Cleanup(func() { _ = c.Close() }) // it was good while it was used
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return c, ctx
}

// allLeasesRevoked takes every instance's registration and the controller's
// term away at once. Nobody may take that for an empty fleet.
func allLeasesRevoked(t *testing.T, w *harness.World) {
	was := prelude(t, w)
	c, ctx := rootOf(t, w)
	leases, err := c.Leases(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases.Leases {
		if _, err := c.Revoke(ctx, l.ID); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			t.Fatalf("revoke lease %x: %v", l.ID, err)
		}
	}
	if len(leases.Leases) < len(w.Instances) {
		t.Errorf("%d leases were revoked, there are %d instances", len(leases.Leases), len(w.Instances))
	}
	for _, i := range w.Instances {
		rejoined(t, w, i.Instance, leases.Leases)
	}
	unchanged(t, w, was)
}

// rejoined waits until an instance is registered by a lease of its own that is
// none of those revoked.
func rejoined(t *testing.T, w *harness.World, name string, revoked []clientv3.LeaseStatus) {
	t.Helper()
	c, ctx := rootOf(t, w)
	harness.Until(t, recovery, name+" joins again", func() error {
		resp, err := c.Get(ctx, prefix+"instances/"+name)
		if err != nil {
			return err
		}
		if len(resp.Kvs) == 0 {
			return errors.New("it is not registered")
		}
		if slices.Contains(revoked, clientv3.LeaseStatus{ID: clientv3.LeaseID(resp.Kvs[0].Lease)}) {
			return fmt.Errorf("it is registered by lease %x, which was revoked", resp.Kvs[0].Lease)
		}
		return nil
	})
}

// oneLeaseRevoked takes one instance's registration away while its process
// lives: it notices and comes back by itself, and meanwhile serves on.
func oneLeaseRevoked(t *testing.T, w *harness.World) {
	was := prelude(t, w)
	i := w.Other(t, w.Controller(t))
	c, ctx := rootOf(t, w)
	resp, err := c.Get(ctx, prefix+"instances/"+i.Instance)
	if err != nil || len(resp.Kvs) != 1 {
		t.Fatalf("read the registration of %s: %v, %v", i.Instance, resp, err)
	}
	lease := clientv3.LeaseID(resp.Kvs[0].Lease)
	if _, err := c.Revoke(ctx, lease); err != nil {
		t.Fatal(err)
	}
	rejoined(t, w, i.Instance, []clientv3.LeaseStatus{{ID: lease}})
	unchanged(t, w, was)
}

// certificatesRotated gives every member and every client new certificates and
// keys, and then revokes all that were good before: who did not take up the new
// ones is not let in any more. Members are restarted one after the other, which
// ends every connection; no instance is.
func certificatesRotated(t *testing.T, w *harness.World) {
	prelude(t, w)
	old := w.Certificates(t)
	w.RenewAll(t)
	for _, m := range w.Members() {
		p := w.EtcdProgram(m)
		w.Revoke(t, m, old)
		p.Args = append(p.Args, "--client-crl-file", w.Path(m, "revoked.crl"))
		w.Kill(t, m)
		w.Run(t, m, p)
		w.AwaitEtcd(t)
	}
	if err := w.LetIn(t, old); err == nil {
		t.Error("etcd still lets in who shows a certificate that is revoked: nothing was tested")
	}
	goesThrough(t, w, time.Minute)
}

// etcdWiped deletes everything etcd has. Instances freeze and serve on; what
// they serve is given back to etcd from one of each group.
func etcdWiped(t *testing.T, w *harness.World) {
	was := prelude(t, w)
	for _, m := range w.Members() {
		w.Kill(t, m)
	}
	for _, m := range w.Members() {
		if err := os.RemoveAll(filepath.Join(w.Dir(m), "data")); err != nil {
			t.Fatal(err)
		}
	}
	w.StartEtcd(t)
	frozen(t, w)
	unchanged(t, w, was)
	if err := w.Publish("--wait", "--timeout", "3s"); err == nil {
		t.Error("a publish went through into an etcd that was wiped")
	}
	unchanged(t, w, was)
	giveBack(t, w, func(i *harness.Instance) string { return "http://" + i.Admin })
}

// frozen waits until every instance says that etcd went back.
func frozen(t *testing.T, w *harness.World) {
	t.Helper()
	start := time.Now()
	for _, i := range w.Instances {
		w.UntilFrozen(t, 2*detection, i.Instance, "store-went-back")
	}
	t.Logf("all said that etcd went back after %v", time.Since(start).Round(time.Millisecond))
}

// giveBack restores etcd from one instance of each group.
func giveBack(t *testing.T, w *harness.World, name func(*harness.Instance) string) {
	t.Helper()
	args := []string{"recover", "-m", "test"}
	var groups []string
	for _, i := range w.Instances {
		if !slices.Contains(groups, i.Group) {
			groups = append(groups, i.Group)
			args = append(args, "--from", name(i))
		}
	}
	if _, err := w.Routectl("", args...); err != nil {
		t.Error(err)
	}
}

// olderRestored puts an older copy of all of etcd in the place of what it has,
// while the fleet serves what was published since.
func olderRestored(t *testing.T, w *harness.World) {
	prelude(t, w)
	data := func(m, name string) string { return filepath.Join(w.Dir(m), name) }
	each := func(do func(m string)) {
		for _, m := range w.Members() {
			do(m)
		}
	}
	each(func(m string) { w.Kill(t, m) })
	each(func(m string) {
		if err := os.CopyFS(data(m, "older"), os.DirFS(data(m, "data"))); err != nil {
			t.Fatalf("copy what %s has: %v", m, err)
		}
	})
	each(func(m string) { w.Start(t, m) })
	w.AwaitEtcd(t)
	w.UntilConverged(t, time.Minute)
	was := prelude(t, w)
	each(func(m string) { w.Kill(t, m) })
	each(func(m string) {
		if err := errors.Join(os.RemoveAll(data(m, "data")), os.Rename(data(m, "older"), data(m, "data"))); err != nil {
			t.Fatalf("restore what %s had: %v", m, err)
		}
	})
	each(func(m string) { w.Start(t, m) })
	w.AwaitEtcd(t)
	frozen(t, w)
	unchanged(t, w, was)
	if _, err := w.Routectl("", "recover", "--wait"); err != nil { // the copy is right: what was published since is taken back
		t.Error(err)
	}
}

// passwordChanged changes the password of the controller's instance and of
// another. Both serve on without being let in, say so, and go on when the new
// one is in their file, without a restart.
func passwordChanged(t *testing.T, w *harness.World) {
	was := prelude(t, w)
	first := w.Controller(t)
	names := []string{first.Instance, w.Other(t, first).Instance}
	for _, name := range names {
		w.ChangePassword(t, name)
	}
	for _, name := range names {
		start := time.Now()
		w.UntilStatus(t, 2*detection, name, "says that etcd does not let it in", func(st agent.Status) error {
			if st.Serving == nil || st.Stale == "" && st.Joined {
				return fmt.Errorf("joined: %v, stale: %q, serving: %v, etcd: %+v", st.Joined, st.Stale, st.Serving, st.Etcd)
			}
			return nil
		})
		t.Logf("%s noticed after %v", name, time.Since(start).Round(time.Millisecond))
	}
	unchanged(t, w, was)
	for _, name := range names {
		w.Deliver(t, name)
	}
}

// outOfSpace fills etcd up to its quota. Instances serve on, and who publishes
// is told; then the operator makes room as docs/operations.md says.
func outOfSpace(t *testing.T, w *harness.World) {
	was := prelude(t, w)
	c, ctx := rootOf(t, w)
	junk := strings.Repeat("x", 1<<20)
	harness.Until(t, time.Minute, "etcd is full", func() error {
		if _, err := c.Put(ctx, fmt.Sprintf("/junk/%d", time.Now().UnixNano()), junk); err == nil {
			return errors.New("it takes more")
		}
		alarms, err := c.AlarmList(ctx)
		if err == nil && !slices.ContainsFunc(alarms.Alarms, func(a *etcdserverpb.AlarmMember) bool { return a.Alarm == etcdserverpb.AlarmType_NOSPACE }) {
			err = errors.New("it raises no alarm")
		}
		return err
	})
	if err := w.Publish("--wait", "--timeout", "5s"); err == nil || !strings.Contains(err.Error(), "out of space") {
		t.Errorf("publish into an etcd that is full: %v; want it to say so", err)
	}
	unchanged(t, w, was)
	if _, err := c.Delete(ctx, "/junk/", clientv3.WithPrefix()); err != nil {
		t.Fatalf("delete what fills etcd: %v", err)
	}
	resp, err := c.Get(ctx, "/")
	if err == nil {
		_, err = c.Compact(ctx, resp.Header.Revision, clientv3.WithCompactPhysical())
	}
	if err != nil {
		t.Fatalf("compact: %v", err)
	}
	for _, e := range w.Endpoints {
		harness.Until(t, detection, "defragment "+e, func() error { // each member compacts when it comes to it
			if _, err := c.Defragment(ctx, e); err != nil {
				return err
			}
			st, err := c.Status(ctx, e)
			if err == nil && st.DbSize > 8<<20 {
				err = fmt.Errorf("it holds %d bytes still", st.DbSize)
			}
			return err
		})
	}
	if _, err := c.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		t.Fatalf("disarm the alarm: %v", err)
	}
	if _, err := w.Routectl("", "gc"); err != nil {
		t.Error(err)
	}
}
