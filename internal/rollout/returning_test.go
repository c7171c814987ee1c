package rollout

import (
	"testing"
	"time"

	"routerd.dev/internal/version"
)

// A record that no step writes, made by hand, must not end the controller: the
// next one would find it, too.
func TestReturnThatSaysNothingIsPlayed(t *testing.T) {
	at := time.Unix(1000, 0)
	old, to := version.Ref{Number: 1, Digest: version.Digest{1}}, version.Ref{Number: 2, Digest: version.Digest{2}}
	for _, origin := range []map[string]version.Ref{nil, {"main": old}} {
		v := &View{
			Fleet: Fleet{ID: "f"}, Seed: "s",
			Groups: map[string]Assignment{"main": {Group: "main", Epoch: 3, Stable: to, Set: []version.Ref{to, old}, Back: []version.Ref{old}, Rollout: "x"}},
			Rollouts: []Rollout{{
				Intent: Intent{ID: "x", To: to}, Phase: PhaseReturning, Plan: &Strategy{}, Origin: origin, Epochs: map[string]int64{"main": 3},
			}},
		}
		if c, _ := Step(v, at); len(c.Rollouts) != 1 || c.Rollouts[0].Return == nil {
			t.Errorf("origin %v: %+v", origin, c)
		}
	}
}
