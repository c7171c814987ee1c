package daemon

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"go.etcd.io/etcd/server/v3/embed"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/telemetry"
)

// Serve runs one instance until ctx ends, and then drains it. With
// EmbeddedEtcd it runs an etcd too and stands for election. Being told to end is no
// error, nor is what a drain had to cut off.
func Serve(ctx context.Context, cfg Config) (err error) {
	if err := cfg.Check(); err != nil {
		return err
	}
	defer func() {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			err = nil // told to end while starting
		}
	}()
	var etcd *embed.Etcd
	if cfg.EmbeddedEtcd {
		if etcd, err = cfg.embed(ctx); err != nil {
			return err
		}
		defer stopEtcd(etcd)
	}
	cfg.leeway = engine.NewLeeway(garbage)
	i, err := newInstance(ctx, cfg, telemetry.Config{})
	if err != nil {
		return err
	}
	i.tele.TakeErrors()
	beside, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { notifySystemd(ctx, beside, i) })
	if etcd != nil {
		wg.Go(func() { tellEtcd(beside, etcd, i) })
	}
	return i.run(ctx)
}

// garbage is how many bytes may lie about while a large table is prepared,
// before they are collected at the cost of the requests served meanwhile.
const garbage = 512 << 20

// embed starts an etcd and points the settings at it.
func (c *Config) embed(ctx context.Context) (*embed.Etcd, error) {
	dir := c.EtcdDir
	if dir == "" {
		dir = filepath.Join(c.StateDir, "etcd")
	}
	e, err := startEtcd(ctx, etcdOptions{Dir: dir, Listen: c.EtcdListen, Setting: "embedded-etcd-listen"})
	if err != nil {
		return nil, err
	}
	c.Endpoints = []string{etcdEndpoint(e)}
	c.EtcdCA, c.EtcdCert, c.EtcdKey, c.EtcdUser, c.EtcdPassword = "", "", "", "", ""
	c.Controller = true // somebody has to be
	return e, nil
}

// tellEtcd logs that the embedded etcd failed: traffic goes on without.
func tellEtcd(ctx context.Context, e *embed.Etcd, i *instance) {
	select {
	case <-ctx.Done():
	case err := <-e.Err():
		i.log.Error("the embedded etcd failed: what is served stays, nothing can be published until a restart", "err", err)
	}
}

// notifySystemd says that the listeners are open, when the drain begins (ctx
// ends), and until beside ends that the process lives, as often as systemd asks.
// Readiness is not waited for: while etcd is away, systemd would start the instance
// again and again. Without systemd it does nothing.
func notifySystemd(ctx, beside context.Context, i *instance) {
	say := func(state string) {
		if _, err := sd.SdNotify(false, state); err != nil {
			i.log.Warn("tell systemd", "state", state, "err", err)
		}
	}
	say(sd.SdNotifyReady)
	every, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		i.log.Warn("ask for systemd's watchdog", "err", err)
	}
	var tick <-chan time.Time
	if every > 0 {
		t := time.NewTicker(every / 2)
		defer t.Stop()
		tick = t.C
	}
	draining := ctx.Done()
	for {
		select {
		case <-tick:
			say(sd.SdNotifyWatchdog)
		case <-draining:
			say(sd.SdNotifyStopping)
			draining = nil
		case <-beside.Done():
			return
		}
	}
}
