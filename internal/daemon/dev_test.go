package daemon

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func devOptions(t *testing.T, args ...string) DevOptions {
	t.Helper()
	var o DevOptions
	fs := pflag.NewFlagSet("dev", pflag.ContinueOnError)
	o.Flags(fs)
	any := "127.0.0.1:0"
	if err := fs.Parse(append([]string{"--http", any, "--admin", any, "--etcd", any, "--upstreams", any, "--log-level", "error"}, args...)); err != nil {
		t.Fatal(err)
	}
	return o
}

// A devRun is `routerd dev` in a test.
type devRun struct {
	t    *testing.T
	said *syncBuffer
	stop context.CancelFunc
	done chan error
}

func dev(t *testing.T, o DevOptions) *devRun {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	d := &devRun{t: t, said: &syncBuffer{}, stop: cancel, done: make(chan error, 1)}
	go func() { d.done <- Dev(ctx, o, d.said) }()
	t.Cleanup(cancel)
	eventually(t, "it announces itself", func() bool {
		select {
		case err := <-d.done:
			t.Fatalf("dev ended with %v; it said:\n%s", err, d.said)
		default:
		}
		return strings.Contains(d.said.String(), "Ctrl-C ends it all")
	})
	return d
}

func (d *devRun) end() {
	d.t.Helper()
	d.stop()
	select {
	case err := <-d.done:
		if err != nil {
			d.t.Errorf("dev ended with %v", err)
		}
	case <-time.After(patience):
		d.t.Fatal("dev does not end")
	}
}

// after finds what follows a word in the announcement.
func (d *devRun) after(word string) string {
	d.t.Helper()
	m := regexp.MustCompile(`(?m)^  ` + regexp.QuoteMeta(word) + `\s+(?:group \w+\s+)?(?:http://)?(\S+)`).FindStringSubmatch(d.said.String())
	if m == nil {
		d.t.Fatalf("%s is not announced:\n%s", word, d.said)
	}
	return m[1]
}

func (d *devRun) get(addr, path string) (*http.Response, string) {
	d.t.Helper()
	r, err := http.NewRequestWithContext(d.t.Context(), "GET", "http://"+addr+path, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	r.Close = true // so that the front picks anew for each
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		d.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return res, string(b)
}

// TestDevServesAndLeavesNothing: every instance answers behind the front with
// the examples, and at the end there is no file left; goroutines TestMain counts.
func TestDevServesAndLeavesNothing(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	d := dev(t, devOptions(t))
	front := d.after("front")
	seen := map[string]bool{}
	for range 9 {
		res, body := d.get(front, "/products/7")
		if res.StatusCode != 200 || res.Header.Get("Routerd-Route") != "shop/product" || res.Header.Get("Routerd-Revision") != "1" || !strings.Contains(body, "/products/7") {
			t.Fatalf("%d %v %q", res.StatusCode, res.Header, body)
		}
		seen[res.Header.Get("Routerd-Instance")] = true
	}
	if len(seen) != 3 || !seen["canary-1"] || !seen["main-1"] || !seen["main-2"] {
		t.Errorf("the front balances over %v, want three instances", seen)
	}
	var try []string
	for _, m := range regexp.MustCompile(`(?m)^  \./bin/routectl --endpoints \S+ (\w+)`).FindAllStringSubmatch(d.said.String(), -1) {
		try = append(try, m[1])
	}
	if want := "explain diff publish rollback"; strings.Join(try, " ") != want {
		t.Errorf("commands to try: %v, want %s:\n%s", try, want, d.said)
	}
	d.end()
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestDevKeepsItsDataDirectory(t *testing.T) {
	dir := t.TempDir()
	routes := write(t, "m.yaml", `
apiVersion: routerd/v1
module: m
routes: [{name: hi, path: /hi, respond: {body: hi}}]
`)
	o := devOptions(t, "--instances", "2", "--data-dir", dir, "--routes", routes)
	d := dev(t, o)
	res, body := d.get(d.after("front"), "/hi")
	if res.StatusCode != 200 || body != "hi" || res.Header.Get("Routerd-Route") != "m/hi" {
		t.Fatalf("%d %q", res.StatusCode, body)
	}
	d.end()
	d = dev(t, o)
	again, body := d.get(d.after("front"), "/hi")
	if again.StatusCode != 200 || body != "hi" || again.Header.Get("Routerd-Revision") != "1" || again.Header.Get("Routerd-Epoch") < res.Header.Get("Routerd-Epoch") {
		t.Errorf("after a restart: %d %q %v, before %v", again.StatusCode, body, again.Header, res.Header)
	}
	if !strings.Contains(d.said.String(), "--routes is not published") {
		t.Errorf("it does not say that --routes was left out:\n%s", d.said)
	}
	d.end()
	if _, err := os.Stat(filepath.Join(dir, "etcd")); err != nil {
		t.Error(err)
	}
}

func TestDevEmpty(t *testing.T) {
	d := dev(t, devOptions(t, "--instances", "1", "--empty"))
	if !strings.Contains(d.said.String(), "waits for its first revision") && !strings.Contains(d.said.String(), "is serving") {
		t.Errorf("said:\n%s", d.said)
	}
	res, _ := d.get(d.after("front"), "/products/7")
	if res.StatusCode == 200 {
		t.Error("something is served though nothing was published")
	}
	d.end()
}

func TestDevRefusesBadRoutes(t *testing.T) {
	bad := write(t, "bad.yaml", "apiVersion: routerd/v1\nmodule: m\nroutes: [{name: hi, path: hi}]\n")
	err := Dev(t.Context(), devOptions(t, "--instances", "1", "--routes", bad), io.Discard)
	if err == nil || !strings.Contains(err.Error(), bad+":3") {
		t.Errorf("%v, want the file and line", err)
	}
}

func TestDevNamesTakenPorts(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().String()
	for _, flag := range []string{"http", "admin", "etcd", "upstreams"} {
		err := Dev(t.Context(), devOptions(t, "--instances", "1", "--"+flag, addr), io.Discard)
		if want := fmt.Sprintf("--%s %s: the port is taken", flag, addr); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--%s: %v, want %q", flag, err, want)
		}
	}
}

// TestDevEndsWithTheReason: one instance that fails ends all of them, and why
// is what is said.
func TestDevEndsWithTheReason(t *testing.T) {
	endpoint := anEtcd(t, "127.0.0.1:0")
	o := devOptions(t, "--instances", "2", "--empty")
	front, err := listen("http", o.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	defer front.Close()
	ups, err := o.listenUpstreams()
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(ups)
	instances, err := o.instances(t.Context(), t.TempDir(), endpoint)
	if err != nil {
		t.Fatal(err)
	}
	var said syncBuffer
	done := make(chan error, 1)
	go func() {
		done <- o.run(context.Background(), &devFleet{front: front, upstreams: ups, etcd: endpoint, instances: instances}, &said)
	}()
	eventually(t, "it runs", func() bool { return strings.Contains(said.String(), "Ctrl-C") })
	instances[1].fronts[0].net.Close()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "instance main-1: serve http on") {
			t.Errorf("%v", err)
		}
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
	if n := registered(t, endpoint); n != 0 {
		t.Errorf("%d instances are registered", n)
	}
}

func TestDevInterruptedWhileStarting(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Dev(ctx, devOptions(t), io.Discard); err != nil {
		t.Error(err)
	}
}
