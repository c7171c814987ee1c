package engine

import (
	"context"
	"errors"
	"testing"
	"time"

	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/route"
)

// While something is compiled nothing is dropped; and a compile that hangs
// keeps neither Keep waiting nor, once it was given up, what nobody uses.
func TestKeepWaitsForNoCompile(t *testing.T) {
	asked, resume := make(chan struct{}), make(chan struct{})
	lib := NewLibrary(proxy.Options{}, middleware.Env{Lookup: func(string) (string, bool) {
		close(asked)
		<-resume
		return "", true
	}})
	t.Cleanup(func() { lib.Upstreams.Close() })
	limited := func(name string) route.Route {
		return route.Route{Name: name, Path: "/" + name, Action: respond("x"), Middlewares: []route.Middleware{{Kind: "rateLimit", Config: `{"burst":3,"per":"1h","rate":1}`}}}
	}
	keep := func(e *Engine) (heads int) {
		t.Helper()
		done := make(chan struct{})
		go func() {
			defer close(done)
			lib.Keep(e)
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("Keep waits for a compile that hangs")
		}
		return lib.Middlewares.Len()
	}
	testEngine(t, lib, 1, "", limited("old"))
	next := testEngine(t, lib, 2, "", limited("next"))

	hangs := &route.Table{Modules: []*route.Module{{Name: "m", Routes: []route.Route{
		limited("new"),
		{Name: "hangs", Path: "/hangs", Action: respond("x"), Middlewares: []route.Middleware{{Kind: "headers", Config: `{"request":{"set":{"X-A":"${env:X}"}}}`}}},
	}}}}
	route.Normalize(hangs)
	ctx, giveUp := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := Compile(ctx, testRef(3), hangs, lib, Options{})
		failed <- err
	}()
	<-asked
	if n := keep(next); n != 3 {
		t.Errorf("%d heads while something is compiled, want all 3", n)
	}
	giveUp()
	if n := keep(next); n != 1 {
		t.Errorf("%d heads once the compile was given up, want what is used", n)
	}
	testEngine(t, lib, 4, "", limited("other")) // and others are compiled
	if n := keep(next); n != 1 {
		t.Errorf("%d heads after another compile, want what is used", n)
	}
	close(resume)
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("what was dropped beside it was compiled all the same: %v", err)
	}
}
