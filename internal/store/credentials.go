package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// LoadTLS reads what a client of etcd needs for TLS from PEM files: the
// authority that signed etcd's certificates, and a certificate with its key if
// etcd asks for one. It returns nil when neither is given, and fails when only
// one of certificate and key is.
//
// Certificate and key are read again for each connection, so that new ones are
// shown as soon as they are in place; while they cannot be read or do not fit
// together, as in the midst of being replaced, the last ones that did are. An
// authority is not read again: see [Config.Sources]. One that has expired is
// not shown: the connection fails with its file and date, until a new one is in
// place.
func LoadTLS(ca, cert, key string) (*tls.Config, error) {
	if (cert == "") != (key == "") {
		return nil, errors.New("read the certificate for etcd: a certificate and its key go together, only one is given")
	}
	if ca == "" && cert == "" {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("read etcd's authority: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read etcd's authority: %s holds no certificate", ca)
		}
	}
	if cert != "" {
		first, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("read the certificate for etcd: %w", err)
		}
		var last atomic.Pointer[tls.Certificate]
		last.Store(&first)
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if pair, err := tls.LoadX509KeyPair(cert, key); err == nil {
				last.Store(&pair)
			}
			// etcd would refuse it without saying which, or since when.
			now := last.Load()
			if l := now.Leaf; l != nil && time.Now().After(l.NotAfter) {
				return nil, fmt.Errorf("the certificate for etcd, %s (common name %s), expired at %s: put a new one in its place",
					cert, l.Subject.CommonName, l.NotAfter.Format(time.RFC3339))
			}
			return now, nil
		}
	}
	return cfg, nil
}

// Sources are where a client's credentials were read from.
type Sources struct {
	CA, Cert, Key string // PEM files, as LoadTLS is given them
	Password      string // as LoadPassword is given it
}

// credentials are what a client is made with.
type credentials struct {
	tls       *tls.Config
	password  string
	authority string // what CA holds
}

func (s Sources) load() (c credentials, err error) {
	if c.tls, err = LoadTLS(s.CA, s.Cert, s.Key); err != nil {
		return c, err
	}
	if c.password, err = LoadPassword(s.Password); err != nil {
		return c, err
	}
	if s.CA != "" {
		pem, err := os.ReadFile(s.CA)
		if err != nil {
			return c, fmt.Errorf("read etcd's authority: %w", err)
		}
		c.authority = string(pem)
	}
	return c, nil
}

// credentials reads what the next client is to be made with; what cannot be
// read stays what it was.
func (s *Store) credentials() credentials {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Sources != nil {
		c, err := s.cfg.Sources.load()
		if err == nil {
			s.shown = c
			return c
		}
		s.log.Warn("cannot read the credentials for etcd again, the last ones stay", "err", err)
	}
	if s.shown == (credentials{}) {
		s.shown = credentials{tls: s.cfg.TLS, password: s.cfg.Password}
	}
	return s.shown
}

// tlsConfig is that of the client of the moment.
func (s *Store) tlsConfig() *tls.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shown.tls != nil {
		return s.shown.tls
	}
	return s.cfg.TLS
}

// reread replaces a client that etcd does not let in, or that does not trust
// etcd any more, when its password or authority was changed where it is read from.
// It tells whether etcd had refused it, so that what was asked was not done.
func (s *Store) reread(c *clientv3.Client, err error) (refused bool) {
	refused = unknown(err)
	if s.cfg.Sources == nil || !refused && !errors.Is(err, context.DeadlineExceeded) && status.Code(err) != codes.Unavailable && status.Code(err) != codes.DeadlineExceeded {
		return false
	}
	now, loadErr := s.cfg.Sources.load()
	s.mu.Lock()
	same := s.client != c || now.password == s.shown.password && now.authority == s.shown.authority
	s.mu.Unlock()
	if loadErr != nil || same {
		return false
	}
	s.renew(c, "the credentials for it were changed")
	return refused
}

// unknown tells whether etcd says that it does not know who asks.
func unknown(err error) bool {
	if err == nil {
		return false
	}
	has := func(e error) bool { return errors.Is(err, e) || strings.Contains(err.Error(), rpctypes.ErrorDesc(e)) }
	return has(rpctypes.ErrAuthFailed) || has(rpctypes.ErrInvalidAuthToken) || status.Code(err) == codes.Unauthenticated
}

// LoadPassword returns the password itself, or what is in the file that
// file:PATH names, without its last line end.
func LoadPassword(s string) (string, error) {
	path, isFile := strings.CutPrefix(s, "file:")
	if !isFile {
		return s, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the password for etcd: %w", err)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}
