package cli

import (
	"fmt"
	"slices"
	"testing"

	"routerd.dev/internal/rollout"
)

// TestStatusOfManyNamesWhoIsNotWell: of thousands of instances, status shows
// every one that is not like the others, and loses none in the sum.
func TestStatusOfManyNamesWhoIsNotWell(t *testing.T) {
	serving := func(rev, epoch int64) *rollout.Serving { return &rollout.Serving{Revision: rev, Epoch: epoch} }
	var all []instanceStatus
	for n := range 2000 {
		i := instanceStatus{Instance: fmt.Sprintf("i%04d", n), Group: "main", Serving: serving(7, 12)}
		switch n {
		case 500:
			i.Stale = "etcd does not answer"
		case 900:
			i.Serving = serving(6, 11)
		case 1500:
			i.Serving = nil
		}
		all = append(all, i)
	}
	all = append(all, instanceStatus{Instance: "e0", Group: "edge", Serving: serving(7, 3)})
	named, rest := fold(all)
	var names []string
	for _, i := range named {
		names = append(names, i.Instance)
	}
	if want := []string{"i0000", "i0001", "i0002", "i0500", "i0900", "i1500", "e0"}; !slices.Equal(names, want) {
		t.Errorf("named: %v, want %v", names, want)
	}
	if want := []alike{{group: "main", revision: 7, epoch: 12, more: 1994}}; !slices.Equal(rest, want) {
		t.Errorf("the rest: %+v, want %+v", rest, want)
	}
	few, rest := fold(all[:namedMost])
	if len(few) != namedMost || rest != nil {
		t.Errorf("of %d all are named: %d were, the rest %+v", namedMost, len(few), rest)
	}
}
