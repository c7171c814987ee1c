package rollout

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
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

// back is a rollout of revision 4 over main, which came from 3: 3 was never
// baked, 2 and 1 were.
func back(t *testing.T, edit func(*View, *Rollout)) *View {
	t.Helper()
	v := sharing(t, PlanStep{Pause: &PauseStep{Approval: true}}, func(v *View, r *Rollout) {
		a := v.Groups["main"]
		a.Stable, a.Candidate = ref(4), nil
		a.Back, a.Set = []version.Ref{ref(3), ref(2), ref(1)}, []version.Ref{ref(4), ref(3), ref(2), ref(1)}
		v.Groups["main"] = a
		r.To, r.Target, r.PrevTarget, r.Origin = ref(4), ref(4), ref(3), map[string]version.Ref{"main": ref(3)}
		v.Fleet.Target = ref(4)
		v.Baked = map[version.Digest]bool{ref(1).Digest: true, ref(2).Digest: true}
		r.Cursor.Step = 2
		edit(v, r)
	})
	return v
}

// TestWhereItGoesBack: by itself to what was baked last, inside the set; by an
// operator's word to where it came from. The target follows.
func TestWhereItGoesBack(t *testing.T) {
	quarantined := func(v *View) {
		rep := v.Reports["b"]
		rep.Quarantined = []version.Digest{ref(4).Digest}
		v.Reports["b"] = rep
	}
	for _, e := range []struct {
		name  string
		edit  func(*View, *Rollout)
		to    int64
		says  string
		abort bool
	}{
		{"the last baked", func(*View, *Rollout) {}, 2, "; back to revision 2: revision 3 was never baked", false},
		{"it came from a baked one", func(v *View, _ *Rollout) { v.Baked[ref(3).Digest] = true }, 3, "", false},
		{"none was baked", func(v *View, _ *Rollout) { v.Baked = nil }, 3, "", false},
		{"the last baked is condemned", func(v *View, _ *Rollout) {
			v.Condemned = map[version.Digest]Condemned{ref(2).Digest: {}}
		}, 1, "; back to revision 1: revision 3 was never baked", false},
		{"what was baked is not held", func(v *View, _ *Rollout) {
			a := v.Groups["main"]
			a.Set = []version.Ref{ref(4), ref(3)}
			v.Groups["main"] = a
		}, 3, "", false},
		{"it came from a condemned one", func(v *View, _ *Rollout) {
			v.Baked[ref(3).Digest] = true
			v.Condemned = map[version.Digest]Condemned{ref(3).Digest: {}}
		}, 2, "; back to revision 2: revision 3 is condemned", false},
		{"a candidate only", func(v *View, _ *Rollout) {
			a := v.Groups["main"]
			a.Stable, a.Candidate, a.Back = ref(3), &Candidate{Ref: ref(4), Permyriad: 100}, []version.Ref{ref(2), ref(1)}
			v.Groups["main"] = a
		}, 3, "", false},
		{"a candidate that was baked once", func(v *View, r *Rollout) {
			a := v.Groups["main"]
			a.Stable, a.Candidate, a.Back = ref(3), &Candidate{Ref: ref(2), Permyriad: 100}, []version.Ref{ref(2), ref(1)}
			v.Groups["main"] = a
			r.To, r.Target, v.Fleet.Target = ref(2), ref(2), ref(2)
			rep := v.Reports["b"]
			rep.Quarantined = []version.Digest{ref(2).Digest}
			v.Reports["b"] = rep
		}, 3, "", false},
		{"a candidate only, and what its group came from is condemned", func(v *View, r *Rollout) {
			a := v.Groups["main"]
			a.Stable, a.Candidate, a.Back = ref(3), &Candidate{Ref: ref(4), Permyriad: 100}, []version.Ref{ref(2), ref(1)}
			v.Groups["main"], r.Origin = a, map[string]version.Ref{"main": ref(2)}
			r.PrevTarget = ref(2)
			v.Condemned = map[version.Digest]Condemned{ref(2).Digest: {}}
		}, 1, "; back to revision 1: revision 2 is condemned", false},
		{"an operator says so", func(*View, *Rollout) {}, 3, "", true},
	} {
		v := back(t, e.edit)
		if e.abort {
			v.Intents = []Intent{{ID: "r2", Kind: IntentAbort, By: "op"}}
		} else if v.Rollouts[0].To == ref(4) {
			quarantined(v)
		}
		c, _ := Step(v, epoch0)
		if len(c.Groups) != 1 || c.Groups[0].Stable != ref(e.to) || c.Groups[0].Candidate != nil {
			t.Errorf("%s: %s", e.name, dump(c))
			continue
		}
		r := c.Rollouts[0]
		if r.Return.To["main"] != e.to || !strings.HasSuffix(r.Return.Why, e.says) || strings.Contains(r.Return.Why, "; back ") != (e.says != "") {
			t.Errorf("%s: %+v", e.name, r.Return)
		}
		if c.Fleet == nil || c.Fleet.Target != ref(e.to) {
			t.Errorf("%s: the target is %+v", e.name, c.Fleet)
		}
		if why := "back to revision " + fmt.Sprint(e.to); !slices.ContainsFunc(c.Audit, func(a AuditEntry) bool { return a.What == "commit" && a.Why == why }) {
			t.Errorf("%s: the audit does not say %q: %+v", e.name, why, c.Audit)
		}
	}
}

// TestReturnsLeadToWhatWasBaked: whatever was baked, condemned and is held, a way
// back that nobody decided leads to a baked revision if the set has one that may be
// served; an operator's leads to where it came from, if that may be.
func TestReturnsLeadToWhatWasBaked(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		some := func(what string) map[version.Digest]bool {
			out := make(map[version.Digest]bool)
			for n := range int64(3) {
				if rapid.Bool().Draw(rt, fmt.Sprint(what, n+1)) {
					out[ref(n+1).Digest] = true
				}
			}
			return out
		}
		baked, condemned, gone := some("baked"), some("condemned"), some("gone")
		candidate, abort := rapid.Bool().Draw(rt, "candidate only"), rapid.Bool().Draw(rt, "abort")
		origin := ref(rapid.Int64Range(2, 3).Draw(rt, "origin")) // 2: what 3 was trying was superseded
		var a Assignment
		v := back(t, func(v *View, r *Rollout) {
			a = v.Groups["main"]
			if candidate {
				a.Stable, a.Candidate, a.Back = ref(3), &Candidate{Ref: ref(4), Permyriad: 100}, a.Back[1:]
			}
			a.Set = slices.DeleteFunc(a.Set, func(x version.Ref) bool { return gone[x.Digest] && x != a.Stable })
			v.Groups["main"], v.Baked, v.Condemned = a, baked, make(map[version.Digest]Condemned)
			for x := range condemned {
				v.Condemned[x] = Condemned{Digest: x}
			}
			r.Origin = map[string]version.Ref{"main": origin}
			rep := v.Reports["b"]
			rep.Quarantined = []version.Digest{ref(4).Digest}
			if v.Reports["b"] = rep; abort {
				v.Intents = []Intent{{ID: "r2", Kind: IntentAbort, By: "op"}}
			}
		})
		fit := func(x version.Ref) bool { return x == a.Stable || has(a.Set, x.Digest) && !condemned[x.Digest] }
		c, _ := Step(v, epoch0)
		if len(c.Groups) == 0 {
			if candidate || fit(origin) {
				rt.Fatalf("it does not go back: %s", dump(c))
			}
			return
		}
		to := c.Groups[0].Stable
		switch best := slices.ContainsFunc(a.Back, func(b version.Ref) bool { return baked[b.Digest] && fit(b) }); {
		case to == ref(4) || !fit(to):
			rt.Fatalf("it goes to revision %d", to.Number)
		case candidate && a.Stable == origin && to != origin:
			rt.Fatalf("only a candidate served, and it goes to revision %d", to.Number)
		case !abort && a.Stable != origin && best && !baked[to.Digest]:
			rt.Fatalf("by itself it goes to revision %d, which was never baked", to.Number)
		case (abort || baked[origin.Digest]) && fit(origin) && to != origin:
			rt.Fatalf("it goes to revision %d, and came from %d", to.Number, origin.Number)
		}
	})
}

// TestAdoptedGoBack: a group that was given the revision when it came goes where
// the others go.
func TestAdoptedGoBack(t *testing.T) {
	for _, byItself := range []bool{false, true} {
		v := back(t, func(v *View, _ *Rollout) {
			a := v.Groups["main"]
			a.Group, a.Rollout, a.Instant = "edge", "", epoch0
			v.Groups["edge"] = a
		})
		d := newDraft(v, epoch0)
		ms, stuck := d.wayBack(&v.Rollouts[0], byItself)
		want := map[bool]version.Ref{false: ref(3), true: ref(2)}[byItself]
		if len(ms) != 2 || len(stuck) > 0 || ms[0].to != want || ms[1].to != want || ms[1].group != "edge" {
			t.Errorf("by itself %v: %+v, stuck %v", byItself, ms, stuck)
		}
	}
}

// TestRollbackOfAReturn: a rollback that comes while a rollout goes back by itself
// does not go forward again from where that led.
func TestRollbackOfAReturn(t *testing.T) {
	for _, over := range []bool{false, true} {
		v := back(t, func(v *View, r *Rollout) {
			r.Phase, r.Deadline = PhaseReturning, epoch0.Add(time.Second)
			r.Return = &Return{Why: "worse", By: controllerName, Decided: epoch0}
			v.Fleet.Target = ref(2)
			if over {
				r.Return.Committed, r.Return.To = epoch0, map[string]int64{"main": 2}
				a := v.Groups["main"]
				a.Stable, a.Back = ref(2), []version.Ref{ref(1)}
				v.Groups["main"] = a
			}
			v.Intents = []Intent{{ID: "r2", Kind: IntentRollback, By: "op"}}
		})
		c, _ := Step(v, epoch0)
		for _, r := range c.Rollouts {
			if g, ok := r.Goals["main"]; ok && g != ref(2) {
				t.Errorf("after its commit %v: %s goes to revision %d", over, r.ID, g.Number)
			}
		}
		for _, a := range c.Groups {
			if a.Stable != ref(2) {
				t.Errorf("after its commit %v: %s", over, dump(c))
			}
		}
	}
}

// TestGoalsText: where groups go is said once if they go to the same.
func TestGoalsText(t *testing.T) {
	a, b, c := move{group: "a", to: ref(1)}, move{group: "b", to: ref(2)}, move{group: "c", to: ref(1)}
	for want, ms := range map[string][]move{
		"revision 1":                          {a, c},
		"revision 1 in a, c; revision 2 in b": {a, b, c},
	} {
		if got := goalsText(ms); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestTargetWhenGroupsPart: it stays what some group serves still, and of several
// revisions that groups go back to it is the newest.
func TestTargetWhenGroupsPart(t *testing.T) {
	for name, e := range map[string]struct {
		edit func(*View, *Rollout)
		want int64
	}{
		"all go to one": {func(*View, *Rollout) {}, 2},
		"one serves it": {func(v *View, _ *Rollout) {
			v.Groups["late"] = Assignment{Group: "late", Epoch: 1, Stable: ref(3), Set: []version.Ref{ref(3)}}
		}, 3},
		"each elsewhere": {func(v *View, r *Rollout) {
			a := v.Groups["main"]
			a.Group, a.Set = "edge", []version.Ref{ref(4), ref(3), ref(1)}
			v.Groups["edge"] = a
			r.Origin["edge"], r.Epochs["edge"] = ref(3), a.Epoch
			r.Plan.Waves[0].Groups = []string{"edge", "main"}
		}, 2},
	} {
		v := back(t, e.edit)
		rep := v.Reports["b"]
		rep.Quarantined = []version.Digest{ref(4).Digest}
		v.Reports["b"] = rep
		c, _ := Step(v, epoch0)
		if c.Fleet == nil || c.Fleet.Target != ref(e.want) {
			t.Errorf("%s: %s", name, dump(c))
		}
	}
}
