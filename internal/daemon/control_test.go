package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"routerd.dev/internal/agent"
	"routerd.dev/internal/engine"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/route"
	"routerd.dev/internal/routefile"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// TestPinByTheSocket: an order on the instance's own socket comes into force
// with etcd away, survives a restart, is said at every door, and is taken back.
func TestPinByTheSocket(t *testing.T) {
	e, err := startEtcd(t.Context(), etcdOptions{Dir: filepath.Join(t.TempDir(), "etcd"), Listen: "127.0.0.1:0", Setting: "etcd", Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	down := false
	t.Cleanup(func() {
		if !down {
			stopEtcd(e)
		}
	})
	cfg := instanceConfig(t, etcdEndpoint(e))
	cfg.JoinTimeout = time.Second
	r := start(t, cfg)
	r.publish("http://127.0.0.1:1")
	republish(t, r, "apiVersion: routerd/v1\nmodule: m\nroutes:\n  - {name: hi, path: /hi, respond: {body: second}}\n")
	eventually(t, "revision 2 is served", func() bool {
		s := r.agent.Status()
		return s.Serving != nil && s.Serving.Revision == 2 && len(s.Holds) == 2
	})

	ctl := Controls{Socket: cfg.ControlPath()}
	info, err := os.Stat(ctl.Socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v %v", info, err)
	}
	st, err := ctl.Status(t.Context())
	if err != nil || st.Serving.Revision != 2 || len(st.Pinnable) != 2 || !st.Readiness.Ready {
		t.Fatalf("status (%v): %+v", err, st)
	}
	stopEtcd(e)
	down = true
	if _, err := ctl.Pin(t.Context(), PinOrder{To: "7"}); err == nil || !strings.Contains(err.Error(), "1 (") || !strings.Contains(err.Error(), "2 (") {
		t.Errorf("what is not held: %v", err)
	}
	res, err := ctl.Pin(t.Context(), PinOrder{To: "1", By: "op", Why: "it hurts"})
	if err != nil || res.Status.Serving.Revision != 1 || res.Status.Pinned.IsZero() || res.Warning != "" {
		t.Fatalf("pin (%v): %+v", err, res)
	}
	r.pinned("hi")
	r.stop()
	r.ended()
	if _, err := os.Stat(ctl.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	if _, err := ctl.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "no routerd answers at "+ctl.Socket) {
		t.Errorf("nobody there: %v", err)
	}

	r = start(t, cfg)
	eventually(t, "it serves from disk", func() bool { return r.agent.Ready().Ready })
	r.pinned("hi")
	if res, err = ctl.Unpin(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what is committed is served", func() bool { return r.agent.Status().Serving.Revision == 2 })
	if code, body := r.adminJSON("/readyz"); code != 200 || body["pinned"] != nil {
		t.Errorf("unpinned: %d %v", code, body)
	}
	if res, err = ctl.Forgive(t.Context()); err != nil || res.Status.Instance != cfg.Instance {
		t.Errorf("forgive (%v): %+v", err, res)
	}
}

// pinned looks at every door that has to say so.
func (r *running) pinned(body string) {
	r.t.Helper()
	if got := get(r.t, r.url("/hi")); got != body {
		r.t.Errorf("served %q, want %q", got, body)
	}
	if code, b := r.adminJSON("/readyz"); code != 200 || b["pinned"] == nil || !strings.Contains(b["why"].(string), "PINNED") {
		r.t.Errorf("/readyz: %d %v", code, b)
	}
	if _, b := r.adminJSON("/v1/status"); b["pinned"] == nil || b["pin"].(map[string]any)["number"] != 1.0 {
		r.t.Errorf("/v1/status: %v", b)
	}
	if m := get(r.t, "http://"+r.admin[0].net.Addr().String()+"/metrics"); !strings.Contains(m, "routerd_pinned{group=\"main\",instance=\"a\"") || !strings.Contains(m, "} 1\n") {
		r.t.Errorf("metrics do not say so:\n%.400s", m)
	}
	if !strings.Contains(r.said.String(), "PINNED") {
		r.t.Error("the log does not say so")
	}
}

func TestControlSocketIsFoundAndReplaced(t *testing.T) {
	dir, err := os.MkdirTemp("", "control-") // a path that is short enough
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	// What a killed process left: a socket that nobody listens on.
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	left.Close()
	l, err := listenControl(t.Context(), path)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	if _, err := listenControl(t.Context(), path); err == nil || !strings.Contains(err.Error(), "another process listens") {
		t.Errorf("one in use: %v", err)
	}
	l.Close()
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenControl(t.Context(), path); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("a file: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "mine" {
		t.Error("somebody's file is gone")
	}
	c, _ := settings(t, "--state-dir", "/"+strings.Repeat("d", maxSocketPath))
	if err := c.Check(); err == nil || !strings.Contains(err.Error(), "--control") {
		t.Errorf("a path that is too long: %v", err)
	}
	c, _ = settings(t, "--state-dir", "/"+strings.Repeat("d", maxSocketPath), "--control", "/run/s.sock")
	if err := c.Check(); err != nil || c.ControlPath() != "/run/s.sock" {
		t.Errorf("elsewhere: %v", err)
	}
}

// silent is an agent that is asked nothing.
type silent struct{}

func (silent) Ready() agent.Readiness                                 { return agent.Readiness{} }
func (silent) Status() agent.Status                                   { return agent.Status{} }
func (silent) Pinnable(context.Context) ([]version.Ref, error)        { return nil, errors.New("ending") }
func (silent) Unpin(context.Context) (r agent.PinResult, err error)   { return r, nil }
func (silent) Forgive(context.Context) (r agent.PinResult, err error) { return r, nil }
func (silent) Pin(_ context.Context, to, _, _ string) (r agent.PinResult, err error) {
	return r, errors.New("asked for " + to)
}

// TestControlRefusesNonsense: nothing but an order is one.
func TestControlRefusesNonsense(t *testing.T) {
	h := control(silent{}, noLog())
	for _, c := range []struct {
		method, path, body string
		code               int
		says               string
	}{
		{"POST", "/v1/pin", "", 409, "want an object"},
		{"POST", "/v1/pin", `{"to": ""}`, 409, "want an object"},
		{"POST", "/v1/pin", `{"to": "4"}`, 409, "asked for 4"},
		{"POST", "/v1/pin", strings.Repeat(" ", maxOrder+1), 409, "want an object"},
		{"GET", "/v1/pin", "", 405, ""},
		{"GET", "/v1/unpin", "", 405, ""},
		{"POST", "/v1/unpin", "", 200, ""},
		{"GET", "/v1/forgive", "", 405, ""},
		{"POST", "/v1/forgive", "", 200, ""},
		{"GET", "/v1/status", "", 200, "pinnable"},
	} {
		if code, text := ask(h, c.method, c.path, c.body); code != c.code || !strings.Contains(text, c.says) {
			t.Errorf("%s %s %.20s: %d %s", c.method, c.path, c.body, code, text)
		}
	}
}

func TestSettingsOfSecrets(t *testing.T) {
	for _, c := range []struct{ args, says string }{
		{"--token-cookie t", "token-cookie: goes with token-key"},
		{"--token-strict", "token-strict: goes with token-key"},
		{"--token-key k --token-cookie a=b", "token-cookie"},
		{"--notify-url http://hook/x", "notify-key: goes with notify-url"},
		{"--notify-key k", "notify-key: goes with notify-url"},
		{"--notify-key k --notify-url ftp://secret@hook/x", "notify-url: want"},
	} {
		cfg, _ := settings(t, strings.Fields(c.args)...)
		if err := cfg.Check(); err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", c.args, err)
		}
	}
	cfg, _ := settings(t, "--token-key", "k", "--token-cookie", "at", "--token-strict", "--notify-key", "k", "--notify-url", "https://a/x,y", "--notify-url", "http://b/")
	if err := cfg.Check(); err != nil || len(cfg.NotifyURLs) != 2 || cfg.NotifyURLs[0] != "https://a/x,y" {
		t.Errorf("%v %q", err, cfg.NotifyURLs)
	}
	open := write(t, "key", "abc\n")
	if b, err := readSecret(open); err != nil || string(b) != "abc" {
		t.Errorf("%q %v", b, err)
	}
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readSecret(open); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("open to others: %v", err)
	}
	if _, err := readSecret(write(t, "none", " \n")); err == nil {
		t.Error("an empty key")
	}
}

func ask(h http.Handler, method, path, body string) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w.Code, w.Body.String()
}

func get(t *testing.T, url string) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// republish replaces the whole table.
func republish(t *testing.T, r *running, file string) {
	t.Helper()
	mods, problems := routefile.Parse([]routefile.File{{Name: "m.yaml", Data: []byte(file)}})
	table := &route.Table{Modules: mods}
	if err := append(problems, engine.Check(table)...).Err(); err != nil {
		t.Fatal(err)
	}
	snap, err := version.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	v, err := r.store.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.Publish(t.Context(), store.PublishRequest{
		Snapshot: snap, Parent: v.Fleet.Target, Author: "test", Intent: &rollout.Intent{Kind: rollout.IntentSwitch},
	}); err != nil {
		t.Fatal(err)
	}
}
