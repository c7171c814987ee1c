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

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
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
	Sources     *Sources      // where TLS and Password are read again when etcd turns out to want others; nil if they stay
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
	hung    map[string]time.Time // endpoints left out, and until when at least; never all
	greets  greetings
	shown   credentials // what the client was made with

	life context.Context // ends with Close, which waits for wg
	end  context.CancelFunc
	wg   sync.WaitGroup

	cache  cache
	chunks chunkReads
	probed probed
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
	s := &Store{cfg: cfg, log: cfg.Logger, hung: map[string]time.Time{}}
	s.life, s.end = context.WithCancel(context.Background())
	return s, nil
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
	s.end()
	s.wg.Wait()
	if c == nil {
		return nil
	}
	if err := c.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

var errClosed = errors.New("the store is closed")

// A dialing is one try to make a client. With a user it takes as long as etcd
// needs to authenticate; who wants the client waits no longer than it cares to.
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
	if d == nil {
		d = &dialing{done: make(chan struct{})}
		s.dialing = d
		s.wg.Go(func() { s.connect(d) })
	}
	s.mu.Unlock()
	select {
	case <-d.done:
		return d.client, d.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// connect makes the client that d is for, and goes on when nobody waits for it
// any more: the next call needs it. Close waits for it.
func (s *Store) connect(d *dialing) {
	defer close(d.done)
	d.client, d.err = s.dial()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dialing = nil
	if d.err == nil && s.closed {
		_ = d.client.Close() // nobody has used it
		d.client, d.err = nil, errClosed
	}
	if d.err == nil {
		d.client.SetEndpoints(s.endpoints()...) // a greeting may have ended meanwhile
	}
	s.client = d.client
}

// dial makes a client. With a user that is a call, which a member that hangs does
// not answer either: once found out, it is made without that one. Close ends it.
func (s *Store) dial() (*clientv3.Client, error) {
	for {
		s.mu.Lock()
		endpoints := s.endpoints()
		s.mu.Unlock()
		now := s.credentials()
		ctx, giveUp := context.WithCancel(context.Background()) // the client's own, as long as it lives
		end := s.guard(s.life, endpoints, giveUp)
		made := context.AfterFunc(s.life, giveUp)
		c, err := clientv3.New(clientv3.Config{
			Context:              ctx,
			Endpoints:            endpoints,
			TLS:                  now.tls,
			Username:             s.cfg.Username,
			Password:             now.password,
			DialTimeout:          s.cfg.DialTimeout,
			DialKeepAliveTime:    10 * time.Second,
			DialKeepAliveTimeout: 3 * time.Second,
			Logger:               zap.NewNop(),
		})
		made()
		end()
		if ctx.Err() == nil {
			return c, err
		}
		if err == nil {
			_ = c.Close() // given up in the moment when it was made
		}
		if s.life.Err() != nil {
			return nil, errClosed
		}
	}
}

// renew replaces a client, and logs why, unless that has happened already. What the
// old one had under way fails; leases go on with the new one.
func (s *Store) renew(old *clientv3.Client, why string) {
	s.mu.Lock()
	if s.closed || s.client != old || old == nil {
		s.mu.Unlock()
		return
	}
	s.client = nil
	s.mu.Unlock()
	s.log.Warn("making a new connection to etcd", "why", why)
	_ = old.Close() // it is being thrown away because it does not work
}

// call runs f with the client and a time limit. A call that a member left
// without an answer fails as soon as that is found out.
func (s *Store) call(ctx context.Context, what, key string, f func(context.Context, *clientv3.Client) error) error {
	return s.callFor(ctx, s.cfg.Timeout, what, key, f)
}

func (s *Store) callFor(ctx context.Context, limit time.Duration, what, key string, f func(context.Context, *clientv3.Client) error) error {
	c, err := s.etcd(ctx)
	if err != nil {
		return s.explain(ctx, what, key, err)
	}
	ctx2, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// etcd's client goes on trying for more than a second when it is closed meanwhile.
	defer context.AfterFunc(c.Ctx(), cancel)()
	end := s.guard(ctx2, c.Endpoints(), nil)
	for {
		err = f(clientv3.WithRequireLeader(ctx2), c)
		// A member parted from the others, but not from here, says that it
		// knows no leader before it does anything: whatever was asked can be
		// asked of the next one.
		if !errors.Is(err, rpctypes.ErrNoLeader) || pause(ctx2, 50*time.Millisecond) != nil {
			break
		}
	}
	end()
	if err != nil && s.reread(c, err) {
		return s.callFor(ctx, limit, what, key, f)
	}
	err = s.explain(ctx, what, key, err)
	s.passing(errors.Is(err, ErrUnavailable))
	return err
}

// read is call for what changes nothing: it is asked again, once of another
// member when the first was found to hang, and within the time of one call
// while etcd is without a leader, which it says at once.
func (s *Store) read(ctx context.Context, what, key string, f func(context.Context, *clientv3.Client) error) error {
	// A member that was parted from the others a moment ago takes a read and
	// never answers it: the first try leaves time for a second, likely of
	// whoever is next.
	again, limit := false, s.firstTry()
	for end := time.Now().Add(s.cfg.Timeout); ; limit = s.cfg.Timeout {
		c, err := s.etcd(ctx)
		if err != nil {
			return s.explain(ctx, what, key, err)
		}
		err = s.callFor(ctx, limit, what, key, f)
		switch {
		case !errors.Is(err, ErrUnavailable) || ctx.Err() != nil:
			return err
		case !again && s.replaced(c):
			again = true
		case limit == s.cfg.Timeout && time.Now().After(end) || pause(ctx, 50*time.Millisecond) != nil:
			return err
		}
	}
}

// firstTry is the limit of a read's first try: half of a call's, if not a greeting
// needs more to find out that it was sent to a member that has no answer.
func (s *Store) firstTry() time.Duration {
	if limit := patience + greeting + probeTime; limit < s.cfg.Timeout {
		return max(limit, s.cfg.Timeout/2)
	}
	return s.cfg.Timeout / 2
}

// repeatable runs f, which writes what may be written twice, and once more if the
// client was found to be connected to a member that hangs.
func (s *Store) repeatable(ctx context.Context, f func() error) error {
	c, _ := s.etcd(ctx) // f says why there is none
	err := f()
	if c != nil && errors.Is(err, ErrUnavailable) && ctx.Err() == nil && s.replaced(c) {
		err = f()
	}
	return err
}

// replaced tells whether a client that was used is the store's no longer.
func (s *Store) replaced(c *clientv3.Client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.closed && s.client != c
}

// txn runs one transaction. what is verb and object, key what it is about.
func (s *Store) txn(ctx context.Context, what, key string, cmps []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error) {
	var resp *clientv3.TxnResponse
	run := s.call
	if reads(then) && reads(els) {
		run = s.read
	}
	err := run(ctx, what, key, func(ctx context.Context, c *clientv3.Client) error {
		var err error
		resp, err = c.Txn(ctx).If(cmps...).Then(then...).Else(els...).Commit()
		return err
	})
	return resp, err
}

func reads(ops []clientv3.Op) bool {
	return !slices.ContainsFunc(ops, func(o clientv3.Op) bool { return !o.IsGet() })
}

// get reads one key or, with options, a range.
func (s *Store) get(ctx context.Context, what, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	var resp *clientv3.GetResponse
	err := s.read(ctx, what, key, func(ctx context.Context, c *clientv3.Client) error {
		var err error
		resp, err = c.Get(ctx, key, opts...)
		return err
	})
	return resp, err
}
