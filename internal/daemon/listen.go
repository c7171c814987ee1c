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
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// Limits of a listener that are no settings.
const (
	// maxStreams bounds the requests at once on one HTTP/2 connection.
	maxStreams = 250
	// pingAfter is how long an HTTP/2 connection may be silent before it is
	// asked for a sign of life, pingTimeout how long that may take.
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
	// stalledWrite ends an HTTP/2 connection whose client takes nothing. On
	// HTTP/1.1 the proxy does, as long as its upstream's timeouts say.
	stalledWrite = 2 * time.Minute
	// adminTime bounds a request to the admin listener and its answer, a
	// profile's too.
	adminTime = 2 * time.Minute
)

// A listener is one address with the server that answers there.
type listener struct {
	name   string
	net    net.Listener
	server *http.Server
	conns  *atomic.Int64 // connections that are served; upgraded ones are not
}

// listen binds addr, so that a taken port fails the start and is named.
func listen(setting, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("--%s %s: the port is taken by another program; choose another, such as --%s 127.0.0.1:0 for any", setting, addr, setting)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("--%s %s: %w: ports below 1024 ask for the capability net_bind_service", setting, addr, err)
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
			l = &limited{Listener: l, slots: make(chan struct{}, c.MaxConnections), closed: make(chan struct{})}
		}
		srv := c.server(handler, log)
		srv.Protocols = new(http.Protocols)
		want.proto(srv.Protocols)
		if want.setting == "https" {
			srv.TLSConfig = tlsConfig
		}
		ls = append(ls, newListener(want.setting, l, srv))
	}
	return ls, nil
}

// server is the one place where a data plane server's limits are set. There is
// no timeout for a whole request: streams may last. The proxy and the switch end
// what stalls, and what is left of a body that was not read before its answer. No
// one else sets a deadline after an answer: net/http may be reading on already,
// and takes a read that fails for the end of the client.
func (c *Config) server(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: c.ReadHeaderTimeout,
		IdleTimeout:       c.IdleTimeout,
		MaxHeaderBytes:    c.MaxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams,
			SendPingTimeout:      pingAfter,
			PingTimeout:          pingTimeout,
			WriteByteTimeout:     stalledWrite,
		},
		ErrorLog: slog.NewLogLogger(dropNoise{log.Handler()}, slog.LevelDebug),
		// `OPTIONS *` is refused by the front like any other bad target.
		DisableGeneralOptionsHandler: true,
	}
}

// adminServer bounds everything: its requests have no bodies and its answers
// an end.
func (c *Config) adminServer(log *slog.Logger) *http.Server {
	srv := c.server(nil, log)
	srv.ReadTimeout = c.ReadHeaderTimeout
	srv.WriteTimeout = adminTime
	return srv
}

// newListener counts the server's connections, each until its goroutine has
// ended: a server that was closed does not wait for them.
func newListener(name string, l net.Listener, srv *http.Server) listener {
	conns := new(atomic.Int64)
	srv.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			conns.Add(1)
		case http.StateClosed, http.StateHijacked:
			conns.Add(-1)
		}
	}
	return listener{name: name, net: l, server: srv, conns: conns}
}

// serve answers until the listener is shut down.
func (l *listener) serve() error {
	var err error
	if l.server.TLSConfig != nil {
		err = l.server.ServeTLS(l.net, "", "")
	} else {
		err = l.server.Serve(l.net)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s on %s: %w", l.name, l.net.Addr(), err)
	}
	return nil
}

// shutdown stops accepting and waits for requests to finish; those that have
// not when ctx ends are cut. It returns how many connections that were.
func shutdown(ctx context.Context, ls []listener) (cut int64) {
	var g errgroup.Group
	var n atomic.Int64
	for _, l := range ls {
		g.Go(func() error {
			if err := l.server.Shutdown(ctx); err != nil {
				n.Add(l.conns.Load())
				_ = l.server.Close()
			}
			return nil
		})
	}
	_ = g.Wait()
	return n.Load()
}

// A front stands before the switch for as long as the process lives.
type front struct {
	next     http.Handler
	draining atomic.Bool
}

// ServeHTTP implements http.Handler.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.draining.Load() {
		// The client's next request goes elsewhere, instead of onto a
		// connection that is about to be closed.
		w.Header().Set("Connection", "close")
	}
	f.next.ServeHTTP(w, r)
}

// limited is a listener with so many connections at once; others wait to be
// accepted. Its connections stay what proxying relies on: *net.TCPConn's methods
// can be reached.
type limited struct {
	net.Listener
	slots  chan struct{}
	once   sync.Once
	closed chan struct{}
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		<-l.slots
		return nil, fmt.Errorf("accept on %s: not a TCP connection", l.Addr())
	}
	return &limitedConn{TCPConn: tcp, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

// Close implements net.Listener.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	*net.TCPConn
	release func()
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	defer c.release()
	return c.TCPConn.Close()
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
