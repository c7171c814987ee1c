package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// commit is what a controller decides when group main is ready for n1.
func commit(groups ...string) rollout.Change {
	c := rollout.Change{Ready: map[string]rollout.Nonce{}}
	for _, g := range groups {
		c.Groups = append(c.Groups, rollout.Assignment{Group: g, Epoch: 1, Nonce: "n1"})
		c.Ready[g] = "n1"
	}
	return c
}

// Each of these moves a record between a controller's View and its commit.
func TestCommitLosesToWhatCameBetween(t *testing.T) {
	for name, between := range map[string]func(*testing.T, *Store){
		"abort": func(t *testing.T, s *Store) {
			_, err := s.PutIntent(t.Context(), rollout.Intent{Kind: rollout.IntentAbort, Rollout: "r", By: "ann"}, nil, version.Ref{})
			must(t, err)
		},
		"settings": func(t *testing.T, s *Store) {
			must(t, s.SetSettings(t.Context(), "ann", func(x *rollout.Settings) error { x.Lead = time.Millisecond; return nil }))
		},
		"group":         func(t *testing.T, s *Store) { rawPut(t, s, "groups/main", `{"group":"main","epoch":7}`) },
		"another group": func(t *testing.T, s *Store) { rawPut(t, s, "groups/other", `{"group":"other"}`) },
		"prepare":       func(t *testing.T, s *Store) { rawPut(t, s, "prepare/main", `{"group":"main","nonce":"n2"}`) },
	} {
		t.Run(name, func(t *testing.T) {
			s := fleet(t)
			ready(t, s, "main", "a", "n1")
			term := campaign(t, s, "c1")
			v := view(t, s)
			between(t, s)
			unchanged(t, s, func() {
				wantErr(t, term.Apply(t.Context(), v, commit("main")), ErrStale, "was written at")
			})
			must(t, term.Apply(t.Context(), view(t, s), commit("main")))
		})
	}
}

// Reports and other groups' readiness are not what a commit is made of.
func TestCommitIsNotStoppedByReports(t *testing.T) {
	s := fleet(t)
	m := ready(t, s, "main", "a", "n1")
	term := campaign(t, s, "c1")
	v := view(t, s)
	must(t, m.Report(t.Context(), rollout.Report{}))
	ready(t, s, "other", "b", "n9")
	must(t, term.Apply(t.Context(), v, commit("main")))
}

func TestI2_CommitStopsOnJoiner(t *testing.T) {
	s := fleet(t)
	ready(t, s, "main", "a", "n1")
	term := campaign(t, s, "c1")
	v := view(t, s)
	late := join(t, s, "main", "b")
	must(t, late.Put(t.Context(), rollout.Ready{}))
	unchanged(t, s, func() {
		err := term.Apply(t.Context(), v, commit("main"))
		wantErr(t, err, ErrNotReady, "main")
		var e *NotReadyError
		if !errors.As(err, &e) || len(e.Groups) != 1 {
			t.Errorf("error %#v", err)
		}
	})
	must(t, late.Put(t.Context(), rollout.Ready{Nonce: "n1"}))
	must(t, term.Apply(t.Context(), v, commit("main")))
}

func TestI2_CommitStopsOnRefusalAndEmptyGroup(t *testing.T) {
	s := fleet(t)
	term := campaign(t, s, "c1")
	unchanged(t, s, func() {
		wantErr(t, term.Apply(t.Context(), view(t, s), commit("main")), ErrNotReady, "main")
	})
	m := ready(t, s, "main", "a", "n1")
	must(t, m.Put(t.Context(), rollout.Ready{Nonce: "n1", Refused: true, Why: "no"}))
	unchanged(t, s, func() {
		wantErr(t, term.Apply(t.Context(), view(t, s), commit("main")), ErrNotReady, "main")
	})
	// A group whose name begins like another's is another group.
	ready(t, s, "main2", "b", "n1")
	wantErr(t, term.Apply(t.Context(), view(t, s), commit("main")), ErrNotReady, "main")
	must(t, term.Apply(t.Context(), view(t, s), commit("main2")))
}

func TestRetireStopsOnInstance(t *testing.T) {
	s := fleet(t)
	term := campaign(t, s, "c1")
	rawPut(t, s, "groups/old", `{"group":"old","epoch":3}`)
	v := view(t, s)
	m := join(t, s, "old", "a")
	must(t, m.Put(t.Context(), rollout.Ready{}))
	retire := rollout.Change{Retire: []string{"old"}, Empty: []string{"old"}}
	unchanged(t, s, func() {
		wantErr(t, term.Apply(t.Context(), v, retire), ErrNotReady, "registered in old")
	})
	must(t, m.Leave(t.Context()))
	must(t, term.Apply(t.Context(), v, retire))
	if _, ok := view(t, s).Groups["old"]; ok {
		t.Error("old is still there")
	}
}

func TestI4_DeposedTermWritesNothing(t *testing.T) {
	s := fleet(t)
	ready(t, s, "main", "a", "n1")
	old := campaign(t, s, "c1")
	v := view(t, s)
	if _, err := raw(t, s).Revoke(t.Context(), old.lease.id); err != nil {
		t.Fatal(err)
	}
	changes := map[string]rollout.Change{
		"commit":   commit("main"),
		"withdraw": {Withdraw: []string{"main"}},
		"audit":    {Audit: []rollout.AuditEntry{{Time: time.Now(), What: "x"}}},
	}
	refused := func(by string) {
		t.Helper()
		for name, c := range changes {
			unchanged(t, s, func() {
				if err := old.Apply(t.Context(), v, c); !errors.Is(err, ErrDeposed) || !strings.Contains(err.Error(), by) {
					t.Errorf("%s: error %v, want ErrDeposed by %s", name, err, by)
				}
			})
		}
	}
	refused("nobody")
	// Elected again under the same name is another term still.
	again := campaign(t, again(t, s), "c1")
	refused("c1")
	must(t, again.Apply(t.Context(), view(t, s), commit("main")))
	select {
	case <-old.Done():
	case <-time.After(20 * time.Second):
		t.Error("Done is not closed")
	}
}

// A controller that read before and lost its term while the second wrote
// must fail as deposed, whatever else is wrong.
func TestI4_DeposedIsSaidFirst(t *testing.T) {
	s := fleet(t)
	old := campaign(t, s, "c1")
	v := view(t, s)
	must(t, old.Resign(t.Context()))
	next := campaign(t, again(t, s), "c2")
	must(t, next.Apply(t.Context(), view(t, s), rollout.Change{Prepares: []rollout.Prepare{{Group: "main", Nonce: "n1"}}}))
	wantErr(t, old.Apply(t.Context(), v, commit("main")), ErrDeposed, "c2")
}

func TestI10_WipedStoreIsNotWritten(t *testing.T) {
	s := fleet(t)
	ready(t, s, "main", "a", "n1")
	term := campaign(t, s, "c1")
	v := view(t, s)
	rawDelete(t, s, "fleet")
	unchanged(t, s, func() {
		wantErr(t, term.Apply(t.Context(), v, commit("main")), ErrStale, "is gone")
	})
}

func TestCommitIsOneRevision(t *testing.T) {
	s := fleet(t)
	rev := publish(t, s, "hello")
	ready(t, s, "a", "a1", "n1")
	ready(t, s, "b", "b1", "n1")
	term := campaign(t, s, "c1")
	v := view(t, s)
	f := v.Fleet
	f.Committed = rev.Ref()
	c := commit("a", "b")
	c.Fleet = &f
	c.Rollouts = []rollout.Rollout{{Intent: v.Intents[0], Phase: rollout.PhaseDone}}
	c.Done = []string{v.Intents[0].ID}
	c.Serve = []version.Digest{rev.Digest}
	c.Condemn = []rollout.Condemned{{Digest: version.DigestOf([]byte("bad")), Why: "crashed"}}
	c.Prepares = []rollout.Prepare{{Group: "z", Nonce: "n2"}}
	c.Audit = []rollout.AuditEntry{{Time: time.Now(), Who: "c1", What: "commit"}}
	before := revision(t, s)
	must(t, term.Apply(t.Context(), v, c))
	if got := revision(t, s); got != before+1 {
		t.Errorf("took %d revisions", got-before)
	}
	v = view(t, s)
	if len(v.Groups) != 2 || v.Fleet.Committed != rev.Ref() || len(v.Intents) != 0 || len(v.Rollouts) != 0 ||
		!v.Served[rev.Digest] || len(v.Condemned) != 1 || v.Prepares["z"].Nonce != "n2" {
		t.Errorf("view %+v", v)
	}
	all, err := s.Rollouts(t.Context(), 0)
	must(t, err)
	if len(all) != 1 || all[0].Phase != rollout.PhaseDone {
		t.Errorf("rollouts %+v", all)
	}
}

func TestHundredGroupsAtOnce(t *testing.T) {
	s := fleet(t)
	term := campaign(t, s, "c1")
	var names []string
	var prepares rollout.Change
	for i := range rollout.MaxGroups + 1 {
		g := fmt.Sprintf("g%03d", i)
		names = append(names, g)
		rawPut(t, s, "ready/"+g+"/i", "n1")
		if i < rollout.MaxGroups {
			prepares.Prepares = append(prepares.Prepares, rollout.Prepare{Group: g, Nonce: "n1"})
		}
	}
	must(t, term.Apply(t.Context(), view(t, s), prepares))
	v := view(t, s)
	unchanged(t, s, func() {
		wantErr(t, term.Apply(t.Context(), v, commit(names...)), ErrTooLarge, "101 groups", "at most 100")
	})
	c := commit(names[:rollout.MaxGroups]...)
	c.Withdraw = names[:rollout.MaxGroups] // 200 operations and 106 compares
	for range 50 {
		c.Audit = append(c.Audit, rollout.AuditEntry{Time: time.Now(), What: "commit"})
	}
	before := revision(t, s)
	must(t, term.Apply(t.Context(), v, c))
	if got := revision(t, s); got != before+1 {
		t.Errorf("took %d revisions", got-before)
	}
	v = view(t, s)
	if len(v.Groups) != rollout.MaxGroups || len(v.Prepares) != 0 {
		t.Errorf("%d groups, %d prepares", len(v.Groups), len(v.Prepares))
	}
	// What is packed is fenced like the rest.
	rawPut(t, s, "ready/g050/other", "none")
	c.Audit = nil
	unchanged(t, s, func() { wantErr(t, term.Apply(t.Context(), v, c), ErrNotReady, "g050") })
}

func TestEmptyChangeWritesNothing(t *testing.T) {
	s := fleet(t)
	term := campaign(t, s, "c1")
	unchanged(t, s, func() { must(t, term.Apply(t.Context(), view(t, s), rollout.Change{})) })
}

func TestCampaignWaitsForThePredecessor(t *testing.T) {
	s := fleet(t)
	first := campaign(t, s, "c1")
	type result struct {
		term *Term
		err  error
	}
	won := make(chan result, 1)
	other := again(t, s)
	go func() {
		term, err := other.Campaign(t.Context(), "c2", 0)
		won <- result{term, err}
	}()
	// Two tries of the second have failed when it has looked twice.
	eventually(t, "the second has a lease", func() bool {
		l, err := raw(t, s).Leases(t.Context())
		return err == nil && len(l.Leases) >= 2
	})
	select {
	case r := <-won:
		t.Fatalf("c2 was elected beside c1: %+v", r)
	default:
	}
	if id, err := s.Leader(t.Context()); err != nil || id != "c1" {
		t.Errorf("leader %q, %v", id, err)
	}
	must(t, first.Resign(t.Context()))
	r := <-won
	must(t, r.err)
	if id, err := s.Leader(t.Context()); err != nil || id != "c2" {
		t.Errorf("leader %q, %v", id, err)
	}
	must(t, r.term.Resign(t.Context()))
}

func TestCampaignEndsWithItsContext(t *testing.T) {
	s := fleet(t)
	campaign(t, s, "c1")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Campaign(ctx, "c2", 0)
		done <- err
	}()
	cancel()
	wantErr(t, <-done, context.Canceled)
}

// A write whose answer was lost may be carried out late. It must not undo what
// the same controller did since: here it would bring an ended rollout back.
func TestLateWriteOfTheSameTermIsVoid(t *testing.T) {
	s := fleet(t)
	term := campaign(t, s, "c1")
	r := rollout.Rollout{Intent: rollout.Intent{ID: "r"}, Phase: rollout.PhasePreparing}
	must(t, term.Apply(t.Context(), view(t, s), rollout.Change{Rollouts: []rollout.Rollout{r}}))
	v := view(t, s)
	late := rollout.Change{Rollouts: []rollout.Rollout{r}}
	r.Phase = rollout.PhaseAborted
	must(t, term.Apply(t.Context(), v, rollout.Change{Rollouts: []rollout.Rollout{r}}))
	unchanged(t, s, func() {
		wantErr(t, term.Apply(t.Context(), v, late), ErrStale, "this controller wrote")
	})
	if v := view(t, s); len(v.Rollouts) != 0 {
		t.Errorf("rollouts %+v", v.Rollouts)
	}
}

// An override names who was late. Whoever came, or changed its mind, since
// those were listed stops it.
func TestI2_OverrideStopsOnWhatItDoesNotName(t *testing.T) {
	s := fleet(t)
	ready(t, s, "main", "a", "n1")
	m := ready(t, s, "main", "b", "n1")
	term := campaign(t, s, "c1")
	override := rollout.Change{
		Groups:  []rollout.Assignment{{Group: "main", Epoch: 1, Nonce: "n1", Override: &rollout.Override{Instances: []string{"c"}}}},
		Settled: []string{"main"},
	}
	v := view(t, s)
	must(t, m.Put(t.Context(), rollout.Ready{}))
	unchanged(t, s, func() {
		wantErr(t, term.Apply(t.Context(), v, override), ErrStale)
	})
	v = view(t, s)
	ready(t, s, "other", "d", "n9")
	must(t, m.Leave(t.Context())) // one that is gone needs no name
	must(t, term.Apply(t.Context(), v, override))
}
