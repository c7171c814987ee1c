package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// A secured etcd asks for client certificates; ca makes them.
type secured struct {
	ca       *Authority
	endpoint string
	prefix   string
}

func secure(t *testing.T, clientCertAuth bool) *secured {
	t.Helper()
	ca, err := OpenAuthority(t.TempDir(), time.Now())
	must(t, err)
	server, err := ca.Issue(CertificateRequest{Name: "etcd", Hosts: []string{"localhost", "127.0.0.1"}, Days: 1})
	must(t, err)
	authority, _ := ca.Files()
	dir, err := os.MkdirTemp("", "store-access-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	e := &etcd{dir: dir, change: func(cfg *embed.Config) {
		cfg.ListenClientUrls = []url.URL{{Scheme: "https", Host: "localhost:0"}}
		cfg.ClientTLSInfo = transport.TLSInfo{CertFile: server.Cert, KeyFile: server.Key, ClientCertAuth: clientCertAuth}
		if clientCertAuth {
			cfg.ClientTLSInfo.TrustedCAFile = authority
		}
		cfg.BcryptCost = 4
	}}
	must(t, e.start())
	t.Cleanup(e.stop)
	return &secured{ca: ca, endpoint: "https://localhost:" + portOf(e.e.Clients[0].Addr().String()), prefix: "/routerd/"}
}

// as is a store of who has the certificate with this name.
func (e *secured) as(t *testing.T, user string) *Store {
	t.Helper()
	return e.with(t, user, Config{})
}

func (e *secured) with(t *testing.T, user string, cfg Config) *Store {
	t.Helper()
	c, err := e.ca.Issue(CertificateRequest{Name: user, Days: 1})
	must(t, err)
	authority, _ := e.ca.Files()
	cfg.TLS, err = LoadTLS(authority, c.Cert, c.Key)
	must(t, err)
	cfg.Endpoints, cfg.Prefix = []string{e.endpoint}, e.prefix
	return openAt(t, cfg)
}

// everybody is one of each kind, and instances whose names begin alike.
var everybody = Access{
	Instances:   map[string]string{"a": "main", "ab": "main", "e": "mainland"},
	Controllers: map[string]string{"c": "main"},
	Publishers:  []string{"publisher"}, Collectors: []string{"collector"}, Operators: []string{"operator"}, Readers: []string{"reader"},
}

// setUp has everybody may what he should, and returns a store for each.
func setUp(t *testing.T, e *secured) func(user string) *Store {
	t.Helper()
	steps, err := e.as(t, "root").SetUpAccess(t.Context(), Setup{Access: everybody, Enable: true})
	must(t, err)
	if len(steps) == 0 || steps[len(steps)-1].Do != enableAccess {
		t.Fatalf("steps %v", steps)
	}
	stores := map[string]*Store{}
	return func(user string) *Store {
		if stores[user] == nil {
			stores[user] = e.as(t, user)
		}
		return stores[user]
	}
}

// TestRolesAreEnough goes the whole way with each part's own certificate.
func TestRolesAreEnough(t *testing.T) {
	e := secure(t, true)
	as := setUp(t, e)
	ctx := t.Context()
	again, err := as("root").SetUpAccess(ctx, Setup{Access: everybody, Enable: true})
	if err != nil || len(again) > 0 {
		t.Fatalf("done again: %v, %v", again, err)
	}
	if _, _, err := as("operator").Init(ctx); err != nil {
		t.Fatal(err)
	}
	rev := publish(t, as("publisher"), "hello")
	term := campaign(t, as("c"), "c")
	set := []version.Ref{rev.Ref()}
	must(t, term.Apply(ctx, view(t, as("c")), rollout.Change{Prepares: []rollout.Prepare{{Group: "main", Nonce: "n1", Set: set}}}))

	ch := states(t, as("a"), "main", WatchOptions{Reread: time.Hour})
	st := await(t, ch, "something is prepared", func(g GroupState) bool { return g.Prepare != nil })
	b, err := as("a").Manifest(ctx, rev.Digest)
	must(t, err)
	if _, _, err := version.Load(ctx, rev.Digest, b, as("a"), nil); err != nil {
		t.Fatal(err)
	}
	members := map[string]*Membership{}
	for _, name := range []string{"a", "ab", "c"} {
		members[name] = join(t, as(name), "main", name)
		must(t, members[name].Admit(ctx, st, "n1"))
		must(t, members[name].Report(ctx, rollout.Report{HighestRevision: 1}))
		must(t, members[name].Measure(ctx, rollout.Measure{}))
	}
	must(t, term.Apply(ctx, view(t, as("c")), rollout.Change{
		Groups:   []rollout.Assignment{{Group: "main", Epoch: 1, Nonce: "n1", Set: set, Stable: rev.Ref()}},
		Withdraw: []string{"main"}, Ready: map[string]rollout.Nonce{"main": "n1"},
		Rollouts: []rollout.Rollout{{Intent: rollout.Intent{ID: "r"}, Plan: &rollout.Strategy{}, Phase: rollout.PhaseRunning}},
		Serve:    []version.Digest{rev.Digest}, Bake: []version.Digest{rev.Digest}, Condemn: []rollout.Condemned{{Digest: version.DigestOf([]byte("x"))}},
		Audit: []rollout.AuditEntry{{Time: time.Now(), What: "switch"}},
	}))
	await(t, ch, "epoch 1 is committed", func(g GroupState) bool { return g.Assignment != nil && g.Assignment.Epoch == 1 })
	must(t, term.PutChecks(ctx, rollout.Checks{Rollout: "r"}))
	must(t, members["ab"].StepOut(ctx, "n1"))
	must(t, members["ab"].Leave(ctx))
	join(t, as("ab"), "main", "ab") // and anew

	for who, s := range map[string]*Store{"publisher": as("publisher"), "reader": as("reader")} {
		if v := view(t, s); v.Ready["main"]["a"].Nonce != "n1" || v.Reports["a"].HighestRevision != 1 {
			t.Errorf("%s sees %+v", who, v)
		}
		if _, err := s.Rollouts(ctx, 0); err != nil {
			t.Errorf("%s: %v", who, err)
		}
	}
	if _, err := as("publisher").PutIntent(ctx, rollout.Intent{Kind: rollout.IntentAbort, By: "ann"}, nil, version.Ref{}); err != nil {
		t.Error(err)
	}
	if _, err := as("collector").GC(ctx, "collector", KeepPolicy{}); err != nil {
		t.Error(err)
	}
	must(t, as("operator").Pardon(ctx, version.DigestOf([]byte("x")), "ann", ""))
	must(t, as("operator").SetSettings(ctx, "ann", func(x *rollout.Settings) error { x.HistoryLimit = 9; return nil }))
	must(t, as("operator").Pin(ctx, 1, "", "ann"))
	_, err = as("operator").Recover(ctx, RecoverRequest{FleetID: view(t, as("reader")).Fleet.ID, Groups: []rollout.Assignment{{Group: "new", Epoch: 1}}, By: "ann"})
	must(t, err)
}

// TestRolesAreNoMoreThanEnough has everybody try every kind of record.
func TestRolesAreNoMoreThanEnough(t *testing.T) {
	e := secure(t, true)
	as := setUp(t, e)
	keys := []string{
		"format", "fleet", "head", "election/leader", "gc/lock", "gc/count", "chunks/1", "manifests/1", "revisions/1",
		"groups/main", "groups/mainland", "groups/x", "prepare/main", "prepare/mainland",
		"ready/main/a", "ready/main/ab", "ready/main/c", "ready/mainland/e", "ready/mainland/a", "ready/x/a", "ready/main/a/b",
		"instances/a", "instances/ab", "instances/c", "instances/e", "instances/", "reports/a", "reports/ab", "measures/a", "measures/ab",
		"bound/a", "bound/c",
		"intents/1", "rollouts/1", "ended/1", "condemned/1", "served/1", "baked/1", "strategies/s", "checks/1", "pins/1", "audit/1", "unheard-of",
	}
	own := func(name, group string) string {
		return fmt.Sprintf("instances/%s ready/%s/%s reports/%s measures/%s", name, group, name, name, name)
	}
	decide := " election/leader groups/main groups/mainland groups/x prepare/main prepare/mainland intents/1 rollouts/1 ended/1" +
		" condemned/1 served/1 baked/1 checks/1 audit/1 fleet"
	writes := map[string]string{
		"a": own("a", "main"), "ab": own("ab", "main"), "e": own("e", "mainland"), "c": own("c", "main") + decide,
		"publisher": "chunks/1 manifests/1 revisions/1 intents/1 audit/1 head fleet",
		"collector": "gc/lock gc/count chunks/1 manifests/1 revisions/1 served/1 baked/1 ended/1 audit/1",
		"operator":  strings.Join(keys, " "), "reader": "", "nobody": "",
	}
	reads := map[string]string{
		"a":      writes["a"] + " format fleet groups/main prepare/main ready/main/ab ready/main/c ready/main/a/b chunks/1 manifests/1",
		"ab":     writes["ab"] + " format fleet groups/main prepare/main ready/main/a ready/main/c ready/main/a/b chunks/1 manifests/1",
		"e":      writes["e"] + " format fleet groups/mainland prepare/mainland ready/mainland/a chunks/1 manifests/1",
		"nobody": "",
	}
	for user, may := range writes {
		s := as(user)
		c := raw(t, s)
		canRead, narrow := reads[user]
		check := func(what, key, allowed string, err error) {
			t.Helper()
			want := slices.Contains(strings.Fields(allowed), key)
			if denied := errors.Is(err, rpctypes.ErrPermissionDenied); err != nil && !denied || denied == want {
				t.Errorf("%s: %s of %s: %v, want it allowed: %v", user, what, key, err, want)
			}
		}
		for _, key := range keys {
			_, err := c.Put(t.Context(), s.key(key), "x")
			check("put", key, may, err)
			_, err = c.Delete(t.Context(), s.key(key))
			check("delete", key, may, err)
			if !narrow {
				canRead = strings.Join(keys, " ")
			}
			_, err = c.Get(t.Context(), s.key(key))
			check("get", key, canRead, err)
		}
		for what, key := range map[string]string{"another fleet": "/routerd-2/fleet", "before": "/routerd", "after": "/routerd0"} {
			if _, err := c.Put(t.Context(), key, "x"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
				t.Errorf("%s may write %s: %v", user, what, err)
			}
			if _, err := c.Get(t.Context(), key); !errors.Is(err, rpctypes.ErrPermissionDenied) {
				t.Errorf("%s may read %s: %v", user, what, err)
			}
		}
		if _, err := c.Get(t.Context(), s.Prefix(), clientv3.WithPrefix()); (err != nil) != narrow {
			t.Errorf("%s reads everything: %v", user, err)
		}
		if _, err := c.UserAdd(t.Context(), "thief", "x"); err == nil {
			t.Errorf("%s makes users: %v", user, err)
		}
		if _, err := s.AccessState(t.Context()); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "only etcd's root") {
			t.Errorf("%s: %v", user, err)
		}
	}
}

// TestSetUpTakesAway: roles that are too wide, roles of before, of those who
// are named, and what is revoked; and nothing else.
func TestSetUpTakesAway(t *testing.T) {
	e := secure(t, true)
	as := setUp(t, e)
	root, ctx := as("root"), t.Context()
	c := raw(t, root)
	grant := func(role, key, end string, kind clientv3.PermissionType) {
		t.Helper()
		_, err := c.RoleGrantPermission(ctx, role, key, end, kind)
		must(t, err)
	}
	wide := clientv3.PermissionType(clientv3.PermReadWrite)
	grant("/routerd/instance:a", "/routerd/reports/", "/routerd/reports0", wide)
	grant("/routerd/reader", "/routerd/", "/routerd0", wide)
	_, err := c.RoleAdd(ctx, "routerd-instance")
	must(t, err)
	grant("routerd-instance", "/routerd/ready/", "/routerd/ready0", wide)
	_, err = c.RoleAdd(ctx, "theirs")
	must(t, err)
	grant("theirs", "/theirs", "", wide)
	for _, role := range []string{"routerd-instance", "theirs", "/routerd/publisher"} {
		_, err = c.UserGrantRole(ctx, "ab", role)
		must(t, err)
	}
	st, err := root.AccessState(ctx)
	must(t, err)
	wrong := fmt.Sprint(st.Review("/routerd/"))
	for _, say := range []string{"more than needed: readwrite /routerd/reports/*", "more than needed: readwrite /routerd/*", "not of routectl etcd setup, and may readwrite /routerd/ready/*"} {
		if !strings.Contains(wrong, say) {
			t.Errorf("the review does not say %q: %s", say, wrong)
		}
	}

	dry, err := root.SetUpAccess(ctx, Setup{Access: Access{Instances: map[string]string{"ab": "edge"}}, DryRun: true})
	must(t, err)
	done, err := root.SetUpAccess(ctx, Setup{Access: Access{Instances: map[string]string{"ab": "edge"}}})
	must(t, err)
	if fmt.Sprint(dry) != fmt.Sprint(done) {
		t.Errorf("would do %v, did %v", dry, done)
	}
	st, err = root.AccessState(ctx)
	must(t, err)
	if got := st.Users["ab"]; !slices.Equal(got, []string{"/routerd/instance:ab", "theirs"}) {
		t.Errorf("ab has %v", got)
	}
	if got := st.Users["publisher"]; !slices.Equal(got, []string{"/routerd/publisher"}) {
		t.Errorf("publisher, who was not named, has %v", got)
	}
	for _, r := range st.Review("/routerd/").Roles {
		if len(r.Wrong) > 0 && r.Name != "routerd-instance" {
			t.Errorf("%s: %v", r.Name, r.Wrong)
		}
	}
	if _, err := raw(t, as("ab")).Put(ctx, "/routerd/ready/main/ab", "x"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("ab, of another group now, writes where it was: %v", err)
	}

	join(t, as("a"), "main", "a")
	_, err = root.SetUpAccess(ctx, Setup{Access: Access{Revoke: []string{"a", "reader"}}})
	must(t, err)
	if got, err := c.Get(ctx, "/routerd/instances/a"); err != nil || got.Count > 0 {
		t.Errorf("what a revoked instance wrote is still there: %v", err)
	}
	if _, err := raw(t, as("a")).Put(ctx, "/routerd/instances/a", "x"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("a, revoked, writes: %v", err)
	}
	if _, err := raw(t, as("reader")).Get(ctx, "/routerd/fleet"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("reader, revoked, reads: %v", err)
	}
	st, err = root.AccessState(ctx)
	must(t, err)
	if _, there := st.Users["a"]; there || st.Roles["/routerd/instance:a"] != nil {
		t.Errorf("a, revoked, is still known")
	}
}

// TestEnableNeverLocksOut: where root cannot get in, access control is off as
// before, and nobody is left who could.
func TestEnableNeverLocksOut(t *testing.T) {
	e := secure(t, false) // etcd does not look at certificates
	root := e.as(t, "root")
	_, err := root.SetUpAccess(t.Context(), Setup{Access: everybody, Enable: true})
	if err == nil || !strings.Contains(err.Error(), "off again") || !strings.Contains(err.Error(), "--root-password") {
		t.Errorf("error %v", err)
	}
	st, err := root.AccessState(t.Context())
	must(t, err)
	if st.Enabled {
		t.Error("access control is on")
	}
	for user := range st.Users {
		if strings.HasPrefix(user, setupUser) {
			t.Errorf("%s is left", user)
		}
	}
	if _, there := st.Users["root"]; there {
		t.Error("root, who did not get in, is left, without a password")
	}
	// Who could never get in is told so before anything is written.
	for _, user := range []string{"", "publisher"} {
		s := e.as(t, cmp.Or(user, "x"))
		if user == "" {
			s.cfg.TLS = s.cfg.TLS.Clone()
			s.cfg.TLS.GetClientCertificate = nil
		}
		_, err = s.SetUpAccess(t.Context(), Setup{Access: Access{Readers: []string{"late"}}, Enable: true})
		if err == nil || !strings.Contains(err.Error(), "nothing was done") || !strings.Contains(err.Error(), user) {
			t.Errorf("%q: error %v", user, err)
		}
	}
	st, err = root.AccessState(t.Context())
	must(t, err)
	for _, user := range []string{"root", "late"} {
		if _, there := st.Users[user]; there {
			t.Errorf("%s was made by a setup that failed", user)
		}
	}
	// A root that somebody left without a password is given one, and keeps its roles.
	c := raw(t, root)
	_, err = c.UserAddWithOptions(t.Context(), "root", "", &clientv3.UserAddOptions{NoPassword: true})
	must(t, err)
	_, err = c.RoleAdd(t.Context(), "theirs")
	must(t, err)
	_, err = c.UserGrantRole(t.Context(), "root", "theirs")
	must(t, err)
	passwords := map[string]string{"a": "one", "publisher": "two"}
	_, err = root.SetUpAccess(t.Context(), Setup{Access: everybody, Passwords: passwords, Enable: true, RootPassword: "secret"})
	must(t, err)
	if _, err := root.AccessState(t.Context()); !errors.Is(err, ErrDenied) {
		t.Errorf("who is not root sees users: %v", err)
	}

	// A password that is not the one asked for is set, and roles stay.
	signedIn := e.with(t, "root", Config{Username: "root", Password: "secret"})
	if st, err := signedIn.AccessState(t.Context()); err != nil || !slices.Equal(st.Users["root"], []string{"root", "theirs"}) {
		t.Errorf("root has %v, %v", st.Users["root"], err)
	}
	steps, err := signedIn.SetUpAccess(t.Context(), Setup{Access: everybody, Passwords: passwords})
	if err != nil || len(steps) > 0 {
		t.Errorf("done again: %v, %v", steps, err)
	}
	passwords["a"] = "other"
	steps, err = signedIn.SetUpAccess(t.Context(), Setup{Access: everybody, Passwords: passwords})
	if err != nil || len(steps) != 3 { // deleted, made, and its role
		t.Errorf("another password: %v, %v", steps, err)
	}
	s := e.with(t, "x", Config{Username: "a", Password: "other"})
	if _, err := raw(t, s).Put(t.Context(), s.key("instances/a"), "x"); err != nil {
		t.Error(err)
	}

	// With access control on, too, what a killed setup left is told from what is in use.
	lease, err := raw(t, signedIn).Grant(t.Context(), 600)
	must(t, err)
	name := fmt.Sprintf("%s%016x", setupUser, int64(lease.ID))
	_, err = raw(t, signedIn).UserAdd(t.Context(), name, "x")
	must(t, err)
	for _, want := range []int{0, 1} {
		steps, err = signedIn.SetUpAccess(t.Context(), Setup{})
		if err != nil || len(steps) != want {
			t.Errorf("steps %v, %v; want %d", steps, err, want)
		}
		_, err = raw(t, signedIn).Revoke(t.Context(), lease.ID)
		must(t, unless(err, rpctypes.ErrLeaseNotFound))
	}
}

// TestEnableByWhoIsReadAgain: what the caller's credentials are read again from
// is not root's, whose password is another.
func TestEnableByWhoIsReadAgain(t *testing.T) {
	e := secure(t, false)
	c, err := e.ca.Issue(CertificateRequest{Name: "y", Days: 1})
	must(t, err)
	authority, _ := e.ca.Files()
	s := e.with(t, "x", Config{Sources: &Sources{CA: authority, Cert: c.Cert, Key: c.Key}})
	_, err = s.SetUpAccess(t.Context(), Setup{Access: everybody, Enable: true, RootPassword: "secret"})
	must(t, err)
	root := e.with(t, "z", Config{Username: "root", Password: "secret"})
	if st, err := root.AccessState(t.Context()); err != nil || !st.Enabled {
		t.Errorf("access control is on: %v, %v", st.Enabled, err)
	}
}

// TestPlanIsTheSameEachTime, also of what is found in no order.
func TestPlanIsTheSameEachTime(t *testing.T) {
	st := AccessState{Users: map[string][]string{}, Roles: map[string][]Grant{}}
	for i := range 9 {
		st.Users[fmt.Sprintf("%s%016x", setupUser, i)] = []string{rootUser}
	}
	o := Setup{Access: everybody, Enable: true}
	first := o.plan("/routerd/", st)
	if n := len(slices.DeleteFunc(slices.Clone(first), func(x AccessStep) bool { return x.Do != deleteUser })); n != 9 {
		t.Errorf("%d users of killed setups are deleted", n)
	}
	for range 20 {
		if again := o.plan("/routerd/", st); !slices.Equal(again, first) {
			t.Fatalf("steps %v, and before %v", again, first)
		}
	}
}

// TestSetupsLeaveEachOtherTheWayBack: one that turns access control on and finds
// that root does not get in still has the user by whom it turns it off, whoever
// sets up meanwhile. What a killed one left goes, and nobody else's user.
func TestSetupsLeaveEachOtherTheWayBack(t *testing.T) {
	s := openAt(t, Config{Endpoints: []string{own(t, 0).endpoint()}, Prefix: "/routerd/"})
	c, ctx := raw(t, s), t.Context()
	users := func() []string {
		t.Helper()
		_, err := s.SetUpAccess(ctx, Setup{Access: Access{Readers: []string{"r"}}})
		must(t, err)
		st, err := s.AccessState(ctx)
		must(t, err)
		return slices.DeleteFunc(slices.Sorted(maps.Keys(st.Users)), func(name string) bool { return name == "r" })
	}
	lease, err := c.Grant(ctx, 600)
	must(t, err)
	other := fmt.Sprintf("%s%016x", setupUser, int64(lease.ID))
	for _, name := range []string{other, setupUser + "0badcafe", setupUser + "0badcafe0badcafe", setupUser + "ada", setupUser + "ci"} {
		_, err := c.UserAdd(ctx, name, "secret")
		must(t, err)
	}
	foreign := []string{setupUser + "ada", setupUser + "ci"}
	if got, want := users(), append([]string{other}, foreign...); !slices.Equal(got, want) {
		t.Errorf("while another setup is under way there are %v, want %v", got, want)
	}
	st, err := s.AccessState(ctx)
	must(t, err)
	if said := fmt.Sprint(st.Review("/routerd/").Users); strings.Count(said, "under way, or was killed: routectl etcd setup removes it, 10 minutes after") != 1 {
		t.Errorf("the review says %s", said)
	}
	_, err = c.Revoke(ctx, lease.ID)
	must(t, err)
	if got := users(); !slices.Equal(got, foreign) {
		t.Errorf("when it has ended there are %v, want %v", got, foreign)
	}

	// One that fails in the middle is told from one that is under way.
	if err := s.enableAccess(ctx, Setup{}, false); err == nil {
		t.Fatal("access control is on without root")
	}
	st, err = s.AccessState(ctx)
	must(t, err)
	left := slices.DeleteFunc(slices.Collect(maps.Keys(st.Users)), func(name string) bool { return name == "r" || slices.Contains(foreign, name) })
	if len(left) != 1 {
		t.Fatalf("left: %v", left)
	}
	if _, ok := setupLease(left[0]); !ok {
		t.Errorf("%s is taken for somebody else's", left[0])
	}
	if got := users(); !slices.Equal(got, foreign) {
		t.Errorf("after one that failed there are %v, want %v", got, foreign)
	}
	leases, err := c.Leases(ctx)
	if err != nil || len(leases.Leases) > 0 {
		t.Errorf("leases %v, %v", leases, err)
	}
}

// TestNamesThatReachFurther are refused, before anything is asked of etcd.
func TestNamesThatReachFurther(t *testing.T) {
	for name, a := range map[string]Access{
		"empty instance":        {Instances: map[string]string{"": "main"}},
		"slash":                 {Instances: map[string]string{"a/b": "main"}},
		"slash in group":        {Instances: map[string]string{"a": "main/a"}},
		"empty group":           {Controllers: map[string]string{"a": ""}},
		"NUL":                   {Instances: map[string]string{"a\x00": "main"}},
		"NUL in a publisher":    {Publishers: []string{"p\x00"}},
		"empty publisher":       {Publishers: []string{""}},
		"a path":                {Readers: []string{"../x"}},
		"root":                  {Readers: []string{"root"}},
		"revoke root":           {Revoke: []string{"root"}},
		"two groups":            {Instances: map[string]string{"a": "x"}, Controllers: map[string]string{"a": "y"}},
		"revoked and made":      {Instances: map[string]string{"a": "x"}, Revoke: []string{"a"}},
		"a password's file":     {Operators: []string{".hidden"}},
		"a shell's words":       {Operators: []string{"a b"}},
		"a name that is a flag": {Operators: []string{"-a"}},
		"a setup's own":         {Operators: []string{setupUser + "ci"}},
		"an instance's so":      {Instances: map[string]string{setupUser + "1": "main"}},
		"reinstated":            {Reinstate: []string{setupUser + "1"}},
	} {
		s := open(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // nothing can be asked
		if _, err := s.SetUpAccess(ctx, Setup{Access: a}); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFalseNumbers: what one instance makes up does not bring the fleet's own
// numbers to where the true ones of others are not believed any more.
func TestFalseNumbers(t *testing.T) {
	s := fleet(t)
	first := publish(t, s, "a")
	term := campaign(t, s, "c")
	commit := func(epoch int64, to version.Ref) {
		t.Helper()
		must(t, term.Apply(t.Context(), view(t, s), rollout.Change{Groups: []rollout.Assignment{{Group: "main", Epoch: epoch, Nonce: "n", Stable: to}}}))
	}
	commit(5, first.Ref())
	honest, thief := join(t, s, "main", "a"), join(t, s, "main", "b")
	for _, n := range []int64{1<<63 - 1, 1 << 53, 1 << 40, 1 << 32} {
		must(t, thief.Report(t.Context(), rollout.Report{HighestEpoch: n, HighestRevision: n}))
		rev := publish(t, s, fmt.Sprint("b", n))
		must(t, honest.Report(t.Context(), rollout.Report{HighestEpoch: 5, HighestRevision: rev.Number}))
		v := view(t, s)
		if _, believed := v.Reports["a"]; !believed || rev.Number > 1<<33 {
			t.Errorf("after %d: revision %d, the honest one is believed: %v", n, rev.Number, believed)
		}
		highest := max(v.Groups["main"].Epoch, v.Reports["a"].HighestEpoch, v.Reports["b"].HighestEpoch)
		commit(highest+1, rev.Ref())
		must(t, honest.Report(t.Context(), rollout.Report{HighestEpoch: highest + 1}))
		if _, believed := view(t, s).Reports["a"]; !believed {
			t.Errorf("after recovering from %d nobody believes the honest one", n)
		}
	}
}
