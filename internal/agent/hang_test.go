package agent

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/route"
)

// hanging is a table whose compile hangs until the test ends: it reads a pipe
// that nobody writes to.
func hanging(t *testing.T, body string) *route.Table {
	t.Helper()
	pipe := filepath.Join(t.TempDir(), "ca.pem")
	must(t, syscall.Mkfifo(pipe, 0o600))
	t.Cleanup(func() {
		if w, err := os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
			w.Close()
		}
	})
	tb := table(body)
	tb.Modules[0].Upstreams = []route.Upstream{{Name: "u", Targets: []route.Target{{URL: "https://127.0.0.1:1"}}, TLS: route.TLS{CAFile: pipe}}}
	route.Normalize(tb)
	return tb
}

// What hangs costs one worker, also where nobody withdraws it: the next one is
// not given it again.
func TestHungCompileIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	f := initFleet(t, shared)
	one, two, three := f.publish(table("one")), f.publish(hanging(t, "two")), f.publish(table("three"))
	f.commit(1, "n1", one)
	m := f.join("a")
	m.awaitEpoch(1)
	f.awaitReady("a", "n1")
	f.prepare("n2", "", two, one)
	eventually(t, func() string { return hasPrefix(f.get("ready/g/a"), "refused n2 building it hangs") })
	f.prepare("n3", "", three, one)
	f.awaitReady("a", "n3")
	must(t, m.do(t.Context(), func(p *loop) {
		if p.hung != 1 || p.worker == nil {
			t.Errorf("%d builds hang", p.hung)
		}
	}))
}

// A fetch ends with its time: one that does not, for a disk hangs, say, is given
// up, but not before it had all of it.
func TestPatienceEnds(t *testing.T) {
	p := bareLoop(t, (&fleet{t: t}).options("a"))
	p.hung = mostHung // no worker that would have to end
	w := &work{job: job{Ref: ref(1), nonce: "n1"}}
	w.ctx, w.cancel = context.WithCancel(t.Context())
	p.building = w
	w.stage(p, StageFetching)
	began := time.Now()
	now := began
	for p.building == w && now.Sub(began) < time.Hour {
		now = now.Add(hangLook)
		p.checkBuild(t.Context(), now)
	}
	if took := now.Sub(began); took < fetchTime+hangAfter*hangLook || took > fetchTime+(hangAfter+2)*hangLook {
		t.Errorf("patient for %s", took)
	}
}

// What a compile takes out of the library after it was given up is let go of
// when it ends.
func TestLateCompileLeavesNothing(t *testing.T) {
	asked, resume := make(chan struct{}), make(chan struct{})
	limited := func(name string) route.Route {
		return route.Route{
			Name: name, Path: "/" + name, Action: route.Action{Respond: &route.Respond{Body: "x"}},
			Middlewares: []route.Middleware{{Kind: "rateLimit", Config: `{"burst":3,"per":"1h","rate":1}`}},
		}
	}
	hangs := limited("a")
	hangs.Middlewares = []route.Middleware{{Kind: "headers", Config: `{"request":{"set":{"X-A":"${env:X}"}}}`}}
	tb := table("late", hangs, limited("b"))
	route.Normalize(tb)
	_, etcd, ref := builderOf(t, tb, 0)
	p := bareLoop(t, (&fleet{t: t}).options("a"))
	p.deps.Snapshots = etcd
	p.deps.Library = engine.NewLibrary(proxy.Options{}, middleware.Env{Lookup: func(string) (string, bool) {
		close(asked)
		<-resume
		return "x", true
	}})
	ctx, end := context.WithCancel(t.Context())
	p.hung = mostHung - 1 // one worker is all there is
	p.hire(ctx)
	defer func(w *worker) { end(); <-w.done }(p.worker)

	now := time.Now()
	p.steer(ctx, plan{build: []job{{Ref: ref, nonce: "n1"}}}, now)
	<-asked
	for p.building != nil {
		now = now.Add(hangLook)
		p.checkBuild(ctx, now)
	}
	if n := p.deps.Library.Middlewares.Len(); n != 0 {
		t.Errorf("%d heads once it was given up", n)
	}
	close(resume)
	(<-p.events)() // it ended
	if n := p.deps.Library.Middlewares.Len(); n != 0 {
		t.Errorf("%d heads that nobody uses", n)
	}
}
