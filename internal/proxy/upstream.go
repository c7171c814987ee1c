package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"routerd.dev/internal/route"
)

// How long a target that refused a connection is passed over.
const (
	minBackoff = time.Second
	maxBackoff = 10 * time.Second
)

// maxTurns bounds the precomputed order of targets; weights are scaled down to it.
const maxTurns = 1 << 12

// An Upstream sends requests to the targets of one definition. It is made by
// Library.Upstream and safe for any number of goroutines.
type Upstream struct {
	lib     *Library
	def     route.Upstream
	targets []*target
	turns   []uint16 // index into targets; one round of smooth weighted round robin
	next    []turn   // of each shard
	retired atomic.Bool
	fresh   bool // handed out since the last Keep; guarded by lib.mu
}

// A turn is one shard's place in the order. Shards have a cache line each and
// belong to exchanges, which stay with a processor, so that none is contended.
type turn struct {
	n atomic.Uint32
	_ [60]byte
}

// A target is one address, its idle connections, and whether it took the last one.
type target struct {
	up        *Upstream
	url       string // as defined
	addr      string // host:port to dial
	authority string // for Host
	tls       *tls.Config
	downUntil atomic.Int64 // 0: takes connections
	failures  atomic.Int32
	shards    []shard
}

// A shard is a stack of idle connections, the freshest on top.
type shard struct {
	mu   sync.Mutex
	idle []*conn
	n    atomic.Int32 // len(idle), to look without the lock
	_    [24]byte
}

func newUpstream(l *Library, def route.Upstream, roots *x509.CertPool) (*Upstream, error) {
	if len(def.Targets) == 0 {
		return nil, fmt.Errorf("upstream: no targets")
	}
	u := &Upstream{lib: l, def: def}
	weights := make([]int, len(def.Targets))
	for i, td := range def.Targets {
		t, err := newTarget(u, td, roots)
		if err != nil {
			return nil, err
		}
		u.targets = append(u.targets, t)
		weights[i] = max(td.Weight, 1)
	}
	if len(u.targets) > 1 {
		u.turns = turns(weights)
		u.next = make([]turn, l.shards)
		for i := range u.next {
			u.next[i].n.Store(uint32(i * len(u.turns) / len(u.next)))
		}
	}
	return u, nil
}

func newTarget(u *Upstream, td route.Target, roots *x509.CertPool) (*target, error) {
	p, err := url.Parse(td.URL)
	if err != nil {
		return nil, fmt.Errorf("parse target: %w", err)
	}
	if p.Hostname() == "" || p.User != nil || p.Path != "" && p.Path != "/" || p.RawQuery != "" || p.Fragment != "" {
		return nil, fmt.Errorf("parse target %q: want scheme, host and port only", td.URL)
	}
	t := &target{up: u, url: td.URL, authority: p.Host, shards: make([]shard, u.lib.shards)}
	port := p.Port()
	switch p.Scheme {
	case "http":
		if port == "" {
			port = "80"
		}
	case "https":
		if port == "" {
			port = "443"
		}
		t.tls = &tls.Config{
			MinVersion:         tls.VersionTLS12,
			NextProtos:         []string{"http/1.1"},
			ServerName:         u.def.TLS.ServerName,
			RootCAs:            roots,
			InsecureSkipVerify: u.def.TLS.Insecure,
			ClientSessionCache: tls.NewLRUClientSessionCache(32),
		}
		if t.tls.ServerName == "" {
			t.tls.ServerName = p.Hostname()
		}
	default:
		return nil, fmt.Errorf("parse target %q: scheme is neither http nor https", td.URL)
	}
	t.addr = net.JoinHostPort(p.Hostname(), port)
	return t, nil
}

// turns gives one round of smooth weighted round robin: in every prefix each
// index stands as often as its weight's share, to within one. The rule is
// nginx's: each gains its weight, the highest is taken and pays the total.
func turns(weights []int) []uint16 {
	w := slices.Clone(weights)
	div := 0
	for _, x := range w {
		div = gcd(div, x)
	}
	total := 0
	for i := range w {
		w[i] /= div
		total += w[i]
	}
	if total > maxTurns {
		sum := 0
		for i := range w {
			w[i] = max(1, w[i]*maxTurns/total)
			sum += w[i]
		}
		total = sum
	}
	out := make([]uint16, 0, total)
	have := make([]int, len(w))
	for range total {
		best := 0
		for i := range w {
			have[i] += w[i]
			if have[i] > have[best] {
				best = i
			}
		}
		have[best] -= total
		out = append(out, uint16(best))
	}
	return out
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// pick returns the target whose turn it is, passing over those that are down
// or in tried; when none is left that is up, one that is down. nil: all were tried.
func (u *Upstream) pick(shard uint32, tried []*target) *target {
	if len(u.targets) == 1 {
		if len(tried) > 0 {
			return nil
		}
		return u.targets[0]
	}
	first := int(u.next[shard].n.Add(1) - 1)
	now := int64(-1)
	var fallback *target
	for i := range u.turns {
		t := u.targets[u.turns[(first+i)%len(u.turns)]]
		if len(tried) > 0 && slices.Contains(tried, t) {
			continue
		}
		if t.downUntil.Load() == 0 {
			return t
		}
		if now < 0 {
			now = u.lib.now()
		}
		if t.probe(now) {
			return t
		}
		if fallback == nil {
			fallback = t
		}
	}
	return fallback
}

// probe tells whether a target that was down is due for another try; of many
// callers only one gets that try.
func (t *target) probe(now int64) bool {
	until := t.downUntil.Load()
	return until == 0 || now >= until && t.downUntil.CompareAndSwap(until, now+int64(t.backoff()))
}

func (t *target) down(now int64) bool { return t.downUntil.Load() > now }

func (t *target) backoff() time.Duration {
	return min(minBackoff<<min(max(t.failures.Load()-1, 0), 10), maxBackoff)
}

func (t *target) markDown() {
	t.failures.Add(1)
	t.downUntil.Store(t.up.lib.now() + int64(t.backoff()))
}

func (t *target) markUp() {
	if t.downUntil.Load() != 0 {
		t.failures.Store(0)
		t.downUntil.Store(0)
	}
}

// dial opens a connection. A target that takes none is marked, unless it did not
// have all of its ConnectTimeout for it.
func (t *target) dial(ctx context.Context, timeout time.Duration) (*conn, error) {
	dctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	blame := func(err error) {
		if ctx.Err() == nil && (timeout >= t.up.def.ConnectTimeout || !dialTimeout(err)) {
			t.markDown()
		}
	}
	raw, err := t.up.lib.o.Dial(dctx, "tcp", t.addr)
	if err != nil {
		blame(err)
		return nil, err
	}
	c := newConn(t, raw)
	if t.tls != nil {
		c.tls = tls.Client(raw, t.tls)
		c.nc = c.tls
		if err := c.tls.HandshakeContext(dctx); err != nil {
			_ = raw.Close()
			blame(err)
			return nil, fmt.Errorf("TLS handshake: %w", err)
		}
	}
	t.markUp()
	return c, nil
}

func dialTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// get takes an idle connection that is still good, nil when there is none. It
// looks in its own shard first, then in the others.
func (t *target) get(own uint32) *conn {
	n := uint32(len(t.shards))
	for i := range n {
		s := &t.shards[(own+i)&(n-1)]
		for s.n.Load() > 0 {
			c := s.pop()
			if c == nil {
				break
			}
			if t.up.lib.now()-c.idleSince < int64(t.up.def.IdleTimeout) && c.quiet() {
				c.reused = true
				return c
			}
			c.kill()
		}
	}
	return nil
}

func (s *shard) pop() *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := len(s.idle) - 1
	if k < 0 {
		return nil
	}
	c := s.idle[k]
	s.idle[k] = nil
	s.idle = s.idle[:k]
	s.n.Store(int32(k))
	return c
}

// put keeps a connection for later, or closes it: when the pool is full, or nobody
// will sweep it any more.
func (t *target) put(own uint32, c *conn) {
	c.idleSince = t.up.lib.now()
	s := &t.shards[own]
	if t.idle() >= t.up.def.MaxIdle || !s.push(c, &t.up.retired) {
		c.kill()
	}
}

func (s *shard) push(c *conn, retired *atomic.Bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Under the lock: retire sets the flag first and takes the lock then.
	if retired.Load() {
		return false
	}
	s.idle = append(s.idle, c)
	s.n.Store(int32(len(s.idle)))
	return true
}

// idle counts, not exactly while others put and get.
func (t *target) idle() int {
	n := 0
	for i := range t.shards {
		n += int(t.shards[i].n.Load())
	}
	return n
}

// expire closes what has been idle for too long, or was closed by the target.
func (t *target) expire(now int64) {
	for i := range t.shards {
		t.shards[i].drop(func(c *conn) bool {
			return now-c.idleSince >= int64(t.up.def.IdleTimeout) || !c.quiet()
		})
	}
}

// drop closes the connections of which useless says so.
func (s *shard) drop(useless func(*conn) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = slices.DeleteFunc(s.idle, func(c *conn) bool {
		if !useless(c) {
			return false
		}
		c.kill()
		return true
	})
	s.n.Store(int32(len(s.idle)))
}

// retire closes all idle connections, and those that come back later.
func (u *Upstream) retire() {
	u.retired.Store(true)
	for _, t := range u.targets {
		for i := range t.shards {
			t.shards[i].drop(func(*conn) bool { return true })
		}
	}
}
