package harness

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// A WatchProxy stands between one client and one etcd member and speaks gRPC
// with both, so that it can swallow what watches are told and let all else
// through: calls, leases, and the connection's own pings.
type WatchProxy struct {
	Addr string

	member *grpc.ClientConn
	mu     sync.Mutex
	silent silence
	opened int // watch streams so far
	deaf   int // those up to this one
}

type silence int

const (
	silentNone silence = iota
	silentOpen         // watches that were there when it began
	silentAll          // these and all that come
)

// StartWatchProxy runs a proxy to a member until the test's end. asMember is how
// it proves to be the member, asClient how it proves to be the client; nil for
// no TLS.
func StartWatchProxy(t testing.TB, member string, asMember, asClient *tls.Config) *WatchProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen for a proxy of watches: %v", err)
	}
	onward, inward := insecure.NewCredentials(), insecure.NewCredentials()
	if asMember != nil {
		onward, inward = credentials.NewTLS(asClient), credentials.NewTLS(asMember)
	}
	p := &WatchProxy{Addr: l.Addr().String()}
	p.member, err = grpc.NewClient("passthrough:///"+member, grpc.WithTransportCredentials(onward),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(asIs{}), grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatalf("make a proxy of watches to %s: %v", member, err)
	}
	s := grpc.NewServer(grpc.Creds(inward), grpc.ForceServerCodec(asIs{}), grpc.MaxRecvMsgSize(64<<20), grpc.UnknownServiceHandler(p.carry))
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := errors.Join(<-done, p.member.Close()); err != nil {
			t.Errorf("end the proxy of watches: %v", err)
		}
	})
	return p
}

// SilenceOpen swallows all that the watches of this moment are told.
func (p *WatchProxy) SilenceOpen() { p.silence(silentOpen) }

// SilenceAll swallows all that any watch is told, also those that are made later.
func (p *WatchProxy) SilenceAll() { p.silence(silentAll) }

func (p *WatchProxy) silence(s silence) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent, p.deaf = s, p.opened
}

// swallows tells whether the n-th watch stream is told nothing.
func (p *WatchProxy) swallows(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return n > 0 && (p.silent == silentAll || p.silent == silentOpen && n <= p.deaf)
}

// carry carries one call, whatever it is.
func (p *WatchProxy) carry(_ any, client grpc.ServerStream) error {
	method, ok := grpc.MethodFromServerStream(client)
	if !ok {
		return errors.New("a call without a method")
	}
	watch := 0
	if strings.HasPrefix(method, "/etcdserverpb.Watch/") {
		p.mu.Lock()
		p.opened++
		watch = p.opened
		p.mu.Unlock()
	}
	md, _ := metadata.FromIncomingContext(client.Context())
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(client.Context(), md.Copy()))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	member, err := p.member.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err // the member's own status
	}
	wg.Go(func() {
		for {
			var b []byte
			err := client.RecvMsg(&b)
			if errors.Is(err, io.EOF) {
				err = member.CloseSend()
				if err == nil {
					return
				}
			}
			if err != nil || member.SendMsg(&b) != nil {
				cancel()
				return
			}
		}
	})
	for {
		var b []byte
		err := member.RecvMsg(&b)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case p.swallows(watch):
		default:
			if err := client.SendMsg(&b); err != nil {
				return err
			}
		}
	}
}

// asIs is the codec of a proxy that reads no message: bytes are bytes.
type asIs struct{}

func (asIs) Name() string { return "proto" }

func (asIs) Marshal(v any) ([]byte, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("a message of %T", v)
	}
	return *b, nil
}

func (asIs) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("a message of %T", v)
	}
	*b = append([]byte(nil), data...)
	return nil
}
