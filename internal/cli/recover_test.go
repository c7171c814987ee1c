package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"routerd.dev/internal/admin"
	"routerd.dev/internal/cli"
	"routerd.dev/internal/routefile"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// holder answers as the admin listener of an instance does that serves revision
// number of a table with one route.
func holder(t *testing.T, group string, number int64, path string, alter func(*admin.Holding)) (url string, snap *version.Snapshot) {
	t.Helper()
	mods, problems := routefile.Parse([]routefile.File{{
		Name: "a.yaml", Data: []byte("apiVersion: routerd/v1\nmodule: a\nroutes: [{name: a, path: " + path + ", respond: {body: a}}]\n"),
	}})
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	snap, err := version.Encode(version.Compose(nil, mods, true))
	if err != nil {
		t.Fatal(err)
	}
	h := admin.Holding{
		Fleet: "f", Group: group, Instance: group + "-1", Serving: version.Ref{Number: number, Digest: snap.Digest},
		HighestEpoch: 3, HighestRevision: number, Manifest: snap.ManifestBytes, Chunks: map[string][]byte{},
	}
	for d, packed := range snap.Chunks() {
		h.Chunks[d.String()] = packed
	}
	if alter != nil {
		alter(&h)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(h) }))
	t.Cleanup(s.Close)
	return s.URL, snap
}

// TestRecoverFrom: what instances give back is in etcd whole, or nothing is, and
// the waiting is for those who gave it.
func TestRecoverFrom(t *testing.T) {
	etcd := startEtcd(t)
	run := func(prefix string, args ...string) (code int, out, said string) {
		var stdout, stderr bytes.Buffer
		env := cli.Env{Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr, Getenv: func(string) string { return "" }, Now: time.Now}
		code = cli.Run(context.Background(), env, append(args, "--endpoints", etcd, "--prefix", prefix))
		return code, stdout.String(), stderr.String()
	}
	stored := func(prefix string) *store.Store {
		s, err := store.Open(store.Config{Endpoints: []string{etcd}, Prefix: prefix})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}

	main, snap := holder(t, "main", 1, "/a", nil)
	code, _, said := run("/gone", "recover", "--from", main, "--wait", "--timeout", "300ms")
	if code != cli.ExitNotReached || !strings.Contains(said, "main-1 (not registered)") {
		t.Errorf("nobody is registered: code %d: %s", code, said)
	}
	rev, err := stored("/gone").Revision(t.Context(), 1)
	if err != nil || len(rev.Needs) == 0 || !slices.Equal(rev.Needs, snap.Manifest.Capabilities) {
		t.Errorf("revision 1 needs %v (%v), want %v", rev.Needs, err, snap.Manifest.Capabilities)
	}

	again, _ := holder(t, "edge", 2, "/a", nil)
	if code, _, said = run("/twice", "recover", "--from", main, "--from", again); code != cli.ExitDone {
		t.Errorf("two numbers of one digest: code %d: %s", code, said)
	}
	for n := int64(1); n <= 2; n++ {
		if rev, err := stored("/twice").Revision(t.Context(), n); err != nil || rev.Digest != snap.Digest {
			t.Errorf("revision %d: %v", n, err)
		}
	}

	other, _ := holder(t, "edge", 1, "/b", nil)
	code, _, said = run("/differ", "recover", "--from", main, "--from", other)
	if code != cli.ExitConflict || !strings.Contains(said, "restore from "+other+": revision 1 is ") {
		t.Errorf("two digests of one number: code %d: %s", code, said)
	}

	for name, alter := range map[string]func(*admin.Holding){
		"group name":             func(h *admin.Holding) { h.Group = "../x" },
		"instance name":          func(h *admin.Holding) { h.Instance = "" },
		"epoch 1099511627776":    func(h *admin.Holding) { h.HighestEpoch = 1 << 40 },
		"epoch -1":               func(h *admin.Holding) { h.HighestEpoch = -1 },
		"revision 1099511627776": func(h *admin.Holding) { h.Serving.Number = 1 << 40 },
		"revision 0":             func(h *admin.Holding) { h.Serving.Number = 0 },
		"highest revision -1":    func(h *admin.Holding) { h.HighestRevision = -1 },
	} {
		from, _ := holder(t, "main", 1, "/a", alter)
		code, _, said := run("/foreign", "recover", "--from", from)
		if code != cli.ExitFailed || !strings.Contains(said, "restore from "+from+": "+name) {
			t.Errorf("%s: code %d: %s", name, code, said)
		}
	}

	rude := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "\x1b[2J", http.StatusTeapot) }))
	defer rude.Close()
	if _, _, said = run("/foreign", "recover", "--from", rude.URL); !strings.Contains(said, `teapot: \x1b[2J`) {
		t.Errorf("a foreign body: %q", said)
	}
	if code, _, said = run("/foreign", "status"); code != cli.ExitFailed || !strings.Contains(said, "not initialized") {
		t.Errorf("what was refused is not written: code %d: %s", code, said)
	}
}
