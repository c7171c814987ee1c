package middleware

import (
	"fmt"
	"maps"
	"slices"
)

// A registry has kinds by their name.
type registry map[string]Kind

// registered are this build's kinds. Only register writes to it, while the
// package is initialised; from then on it is the same for everybody.
var registered = registry{}

// register makes a kind one of this build's. The kind's own file calls it, in
//
//	var _ = register(gzipKind())
//
// and nothing else has to name the kind: route files, their schema and
// reference, and the capabilities of instances have it by that. What is wrong
// with it ends every program and every test at its start.
func register(k Kind) Kind {
	if err := registered.add(k); err != nil {
		panic("middleware: register: " + err.Error())
	}
	return k
}

// add refuses a second kind of a name, and one that is not whole.
func (r registry) add(k Kind) error {
	switch _, twice := r[k.Name]; {
	case k.Name == "" || k.Doc == "" || k.Capability == "" || k.Config == nil || k.New == nil:
		return fmt.Errorf("kind %q lacks its name, doc, capability, config or constructor: make it with newKind", k.Name)
	case twice:
		return fmt.Errorf("two kinds have the name %s: each file of a kind needs another", k.Name)
	}
	r[k.Name] = k
	return nil
}

// names returns the name of every kind, sorted.
func (r registry) names() []string { return slices.Sorted(maps.Keys(r)) }

// Kinds returns every kind of middleware, sorted by name.
func Kinds() []Kind {
	kinds := make([]Kind, 0, len(registered))
	for _, name := range registered.names() {
		kinds = append(kinds, registered[name])
	}
	return kinds
}
