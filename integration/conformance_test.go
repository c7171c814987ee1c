//go:build integration

package integration

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"routerd.dev/integration/harness"
)

// single is a fleet of one instance on one etcd member, with a revision of
// harness.Marked published.
func single(t *testing.T, args ...string) (*site, *harness.Instance) {
	t.Helper()
	up := harness.StartUpstream(t)
	e := harness.StartEtcd(t, bin, 1)
	s := &site{
		etcd: e, upstream: up, judge: harness.NewJudge(),
		Fleet: harness.StartFleet(t, bin, e.Endpoints, harness.FleetOptions{Groups: []string{"main"}, Controllers: 1, Args: args}),
	}
	s.joined(t)
	if err := s.publish("--wait"); err != nil {
		t.Fatal(err)
	}
	return s, s.Instances[0]
}

// fetch gets a page and returns the answer with its body read.
func fetch(c *http.Client, url string) (*http.Response, string, error) {
	resp, err := c.Get(url)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

// writePair writes a new self-signed certificate of a serial number and its
// key, each replaced as a whole.
func writePair(t *testing.T, certFile, keyFile string, serial int64) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}, &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: pk}} {
		b := pem.EncodeToMemory(block)
		if file == certFile {
			pool.AppendCertsFromPEM(b)
		}
		if err := os.WriteFile(file+".new", b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	return pool
}

func TestTLSReloadsAndSpeaksHTTP2(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	pool := writePair(t, cert, key, 1)
	addr := harness.FreeAddr(t)
	s, _ := single(t, "--https", addr, "--tls-cert", cert, "--tls-key", key)
	url := "https://" + addr + "/own"
	client := func(pool *x509.CertPool, protocols ...string) *http.Client {
		p := new(http.Protocols)
		p.SetHTTP1(slices.Contains(protocols, "1"))
		p.SetHTTP2(slices.Contains(protocols, "2"))
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, Protocols: p}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	for version, protocols := range map[int][]string{1: {"1"}, 2: {"1", "2"}} {
		resp, body, err := fetch(client(pool, protocols...), url)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("%d /own", s.mark); resp.ProtoMajor != version || body != want {
			t.Errorf("offered %v: answered %q by %s, want %q by HTTP/%d", protocols, body, resp.Proto, want, version)
		}
	}
	serial := func() int64 {
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	held := client(pool, "2")
	if _, _, err := fetch(held, url); err != nil {
		t.Fatal(err)
	}
	pool = writePair(t, cert, key, 2)
	harness.Until(t, 5*time.Second, "the new certificate is served", func() error {
		if n := serial(); n != 2 {
			return fmt.Errorf("serial number %d", n)
		}
		return nil
	})
	if _, _, err := fetch(client(pool, "2"), url); err != nil {
		t.Errorf("with the new certificate: %v", err)
	}
	if _, _, err := fetch(held, url); err != nil {
		t.Errorf("a connection from before the change: %v", err)
	}
	// A pair that cannot be read leaves the one in use.
	if err := os.WriteFile(key, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	harness.Until(t, 5*time.Second, "the bad pair was refused", func() error {
		if !strings.Contains(s.Instances[0].Tail(20), "certificate not taken") {
			return errors.New("the log says nothing")
		}
		return nil
	})
	if n := serial(); n != 2 {
		t.Errorf("serial number %d after a bad pair, want 2", n)
	}
}

func TestH2C(t *testing.T) {
	addr := harness.FreeAddr(t)
	s, _ := single(t, "--h2c", addr)
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p}
	defer tr.CloseIdleConnections()
	for _, path := range []string{"/own", "/echo/x"} {
		resp, body, err := fetch(&http.Client{Transport: tr}, "http://"+addr+path)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("%d %s", s.mark, path); resp.ProtoMajor != 2 || body != want {
			t.Errorf("answered %q by %s, want %q by HTTP/2", body, resp.Proto, want)
		}
	}
}

// TestStreamsOutliveASwitch: an upgraded connection and an event stream that
// began in one revision go on through switches and a rollback (I9).
func TestStreamsOutliveASwitch(t *testing.T) {
	s, i := single(t)
	u, stop := upgrade(t, i.HTTP), watchStream(t, i.HTTP)
	for n := range 3 {
		if err := s.publish("--wait"); err != nil {
			t.Fatal(err)
		}
		if err := u.echo(fmt.Sprint("switch ", n)); err != nil {
			t.Errorf("upgraded connection after switch %d: %v", n, err)
		}
	}
	if _, err := s.Routectl("", "rollback", "--wait"); err != nil {
		t.Fatal(err)
	}
	if err := u.echo("rollback"); err != nil {
		t.Errorf("upgraded connection after the rollback: %v", err)
	}
	if events, err := stop(); err != nil || events == 0 {
		t.Errorf("event stream: %d events, %v", events, err)
	}
}

// TestDrain: after SIGTERM readiness goes first, what is in flight finishes,
// and the lease is given back: the instance is gone from the status at once, not
// when its lease would have ended.
func TestDrain(t *testing.T) {
	s, i := single(t, "--lease-ttl", "60s", "--drain-delay", "3s")
	type answer struct {
		status int
		body   string
		err    error
	}
	inFlight := make(chan answer, 1)
	go func() {
		resp, body, err := fetch(http.DefaultClient, "http://"+i.HTTP+"/slow?for=5s")
		a := answer{body: body, err: err}
		if resp != nil {
			a.status = resp.StatusCode
		}
		inFlight <- a
	}()
	harness.Until(t, 5*time.Second, "the request is in flight", func() error {
		if s.upstream.Slow.Load() == 0 {
			return errors.New("it has not arrived upstream")
		}
		return nil
	})
	start := time.Now()
	i.Signal(syscall.SIGTERM)
	harness.Until(t, 2500*time.Millisecond, "readiness is off", func() error {
		if r, err := i.Ready(); err == nil {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	if resp, body, err := fetch(http.DefaultClient, "http://"+i.HTTP+"/own"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("within the drain delay: %v %s", err, body)
	}
	if a := <-inFlight; a.err != nil || a.status != http.StatusOK || a.body != "slept 5s" {
		t.Errorf("the request in flight: %+v", a)
	}
	if err := i.Exit(20 * time.Second); err != nil {
		t.Errorf("routerd ended with %v", err)
	}
	t.Logf("drained in %v", time.Since(start).Round(time.Millisecond))
	if st, err := s.Status(); err != nil || len(st.Instances) > 0 {
		t.Errorf("status after the drain: %+v, %v; want no instance", st.Instances, err)
	}
}

// TestDrainIsBounded: a request that does not finish is cut at the drain
// timeout.
func TestDrainIsBounded(t *testing.T) {
	_, i := single(t, "--drain-timeout", "500ms")
	stop := watchStream(t, i.HTTP)
	start := time.Now()
	i.Signal(syscall.SIGTERM)
	_ = i.Exit(15 * time.Second)
	if d := time.Since(start); d > 6*time.Second {
		t.Errorf("ended after %v with a drain timeout of 500ms", d)
	}
	if _, err := stop(); err == nil {
		t.Error("the stream did not notice")
	}
}

// says runs routerd to its end and returns what it said and its exit code.
func says(t *testing.T, env []string, args ...string) (out string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // it may serve where it should not
	defer cancel()
	cmd := exec.CommandContext(ctx, bin.RouterdPath, args...)
	cmd.Env = append(os.Environ(), env...)
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

func TestConfiguration(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "routerd.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("group: of-the-file\ninstance: of-the-file\nprefix: /of-the-file\nendpoints: [127.0.0.1:1, 127.0.0.1:2]\n")
	out, code := says(t, []string{"ROUTERD_INSTANCE=of-the-env", "ROUTERD_PREFIX=/of-the-env"},
		"serve", "--config", file, "--prefix", "/of-the-flag", "--print-config")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	for _, want := range []string{
		`group: "of-the-file"  # file ` + file + ":1",
		`instance: "of-the-env"  # env ROUTERD_INSTANCE`,
		`prefix: "/of-the-flag"  # flag`,
		`endpoints: ["127.0.0.1:1", "127.0.0.1:2"]  # file ` + file + ":4",
		`drain-timeout: 30s  # default`,
	} {
		if !slices.Contains(strings.Split(out, "\n"), want) {
			t.Errorf("--print-config lacks the line %q:\n%s", want, out)
		}
	}

	write("group: main\nno-such-key: 1\njoin-timeout: soon\n")
	out, code = says(t, []string{"ROUTERD_NO_SUCH_NAME=1"}, "serve", "--config", file)
	if code != 2 {
		t.Errorf("exit code %d for a bad configuration, want 2", code)
	}
	for _, want := range []string{file + ":2: no-such-key", file + ":3: join-timeout", "ROUTERD_NO_SUCH_NAME"} {
		if !strings.Contains(out, want) {
			t.Errorf("the message does not name %s:\n%s", want, out)
		}
	}
}

func TestTakenPortIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().String()
	for _, flag := range []string{"http", "admin"} {
		args := map[string]string{"http": "127.0.0.1:0", "admin": "127.0.0.1:0", "state-dir": t.TempDir(), "endpoints": "127.0.0.1:1"}
		args[flag] = taken
		line := []string{"serve"}
		for k, v := range args {
			line = append(line, "--"+k, v)
		}
		out, code := says(t, nil, line...)
		if code != 1 || !strings.Contains(out, "--"+flag+" "+taken) {
			t.Errorf("exit code %d, want 1 and a message that names --%s %s:\n%s", code, flag, taken, out)
		}
	}
}

// TestTwins: a second process of the same name, or with the same state
// directory, is refused and told why; the first one is not disturbed.
func TestTwins(t *testing.T) {
	s, i := single(t, "--lease-ttl", "5s")
	serve := func(state string) (string, int) {
		return says(t, nil, "serve", "--group", i.Group, "--instance", i.Instance, "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0",
			"--endpoints", strings.Join(s.Endpoints, ","), "--state-dir", state, "--lease-ttl", "5s")
	}
	if out, code := serve(i.StateDir); code != 1 || !strings.Contains(out, i.StateDir) {
		t.Errorf("same state directory: exit code %d:\n%s", code, out)
	}
	if out, code := serve(t.TempDir()); code != 1 || !strings.Contains(out, i.HTTP) || !strings.Contains(out, "taken") {
		t.Errorf("same name: exit code %d:\n%s", code, out)
	}
	if err := s.Converged(); err != nil {
		t.Errorf("the first one was disturbed: %v", err)
	}
}

func TestSystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := harness.Start(t, "routerd", t.TempDir(), bin.RouterdPath, []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=200000"},
		"serve", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--endpoints", "127.0.0.1:1", "--state-dir", t.TempDir())
	var heard []string
	hear := func(what string) {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second)
		for b := make([]byte, 1024); !slices.Contains(heard, what); {
			if err := c.SetReadDeadline(deadline); err != nil {
				t.Fatal(err)
			}
			n, err := c.Read(b)
			if err != nil {
				t.Fatalf("systemd did not hear %s, but %v: %v", what, heard, err)
			}
			heard = append(heard, strings.Split(string(b[:n]), "\n")...)
		}
	}
	hear("READY=1")
	hear("WATCHDOG=1")
	p.Signal(syscall.SIGTERM)
	hear("STOPPING=1")
	if err := p.Exit(15 * time.Second); err != nil {
		t.Errorf("routerd ended with %v", err)
	}
}

// TestBadTargets sends request heads as they are over a socket: no client
// library would send most of them.
func TestBadTargets(t *testing.T) {
	s, i := single(t, "--max-body-bytes", "1000", "--max-header-bytes", "4096")
	ask := func(head string) (*http.Response, string, error) {
		c, err := net.Dial("tcp", i.HTTP)
		if err != nil {
			return nil, "", err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return nil, "", err
		}
		if _, err := io.WriteString(c, head); err != nil {
			return nil, "", err
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return nil, "", err
		}
		b, err := io.ReadAll(resp.Body)
		return resp, string(b), err
	}
	target := func(s string) string { return "GET " + s + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" }
	ok := fmt.Sprintf("%d /own", s.mark)
	for _, tc := range []struct {
		head   string
		status int
		body   string // when 200
	}{
		{target("/own"), 200, ok},
		{target("http://b/own"), 200, ok},
		{target("/%6fwn"), 200, ok},
		{target("/echo/a%2541"), 200, fmt.Sprintf("%d /echo/a%%41", s.mark)}, // I8: %25 stays itself
		{target("/own/"), 404, ""},
		{target("/Own"), 404, ""},
		{target("/echo/a%2Fb"), 400, ""},
		{target("/echo/a%5Cb"), 400, ""},
		{target(`/echo/a\b`), 400, ""},
		{target("/echo/a%00"), 400, ""},
		{target("/echo/a%0A"), 400, ""},
		{target("/echo/.."), 400, ""},
		{target("/echo/%2e%2e"), 400, ""},
		{target("/echo/..;x"), 400, ""},
		{target("/./own"), 400, ""},
		{target("//own"), 400, ""},
		{target("/echo/%ff"), 400, ""},
		{target("/echo/%zz"), 400, ""},
		{target("/echo/%4"), 400, ""},
		{target("own"), 400, ""},
		{"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 400, ""},
		{"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nConnection: close\r\n\r\n", 400, ""},
		{"GET /own HTTP/1.1\r\nConnection: close\r\n\r\n", 400, ""}, // no Host
		// net/http takes the chunks and drops the length (RFC 9112 6.3 allows it); what is sent on has one framing.
		{"POST /echo/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200, fmt.Sprintf("%d /echo/x", s.mark)},
		{"POST /echo/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2000\r\n\r\n", 413, ""},
		{"GET /own HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 16<<10) + "\r\n\r\n", 431, ""},
	} {
		first, _, _ := strings.Cut(tc.head, "\r\n")
		resp, body, err := ask(tc.head)
		switch {
		case err != nil:
			t.Errorf("%s: %v", first, err)
		case resp.StatusCode != tc.status:
			t.Errorf("%s: %s, want %d", first, resp.Status, tc.status)
		case tc.status == 200 && body != tc.body:
			t.Errorf("%s: %q, want %q", first, body, tc.body)
		}
	}
}
