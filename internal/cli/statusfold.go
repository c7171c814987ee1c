package cli

// namedMost is how many instances of a group that are all well and serve the
// same are named; of thousands, those that are not are what one looks for.
const namedMost = 50

// alike is what many instances have in common.
type alike struct {
	group           string
	revision, epoch int64
	more            int // beside those named
}

// fold returns the instances that are named one by one, and what the others
// have in common. It keeps their order.
func fold(all []instanceStatus) (named []instanceStatus, rest []alike) {
	well := func(i instanceStatus) (alike, bool) {
		if i.Serving == nil || i.state() != "ok" {
			return alike{}, false
		}
		return alike{group: i.Group, revision: i.Serving.Revision, epoch: i.Serving.Epoch}, true
	}
	count := map[alike]int{}
	for _, i := range all {
		if a, ok := well(i); ok {
			count[a]++
		}
	}
	at := map[alike]int{} // in rest, from 1
	seen := map[alike]int{}
	for _, i := range all {
		a, ok := well(i)
		if !ok || count[a] <= namedMost {
			named = append(named, i)
			continue
		}
		if seen[a]++; seen[a] <= 3 { // so that one sees what they are called
			named = append(named, i)
			continue
		}
		if at[a] == 0 {
			rest = append(rest, a)
			at[a] = len(rest)
		}
		rest[at[a]-1].more++
	}
	return named, rest
}
