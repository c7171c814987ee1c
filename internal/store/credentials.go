package store

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
)

// LoadTLS reads what a client of etcd needs for TLS from PEM files: the
// authority that signed etcd's certificates, and a certificate with its key if
// etcd asks for one. It returns nil when neither is given, and fails when only
// one of certificate and key is.
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
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("read the certificate for etcd: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
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
