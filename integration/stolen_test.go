//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/integration/harness"
	"routerd.dev/internal/rollout"
)

const stolen = "main-2" // whose certificate the thief has, while it runs on

// A thief has one instance's certificate and key.
type thief struct {
	*harness.World
	c      *clientv3.Client // as the instance
	root   *clientv3.Client // to look what came of it
	own    []string
	epochs map[string]int64 // of each group, as the test moved it
	lied   int
}

// TestStolenInstanceCredential: whoever has an instance's certificate changes
// no route. First everything that is not that instance's own is tried, and
// refused; then every lie about itself is told, and the test says what comes of
// each. No answer differs all the while.
func TestStolenInstanceCredential(t *testing.T) {
	w := harness.NewWorld(t, bin, harness.NewProcesses(t, bin), harness.WorldOptions{Groups: "main main main edge", Controllers: 2, Args: "--lease-ttl 5s"})
	th := steal(t, w)
	rec := harness.NewRecorder(w.Fleet, harness.RecorderOptions{Rate: 100})
	rec.Start()
	defer rec.Stop()
	th.epochs = th.assigned(t)

	t.Run("what is not its own", th.triesOthers)
	t.Run("etcd itself", th.triesEtcd)
	t.Run("leases", th.triesLeases)
	th.unmoved(t)
	t.Run("lies", th.lies)
	t.Run("other credentials", th.triesWithOthers)
	t.Run("the way out", th.revoked)

	rec.Stop()
	failed, epochs := map[string]int{}, map[string]bool{}
	for a := range rec.Answers() {
		if a.Err != "" {
			failed[a.Instance+": "+a.Err]++
		}
		epochs[fmt.Sprintf("%s %d", a.Group, a.Epoch)] = true
		if a.Epoch > th.epochs[a.Group] {
			t.Errorf("%s answered in epoch %d, group %s was never moved past %d", a.Instance, a.Epoch, a.Group, th.epochs[a.Group])
		}
	}
	for what, n := range failed {
		t.Errorf("%d requests failed: %s", n, what)
	}
	n := rec.Counts()
	if n.Requests < 500 || th.lied == 0 {
		t.Errorf("%d requests, %d lies: nothing was tried", n.Requests, th.lied)
	}
	t.Logf("%d requests, %d failed, %d lies, epochs %v", n.Requests, n.Failed, th.lied, slices.Sorted(maps.Keys(epochs)))
}

func steal(t *testing.T, w *harness.World) *thief {
	t.Helper()
	c, err := clientv3.New(w.ConfigAs(t, stolen))
	if err != nil {
		t.Fatal(err)
	}
	root := w.Client(t)
	t.Cleanup(func() { c.Close(); root.Close() })
	return &thief{World: w, c: c, root: root, own: []string{
		prefix + "instances/" + stolen, prefix + "ready/main/" + stolen, prefix + "reports/" + stolen, prefix + "measures/" + stolen,
	}}
}

// denied fails the test unless err is etcd's refusal.
func denied(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, rpctypes.ErrPermissionDenied) && !strings.Contains(fmt.Sprint(err), "permission denied") {
		t.Errorf("%s: %v, want it refused", what, err)
	}
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// all are the keys and values of the fleet.
func (th *thief) all(t *testing.T) map[string]string {
	t.Helper()
	resp, err := th.root.Get(soon(t), prefix, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, kv := range resp.Kvs {
		all[string(kv.Key)] = string(kv.Value)
	}
	return all
}

// assigned are the epochs of the groups.
func (th *thief) assigned(t *testing.T) map[string]int64 {
	t.Helper()
	epochs := map[string]int64{}
	for key, value := range th.all(t) {
		if group, ok := strings.CutPrefix(key, prefix+"groups/"); ok {
			var a rollout.Assignment
			if err := json.Unmarshal([]byte(value), &a); err != nil {
				t.Fatal(err)
			}
			epochs[group] = a.Epoch
		}
	}
	return epochs
}

// moved says which group is not where the test moved it.
func (th *thief) moved(t *testing.T) error {
	t.Helper()
	if at := th.assigned(t); !maps.Equal(at, th.epochs) {
		return fmt.Errorf("the groups are at epochs %v, the test moved them to %v", at, th.epochs)
	}
	return nil
}

// unmoved fails the test when a group was moved, or made, by somebody else than the test.
func (th *thief) unmoved(t *testing.T) {
	t.Helper()
	if err := th.moved(t); err != nil {
		t.Error(err)
	}
}

// triesOthers writes, deletes and reads every key there is but its own, and new
// ones of each kind, by each way there is.
func (th *thief) triesOthers(t *testing.T) {
	keys := slices.Sorted(maps.Keys(th.all(t)))
	for _, dir := range []string{
		"chunks", "manifests", "revisions", "groups", "prepare", "intents", "rollouts", "ended", "checks", "condemned", "served", "baked",
		"strategies", "pins", "audit", "election", "gc", "unheard-of",
	} {
		keys = append(keys, prefix+dir+"/thief")
	}
	keys = append(keys, prefix+"instances/main-22", prefix+"instances/main-", prefix+"ready/edge/"+stolen, prefix+"ready/main/"+stolen+"/x", "/elsewhere")
	tried := 0
	for _, key := range keys {
		if slices.Contains(th.own, key) {
			continue
		}
		tried++
		_, err := th.c.Put(soon(t), key, "x")
		denied(t, "put "+key, err)
		_, err = th.c.Delete(soon(t), key)
		denied(t, "delete "+key, err)
		_, err = th.c.Txn(soon(t)).Then(clientv3.OpPut(th.own[2], "x"), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut(key, "x")}, nil)).Commit()
		denied(t, "a transaction with "+key, err)
		_, err = th.c.Txn(soon(t)).If(clientv3.Compare(clientv3.Version(th.own[0]), "=", -1)).Then(clientv3.OpDelete(key)).Commit()
		denied(t, "a transaction that would not have deleted "+key, err)
	}
	if tried < 40 {
		t.Errorf("only %d keys were tried", tried)
	}
	for name, from := range map[string]string{"the fleet": prefix, "instances": prefix + "instances/", "groups": prefix + "groups/", "what begins like its own": th.own[0]} {
		_, err := th.c.Delete(soon(t), from, clientv3.WithPrefix())
		denied(t, "delete "+name, err)
		_, err = th.c.Get(soon(t), from, clientv3.WithPrefix())
		denied(t, "read "+name, err)
		watch := <-th.c.Watch(soon(t), from, clientv3.WithPrefix())
		denied(t, "watch "+name, watch.Err())
	}
	for _, key := range []string{"groups/edge", "prepare/edge", "reports/main-0", "instances/main-0", "head", "revisions/00000000000000000001"} {
		_, err := th.c.Get(soon(t), prefix+key)
		denied(t, "read "+key, err)
	}
}

// triesEtcd asks for what administrators do.
func (th *thief) triesEtcd(t *testing.T) {
	members, err := th.root.MemberList(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	endpoint, id := th.Endpoints[0], members.Members[0].ID
	for what, f := range map[string]func() error{
		"add a user":        func() error { _, err := th.c.UserAdd(soon(t), "thief", "x"); return err },
		"list users":        func() error { _, err := th.c.UserList(soon(t)); return err },
		"grant itself root": func() error { _, err := th.c.UserGrantRole(soon(t), stolen, "root"); return err },
		"change root":       func() error { _, err := th.c.UserChangePassword(soon(t), "root", "x"); return err },
		"widen its role": func() error {
			_, err := th.c.RoleGrantPermission(soon(t), prefix+"instance:"+stolen, prefix, "", clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		"read another's role": func() error { _, err := th.c.RoleGet(soon(t), prefix+"controller"); return err },
		"auth disable":        func() error { _, err := th.c.AuthDisable(soon(t)); return err },
		"compact":             func() error { _, err := th.c.Compact(soon(t), 1); return err },
		"defragment":          func() error { _, err := th.c.Defragment(soon(t), endpoint); return err },
		"disarm alarms": func() error {
			_, err := th.c.AlarmDisarm(soon(t), &clientv3.AlarmMember{MemberID: id, Alarm: pb.AlarmType_NOSPACE})
			return err
		},
		"move the leader": func() error { _, err := th.c.MoveLeader(soon(t), id); return err },
		"hash":            func() error { _, err := th.c.HashKV(soon(t), endpoint, 0); return err },
		"downgrade":       func() error { _, err := th.c.Downgrade(soon(t), clientv3.DowngradeEnable, "3.6"); return err },
		"add a member":    func() error { _, err := th.c.MemberAdd(soon(t), []string{"https://127.0.0.1:1"}); return err },
		"remove a member": func() error { _, err := th.c.MemberRemove(soon(t), id); return err },
		"snapshot": func() error {
			r, err := th.c.Snapshot(soon(t))
			if err == nil {
				defer r.Close()
				_, err = r.Read(make([]byte, 1))
			}
			return err
		},
	} {
		denied(t, what, f())
	}
	for _, args := range [][]string{{"publish", "-f", "-", "-m", "x"}, {"rollback"}, {"abort"}, {"gc"}, {"status"}, {"recover"}, {"etcd", "show"}, {"etcd", "setup", "--operator", stolen}} {
		out, err := th.RoutectlAs(stolen, harness.Marked(999, th.Upstream.URL), args...)
		if err == nil || !strings.Contains(fmt.Sprint(out, err), "permission denied") {
			t.Errorf("routectl %v: %v: %s", args, err, out)
		}
	}
}

// triesLeases: a lease holds others' keys, and goes with them.
func (th *thief) triesLeases(t *testing.T) {
	_, err := th.c.Leases(soon(t))
	denied(t, "list leases", err)
	leases, err := th.root.Leases(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	others := 0
	for _, l := range leases.Leases {
		of, err := th.root.TimeToLive(soon(t), l.ID, clientv3.WithAttachedKeys())
		if err != nil {
			t.Fatal(err)
		}
		if len(of.Keys) == 0 || strings.HasSuffix(string(of.Keys[0]), "/"+stolen) {
			continue
		}
		others++
		_, err = th.c.Revoke(soon(t), l.ID)
		denied(t, fmt.Sprintf("revoke the lease of %s", of.Keys), err)
		_, err = th.c.Put(soon(t), th.own[2], "x", clientv3.WithLease(l.ID))
		denied(t, fmt.Sprintf("put a key under the lease of %s", of.Keys), err)
	}
	// It sees the leases of its group's ready keys, but keeps none alive whose holder died.
	neighbour, err := th.c.Get(soon(t), prefix+"ready/main/main-0")
	if err != nil || len(neighbour.Kvs) != 1 {
		t.Fatalf("its group's ready keys: %v, %v", neighbour, err)
	}
	_, err = th.c.KeepAliveOnce(soon(t), clientv3.LeaseID(neighbour.Kvs[0].Lease))
	denied(t, "keep a neighbour's lease", err)
	if others < 4 { // three instances and the controller
		t.Errorf("only %d leases of others were tried", others)
	}
}

// A lie is what a thief may say of the instance, by that instance's own keys.
type lie struct {
	name   string
	tell   map[string]string // key to value, "" to delete it, again and again
	blocks bool              // what is committed while it is told was quicker
}

func lies() []lie {
	instances, ready, reports, measures := prefix+"instances/"+stolen, prefix+"ready/main/"+stolen, prefix+"reports/"+stolen, prefix+"measures/"+stolen
	encode := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err) // plain values
		}
		return string(b)
	}
	report := func(group string, r rollout.Report) string {
		r.Instance, r.Group, r.Boot, r.Time = stolen, group, "thief", time.Now()
		return encode(r)
	}
	who := func(group string) string {
		return encode(rollout.Instance{Instance: stolen, Group: group, Boot: "thief", Address: "nowhere"})
	}
	const huge = 1<<63 - 1
	return []lie{
		{"it is not ready", map[string]string{ready: "none"}, true},
		{"it refuses, at length", map[string]string{ready: "refused x " + strings.Repeat("y", 100_000)}, true},
		{"it holds what nobody knows", map[string]string{ready: "12345"}, true},
		{"no JSON", map[string]string{reports: "{", measures: "\x00"}, false},
		{"1 MiB of reports and measures", map[string]string{
			reports:  report("main", rollout.Report{Stale: strings.Repeat("x", 1<<20)}),
			measures: encode(rollout.Measure{Instance: stolen, Group: strings.Repeat("x", 1<<20)}),
		}, false},
		{"an epoch of the far future", map[string]string{reports: report("main", rollout.Report{HighestEpoch: 1 << 31})}, true},
		{"numbers past all belief", map[string]string{reports: report("main", rollout.Report{HighestEpoch: huge, HighestRevision: huge})}, false},
		{"it is frozen", map[string]string{reports: report("main", rollout.Report{Frozen: rollout.FrozenStoreWentBack})}, true},
		{"it is of another group, and ahead", map[string]string{instances: who("edge"), reports: report("edge", rollout.Report{HighestEpoch: 1 << 31})}, false},
		{"another process has its name", map[string]string{instances: who("main")}, false},
		{"its keys are gone", map[string]string{instances: "", ready: "", reports: "", measures: ""}, false},
	}
}

// movedAtMostOnce notes where the groups are: where they were, or all of them
// one epoch on.
func (th *thief) movedAtMostOnce(t *testing.T) {
	t.Helper()
	by := map[int64]bool{}
	now := th.assigned(t)
	for g, was := range th.epochs {
		by[now[g]-was] = true
	}
	if len(by) != 1 || !by[0] && !by[1] {
		t.Errorf("the groups are at epochs %v, and were at %v", now, th.epochs)
	}
	t.Logf("the switch was quicker than the lie: %v", by[1])
	th.epochs = now
}

// lies tells each lie again and again while somebody publishes: either nothing
// is committed, or what was published is, and then only once. A lie that blocks
// races with what the instance itself says. When the thief is silent, the fleet
// is one again by itself.
func (th *thief) lies(t *testing.T) {
	for n, l := range lies() {
		t.Run(l.name, func(t *testing.T) {
			silence := th.repeat(t, l.tell)
			publish := []string{"publish", "-f", "-", "-m", fmt.Sprint(100 + n), "--timeout", "4s"}
			if l.blocks {
				_, err := th.RoutectlAs("publisher", harness.Marked(100+n, th.Upstream.URL), append(publish, "--wait")...)
				if _, aborted := th.Routectl("", "abort"); aborted != nil && err != nil {
					t.Logf("abort: %v", aborted) // it was given up already
				}
				th.movedAtMostOnce(t)
			} else {
				// Without --wait: what it says it serves is a lie, too.
				if out, err := th.RoutectlAs("publisher", harness.Marked(100+n, th.Upstream.URL), publish[:5]...); err != nil {
					t.Errorf("it should not have stopped a publish: %v: %s", err, out)
				}
				th.epochs["main"]++
				th.epochs["edge"]++
				harness.Until(t, time.Minute, "the groups are switched", func() error { return th.moved(t) })
			}
			told := silence()
			th.lied += told
			th.unmoved(t)
			t.Logf("told %d times; one again after %v", told, th.UntilConverged(t, 90*time.Second))
			th.unmoved(t)
		})
	}
	t.Run("a thousand leases", func(t *testing.T) {
		for range 1000 {
			if _, err := th.c.Grant(soon(t), 20); err != nil {
				t.Fatal(err)
			}
		}
		if err := th.publish(); err != nil {
			t.Error(err)
		}
		th.unmoved(t)
	})
}

// repeat writes keys until it is told to be silent, and then returns how often.
func (th *thief) repeat(t *testing.T, tell map[string]string) (silence func() int) {
	t.Helper()
	once := func(ctx context.Context) error {
		for key, value := range tell {
			op := clientv3.OpPut(key, value)
			if value == "" {
				op = clientv3.OpDelete(key)
			}
			if _, err := th.c.Do(ctx, op); err != nil {
				return err
			}
		}
		return nil
	}
	if err := once(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan int)
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for n := 1; ; n++ {
			select {
			case <-tick.C:
				if err := once(ctx); err != nil && ctx.Err() == nil {
					t.Errorf("the thief's own keys: %v", err)
				}
			case <-ctx.Done():
				told <- n
				return
			}
		}
	}()
	return func() int {
		cancel()
		n := <-told
		for key := range tell { // what is said last without a lease would stay
			if _, err := th.root.Delete(soon(t), key); err != nil {
				t.Error(err)
			}
		}
		return n
	}
}

// publish moves every group once.
func (th *thief) publish() error {
	th.epochs["main"]++
	th.epochs["edge"]++
	return th.Publish("--wait", "--timeout", "40s")
}

// triesWithOthers: who publishes does not decide, who looks writes nothing.
func (th *thief) triesWithOthers(t *testing.T) {
	mayPublish := []string{"chunks/", "manifests/", "revisions/", "intents/", "audit/", "head", "fleet"}
	for user, may := range map[string][]string{"publisher": mayPublish, "reader": nil} {
		c, err := clientv3.New(th.ConfigAs(t, user))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for key := range th.all(t) {
			name := strings.TrimPrefix(key, prefix)
			if slices.ContainsFunc(may, func(m string) bool { return strings.HasPrefix(name, m) }) {
				continue
			}
			_, err := c.Put(soon(t), key, "x")
			denied(t, user+": put "+key, err)
			_, err = c.Delete(soon(t), key)
			denied(t, user+": delete "+key, err)
		}
		if _, err := th.RoutectlAs(user, "", "status"); err != nil {
			t.Errorf("%s may not look: %v", user, err)
		}
		if out, err := th.RoutectlAs(user, "", "gc"); err == nil {
			t.Errorf("%s collects: %s", user, out)
		}
	}
	if out, err := th.RoutectlAs("reader", harness.Marked(999, th.Upstream.URL), "publish", "-f", "-", "-m", "x"); err == nil {
		t.Errorf("a reader publishes: %s", out)
	}
	if err := th.publish(); err != nil {
		t.Error(err)
	}
	th.unmoved(t)
}

// revoked: the instance's user goes, and what it wrote; the others switch
// without it, and it serves on what it has.
func (th *thief) revoked(t *testing.T) {
	silenced := make(chan error, 1)
	go func() { // which ends when its writes are refused
		var err error
		for err == nil {
			_, err = th.c.Put(t.Context(), th.own[3], "{}")
		}
		silenced <- err
	}()
	if out, err := th.RoutectlAs("root", "", "etcd", "setup", "--revoke", stolen); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	select {
	case err := <-silenced:
		denied(t, "a revoked instance's own key", err)
	case <-time.After(30 * time.Second):
		t.Fatal("who was revoked still writes")
	}
	for key := range th.all(t) {
		if strings.HasSuffix(key, "/"+stolen) {
			t.Errorf("%s is left", key)
		}
	}
	if err := th.publish(); err != nil {
		t.Errorf("the others cannot switch without who was revoked: %v", err)
	}
	th.unmoved(t)
}
