package daemon

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestProbe asks what answers in every way, and must tell well from unwell.
func TestProbe(t *testing.T) {
	served := make(chan struct{})
	t.Cleanup(func() { close(served) })
	mux := http.NewServeMux()
	say := func(path string, code int, body string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			fmt.Fprint(w, body)
		})
	}
	say("/readyz", 503, `{"ready": false, "why": "waiting for the first epoch"}`)
	say("/healthz", 200, "ok\n")
	say("/health", 503, `{"health":"false","reason":"RAFT NO LEADER"}`)
	say("/empty", 204, "")
	say("/long", 200, strings.Repeat("é\n", 5000))
	mux.Handle("/moved", http.RedirectHandler("/healthz", http.StatusFound))
	mux.HandleFunc("/never", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-served:
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("/broken", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		fmt.Fprint(w, "half")
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // must not be asked

	for _, c := range []struct {
		what string
		o    ProbeOptions
		well bool
		says string
	}{
		{"ready is asked by itself", ProbeOptions{}, false, "/readyz: 503 Service Unavailable: waiting for the first epoch"},
		{"ready", ProbeOptions{Ready: true}, false, "waiting for the first epoch"},
		{"alive", ProbeOptions{Alive: true}, true, "http://127.0.0.1:" + port + "/healthz: 200 OK: ok"},
		{"an etcd without a leader", ProbeOptions{URL: srv.URL + "/health"}, false, "RAFT NO LEADER"},
		{"no body", ProbeOptions{URL: srv.URL + "/empty"}, true, "/empty: 204 No Content"},
		{"a long body", ProbeOptions{URL: srv.URL + "/long"}, true, "é é…"},
		{"a redirect is not well", ProbeOptions{URL: srv.URL + "/moved"}, false, "302 Found"},
		{"no answer in time", ProbeOptions{URL: srv.URL + "/never", Timeout: 50 * time.Millisecond}, false, "no answer within 50ms"},
		{"half an answer", ProbeOptions{URL: srv.URL + "/broken"}, false, "read the answer"},
		{"nobody is there", ProbeOptions{URL: "http://127.0.0.1:1/"}, false, "connection refused"},
		{"no such key", ProbeOptions{URL: srv.URL, Cert: "/nowhere.pem", Key: "/nowhere-key.pem"}, false, "/nowhere.pem"},
	} {
		if c.o.Timeout == 0 {
			c.o.Timeout = patience
		}
		line, err := Probe(t.Context(), &Config{Admin: ":" + port}, c.o)
		if (err == nil) != c.well {
			t.Errorf("%s: well %v, want %v: %s%v", c.what, err == nil, c.well, line, err)
			continue
		}
		if err != nil {
			line = err.Error()
		}
		if !strings.Contains(line, c.says) || strings.ContainsRune(line, '\n') || len(line) > 300 {
			t.Errorf("%s: says %q, want one line with %q", c.what, line, c.says)
		}
	}
}

func TestProbeOverTLS(t *testing.T) {
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(srv.Close)
	_, err := Probe(t.Context(), &Config{}, ProbeOptions{URL: srv.URL, Timeout: patience})
	if err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server that nobody vouches for: %v, want an error about its certificate", err)
	}
	cert, key, pool := selfSigned(t, t.TempDir(), 1)
	mutual := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s", r.TLS.PeerCertificates[0].Subject.CommonName)
	}))
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	mutual.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	mutual.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	mutual.StartTLS()
	t.Cleanup(mutual.Close)
	o := ProbeOptions{URL: mutual.URL, Timeout: patience, CA: cert, Cert: cert, Key: key}
	if line, err := Probe(t.Context(), &Config{}, o); err != nil || !strings.HasSuffix(line, ": 200 OK: hello test") {
		t.Errorf("with a client certificate: %q, %v", line, err)
	}
	o.ServerName = "etcd-1"
	if line, err := Probe(t.Context(), &Config{}, o); err == nil {
		t.Errorf("a certificate for 127.0.0.1 is taken for etcd-1's: %s", line)
	}
	o.ServerName, o.Cert, o.Key = "", "", ""
	if line, err := Probe(t.Context(), &Config{}, o); err == nil {
		t.Errorf("without a client certificate: %q, want an error", line)
	}
}

func TestProbeOptions(t *testing.T) {
	for _, c := range []struct {
		o    ProbeOptions
		says string
	}{
		{ProbeOptions{Timeout: -1}, "timeout"},
		{ProbeOptions{Timeout: 1, Alive: true, Ready: true}, "only one"},
		{ProbeOptions{Timeout: 1, URL: "127.0.0.1:2381/health"}, "want a URL"},
		{ProbeOptions{Timeout: 1, URL: "ftp://x/"}, "want a URL"},
		{ProbeOptions{Timeout: 1, URL: "http://x/", Alive: true}, "does not go with"},
	} {
		if err := c.o.Check(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v, want an error with %q", c.o, err, c.says)
		}
	}
	for admin, want := range map[string]string{
		"127.0.0.1:9080": "http://127.0.0.1:9080", ":9080": "http://127.0.0.1:9080", "0.0.0.0:1": "http://127.0.0.1:1", "[::]:1": "http://[::1]:1", "10.0.0.7:1": "http://10.0.0.7:1",
	} {
		if got, err := (&Config{Admin: admin}).AdminURL(); err != nil || got != want {
			t.Errorf("an admin listener at %s is asked at %s, %v; want %s", admin, got, err, want)
		}
	}
	if _, err := (&Config{}).AdminURL(); err == nil {
		t.Error("an instance without an admin listener has an address to ask")
	}
}

// TestUpstream: what it says is what the examples of the documents show.
func TestUpstream(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	l, err := listen("listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Upstream(ctx, UpstreamOptions{Listen: l.Addr().String(), Name: "C"}, &out); err == nil || !strings.Contains(err.Error(), "taken") {
		t.Errorf("on a port that is taken: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- serveUpstream(ctx, l, "C") }()
	line, err := Probe(ctx, &Config{}, ProbeOptions{URL: "http://" + l.Addr().String() + "/a?b=c", Timeout: patience})
	if err != nil || !strings.Contains(line, "upstream C was asked GET /a?b=c for 127.0.0.1") {
		t.Errorf("it says %q, %v", line, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("stopped: %v", err)
	}
}
