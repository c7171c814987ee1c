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

// probeAgain is how long what was found is said again. Thousands of instances
// whose calls fail because etcd has too much to do must not connect to it once
// more for each.
const probeAgain = 2 * time.Second

// A probed is what was found last.
type probed struct {
	mu   sync.Mutex
	at   time.Time
	said string
}

// probe says for each endpoint what stands in the way of reaching it: etcd's
// client tells only that the time was over. One asks for all whose calls fail
// meanwhile.
func (s *Store) probe(ctx context.Context) string {
	p := &s.probed
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at.IsZero() || time.Since(p.at) >= probeAgain {
		p.said = s.ask(ctx)
		p.at = time.Now()
	}
	return p.said
}

func (s *Store) ask(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTime)
	defer cancel()
	some := s.leavesOut(s.cfg.Endpoints)
	found := make([]string, len(s.cfg.Endpoints))
	var wg sync.WaitGroup
	for i, e := range s.cfg.Endpoints {
		wg.Go(func() {
			if s.leavesOut([]string{e}) {
				found[i] = e + " has no answer while another has, and is left out for now"
				return
			}
			err := s.reach(ctx, e)
			switch {
			case err != nil:
				found[i] = fmt.Sprintf("%s: %v", e, err)
			case some:
				found[i] = e + " is in use: try again"
			default:
				found[i] = e + " takes connections, but has no answer: has etcd a leader?"
			}
		})
	}
	wg.Wait()
	return strings.Join(found, "; ")
}

// reach connects to an endpoint, by TLS where the client would.
func (s *Store) reach(ctx context.Context, endpoint string) error {
	network, addr, secure := s.target(endpoint)
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if !secure {
		return nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if now := s.tlsConfig(); now != nil {
		cfg = now.Clone()
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
