package engine

import (
	"iter"

	"routerd.dev/internal/route"
)

// All yields every route with its module, modules by name and routes as
// written. Neither may be changed.
func (e *Engine) All() iter.Seq2[*route.Module, *route.Route] {
	return func(yield func(*route.Module, *route.Route) bool) {
		for _, p := range e.parts {
			for i := range p.module.Routes {
				if !yield(p.module, &p.module.Routes[i]) {
					return
				}
			}
		}
	}
}

// Table returns the table that the engine was compiled from. Its modules may
// not be changed.
func (e *Engine) Table() *route.Table {
	t := &route.Table{Modules: make([]*route.Module, len(e.parts))}
	for i, p := range e.parts {
		t.Modules[i] = p.module
	}
	return t
}
