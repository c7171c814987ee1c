package daemon

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"go.etcd.io/etcd/server/v3/embed"

	"routerd.dev/internal/telemetry"
)

// Serve runs one instance until ctx ends, and then drains it. With
// EmbeddedEtcd it runs an etcd too and stands for election.
func Serve(ctx context.Context, cfg Config) (err error) {
	if err := cfg.Check(); err != nil {
		return err
	}
	if cfg.EmbeddedEtcd {
		e, err := cfg.embed(ctx)
		if err != nil {
			return err
		}
		defer stopEtcd(e)
	}
	i, err := newInstance(ctx, cfg, telemetry.Config{})
	if err != nil {
		return err
	}
	stop := notifySystemd(ctx, i)
	defer stop()
	return i.run(ctx)
}

// embed starts an etcd and points the settings at it.
func (c *Config) embed(ctx context.Context) (*embed.Etcd, error) {
	dir := c.EtcdDir
	if dir == "" {
		dir = filepath.Join(c.StateDir, "etcd")
	}
	e, err := startEtcd(ctx, etcdOptions{Dir: dir, Listen: c.EtcdListen})
	if err != nil {
		return nil, err
	}
	c.Endpoints = []string{etcdEndpoint(e)}
	c.Controller = true // somebody has to be
	return e, nil
}

// notifySystemd says that the listeners are open, when the drain begins, and
// that the process lives, as often as systemd asks. Without systemd it does
// nothing.
func notifySystemd(ctx context.Context, i *instance) (stop func()) {
	say := func(state string) {
		if _, err := sd.SdNotify(false, state); err != nil {
			i.log.Warn("tell systemd", "state", state, "err", err)
		}
	}
	say(sd.SdNotifyReady)
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
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
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-ended }
}

var errInstances = errors.New("instances: want 1 to 20")
