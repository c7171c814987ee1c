package daemon

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/route"
	"routerd.dev/internal/routefile"
	"routerd.dev/internal/version"
)

// patience is how long a test waits for what must happen; far longer than it
// takes.
const patience = 60 * time.Second

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := poll(ctx, cond); err != nil {
		t.Fatalf("waited in vain: %s", what)
	}
}

func noLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// served runs a config's listeners before a handler, with addresses of any
// port; it returns the address of each by its name.
func served(t *testing.T, c *Config, h http.Handler, tlsConfig *tls.Config) map[string]string {
	t.Helper()
	ls, err := c.bind(&front{next: h}, tlsConfig, noLog())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	var wg sync.WaitGroup
	for _, l := range ls {
		out[l.name] = l.net.Addr().String()
		wg.Go(func() {
			if err := l.serve(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		shutdown(ctx, ls)
		wg.Wait()
		eventually(t, "connections end", func() bool {
			var n int64
			for _, l := range ls {
				n += l.conns.Load()
			}
			return n == 0
		})
	})
	return out
}

func limits(t *testing.T) *Config {
	c, _ := settings(t, "--http", "127.0.0.1:0")
	return c
}

func proto(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }

// selfSigned writes a certificate for 127.0.0.1 with this serial number.
func selfSigned(t *testing.T, dir string, serial int64) (certFile, keyFile string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	replace(t, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	replace(t, certFile, certPEM)
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return certFile, keyFile, pool
}

// replace puts a file in place by renaming, as certificate managers do.
func replace(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestProtocols(t *testing.T) {
	c := limits(t)
	c.HTTPS, c.H2C = "127.0.0.1:0", "127.0.0.1:0"
	cert, key, pool := selfSigned(t, t.TempDir(), 1)
	pair, err := newCertificate(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	at := served(t, c, http.HandlerFunc(proto), pair.config())
	for _, want := range []struct {
		url, proto string
		client     func(*http.Protocols)
	}{
		{"http://" + at["http"], "HTTP/1.1", func(p *http.Protocols) { p.SetHTTP1(true) }},
		{"https://" + at["https"], "HTTP/1.1", func(p *http.Protocols) { p.SetHTTP1(true) }},
		{"https://" + at["https"], "HTTP/2.0", func(p *http.Protocols) { p.SetHTTP1(true); p.SetHTTP2(true) }},
		{"http://" + at["h2c"], "HTTP/2.0", func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }},
	} {
		tr := &http.Transport{Protocols: new(http.Protocols), TLSClientConfig: &tls.Config{RootCAs: pool}}
		want.client(tr.Protocols)
		res, err := (&http.Client{Transport: tr, Timeout: patience}).Get(want.url)
		if err != nil {
			t.Errorf("%s by %v: %v", want.url, tr.Protocols, err)
			continue
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		tr.CloseIdleConnections()
		if err != nil || string(b) != want.proto {
			t.Errorf("%s by %v: %s %v, want %s", want.url, tr.Protocols, b, err, want.proto)
		}
	}
}

// TestSlowBodyAfterTheAnswer: without a bound, net/http reads what is left of a
// body for as long as the client likes to send it. The bound is the proxy's.
func TestSlowBodyAfterTheAnswer(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack() // else it waited for the body, too
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { conn.Close() })
		fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly")
	}))
	t.Cleanup(up.Close)
	mods, problems := routefile.Parse([]routefile.File{{Name: "m.yaml", Data: []byte(`
apiVersion: routerd/v1
module: m
upstreams: {up: {targets: ["` + up.URL + `"]}}
routes: [{name: all, prefix: /, proxy: {upstream: up}}]
`)}})
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	lib := engine.NewLibrary(proxy.Options{}, middleware.Env{})
	t.Cleanup(func() { _ = lib.Upstreams.Close() })
	e, err := engine.Compile(t.Context(), version.Ref{Number: 1}, &route.Table{Modules: mods}, lib, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	sw := engine.NewSwitch(engine.FrontOptions{})
	sw.Swap(&engine.Serving{Stable: e})
	at := served(t, limits(t), sw, nil)
	for _, framing := range []string{
		"Content-Length: 20000", "Content-Length: 1000000", "Transfer-Encoding: chunked", "Content-Length: 1000\r\nExpect: 100-continue",
	} {
		conn := dial(t, at["http"])
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n", framing)
		more := "x"
		if strings.Contains(framing, "chunked") {
			more = "1\r\nx\r\n"
		}
		var wg sync.WaitGroup
		ended := make(chan struct{})
		wg.Go(func() {
			for range time.Tick(20 * time.Millisecond) {
				select {
				case <-ended:
					return
				default:
					_, _ = io.WriteString(conn, more)
				}
			}
		})
		b, err := io.ReadAll(conn)
		close(ended)
		wg.Wait()
		if !strings.Contains(string(b), "early") {
			t.Errorf("%s: answer %q, %v", framing, b, err)
		}
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("%s: the connection is still open", framing)
		}
	}
}

// A pausing listener's connections write nothing while the gate is shut, as to
// clients that take nothing.
type pausing struct {
	net.Listener
	gate *sync.RWMutex
}

func (l pausing) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return pausingConn{c, l.gate}, err
}

type pausingConn struct {
	net.Conn
	gate *sync.RWMutex
}

func (c pausingConn) Write(b []byte) (int, error) {
	c.gate.RLock()
	defer c.gate.RUnlock()
	return c.Conn.Write(b)
}

// TestConnectionIsUsedAgainAfterABody: net/http reads on behind a body, to learn
// whether the client has gone. A deadline of ours that ended that read while the
// answer is still on its way would end the next request, too.
func TestConnectionIsUsedAgainAfterABody(t *testing.T) {
	var gate sync.RWMutex
	asked := make(chan struct{}, 2)
	srv := limits(t).server(&front{next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, r.Context().Err())
		if r.URL.Path == "/first" {
			gate.Lock()
		}
		asked <- struct{}{}
	})}, noLog())
	l, err := listen("http", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(pausing{l, &gate}) })
	t.Cleanup(func() { srv.Close(); wg.Wait() })

	conn := dial(t, l.Addr().String())
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(conn)
	for _, path := range []string{"/first", "/second"} {
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", path)
		<-asked
		if path == "/first" {
			<-time.After(100 * time.Millisecond)
			gate.Unlock()
		}
		res, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if b, err := io.ReadAll(res.Body); err != nil || string(b) != "<nil>" {
			t.Errorf("%s: its context says %s, %v", path, b, err)
		}
	}
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestHeadLimits(t *testing.T) {
	c := limits(t)
	c.MaxHeaderBytes, c.ReadHeaderTimeout = 1024, 500*time.Millisecond
	at := served(t, c, http.HandlerFunc(proto), nil)
	for name, head := range map[string]string{
		"too large": "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 8<<10) + "\r\n\r\n",
		"too slow":  "GET / HTTP/1.1\r\nHost: a\r\n",
	} {
		conn := dial(t, at["http"])
		fmt.Fprint(conn, head)
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(conn)
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("%s: still open", name)
		}
		if bytes.Contains(b, []byte("200 OK")) {
			t.Errorf("%s: %q", name, b)
		}
		if name == "too large" && !bytes.Contains(b, []byte("431")) {
			t.Errorf("%s: %q", name, b)
		}
	}
}

func TestMaxConnections(t *testing.T) {
	c := limits(t)
	c.MaxConnections = 1
	kept := make(chan string, 1)
	at := served(t, c, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proto(w, r)
		if r.URL.Path != "/hijack" {
			return
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			kept <- err.Error()
			return
		}
		defer conn.Close()
		var missing string
		if _, ok := conn.(interface{ SetLinger(int) error }); !ok {
			missing += " SetLinger"
		}
		if _, ok := conn.(io.ReaderFrom); !ok {
			missing += " ReadFrom"
		}
		kept <- missing
	}), nil)
	first, second := dial(t, at["http"]), dial(t, at["http"])
	const ask = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	buf := make([]byte, 4096)
	fmt.Fprint(first, ask)
	if _, err := first.Read(buf); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(second, ask)
	if err := second.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := second.Read(buf); err == nil {
		t.Fatalf("the second of one connection was served: %q", buf[:n])
	}
	first.Close()
	if err := second.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Read(buf); err != nil {
		t.Fatalf("after the first had gone: %v", err)
	}
	fmt.Fprint(second, strings.Replace(ask, "/", "/hijack", 1))
	if missing := <-kept; missing != "" {
		t.Errorf("proxying lacks:%s", missing)
	}
	third := dial(t, at["http"]) // an upgraded connection gave its place back, too
	fmt.Fprint(third, ask)
	if err := third.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := third.Read(buf); err != nil {
		t.Errorf("after the upgraded one had gone: %v", err)
	}
}

func TestCertificateFollowsItsFiles(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile, _ := selfSigned(t, dir, 1)
	c, err := newCertificate(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	var said syncBuffer
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	// A change between the first read and the watch is seen, too.
	selfSigned(t, dir, 2)
	go func() { done <- c.watch(ctx, slog.New(slog.NewTextHandler(&said, nil))) }()
	serial := func() int64 {
		pair, err := c.config().GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.SerialNumber.Int64()
	}
	eventually(t, "the second certificate is taken", func() bool { return serial() == 2 })
	replace(t, certFile, []byte("rubbish"))
	eventually(t, "rubbish is refused, and said so", func() bool { return strings.Contains(said.String(), "stays in use") })
	if serial() != 2 {
		t.Error("the certificate in use is gone")
	}
	selfSigned(t, dir, 3)
	eventually(t, "the third is taken", func() bool { return serial() == 3 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
