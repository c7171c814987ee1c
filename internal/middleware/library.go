package middleware

import (
	"sync"
)

// A Library owns the Heads of every live engine and outlives them: the same
// scope, kind and config give the same object, with its state, in the next
// engine too. It may be used from many goroutines.
type Library struct {
	env Env

	mu    sync.Mutex
	heads map[headKey]*Head
}

type headKey struct{ scope, kind, config string }

// NewLibrary makes an empty library that resolves references and reads the
// time by env. With env.CheckOnly it is Check with a memory: equal configs are
// read once, whatever their scope.
func NewLibrary(env Env) *Library {
	env = env.withDefaults()
	env.keys = &keyBudget{}
	return &Library{env: env, heads: map[headKey]*Head{}}
}

// Head returns the Head of a kind and its canonical config. Scope names whose
// state it is (for a limiter of one route, module/route and its place in the
// chain; for a named middleware, module and name); kinds without state ignore
// it. A config with references is resolved anew at each call, so each prepare
// sees what the instance has then. On problems the Head is nil and nothing is
// kept.
func (l *Library) Head(scope, kind, config string) (*Head, []FieldProblem) {
	k, ok := registered[kind]
	if !ok {
		return nil, unknownKind(kind)
	}
	key := headKey{kind: kind, config: config}
	if k.Scoped && !l.env.CheckOnly {
		key.scope = scope
	}
	l.mu.Lock()
	have := l.heads[key]
	l.mu.Unlock()
	if have != nil {
		return have, nil
	}
	env, resolved := l.env, false
	env.resolved = &resolved
	h, ps := k.New(config, env) // may read files, so not under the lock
	if len(ps) > 0 {
		return nil, ps
	}
	if resolved {
		return h, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if first, ok := l.heads[key]; ok { // another prepare was faster
		return first, nil
	}
	l.heads[key] = h
	return h, nil
}

// Keep drops every Head for which inUse is false. The caller counts as in use
// what an engine under construction has taken, too: dropped state starts anew
// when it is asked for again. inUse must not call the library.
func (l *Library) Keep(inUse func(*Head) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, h := range l.heads {
		if !inUse(h) {
			delete(l.heads, key)
			if h.release != nil {
				h.release()
			}
		}
	}
}

// Len returns how many Heads are kept.
func (l *Library) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.heads)
}
