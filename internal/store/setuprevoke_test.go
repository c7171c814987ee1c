package store

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestRevokedStaysRevoked: the same setup again, as by a container that starts,
// lets no stolen certificate in; the others are set up as ever, and a killed
// revocation is brought to its end.
func TestRevokedStaysRevoked(t *testing.T) {
	e := secure(t, true)
	as := setUp(t, e)
	root, ctx := as("root"), t.Context()
	thief := raw(t, as("a"))
	shut := func(when string) {
		t.Helper()
		if _, err := thief.Put(ctx, "/routerd/instances/a", "x"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
			t.Errorf("%s: who has the stolen certificate writes: %v", when, err)
		}
		if _, err := thief.Get(ctx, "/routerd/fleet"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
			t.Errorf("%s: who has the stolen certificate reads: %v", when, err)
		}
	}
	if _, err := thief.Put(ctx, "/routerd/instances/a", "x"); err != nil {
		t.Fatal(err)
	}
	steps, err := root.SetUpAccess(ctx, Setup{Access: Access{Revoke: []string{"a", "publisher"}}})
	must(t, err)
	if steps[0].Do != addRole || steps[0].Role != "/routerd/revoked:a" {
		t.Errorf("the mark is not made first, so that a killed revocation is forgotten: %v", steps)
	}
	shut("revoked")

	var out []string
	anew := Setup{Access: everybody, StaysOut: func(name string) { out = append(out, name) }}
	anew.Instances = map[string]string{"a": "main", "ab": "edge", "e": "mainland"} // ab has moved
	steps, err = root.SetUpAccess(ctx, anew)
	must(t, err)
	if !slices.Equal(out, []string{"a", "publisher"}) {
		t.Errorf("told that %v stay out", out)
	}
	if len(steps) == 0 {
		t.Error("the others are not set up")
	}
	shut("set up again")
	if again, err := root.SetUpAccess(ctx, anew); err != nil || len(again) > 0 {
		t.Errorf("done again: %v, %v", again, err)
	}
	st, err := root.AccessState(ctx)
	must(t, err)
	if got := st.Review("/routerd/").Revoked; !slices.Equal(got, []string{"a", "publisher"}) {
		t.Errorf("the review names %v", got)
	}

	// Only the mark was written, or somebody gave the name back by hand.
	_, err = raw(t, root).RoleDelete(ctx, "/routerd/revoked:a")
	must(t, err)
	_, err = root.SetUpAccess(ctx, Setup{Access: Access{Instances: map[string]string{"a": "main"}}})
	must(t, err)
	if _, err := thief.Put(ctx, "/routerd/instances/a", "x"); err != nil {
		t.Fatal(err)
	}
	_, err = raw(t, root).RoleAdd(ctx, "/routerd/revoked:a")
	must(t, err)
	_, err = root.SetUpAccess(ctx, Setup{})
	must(t, err)
	shut("marked")
	if got, err := raw(t, root).Get(ctx, "/routerd/instances/a"); err != nil || got.Count > 0 {
		t.Errorf("what a marked instance wrote is still there: %v", err)
	}

	// Deleting all of the fleet's keys, as before recovering it, does not forget.
	_, err = raw(t, root).Delete(ctx, "/routerd/", clientv3.WithPrefix())
	must(t, err)
	_, err = root.SetUpAccess(ctx, anew)
	must(t, err)
	shut("with its keys deleted")

	var not []string
	_, err = root.SetUpAccess(ctx, Setup{
		Access:     Access{Instances: map[string]string{"a": "main"}, Reinstate: []string{"a", "ab"}},
		NotRevoked: func(name string) { not = append(not, name) },
	})
	must(t, err)
	if _, err := thief.Put(ctx, "/routerd/instances/a", "x"); err != nil || !slices.Equal(not, []string{"ab"}) {
		t.Errorf("a, reinstated: %v; not revoked were %v", err, not)
	}
}

// TestNoRolesForAllFleets: a prefix that every key is under is refused before
// anything is asked of etcd.
func TestNoRolesForAllFleets(t *testing.T) {
	s := openAt(t, Config{Endpoints: []string{"127.0.0.1:1"}, Prefix: "/"})
	if _, err := s.SetUpAccess(t.Context(), Setup{Access: everybody}); err == nil || !strings.Contains(err.Error(), "one of the fleet's own") {
		t.Errorf("error %v", err)
	}
}

// TestRevokeWhoIsNotThere: a name that nobody has here is an error, and nothing is done.
func TestRevokeWhoIsNotThere(t *testing.T) {
	e := secure(t, true)
	as := setUp(t, e)
	root, ctx := as("root"), t.Context()
	other := e.as(t, "root")
	other.cfg.Prefix = "/other/"
	_, err := other.SetUpAccess(ctx, Setup{Access: Access{Readers: []string{"stranger"}}})
	must(t, err)
	for name, say := range map[string]string{
		"publsher": "nobody has this name, near to it is publisher; routectl etcd show",
		"zzzzzzzz": "nobody has this name; routectl etcd show",
		"stranger": "no role of the fleet under /routerd/, only /other/reader; --prefix",
	} {
		steps, err := root.SetUpAccess(ctx, Setup{Access: Access{Revoke: []string{"ab", name}}})
		if !errors.Is(err, ErrNotFound) || len(steps) > 0 || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v, %v", name, steps, err)
		}
	}
	st, err := root.AccessState(ctx)
	must(t, err)
	if _, there := st.Users["ab"]; !there || len(st.Revoked("/routerd/")) > 0 {
		t.Errorf("ab is there: %v; revoked: %v", there, st.Revoked("/routerd/"))
	}
}

func TestDistance(t *testing.T) {
	for _, x := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"edge-1", "edge-1", 0}, {"edge-1", "edge-2", 1}, {"egde", "edge", 2}, {"kitten", "sitting", 3}} {
		if got := distance(x.a, x.b); got != x.want {
			t.Errorf("from %q to %q: %d, want %d", x.a, x.b, got, x.want)
		}
	}
}
