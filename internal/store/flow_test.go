package store

import (
	"testing"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// TestFlow goes once the whole way: init, publish, join, prepare, commit.
func TestFlow(t *testing.T) {
	s := fleet(t)
	ctx := t.Context()
	rev := publish(t, s, "hello")
	term := campaign(t, s, "c1")

	v := view(t, s)
	if len(v.Intents) != 1 || v.Revisions[rev.Number].Digest != rev.Digest || v.Fleet.Target != rev.Ref() {
		t.Fatalf("view %+v", v)
	}
	set := []version.Ref{rev.Ref()}
	must(t, term.Apply(ctx, v, rollout.Change{Prepares: []rollout.Prepare{{Group: "main", Nonce: "n1", Set: set}}}))

	ch := states(t, s, "main", WatchOptions{})
	st := await(t, ch, "something is prepared", func(g GroupState) bool { return g.Prepare != nil })
	m := join(t, s, "main", "a")
	must(t, m.Admit(ctx, st, "n1"))

	must(t, term.Apply(ctx, view(t, s), rollout.Change{
		Groups:   []rollout.Assignment{{Group: "main", Epoch: 1, Nonce: "n1", Set: set, Stable: rev.Ref()}},
		Withdraw: []string{"main"},
		Ready:    map[string]rollout.Nonce{"main": "n1"},
	}))
	st = await(t, ch, "epoch 1 is committed and nothing prepared", func(g GroupState) bool {
		return g.Assignment != nil && g.Assignment.Epoch == 1 && g.Prepare == nil
	})
	if st.FleetID != v.Fleet.ID || st.Err != nil {
		t.Errorf("state %+v", st)
	}
	must(t, m.Report(ctx, rollout.Report{HighestRevision: rev.Number}))
	if v := view(t, s); v.Reports["a"].HighestRevision != 1 || v.Ready["main"]["a"].Nonce != "n1" || v.Instances["a"].Group != "main" {
		t.Errorf("view %+v", v)
	}
}
