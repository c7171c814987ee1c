package engine

import (
	"sync"

	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
)

// A Library holds what outlives engines, so that a switch drops no connection
// and resets no limit (I9).
type Library struct {
	Upstreams   *proxy.Library
	Middlewares *middleware.Library
	Counters    *Counters

	// compiling is held for reading by each compile, whose engine nobody can
	// name to Keep yet.
	compiling sync.RWMutex
}

// NewLibrary makes an empty library. Nothing runs and nothing is opened.
func NewLibrary(p proxy.Options, env middleware.Env) *Library {
	return &Library{
		Upstreams:   proxy.NewLibrary(p),
		Middlewares: middleware.NewLibrary(env),
		Counters:    NewCounters(),
	}
}

// Keep drops what none of the engines uses: idle connections, the state of
// middlewares, counters. Requests that are still running on another engine end undisturbed.
// It waits for compiles that are running; the caller names their engines, too, once it has them.
func (l *Library) Keep(engines ...*Engine) {
	l.compiling.Lock()
	defer l.compiling.Unlock()
	upstreams := map[*proxy.Upstream]bool{}
	heads := map[*middleware.Head]bool{}
	counters := map[*engineCounters]bool{}
	for _, e := range engines {
		if e == nil {
			continue
		}
		counters[e.counters] = true
		for _, p := range e.parts {
			for _, u := range p.upstreams {
				upstreams[u] = true
			}
			for _, h := range p.heads {
				heads[h] = true
			}
		}
	}
	l.Upstreams.Keep(func(u *proxy.Upstream) bool { return upstreams[u] })
	l.Middlewares.Keep(func(h *middleware.Head) bool { return heads[h] })
	l.Counters.keep(counters)
}
