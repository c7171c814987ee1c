package rollout

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
	"routerd.dev/internal/version"
)

// A controller reads and writes at different moments, so that anything may
// happen in between.
type ctl struct {
	term int
	view *View
	c    Change
}

// machine is what may happen to a fleet. Each action is one atomic event.
type machine struct {
	w    *world
	ctls []*ctl
	revs int64
	ids  int
}

func newMachine(t *rapid.T) *machine {
	w := newWorld()
	m := &machine{w: w, ctls: []*ctl{{}, {}}, revs: 1}
	for n := range int64(3) {
		w.revisions[n+1] = version.Revision{Number: n + 1, Digest: ref(n + 1).Digest, Parent: n}
		m.revs = n + 1
	}
	if rapid.Bool().Draw(t, "running") {
		w.fleet.Target, w.fleet.Committed = ref(1), ref(1)
		w.served[ref(1).Digest] = true
	}
	for i, g := range []string{"canary", "main", "main"} {
		w.start(fmt.Sprintf("i%d", i), g)
	}
	w.settle()
	return m
}

func (m *machine) actions() map[string]func(*rapid.T) {
	w := m.w
	one := func(t *rapid.T) *inst { return w.fleetOf[rapid.SampledFrom(w.names()).Draw(t, "instance")] }
	up := func(t *rapid.T) *inst {
		i := one(t)
		if !i.up {
			t.Skip("down")
		}
		return i
	}
	intent := func(t *rapid.T, in Intent) {
		m.ids++
		in.ID = fmt.Sprintf("r%d", m.ids)
		switch rapid.IntRange(0, 3).Draw(t, "scope") {
		case 0:
			in.Groups = []string{"main"}
		case 1:
			in.Groups = []string{"canary"}
		}
		if rapid.IntRange(0, 3).Draw(t, "wait") == 0 {
			in.Straggler = StragglerWait
		}
		in.AllowFewer = rapid.IntRange(0, 4).Draw(t, "fewer") == 0
		w.ask(in)
	}
	return map[string]func(*rapid.T){
		"look":  func(t *rapid.T) { w.look(up(t)) },
		"act":   func(t *rapid.T) { w.act(up(t)) },
		"build": func(t *rapid.T) { i := up(t); w.look(i); w.act(i) },
		"read": func(t *rapid.T) {
			c := m.ctls[rapid.IntRange(0, 1).Draw(t, "controller")]
			c.view = w.view()
			before := dump(c.view)
			c.c, _ = Step(c.view, w.now)
			if dump(c.view) != before {
				t.Fatal("Step changed its view")
			}
		},
		"write": func(t *rapid.T) {
			c := m.ctls[rapid.IntRange(0, 1).Draw(t, "controller")]
			if c.view == nil || c.c.IsZero() {
				t.Skip("nothing to write")
			}
			before := w.rev
			if err := w.apply(c.term, c.view, c.c); (err != nil || c.term != w.term) && w.rev != before {
				t.Fatal("I4: a failed or deposed write wrote")
			}
			c.view = nil
		},
		"step": func(*rapid.T) { w.step(func(Change) {}) },
		"elect": func(t *rapid.T) {
			c := m.ctls[rapid.IntRange(0, 1).Draw(t, "controller")]
			w.term++
			c.term, c.view = w.term, nil
		},
		"publish": func(t *rapid.T) {
			m.revs++
			w.publish(m.revs)
			switch rapid.IntRange(0, 5).Draw(t, "fault") {
			case 0:
				w.bad[fmt.Sprintf("i%d/%d", rapid.IntRange(0, 3).Draw(t, "who"), m.revs)] = "does not compile"
			case 1:
				w.poison[fmt.Sprintf("i%d/%d", rapid.IntRange(0, 3).Draw(t, "who"), m.revs)] = true
			}
			intent(t, Intent{Kind: IntentSwitch, To: ref(m.revs)})
		},
		"switch": func(t *rapid.T) {
			intent(t, Intent{Kind: IntentSwitch, To: ref(rapid.Int64Range(1, m.revs).Draw(t, "revision"))})
		},
		"rollback": func(t *rapid.T) { intent(t, Intent{Kind: IntentRollback}) },
		"rollbackTo": func(t *rapid.T) {
			intent(t, Intent{Kind: IntentRollback, To: ref(rapid.Int64Range(1, m.revs).Draw(t, "revision"))})
		},
		"abort": func(t *rapid.T) {
			in := Intent{Kind: IntentAbort}
			if rapid.Bool().Draw(t, "named") && m.ids > 0 {
				in.Rollout = fmt.Sprintf("r%d", rapid.IntRange(1, m.ids).Draw(t, "rollout"))
			}
			intent(t, in)
		},
		"retire":  func(t *rapid.T) { intent(t, Intent{Kind: IntentRetire}) },
		"recover": func(t *rapid.T) { intent(t, Intent{Kind: IntentRecover}) },
		"join": func(t *rapid.T) {
			if len(w.fleetOf) > 4 {
				t.Skip("enough")
			}
			w.start(fmt.Sprintf("i%d", len(w.fleetOf)), rapid.SampledFrom([]string{"main", "canary", "edge"}).Draw(t, "group"))
		},
		"sicken": func(t *rapid.T) {
			i := up(t)
			if set := w.groups[i.group].Set; len(set) > 0 {
				w.sicken(i, rapid.SampledFrom(set).Draw(t, "lost").Number)
			}
		},
		"die":     func(t *rapid.T) { w.die(up(t)) },
		"crash":   func(t *rapid.T) { w.crash(up(t)) },
		"restart": func(t *rapid.T) { i := one(t); w.start(i.name, i.group) },
		"lapse":   func(t *rapid.T) { w.forget(one(t)) },
		"lapseAll": func(t *rapid.T) {
			if rapid.IntRange(0, 3).Draw(t, "rare") > 0 {
				t.Skip("rare")
			}
			for _, n := range w.names() {
				w.forget(w.fleetOf[n])
			}
		},
		"after": func(t *rapid.T) {
			w.now = w.now.Add(rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, time.Minute}).Draw(t, "time"))
		},
		"": func(t *rapid.T) {
			if len(w.broken) > 0 {
				t.Fatalf("broken: %q", w.broken)
			}
		},
	}
}

// TestModel tries random schedules of a fleet and holds I2, I3 and I4, and that
// a group has one rollout at most, an end is final, and a bad end restores the
// target, after each event. Then the faults stop: it must end, with every
// instance serving what its group does.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		t.Repeat(m.actions())
		m.ends(t)
	})
}

// TestModelEtcdWentBack adds restores of etcd from older copies. Instances that
// know more freeze and keep what they serve, nothing is committed over their
// heads, and operators' recoveries bring it to an end.
func TestModelEtcdWentBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		w, saved := m.w, m.w.save()
		acts := m.actions()
		acts["save"] = func(*rapid.T) { saved = w.save() }
		acts["restore"] = func(*rapid.T) { w.restore(saved) }
		t.Repeat(acts)
		for range 3 {
			w.settle()
			w.now = w.now.Add(time.Hour)
			m.ids++
			w.ask(Intent{ID: fmt.Sprintf("r%d", m.ids), Kind: IntentRecover})
		}
		m.ends(t)
		for _, n := range w.names() {
			if w.fleetOf[n].frozen && !w.groups[w.fleetOf[n].group].Stable.IsZero() {
				t.Fatalf("%s is frozen still", n)
			}
		}
	})
}

func (m *machine) ends(t *rapid.T) {
	w := m.w
	w.poison = map[string]bool{}
	for range 4 {
		for _, n := range w.names() {
			if i := w.fleetOf[n]; !i.up {
				w.start(n, i.group)
			}
		}
		w.settle()
		w.now = w.now.Add(time.Hour)
	}
	for _, r := range w.view().Rollouts {
		if r.Straggler != StragglerWait {
			t.Fatalf("rollout %s does not end: %s %s", r.ID, r.Phase, r.Why)
		}
		w.ids(m, IntentAbort, r.ID)
	}
	w.settle()
	if v := w.view(); len(v.Rollouts)+len(v.Prepares)+len(v.Intents) > 0 {
		t.Fatalf("left over: %d rollouts, %d prepares, %d intents", len(v.Rollouts), len(v.Prepares), len(v.Intents))
	}
	for _, n := range w.names() {
		i, a := w.fleetOf[n], w.groups[w.fleetOf[n].group]
		refuses := slices.ContainsFunc(a.Set, func(r version.Ref) bool { return w.bad[fmt.Sprintf("%s/%d", n, r.Number)] != "" })
		cannot := slices.ContainsFunc(a.Set, func(r version.Ref) bool { return w.sick[fmt.Sprintf("%s/%d", n, r.Number)] })
		if i.stable.Digest != a.Stable.Digest && !refuses && !cannot && !i.frozen {
			t.Fatalf("%s serves %d, its group %d", n, i.stable.Number, a.Stable.Number)
		}
	}
	if len(w.broken) > 0 {
		t.Fatalf("broken: %q", w.broken)
	}
}

func (w *world) ids(m *machine, k IntentKind, rollout string) {
	m.ids++
	w.ask(Intent{ID: fmt.Sprintf("r%d", m.ids), Kind: k, Rollout: rollout})
}

func dump(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// TestOrder holds that neither the order in which maps are built nor the way
// records travel through etcd as JSON changes a byte of what is decided.
func TestOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		acts := m.actions()
		delete(acts, "step")
		acts[""] = func(t *rapid.T) {
			v := m.w.view()
			c1, n1 := Step(v, m.w.now)
			c2, n2 := Step(shuffled(t, v), m.w.now)
			if a, b := dump(c1), dump(c2); a != b || !n1.Equal(n2) {
				t.Fatalf("decided differently:\n%s\n%s", a, b)
			}
		}
		t.Repeat(acts)
	})
}

func shuffled(t *rapid.T, v *View) *View {
	var w View
	if err := json.Unmarshal([]byte(dump(v)), &w); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	w.Reports = shuffledMap(r, w.Reports)
	w.Instances = shuffledMap(r, w.Instances)
	w.Groups = shuffledMap(r, w.Groups)
	for g := range w.Ready {
		w.Ready[g] = shuffledMap(r, w.Ready[g])
	}
	return &w
}

func shuffledMap[V any](r *rand.Rand, m map[string]V) map[string]V {
	keys := slices.Sorted(maps.Keys(m))
	r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	out := make(map[string]V, len(m))
	for _, k := range keys {
		out[k] = m[k]
	}
	return out
}
