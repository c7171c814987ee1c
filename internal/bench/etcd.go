package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// etcdSpec says where an etcd keeps its data.
type etcdSpec struct {
	Dir string `json:"dir"`
}

// serveEtcd runs a single member with etcd's own defaults: what it answered is
// on the disk.
func serveEtcd(ctx context.Context, spec []byte) (*servant, error) {
	var o etcdSpec
	if err := json.Unmarshal(spec, &o); err != nil {
		return nil, err
	}
	loopback := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg := embed.NewConfig()
	cfg.Dir = o.Dir
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = loopback, loopback
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = loopback, loopback
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	stop := func() error {
		e.Server.HardStop() // nothing of it is needed any more
		e.Close()
		return nil
	}
	timeout := time.NewTimer(30 * time.Second)
	defer timeout.Stop()
	select {
	case <-e.Server.ReadyNotify():
		return &servant{address: e.Clients[0].Addr().String(), stop: stop}, nil
	case err = <-e.Err():
	case <-timeout.C:
		err = context.DeadlineExceeded
	case <-ctx.Done():
		err = ctx.Err()
	}
	_ = stop()
	return nil, fmt.Errorf("start etcd: %w", err)
}

// syncTime is how long the disk under dir takes to make 2 KiB last, in
// milliseconds: every answer of etcd to a write contains it.
func syncTime(dir string) (float64, error) {
	f, err := os.Create(filepath.Join(dir, "sync"))
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := slices.Repeat([]byte{'x'}, 2<<10)
	var took []float64
	for range 30 {
		began := time.Now()
		if _, err := f.Write(block); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		took = append(took, ms(time.Since(began)))
	}
	return median(took), nil
}
