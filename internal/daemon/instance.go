package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
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
	"routerd.dev/internal/token"
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
	front   *front
	agent   *agent.Agent
	control *controller.Controller // nil unless it stands for election
	access  *telemetry.AccessLog   // nil for none
	cert    *certificate           // nil without HTTPS
	fronts  []listener
	admin   []listener
	ctl     []listener  // takes orders
	tokens  *token.Keys // nil for none
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
	i.log = i.tele.Logger.With("group", cfg.Group, "instance", cfg.Instance)
	if i.state, err = lockState(cfg.StateDir); err != nil {
		return nil, err
	}
	if cfg.AccessLog != "" {
		if i.access, err = telemetry.OpenAccessLog(cfg.AccessLog, i.log, slog.String("group", cfg.Group), slog.String("instance", cfg.Instance)); err != nil {
			return nil, fmt.Errorf("access-log: %w", err)
		}
	}
	if err := i.buildDataPlane(); err != nil {
		return nil, err
	}
	if err := i.bind(ctx); err != nil {
		return nil, err
	}
	if err := i.buildControl(); err != nil {
		return nil, err
	}
	return i, nil
}

func (c *Config) paths() route.PathOptions {
	return route.PathOptions{AllowEncodedSlash: c.AllowEncodedSlash, MergeSlashes: c.MergeSlashes}
}

func (i *instance) buildDataPlane() error {
	i.lib = engine.NewLibrary(proxy.Options{}, middleware.Env{Path: i.cfg.paths()})
	i.tele.Requests.Add(i.lib.Counters)
	o := engine.FrontOptions{
		ResponseHeaders: i.cfg.ResponseHeaders,
		Path:            i.cfg.paths(),
		MaxBody:         i.cfg.MaxBodyBytes,
	}
	if i.cfg.TokenKey != "" {
		keys, err := token.Load(i.cfg.TokenKey)
		if err != nil {
			return fmt.Errorf("token-key: %w", err)
		}
		i.tokens = keys
		o.Token, o.TokenCookie, o.Strict, o.Behind = keys, i.cfg.TokenCookie, i.cfg.TokenStrict, func() { i.agent.Behind() }
	}
	observers := []engine.Observer{i.tele.Spans(), i.tele.Panics()}
	if i.access != nil {
		observers = append(observers, i.access)
	}
	o.Observer = telemetry.Observers(observers...)
	if i.tele.Tracing {
		o.Propagate = i.tele.Propagate
	}
	for _, p := range i.cfg.TrustedProxies {
		prefix, err := parsePrefix(p)
		if err != nil {
			return fmt.Errorf("trusted-proxies: %w", err)
		}
		o.TrustedProxies = append(o.TrustedProxies, prefix)
	}
	i.sw = engine.NewSwitch(o)
	i.front = &front{next: i.tele.Traced(i.sw)}
	return nil
}

// bind opens every address, so that a taken port is named before anything runs.
func (i *instance) bind(ctx context.Context) (err error) {
	if i.cfg.HTTPS != "" {
		if i.cert, err = newCertificate(i.cfg.TLSCert, i.cfg.TLSKey); err != nil {
			return err
		}
	}
	tlsConfig := i.cert.config()
	if i.fronts, err = i.cfg.bind(i.front, tlsConfig, i.log); err != nil {
		return err
	}
	c, err := listenControl(ctx, i.cfg.ControlPath())
	if err != nil {
		return err
	}
	i.ctl = []listener{newListener("control", c, i.cfg.controlServer(i.log))}
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
	i.admin = []listener{newListener("admin", l, i.cfg.adminServer(i.log))}
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
		Sources: &store.Sources{CA: i.cfg.EtcdCA, Cert: i.cfg.EtcdCert, Key: i.cfg.EtcdKey, Password: i.cfg.EtcdPassword},
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
		Who: who, StateDir: i.cfg.StateDir, CrashNote: crashNote, JoinTimeout: i.cfg.JoinTimeout, LeaseTTL: i.cfg.LeaseTTL,
		BuildTimeout: i.cfg.CompileTime, EvictDelay: i.cfg.DrainDelay,
		Compile:      engine.Options{Budget: engine.Budget{Memory: i.cfg.CompileMemory, Percent: i.cfg.CompilePercent, Leeway: i.cfg.leeway}},
		Capabilities: capabilities, Counts: i.counts, Logger: i.tele.Logger, Meter: i.tele.Meter,
	})
	if err != nil {
		return err
	}
	if err := i.buildController(); err != nil {
		return err
	}
	i.ctl[0].server.Handler = control(i.agent, i.log)
	if len(i.admin) > 0 {
		i.admin[0].server.Handler = admin.New(admin.Options{
			Agent: i.agent, Server: i.sw, Metrics: i.tele.MetricsPage(), Paths: i.cfg.paths(),
			Pprof: i.cfg.AdminPprof, Version: buildinfo.Version(), Local: isLoopback(i.admin[0].net.Addr()),
		})
	}
	return i.tele.Observe(telemetry.Sources{
		Instance: i.agent, Pools: i.lib.Upstreams.Stats, Unserved: i.sw.Unserved, AccessLog: i.access,
		Connections: i.connections,
	})
}

// crashNote has a dying runtime say why in f, too.
func crashNote(f *os.File) error { return debug.SetCrashOutput(f, debug.CrashOptions{}) }

func (i *instance) buildController() (err error) {
	if !i.cfg.Controller {
		return nil
	}
	o := controller.Options{
		ID: i.cfg.Instance, Logger: i.tele.Logger.With("instance", i.cfg.Instance),
		Meter: labeled(i.tele.Meter, i.cfg.Group, i.cfg.Instance),
	}
	if len(i.cfg.NotifyURLs) > 0 {
		key, err := readSecret(i.cfg.NotifyKey)
		if err != nil {
			return fmt.Errorf("notify-key: %w", err)
		}
		o.Notify = controller.NotifyOptions{URLs: i.cfg.NotifyURLs, Key: key}
	}
	i.control, err = controller.New(controller.Of(i.store), o)
	return err
}

// connections counts the data plane's, those that were upgraded left out.
func (i *instance) connections() (n int64) {
	for _, l := range i.fronts {
		n += l.conns.Load()
	}
	return n
}

// cachedModules is how many decoded modules an instance keeps: enough for the
// sets of large fleets, since most modules of a set are the same.
const cachedModules = 4096

// counts is what the reports say about traffic.
func (i *instance) counts() (requests, errors int64) {
	sum := i.lib.Counters.Sum()
	return int64(sum.Requests()), int64(sum.Status[5])
}

// run serves until ctx ends or a part of it fails, then drains: readiness goes
// first, requests finish, the lease is given back, and last everything else ends.
func (i *instance) run(ctx context.Context) error {
	defer i.close()
	// What runs beside the listeners must outlive ctx until requests are done.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ending, end := context.WithCancel(ctx)
	defer end()
	var g errgroup.Group
	part := func(run func() error) {
		g.Go(func() error {
			defer end() // one that fails has the others drained
			return run()
		})
	}
	for _, l := range i.listeners() {
		i.log.Info("listening", "for", l.name, "address", l.net.Addr().String())
		part(l.serve)
	}
	part(func() error { return i.agent.Run(background) })
	part(func() error { return i.lib.Upstreams.Run(background) })
	go i.keepPlace(ending) // nobody waits for it: the disk that it looks at may hang
	// It ends with the lease, not after it: each may take its time.
	leading, resign := context.WithCancel(background)
	defer resign()
	if i.control != nil {
		part(func() error { return i.control.Run(leading) })
	}
	if i.tokens != nil {
		part(func() error { watchKeys(background, i.tokens, i.log); return nil })
	}
	if i.access != nil {
		part(func() error { return i.access.Run(background) })
	}
	if i.cert != nil {
		part(func() error { return i.cert.watch(background, i.log) })
	}
	<-ending.Done()
	i.drain(context.WithoutCancel(ctx), resign)
	stop()
	return g.Wait()
}

// listeners are all of them, those for operators last.
func (i *instance) listeners() []listener { return slices.Concat(i.fronts, i.admin, i.ctl) }

// drain ends serving without losing a request, within bounds. What does not
// fit is logged: the process was told to end, and does. resign has the controller
// end while the lease is given back.
func (i *instance) drain(ctx context.Context, resign func()) {
	i.log.Info("draining", "delay", i.cfg.DrainDelay, "timeout", i.cfg.DrainTimeout)
	i.agent.Drain()
	i.front.draining.Store(true)
	if i.cfg.DrainDelay > 0 {
		<-time.After(i.cfg.DrainDelay) // a second signal ends the process
	}
	finish, cancel := context.WithTimeout(ctx, i.cfg.DrainTimeout)
	defer cancel()
	if cut := shutdown(finish, i.fronts); cut > 0 {
		i.log.Warn("requests were cut off, they took longer than drain-timeout", "connections", cut)
	}
	// net/http does not wait for upgraded connections, nor close them.
	if err := poll(finish, func() bool { return i.lib.Upstreams.Stats().Tunnels == 0 }); err != nil {
		i.log.Warn("upgraded connections were cut off, they lasted longer than drain-timeout", "connections", i.lib.Upstreams.Stats().Tunnels)
	}
	_ = i.lib.Upstreams.Close()
	// The requests are done or cut: from here on nobody needs to wait for us.
	leave, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	resign()
	if err := i.agent.Leave(leave); err != nil {
		i.log.Warn("the lease was not given back: the group waits until it ends", "err", err)
	}
	// Those that were cut notice before what they use is closed.
	_ = poll(leave, func() bool { return i.connections() == 0 && i.lib.Upstreams.Stats().Tunnels == 0 })
	shutdown(leave, slices.Concat(i.admin, i.ctl))
}

// poll looks often until cond holds or ctx ends.
func poll(ctx context.Context, cond func() bool) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// close frees what newInstance opened. It may be called on a part of one, and
// again.
func (i *instance) close() {
	for _, l := range i.listeners() {
		_ = l.server.Close()
		_ = l.net.Close()
	}
	if i.lib != nil {
		_ = i.lib.Upstreams.Close()
	}
	if i.store != nil {
		_ = i.store.Close()
	}
	if i.access != nil {
		_ = i.access.Close()
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
