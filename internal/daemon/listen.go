package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
)

// A listener is one address with the server that answers there.
type listener struct {
	name   string
	net    net.Listener
	server *http.Server
}

// listen binds addr, so that a taken port fails the start and is named.
func listen(setting, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("--%s %s: the port is taken by another program; choose another, such as --%s 127.0.0.1:0 for any", setting, addr, setting)
	case err != nil:
		return nil, fmt.Errorf("--%s %s: %w", setting, addr, err)
	}
	return l, nil
}

// bind opens the data plane's listeners, all or none.
func (c *Config) bind(handler http.Handler, tlsConfig *tls.Config, log *slog.Logger) (_ []listener, err error) {
	var ls []listener
	defer func() {
		if err != nil {
			for _, l := range ls {
				l.net.Close()
			}
		}
	}()
	for _, want := range []struct {
		setting, addr string
		proto         func(*http.Protocols)
	}{
		{"http", c.HTTP, func(p *http.Protocols) { p.SetHTTP1(true) }},
		{"https", c.HTTPS, func(p *http.Protocols) { p.SetHTTP1(true); p.SetHTTP2(true) }},
		{"h2c", c.H2C, func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }},
	} {
		if want.addr == "" {
			continue
		}
		l, err := listen(want.setting, want.addr)
		if err != nil {
			return nil, err
		}
		if c.MaxConnections > 0 {
			l = netutil.LimitListener(l, c.MaxConnections)
		}
		srv := c.server(handler, log)
		srv.Protocols = new(http.Protocols)
		want.proto(srv.Protocols)
		if want.setting == "https" {
			srv.TLSConfig = tlsConfig
		}
		ls = append(ls, listener{name: want.setting, net: l, server: srv})
	}
	return ls, nil
}

// server is the one place where a server's limits are set. There is no write
// timeout: streams may last. The proxy ends what stalls.
func (c *Config) server(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: c.ReadHeaderTimeout,
		IdleTimeout:       c.IdleTimeout,
		MaxHeaderBytes:    c.MaxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(dropNoise{log.Handler()}, slog.LevelDebug),
		// `OPTIONS *` is refused by the front like any other bad target.
		DisableGeneralOptionsHandler: true,
	}
}

// serve answers on every listener until all of them are shut down.
func serve(ls []listener) error {
	var g errgroup.Group
	for _, l := range ls {
		g.Go(func() error {
			var err error
			if l.server.TLSConfig != nil {
				err = l.server.ServeTLS(l.net, "", "")
			} else {
				err = l.server.Serve(l.net)
			}
			if !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", l.name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// shutdown stops accepting and waits for requests to finish; those that have
// not when ctx ends are cut.
func shutdown(ctx context.Context, ls []listener) error {
	var g errgroup.Group
	for _, l := range ls {
		g.Go(func() error {
			if err := l.server.Shutdown(ctx); err != nil {
				return errors.Join(fmt.Errorf("drain %s: %w", l.name, err), l.server.Close())
			}
			return nil
		})
	}
	return g.Wait()
}

// dropNoise leaves out what net/http says of connections that were only
// probed or cut: neither is news.
type dropNoise struct{ slog.Handler }

// Handle implements slog.Handler.
func (d dropNoise) Handle(ctx context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "TLS handshake error") && strings.HasSuffix(r.Message, "EOF") {
		return nil
	}
	return d.Handler.Handle(ctx, r)
}
