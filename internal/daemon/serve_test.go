package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"routerd.dev/internal/store"
	"routerd.dev/internal/telemetry"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // etcd's gateway speaks when it is closed
	code := m.Run()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if err := goleak.Find(goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon")); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func anEtcd(t *testing.T, listen string) string {
	t.Helper()
	e, err := startEtcd(t.Context(), etcdOptions{Dir: filepath.Join(t.TempDir(), "etcd"), Listen: listen, Setting: "etcd", Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopEtcd(e) })
	return etcdEndpoint(e)
}

func instanceConfig(t *testing.T, endpoint string) Config {
	t.Helper()
	c, _ := settings(t, "--instance", "a", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--endpoints", endpoint,
		"--state-dir", t.TempDir(), "--controller", "--drain-timeout", "10s", "--response-headers")
	return *c
}

// A running is an instance that a test runs.
type running struct {
	*instance
	t    *testing.T
	stop context.CancelFunc
	done chan error
	said *syncBuffer
}

func start(t *testing.T, cfg Config) *running {
	t.Helper()
	r := &running{t: t, done: make(chan error, 1), said: &syncBuffer{}}
	var err error
	if r.instance, err = newInstance(t.Context(), cfg, telemetry.Config{LogOutput: r.said}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() { r.done <- r.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-r.done:
			if err != nil {
				t.Errorf("the instance ended with %v", err)
			}
		case <-time.After(patience):
			t.Error("the instance does not end")
		}
		if t.Failed() {
			t.Logf("%s said:\n%s", cfg.Instance, r.said)
		}
	})
	return r
}

// ended waits for the instance's end.
func (r *running) ended() {
	r.t.Helper()
	select {
	case err := <-r.done:
		r.done <- err
		if err != nil {
			r.t.Errorf("the instance ended with %v", err)
		}
	case <-time.After(patience):
		r.t.Fatal("the instance does not end")
	}
}

func (r *running) url(path string) string { return "http://" + r.fronts[0].net.Addr().String() + path }

// adminJSON asks the admin listener.
func (r *running) adminJSON(path string) (int, map[string]any) {
	r.t.Helper()
	res, err := http.Get("http://" + r.admin[0].net.Addr().String() + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	var body map[string]any
	if err := json.NewDecoder(res.Body).Decode(&body); err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, body
}

// publish gives the fleet routes to an upstream, and waits until it serves
// them.
func (r *running) publish(upstream string) {
	r.t.Helper()
	file := write(r.t, "m.yaml", `
apiVersion: routerd/v1
module: m
upstreams: {up: {targets: ["`+upstream+`"]}}
routes:
  - {name: all, prefix: /, proxy: {upstream: up}}
  - {name: hi, path: /hi, respond: {body: hi}}
`)
	eventually(r.t, "the instance joins", func() bool { return joined([]*instance{r.instance}) })
	if err := (&DevOptions{Routes: []string{file}}).publishFirst(r.t.Context(), r.store, nil); err != nil {
		r.t.Fatal(err)
	}
	eventually(r.t, "the instance serves", func() bool { return r.agent.Ready().Ready })
}

func registered(t *testing.T, endpoint string) int {
	t.Helper()
	s, err := store.Open(store.Config{Endpoints: []string{endpoint}, Prefix: "/routerd"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	v, err := s.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(v.Instances)
}

// TestDrain: readiness goes, the request that runs ends well, new ones are told
// that their connection closes, and only then the lease is given back.
func TestDrain(t *testing.T) {
	endpoint := anEtcd(t, "127.0.0.1:0")
	cfg := instanceConfig(t, endpoint)
	cfg.AccessLog = filepath.Join(t.TempDir(), "access.log")
	cfg.DrainDelay = 2 * time.Second
	r := start(t, cfg)
	arrived, release := make(chan struct{}), make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/slow" {
			close(arrived)
			<-release
		}
		fmt.Fprint(w, "done")
	}))
	defer up.Close()
	r.publish(up.URL)
	if code, body := r.adminJSON("/readyz"); code != 200 || body["source"] != "etcd" {
		t.Fatalf("before: %d %v", code, body)
	}

	answer := make(chan string, 1)
	go func() {
		res, err := http.Get(r.url("/slow"))
		if err != nil {
			answer <- err.Error()
			return
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		answer <- fmt.Sprint(res.StatusCode, string(b), err)
	}()
	<-arrived
	r.stop()
	eventually(t, "readiness goes", func() bool { return !r.agent.Ready().Ready })
	eventually(t, "the front drains", r.front.draining.Load)
	for _, path := range []string{"/hi", "/other"} { // answered here, and upstream
		res, err := http.Get(r.url(path))
		if err != nil {
			t.Fatalf("within drain-delay: %v", err)
		}
		res.Body.Close()
		if res.StatusCode != 200 || !res.Close {
			t.Errorf("within drain-delay %s: %d, connection closes: %v", path, res.StatusCode, res.Close)
		}
	}
	if code, body := r.adminJSON("/readyz"); code != 503 || body["why"] != "draining" {
		t.Errorf("draining: %d %v", code, body)
	}
	eventually(t, "no more is accepted", func() bool {
		conn, err := net.Dial("tcp", r.fronts[0].net.Addr().String())
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	if n := registered(t, endpoint); n != 1 {
		t.Errorf("%d instances are registered while a request runs, want 1", n)
	}
	close(release)
	if got := <-answer; got != "200done<nil>" {
		t.Errorf("the request that ran: %s", got)
	}
	r.ended()
	if n := registered(t, endpoint); n != 0 {
		t.Errorf("%d instances are registered at the end, want 0", n)
	}
	b, err := os.ReadFile(cfg.AccessLog)
	if err != nil || strings.Count(string(b), "\n") != 3 || !strings.Contains(string(b), `"path":"/slow","proto":"HTTP/1.1","status":200`) {
		t.Errorf("access log (%v):\n%s", err, b)
	}
	r.close() // and again
}

// TestDrainIsBounded: what does not end, a stream or an upgraded connection, is
// cut at drain-timeout, said so, and no failure of the process.
func TestDrainIsBounded(t *testing.T) {
	endpoint := anEtcd(t, "127.0.0.1:0")
	cfg := instanceConfig(t, endpoint)
	cfg.DrainTimeout = 300 * time.Millisecond
	cfg.AccessLog = filepath.Join(t.TempDir(), "access.log")
	r := start(t, cfg)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		rc := http.NewResponseController(w)
		if req.Header.Get("Upgrade") == "" {
			fmt.Fprintln(w, "begun")
			_ = rc.Flush()
			<-req.Context().Done()
			return
		}
		echoTunnel(w, req)
	}))
	defer up.Close()
	r.publish(up.URL)

	res, err := http.Get(r.url("/stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	tunnel := dial(t, r.fronts[0].net.Addr().String())
	if err := tunnel.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(tunnel, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	in := bufio.NewReader(tunnel)
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, "101") {
		t.Fatalf("%q %v", line, err)
	}
	eventually(t, "the tunnel is open", func() bool { return r.lib.Upstreams.Stats().Tunnels == 1 })
	r.stop()
	r.ended()
	if _, err := io.Copy(io.Discard, in); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the tunnel is still open")
	}
	for _, want := range []string{"requests were cut off", "upgraded connections were cut off"} {
		if !strings.Contains(r.said.String(), want) {
			t.Errorf("not said: %s", want)
		}
	}
	if b, err := os.ReadFile(cfg.AccessLog); err != nil || strings.Count(string(b), "\n") != 2 {
		t.Errorf("access log (%v), want both requests:\n%s", err, b)
	}
}

// TestDrainWaitsForTunnels, but not longer than they last.
func TestDrainWaitsForTunnels(t *testing.T) {
	endpoint := anEtcd(t, "127.0.0.1:0")
	r := start(t, instanceConfig(t, endpoint))
	up := httptest.NewServer(http.HandlerFunc(echoTunnel))
	defer up.Close()
	r.publish(up.URL)
	tunnel := dial(t, r.fronts[0].net.Addr().String())
	if err := tunnel.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(tunnel, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	in := bufio.NewReader(tunnel)
	for line := ""; line != "\r\n"; {
		var err error
		if line, err = in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	r.stop()
	eventually(t, "no more is accepted", func() bool {
		conn, err := net.Dial("tcp", r.fronts[0].net.Addr().String())
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	fmt.Fprintln(tunnel, "still here")
	if line, err := in.ReadString('\n'); err != nil || line != "still here\n" {
		t.Errorf("while draining the tunnel gave %q %v", line, err)
	}
	if n := registered(t, endpoint); n != 1 {
		t.Errorf("%d instances are registered while a tunnel is open, want 1", n)
	}
	tunnel.Close()
	r.ended()
	if strings.Contains(r.said.String(), "cut off") {
		t.Error("something was cut off")
	}
}

// TestStartWithoutEtcd: the process lives, answers at its doors, is not ready,
// says why, and joins when etcd comes.
func TestStartWithoutEtcd(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	endpoint := free.Addr().String()
	free.Close()
	cfg := instanceConfig(t, endpoint)
	cfg.JoinTimeout = 200 * time.Millisecond
	r := start(t, cfg)
	eventually(t, "it says that etcd does not answer", func() bool {
		code, body := r.adminJSON("/readyz")
		why, _ := body["why"].(string)
		return code == 503 && strings.Contains(why, "etcd")
	})
	eventually(t, "it logs so", func() bool {
		return strings.Contains(r.said.String(), "etcd") && strings.Contains(r.said.String(), "level=WARN") || strings.Contains(r.said.String(), "level=ERROR")
	})
	res, err := http.Get(r.url("/"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
		t.Errorf("a request: %d", res.StatusCode)
	}
	if got := anEtcd(t, endpoint); got != endpoint {
		t.Fatal(got)
	}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "up") }))
	defer up.Close()
	r.publish(up.URL)
	if res, err = http.Get(r.url("/x")); err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 || res.Header.Get("Routerd-Revision") != "1" {
		t.Errorf("once etcd is there: %d %v", res.StatusCode, res.Header)
	}
	r.stop() // before etcd, which waits for its watches
	r.ended()
}

// TestToldToEndWhileStarting is no failure, with and without an etcd of its own.
func TestToldToEndWhileStarting(t *testing.T) {
	for _, embedded := range []bool{false, true} {
		cfg := instanceConfig(t, "127.0.0.1:1")
		cfg.EmbeddedEtcd, cfg.EtcdListen, cfg.LogLevel = embedded, "127.0.0.1:0", "error"
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		begun := time.Now()
		if err := Serve(ctx, cfg); err != nil {
			t.Errorf("embedded %v: %v", embedded, err)
		}
		if took := time.Since(begun); took > patience {
			t.Errorf("embedded %v: it took %v", embedded, took)
		}
	}
}

func TestTakenPortIsNamed(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().String()
	cert, key, _ := selfSigned(t, t.TempDir(), 1)
	for _, c := range []struct {
		name string
		set  func(*Config)
	}{
		{"http", func(c *Config) { c.HTTP = addr }},
		{"https", func(c *Config) { c.HTTPS, c.TLSCert, c.TLSKey = addr, cert, key }},
		{"h2c", func(c *Config) { c.H2C = addr }},
		{"admin", func(c *Config) { c.Admin = addr }},
		{"embedded-etcd-listen", func(c *Config) { c.EmbeddedEtcd, c.EtcdListen = true, addr }},
	} {
		cfg := instanceConfig(t, "127.0.0.1:1")
		cfg.LogLevel = "error"
		c.set(&cfg)
		err := Serve(t.Context(), cfg)
		if want := "--" + c.name + " " + addr + ": the port is taken"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestNothingIsLeftOfAFailedStart: what was bound and locked is free again.
func TestNothingIsLeftOfAFailedStart(t *testing.T) {
	cfg := instanceConfig(t, "127.0.0.1:1")
	cfg.EtcdPassword, cfg.EtcdUser = "file:/nowhere/password", "u"
	cfg.AccessLog = filepath.Join(t.TempDir(), "access.log")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.HTTP = free.Addr().String()
	free.Close()
	for range 2 {
		i, err := newInstance(t.Context(), cfg, telemetry.Config{LogOutput: io.Discard})
		if err == nil || !strings.Contains(err.Error(), "/nowhere/password") {
			t.Fatalf("%v %v", i, err)
		}
	}
}

func TestOneProcessForAStateDirectory(t *testing.T) {
	cfg := instanceConfig(t, "127.0.0.1:1")
	quiet := telemetry.Config{LogOutput: io.Discard}
	i, err := newInstance(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if other, err := newInstance(t.Context(), cfg, quiet); err == nil || !strings.Contains(err.Error(), "another routerd uses it") {
		t.Errorf("a second one: %v %v", other, err)
	}
	i.close()
	i.close()
	again, err := newInstance(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatalf("after the first: %v", err)
	}
	if !slices.Contains(again.state.former, i.state.boot) {
		t.Errorf("the processes before are %q, want %q among them", again.state.former, i.state.boot)
	}
	again.close()
}

func TestStateDirectoryThatCannotBe(t *testing.T) {
	cfg := instanceConfig(t, "127.0.0.1:1")
	cfg.StateDir = write(t, "file", "")
	if _, err := newInstance(t.Context(), cfg, telemetry.Config{LogOutput: io.Discard}); err == nil || !strings.Contains(err.Error(), "--state-dir") {
		t.Errorf("%v", err)
	}
}

// TestFailedPartDrainsTheRest: a listener that fails does not leave half a
// process behind, and its reason is the instance's.
func TestFailedPartDrainsTheRest(t *testing.T) {
	endpoint := anEtcd(t, "127.0.0.1:0")
	cfg := instanceConfig(t, endpoint)
	cfg.H2C = "127.0.0.1:0"
	i, err := newInstance(t.Context(), cfg, telemetry.Config{LogOutput: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- i.run(context.Background()) }()
	eventually(t, "it joins", func() bool { return joined([]*instance{i}) })
	i.fronts[1].net.Close()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "serve h2c on") {
			t.Errorf("%v", err)
		}
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	if n := registered(t, endpoint); n != 0 {
		t.Errorf("%d instances are registered", n)
	}
}

// TestSystemd hears of the start, of life and of the drain.
func TestSystemd(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	endpoint := anEtcd(t, "127.0.0.1:0")
	cfg := instanceConfig(t, endpoint)
	cfg.LogLevel = "error"
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, cfg) }()
	if err := l.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	heard := func(want string) {
		t.Helper()
		b := make([]byte, 64)
		for {
			n, _, err := l.ReadFromUnix(b)
			if err != nil {
				t.Fatalf("%s: %v", want, err)
			}
			if string(b[:n]) == want {
				return
			}
		}
	}
	heard("READY=1")
	heard("WATCHDOG=1")
	cancel()
	heard("STOPPING=1")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestEmbeddedEtcdIsAFleet: one process is enough, and comes back with its
// history.
func TestEmbeddedEtcdIsAFleet(t *testing.T) {
	cfg := instanceConfig(t, "")
	cfg.Endpoints, cfg.EmbeddedEtcd, cfg.Controller, cfg.EtcdListen, cfg.LogLevel = nil, true, false, "127.0.0.1:0", "error"
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Admin = free.Addr().String()
	free.Close()
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Serve(ctx, cfg) }()
		eventually(t, "it joins its own etcd", func() bool {
			res, err := http.Get("http://" + cfg.Admin + "/v1/status")
			if err != nil {
				return false
			}
			defer res.Body.Close()
			var s struct{ Joined bool }
			return json.NewDecoder(res.Body).Decode(&s) == nil && s.Joined
		})
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(cfg.StateDir, "etcd", "member")); err != nil {
		t.Error(err)
	}
}

// echoTunnel is an upstream that upgrades and sends back what it gets.
func echoTunnel(w http.ResponseWriter, _ *http.Request) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	_, _ = io.Copy(conn, buf)
}
