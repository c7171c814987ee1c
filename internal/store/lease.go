package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// DefaultTTL is how long a lease outlives its last renewal.
const DefaultTTL = 10 * time.Second

// A lease is kept until it is given back, or lost: etcd says so, or none of
// its renewals was answered for its time to live. It survives a renewal of the
// store's client.
type lease struct {
	s    *Store
	id   clientv3.LeaseID
	ttl  time.Duration
	lost chan struct{} // closed when the lease is gone or was given back

	stop context.CancelFunc
	done sync.WaitGroup
	once sync.Once
}

// grant takes a lease and starts to keep it.
func (s *Store) grant(ctx context.Context, what string, ttl time.Duration) (*lease, error) {
	if ttl <= 0 {
		ttl = DefaultTTL
	}
	seconds := max(1, int64((ttl+time.Second-1)/time.Second))
	l := &lease{s: s, lost: make(chan struct{})}
	asked := time.Now()
	err := s.call(ctx, what, "a lease", func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Grant(ctx, seconds)
		if err == nil {
			l.id, l.ttl = resp.ID, time.Duration(resp.TTL)*time.Second
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	kept, stop := context.WithCancel(context.Background())
	l.stop = stop
	l.done.Go(func() {
		defer l.lose()
		l.keep(kept, asked)
	})
	return l, nil
}

// keep renews the lease until it is lost or ctx ends. renewed is when it was
// last known to have its whole time to live.
func (l *lease) keep(ctx context.Context, renewed time.Time) {
	for l.follow(ctx, &renewed) {
		// The renewals ended: the lease is gone, or only the client is.
		if gone, err := l.gone(ctx); err == nil && gone {
			return
		}
		if pause(ctx, min(l.ttl/10, time.Second)) != nil {
			return
		}
	}
}

// follow takes renewals until there are no more from this client. It reports
// whether the lease may live still.
func (l *lease) follow(ctx context.Context, renewed *time.Time) bool {
	left := func() time.Duration { return l.ttl - time.Since(*renewed) }
	if left() <= 0 {
		return false
	}
	c, err := l.s.etcd(ctx)
	if err != nil {
		return true
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	renewals, err := c.KeepAlive(ctx, l.id)
	if err != nil { // this client will not renew anything any more
		l.s.renew(c, "it renews no lease: "+err.Error())
		return true
	}
	expiry, late := time.NewTimer(left()), time.NewTimer(l.patience())
	defer expiry.Stop()
	defer late.Stop()
	for silent := false; ; {
		select {
		case _, ok := <-renewals:
			if !ok {
				return ctx.Err() == nil
			}
			*renewed, silent = time.Now(), false
		case <-late.C:
			if len(renewals) > 0 {
				break // this process was late, not etcd
			}
			// Either the connection is dead, or one renewal was lost: the
			// second time nobody waits any longer. Or the member is not heard
			// by the others: a new client must not come to it again.
			l.s.suspect()
			asked := l.ask(ctx, renewed)
			if !asked || silent {
				l.s.renew(c, "the renewals of a lease are silent")
				_ = asked || l.ask(ctx, renewed) // there is time for one more; keep goes on from here
				return ctx.Err() == nil
			}
			silent = true
		case <-expiry.C:
			return false
		}
		expiry.Reset(left())
		late.Reset(l.patience())
	}
}

// patience is how long a renewal may be overdue: they come each third of the
// time to live.
func (l *lease) patience() time.Duration { return l.ttl / 2 }

// ask asks for one renewal beside the stream of them, which may be silent while
// etcd is well. It takes no longer than leaves time for a second try.
func (l *lease) ask(ctx context.Context, renewed *time.Time) bool {
	ctx, cancel := context.WithTimeout(ctx, l.ttl/5)
	defer cancel()
	began := time.Now()
	err := l.s.call(ctx, "renew lease", "a lease", func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.KeepAliveOnce(ctx, l.id)
		return err
	})
	if err != nil {
		return false
	}
	*renewed = began
	return true
}

// gone asks etcd whether the lease has ended.
func (l *lease) gone(ctx context.Context) (gone bool, err error) {
	err = l.s.call(ctx, "read lease", "a lease", func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.TimeToLive(ctx, l.id)
		gone = err == nil && resp.TTL < 0 // 0 is the last second
		return err
	})
	return gone, err
}

func (l *lease) lose() { l.once.Do(func() { close(l.lost) }) }

// release stops keeping the lease and revokes it; every key attached to it is
// deleted. A lease that is gone already is no error.
func (l *lease) release(ctx context.Context, what string) error {
	l.stop()
	l.done.Wait()
	err := l.s.call(ctx, what, fmt.Sprintf("lease %x", int64(l.id)), func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Revoke(ctx, l.id)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return nil
		}
		return err
	})
	return err
}
