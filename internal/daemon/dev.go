package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/telemetry"
)

// DevOptions are the settings of `routerd dev`.
type DevOptions struct {
	HTTP      string // the front's address
	Admin     string // of the first instance; each further one has the next port
	Etcd      string
	Upstreams string // of the first example upstream; the second has the next port
	Instances int
	DataDir   string // empty for a temporary one
	Routes    []string
	Empty     bool // publish nothing
	LogLevel  string
}

// Flags adds the settings to fs.
func (o *DevOptions) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&o.HTTP, "http", "127.0.0.1:8080", "address of the front, which balances over the instances")
	fs.StringVar(&o.Admin, "admin", "127.0.0.1:9080", "admin address of the first instance; each further one is one port up")
	fs.StringVar(&o.Etcd, "etcd", "127.0.0.1:2379", "client address of the embedded etcd, where routectl looks by default")
	fs.StringVar(&o.Upstreams, "upstreams", "127.0.0.1:9001", "address of the first example upstream; the second is one port up")
	fs.IntVar(&o.Instances, "instances", 3, "how many instances: the first is group canary, the others are group main")
	fs.StringVar(&o.DataDir, "data-dir", "", "keep etcd's data and the instances' state here; a temporary one, removed at the end, if empty")
	fs.StringArrayVar(&o.Routes, "routes", nil, "publish these route files or folders instead of the examples; may be repeated")
	fs.BoolVar(&o.Empty, "empty", false, "publish nothing")
	fs.StringVar(&o.LogLevel, "log-level", "warn", "debug, info, warn or error")
}

// Check returns everything that is wrong with the settings.
func (o *DevOptions) Check() error {
	var errs []error
	for _, a := range []struct {
		key, addr string
		ports     int
	}{{"http", o.HTTP, 1}, {"admin", o.Admin, o.Instances}, {"etcd", o.Etcd, 1}, {"upstreams", o.Upstreams, 2}} {
		err := checkAddr(a.addr)
		if err == nil {
			_, err = portUp(a.addr, a.ports-1)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.key, err))
		}
	}
	if o.Instances < 1 || o.Instances > 20 {
		errs = append(errs, fmt.Errorf("instances: want 1 to 20, got %d", o.Instances))
	}
	if o.Empty && len(o.Routes) > 0 {
		errs = append(errs, errors.New("empty: publishes nothing, so it does not go with routes"))
	}
	if _, err := (&Config{LogLevel: o.LogLevel}).level(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Dev runs a whole fleet in this process until ctx ends: an etcd, instances
// behind one front, example upstreams, and a first revision. What to try next
// is written to out. A temporary data directory is removed at the end.
func Dev(ctx context.Context, o DevOptions, out io.Writer) (err error) {
	if err := o.Check(); err != nil {
		return err
	}
	dir := o.DataDir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "routerd-dev-"); err != nil {
			return fmt.Errorf("make a temporary directory: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	front, err := listen("http", o.HTTP)
	if err != nil {
		return err
	}
	defer front.Close()
	ups, err := o.listenUpstreams()
	if err != nil {
		return err
	}
	defer closeAll(ups)
	etcd, err := startEtcd(ctx, etcdOptions{Dir: filepath.Join(dir, "etcd"), Listen: o.Etcd, Setting: "etcd", Volatile: o.DataDir == ""})
	switch {
	case ctx.Err() != nil && etcd == nil:
		return nil // interrupted while starting
	case err != nil:
		return err
	}
	defer stopEtcd(etcd)

	instances, err := o.instances(ctx, dir, etcdEndpoint(etcd))
	if err != nil {
		return err
	}
	return o.run(ctx, &devFleet{front: front, upstreams: ups, etcd: etcdEndpoint(etcd), instances: instances}, out)
}

// A devFleet is what dev runs, all of it bound.
type devFleet struct {
	front     net.Listener
	upstreams []net.Listener
	etcd      string
	instances []*instance
}

// run ends when ctx does, or with the reason of the first part that fails.
func (o *DevOptions) run(ctx context.Context, f *devFleet, out io.Writer) error {
	f.instances[0].tele.TakeErrors()
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	running, drain := context.WithCancel(ctx)
	defer drain()
	var beside, fleet errgroup.Group
	part := func(g *errgroup.Group, run func() error) {
		g.Go(func() error {
			defer drain() // one that fails ends all
			return run()
		})
	}
	for _, i := range f.instances {
		part(&fleet, func() error {
			if err := i.run(running); err != nil {
				return fmt.Errorf("instance %s: %w", i.cfg.Instance, err)
			}
			return nil
		})
	}
	part(&beside, func() error { return serveUpstreams(background, f.upstreams) })
	part(&beside, func() error { return balance(background, f.front, f.instances) })

	err := o.firstRevision(running, f, out)
	switch {
	case running.Err() != nil:
		err = nil // interrupted, or whatever failed says why
	case err == nil:
		o.announce(out, f)
		<-running.Done()
		fmt.Fprintln(out, "\nstopping")
	}
	drain()
	err = errors.Join(err, fleet.Wait())
	stop()
	return errors.Join(err, beside.Wait())
}

// instances builds the fleet: canary-1, then main-1, main-2 and so on.
func (o *DevOptions) instances(ctx context.Context, dir, endpoint string) ([]*instance, error) {
	var out []*instance
	leeway := engine.NewLeeway(garbage)
	for n := range o.Instances {
		group, number := "canary", 1
		if n > 0 {
			group, number = "main", n
		}
		cfg, err := o.config(dir, endpoint, group, number, n)
		cfg.leeway = leeway
		var i *instance
		if err == nil {
			i, err = newInstance(ctx, cfg, telemetry.Config{})
		}
		if err != nil {
			for _, i := range out {
				i.close()
			}
			return nil, err
		}
		out = append(out, i)
	}
	return out, nil
}

func (o *DevOptions) config(dir, endpoint, group string, number, n int) (Config, error) {
	var cfg Config
	fs := pflag.NewFlagSet("dev", pflag.ContinueOnError)
	cfg.Flags(fs) // for the defaults
	admin, err := portUp(o.Admin, n)
	if err != nil {
		return cfg, err
	}
	cfg.Group, cfg.Instance = group, fmt.Sprintf("%s-%d", group, number)
	cfg.HTTP, cfg.Admin = "127.0.0.1:0", admin
	cfg.Endpoints = []string{endpoint}
	cfg.StateDir = filepath.Join(dir, cfg.Instance)
	cfg.Controller = true
	cfg.ResponseHeaders = true
	cfg.LogLevel = o.LogLevel
	cfg.DrainTimeout = 3 * time.Second
	return cfg, nil
}

// portUp adds n to an address's port; port 0 stays.
func portUp(addr string, n int) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	p, err := strconv.Atoi(port)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: the port must be a number", addr)
	case p == 0:
	case p+n > 65535:
		return "", fmt.Errorf("%s: %d ports are needed from there on", addr, n+1)
	default:
		p += n
	}
	return net.JoinHostPort(host, strconv.Itoa(p)), nil
}

func (o *DevOptions) announce(out io.Writer, f *devFleet) {
	routectl := "./bin/routectl"
	if f.etcd != "127.0.0.1:2379" {
		routectl += " --endpoints " + f.etcd
	}
	path, source := "/products/7", "examples/shop.yaml"
	switch {
	case o.Empty:
		source = "examples/"
	case len(o.Routes) > 0:
		path, source = "/", strings.Join(o.Routes, " ")
	}
	serves := "is serving"
	if o.Empty && !ready(f.instances) {
		serves = "waits for its first revision"
	}
	fmt.Fprintf(out, "\nrouterd: a fleet of %d %s\n\n", len(f.instances), serves)
	fmt.Fprintf(out, "  front      http://%s\n", f.front.Addr())
	for _, i := range f.instances {
		fmt.Fprintf(out, "  %-10s group %-7s http://%s  admin http://%s\n", i.cfg.Instance, i.cfg.Group, i.fronts[0].net.Addr(), i.admin[0].net.Addr())
	}
	fmt.Fprintf(out, "  upstreams  http://%s http://%s\n", f.upstreams[0].Addr(), f.upstreams[1].Addr())
	fmt.Fprintf(out, "  etcd       %s\n", f.etcd)
	fmt.Fprintf(out, "\nTry, in another terminal, from the project's folder:\n\n  %s\n\nCtrl-C ends it all.\n", strings.Join([]string{
		"curl -i http://" + f.front.Addr().String() + path,
		routectl + " explain GET " + path,
		routectl + " diff -f " + source + `   # edit it first`,
		routectl + " publish -f " + source + ` -m "try it" --wait`,
		routectl + " rollback --wait",
	}, "\n  "))
}

func closeAll(ls []net.Listener) {
	for _, l := range ls {
		_ = l.Close()
	}
}
