package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// etcdSpec is one member of an etcd.
type etcdSpec struct {
	Name, Dir    string
	Client, Peer string // addresses
	Cluster      string // "name=http://address" of all, separated by commas
}

// serveEtcd runs a member with etcd's own defaults: what it answered is on
// the disk.
func serveEtcd(ctx context.Context, with json.RawMessage) (*servant, error) {
	var o etcdSpec
	if err := json.Unmarshal(with, &o); err != nil {
		return nil, err
	}
	at := func(addr string) []url.URL { return []url.URL{{Scheme: "http", Host: addr}} }
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = o.Name, o.Dir
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = at(o.Client), at(o.Client)
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = at(o.Peer), at(o.Peer)
	cfg.InitialCluster = o.Cluster
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	stop := func() {
		e.Server.HardStop() // nothing of it is needed any more
		e.Close()
	}
	timeout := time.NewTimer(time.Minute)
	defer timeout.Stop()
	select {
	case <-e.Server.ReadyNotify():
	case err = <-e.Err():
	case <-timeout.C:
		err = context.DeadlineExceeded
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		stop()
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	return &servant{stop: stop, answer: func(ctx context.Context, ask string, _ json.RawMessage) (any, error) {
		if ask != "revoke" {
			return nil, unknown(ask)
		}
		return revoke(ctx, e)
	}}, nil
}

// revoke ends every lease, as an etcd does that was away for longer than they
// live. It returns how many there were.
func revoke(ctx context.Context, e *embed.Etcd) (int, error) {
	all, err := e.Server.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	if err != nil {
		return 0, err
	}
	const atOnce = 64
	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make(chan error, atOnce)
	for range atOnce {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(all.Leases) {
					return
				}
				if _, err := e.Server.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: all.Leases[i].ID}); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	var wrong []error
	for err := range errs {
		wrong = append(wrong, err)
	}
	return len(all.Leases), errors.Join(wrong...)
}

// A cluster is etcd's members, each a child, which can be killed and started again.
type cluster struct {
	specs   []etcdSpec
	members []*child
	used    []Usage // by members that were killed
}

// endpoints are where clients reach the cluster.
func (c *cluster) endpoints() []string {
	var all []string
	for _, s := range c.specs {
		all = append(all, s.Client)
	}
	return all
}

// newCluster says which members there are to be.
func newCluster(dir string, n int) (*cluster, error) {
	addrs, err := freeAddrs(2 * n)
	if err != nil {
		return nil, err
	}
	c := &cluster{members: make([]*child, n), used: make([]Usage, n)}
	var all []string
	for i := range n {
		s := etcdSpec{Name: fmt.Sprintf("etcd%d", i), Dir: fmt.Sprintf("%s/etcd%d", dir, i), Client: addrs[2*i], Peer: addrs[2*i+1]}
		all = append(all, s.Name+"=http://"+s.Peer)
		c.specs = append(c.specs, s)
	}
	for i := range c.specs {
		c.specs[i].Cluster = strings.Join(all, ",")
	}
	return c, nil
}

// start starts every member that does not run, and waits until all are up.
func (c *cluster) start(ctx context.Context, r *run) error {
	errs := make([]error, len(c.specs))
	var wg sync.WaitGroup
	for i, s := range c.specs {
		if c.members[i] == nil {
			wg.Go(func() { c.members[i], errs[i] = startChild(ctx, r.log, "etcd", s, nil) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// kill ends every member at once, as a power cut would.
func (c *cluster) kill() {
	for i, m := range c.members {
		if m != nil {
			if u, err := usageOf(m.pid()); err == nil {
				c.used[i].CPU += u.CPU
			}
			m.kill()
			c.members[i] = nil
		}
	}
}

// usage is what the members used so far, those before them included, and the
// memory of all together.
func (c *cluster) usage() (Usage, error) {
	var sum Usage
	for i, m := range c.members {
		sum.CPU += c.used[i].CPU
		if m == nil {
			continue
		}
		u, err := usageOf(m.pid())
		if err != nil {
			return sum, err
		}
		sum.CPU += u.CPU
		sum.RSS += u.RSS
	}
	return sum, nil
}
