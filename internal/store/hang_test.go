package store

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// hanging passes connections on to a unix socket until it hangs: then it takes
// new ones, keeps the old ones, and says nothing.
type hanging struct {
	path, to string
	l        net.Listener
	wg       sync.WaitGroup

	mu    sync.Mutex
	hangs bool
	deaf  int // so many connections, from the first, pass nothing on
	conns []net.Conn
}

func newHanging(t *testing.T, to string) *hanging {
	t.Helper()
	dir, err := os.MkdirTemp("", "store-hang-")
	must(t, err)
	h := &hanging{path: filepath.Join(dir, "s"), to: to}
	h.l, err = net.Listen("unix", h.path)
	must(t, err)
	h.wg.Go(func() {
		for {
			in, err := h.l.Accept()
			if err != nil {
				return
			}
			h.take(in)
		}
	})
	t.Cleanup(func() {
		_ = h.l.Close()
		h.mu.Lock()
		for _, c := range h.conns {
			_ = c.Close()
		}
		h.mu.Unlock()
		h.wg.Wait()
		_ = os.RemoveAll(dir)
	})
	return h
}

func (h *hanging) take(in net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns = append(h.conns, in)
	if h.hangs {
		return
	}
	out, err := net.Dial("unix", h.to)
	if err != nil {
		return
	}
	h.conns = append(h.conns, out)
	n := len(h.conns)
	h.wg.Go(func() { h.copy(out, in, n) })
	h.wg.Go(func() { h.copy(in, out, n) })
}

func (h *hanging) copy(to io.Writer, from io.Reader, number int) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		h.mu.Lock()
		hangs := h.hangs || number <= h.deaf
		h.mu.Unlock()
		if !hangs {
			_, _ = to.Write(buf[:n])
		}
	}
}

func (h *hanging) hang() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hangs = true
}

// silence has the connections that there are pass nothing on; new ones work.
func (h *hanging) silence() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deaf = len(h.conns)
}

// A member that hangs costs one call its patience, not each third of them, and
// a read is asked of another.
func TestHungMemberCostsLittle(t *testing.T) {
	h := newHanging(t, strings.TrimPrefix(shared.endpoint(), "unix://"))
	s := openAt(t, Config{Prefix: "/" + t.Name() + "/", Endpoints: []string{"unix://" + h.path, shared.endpoint()}, Timeout: 30 * time.Second})
	_, _, err := s.Init(t.Context())
	must(t, err)
	for range 8 { // both are connected to
		_, err := s.Fleet(t.Context())
		must(t, err)
	}
	<-time.After(time.Second) // the second is connected to beside the calls
	first := raw(t, s)
	h.hang()
	began := time.Now()
	for range 8 {
		_, err := s.Fleet(t.Context())
		must(t, err)
	}
	// The rest is for a busy machine; without a guard it takes 13 s.
	if took := time.Since(began); took > patience+greeting+4*time.Second {
		t.Errorf("eight reads took %s", took)
	}
	second := raw(t, s)
	if second == first {
		t.Fatal("the client is the same still")
	}
	// What is known to hang is no reason to replace the client again.
	if !s.greetedSince(t.Context(), time.Now()) || raw(t, s) != second {
		t.Error("it is found out again and again")
	}
}

// A call that takes long while all members answer, or refuse, is left alone.
func TestSlowCallIsNoHang(t *testing.T) {
	nobody := "unix://" + filepath.Join(t.TempDir(), "nobody")
	for _, other := range []string{shared.endpoint(), nobody} {
		s := openAt(t, Config{Prefix: "/" + t.Name() + "/", Endpoints: []string{shared.endpoint(), other}})
		client := raw(t, s)
		if !s.greetedSince(t.Context(), time.Now()) || len(s.hung) > 0 || raw(t, s) != client {
			t.Errorf("left out: %v", s.hung)
		}
	}
}
