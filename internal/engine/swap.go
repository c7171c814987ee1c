//go:build !broken_swap

package engine

// Swap serves by v from the next request on; nil serves nothing. Requests that
// have begun end by what they began with. v must have a Stable engine.
func (s *Switch) Swap(v *Serving) { s.serving.Store(newServed(v)) }
