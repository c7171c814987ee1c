package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"routerd.dev/internal/rollout"
)

// certificate writes a certificate that is its own authority and good for both
// ends, and returns its files.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd"}, NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	must(t, err)
	pkcs, err := x509.MarshalPKCS8PrivateKey(k)
	must(t, err)
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	must(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs}), 0o600))
	return cert, key
}

func TestTLSOnBothSides(t *testing.T) {
	cert, key := certificate(t)
	dir, err := os.MkdirTemp("", "store-tls-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	e := &etcd{dir: dir, change: func(cfg *embed.Config) {
		u := url.URL{Scheme: "https", Host: "localhost:0"}
		cfg.ListenClientUrls = []url.URL{u}
		cfg.ClientTLSInfo = transport.TLSInfo{CertFile: cert, KeyFile: key, TrustedCAFile: cert, ClientCertAuth: true}
	}}
	must(t, e.start())
	t.Cleanup(e.stop)
	endpoint := "https://localhost:" + portOf(e.e.Clients[0].Addr().String())

	tlsConfig, err := LoadTLS(cert, cert, key)
	must(t, err)
	s := openAt(t, Config{Endpoints: []string{endpoint}, TLS: tlsConfig})
	if _, _, err := s.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, files := range map[string][4]string{
		"no certificate":    {cert, "", "", "certificate required"},
		"unknown authority": {"", cert, key, "unknown authority"},
	} {
		tlsConfig, err := LoadTLS(files[0], files[1], files[2])
		must(t, err)
		s := openAt(t, Config{Endpoints: []string{endpoint}, TLS: tlsConfig, Timeout: time.Second})
		_, err = s.Head(t.Context())
		if err == nil {
			t.Errorf("%s: let in", name)
			continue
		}
		wantErr(t, err, ErrUnavailable, endpoint, files[3])
	}
}

func portOf(addr string) string {
	u := url.URL{Host: addr}
	return u.Port()
}

func TestCredentials(t *testing.T) {
	if c, err := LoadTLS("", "", ""); c != nil || err != nil {
		t.Errorf("%v, %v", c, err)
	}
	cert, key := certificate(t)
	for _, files := range [][3]string{{"", cert, ""}, {"", "", key}, {key, "", ""}, {cert + "x", "", ""}, {"", key, cert}} {
		if _, err := LoadTLS(files[0], files[1], files[2]); err == nil {
			t.Errorf("%v is accepted", files)
		}
	}
	file := filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(file, []byte("se cret\n"), 0o600))
	for in, want := range map[string]string{"plain": "plain", "": "", "file:" + file: "se cret"} {
		if got, err := LoadPassword(in); got != want || err != nil {
			t.Errorf("%q is %q, %v", in, got, err)
		}
	}
	if _, err := LoadPassword("file:" + file + "x"); err == nil {
		t.Error("a missing file is accepted")
	}
}

// replace puts a file in place of another in one step, as what rotates
// certificates does.
func replace(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to+".new", b, 0o600))
	must(t, os.Rename(to+".new", to))
}

// TestRotation gives etcd another certificate of another authority while a
// store is at work, and puts the store's own new files in place: it goes on,
// though what it was opened with is worth nothing any more.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	ca, cert, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	rotate := func() {
		c, k := certificate(t)
		replace(t, c, ca)
		replace(t, c, cert)
		replace(t, k, key)
	}
	rotate()
	data, err := os.MkdirTemp("", "store-rotation-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(data) })
	port := freePort(t)
	e := &etcd{dir: data, change: func(cfg *embed.Config) {
		cfg.ListenClientUrls = []url.URL{{Scheme: "https", Host: "localhost:" + port}}
		cfg.ClientTLSInfo = transport.TLSInfo{CertFile: cert, KeyFile: key, TrustedCAFile: ca, ClientCertAuth: true}
	}}
	must(t, e.start())
	t.Cleanup(func() { e.stop() })
	sources := &Sources{CA: ca, Cert: cert, Key: key}
	tlsConfig, err := LoadTLS(ca, cert, key)
	must(t, err)
	s := openAt(t, Config{Endpoints: []string{"https://localhost:" + port}, TLS: tlsConfig, Sources: sources, Timeout: 2 * time.Second})
	if _, _, err := s.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	must(t, os.Remove(key)) // in the midst of being replaced
	if _, err := s.Format(t.Context()); err != nil {
		t.Errorf("with a key that is missing for a moment: %v", err)
	}
	e.stop()
	rotate()
	must(t, e.start())
	eventually(t, "the store trusts the new authority and is let in", func() bool {
		_, err := s.Format(t.Context())
		return err == nil
	})
}

// TestCertificateIsReadAgain holds that each connection is made with the
// certificate of the moment, and with the last one while there is none.
func TestCertificateIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	shown := func(cfg *tls.Config) string {
		t.Helper()
		pair, err := cfg.GetClientCertificate(&tls.CertificateRequestInfo{})
		must(t, err)
		return string(pair.Certificate[0])
	}
	put := func() {
		c, k := certificate(t)
		replace(t, c, cert)
		replace(t, k, key)
	}
	put()
	cfg, err := LoadTLS("", cert, key)
	must(t, err)
	first := shown(cfg)
	put()
	second := shown(cfg)
	if second == first {
		t.Error("a new certificate is in place, the former one is shown")
	}
	other, _ := certificate(t)
	replace(t, other, cert) // without its key yet
	if shown(cfg) != second {
		t.Error("a certificate that does not fit its key is shown")
	}
	must(t, os.Remove(key))
	if shown(cfg) != second {
		t.Error("without a key the last pair is not shown")
	}
}

// TestExpiredCertificateIsNamed: a connection fails with its file and date, and
// is made again once a new one is in place.
func TestExpiredCertificateIsNamed(t *testing.T) {
	dir := t.TempDir()
	old, err := OpenAuthority(dir, time.Now().AddDate(0, 0, -40))
	must(t, err)
	c, err := old.Issue(CertificateRequest{Name: "edge-1", Days: 30})
	must(t, err)
	cfg, err := LoadTLS("", c.Cert, c.Key) // a start without it would serve nothing
	must(t, err)
	if _, err := cfg.GetClientCertificate(&tls.CertificateRequestInfo{}); err == nil ||
		!strings.Contains(err.Error(), c.Cert+" (common name edge-1), expired at "+c.Expires.UTC().Format("2006-01-02")) {
		t.Errorf("error %v", err)
	}
	now, err := OpenAuthority(dir, time.Now())
	must(t, err)
	_, err = now.Issue(CertificateRequest{Name: "edge-1", Days: 30, Renew: true})
	must(t, err)
	if _, err := cfg.GetClientCertificate(&tls.CertificateRequestInfo{}); err != nil {
		t.Error(err)
	}
}

// freePort is one that nobody listens at.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "localhost:0")
	must(t, err)
	defer func() { _ = l.Close() }()
	return portOf(l.Addr().String())
}

// TestChangedPassword changes a user's password while a store is at work, as
// that user and by name: the next call is made with what is in the file.
func TestChangedPassword(t *testing.T) {
	data, err := os.MkdirTemp("", "store-password-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(data) })
	e := &etcd{dir: data, change: func(cfg *embed.Config) { cfg.BcryptCost = 4 }}
	must(t, e.start())
	t.Cleanup(e.stop)
	endpoint := e.endpoint()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // the clients here wait for ever
	defer cancel()
	admin, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	must(t, err)
	t.Cleanup(func() { _ = admin.Close() })
	_, err = admin.UserAdd(ctx, "root", "first")
	must(t, err)
	_, err = admin.UserGrantRole(ctx, "root", "root")
	must(t, err)
	_, err = admin.AuthEnable(ctx)
	must(t, err)

	file := filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(file, []byte("first\n"), 0o600))
	s := openAt(t, Config{
		Endpoints: []string{endpoint}, Username: "root", Password: "first", Sources: &Sources{Password: "file:" + file}, Timeout: 2 * time.Second,
	})
	if _, _, err := s.Init(ctx); err != nil {
		t.Fatal(err)
	}
	change := func(from, to string) {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Username: "root", Password: from, Logger: zap.NewNop()})
		must(t, err)
		defer func() { _ = c.Close() }()
		_, err = c.UserChangePassword(ctx, "root", to)
		must(t, err)
	}
	change("first", "second")
	_, err = s.Format(ctx)
	wantErr(t, err, ErrDenied, "root")
	must(t, os.WriteFile(file, []byte("second\n"), 0o600))
	if _, err := s.Format(ctx); err != nil {
		t.Errorf("with the new password in the file: %v", err)
	}
	change("second", "third")
	must(t, os.WriteFile(file, []byte("third\n"), 0o600))
	if err := s.SetSettings(ctx, "root", func(*rollout.Settings) error { return nil }); err != nil {
		t.Errorf("a write with the new password in the file: %v", err)
	}
}
