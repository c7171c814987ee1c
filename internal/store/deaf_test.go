package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"routerd.dev/internal/rollout"
)

const (
	far    = 10 * time.Minute // a limit of calls that nobody here waits for
	enough = 60 * time.Second // for what must not wait for it, on a busy machine
)

// A half is a member of etcd that the others hear until it is half-deaf: then
// it takes connections and calls still, and refuses nothing, but nothing has an
// answer.
type half struct {
	path string
	to   *grpc.ClientConn
	life context.Context
	wg   sync.WaitGroup
	// strikes is asked about each message, and makes it half-deaf from that one on.
	strikes func(method string, m []byte) bool

	mu     sync.Mutex
	deaf   bool
	passes bool     // what it is sent is done, and only the answer is lost
	asked  []string // the methods of what it was sent while half-deaf
	held   []func() // does now what was not done
}

// A frame is a message that nobody here needs to understand.
type frame []byte

type frames struct{}

func (frames) Marshal(v any) ([]byte, error) { return *v.(*frame), nil }
func (frames) Unmarshal(b []byte, v any) error {
	*v.(*frame) = slices.Clone(b)
	return nil
}
func (frames) Name() string { return "frames" }

// halves returns n members. The first that gets what strikes becomes half-deaf;
// no other does.
func halves(t *testing.T, to string, n int, strikes func(method string, m []byte) bool) []*half {
	t.Helper()
	var mu sync.Mutex
	struck := false
	all := make([]*half, n)
	for i := range all {
		all[i] = newHalf(t, to, func(method string, m []byte) bool {
			mu.Lock()
			defer mu.Unlock()
			if struck || strikes == nil || !strikes(method, m) {
				return false
			}
			struck = true
			return true
		})
	}
	return all
}

func newHalf(t *testing.T, to string, strikes func(string, []byte) bool) *half {
	t.Helper()
	dir, err := os.MkdirTemp("", "store-half-")
	must(t, err)
	h := &half{path: filepath.Join(dir, "h"), strikes: strikes}
	var end context.CancelFunc
	h.life, end = context.WithCancel(context.Background())
	h.to, err = grpc.NewClient(to, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(frames{})))
	must(t, err)
	l, err := net.Listen("unix", h.path)
	must(t, err)
	s := grpc.NewServer(grpc.ForceServerCodec(frames{}), grpc.UnknownServiceHandler(func(_ any, in grpc.ServerStream) error { return h.carry(in) }))
	h.wg.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		end()
		s.Stop()
		_ = h.to.Close()
		h.wg.Wait()
		_ = os.RemoveAll(dir)
	})
	return h
}

func (h *half) endpoint() string { return "unix://" + h.path }

// carry passes a call on, and its answers back while there are any.
func (h *half) carry(in grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(in)
	md, _ := metadata.FromIncomingContext(in.Context())
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(h.life, md))
	defer cancel()
	out, err := h.to.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	h.wg.Go(func() { // ends with the call
		for {
			var m frame
			if in.RecvMsg(&m) != nil {
				_ = out.CloseSend()
				return
			}
			if h.hears(method, m, md) {
				_ = out.SendMsg(&m)
			}
		}
	})
	for {
		var m frame
		err := out.RecvMsg(&m)
		switch {
		case h.isDeaf():
			<-in.Context().Done()
			return in.Context().Err()
		case err != nil:
			in.SetTrailer(out.Trailer())
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := in.SendMsg(&m); err != nil {
			return err
		}
	}
}

// hears notes a message, and tells whether it is passed on.
func (h *half) hears(method string, m frame, md metadata.MD) bool {
	strikes := h.strikes(method, m)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.deaf = h.deaf || strikes; !h.deaf {
		return true
	}
	h.asked = append(h.asked, method)
	h.held = append(h.held, func() {
		var answer frame
		_ = h.to.Invoke(metadata.NewOutgoingContext(h.life, md), method, &m, &answer)
	})
	return h.passes
}

func (h *half) isDeaf() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.deaf
}

func (h *half) setDeaf(deaf bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deaf, h.asked, h.held = deaf, nil, nil
}

// heard are the methods of what it was sent while half-deaf.
func (h *half) heard() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.asked)
}

// mend has it do all that it was sent.
func (h *half) mend() {
	h.mu.Lock()
	held := h.held
	h.mu.Unlock()
	h.setDeaf(false)
	for _, do := range held {
		do()
	}
}

// through is a store of the shared etcd that comes to it through members.
func through(t *testing.T, cfg Config, members ...*half) *Store {
	t.Helper()
	cfg.Prefix, cfg.Timeout = fmt.Sprintf("/%s/%d/", t.Name(), prefixes.Add(1)), far
	for _, h := range members {
		cfg.Endpoints = append(cfg.Endpoints, h.endpoint())
	}
	return openAt(t, cfg)
}

// in runs f with a context that ends long before any limit.
func in(t *testing.T, what string, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	if err := f(ctx); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func readEight(t *testing.T, s *Store) {
	t.Helper()
	for range 8 {
		in(t, "read", func(ctx context.Context) error { _, err := s.get(ctx, "read", "k"); return err })
	}
}

// readUntil reads until ok holds: it takes some time until all members are connected to.
func readUntil(t *testing.T, s *Store, what string, ok func() bool) {
	t.Helper()
	eventually(t, what, func() bool {
		in(t, "read", func(ctx context.Context) error { _, err := s.get(ctx, "read", "k"); return err })
		return ok()
	})
}

func using(t *testing.T, s *Store, members ...*half) {
	t.Helper()
	var want []string
	for _, h := range members {
		want = append(want, h.endpoint())
	}
	if got := raw(t, s).Endpoints(); !slices.Equal(got, want) {
		t.Errorf("endpoints in use %v, want %v", got, want)
	}
}

// A member that the others do not hear is found out by the first call that it
// leaves without an answer, and gets no more; nobody is found out again and
// again.
func TestUnheardMemberIsLeftOut(t *testing.T) {
	t.Parallel()
	m := halves(t, shared.endpoint(), 3, nil)
	s := through(t, Config{}, m...)
	readEight(t, s)
	first := raw(t, s)
	m[1].setDeaf(true)
	readUntil(t, s, "the client is another", func() bool { return raw(t, s) != first })
	second := raw(t, s)
	using(t, s, m[0], m[2])
	m[1].setDeaf(true)
	readEight(t, s)
	if !s.greetedSince(t.Context(), time.Now()) || raw(t, s) != second {
		t.Error("it is found out again")
	}
	if calls := m[1].heard(); len(calls) > 1 { // a greeting
		t.Errorf("it was called: %v", calls)
	}

	// It answers again: when its time is over the next call has it asked, and
	// it comes back without a new client.
	m[1].setDeaf(false)
	readEight(t, s)
	using(t, s, m[0], m[2])
	s.mu.Lock()
	s.hung[m[1].endpoint()], s.greets.next = time.Now(), time.Time{}
	s.mu.Unlock()
	readUntil(t, s, "it is in use again", func() bool { return len(raw(t, s).Endpoints()) == 3 })
	if raw(t, s) != second {
		t.Error("that took a new client")
	}
	readEight(t, s)

	// One that is left out comes back before its time when those in use do not answer.
	m[0].setDeaf(true)
	readUntil(t, s, "the other is left out", func() bool { return s.leavesOut([]string{m[0].endpoint()}) })
	using(t, s, m[1], m[2])
	m[0].setDeaf(false)
	m[1].setDeaf(true)
	m[2].setDeaf(true)
	readEight(t, s)
	using(t, s, m[0])
}

// A publish whose transaction is sent to a member that the others do not hear is
// made once: whether it was carried out, was not, or is later.
func TestPublishThroughUnheardMember(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name                   string
		passes, between, after bool // when the first is carried out
	}{{name: "lost"}, {name: "carried out", passes: true}, {name: "carried out before the second", between: true}, {name: "late", after: true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var m []*half
			var seen atomic.Int32
			strikes := func(method string, b []byte) bool {
				if method != "/etcdserverpb.KV/Txn" || !bytes.Contains(b, []byte("into the void")) {
					return false
				}
				n := seen.Add(1)
				if n == 2 && c.between {
					m[0].mend()
					m[1].mend()
				}
				return n == 1
			}
			m = []*half{newHalf(t, shared.endpoint(), strikes), newHalf(t, shared.endpoint(), strikes)}
			for _, h := range m {
				h.passes = c.passes
			}
			s := through(t, Config{}, m...)
			in(t, "init", func(ctx context.Context) error { _, _, err := s.Init(ctx); return err })
			var done Published
			in(t, "publish", func(ctx context.Context) (err error) {
				done, err = s.Publish(ctx, PublishRequest{
					Snapshot: snapshot(t, "a"), Author: "ann", Message: "into the void", Intent: &rollout.Intent{Kind: rollout.IntentSwitch},
				})
				return err
			})
			if n := seen.Load(); n == 0 || n == 1 && !c.passes {
				t.Fatalf("the transaction was sent %d times", n)
			}
			once := func() {
				t.Helper()
				all, err := s.History(t.Context(), 0, 0)
				must(t, err)
				v := view(t, s)
				if len(all) != 1 || done.Revision.Number != 1 || len(v.Intents) != 1 || v.Fleet.Target != done.Revision.Ref() {
					t.Errorf("revisions %v, intents %v, target %v; published %v", all, v.Intents, v.Fleet.Target, done.Revision)
				}
			}
			once()
			if c.after {
				unchanged(t, s, func() { m[0].mend(); m[1].mend() })
				once()
			}
		})
	}
}

// Pieces are written again as well: a second time they are the same.
func TestUploadThroughUnheardMember(t *testing.T) {
	t.Parallel()
	m := halves(t, shared.endpoint(), 2, func(method string, m []byte) bool {
		return method == "/etcdserverpb.KV/Txn" && bytes.Contains(m, []byte("/manifests/")) && bytes.Contains(m, []byte("/chunks/")) && len(m) > 400
	})
	s := through(t, Config{}, m...)
	snap := snapshot(t, "a", "b")
	in(t, "upload", func(ctx context.Context) error { _, err := s.PutSnapshot(ctx, snap); return err })
	if !m[0].isDeaf() && !m[1].isDeaf() {
		t.Fatal("nothing was sent to one that is not heard")
	}
	if _, err := s.Manifest(t.Context(), snap.Digest); err != nil {
		t.Error(err)
	}
}

// To make a client with a user is a call, too. And to greet shows no password: that
// etcd wants to know the user is an answer.
func TestUnheardMemberAndUsers(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "store-users-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	e := &etcd{dir: dir, change: func(cfg *embed.Config) { cfg.BcryptCost = 4 }}
	must(t, e.start())
	t.Cleanup(e.stop)
	c := raw(t, openAt(t, Config{Endpoints: []string{e.endpoint()}}))
	_, err = c.UserAdd(t.Context(), "root", "secret")
	must(t, err)
	_, err = c.UserGrantRole(t.Context(), "root", "root")
	must(t, err)
	_, err = c.AuthEnable(t.Context())
	must(t, err)

	m := halves(t, e.endpoint(), 2, func(method string, _ []byte) bool { return method == "/etcdserverpb.Auth/Authenticate" })
	s := through(t, Config{Username: "root", Password: "secret", DialTimeout: far}, m...)
	readEight(t, s)
	struck, other := m[0], m[1]
	if other.isDeaf() {
		struck, other = other, struck
	}
	using(t, s, other)
	if n := len(slices.DeleteFunc(struck.heard(), func(m string) bool { return m != "/etcdserverpb.Auth/Authenticate" })); n != 1 {
		t.Errorf("it was shown the password %d times", n)
	}
}

// Nobody waits longer than he said for a client that etcd neither lets in nor turns
// away: not who has it made, not who comes later, and not Close.
func TestMakingAClientKeepsNobody(t *testing.T) {
	t.Parallel()
	const most = 10 * time.Second // less than the making takes
	h := halves(t, shared.endpoint(), 1, nil)[0]
	h.setDeaf(true)
	s := through(t, Config{Username: "root", Password: "secret", DialTimeout: 2 * most}, h)
	soon := func(what string, f func()) {
		t.Helper()
		began := time.Now()
		f()
		if took := time.Since(began); took > most {
			t.Errorf("%s took %v", what, took)
		}
	}
	for _, who := range []string{"who has it made", "who comes later"} {
		soon(who, func() {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, err := s.get(ctx, "read", "k")
			wantErr(t, err, ErrUnavailable)
		})
	}
	if n := len(h.heard()); n > 1 {
		t.Errorf("the password was shown %d times", n)
	}
	soon("close", func() { must(t, s.Close()) })
	if _, err := s.get(t.Context(), "read", "k"); !errors.Is(err, errClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// However many calls wait, there is one greeting; and the longer nobody can tell
// who is silent, the fewer.
func TestGreetingsAreFew(t *testing.T) {
	t.Parallel()
	m := halves(t, shared.endpoint(), 2, nil)
	s := through(t, Config{}, m...)
	m[0].setDeaf(true)
	m[1].setDeaf(true)
	since := time.Now()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { s.greetedSince(t.Context(), since) })
	}
	wg.Wait()
	if a, b := m[0].heard(), m[1].heard(); len(a) != 1 || len(b) != 1 {
		t.Errorf("fifty calls made %d and %d greetings", len(a), len(b))
	}
	if len(s.hung) > 0 {
		t.Errorf("nobody answers, and left out are %v", s.hung)
	}
	wait := time.Duration(0)
	for range 8 {
		s.judge(time.Now(), []greeted{deaf, deaf})
		next := time.Until(s.greets.next)
		if next < min(wait, greetAgain-time.Second) || next > greetAgain {
			t.Errorf("the next greeting is after %s, the one before after %s", next, wait)
		}
		wait = next
	}
	if wait < greetAgain-time.Second {
		t.Errorf("the last wait is %s", wait)
	}
	m[0].setDeaf(true)
	s.suspect()
	s.passing(true)
	if calls := m[0].heard(); len(calls) > 0 {
		t.Errorf("it is greeted all the same: %v", calls)
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name  string
		was   []string // left out, their time not over
		found []greeted
		out   []string
	}{
		{"all answer", nil, []greeted{answers, answers, answers}, nil},
		{"one is not heard", nil, []greeted{answers, deaf, answers}, []string{"b"}},
		{"one hangs", nil, []greeted{answers, answers, silent}, []string{"c"}},
		{"one hangs and a leader is elected", nil, []greeted{deaf, deaf, silent}, []string{"c"}},
		{"one hangs and the others refuse", nil, []greeted{refuses, refuses, silent}, nil},
		{"a leader was elected just now", nil, []greeted{deaf, late, late}, nil},
		{"no leader", nil, []greeted{deaf, deaf, refuses}, nil},
		{"all hang", nil, []greeted{silent, silent, silent}, nil},
		{"all hang, but one was left out", []string{"a"}, []greeted{silent, silent, silent}, []string{"a"}},
		{"back too early", []string{"a"}, []greeted{answers, answers, deaf}, []string{"a", "c"}},
		{"back, for the others are away", []string{"a"}, []greeted{answers, refuses, deaf}, []string{"c"}},
		{"never all", []string{"a"}, []greeted{deaf, silent, silent}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openAt(t, Config{Endpoints: []string{"a", "b", "c"}})
			for _, e := range c.was {
				s.hung[e] = time.Now().Add(time.Hour)
			}
			s.judge(time.Now(), c.found)
			var out []string
			for _, e := range s.Endpoints() {
				if s.leavesOut([]string{e}) {
					out = append(out, e)
				}
			}
			if !slices.Equal(out, c.out) {
				t.Errorf("left out %v, want %v", out, c.out)
			}
		})
	}
}

// Close ends a greeting, and what waits for it.
func TestCloseEndsGreeting(t *testing.T) {
	m := halves(t, shared.endpoint(), 2, nil)
	s := through(t, Config{}, m...)
	m[0].setDeaf(true)
	m[1].setDeaf(true)
	ended := make(chan bool, 1)
	go func() { ended <- s.greetedSince(t.Context(), time.Now()) }()
	eventually(t, "they are greeted", func() bool { return len(m[0].heard()) > 0 && len(m[1].heard()) > 0 })
	must(t, s.Close())
	greets := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.greets.done != nil
	}
	if greets() {
		t.Error("a greeting outlives its store")
	}
	if <-ended {
		t.Error("it has ended as if all had been asked")
	}
	s.suspect()
	if greets() {
		t.Error("a closed store greets")
	}
}

// A lease whose renewals are sent to a member that the others do not hear is kept:
// what asks beside them is too short to find out by itself.
func TestLeaseThroughUnheardMember(t *testing.T) {
	t.Parallel()
	m := halves(t, shared.endpoint(), 3, func(method string, _ []byte) bool { return method == "/etcdserverpb.Lease/LeaseKeepAlive" })
	s := through(t, Config{}, m...)
	l, err := s.grant(t.Context(), "take a lease", 12*time.Second)
	must(t, err)
	defer func() { must(t, l.release(t.Context(), "give it back")) }()
	eventually(t, "it is left out", func() bool { return s.leavesOut(s.Endpoints()) || l.isLost() })
	resp, err := raw(t, s).TimeToLive(t.Context(), l.id)
	if err != nil || resp.TTL <= 0 || l.isLost() {
		t.Errorf("the lease lives %d s: %v", resp.TTL, err)
	}
}

func (l *lease) isLost() bool {
	select {
	case <-l.lost:
		return true
	default:
		return false
	}
}
