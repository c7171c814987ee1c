package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
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
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"routerd.dev/internal/route"
)

func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }

// closedPort is an address that refuses connections.
func closedPort(t testing.TB) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// A connection that died in the pool is noticed before it is used, so even what may
// not be sent twice comes through.
func TestDeadIdleConnectionsAreNotUsed(t *testing.T) {
	for name, last := range map[string]string{"closed": "", "unasked bytes": "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"} {
		t.Run(name, func(t *testing.T) {
			var poison atomic.Pointer[net.Conn]
			u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
				poison.Store(&c)
				always(ok)(0, c, br)
			})
			b := newBench(t, to(u.url()), Options{}).start()
			get(t, b.front.URL)
			eventually(t, "idle", func() bool { return b.lib.Stats().Idle == 1 })
			if last == "" {
				(*poison.Load()).Close()
			} else {
				io.WriteString(*poison.Load(), last)
			}
			idle := b.up.targets[0].shards
			eventually(t, "noticed", func() bool {
				for i := range idle {
					if c := idle[i].pop(); c != nil {
						quiet := c.quiet()
						idle[i].push(c, &b.up.retired)
						return !quiet
					}
				}
				return false
			})
			res, err := http.Post(b.front.URL, "text/plain", strings.NewReader("x"))
			if err != nil || res.StatusCode != 200 {
				t.Fatalf("%v, %v", res, err)
			}
			body, _ := io.ReadAll(res.Body)
			res.Body.Close()
			http.DefaultClient.CloseIdleConnections()
			if r := b.result(1); string(body) != "ok" || r.Attempts != 1 || u.conns() != 2 {
				t.Errorf("%q, %+v, %d connections", body, r, u.conns())
			}
		})
	}
}

// Bytes behind a response's end are never taken for the next response, though
// they look like one.
func TestBytesBehindAResponse(t *testing.T) {
	evil := "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	for name, answer := range map[string]string{
		"length":  "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + evil,
		"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + evil,
	} {
		u := newRaw(t, always(answer))
		b := newBench(t, to(u.url()), Options{}).start()
		for i := range 3 {
			if _, body, err := get(t, b.front.URL); err != nil || body != "ok" {
				t.Errorf("%s: %q, %v", name, body, err)
			}
			if b.result(i); u.conns() != i+1 {
				t.Errorf("%s: %d connections after %d requests", name, u.conns(), i+1)
			}
		}
	}
}

// A connection that dies under the request is replaced if sending twice does no harm.
func TestRetryOnStaleConnections(t *testing.T) {
	for _, tc := range []struct {
		method, body, field string
		again               bool
	}{
		{"GET", "", "", true},
		{"PUT", "x", "", true},
		{"DELETE", "", "", true},
		{"POST", "x", "", false},
		{"POST", "x", "Idempotency-Key", true},
		{"PATCH", "x", "", false},
		{"PUT", strings.Repeat("x", maxReplay+1), "", false}, // not kept, so not sent twice
	} {
		t.Run(fmt.Sprint(tc.method, " ", len(tc.body), tc.field), func(t *testing.T) {
			u := newRaw(t, func(i int, c net.Conn, br *bufio.Reader) {
				if i > 0 {
					always(ok)(i, c, br)
					return
				}
				once(ok)(i, c, br)
				// The second request is read and dropped.
				http.ReadRequest(br)
			})
			b := newBench(t, to(u.url()), Options{}).start()
			get(t, b.front.URL)
			eventually(t, "idle", func() bool { return b.lib.Stats().Idle == 1 })
			req, _ := http.NewRequest(tc.method, b.front.URL, strings.NewReader(tc.body))
			if tc.field != "" {
				req.Header.Set(tc.field, "1")
			}
			res, err := b.front.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			r := b.result(1)
			if tc.again && (res.StatusCode != 200 || r.Attempts != 2) || !tc.again && (res.StatusCode != 502 || r.Attempts != 1 || r.Kind != KindUpstreamReset) {
				t.Errorf("%d, %+v", res.StatusCode, r)
			}
		})
	}
}

// Nothing is sent twice once a byte of an answer came, nor on a connection that is new.
func TestNoRetryAfterAnAnswerBegan(t *testing.T) {
	u := newRaw(t, func(i int, c net.Conn, br *bufio.Reader) {
		once(ok)(i, c, br)
		once("HTTP/1.1 ")(i, c, br)
	})
	b := newBench(t, to(u.url()), Options{}).start()
	get(t, b.front.URL)
	if res, _, err := get(t, b.front.URL); err != nil || res.StatusCode != 502 || u.conns() != 1 {
		t.Errorf("%v, %v, %d connections", res, err, u.conns())
	}
}

func TestRefusedTargetsArePassedOver(t *testing.T) {
	u := newRaw(t, always(ok))
	dead := closedPort(t)
	b := newBench(t, to("http://"+dead, u.url(), "http://"+dead), Options{}).start()
	attempts := 0
	for i := range 6 { // within the time that a dead one is left alone
		res, _, err := get(t, b.front.URL)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("%v, %v", res, err)
		}
		attempts += b.result(i).Attempts
	}
	if s := b.lib.Stats(); s.Down != 2 || attempts != 8 {
		t.Errorf("%+v, %d attempts: want each dead target tried once", s, attempts)
	}
}

// With all targets down they are tried anyway, and one that is back is used.
func TestAllDown(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	b := newBench(t, to("http://"+addr, "http://"+closedPort(t)), Options{}).start()
	for i := range 3 {
		if res, _, err := get(t, b.front.URL); err != nil || res.StatusCode != 502 {
			t.Fatalf("%v, %v", res, err)
		}
		if r := b.result(i); r.Kind != KindConnect || r.Attempts != 2 {
			t.Errorf("%+v", r)
		}
	}
	if ln, err = net.Listen("tcp", addr); err != nil {
		t.Skipf("the port was taken meanwhile: %v", err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(ln) }()
	defer func() { srv.Close(); <-done }()
	for range 2 {
		if res, _, err := get(t, b.front.URL); err != nil || res.StatusCode != 200 {
			t.Errorf("%v, %v", res, err)
		}
	}
	if s := b.lib.Stats(); s.Down != 1 {
		t.Errorf("%+v", s)
	}
}

// Of many requests only one tries a target whose time has come.
func TestProbeIsTakenOnce(t *testing.T) {
	l := NewLibrary(Options{})
	u, err := l.Upstream(to("http://a", "http://b"))
	if err != nil {
		t.Fatal(err)
	}
	a := u.targets[0]
	a.markDown()
	if a.probe(l.now()) {
		t.Error("too early")
	}
	due := a.downUntil.Load()
	if !a.probe(due) || a.probe(due) {
		t.Error("want one probe")
	}
	for range 20 {
		a.markDown()
	}
	if d := a.backoff(); d != maxBackoff {
		t.Errorf("backoff %v", d)
	}
	a.markUp()
	if a.down(0) || a.backoff() != minBackoff {
		t.Error("still down")
	}
}

func TestConnectTimeoutIs504(t *testing.T) {
	def := to("http://a.test")
	def.ConnectTimeout = 20 * time.Millisecond
	b := newBench(t, def, Options{Dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
		if addr != "a.test:80" {
			t.Errorf("dialled %s", addr)
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}}).start()
	if res, _, err := get(t, b.front.URL); err != nil || res.StatusCode != 504 || b.result(0).Kind != KindTimeout {
		t.Errorf("%v, %v, %+v", res, err, b.result(0))
	}
}

// Over any whole number of rounds each target gets its weight, and within a round
// it is never further from its share than one.
func TestTurnsAreSmooth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := rapid.SliceOfN(rapid.IntRange(1, 30), 1, 8).Draw(t, "weights")
		order := turns(w)
		total := 0
		for _, x := range w {
			total += x
		}
		if total%len(order) != 0 {
			t.Fatalf("%d turns for weights %v", len(order), w)
		}
		counts := make([]int, len(w))
		for i, k := range order {
			counts[k]++
			for j, c := range counts {
				if share := float64(w[j]) * float64(i+1) / float64(total); float64(c) > share+1.5 || float64(c) < share-1.5 {
					t.Fatalf("weights %v: after %d turns %d has %d, its share is %.1f", w, i+1, j, c, share)
				}
			}
		}
		for j, c := range counts {
			if c*total != w[j]*len(order) {
				t.Fatalf("weights %v: %d has %d of %d", w, j, c, len(order))
			}
		}
	})
	if n := len(turns([]int{1000, 999, 1, 1000, 998, 997})); n > maxTurns+6 || n < maxTurns-6 {
		t.Errorf("%d turns", n)
	}
}

func TestRoundRobinByWeight(t *testing.T) {
	def := route.Upstream{Targets: []route.Target{{URL: "http://a", Weight: 3}, {URL: "http://b", Weight: 1}}}
	u, err := NewLibrary(Options{}).Upstream(def)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for i := range 400 {
		got[u.pick(uint32(i)%uint32(u.lib.shards), nil).url]++
	}
	if got["http://a"] != 300 || got["http://b"] != 100 {
		t.Error(got)
	}
}

func TestEqualDefinitionsShareAnUpstream(t *testing.T) {
	l := NewLibrary(Options{})
	a := to("http://a")
	b := a
	b.Name = "other"
	c := a
	c.MaxIdle = 1
	full := a
	full.ConnectTimeout = time.Second // what is normalized equals what is not
	ua, _ := l.Upstream(a)
	ub, _ := l.Upstream(b)
	uc, _ := l.Upstream(c)
	uf, _ := l.Upstream(full)
	if ua != ub || ua == uc || ua != uf {
		t.Error("identity does not follow the definition")
	}
	for _, bad := range []route.Upstream{
		{},
		to("ftp://a"), to("http://"), to("http://a/path"), to("http://u@a"), to("http://a?b"), to("://"), to("a:80"),
		{Targets: a.Targets, TLS: route.TLS{CAFile: filepath.Join(t.TempDir(), "none")}},
	} {
		if _, err := l.Upstream(bad); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
	l.Close()
	if _, err := l.Upstream(a); err == nil {
		t.Error("a closed library hands out upstreams")
	}
}

func TestKeep(t *testing.T) {
	u := newRaw(t, always(ok))
	b := newBench(t, to(u.url()), Options{}).start()
	none := func(*Upstream) bool { return false }
	get(t, b.front.URL)
	eventually(t, "idle", func() bool { return b.lib.Stats().Idle == 1 })
	b.lib.Keep(none)
	if again, _ := b.lib.Upstream(to(u.url())); again != b.up {
		t.Fatal("what had just been handed out was dropped")
	}
	b.lib.Keep(func(*Upstream) bool { return true })
	b.lib.Keep(none)
	if s := b.lib.Stats(); s.Upstreams != 0 {
		t.Fatalf("%+v", s)
	}
	// An engine that still holds it can use it; it keeps no connections.
	if res, _, err := get(t, b.front.URL); err != nil || res.StatusCode != 200 {
		t.Errorf("%v, %v", res, err)
	}
	if n := b.up.targets[0].idle(); n != 0 {
		t.Errorf("%d idle connections that nobody will ever close", n)
	}
	if next, _ := b.lib.Upstream(to(u.url())); next == b.up {
		t.Error("the dropped upstream came back")
	}
}

func TestMaxIdle(t *testing.T) {
	release := make(chan struct{})
	u := newRaw(t, func(_ int, c net.Conn, br *bufio.Reader) {
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		<-release
		io.WriteString(c, ok)
		io.Copy(io.Discard, br)
	})
	def := to(u.url())
	def.MaxIdle = 2
	b := newBench(t, def, Options{}).start()
	for range 5 {
		go get(t, b.front.URL)
	}
	eventually(t, "5 connections", func() bool { return u.conns() == 5 })
	close(release)
	b.result(4)
	if s := b.lib.Stats(); s.Idle < 2 || s.Idle == 5 { // a connection is counted, then put: a few may pass at once
		t.Errorf("%+v", s)
	}
}

// Without any traffic Run gives sockets back.
func TestIdleConnectionsExpire(t *testing.T) {
	closed := make(chan struct{})
	u := newRaw(t, func(i int, c net.Conn, br *bufio.Reader) {
		always(ok)(i, c, br)
		close(closed)
	})
	def := to(u.url())
	def.IdleTimeout = 50 * time.Millisecond
	b := newBench(t, def, Options{}).start()
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error)
	go func() { ran <- b.lib.Run(ctx) }()
	get(t, b.front.URL)
	<-closed
	eventually(t, "none idle", func() bool { return b.lib.Stats().Idle == 0 })
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

// A connection that the target closed does not wait for its age.
func TestClosedIdleConnectionsAreSwept(t *testing.T) {
	u := newRaw(t, once(ok))
	b := newBench(t, to(u.url()), Options{}).start()
	get(t, b.front.URL)
	eventually(t, "swept", func() bool { b.lib.sweep(); return b.lib.Stats().Idle == 0 })
	if next := b.lib.sweep(); next != maxSweep {
		t.Errorf("next sweep in %v", next)
	}
}

// An idle connection that is too old is not used, even when nothing swept it.
func TestExpiredConnectionsAreNotUsed(t *testing.T) {
	u := newRaw(t, always(ok))
	b := newBench(t, to(u.url()), Options{}).start()
	get(t, b.front.URL)
	eventually(t, "idle", func() bool { return b.lib.Stats().Idle == 1 })
	b.lib.base = b.lib.base.Add(-2 * time.Minute) // time passes
	get(t, b.front.URL)
	if u.conns() != 2 {
		t.Errorf("%d connections", u.conns())
	}
}

func TestTLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, io.LimitReader(zeros{}, 100<<10))
		fmt.Fprint(w, r.Proto, " ", r.TLS.ServerName)
	}))
	var conns atomic.Int32
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Config.ErrorLog = discardLog()
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	writeCA := func(c *x509.Certificate) {
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	writeCA(srv.Certificate())
	for _, tc := range []struct {
		name   string
		tls    route.TLS
		status int
		server string
	}{
		{"unknown authority", route.TLS{}, 502, ""},
		{"insecure", route.TLS{Insecure: true, ServerName: "x.test"}, 200, "x.test"},
		{"CA file", route.TLS{CAFile: ca}, 200, ""},
		{"CA file and name", route.TLS{CAFile: ca, ServerName: "example.com"}, 200, "example.com"},
		{"wrong name", route.TLS{CAFile: ca, ServerName: "wrong.test"}, 502, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conns.Store(0)
			def := to(srv.URL)
			def.TLS = tc.tls
			b := newBench(t, def, Options{}).start()
			for i := range 3 {
				res, body, err := get(t, b.front.URL)
				if err != nil || res.StatusCode != tc.status {
					t.Fatalf("%v, %v, %+v", res, err, b.result(i))
				}
				if tc.status == 200 && body[100<<10:] != "HTTP/1.1 "+tc.server {
					t.Errorf("got %q", body[100<<10:])
				}
			}
			if tc.status == 200 && conns.Load() != 1 {
				t.Errorf("%d connections", conns.Load())
			}
			var ce *tls.CertificateVerificationError
			if r := b.result(0); tc.status == 502 && (r.Kind != KindConnect || !errors.As(r.Err, &ce)) {
				t.Errorf("%+v", r)
			}
		})
	}

	l := NewLibrary(Options{})
	def := to(srv.URL)
	def.TLS.CAFile = ca
	before, err := l.Upstream(def)
	if err != nil {
		t.Fatal(err)
	}
	if same, _ := l.Upstream(def); same != before {
		t.Error("unchanged file, another upstream")
	}
	pemBytes, _ := os.ReadFile(ca)
	os.WriteFile(ca, append(slices.Clone(pemBytes), pemBytes...), 0o600)
	if after, err := l.Upstream(def); err != nil || after == before {
		t.Errorf("the changed file was not read: %v", err)
	}
	os.WriteFile(ca, []byte("nothing"), 0o600)
	if _, err := l.Upstream(def); err == nil {
		t.Error("a CA file without certificates was accepted")
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
