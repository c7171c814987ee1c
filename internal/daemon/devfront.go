package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// balance accepts connections and hands them, one after the other, to the
// instances that are ready. It knows nothing of HTTP: a stream or an upgrade
// passes as it is. It returns when ctx ended and every connection is closed.
func balance(ctx context.Context, l net.Listener, instances []*instance) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for next := 0; ; next++ {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil, errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return err
		}
		to := pick(instances, next)
		wg.Go(func() { splice(ctx, conn, to) })
	}
}

// pick takes turns among the instances that are ready, or among all when none
// is: they say themselves why not.
func pick(instances []*instance, turn int) string {
	for n := range instances {
		i := instances[(turn+n)%len(instances)]
		if i.agent.Ready().Ready {
			return i.fronts[0].net.Addr().String()
		}
	}
	return instances[turn%len(instances)].fronts[0].net.Addr().String()
}

// splice copies both ways until both ends are done or ctx ends.
func splice(ctx context.Context, client net.Conn, to string) {
	defer client.Close()
	server, err := net.DialTimeout("tcp", to, time.Second)
	if err != nil {
		return
	}
	defer server.Close()
	stop := context.AfterFunc(ctx, func() { _ = client.Close(); _ = server.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { pipe(server, client) })
	pipe(client, server)
	wg.Wait()
}

// pipe copies one way and passes the end on.
func pipe(dst, src net.Conn) {
	_, _ = io.Copy(dst, src)
	if c, ok := dst.(*net.TCPConn); ok {
		_ = c.CloseWrite()
	}
}
