package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

func TestInitOnce(t *testing.T) {
	s := open(t)
	_, err := s.Format(t.Context())
	wantErr(t, err, ErrNotInitialized, "routectl init", s.Prefix())
	_, err = s.View(t.Context())
	wantErr(t, err, ErrNotInitialized)
	var wg sync.WaitGroup
	formats, made := make([]Format, 5), make([]bool, 5)
	for i := range formats {
		wg.Go(func() {
			var err error
			if formats[i], made[i], err = s.Init(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n := 0
	for i := range formats {
		if made[i] {
			n++
		}
		if formats[i].FleetID != formats[0].FleetID || formats[i].FleetID == "" {
			t.Errorf("fleets %+v", formats)
		}
	}
	if n != 1 || view(t, s).Fleet.ID != formats[0].FleetID {
		t.Errorf("%d made it", n)
	}
}

func TestFutureLayoutIsRefused(t *testing.T) {
	s := fleet(t)
	rawPut(t, s, "format", `{"layout":99,"fleet":"x"}`)
	for _, f := range []func() error{
		func() error { _, err := s.Format(t.Context()); return err },
		func() error { _, err := s.View(t.Context()); return err },
		func() error {
			_, err := s.Publish(t.Context(), PublishRequest{Snapshot: snapshot(t, "a")})
			return err
		},
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), "layout 99") {
			t.Errorf("error %v", err)
		}
	}
}

// One unreadable record of each kind is named and leaves the others alone.
func TestBrokenRecordsAreLeftOut(t *testing.T) {
	s := fleet(t)
	good := publish(t, s, "a")
	rawPut(t, s, "groups/main", assignment(1))
	ready(t, s, "main", "a", "n1")
	ready(t, s, "bad", "b", "n1")
	join(t, s, "main", "d")
	running(t, s, campaign(t, s, "c1"), "z")
	want, err := s.View(t.Context())
	must(t, err)

	bad := map[string]string{
		"groups/bad":             `{"group":"bad","epoch":"one"}`,
		"groups/alias":           assignment(1),
		"prepare/main":           `[]`,
		"ready/lost":             "n1",
		"instances/c":            `{"instance":`,
		"reports/a":              "\xff\xfe",
		"intents/x":              `null`,
		"rollouts/x":             `{"id":"x","nonces":3}`,
		"condemned/xyz":          `{"digest":"xyz"}`,
		"served/notadigest":      "",
		"baked/notadigest":       "",
		"strategies/s":           `{"name":"other"}`,
		"strategies/t":           `{"name":"t"}`, // of no use
		"checks/z":               `{"rollout":"other"}`,
		"measures/a":             `{"instance":"a","group":"main","sample":3}`,
		"measures/d":             `{"instance":"d","group":"other","boot":"boot-d"}`,
		good.Digest.Short():      "", // no record of ours: not even looked at
		"rollouts/" + "other/is": `{"id":"another"}`,
	}
	for k, v := range bad {
		rawPut(t, s, k, v)
	}
	got, broken, err := s.ViewBroken(t.Context())
	must(t, err)
	var named []string
	for _, b := range broken {
		named = append(named, s.name(b.Key, ""))
		if b.Why == "" {
			t.Errorf("%s: no reason", b.Key)
		}
	}
	for k := range bad {
		if contains := strings.Contains(strings.Join(named, " ")+" ", k+" "); contains != (k != good.Digest.Short()) {
			t.Errorf("%s is named: %v", k, contains)
		}
	}
	// What a group serves that cannot be read must not look like a new group.
	delete(want.Ready, "bad")
	delete(want.Instances, "b")
	want.At = got.At
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the rest changed:\n%s", diff)
	}
	rawPut(t, s, "fleet", `{`)
	_, err = s.View(t.Context())
	wantErr(t, err, ErrCorrupt, "fleet")
}

func TestViewFollowsRollouts(t *testing.T) {
	s := fleet(t)
	one := publish(t, s, "a")
	term := campaign(t, s, "c1")
	v := view(t, s)
	r := rollout.Rollout{Intent: v.Intents[0], Phase: rollout.PhasePreparing, Started: time.Unix(5, 0).UTC()}
	early := rollout.Rollout{Intent: rollout.Intent{ID: "z"}, Phase: rollout.PhasePending, Started: time.Unix(1, 0).UTC()}
	must(t, term.Apply(t.Context(), v, rollout.Change{Rollouts: []rollout.Rollout{r, early}, Done: []string{r.ID}}))
	v = view(t, s)
	if len(v.Rollouts) != 2 || v.Rollouts[0].ID != "z" || len(v.Intents) != 0 || v.Revisions[one.Number].Digest != one.Digest {
		t.Fatalf("view %+v", v)
	}
	r.Phase = rollout.PhaseDone
	must(t, term.Apply(t.Context(), v, rollout.Change{Rollouts: []rollout.Rollout{r}}))
	for range 2 { // the second time it is known to have ended
		if v = view(t, s); len(v.Rollouts) != 1 || v.Rollouts[0].ID != "z" {
			t.Errorf("rollouts %+v", v.Rollouts)
		}
	}
	r.Phase = rollout.PhasePreparing // not that it ever should
	must(t, term.Apply(t.Context(), v, rollout.Change{Rollouts: []rollout.Rollout{r}}))
	if v = view(t, s); len(v.Rollouts) != 2 {
		t.Errorf("rollouts %+v", v.Rollouts)
	}
	got, err := s.Rollout(t.Context(), r.ID)
	if err != nil || got.Phase != r.Phase {
		t.Errorf("rollout %+v, %v", got, err)
	}
}

func TestListsPageNewestFirst(t *testing.T) {
	s := fleet(t)
	const n = 2*page + 7
	for i := 1; i <= n; i++ {
		op := []clientv3.Op{
			put(s.revisionKey(int64(i)), version.Revision{Number: int64(i)}),
			put(s.auditKey(time.Unix(int64(i), 0)), rollout.AuditEntry{What: fmt.Sprint(i)}),
		}
		if _, err := s.txn(t.Context(), "test", "", nil, op, nil); err != nil {
			t.Fatal(err)
		}
	}
	rawPut(t, s, "revisions/00000000000000000005", "{") // left out
	all, err := s.History(t.Context(), 0, 0)
	must(t, err)
	if len(all) != n-1 || all[0].Number != n || all[n-2].Number != 1 {
		t.Errorf("%d revisions, from %d to %d", len(all), all[0].Number, all[len(all)-1].Number)
	}
	some, err := s.History(t.Context(), 3, 10)
	must(t, err)
	if len(some) != 3 || some[0].Number != 9 || some[2].Number != 7 {
		t.Errorf("revisions %+v", some)
	}
	var seen []string
	next := ""
	for {
		var entries []rollout.AuditEntry
		entries, next, err = s.Audit(t.Context(), 100, next)
		must(t, err)
		for _, e := range entries {
			seen = append(seen, e.What)
		}
		if next == "" {
			break
		}
	}
	if len(seen) != n+1 || seen[0] != "init" || seen[1] != fmt.Sprint(n) || seen[n] != "1" {
		t.Errorf("%d entries", len(seen))
	}
}

func TestNotFound(t *testing.T) {
	s := fleet(t)
	_, err := s.Revision(t.Context(), 7)
	wantErr(t, err, ErrNotFound, "revision 7")
	_, err = s.Chunk(t.Context(), version.DigestOf(nil))
	wantErr(t, err, ErrNotFound, "chunk")
	_, err = s.Manifest(t.Context(), version.DigestOf(nil))
	wantErr(t, err, ErrNotFound, "manifest")
	rawPut(t, s, "manifests/"+version.DigestOf(nil).String(), "junk")
	_, err = s.Manifest(t.Context(), version.DigestOf(nil))
	wantErr(t, err, ErrCorrupt)
	head, err := s.Head(t.Context())
	if head != 0 || err != nil {
		t.Errorf("head %d, %v", head, err)
	}
	if id, err := s.Leader(t.Context()); id != "" || err != nil {
		t.Errorf("leader %q, %v", id, err)
	}
}

func TestUnreachableEtcdIsNamed(t *testing.T) {
	endpoint := "unix://" + filepath.Join(t.TempDir(), "nobody")
	s := openAt(t, Config{Endpoints: []string{endpoint}, Timeout: 200 * time.Millisecond})
	_, err := s.View(t.Context())
	wantErr(t, err, ErrUnavailable, endpoint, "read view", "connect: no such file")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = s.Head(ctx)
	wantErr(t, err, ErrUnavailable, endpoint)
	gone, cancelNow := context.WithCancel(t.Context())
	cancelNow()
	_, err = s.Head(gone)
	wantErr(t, err, context.Canceled)
	if errors.Is(err, ErrUnavailable) {
		t.Errorf("error %v", err)
	}
}

func TestOpenChecksItsConfig(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no endpoint":   {Endpoints: []string{" "}},
		"half the user": {Endpoints: []string{"x:1"}, Username: "ann"},
	} {
		if _, err := Open(cfg); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	s := openAt(t, Config{Prefix: "/fleet"})
	if s.Prefix() != "/fleet/" || s.key(keyFleet) != "/fleet/fleet" {
		t.Errorf("prefix %q", s.Prefix())
	}
	must(t, s.Close())
	if _, err := s.Head(t.Context()); !errors.Is(err, errClosed) {
		t.Errorf("error %v", err)
	}
}

func TestDeniedNamesUserAndKey(t *testing.T) {
	e := own(t, 0)
	root := openAt(t, Config{Endpoints: []string{e.endpoint()}})
	if _, _, err := root.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, ctx := raw(t, root), t.Context()
	_, err := c.UserAdd(ctx, "root", "secret")
	must(t, err)
	_, err = c.RoleAdd(ctx, "root")
	must(t, err)
	_, err = c.UserGrantRole(ctx, "root", "root")
	must(t, err)
	_, err = c.UserAdd(ctx, "web", "secret")
	must(t, err)
	_, err = c.RoleAdd(ctx, "instance")
	must(t, err)
	// What an instance of group main named a needs: docs name the same keys.
	grant := func(key, end string, perm clientv3.PermissionType) {
		t.Helper()
		_, err := c.RoleGrantPermission(ctx, "instance", root.key(key), end, perm)
		must(t, err)
	}
	for _, key := range []string{"format", "groups/main", "prepare/main"} {
		grant(key, "", clientv3.PermissionType(clientv3.PermRead))
	}
	for _, dir := range []string{"chunks/", "manifests/"} {
		grant(dir, clientv3.GetPrefixRangeEnd(root.key(dir)), clientv3.PermissionType(clientv3.PermRead))
	}
	for _, key := range []string{"ready/main/a", "instances/a", "reports/a", "measures/a"} {
		grant(key, "", clientv3.PermissionType(clientv3.PermReadWrite))
	}
	_, err = c.UserGrantRole(ctx, "web", "instance")
	must(t, err)
	_, err = c.AuthEnable(ctx)
	must(t, err)

	s := openAt(t, Config{Endpoints: []string{e.endpoint()}, Username: "web", Password: "secret"})
	m := ready(t, s, "main", "a", "n1")
	must(t, m.Report(ctx, rollout.Report{}))
	must(t, m.Measure(ctx, rollout.Measure{}))
	await(t, states(t, s, "main", WatchOptions{}), "it is missing", GroupState.Missing)
	_, err = s.Fleet(ctx)
	wantErr(t, err, ErrDenied, `"web"`, root.key("fleet"))
	_, err = s.Join(ctx, rollout.Instance{Instance: "b", Group: "main", Boot: "x"}, 0)
	wantErr(t, err, ErrDenied, root.key("instances/b"))
	_, err = s.Campaign(ctx, "c1", 0)
	wantErr(t, err, ErrDenied, root.key("election/leader"))
	must(t, m.Leave(ctx))

	wrong := openAt(t, Config{Endpoints: []string{e.endpoint()}, Username: "web", Password: "wrong"})
	_, err = wrong.Head(ctx)
	wantErr(t, err, ErrDenied, `"web"`, "password")
}

func TestFullEtcdSaysSo(t *testing.T) {
	e := own(t, 200<<10)
	s := openAt(t, Config{Endpoints: []string{e.endpoint()}})
	if _, _, err := s.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		_, err = s.txn(t.Context(), "fill", "", nil, []clientv3.Op{clientv3.OpPut(fmt.Sprint("fill", i), strings.Repeat("x", 50<<10))}, nil)
	}
	wantErr(t, err, ErrNoSpace, "quota", "disarm", "then run routectl gc") // gc writes its lock, which a full etcd refuses
	_, err = s.View(t.Context())
	must(t, err)
}

func TestTooLargeSaysSo(t *testing.T) {
	s := fleet(t)
	_, err := s.txn(t.Context(), "put", "", nil, []clientv3.Op{clientv3.OpPut(s.key("x"), strings.Repeat("x", 1800<<10))}, nil)
	wantErr(t, err, ErrTooLarge)
	_, err = s.txn(t.Context(), "put", "", nil, []clientv3.Op{clientv3.OpPut(s.key("x"), strings.Repeat("x", 3<<20))}, nil)
	wantErr(t, err, ErrTooLarge)
}

func TestRecoverIntoAWipedEtcd(t *testing.T) {
	s := fleet(t)
	rev := publish(t, s, "a", "b")
	f, err := s.Format(t.Context())
	must(t, err)
	rawDelete(t, s, "", clientv3.WithPrefix())
	req := RecoverRequest{
		FleetID: f.FleetID, Target: rev.Ref(), Snapshots: []*version.Snapshot{snapshot(t, "a", "b")},
		Revisions: []version.Revision{rev}, Highest: 9,
		Groups: []rollout.Assignment{{Group: "main", Epoch: 5, Stable: rev.Ref()}},
		By:     "ann", Why: "disk died",
	}
	done, err := s.Recover(t.Context(), req)
	must(t, err)
	if !done.Created || len(done.Groups) != 1 || len(done.Revisions) != 1 || done.Uploaded.Chunks != 2 {
		t.Errorf("recovered %+v", done)
	}
	whole(t, s, rev.Digest)
	v := view(t, s)
	if v.Fleet.ID != f.FleetID || v.Fleet.Target != rev.Ref() || v.Groups["main"].Epoch != 5 || !v.Served[rev.Digest] || v.Revisions[1].Author != "ann" {
		t.Errorf("view %+v", v)
	}
	if next := publish(t, s, "c"); next.Number != 10 {
		t.Errorf("number %d", next.Number)
	}
	// A second time it would overwrite.
	unchanged(t, s, func() {
		_, err := s.Recover(t.Context(), req)
		wantErr(t, err, ErrConflict, "main")
	})
}

func TestRecoverOverwritesOnlyWhatIsNamed(t *testing.T) {
	s := fleet(t)
	rev := publish(t, s, "a")
	f, err := s.Format(t.Context())
	must(t, err)
	rawPut(t, s, "groups/main", assignment(5))
	req := func(change func(*RecoverRequest)) RecoverRequest {
		r := RecoverRequest{FleetID: f.FleetID, Replace: []string{"main"}, Groups: []rollout.Assignment{{Group: "main", Epoch: 6, Stable: rev.Ref()}}}
		change(&r)
		return r
	}
	for name, r := range map[string]RecoverRequest{
		"another fleet":    req(func(r *RecoverRequest) { r.FleetID = "x" }),
		"not named":        req(func(r *RecoverRequest) { r.Replace = nil }),
		"lower epoch":      req(func(r *RecoverRequest) { r.Groups[0].Epoch = 5 }),
		"another revision": req(func(r *RecoverRequest) { r.Revisions = []version.Revision{{Number: 1}} }),
	} {
		unchanged(t, s, func() {
			if _, err := s.Recover(t.Context(), r); !errors.Is(err, ErrConflict) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	_, err = s.Recover(t.Context(), req(func(*RecoverRequest) {}))
	must(t, err)
	if v := view(t, s); v.Groups["main"].Epoch != 6 || v.Fleet.Target != rev.Ref() {
		t.Errorf("view %+v", v)
	}
}

// TestRecoverMovesTheTarget: an older etcd composes the next publish on what
// was given back, a newer one on its own.
func TestRecoverMovesTheTarget(t *testing.T) {
	s := fleet(t)
	rev := publish(t, s, "a")
	f, err := s.Format(t.Context())
	must(t, err)
	newer := version.Ref{Number: 7, Digest: snapshot(t, "a", "b").Digest}
	for _, c := range []struct {
		back  version.Ref
		epoch int64
		want  version.Ref
	}{{version.Ref{}, 5, rev.Ref()}, {newer, 6, newer}, {rev.Ref(), 7, newer}} {
		_, err := s.Recover(t.Context(), RecoverRequest{
			FleetID: f.FleetID, Target: c.back, Highest: 7, Replace: []string{"main"},
			Groups: []rollout.Assignment{{Group: "main", Epoch: c.epoch, Stable: newer}},
		})
		must(t, err)
		if got := view(t, s).Fleet.Target; got != c.want {
			t.Errorf("%v was given back: target %v, want %v", c.back, got, c.want)
		}
	}
}

func TestI3_RecoverNeverLowersAnEpoch(t *testing.T) {
	s := fleet(t)
	f, err := s.Format(t.Context())
	must(t, err)
	for round := int64(0); round < 20; round++ {
		var wg sync.WaitGroup
		for i := range int64(4) {
			wg.Go(func() {
				_, err := s.Recover(t.Context(), RecoverRequest{
					FleetID: f.FleetID, Replace: []string{"main"}, Groups: []rollout.Assignment{{Group: "main", Epoch: 4*round + i + 1}},
				})
				if err != nil && !errors.Is(err, ErrConflict) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got := view(t, s).Groups["main"].Epoch; got != 4*round+4 {
			t.Fatalf("epoch %d after %d was put", got, 4*round+4)
		}
	}
}

func TestRecoverStopsOnGC(t *testing.T) {
	s := fleet(t)
	f, err := s.Format(t.Context())
	must(t, err)
	count, err := s.awaitGC(t.Context(), "test")
	must(t, err)
	gc(t, s)
	req := RecoverRequest{FleetID: f.FleetID, Groups: []rollout.Assignment{{Group: "main", Epoch: 1}}}
	unchanged(t, s, func() {
		_, err := s.recoverOnce(t.Context(), "test", req, count)
		wantErr(t, err, ErrStale)
	})
	_, err = s.Recover(t.Context(), req)
	must(t, err)
}

func TestNamesAreSafeInKeys(t *testing.T) {
	for _, ok := range []string{"a", "main", "eu-west.1_b", "9", strings.Repeat("x", MaxName)} {
		if err := CheckName("group", ok); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "a/b", "-a", ".", "..", "a b", "ä", "a\x00", strings.Repeat("x", MaxName+1)} {
		if CheckName("group", bad) == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// Intents are answered in the order in which etcd took them, whatever the
// clocks of those who asked said: the fleet ends where its target is.
func TestIntentsInTheOrderTheyCame(t *testing.T) {
	s := fleet(t)
	for i, id := range []string{"z", "b", "a"} {
		_, err := s.PutIntent(t.Context(), rollout.Intent{ID: id, Kind: rollout.IntentAbort, Time: time.Now().Add(-time.Duration(i) * time.Hour)}, nil, version.Ref{})
		must(t, err)
	}
	var got []string
	for _, i := range view(t, s).Intents {
		got = append(got, i.ID)
	}
	if !slices.Equal(got, []string{"z", "b", "a"}) {
		t.Errorf("order %v", got)
	}
}

// What a controller could not carry out is refused when it is asked, and left
// out when it is there all the same.
func TestImpossibleIntents(t *testing.T) {
	s := fleet(t)
	huge := strings.Repeat("x", maxIntent)
	unchanged(t, s, func() {
		_, err := s.PutIntent(t.Context(), rollout.Intent{Kind: rollout.IntentSwitch, Message: huge}, nil, version.Ref{})
		wantErr(t, err, ErrTooLarge, "shorten")
		_, err = s.PutIntent(t.Context(), rollout.Intent{Kind: rollout.IntentSwitch, Groups: []string{"a/b"}}, nil, version.Ref{})
		if err == nil || !strings.Contains(err.Error(), "group name") {
			t.Errorf("error %v", err)
		}
		_, err = s.Publish(t.Context(), PublishRequest{Snapshot: snapshot(t, "a"), Message: huge, Intent: &rollout.Intent{}})
		wantErr(t, err, ErrTooLarge, "shorten")
	})
	rawPut(t, s, "intents/x", `{"id":"x","kind":"switch","message":"`+huge+`"}`)
	v, broken, err := s.ViewBroken(t.Context())
	must(t, err)
	if len(v.Intents) != 0 || len(broken) != 1 {
		t.Errorf("%d intents, broken %v", len(v.Intents), broken)
	}
}

// An instance that says absurd things of itself makes no group of them and
// uses up no numbers.
func TestAbsurdInstances(t *testing.T) {
	s := fleet(t)
	rawPut(t, s, "instances/a", `{"instance":"a","group":"x/y"}`)
	rawPut(t, s, "reports/a", `{"instance":"a","group":"main","highestEpoch":9223372036854775807,"highestRevision":9223372036854775807}`)
	rawPut(t, s, "reports/b", `{"instance":"b","group":"main","highestEpoch":-1}`)
	rawPut(t, s, "instances/c", `{"instance":"c","group":"main"}`)
	rawPut(t, s, "reports/c", `{"instance":"c","group":"other","frozen":"store-went-back"}`)
	v, broken, err := s.ViewBroken(t.Context())
	must(t, err)
	if len(v.Instances) != 1 || len(v.Reports) != 0 || len(broken) != 4 {
		t.Errorf("instances %v, reports %v, broken %v", v.Instances, v.Reports, broken)
	}
	if rev := publish(t, s, "a"); rev.Number != 1 {
		t.Errorf("number %d", rev.Number)
	}
}

// Names that nobody may have reach no terminal, and what stops a commit is seen
// all the same.
func TestNamesOfNobodyAreLeftOut(t *testing.T) {
	s := fleet(t)
	rawPut(t, s, "groups/main", assignment(1))
	ready(t, s, "main", "a", "n1")
	wild := "\x1b[2J" // clears a terminal
	said, err := json.Marshal(wild)
	must(t, err)
	for key, value := range map[string]string{
		"instances/" + wild:         fmt.Sprintf(`{"instance":%s,"group":"main"}`, said),
		"reports/" + wild:           fmt.Sprintf(`{"instance":%s,"group":"main"}`, said),
		"reports/b":                 fmt.Sprintf(`{"instance":"b","group":%s}`, said),
		"groups/" + wild:            fmt.Sprintf(`{"group":%s,"epoch":1}`, said),
		"prepare/" + wild:           fmt.Sprintf(`{"group":%s}`, said),
		"ready/main/" + wild:        "n0",
		"ready/main/" + wild + wild: "n1",
		"ready/" + wild + "/a":      "n1",
	} {
		rawPut(t, s, key, value)
	}
	term := campaign(t, s, "c1")
	v, broken, err := s.ViewBroken(t.Context())
	must(t, err)
	if len(v.Instances) != 1 || len(v.Reports) != 0 || len(v.Groups) != 1 || len(v.Prepares) != 0 || len(v.Ready) != 1 || len(broken) != 8 {
		t.Errorf("instances %v, reports %v, groups %v, ready %v, broken %v", v.Instances, v.Reports, v.Groups, v.Ready, broken)
	}
	if got := slices.Sorted(maps.Keys(v.Ready["main"])); !slices.Equal(got, []string{`"\x1b[2J"`, `"\x1b[2J\x1b[2J"`, "a"}) {
		t.Errorf("ready %q", got)
	}
	if text := fmt.Sprint(v.Instances, v.Reports, v.Groups, v.Ready, broken); strings.Contains(text, "\x1b") {
		t.Errorf("a terminal gets %q", text)
	}
	wantErr(t, term.Apply(t.Context(), v, commit("main")), ErrNotReady, "main")
	must(t, second(s.Publish(t.Context(), PublishRequest{Snapshot: snapshot(t, "a")})))
}
