package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// etcdOptions says how the embedded etcd runs.
type etcdOptions struct {
	Dir      string
	Listen   string // client address, host:port
	Setting  string // that Listen came from
	Volatile bool   // the data is thrown away at the end: do not wait for the disk
}

// startEtcd runs a single etcd member in this process and waits until it
// answers. Close it with stopEtcd, after its clients.
func startEtcd(ctx context.Context, o etcdOptions) (*embed.Etcd, error) {
	// etcd's own message for a taken port does not say which setting to change.
	l, err := listen(o.Setting, o.Listen)
	if err != nil {
		return nil, err
	}
	client := url.URL{Scheme: "http", Host: l.Addr().String()}
	if err := l.Close(); err != nil {
		return nil, fmt.Errorf("free %s for etcd: %w", o.Listen, err)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make etcd's directory: %w", err)
	}

	cfg := embed.NewConfig()
	cfg.Name = "routerd"
	cfg.Dir = o.Dir
	cfg.ListenClientUrls = []url.URL{client}
	cfg.AdvertiseClientUrls = []url.URL{client}
	// Nobody is a peer of a single member: any free port will do, and what is
	// advertised only has to be the same at each start.
	cfg.ListenPeerUrls = []url.URL{{Scheme: "http", Host: net.JoinHostPort("127.0.0.1", "0")}}
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: net.JoinHostPort("127.0.0.1", "2380")}}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.AutoCompactionMode = "periodic"
	cfg.AutoCompactionRetention = "1h"
	cfg.UnsafeNoFsync = o.Volatile
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())

	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("start the embedded etcd in %s: %w", o.Dir, err)
	}
	timeout := time.NewTimer(30 * time.Second)
	defer timeout.Stop()
	select {
	case <-e.Server.ReadyNotify():
		return e, nil
	case err = <-e.Err():
	case <-ctx.Done():
		err = ctx.Err()
	case <-timeout.C:
		err = errors.New("it did not become ready within 30 s")
	}
	stopEtcd(e)
	return nil, fmt.Errorf("start the embedded etcd in %s: %w", o.Dir, err)
}

// stopEtcd ends the member. Clients must be closed before: etcd waits for
// their watches.
func stopEtcd(e *embed.Etcd) {
	e.Server.HardStop()
	e.Close()
}

// etcdEndpoint is where the member's clients connect.
func etcdEndpoint(e *embed.Etcd) string { return e.Clients[0].Addr().String() }
