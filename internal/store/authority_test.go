package store

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func leaf(t *testing.T, c Certificate) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	must(t, err)
	return pair.Leaf
}

func TestAuthority(t *testing.T) {
	now := time.Now()
	dir := filepath.Join(t.TempDir(), "tls")
	a, err := OpenAuthority(dir, now)
	must(t, err)
	server, err := a.Issue(CertificateRequest{Name: "etcd-1", Hosts: []string{"etcd-1.example.com", "10.0.0.1", "::1"}, Days: 30})
	must(t, err)
	client, err := a.Issue(CertificateRequest{Name: "edge-1", Days: 30})
	must(t, err)
	for path, want := range map[string]fs.FileMode{"ca.pem": 0o644, "ca-key.pem": 0o600, "etcd-1.pem": 0o644, "etcd-1-key.pem": 0o600, "edge-1-key.pem": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, path)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	again, err := OpenAuthority(dir, now)
	must(t, err)
	if !a.Made || again.Made {
		t.Errorf("made %v, then %v", a.Made, again.Made)
	}
	roots := x509.NewCertPool()
	roots.AddCert(again.cert)
	for name, x := range map[string]struct {
		c    Certificate
		host string
		use  x509.ExtKeyUsage
		ok   bool
	}{
		"server":                {server, "etcd-1.example.com", x509.ExtKeyUsageServerAuth, true},
		"server by address":     {server, "10.0.0.1", x509.ExtKeyUsageServerAuth, true},
		"server, IPv6":          {server, "::1", x509.ExtKeyUsageServerAuth, true},
		"peer":                  {server, "", x509.ExtKeyUsageClientAuth, true},
		"another host":          {server, "etcd-2.example.com", x509.ExtKeyUsageServerAuth, false},
		"client":                {client, "", x509.ExtKeyUsageClientAuth, true},
		"a client that listens": {client, "", x509.ExtKeyUsageServerAuth, false},
	} {
		_, err := leaf(t, x.c).Verify(x509.VerifyOptions{Roots: roots, DNSName: x.host, KeyUsages: []x509.ExtKeyUsage{x.use}})
		if (err == nil) != x.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c := leaf(t, client); c.Subject.CommonName != "edge-1" || c.IsCA || c.NotAfter.After(now.AddDate(0, 0, 31)) || c.NotBefore.After(now) {
		t.Errorf("certificate %+v", c)
	}
	if _, err := again.Issue(CertificateRequest{Name: "long", Days: authorityDays}); err != nil {
		t.Error(err)
	} else if later, err := OpenAuthority(dir, now.AddDate(1, 0, 0)); err != nil {
		t.Error(err)
	} else if c, err := later.Issue(CertificateRequest{Name: "longer", Days: authorityDays}); err != nil || !c.Expires.Equal(later.Expires()) {
		t.Errorf("a certificate outlives its authority: %v, %v", c.Expires, err)
	}
}

func TestCertificatesAreKept(t *testing.T) {
	dir := t.TempDir()
	open := func(dir string, after int) *Authority {
		a, err := OpenAuthority(dir, time.Now().AddDate(0, 0, after))
		must(t, err)
		return a
	}
	server := CertificateRequest{Name: "m", Hosts: []string{"h", "127.0.0.1"}, Days: 30}
	made, err := open(dir, 0).Issue(server)
	must(t, err)
	serial := leaf(t, made).SerialNumber
	kept, err := open(dir, 0).Issue(CertificateRequest{Name: "m", Hosts: []string{"127.0.0.1", "h"}, Days: 30})
	if err != nil || kept.State != CertificateKept || leaf(t, kept).SerialNumber.Cmp(serial) != 0 || !kept.Expires.Equal(made.Expires.Truncate(time.Second)) {
		t.Errorf("%+v, %v", kept, err)
	}
	foreign := t.TempDir()
	must(t, os.CopyFS(foreign, os.DirFS(dir)))
	must(t, os.Remove(filepath.Join(foreign, "ca.pem")))
	must(t, os.Remove(filepath.Join(foreign, "ca-key.pem")))
	half := t.TempDir()
	must(t, os.CopyFS(half, os.DirFS(dir)))
	must(t, os.Remove(filepath.Join(half, "m-key.pem")))
	client, err := open(dir, 0).Issue(CertificateRequest{Name: "c", Days: 30})
	must(t, err)
	for name, r := range map[string]CertificateRequest{
		"a server's as a client's": {Name: "m", Days: 30},
		"a client's as a server's": {Name: "c", Hosts: []string{"h"}, Days: 30},
	} {
		for _, renew := range []bool{false, true} {
			r.Renew = renew
			if _, err := open(dir, 0).Issue(r); !errors.Is(err, ErrConflict) || !errors.Is(err, ErrOtherKind) {
				t.Errorf("%s, renewed %v: %v", name, renew, err)
			}
		}
	}
	if leaf(t, made).SerialNumber.Cmp(serial) != 0 || !leaf(t, client).NotAfter.Equal(client.Expires) {
		t.Error("a certificate that is not to be replaced is")
	}
	for name, x := range map[string]struct {
		a *Authority
		r CertificateRequest
	}{
		"other hosts":       {open(dir, 0), CertificateRequest{Name: "m", Hosts: []string{"h"}, Days: 30}},
		"expired":           {open(dir, 31), server},
		"another authority": {open(foreign, 0), server},
		"without its key":   {open(half, 0), server},
	} {
		if _, err := x.a.Issue(x.r); !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
		x.r.Renew = true
		c, err := x.a.Issue(x.r)
		if err != nil || c.State != CertificateRenewed || leaf(t, c).SerialNumber.Cmp(serial) == 0 {
			t.Errorf("%s, renewed: %+v, %v", name, c, err)
		}
		if want := (name == "other hosts"); want != slices.Equal(c.Former, []string{"h", "127.0.0.1"}) {
			t.Errorf("%s: the hosts were %v", name, c.Former)
		}
	}
}

func TestAuthorityRefuses(t *testing.T) {
	dir := t.TempDir()
	a, err := OpenAuthority(dir, time.Now())
	must(t, err)
	for name, r := range map[string]CertificateRequest{
		"no name":              {},
		"a path":               {Name: "../x"},
		"the authority's name": {Name: "ca"},
		"a key's name":         {Name: "m-key"},
		"a server named root":  {Name: "root", Hosts: []string{"h"}},
		"a host with a port":   {Name: "m", Hosts: []string{"h:2379"}},
		"an empty host":        {Name: "m", Hosts: []string{"h", ""}},
		"a host twice":         {Name: "m", Hosts: []string{"h", "h"}},
		"a host not of ASCII":  {Name: "m", Hosts: []string{"bücher.example.com"}},
		"for ever":             {Name: "m", Days: authorityDays + 1},
		"not a day":            {Name: "m", Days: -1},
	} {
		if r.Days == 0 {
			r.Days = 30
		}
		if _, err := a.Issue(r); err == nil {
			t.Errorf("%s is made", name)
		}
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 2 {
		t.Errorf("%v, %v", files, err)
	}
	must(t, os.Remove(filepath.Join(dir, "ca-key.pem")))
	if _, err := OpenAuthority(dir, time.Now()); err == nil {
		t.Error("an authority without its key is opened, or made anew")
	}
	if _, err := OpenAuthority(t.TempDir(), time.Now()); err != nil {
		t.Error(err)
	}
	expired := t.TempDir()
	if _, err := OpenAuthority(expired, time.Now().AddDate(-11, 0, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(expired, time.Now()); err == nil {
		t.Error("an expired authority is used")
	}
}

// TestKilledRun: a key whose certificate was never written is in nobody's way.
func TestKilledRun(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	a, err := OpenAuthority(dir, now)
	must(t, err)
	made, err := a.Issue(CertificateRequest{Name: "m", Days: 30})
	must(t, err)
	serial := leaf(t, made).SerialNumber
	must(t, os.Remove(made.Cert))
	again, err := a.Issue(CertificateRequest{Name: "m", Days: 30})
	if err != nil || again.State != CertificateMade || leaf(t, again).SerialNumber.Cmp(serial) == 0 {
		t.Errorf("%+v, %v", again, err)
	}

	// An authority that has signed is never made anew beside what it signed.
	cert, key := a.Files()
	must(t, os.Remove(cert))
	before, err := os.ReadFile(key)
	must(t, err)
	if _, err := OpenAuthority(dir, now); err == nil || !strings.Contains(err.Error(), made.Cert) {
		t.Errorf("error %v", err)
	}
	must(t, os.WriteFile(key, []byte("broken"), 0o600))
	if _, err := OpenAuthority(dir, now); err == nil {
		t.Error("nobody knows what was signed, and the authority is made anew")
	}
	must(t, os.WriteFile(key, before, 0o600))
	must(t, os.Remove(made.Cert))
	foreign, _ := certificate(t) // and one of somebody else
	replace(t, foreign, filepath.Join(dir, "theirs.pem"))
	anew, err := OpenAuthority(dir, now)
	if err != nil || !anew.Made {
		t.Fatalf("%+v, %v", anew, err)
	}
	if after, err := os.ReadFile(key); err != nil || string(after) == string(before) {
		t.Errorf("the key is the one of before: %v", err)
	}
	if _, err := anew.Issue(CertificateRequest{Name: "m", Days: 30}); err != nil {
		t.Error(err)
	}

	// A certificate that cannot be put in place leaves no file half written.
	must(t, os.Remove(filepath.Join(dir, "m.pem")))
	must(t, os.Mkdir(filepath.Join(dir, "x.pem"), 0o700))
	if _, err := anew.sign(&x509.Certificate{}, anew.cert, anew.key, "x.pem", "x-key.pem"); err == nil {
		t.Error("a certificate is written over a folder")
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestCertificatesOfTheFuture: what was made while the clock was ahead is not
// kept, because nobody accepts it yet.
func TestCertificatesOfTheFuture(t *testing.T) {
	now, dir := time.Now(), t.TempDir()
	_, err := OpenAuthority(dir, now)
	must(t, err)
	ahead, err := OpenAuthority(dir, now.AddDate(0, 0, 9))
	must(t, err)
	r := CertificateRequest{Name: "m", Days: 30}
	made, err := ahead.Issue(r)
	must(t, err)
	from := "is not good before " + leaf(t, made).NotBefore.Format(time.RFC3339)
	right, err := OpenAuthority(dir, now)
	must(t, err)
	for what, err := range map[string]error{"check": right.Check(r), "issue": second(right.Issue(r))} {
		if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), made.Cert+" "+from) {
			t.Errorf("%s: %v", what, err)
		}
	}
	r.Renew = true
	if c, err := right.Issue(r); err != nil || c.State != CertificateRenewed || leaf(t, c).NotBefore.After(now) {
		t.Errorf("renewed: %+v, %v", c, err)
	}

	young := t.TempDir()
	a, err := OpenAuthority(young, now.AddDate(0, 0, 9))
	must(t, err)
	cert, _ := a.Files()
	want := cert + " is not good before " + a.cert.NotBefore.Format(time.RFC3339)
	if _, err := OpenAuthority(young, now); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v", err)
	}
}
