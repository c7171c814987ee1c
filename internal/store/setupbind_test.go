package store

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
)

// TestStolenNameStaysInItsGroup: whoever has an instance's credential cannot
// speak for another group, in any of the keys that he may write.
func TestStolenNameStaysInItsGroup(t *testing.T) {
	e := secure(t, true)
	as := setUp(t, e)
	ctx := t.Context()
	if _, _, err := as("operator").Init(ctx); err != nil {
		t.Fatal(err)
	}
	thief, s := raw(t, as("a")), as("reader")
	tell := func(key string, v any) {
		t.Helper()
		b, err := json.Marshal(v)
		must(t, err)
		_, err = thief.Put(ctx, s.key(key), string(b))
		must(t, err)
	}
	refused := func(what string, keys ...string) {
		t.Helper()
		v, broken, err := s.ViewBroken(ctx)
		must(t, err)
		if _, ok := v.Instances["a"]; ok {
			t.Errorf("%s: instances/a counts", what)
		}
		if r, ok := v.Reports["a"]; ok {
			t.Errorf("%s: the report counts: %+v", what, r)
		}
		for _, key := range keys {
			if !slices.ContainsFunc(broken, func(b Broken) bool {
				return b.Key == s.key(key) && strings.HasPrefix(b.Why, "refused: the name a is of group main, and says that it is of group \"mainland\"")
			}) {
				t.Errorf("%s: nobody says that %s is refused: %v", what, key, broken)
			}
		}
	}
	who := rollout.Instance{Instance: "a", Group: "mainland", Boot: "b"}
	report := rollout.Report{Instance: "a", Group: "mainland", HighestEpoch: 1 << 20, Frozen: rollout.FrozenStoreWentBack}
	tell("instances/a", who)
	tell("reports/a", report)
	refused("both", "instances/a", "reports/a")
	_, err := thief.Delete(ctx, s.key("instances/a"))
	must(t, err)
	refused("a report only", "reports/a")

	// The truth counts, and who is of no group by record is of the one it names.
	who.Group, report.Group = "main", "main"
	tell("instances/a", who)
	tell("reports/a", report)
	_, err = raw(t, as("root")).Delete(ctx, s.key("bound/e"))
	must(t, err)
	m := join(t, as("e"), "mainland", "e")
	must(t, m.Report(ctx, rollout.Report{}))
	if v := view(t, s); v.Instances["a"].Group != "main" || v.Reports["a"].Group != "main" || v.Reports["e"].Group != "mainland" {
		t.Errorf("instances %+v, reports %+v", v.Instances, v.Reports)
	}

	// Setup moves a name, and revoking forgets it.
	moved := Setup{Access: Access{Instances: map[string]string{"a": "mainland"}}}
	steps, err := as("root").SetUpAccess(ctx, moved)
	must(t, err)
	if !slices.ContainsFunc(steps, func(x AccessStep) bool {
		return x.Do == putKey && x.Etcdctl("") == "etcdctl put /routerd/bound/a mainland"
	}) {
		t.Errorf("steps %v", steps)
	}
	if again, err := as("root").SetUpAccess(ctx, moved); err != nil || len(again) > 0 {
		t.Errorf("done again: %v %v", again, err)
	}
	if v := view(t, s); len(v.Instances) != 1 || v.Instances["e"].Group != "mainland" {
		t.Errorf("instances %+v", v.Instances)
	}
	_, err = as("root").SetUpAccess(ctx, Setup{Access: Access{Revoke: []string{"a"}}})
	must(t, err)
	left, err := raw(t, s).Get(ctx, s.key(""), clientv3.WithPrefix(), clientv3.WithKeysOnly())
	must(t, err)
	for _, kv := range left.Kvs {
		if strings.HasSuffix(string(kv.Key), "/a") {
			t.Errorf("left: %s", kv.Key)
		}
	}
}

// TestJoinsOnlyItsGroup: an instance that is started with another group than
// its name's is told both, and leaves nothing.
func TestJoinsOnlyItsGroup(t *testing.T) {
	s := fleet(t)
	bind := func(v string) {
		t.Helper()
		_, err := raw(t, s).Put(t.Context(), s.key("bound/a"), v)
		must(t, err)
	}
	who := rollout.Instance{Instance: "a", Group: "edge", Boot: "b"}
	bind("main")
	_, err := s.Join(t.Context(), who, 0)
	wantErr(t, err, ErrBound, "group edge as a", "is of group main", `"edge"`, "--group main", "routectl etcd setup --instance a=GROUP")
	if v := view(t, s); len(v.Instances) > 0 {
		t.Errorf("instances %+v", v.Instances)
	}
	bind("a/b")
	_, err = s.Join(t.Context(), who, 0)
	wantErr(t, err, ErrCorrupt, s.key("bound/a"))
	bind("edge")
	_ = join(t, s, "edge", "a")
	_ = join(t, s, "edge", "unbound")
	if v := view(t, s); len(v.Instances) != 2 {
		t.Errorf("instances %+v", v.Instances)
	}
}
