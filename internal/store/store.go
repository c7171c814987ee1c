package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// DefaultPrefix is where a fleet lives in etcd unless told otherwise.
const DefaultPrefix = "/routerd/"

// Config says which etcd, and where in it. Endpoints is needed; the rest has
// defaults.
type Config struct {
	Endpoints   []string
	Prefix      string      // "" for DefaultPrefix; a missing '/' at its end is added
	TLS         *tls.Config // nil for none
	Username    string
	Password    string
	DialTimeout time.Duration // for connecting and authenticating; 0 for 5 s
	Timeout     time.Duration // for each call to etcd; 0 for 5 s
	Logger      *slog.Logger  // nil for none
}

// A Store is a fleet's records in one etcd. It is safe for concurrent use.
type Store struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex
	client  *clientv3.Client // nil until first used
	dialing *dialing         // not nil while somebody makes the client
	closed  bool

	cache cache
}

// Open checks the configuration. It contacts nothing, so it succeeds while
// etcd is away; the calls after it say so.
func Open(cfg Config) (*Store, error) {
	cfg.Endpoints = slices.DeleteFunc(slices.Clone(cfg.Endpoints), func(e string) bool { return strings.TrimSpace(e) == "" })
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("open store: no etcd endpoint given")
	}
	if (cfg.Username == "") != (cfg.Password == "") {
		return nil, errors.New("open store: etcd user and password go together, only one is given")
	}
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	if !strings.HasSuffix(cfg.Prefix, "/") {
		cfg.Prefix += "/"
	}
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = 5 * time.Second
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Store{cfg: cfg, log: cfg.Logger}, nil
}

// Prefix returns where the fleet lives, with a '/' at its end.
func (s *Store) Prefix() string { return s.cfg.Prefix }

// Endpoints returns where etcd is.
func (s *Store) Endpoints() []string { return slices.Clone(s.cfg.Endpoints) }

// Close ends every connection; what is under way fails. Leases are not given
// back: Leave and Resign do that.
func (s *Store) Close() error {
	s.mu.Lock()
	c := s.client
	s.client, s.closed = nil, true
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	if err := c.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

var errClosed = errors.New("the store is closed")

// A dialing is one try to make a client, which others wait for. With a user it
// takes as long as etcd needs to authenticate.
type dialing struct {
	done   chan struct{}
	client *clientv3.Client
	err    error
}

// etcd returns the client, and makes it when there is none.
func (s *Store) etcd(ctx context.Context) (*clientv3.Client, error) {
	s.mu.Lock()
	if s.closed || s.client != nil {
		defer s.mu.Unlock()
		if s.closed {
			return nil, errClosed
		}
		return s.client, nil
	}
	d := s.dialing
	if d != nil {
		s.mu.Unlock()
		select {
		case <-d.done:
			return d.client, d.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	d = &dialing{done: make(chan struct{})}
	s.dialing = d
	s.mu.Unlock()

	defer close(d.done)
	d.client, d.err = s.dial()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dialing = nil
	if d.err == nil && s.closed {
		_ = d.client.Close() // nobody has used it
		d.client, d.err = nil, errClosed
	}
	s.client = d.client
	return d.client, d.err
}

func (s *Store) dial() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints:            s.cfg.Endpoints,
		TLS:                  s.cfg.TLS,
		Username:             s.cfg.Username,
		Password:             s.cfg.Password,
		DialTimeout:          s.cfg.DialTimeout,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		Logger:               zap.NewNop(),
	})
}

// renew replaces a client that no longer gets through, unless that has
// happened already. What the old one had under way fails; leases go on with
// the new one.
func (s *Store) renew(old *clientv3.Client) {
	s.mu.Lock()
	if s.closed || s.client != old || old == nil {
		s.mu.Unlock()
		return
	}
	s.client = nil
	s.mu.Unlock()
	s.log.Warn("etcd connection is silent, making a new one")
	_ = old.Close() // it is being thrown away because it does not work
}

// call runs f with the client and a time limit.
func (s *Store) call(ctx context.Context, what, key string, f func(context.Context, *clientv3.Client) error) error {
	c, err := s.etcd(ctx)
	if err != nil {
		return s.explain(ctx, what, key, err)
	}
	ctx2, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	return s.explain(ctx, what, key, f(ctx2, c))
}

// txn runs one transaction. what is verb and object, key what it is about.
func (s *Store) txn(ctx context.Context, what, key string, cmps []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error) {
	var resp *clientv3.TxnResponse
	err := s.call(ctx, what, key, func(ctx context.Context, c *clientv3.Client) error {
		var err error
		resp, err = c.Txn(ctx).If(cmps...).Then(then...).Else(els...).Commit()
		return err
	})
	return resp, err
}

// get reads one key or, with options, a range.
func (s *Store) get(ctx context.Context, what, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	var resp *clientv3.GetResponse
	err := s.call(ctx, what, key, func(ctx context.Context, c *clientv3.Client) error {
		var err error
		resp, err = c.Get(ctx, key, opts...)
		return err
	})
	return resp, err
}
