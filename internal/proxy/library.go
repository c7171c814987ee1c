package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"routerd.dev/internal/route"
)

// Defaults of Options.
const (
	DefaultMaxHeadBytes  = 64 << 10
	DefaultMaxHeadFields = 256
	DefaultExpectTimeout = time.Second
)

// Bounds of how often Run looks for connections that were idle for too long.
const (
	minSweep = 50 * time.Millisecond
	maxSweep = 5 * time.Second
)

// Options are what a Library may be told. The zero value works.
type Options struct {
	// Dial opens connections; nil for a net.Dialer's DialContext.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	MaxHeadBytes  int           // of a response head, and of trailers; DefaultMaxHeadBytes when 0
	MaxHeadFields int           // of a response head, and of trailers; DefaultMaxHeadFields when 0
	ExpectTimeout time.Duration // how long an upstream's 100 Continue is waited for; DefaultExpectTimeout when 0
	Via           string        // pseudonym to add to Via of requests and responses; empty: no Via
}

// A Library holds upstreams by their definitions, with their connections and
// what is known of their targets. It outlives engines.
type Library struct {
	o       Options
	base    time.Time // monotonic zero of now
	shards  int       // a power of two
	next    atomic.Uint32
	buffers sync.Pool // *[largeBuffer]byte
	spare   sync.Pool // *exchange

	mu      sync.Mutex
	m       map[[sha256.Size]byte]*Upstream
	tunnels map[*tunnel]struct{}
	closed  bool
}

// NewLibrary returns an empty Library. Nothing runs before Run.
func NewLibrary(o Options) *Library {
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.MaxHeadBytes <= 0 {
		o.MaxHeadBytes = DefaultMaxHeadBytes
	}
	if o.MaxHeadFields <= 0 {
		o.MaxHeadFields = DefaultMaxHeadFields
	}
	if o.ExpectTimeout <= 0 {
		o.ExpectTimeout = DefaultExpectTimeout
	}
	l := &Library{
		o:       o,
		base:    time.Now(),
		shards:  1,
		m:       make(map[[sha256.Size]byte]*Upstream),
		tunnels: make(map[*tunnel]struct{}),
	}
	for l.shards < min(runtime.GOMAXPROCS(0), 16) {
		l.shards *= 2
	}
	l.buffers.New = func() any { return new([largeBuffer]byte) }
	l.spare.New = func() any { return newExchange(l) }
	return l
}

// now is monotonic nanoseconds since the Library was made; at turns it back.
func (l *Library) now() int64              { return int64(time.Since(l.base)) }
func (l *Library) at(nano int64) time.Time { return l.base.Add(time.Duration(nano)) }

// Upstream returns the upstream of this definition. Definitions that are equal
// but for Name share one object. The CA file of an upstream with https targets
// is read by every call: when its content changed, that is another upstream.
func (l *Library) Upstream(def route.Upstream) (*Upstream, error) {
	def.Name = ""
	def = withDefaults(def)
	var roots *x509.CertPool
	var pem []byte
	if def.TLS.CAFile != "" {
		var err error
		if pem, err = os.ReadFile(def.TLS.CAFile); err != nil {
			return nil, fmt.Errorf("read CA file: %w", err)
		}
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read CA file %s: no certificate in it", def.TLS.CAFile)
		}
	}
	key, err := digest(def, pem)
	if err != nil {
		return nil, err
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.New("upstream: library is closed")
	}
	u := l.m[key]
	if u == nil {
		if u, err = newUpstream(l, def, roots); err != nil {
			return nil, err
		}
		l.m[key] = u
	}
	u.fresh = true
	return u, nil
}

// digest names a definition, without its Name, and the CA certificates it had.
func digest(def route.Upstream, pem []byte) (d [sha256.Size]byte, err error) {
	h := sha256.New()
	if err := json.NewEncoder(h).Encode(def); err != nil {
		return d, fmt.Errorf("encode upstream: %w", err)
	}
	h.Write(pem)
	h.Sum(d[:0])
	return d, nil
}

// Keep drops the upstreams that are not in use and closes their idle
// connections; running exchanges and tunnels end by themselves. What was handed
// out since the last Keep is kept once more, so that an engine that is still
// being compiled loses nothing. inUse is called with a lock held: it may not
// call the Library.
func (l *Library) Keep(inUse func(*Upstream) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, u := range l.m {
		if inUse(u) || u.fresh {
			u.fresh = false
			continue
		}
		delete(l.m, key)
		u.retire()
	}
}

// Run closes connections that were idle for longer than their upstream's
// IdleTimeout, or that the target closed. It looks four times within the
// shortest IdleTimeout, but not more often than each 50 ms and not more seldom
// than each 5 s. It returns nil when ctx is done.
func (l *Library) Run(ctx context.Context) error {
	for {
		next := l.sweep()
		t := time.NewTimer(next)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// sweep closes what was idle for too long, and returns when to sweep again.
func (l *Library) sweep() time.Duration {
	l.mu.Lock()
	us := make([]*Upstream, 0, len(l.m))
	for _, u := range l.m {
		us = append(us, u)
	}
	l.mu.Unlock()
	next := maxSweep
	for _, u := range us {
		now := l.now()
		for _, t := range u.targets {
			t.expire(now)
		}
		next = min(next, u.def.IdleTimeout/4)
	}
	return max(next, minSweep)
}

// Close closes idle connections and tunnels, and waits for nothing. Exchanges
// that are running go on, and their connections are not kept.
func (l *Library) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, u := range l.m {
		u.retire()
	}
	clear(l.m)
	for t := range l.tunnels {
		t.cut()
	}
	return nil
}

// Stats counts what a Library holds at one moment.
type Stats struct {
	Upstreams int
	Idle      int // idle connections
	Down      int // targets that are passed over
	Tunnels   int
}

// Stats counts what the Library holds.
func (l *Library) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Stats{Upstreams: len(l.m), Tunnels: len(l.tunnels)}
	now := l.now()
	for _, u := range l.m {
		for _, t := range u.targets {
			s.Idle += t.idle()
			if t.down(now) {
				s.Down++
			}
		}
	}
	return s
}

func withDefaults(def route.Upstream) route.Upstream {
	if def.ConnectTimeout <= 0 {
		def.ConnectTimeout = time.Second
	}
	if def.ResponseTimeout <= 0 {
		def.ResponseTimeout = time.Minute
	}
	if def.IdleTimeout <= 0 {
		def.IdleTimeout = time.Minute
	}
	if def.MaxIdle == 0 {
		def.MaxIdle = 256
	}
	return def
}

func (l *Library) borrow() *[largeBuffer]byte { return l.buffers.Get().(*[largeBuffer]byte) }
