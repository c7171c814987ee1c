package agent

import (
	"testing"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// Somebody deletes a fleet that was made by mistake and restores the right one.
// A watch may tell of the restored group before it tells of the restored id:
// who took up that pair would be of the deleted fleet, and freeze again at
// once.
func TestThawsByAReadAlone(t *testing.T) {
	now := time.Unix(1000, 0)
	restored := &rollout.Assignment{Group: "g", Epoch: 8, Recovered: 8, Nonce: "n", Set: []version.Ref{ref(1)}, Stable: ref(1)}
	c := newCore("me", "g")
	c.fleet, c.floor = "right", 4
	c.freeze("etcd holds fleet wrong, this instance serves fleet right")
	c.saw(record{at: 5, fleet: "wrong", assignment: restored}, now)
	if c.fleet != "right" || c.frozen == "" || !c.plan(now).confirm {
		t.Fatalf("fleet %q, frozen %q, read again: %v", c.fleet, c.frozen, c.plan(now).confirm)
	}
	c.saw(record{at: 5, fleet: "right", assignment: restored, confirmed: true, after: c.records}, now)
	if c.fleet != "right" || c.frozen != "" || c.target != restored {
		t.Errorf("fleet %q, frozen %q, target %+v", c.fleet, c.frozen, c.target)
	}
}
