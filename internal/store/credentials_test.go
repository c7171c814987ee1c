package store

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
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
