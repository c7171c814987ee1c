package daemon

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"
)

// TestToldToEndWithoutEtcd: whoever is told to end while etcd is away cannot
// give its leases back. That costs its bounded time and is no failure: systemd
// would start again what was stopped on purpose.
func TestToldToEndWithoutEtcd(t *testing.T) {
	e, err := startEtcd(t.Context(), etcdOptions{Dir: filepath.Join(t.TempDir(), "etcd"), Listen: "127.0.0.1:0", Setting: "etcd", Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	t.Cleanup(func() {
		if !stopped {
			stopEtcd(e)
		}
	})
	r := start(t, instanceConfig(t, etcdEndpoint(e)))
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "up") }))
	defer up.Close()
	r.publish(up.URL)
	stopEtcd(e)
	stopped = true
	eventually(t, "it says that etcd does not answer", func() bool {
		_, body := r.adminJSON("/v1/status")
		etcd, _ := body["etcd"].(map[string]any)
		return etcd["reachable"] == false
	})
	began := time.Now()
	r.stop()
	r.ended()
	// Resigning and leaving go side by side, each its 2 s; the rest is for a busy machine.
	if took := time.Since(began); took > 3*time.Second+patience/2 {
		t.Errorf("it took %s to end", took)
	}
}
