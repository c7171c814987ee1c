package store

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

const (
	// patience is how long a call waits before all endpoints are greeted, and
	// greeting how long that takes. Together they are what a member that hangs
	// costs; by its keepalives etcd's client notices one after 13 s, and cannot
	// be told to do so within
	// 10. One that takes what it is sent and cannot pass it on is never noticed so.
	patience = 1500 * time.Millisecond
	greeting = time.Second

	// absence is the least time for which an endpoint that was found silent is
	// left out, up to half as much again. To come back costs nothing; to be
	// found once more costs a new client, which has to prove who it is.
	absence = 30 * time.Second

	// greetAgain is the most time between two greetings that found nothing out.
	// Thousands of instances that wait for an etcd with too much to do must not
	// add to it.
	greetAgain = 8 * time.Second
)

// What came of greeting one endpoint.
type greeted int

const (
	refuses greeted = iota // at once, which etcd's client notices by itself
	silent                 // nothing was heard, not even that it takes a connection
	deaf                   // it takes connections, and a read has no answer
	late                   // a read was answered, with the time nearly over
	answers
)

// greetings are the greetings of one Store. There is one at a time, whoever waits.
type greetings struct {
	done   chan struct{} // closed when the one under way has ended; nil while there is none
	began  time.Time     // when the last one that has ended began
	next   time.Time     // none begins before
	failed int           // so many in a row did not find out who is silent
}

// guard watches over one call, or over the making of a client. A member that
// hangs, or that the others do not hear, keeps its connections open, so that a
// third of all calls are still sent to it. After patience all endpoints are
// greeted, which replaces the client if one of its own is found out. found may
// be nil; it is called after a greeting that left one of these endpoints out.
// The function returned ends the guard.
func (s *Store) guard(ctx context.Context, endpoints []string, found func()) (end func()) {
	if len(s.cfg.Endpoints) < 2 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	since := time.Now()
	timer := time.AfterFunc(patience, func() {
		defer close(done)
		for s.greetedSince(ctx, since) {
			if s.leavesOut(endpoints) {
				if found != nil {
					found()
				}
				return
			}
			since = time.Now()
		}
	})
	return func() {
		cancel()
		if !timer.Stop() {
			<-done
		}
	}
}

// greetedSince waits for the end of a greeting that began after since: what an
// older one found says nothing of a call made later. It returns false when ctx
// ends.
func (s *Store) greetedSince(ctx context.Context, since time.Time) bool {
	for ctx.Err() == nil {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return false
		}
		if s.greets.began.After(since) {
			s.mu.Unlock()
			return true
		}
		done, wait := s.greets.done, time.Until(s.greets.next)
		if done == nil && wait <= 0 {
			done = s.greet()
		}
		s.mu.Unlock()
		if done == nil {
			_ = pause(ctx, wait)
			continue
		}
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
	return false
}

// suspect has all endpoints greeted, unless that was done a moment ago, and does
// not wait for it: something was silent that no guard watches over.
func (s *Store) suspect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.cfg.Endpoints) > 1 && !s.closed && s.greets.done == nil && time.Now().After(s.greets.next) {
		s.greet()
	}
}

// passing asks those again that were left out, when it is time to, or at once
// when those that are not left out have failed a call. It does not wait for the
// answers.
func (s *Store) passing(failed bool) {
	s.mu.Lock()
	due := len(s.hung) > 0 && failed
	for _, until := range s.hung {
		due = due || time.Now().After(until)
	}
	s.mu.Unlock()
	if due {
		s.suspect()
	}
}

// greet begins a greeting and returns what is closed when it has ended. It is
// called with mu held, when none is under way and the store is not closed;
// Close waits for it.
func (s *Store) greet() chan struct{} {
	done, began := make(chan struct{}), time.Now()
	s.greets.done = done
	s.wg.Go(func() {
		defer close(done)
		found := s.greetAll()
		s.judge(began, found)
	})
	return done
}

func (s *Store) greetAll() []greeted {
	ctx, cancel := context.WithTimeout(s.life, greeting)
	defer cancel()
	found := make([]greeted, len(s.cfg.Endpoints))
	var wg sync.WaitGroup
	for i, e := range s.cfg.Endpoints {
		wg.Go(func() { found[i] = s.greetOne(ctx, e) })
	}
	wg.Wait()
	return found
}

// greetOne asks one endpoint for a read that it can answer only together with
// the others: one that hears them and is not heard takes connections, and knows
// a leader. It shows no password: etcd says that it wants a user only after it
// has agreed with the others, and to look a password up would cost it dearly.
func (s *Store) greetOne(ctx context.Context, endpoint string) greeted {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{endpoint}, TLS: s.tlsConfig(), Logger: zap.NewNop(),
		MaxUnaryRetries: 1, // here, not there: who refuses is not to be taken for silent
	})
	if err != nil {
		return refuses
	}
	defer func() { _ = c.Close() }()
	conn, first := c.ActiveConnection(), time.Now()
	kv := etcdserverpb.NewKVClient(conn) // clientv3's own waits for who refuses connections
	for {
		began := time.Now()
		_, err := kv.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(s.key(keyFormat)), CountOnly: true})
		var coded rpctypes.EtcdError
		errors.As(rpctypes.Error(err), &coded)
		over := ctx.Err() != nil || status.Code(err) == codes.DeadlineExceeded // the other side's clock may be first
		switch {
		case err == nil || errors.Is(coded, rpctypes.ErrUserEmpty) || status.Code(err) == codes.PermissionDenied || status.Code(err) == codes.Unauthenticated:
			if time.Since(first) > greeting/2 {
				return late
			}
			return answers
		case over && time.Since(began) < greeting/2:
			return refuses // until a moment ago it said no
		case over && conn.GetState() == connectivity.Ready:
			return deaf
		case over:
			return silent
		case coded.Error() == "" || pause(ctx, 50*time.Millisecond) != nil:
			return refuses
		}
		// It says itself that it cannot at the moment, as while a leader is elected.
	}
}

// judge takes what a greeting found: who is left out, and who no longer is. One
// that takes no connection is left out if another does; one that does not
// answer a read, if another answered soon: while a leader is elected nobody
// answers, and then not all at once. So never all are left out.
func (s *Store) judge(began time.Time, found []greeted) {
	s.mu.Lock()
	g := &s.greets
	g.done = nil
	if s.life.Err() != nil {
		s.mu.Unlock()
		return // they were not given their time
	}
	g.began = began
	soon, any := slices.Contains(found, answers), slices.ContainsFunc(found, func(f greeted) bool { return f >= deaf })
	now, unclear, inUse := time.Now(), false, false
	for i, e := range s.cfg.Endpoints {
		_, out := s.hung[e]
		switch f := found[i]; {
		case f == silent && any || f == deaf && soon:
			if !out {
				s.log.Warn("etcd member has no answer while another has, leaving it out", "endpoint", e)
			}
			s.hung[e] = now.Add(jitter(absence))
		case f == silent || f == deaf:
			unclear = true
		}
		_, out = s.hung[e]
		inUse = inUse || !out && found[i] >= late
	}
	for i, e := range s.cfg.Endpoints {
		until, out := s.hung[e]
		if out && found[i] >= late && (now.After(until) || !inUse) {
			s.log.Info("etcd member answers again", "endpoint", e)
			delete(s.hung, e)
		}
	}
	if len(s.hung) == len(s.cfg.Endpoints) {
		clear(s.hung)
	}
	if g.next = now.Add(probeAgain); unclear {
		g.next = now.Add(min(greetAgain, greeting/2<<min(g.failed, 10)))
		g.failed++
	} else {
		g.failed = 0
	}
	c, want := s.client, s.endpoints()
	s.mu.Unlock()
	switch {
	case c == nil:
	case s.leavesOut(c.Endpoints()):
		s.renew(c, "a member that it uses has no answer")
	case len(c.Endpoints()) < len(want):
		c.SetEndpoints(want...)
	}
}

// endpoints are those in use. It is called with mu held.
func (s *Store) endpoints() []string {
	return slices.DeleteFunc(slices.Clone(s.cfg.Endpoints), func(e string) bool {
		_, out := s.hung[e]
		return out
	})
}

// leavesOut tells whether one of these endpoints is left out by now.
func (s *Store) leavesOut(these []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(these, func(e string) bool {
		_, out := s.hung[e]
		return out
	})
}

// target takes an endpoint apart.
func (s *Store) target(endpoint string) (network, addr string, secure bool) {
	scheme, addr, ok := strings.Cut(endpoint, "://")
	switch {
	case !ok && strings.HasPrefix(endpoint, "unix:"):
		return "unix", strings.TrimPrefix(endpoint, "unix:"), false
	case !ok:
		return "tcp", endpoint, s.cfg.TLS != nil
	case scheme == "unix" || scheme == "unixs":
		return "unix", addr, scheme == "unixs"
	}
	return "tcp", addr, scheme == "https"
}
