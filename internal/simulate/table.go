package simulate

import (
	"cmp"
	"maps"
	"slices"

	"routerd.dev/internal/rollout"
)

// A table is records by key. It never changes: with and without return another
// one, so that a copy of a Fleet costs nothing and shares what it did not
// change.
type table[K comparable, V any] struct {
	m    map[K]V
	note *note // what it says, in canonical form, once that was asked for
}

func (t table[K, V]) with(k K, v V) table[K, V] {
	m := make(map[K]V, len(t.m)+1)
	maps.Copy(m, t.m)
	m[k] = v
	return table[K, V]{m: m, note: new(note)}
}

func (t table[K, V]) without(k K) table[K, V] {
	if _, ok := t.m[k]; !ok {
		return t
	}
	m := maps.Clone(t.m)
	delete(m, k)
	return table[K, V]{m: m, note: new(note)}
}

func (t table[K, V]) has(k K) bool {
	_, ok := t.m[k]
	return ok
}

func sorted[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// A note is what a part of a fleet says, in canonical bytes. Nonces and times
// are left open in it: they are told apart by their order of appearance, and by
// how far they are from now.
type note struct {
	done  bool
	bytes []byte
	marks []mark
}

type mark struct {
	nonce rollout.Nonce
	at    int64 // nanoseconds since start, when nonce is empty
}
