//go:build !broken_barrier

package rollout

// holds tells whether an instance holds what is wanted for m.
func (d *draft) holds(m move, said Ready) bool { return said.Whole() && said.Nonce == d.wanted(m) }
