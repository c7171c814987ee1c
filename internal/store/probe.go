package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// probeTime bounds what finding out why etcd does not answer adds to a call
// that failed.
const probeTime = 500 * time.Millisecond

// probe says for each endpoint what stands in the way of reaching it: etcd's
// client tells only that the time was over.
func (s *Store) probe(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTime)
	defer cancel()
	found := make([]string, len(s.cfg.Endpoints))
	var wg sync.WaitGroup
	for i, e := range s.cfg.Endpoints {
		wg.Go(func() {
			found[i] = e + " takes connections, but has no answer: has etcd a leader?"
			if err := s.reach(ctx, e); err != nil {
				found[i] = fmt.Sprintf("%s: %v", e, err)
			}
		})
	}
	wg.Wait()
	return strings.Join(found, "; ")
}

// reach connects to an endpoint, by TLS where the client would.
func (s *Store) reach(ctx context.Context, endpoint string) error {
	scheme, addr, ok := strings.Cut(endpoint, "://")
	if !ok {
		scheme, addr = "", endpoint
	}
	network, secure := "tcp", scheme == "https" || scheme == "" && s.cfg.TLS != nil
	switch {
	case scheme == "unix" || scheme == "unixs":
		network, secure = "unix", scheme == "unixs"
	case strings.HasPrefix(endpoint, "unix:"):
		network, addr, secure = "unix", strings.TrimPrefix(endpoint, "unix:"), false
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if !secure {
		return nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.cfg.TLS != nil {
		cfg = s.cfg.TLS.Clone()
	}
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(addr)
	}
	cfg.NextProtos = []string{"h2"}
	c := tls.Client(conn, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	// A server says only after the handshake that it wants a certificate.
	if err := c.SetReadDeadline(time.Now().Add(probeTime / 5)); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}
