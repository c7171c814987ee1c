package store

import (
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// A parted member of etcd is reached by clients and by no other member. Once it
// has noticed, it refuses who asks for a leader, before it does anything, and
// answers nothing to all others.
type parted struct {
	path  string
	knows atomic.Int64 // so many calls come before it has noticed, and have no answer
}

func newParted(t *testing.T) *parted {
	t.Helper()
	p := &parted{path: filepath.Join(t.TempDir(), "p")}
	l, err := net.Listen("unix", p.path)
	must(t, err)
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, call grpc.ServerStream) error {
		md, _ := metadata.FromIncomingContext(call.Context())
		if len(md.Get(rpctypes.MetadataRequireLeaderKey)) > 0 && p.knows.Add(-1) < 0 {
			return rpctypes.ErrGRPCNoLeader
		}
		<-call.Context().Done()
		return call.Context().Err()
	}))
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return p
}

// With a member that is parted from the others, but not from here, reads are
// answered and writes are done by the members that can.
func TestPartedMember(t *testing.T) {
	p := newParted(t)
	s := openAt(t, Config{Prefix: "/" + t.Name() + "/", Endpoints: []string{shared.endpoint(), "unix://" + p.path}})
	for n := range 6 { // of each endpoint in turn
		if _, err := s.get(t.Context(), "read", "k"); err != nil {
			t.Fatalf("read %d: %v", n, err)
		}
		if _, err := s.txn(t.Context(), "write", "k", nil, []clientv3.Op{clientv3.OpPut(s.key("k"), "v")}, nil); err != nil {
			t.Fatalf("write %d: %v", n, err)
		}
	}
}

// A member that was parted a moment ago takes a call and never answers it, also
// when it refuses all others by now: that costs no call its limit.
func TestPartedAMomentAgo(t *testing.T) {
	t.Parallel()
	p := newParted(t)
	p.knows.Store(1)
	s := openAt(t, Config{Prefix: "/" + t.Name() + "/", Endpoints: []string{shared.endpoint(), "unix://" + p.path}, Timeout: far})
	readUntil(t, s, "it was sent a call before it noticed", func() bool { return p.knows.Load() <= 0 })
	if e := raw(t, s).Endpoints(); len(e) != 1 || e[0] != shared.endpoint() {
		t.Errorf("endpoints in use %v", e)
	}
}
