package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The path that is asked for: what a parameter is in, deep in a table.
const (
	proxiedPattern = "/api/service-9999/v1/resource1/owners/{owner}/items/{item}"
	proxiedPath    = "/api/service-9999/v1/resource1/owners/alice/items/12345"
)

// A contender is somebody who answers requests.
type contender struct {
	name    string
	address string
	cpu     func(context.Context) (time.Duration, error) // of all it ran so far
	rates   []float64                                    // requests a second, by round
	costs   []float64                                    // processor time a request in µs, by round
}

// measureProxy has wrk load nginx and routerd in turns. Both pass everything on
// to the same nginx. On a machine with few processors wrk, proxy and backend
// share them, so that each slows the others: read the processor time a request too.
func measureProxy(ctx context.Context, b *bench) (_ []Figure, err error) {
	for _, program := range []string{"nginx", "wrk"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, &skip{program + " is not installed: apt-get install nginx-light wrk"}
		}
	}
	var stops []func() error
	defer func() {
		for _, stop := range stops {
			err = errors.Join(err, stop())
		}
	}()
	backend, err := b.startBackend(ctx)
	if err != nil {
		return nil, err
	}
	stops = append(stops, backend.stop)
	proxy, err := b.startNginx(ctx, 2, `upstream backend { server `+backend.address+`; keepalive 128; keepalive_requests 100000000; }
server {
	listen ADDRESS;
	location / { proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; }
}
`)
	if err != nil {
		return nil, err
	}
	stops = append(stops, proxy.stop)
	ngx := &contender{name: "nginx", address: proxy.address, cpu: proxy.cpu}
	direct := &contender{name: "no proxy", address: backend.address, cpu: backend.cpu}
	front := func(name, pattern string, routes int, o frontSpec) (*contender, error) {
		o.Backend, o.Path, o.Routes = backend.address, pattern, routes
		c, err := b.startChild(ctx, "front", o)
		if err != nil {
			return nil, err
		}
		stops = append(stops, c.stop)
		return &contender{name: name, address: c.Address, cpu: c.cpu}, nil
	}
	one, err := front("routerd, one route", proxiedPattern, 0, frontSpec{})
	if err != nil {
		return nil, err
	}
	many, err := front("routerd, 10,000 routes", proxiedPattern, 9_999, frontSpec{})
	if err != nil {
		return nil, err
	}
	logged, err := front("routerd, access log and Routerd-* headers", proxiedPattern, 0, frontSpec{AccessLog: filepath.Join(b.dir, "access.log"), Headers: true})
	if err != nil {
		return nil, err
	}
	large, err := front("routerd", "/{file}", 0, frontSpec{})
	if err != nil {
		return nil, err
	}
	all := []*contender{ngx, direct, one, many, logged}
	if err := b.contest(ctx, proxiedPath, 1<<10, b.of(6, 1), all...); err != nil {
		return nil, err
	}
	figures := []Figure{
		ngx.figure(),
		direct.figure().beside(ngx.name, median(ngx.rates), ratioOf(direct.rates, ngx.rates)),
		one.figure().beside(ngx.name, median(ngx.rates), ratioOf(one.rates, ngx.rates)).ratioAtLeast(0.45),
		figure("  processor time a request", median(one.costs), "µs").beside(ngx.name, median(ngx.costs), ratioOf(one.costs, ngx.costs)),
		many.figure().beside("one route", median(one.rates), ratioOf(many.rates, one.rates)).ratioAtLeast(0.95),
		figure("  processor time a request", median(many.costs), "µs").beside("one route", median(one.costs), ratioOf(many.costs, one.costs)),
		logged.figure().beside("one route", median(one.rates), ratioOf(logged.rates, one.rates)),
	}
	for _, body := range []struct {
		name string
		size int
	}{{"64 KiB", 64 << 10}, {"1 MiB", 1 << 20}} {
		n, r := &contender{name: "nginx", address: ngx.address, cpu: ngx.cpu}, &contender{name: "routerd", address: large.address, cpu: large.cpu}
		if err := b.contest(ctx, fmt.Sprintf("/%d", body.size), body.size, b.of(4, 1), n, r); err != nil {
			return figures, err
		}
		figures = append(figures,
			figure("routerd, bodies of "+body.name, median(r.rates), "req/s").beside(n.name, median(n.rates), ratioOf(r.rates, n.rates)),
			figure("  processor time a request", median(r.costs), "µs").beside(n.name, median(n.costs), ratioOf(r.costs, n.costs)),
		)
	}
	return figures, nil
}

func (c *contender) figure() Figure {
	return figure(c.name, median(c.rates), "req/s").note("%s µs of processor time a request", short(median(c.costs)))
}

// startBackend starts an nginx that answers /N with N bytes, and anything else
// with 1 KiB.
func (b *bench) startBackend(ctx context.Context) (*nginx, error) {
	files, err := os.MkdirTemp(b.dir, "files-")
	if err != nil {
		return nil, err
	}
	for _, n := range []int{64 << 10, 1 << 20} {
		if err := os.WriteFile(filepath.Join(files, fmt.Sprint(n)), []byte(strings.Repeat("x", n)), 0o644); err != nil {
			return nil, err
		}
	}
	return b.startNginx(ctx, 2, `open_file_cache max=10;
default_type text/plain;
server {
	listen ADDRESS;
	root `+files+`;
	location /api { return 200 "`+strings.Repeat("x", 1<<10)+`"; }
}
`)
}

// contest loads the contenders in turns. A first, short round warms up.
func (b *bench) contest(ctx context.Context, path string, size, rounds int, all ...*contender) error {
	for _, c := range all {
		if err := c.check(ctx, path, size); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	for round := range rounds + 1 {
		for _, c := range all {
			seconds := 2
			if round == 0 {
				seconds = 1
			}
			before, err := c.cpu(ctx)
			if err != nil {
				return err
			}
			r, err := wrk(ctx, "http://"+c.address+path, benchHost, seconds)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			after, err := c.cpu(ctx)
			if err != nil {
				return err
			}
			if round > 0 {
				c.rates = append(c.rates, r.rate)
				c.costs = append(c.costs, float64(after-before)/float64(time.Microsecond)/r.requests)
			}
		}
	}
	return nil
}

// check makes sure that a contender answers as it should.
func (c *contender) check(ctx context.Context, path string, size int) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.address+path, nil)
	if err != nil {
		return err
	}
	r.Host = benchHost
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK || n != int64(size):
		return fmt.Errorf("GET %s: %s with %d bytes, not 200 with %d", path, resp.Status, n, size)
	default:
		return nil
	}
}
