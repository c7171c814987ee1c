package cli

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"routerd.dev/internal/store"
)

// pki makes certificates in a folder of its own, as they were made so many days ago.
type pki struct {
	t *testing.T
	a *store.Authority
}

func newPKI(t *testing.T, daysAgo int) pki {
	t.Helper()
	a, err := store.OpenAuthority(t.TempDir(), time.Now().AddDate(0, 0, -daysAgo))
	if err != nil {
		t.Fatal(err)
	}
	return pki{t, a}
}

func (p pki) ca() string { ca, _ := p.a.Files(); return ca }

func (p pki) make(name string, days int, hosts ...string) store.Certificate {
	p.t.Helper()
	c, err := p.a.Issue(store.CertificateRequest{Name: name, Hosts: hosts, Days: days})
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// listen is a server that does TLS as etcd does, and then hangs up.
func listen(t *testing.T, server store.Certificate, clientsOf string) (endpoint string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if server.Cert != "" {
		pair, err := tls.LoadX509KeyPair(server.Cert, server.Key)
		if err != nil {
			t.Fatal(err)
		}
		cfg := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}}
		if clientsOf != "" {
			b, err := os.ReadFile(clientsOf)
			if err != nil {
				t.Fatal(err)
			}
			cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
			cfg.ClientCAs.AppendCertsFromPEM(b)
		}
		l = tls.NewListener(l, cfg)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				if _, isTLS := conn.(*tls.Conn); !isTLS {
					_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
				}
				_, _ = io.Copy(io.Discard, conn)
			}()
		}
	}()
	return l.Addr().String()
}

// TestHintsForTLS has each kind of wrong certificate met by the way out of just that.
func TestHintsForTLS(t *testing.T) {
	now, old := newPKI(t, 0), newPKI(t, 100)
	good, stranger := now.make("m", 30, "127.0.0.1"), newPKI(t, 0).make("ci", 30)
	client := now.make("ci", 30)
	late := old.make("ci", 30)
	var wg sync.WaitGroup
	defer wg.Wait()
	for name, x := range map[string]struct {
		server    store.Certificate
		clientsOf string
		args      []string
		hint      []string // what the hint says
		says      string   // what the error says
	}{
		"no authority":       {good, "", []string{"--endpoints", "https://ENDPOINT"}, []string{"--ca names the authority"}, "unknown authority"},
		"another authority":  {good, "", []string{"--ca", old.ca()}, []string{"--ca names the authority"}, "unknown authority"},
		"another host":       {now.make("elsewhere", 30, "etcd.example.com"), "", []string{"--ca", now.ca()}, []string{"--endpoints must name etcd by a host"}, "x509"},
		"etcd's is expired":  {old.make("m", 30, "127.0.0.1"), "", []string{"--ca", old.ca()}, []string{"etcd's own certificate", "--server NAME=HOST,HOST… --renew"}, "expired"},
		"none":               {good, now.ca(), []string{"--ca", now.ca()}, []string{"asks for a client certificate", "--cert and --key"}, "certificate required"},
		"a stranger's":       {good, now.ca(), []string{"--ca", now.ca(), "--cert", stranger.Cert, "--key", stranger.Key}, []string{"does not take this certificate"}, "tls: "},
		"one's own, expired": {good, now.ca(), []string{"--ca", now.ca(), "--cert", late.Cert, "--key", late.Key}, []string{"--client NAME --renew"}, late.Cert + " (common name ci), expired at " + late.Expires.UTC().Format("2006-01-02")},
		"no TLS":             {store.Certificate{}, "", []string{"--ca", now.ca(), "--cert", client.Cert, "--key", client.Key}, []string{"etcd speaks no TLS"}, "first record"},
	} {
		endpoint := listen(t, x.server, x.clientsOf)
		args := []string{"status", "--endpoints", endpoint}
		for _, a := range x.args {
			args = append(args, strings.ReplaceAll(a, "ENDPOINT", endpoint))
		}
		wg.Go(func() { // each asks for as long as a call may take
			said := failing(t, args)
			errText, hint, _ := strings.Cut(said, "hint: ")
			for _, want := range x.hint {
				if !strings.Contains(hint, want) {
					t.Errorf("%s: the hint does not say %q: %s", name, want, said)
				}
			}
			if !strings.Contains(errText, x.says) {
				t.Errorf("%s: the error does not say %q: %s", name, x.says, said)
			}
		})
	}
}

// failing runs routectl, which must fail, and returns what it says.
func failing(t *testing.T, args []string) string {
	t.Helper()
	var said bytes.Buffer
	env := Env{Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: &said, Getenv: func(string) string { return "" }, Now: time.Now}
	if code := Run(t.Context(), env, args); code != ExitFailed {
		t.Errorf("exit code %d: %s", code, said.String())
	}
	return said.String()
}
