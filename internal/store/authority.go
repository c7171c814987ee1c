package store

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

const (
	authorityCert = "ca.pem"
	authorityKey  = "ca-key.pem"
	// authorityDays is how long an authority is good for: longer than what it signs.
	authorityDays = 3650
	// skew is by how much the clocks of those who look at a certificate may be
	// behind: a host with a wrong clock is still let in.
	skew = 24 * time.Hour
)

// An Authority signs certificates for etcd's members and its clients. It is
// for trying out and for small fleets: its key is a file beside the certificates.
type Authority struct {
	Dir  string
	Made bool // by this OpenAuthority; otherwise it was there

	cert *x509.Certificate
	key  crypto.Signer
	now  time.Time
}

// A CertificateRequest says for whom a certificate is to be. One with hosts is
// for an etcd member, towards its clients and its peers; one without is for a
// client of etcd, whose user has the same name.
type CertificateRequest struct {
	Name  string
	Hosts []string
	Days  int  // how long it is good for
	Renew bool // make a new one, also where there is one
}

// A Certificate is one that an authority signed.
type Certificate struct {
	Name    string    `json:"name"` // its common name
	Kind    string    `json:"kind"` // server or client
	Hosts   []string  `json:"hosts,omitempty"`
	Former  []string  `json:"former,omitempty"` // the hosts of the one that was renewed, if they are others
	Cert    string    `json:"cert"`             // file
	Key     string    `json:"key"`              // file
	State   string    `json:"state"`
	Expires time.Time `json:"expires"`
}

// What can be said of a certificate.
const (
	CertificateMade    = "made"
	CertificateRenewed = "renewed"
	CertificateKept    = "kept"
)

// OpenAuthority reads the authority in dir, ca.pem and ca-key.pem, or makes one
// where there is neither. Its key can be read by its owner only.
func OpenAuthority(dir string, now time.Time) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the authority's folder: %w", err)
	}
	a := &Authority{Dir: dir, now: now}
	cert, key := a.path(authorityCert), a.path(authorityKey)
	noCert, noKey := missing(cert), missing(key)
	if noCert && !noKey {
		// A run that was killed leaves the key alone, and then it has signed nothing.
		signed, err := a.signedBy(key)
		if err != nil {
			return nil, fmt.Errorf("read the authority: %s is there, its certificate %s is not: put it there, or use another folder: %w", key, cert, err)
		}
		if signed != "" {
			return nil, fmt.Errorf("read the authority: %s is there, its certificate %s is not, and it signed %s: put it there, or use another folder", key, cert, signed)
		}
		noKey = true
	}
	switch {
	case noCert && noKey:
		a.Made = true
		return a, a.found()
	case noKey:
		return nil, fmt.Errorf("read the authority: %s is there, its key %s is not: put it there, or use another folder", cert, key)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("read the authority: %s and %s: %w", cert, key, err)
	}
	a.cert, a.key = pair.Leaf, pair.PrivateKey.(crypto.Signer) // every kind of key that tls reads signs
	switch {
	case !a.cert.IsCA:
		return nil, fmt.Errorf("read the authority: %s is no certificate of an authority", cert)
	case now.Before(a.cert.NotBefore):
		return nil, fmt.Errorf("read the authority: %s is not good before %s: the clock was ahead when it was made, or is behind now: set it right, or use another folder",
			cert, a.cert.NotBefore.Format(time.RFC3339))
	case now.After(a.cert.NotAfter):
		return nil, fmt.Errorf("read the authority: %s expired at %s: make a new one in another folder, have everybody trust both, then change over",
			cert, a.cert.NotAfter.Format(time.RFC3339))
	}
	return a, nil
}

func missing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func (a *Authority) path(file string) string { return filepath.Join(a.Dir, file) }

// Expires is until when the authority is good.
func (a *Authority) Expires() time.Time { return a.cert.NotAfter }

// Files are the authority's certificate, which everybody needs, and its key,
// which nobody but who signs does.
func (a *Authority) Files() (cert, key string) { return a.path(authorityCert), a.path(authorityKey) }

// found makes the authority itself.
func (a *Authority) found() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the authority: %w", err)
	}
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: "routerd etcd authority"}, NotBefore: a.now.Add(-skew), NotAfter: a.now.AddDate(0, 0, authorityDays),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	a.key = key
	if a.cert, err = a.sign(tmpl, tmpl, key, authorityCert, authorityKey); err != nil {
		return fmt.Errorf("make the authority: %w", err)
	}
	return nil
}

// signedBy finds a certificate in the folder that the authority's key signed,
// "" for none. It fails when there are certificates and the key cannot be read.
func (a *Authority) signedBy(keyFile string) (string, error) {
	files, err := filepath.Glob(a.path("*.pem"))
	if err != nil {
		return "", err
	}
	for _, file := range files {
		c := certificateIn(file)
		if c == nil { // a key, or something else
			continue
		}
		signer, err := privateKey(keyFile)
		if err != nil {
			return "", err
		}
		by := &x509.Certificate{PublicKey: signer.Public(), PublicKeyAlgorithm: c.PublicKeyAlgorithm}
		switch signer.Public().(type) {
		case *ecdsa.PublicKey:
			by.PublicKeyAlgorithm = x509.ECDSA
		case *rsa.PublicKey:
			by.PublicKeyAlgorithm = x509.RSA
		case ed25519.PublicKey:
			by.PublicKeyAlgorithm = x509.Ed25519
		}
		if by.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil {
			return file, nil
		}
	}
	return "", nil
}

// privateKey reads a key as this package writes it, or as openssl does.
func privateKey(file string) (crypto.Signer, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key", file)
	}
	if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s holds a key that does not sign", file)
	}
	return signer, nil
}

// sign makes a certificate for key and writes both, the key first: whoever
// looks in between has a pair that does not fit, and keeps what he has. Both
// are on the disk before the first is in place, so that a run that is killed,
// or finds the disk full, leaves the pair that was; between the two it leaves a
// key that Issue replaces.
func (a *Authority) sign(tmpl, parent *x509.Certificate, key crypto.Signer, certFile, keyFile string) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var written []*renameio.PendingFile
	defer func() {
		for _, f := range written {
			_ = f.Cleanup() // nothing to do where it is in place
		}
	}()
	for _, f := range []struct {
		name, kind string
		der        []byte
		mode       fs.FileMode
	}{{keyFile, "PRIVATE KEY", pkcs, 0o600}, {certFile, "CERTIFICATE", der, 0o644}} {
		p, err := renameio.NewPendingFile(a.path(f.name), renameio.WithPermissions(f.mode), renameio.WithTempDir(a.Dir))
		if err != nil {
			return nil, fmt.Errorf("write %s: %w", a.path(f.name), err)
		}
		written = append(written, p)
		if err := pem.Encode(p, &pem.Block{Type: f.kind, Bytes: f.der}); err != nil {
			return nil, fmt.Errorf("write %s: %w", a.path(f.name), err)
		}
		if err := p.Sync(); err != nil {
			return nil, fmt.Errorf("write %s: %w", a.path(f.name), err)
		}
	}
	for _, p := range written {
		if err := p.CloseAtomicallyReplace(); err != nil {
			return nil, err
		}
	}
	return x509.ParseCertificate(der)
}

// Issue makes a certificate as NAME.pem and NAME-key.pem, or keeps the one that
// is there. It fails with ErrConflict when that is not what is asked for: of
// another authority, for other hosts, expired or not good yet; Renew replaces it. A server's
// is never replaced by a client's, or the other way: who uses it would be
// locked out.
func (a *Authority) Issue(r CertificateRequest) (Certificate, error) {
	what := "certificate " + r.Name
	c, old, err := a.look(r)
	if err != nil {
		return c, fmt.Errorf("%s: %w", what, err)
	}
	if old != nil && !r.Renew {
		c.State, c.Expires = CertificateKept, old.NotAfter
		return c, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return c, fmt.Errorf("%s: %w", what, err)
	}
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: r.Name}, NotBefore: a.now.Add(-skew), NotAfter: a.now.AddDate(0, 0, r.Days),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	if tmpl.NotAfter.After(a.cert.NotAfter) { // nobody would accept it for longer
		tmpl.NotAfter = a.cert.NotAfter
	}
	if len(r.Hosts) > 0 { // a member of etcd is a client of its peers
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		tmpl.DNSNames, tmpl.IPAddresses = hostNames(r.Hosts)
	}
	signed, err := a.sign(tmpl, a.cert, key, filepath.Base(c.Cert), filepath.Base(c.Key))
	if err != nil {
		return c, fmt.Errorf("%s: %w", what, err)
	}
	c.State, c.Expires = CertificateMade, signed.NotAfter
	if old != nil {
		c.State = CertificateRenewed
		if old != a.cert && !sameHosts(old, r) {
			c.Former = append(slices.Clone(old.DNSNames), texts(old.IPAddresses)...)
		}
	}
	return c, nil
}

// Check tells what stands in the way of a request, and writes nothing.
func (a *Authority) Check(r CertificateRequest) error {
	if _, _, err := a.look(r); err != nil {
		return fmt.Errorf("certificate %s: %w", r.Name, err)
	}
	return nil
}

// look checks a request and finds the certificate that is there, nil for none.
func (a *Authority) look(r CertificateRequest) (Certificate, *x509.Certificate, error) {
	c := Certificate{Name: r.Name, Kind: "client", Hosts: r.Hosts, Cert: a.path(r.Name + ".pem"), Key: a.path(r.Name + "-key.pem")}
	if len(r.Hosts) > 0 {
		c.Kind = "server"
	}
	if err := r.Check(); err != nil {
		return c, nil, err
	}
	if missing(c.Cert) { // a key alone is what a killed run left: nothing is known by it
		return c, nil, nil
	}
	if old := certificateIn(c.Cert); old != nil && isServer(old) != (len(r.Hosts) > 0) {
		return c, nil, fmt.Errorf("%w: %s %s: %w", ErrConflict, c.Cert, kindOf(old), ErrOtherKind)
	}
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	switch {
	case err != nil && r.Renew: // whatever it is, it is replaced
		return c, a.cert, nil
	case err != nil:
		return c, nil, fmt.Errorf("%w: %w", ErrConflict, err)
	case r.Renew:
		return c, pair.Leaf, nil
	}
	if why := a.unfit(pair.Leaf, r); why != "" {
		return c, nil, fmt.Errorf("%w: %s %s", ErrConflict, c.Cert, why)
	}
	return c, pair.Leaf, nil
}

// unfit says why a certificate is not what is asked for, "" when it is.
func (a *Authority) unfit(old *x509.Certificate, r CertificateRequest) string {
	switch {
	case !bytes.Equal(old.RawIssuer, a.cert.RawSubject) || old.CheckSignatureFrom(a.cert) != nil:
		return "is of another authority"
	case a.now.Before(old.NotBefore): // the clock was ahead when it was made: nobody accepts it yet
		return "is not good before " + old.NotBefore.Format(time.RFC3339)
	case !a.now.Before(old.NotAfter):
		return "expired at " + old.NotAfter.Format(time.RFC3339)
	case old.Subject.CommonName != r.Name:
		return fmt.Sprintf("has the common name %q", old.Subject.CommonName)
	case isServer(old) != (len(r.Hosts) > 0):
		return kindOf(old)
	case !sameHosts(old, r):
		return "is for " + strings.Join(append(slices.Clone(old.DNSNames), texts(old.IPAddresses)...), ", ")
	}
	return ""
}

// ErrOtherKind: a certificate of this name is for another use, a server's or a
// client's; Renew does not replace it.
var ErrOtherKind = errors.New("choose another name, or delete it and its key")

func isServer(c *x509.Certificate) bool {
	return slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
}

func kindOf(c *x509.Certificate) string {
	return map[bool]string{true: "is a server's", false: "is a client's"}[isServer(c)]
}

func sameHosts(old *x509.Certificate, r CertificateRequest) bool {
	dns, ips := hostNames(r.Hosts)
	return slices.Equal(sorted(old.DNSNames), sorted(dns)) && slices.Equal(texts(old.IPAddresses), texts(ips))
}

// certificateIn reads a certificate without its key, nil where it cannot.
func certificateIn(file string) *x509.Certificate {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return c
}

// Check tells what is wrong with a request, wherever it is made.
func (r CertificateRequest) Check() error {
	if err := CheckUser(r.Name); err != nil {
		return err
	}
	if r.Name == strings.TrimSuffix(authorityCert, ".pem") || strings.HasSuffix(r.Name, "-key") {
		return fmt.Errorf("name %s: its files would be taken for others: choose another name", r.Name)
	}
	if len(r.Hosts) > 0 && r.Name == rootUser {
		return errors.New("server root: whoever comes with the common name root may do everything: give it another name")
	}
	for i, h := range r.Hosts {
		switch {
		case h == "" || strings.ContainsAny(h, " /,:@\x00") && net.ParseIP(h) == nil:
			return fmt.Errorf("host %.80q of %s: want a name or an address, without a port", h, r.Name)
		case strings.ContainsFunc(h, func(c rune) bool { return c <= ' ' || c >= 0x7f }): // what an IA5String may hold
			return fmt.Errorf("host %.80q of %s: want letters of ASCII: a name with others is written as xn--…, in punycode", h, r.Name)
		case slices.Contains(r.Hosts[:i], h):
			return fmt.Errorf("host %.80q of %s is named twice", h, r.Name)
		}
	}
	if r.Days < 1 || r.Days > authorityDays {
		return fmt.Errorf("%d days: want 1 to %d", r.Days, authorityDays)
	}
	return nil
}

// hostNames tells names and addresses apart.
func hostNames(hosts []string) (dns []string, ips []net.IP) {
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			ips = append(ips, ip)
		} else {
			dns = append(dns, h)
		}
	}
	return dns, ips
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }

func texts(ips []net.IP) []string {
	var out []string
	for _, ip := range ips {
		out = append(out, ip.String())
	}
	slices.Sort(out)
	return out
}
