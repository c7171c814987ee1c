package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"routerd.dev/internal/admin"
	"routerd.dev/internal/agent"
	"routerd.dev/internal/buildinfo"
	"routerd.dev/internal/controller"
	"routerd.dev/internal/engine"
	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
	"routerd.dev/internal/telemetry"
	"routerd.dev/internal/version"
)

// An instance is one router with everything it needs, built and bound, not
// yet running.
type instance struct {
	cfg     Config
	tele    *telemetry.Telemetry
	log     *slog.Logger
	store   *store.Store
	lib     *engine.Library
	sw      *engine.Switch
	agent   *agent.Agent
	control *controller.Controller // nil unless it stands for election
	access  *telemetry.AccessLog   // nil for none
	cert    *certificate           // nil without HTTPS
	fronts  []listener
	admin   []listener
	state   *stateLock
}

// newInstance builds an instance and binds its addresses. Nothing is served
// and nothing is registered before run.
func newInstance(ctx context.Context, cfg Config, logTo telemetry.Config) (_ *instance, err error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	i := &instance{cfg: cfg}
	defer func() {
		if err != nil {
			i.close()
		}
	}()
	level, err := cfg.level()
	if err != nil {
		return nil, err
	}
	logTo.Version, logTo.Instance, logTo.Group = buildinfo.Version(), cfg.Instance, cfg.Group
	logTo.LogFormat, logTo.LogLevel = cfg.LogFormat, level
	if i.tele, err = telemetry.New(ctx, logTo); err != nil {
		return nil, err
	}
	i.log = i.tele.Logger.With("instance", cfg.Instance)
	if i.state, err = lockState(cfg.StateDir); err != nil {
		return nil, err
	}
	if cfg.AccessLog != "" {
		if i.access, err = telemetry.OpenAccessLog(cfg.AccessLog, i.log); err != nil {
			return nil, err
		}
	}
	if err := i.buildDataPlane(); err != nil {
		return nil, err
	}
	if err := i.bind(); err != nil {
		return nil, err
	}
	return i, i.buildControl()
}

func (c *Config) paths() route.PathOptions {
	return route.PathOptions{AllowEncodedSlash: c.AllowEncodedSlash, MergeSlashes: c.MergeSlashes}
}

func (i *instance) buildDataPlane() error {
	i.lib = engine.NewLibrary(proxy.Options{}, middleware.Env{Path: i.cfg.paths()})
	i.tele.Requests.Add(i.lib.Counters)
	front := engine.FrontOptions{
		ResponseHeaders: i.cfg.ResponseHeaders,
		Path:            i.cfg.paths(),
		MaxBody:         i.cfg.MaxBodyBytes,
	}
	observers := []engine.Observer{i.tele.Spans(), i.tele.Panics()}
	if i.access != nil {
		observers = append(observers, i.access)
	}
	front.Observer = telemetry.Observers(observers...)
	if i.tele.Tracing {
		front.Propagate = i.tele.Propagate
	}
	for _, p := range i.cfg.TrustedProxies {
		prefix, err := parsePrefix(p)
		if err != nil {
			return fmt.Errorf("trusted-proxies: %w", err)
		}
		front.TrustedProxies = append(front.TrustedProxies, prefix)
	}
	i.sw = engine.NewSwitch(front)
	return nil
}

// bind opens every address, so that a taken port is named before anything runs.
func (i *instance) bind() (err error) {
	if i.cfg.HTTPS != "" {
		if i.cert, err = newCertificate(i.cfg.TLSCert, i.cfg.TLSKey); err != nil {
			return err
		}
	}
	tlsConfig := i.cert.config()
	if i.fronts, err = i.cfg.bind(i.tele.Traced(i.sw), tlsConfig, i.log); err != nil {
		return err
	}
	if i.cfg.Admin == "" {
		return nil
	}
	l, err := listen("admin", i.cfg.Admin)
	if err != nil {
		return err
	}
	if !isLoopback(l.Addr()) {
		i.log.Warn("the admin listener can be reached from other machines: it has no authentication", "address", l.Addr())
	}
	i.admin = []listener{{name: "admin", net: l, server: i.cfg.server(nil, i.log)}}
	return nil
}

func isLoopback(a net.Addr) bool {
	ap, err := netip.ParseAddrPort(a.String())
	return err == nil && ap.Addr().IsLoopback()
}

func (i *instance) buildControl() (err error) {
	password, err := store.LoadPassword(i.cfg.EtcdPassword)
	if err != nil {
		return err
	}
	tlsConfig, err := store.LoadTLS(i.cfg.EtcdCA, i.cfg.EtcdCert, i.cfg.EtcdKey)
	if err != nil {
		return err
	}
	i.store, err = store.Open(store.Config{
		Endpoints: i.cfg.Endpoints, Prefix: i.cfg.Prefix, TLS: tlsConfig,
		Username: i.cfg.EtcdUser, Password: password, Logger: i.log,
	})
	if err != nil {
		return err
	}
	capabilities := engine.Capabilities()
	who := rollout.Instance{
		Instance: i.cfg.Instance, Group: i.cfg.Group, Boot: i.state.boot, Former: i.state.former, Address: i.fronts[0].net.Addr().String(),
		Version: buildinfo.Version(), Capabilities: capabilities,
	}
	if len(i.admin) > 0 {
		who.Admin = i.admin[0].net.Addr().String()
	}
	i.agent, err = agent.New(agent.Deps{
		Store: i.store, Snapshots: i.store, Switch: i.sw, Library: i.lib, Cache: version.NewCache(cachedModules),
	}, agent.Options{
		Who: who, StateDir: i.cfg.StateDir, JoinTimeout: i.cfg.JoinTimeout, LeaseTTL: i.cfg.LeaseTTL,
		BuildTimeout: i.cfg.CompileTime,
		Compile:      engine.Options{Budget: engine.Budget{Memory: i.cfg.CompileMemory, Percent: i.cfg.CompilePercent}},
		Capabilities: capabilities, Counts: i.counts, Logger: i.tele.Logger, Meter: i.tele.Meter,
	})
	if err != nil {
		return err
	}
	if i.cfg.Controller {
		i.control, err = controller.New(controller.Of(i.store), controller.Options{ID: i.cfg.Instance, Logger: i.log, Meter: i.tele.Meter})
		if err != nil {
			return err
		}
	}
	if len(i.admin) > 0 {
		i.admin[0].server.Handler = admin.New(admin.Options{
			Agent: i.agent, Server: i.sw, Metrics: i.tele.MetricsPage(), Paths: i.cfg.paths(),
			Pprof: i.cfg.AdminPprof, Version: buildinfo.Version(),
		})
	}
	return nil
}

// cachedModules is how many decoded modules an instance keeps: enough for the
// sets of large fleets, since most modules of a set are the same.
const cachedModules = 4096

// counts is what the reports say about traffic.
func (i *instance) counts() (requests, errors int64) {
	sum := i.lib.Counters.Sum()
	return int64(sum.Requests()), int64(sum.Status[5])
}

// run serves until ctx ends, then drains: readiness goes first, requests
// finish, the lease is given back, and last everything else ends.
func (i *instance) run(ctx context.Context) error {
	defer i.close()
	// What runs beside the listeners must outlive ctx until requests are done.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, background := errgroup.WithContext(background)
	g.Go(func() error { return i.agent.Run(background) })
	g.Go(func() error { return i.lib.Upstreams.Run(background) })
	if i.control != nil {
		g.Go(func() error { return i.control.Run(background) })
	}
	if i.access != nil {
		g.Go(func() error { return i.access.Run(background) })
	}
	if i.cert != nil {
		g.Go(func() error { return i.cert.watch(background, i.log) })
	}
	g.Go(func() error { return serve(i.fronts) })
	g.Go(func() error { return serve(i.admin) })
	for _, l := range append(i.fronts[:len(i.fronts):len(i.fronts)], i.admin...) {
		i.log.Info("listening", "for", l.name, "address", l.net.Addr().String())
	}

	select {
	case <-ctx.Done():
	case <-background.Done(): // something failed: the error is g's
	}
	err := i.drain(context.WithoutCancel(ctx))
	stop()
	return errors.Join(g.Wait(), err)
}

// drain ends serving without losing a request, within bounds.
func (i *instance) drain(ctx context.Context) error {
	i.log.Info("draining", "delay", i.cfg.DrainDelay, "timeout", i.cfg.DrainTimeout)
	i.agent.Drain()
	if i.cfg.DrainDelay > 0 {
		<-time.After(i.cfg.DrainDelay)
	}
	ctx, cancel := context.WithTimeout(ctx, i.cfg.DrainTimeout)
	defer cancel()
	err := shutdown(ctx, i.fronts)
	// The requests are done or cut: from here on nobody needs to wait for us.
	leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	return errors.Join(err, i.agent.Leave(leave), shutdown(leave, i.admin))
}

// close frees what newInstance opened. It may be called on a part of one.
func (i *instance) close() {
	for _, l := range append(i.fronts[:len(i.fronts):len(i.fronts)], i.admin...) {
		_ = l.server.Close()
		_ = l.net.Close()
	}
	if i.lib != nil {
		_ = i.lib.Upstreams.Close()
	}
	if i.store != nil {
		_ = i.store.Close()
	}
	if i.tele != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := i.tele.Shutdown(ctx); err != nil {
			i.log.Warn("telemetry was not sent to the end", "err", err)
		}
	}
	i.state.unlock()
}

var _ http.Handler = (*engine.Switch)(nil)
