package daemon

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
)

// A certificate is a key pair that follows its files. A pair that cannot be
// read leaves the one in use.
type certificate struct {
	certFile, keyFile string
	pair              atomic.Pointer[tls.Certificate]
}

// newCertificate reads the pair once, so that a bad one fails the start.
func newCertificate(certFile, keyFile string) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile}
	if err := c.load(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *certificate) load() error {
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("read certificate %s with key %s: %w", c.certFile, c.keyFile, err)
	}
	c.pair.Store(&pair)
	return nil
}

// config serves the pair of the moment to each handshake; nil of nil.
func (c *certificate) config() *tls.Config {
	if c == nil {
		return nil
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.pair.Load(), nil
		},
	}
}

// watch reads the pair again when a file beside it changes, until ctx ends. It
// watches the folders, since files are often replaced by renaming or behind a
// symbolic link, and waits a moment so that both files are in place.
func (c *certificate) watch(ctx context.Context, log *slog.Logger) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch certificates: %w", err)
	}
	defer w.Close()
	for _, dir := range []string{filepath.Dir(c.certFile), filepath.Dir(c.keyFile)} {
		if err := w.Add(dir); err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	const settle = 100 * time.Millisecond
	// What changed before there was a watch made no event.
	due := time.After(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-w.Errors:
			log.Warn("watching certificates", "err", err)
			due = time.After(settle) // events may have been lost
		case <-w.Events:
			if due == nil { // a busy folder must not put it off for ever
				due = time.After(settle)
			}
		case <-due:
			due = nil
			before := c.pair.Load()
			if err := c.load(); err != nil {
				log.Error("certificate not taken, the one before stays in use", "err", err)
			} else if now := c.pair.Load(); !bytes.Equal(before.Certificate[0], now.Certificate[0]) {
				log.Info("certificate read again", "file", c.certFile, "until", now.Leaf.NotAfter)
			}
		}
	}
}
