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

	mu        sync.Mutex
	compiling map[*compiler]bool // whose engines nobody can name to Keep yet
}

// NewLibrary makes an empty library. Nothing runs and nothing is opened.
func NewLibrary(p proxy.Options, env middleware.Env) *Library {
	return &Library{
		Upstreams:   proxy.NewLibrary(p),
		Middlewares: middleware.NewLibrary(env),
		Counters:    NewCounters(),
		compiling:   map[*compiler]bool{},
	}
}

// begin notes that c works with what the library has.
func (l *Library) begin(c *compiler) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.compiling[c] = true
}

// end notes that c does so no more. It fails when c's context has ended: Keep may
// have dropped what c took.
func (l *Library) end(c *compiler) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.compiling, c)
	return c.pace.ended()
}

// Keep drops what none of the engines uses: idle connections, the state of
// middlewares, counters. Requests that are still running on another engine end
// undisturbed.
//
// It waits for nothing: while something is compiled it drops nothing, and is to
// be called again once that has ended, naming its engine, too. A compile whose
// context has ended is not minded, for it makes no engine: one that hangs keeps
// nothing.
func (l *Library) Keep(engines ...*Engine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.compiling {
		if c.pace.ended() == nil {
			return
		}
	}
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
