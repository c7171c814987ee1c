//go:build broken_swap

package engine

import "time"

// Swap of this build switches in two steps, the epoch first: integration
// TestBrokenBuilds must see it.
func (s *Switch) Swap(v *Serving) {
	if old := s.Serving(); old != nil && v != nil {
		half := *v
		half.Stable = old.Stable
		s.serving.Store(newServed(&half))
		time.Sleep(100 * time.Millisecond)
	}
	s.serving.Store(newServed(v))
}
