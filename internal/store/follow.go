package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// watched is a key, or every key with it as prefix.
type watched struct {
	key    string
	prefix bool
}

// A follower is told what happens to what it watches. All its methods are
// called from one goroutine.
type follower interface {
	// read reads what is watched, linearizably, and returns the revision at
	// which it did, and whether that was news.
	read(ctx context.Context) (at int64, news bool, err error)
	// event takes events of one or several revisions, in order for each key,
	// and reports whether they need a read.
	event(events []*clientv3.Event) (reread bool)
	// stale is told once per outage that etcd does not answer.
	stale(err error, since time.Time)
}

// Why a watch is built anew.
var (
	errWatchEnded  = errors.New("the watch ended")
	errWatchSilent = errors.New("the watch is silent")
	errWatchMissed = errors.New("the watch missed a change")
)

// follow reads, watches from there on, and begins anew whenever the watch
// breaks, until ctx ends. While reads fail it backs off, and tries other
// connections.
func (s *Store) follow(ctx context.Context, o WatchOptions, keys []watched, f follower) error {
	o = o.withDefaults()
	run := following{s: s, o: o, keys: keys, f: f, fresh: time.Now()}
	stale, broken := false, 0
	tell := func(err error) { // once per outage
		if !stale {
			stale = true
			f.stale(err, run.fresh)
		}
	}
	for failed := 0; ctx.Err() == nil; {
		client, _ := s.etcd(ctx)
		at, _, err := run.read(ctx)
		if err == nil {
			failed, stale, run.fresh = 0, false, time.Now()
			began := time.Now()
			err = run.watch(ctx, at)
			s.log.Debug("watch begins anew", "key", keys[0].key, "err", err)
			if errors.Is(err, ErrUnavailable) { // a read failed: nothing is known any more
				tell(err)
			}
			if broken++; time.Since(began) > o.Silence {
				broken = 0
			}
			if broken > 1 { // reads succeed and watches do not: no spinning
				_ = pause(ctx, backoff(broken-2))
			}
			continue
		}
		if ctx.Err() != nil {
			break
		}
		tell(err)
		if failed++; failed%3 == 0 {
			s.renew(client, "reads fail again and again: "+err.Error())
		}
		_ = pause(ctx, backoff(failed-1))
	}
	return fmt.Errorf("watch %s: %w", keys[0].key, ctx.Err())
}

// following is one follow.
type following struct {
	s    *Store
	o    WatchOptions
	keys []watched
	f    follower

	fresh time.Time // when the facts were last known to be true
}

// read has the follower read, for as long as it may take.
func (r *following) read(ctx context.Context) (at int64, news bool, err error) {
	within, cancel := context.WithTimeout(ctx, ReadPatience)
	defer cancel()
	return r.f.read(within)
}

// watch follows the events after the revision at until the watch breaks, and
// says why it did.
func (r *following) watch(ctx context.Context, at int64) error {
	client, err := r.s.etcd(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	responses := make(chan clientv3.WatchResponse, 64)
	for _, k := range r.keys {
		opts := []clientv3.OpOption{clientv3.WithRev(at + 1)}
		if k.prefix {
			opts = append(opts, clientv3.WithPrefix())
		}
		// Watch returns when the server has answered, so it must not be waited for here.
		wg.Go(func() { forward(ctx, client.Watch(ctx, k.key, opts...), responses) })
	}

	reread := time.NewTimer(jitter(r.o.Reread))
	defer reread.Stop()
	silence := time.NewTicker(r.o.Silence)
	defer silence.Stop()
	asked, heard := false, false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case resp := <-responses:
			heard, r.fresh = true, time.Now()
			events, err := drain(resp, responses)
			if r.f.event(events) {
				if at, _, readErr := r.read(ctx); readErr != nil {
					return readErr
				} else if at > 0 {
					r.fresh = time.Now()
				}
			}
			if err != nil {
				return err
			}
		case <-reread.C:
			now, news, err := r.read(ctx)
			switch {
			case err != nil:
				return err
			case news || now < at:
				// Either the event is just on its way, or the watch is broken,
				// or etcd went back and this one waits for a distant future.
				return errWatchMissed
			}
			r.fresh = time.Now()
			reread.Reset(jitter(r.o.Reread))
		case <-silence.C:
			if asked && !heard && len(responses) == 0 {
				r.s.renew(client, errWatchSilent.Error())
				return errWatchSilent
			}
			requestProgress(ctx, client)
			asked, heard = true, false
		}
	}
}

// requestProgress asks the server to say something on the watch.
func requestProgress(ctx context.Context, c *clientv3.Client) {
	ctx, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
	defer cancel()
	// What cannot even be asked counts as asked: it will not be heard.
	_ = c.RequestProgress(ctx)
}

// forward passes one watch's responses on; the last one says that it ended.
func forward(ctx context.Context, from clientv3.WatchChan, to chan<- clientv3.WatchResponse) {
	for {
		resp, ok := <-from
		if !ok {
			resp = clientv3.WatchResponse{Canceled: true}
		}
		select {
		case to <- resp:
		case <-ctx.Done():
			return
		}
		if !ok {
			return
		}
	}
}

// drain returns the events of first and of what else has arrived, and why a
// watch among them ended.
func drain(first clientv3.WatchResponse, more <-chan clientv3.WatchResponse) (events []*clientv3.Event, err error) {
	for resp := first; ; {
		events = append(events, resp.Events...)
		switch {
		case resp.Err() != nil:
			return events, fmt.Errorf("%w: %w", errWatchEnded, resp.Err())
		case resp.Canceled:
			return events, errWatchEnded
		}
		select {
		case resp = <-more:
		default:
			return events, nil
		}
	}
}
