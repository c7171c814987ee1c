//go:build integration

package integration

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"routerd.dev/integration/harness"
)

const (
	instanceLease   = 5 * time.Second
	controllerLease = 10 * time.Second // store.DefaultTTL
	// detection is the most time until who is affected says so, recovery until
	// the fleet is one again after the fault's end: what the product promises.
	detection = 15 * time.Second
	recovery  = 15 * time.Second
)

// faulted is the world of crashes and of broken networks.
var faulted = harness.WorldOptions{Args: "--lease-ttl 5s --join-timeout 2s"}

// crashScenarios end, pause and restart what a fleet consists of.
func crashScenarios() []harness.Scenario {
	var all []harness.Scenario
	add := func(name string, short bool, run func(t *testing.T, w *harness.World)) {
		all = append(all, harness.Scenario{Name: name, Bound: recovery, Short: short, World: faulted, Run: run})
	}
	add("controller killed", false, controllerKilled)
	add("controller paused", true, controllerPaused)
	add("controller restarted", false, controllerRestarted)
	add("instance killed", true, instanceAway(crashing))
	add("instance paused", false, instanceAway(freezing))
	add("instance restarted", false, instanceRestarted)
	add("etcd member killed", false, memberAway(killing))
	add("etcd member paused", true, memberAway(pausing))
	add("etcd member restarted", false, memberAway(stopping))
	add("etcd majority killed", true, majorityAway(killing))
	add("etcd majority paused", false, majorityAway(pausing))
	add("etcd majority restarted", false, majorityAway(stopping))
	add("everything killed", true, everythingAway(killing, 0))
	add("everything paused", false, everythingAway(pausing, 2*instanceLease))
	add("everything restarted", false, everythingAway(stopping, 0))
	// The most that a fleet of these tests is.
	for _, s := range []harness.Scenario{
		{Name: "controller killed", Run: controllerKilled},
		{Name: "etcd majority killed", Run: majorityAway(killing)},
		{Name: "group cut both ways", Run: groupCut(harness.CutBoth)},
		{Name: "everything killed", Run: everythingAway(killing, 0)},
	} {
		s.Name, s.Bound, s.World = "nine instances: "+s.Name, recovery, nine
		all = append(all, s)
	}
	return all
}

var nine = harness.WorldOptions{Groups: "main main main main edge edge edge canary canary", Controllers: 3, Args: faulted.Args}

// An away is a way of taking a node away, and how it comes back.
type away struct {
	take, bring func(t testing.TB, node string)
}

func killing(w *harness.World) away  { return away{w.Kill, w.Start} }
func stopping(w *harness.World) away { return away{w.Stop, w.Start} }
func pausing(w *harness.World) away  { return away{w.Pause, w.Resume} }

// These two are of instances: what is asked of them meanwhile is excused, and they
// are waited for.
func crashing(w *harness.World) away {
	return away{w.Crash, func(t testing.TB, node string) { w.Revive(t, node) }}
}
func freezing(w *harness.World) away { return away{w.Freeze, w.Thaw} }

// prelude publishes, so that no instance is killed twice while it compiles one
// digest, which would put it under quarantine; it returns what each one serves.
func prelude(t *testing.T, w *harness.World) map[string]int64 {
	t.Helper()
	goesThrough(t, w, time.Minute)
	w.UntilConverged(t, time.Minute)
	return epochsOf(t, w)
}

func epochsOf(t *testing.T, w *harness.World) map[string]int64 {
	t.Helper()
	out := map[string]int64{}
	for _, i := range w.Instances {
		out[i.Instance] = w.Epoch(t, i.Instance)
	}
	return out
}

// goesThrough publishes, which must be done in time.
func goesThrough(t *testing.T, w *harness.World, within time.Duration) {
	t.Helper()
	start := time.Now()
	if err := w.Publish("--wait", "--timeout", within.String()); err != nil {
		t.Errorf("publish within %v: %v", within, err) // the fault is to be ended yet
		return
	}
	took := time.Since(start)
	t.Logf("a publish went through after %v", took.Round(time.Millisecond))
	if took > within {
		t.Errorf("a publish took %v, the bound is %v", took, within)
	}
}

// holdsBack publishes while instances cannot say that they are ready. As long
// as one of them is registered nothing may be committed, and who asked is told
// on whom it waits.
func holdsBack(t *testing.T, w *harness.World, was map[string]int64, names ...string) {
	t.Helper()
	err := w.Publish("--wait", "--timeout", "2s")
	if err == nil {
		st, err := w.Status()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range st.Instances {
			if slices.Contains(names, i.Instance) {
				t.Errorf("I2: a publish went through while %s is registered and cannot say that it is ready", i.Instance)
			}
		}
		t.Log("the machine is slow: the lease ended before the publish was given up")
		return
	}
	if !slices.ContainsFunc(names, func(n string) bool { return strings.Contains(err.Error(), n) }) {
		t.Errorf("the publish waited for one of %v, but says: %v", names, err)
	}
	unchanged(t, w, was, names...)
}

// unchanged fails when an instance that answers serves another epoch than
// before; those not asked are left out.
func unchanged(t *testing.T, w *harness.World, was map[string]int64, but ...string) {
	t.Helper()
	for _, i := range w.Instances {
		if slices.Contains(but, i.Instance) {
			continue
		}
		if e := w.Epoch(t, i.Instance); e != was[i.Instance] {
			t.Errorf("%s serves epoch %d, and nothing was to be committed since %d", i.Instance, e, was[i.Instance])
		}
	}
}

// untilAnother waits until another controller than old is elected.
func untilAnother(t *testing.T, w *harness.World, old string, within time.Duration) {
	t.Helper()
	start := time.Now()
	harness.Until(t, within, "another controller is elected", func() error {
		st, err := w.Status()
		if err == nil && (st.Controller == "" || st.Controller == old) {
			err = fmt.Errorf("it is %q", st.Controller)
		}
		return err
	})
	t.Logf("another controller was elected after %v", time.Since(start).Round(time.Millisecond))
}

// termsOf counts how often an instance was elected.
func termsOf(w *harness.World, name string) int {
	return strings.Count(w.Log(name), `"msg":"elected"`)
}

// wroteNothing waits until a controller's log tells the end of its n-th term,
// and fails when it wrote anything between that and its next one (I4).
func wroteNothing(t *testing.T, w *harness.World, name string, n int) {
	t.Helper()
	harness.Until(t, recovery, name+" knows that its term ended", func() error {
		over, err := afterTerm(w.Log(name), n)
		if err != nil {
			t.Fatalf("I4: %s: %v", name, err)
		}
		if !over {
			return errors.New("its log does not say so")
		}
		return nil
	})
}

// afterTerm looks in a log for the end of a controller's n-th term, and for what
// it wrote between that and its next one.
func afterTerm(log string, n int) (over bool, err error) {
	term := 0
	for line := range strings.Lines(log) {
		says := func(msgs ...string) bool {
			return slices.ContainsFunc(msgs, func(m string) bool { return strings.Contains(line, `"msg":"`+m+`"`) })
		}
		switch {
		case says("elected"):
			term++
		case term == n && says("deposed", "term ended: its lease is gone"):
			over = true
		case over && term == n && says("committed", "asked to prepare", "withdrew prepares", "group made", "rollout"):
			return over, fmt.Errorf("it wrote after its term: %s", line)
		}
	}
	return over, nil
}

// The next one is elected when the lease of the killed one ends; it takes up
// what was under way.
func controllerKilled(t *testing.T, w *harness.World) {
	prelude(t, w)
	c := w.Controller(t).Instance
	if err := w.Publish(); err != nil { // so that it dies with something in hand
		t.Fatal(err)
	}
	w.Crash(t, c)
	untilAnother(t, w, c, controllerLease+detection)
	goesThrough(t, w, recovery)
	w.Revive(t, c)
}

// What a controller does when it wakes after its term, it does as nobody.
func controllerPaused(t *testing.T, w *harness.World) {
	prelude(t, w)
	c := w.Controller(t).Instance
	n := termsOf(w, c)
	if err := w.Publish(); err != nil {
		t.Fatal(err)
	}
	w.Freeze(t, c)
	untilAnother(t, w, c, controllerLease+detection)
	goesThrough(t, w, recovery)
	w.Thaw(t, c)
	wroteNothing(t, w, c, n)
}

// Who ends in order gives its term back: the next one does not wait.
func controllerRestarted(t *testing.T, w *harness.World) {
	prelude(t, w)
	c := w.Controller(t).Instance
	w.Down(c)
	w.Stop(t, c)
	untilAnother(t, w, c, controllerLease-time.Second)
	goesThrough(t, w, recovery)
	w.Revive(t, c)
}

// follower is an instance that does not stand for election.
func follower(t *testing.T, w *harness.World) string {
	t.Helper()
	return w.Other(t, w.Controller(t)).Instance
}

// Until its lease ends it counts; then it is waited for no more.
func instanceAway(how func(w *harness.World) away) func(t *testing.T, w *harness.World) {
	return func(t *testing.T, w *harness.World) {
		was := prelude(t, w)
		i, a := follower(t, w), how(w)
		a.take(t, i)
		holdsBack(t, w, was, i)
		goesThrough(t, w, instanceLease+detection)
		a.bring(t, i)
	}
}

// Who ends in order gives its lease back: nobody waits for it.
func instanceRestarted(t *testing.T, w *harness.World) {
	prelude(t, w)
	i := follower(t, w)
	w.Down(i)
	w.Stop(t, i)
	goesThrough(t, w, instanceLease-time.Second)
	w.Revive(t, i)
}

// memberAway takes etcd's leader away: publishes go on.
func memberAway(how func(w *harness.World) away) func(t *testing.T, w *harness.World) {
	return func(t *testing.T, w *harness.World) {
		prelude(t, w)
		m, a := w.Leader(t), how(w)
		a.take(t, m)
		goesThrough(t, w, detection)
		a.bring(t, m)
		w.AwaitEtcd(t)
	}
}

// majorityAway takes most members away, the leader among them: nothing is
// committed, everybody serves what it did, and says that it may be old.
func majorityAway(how func(w *harness.World) away) func(t *testing.T, w *harness.World) {
	return func(t *testing.T, w *harness.World) {
		was := prelude(t, w)
		a, leader := how(w), w.Leader(t)
		gone := append(slices.DeleteFunc(w.Members(), func(m string) bool { return m == leader })[:len(w.Members())/2], leader)
		for _, m := range gone {
			a.take(t, m)
		}
		start := time.Now()
		if err := w.Publish("--wait", "--timeout", "3s"); err == nil {
			t.Error("a publish went through without a majority of etcd")
		}
		untilAllStale(t, w, start)
		unchanged(t, w, was)
		for _, m := range gone {
			a.bring(t, m)
		}
		w.AwaitEtcd(t)
	}
}

// untilAllStale waits until every instance says that what it knows may be old.
func untilAllStale(t *testing.T, w *harness.World, since time.Time) {
	t.Helper()
	for _, i := range w.Instances {
		w.UntilStale(t, time.Until(since.Add(detection)), i.Instance)
	}
	t.Logf("every instance says that it is stale after %v", time.Since(since).Round(time.Millisecond))
}

// untilRemembered waits until every instance's disk has the epoch that it
// serves: it is written at most a second after the switch, and until then a
// crash together with the loss of etcd takes the instance back by one
// (internal/agent/doc.go).
func untilRemembered(t *testing.T, w *harness.World, serving map[string]int64) {
	t.Helper()
	for _, i := range w.Instances {
		untilOnDisk(t, i, serving[i.Instance])
	}
}

func untilOnDisk(t *testing.T, i *harness.Instance, epoch int64) {
	t.Helper()
	file := filepath.Join(i.StateDir, "*", i.Group, fmt.Sprintf("good-%020d", epoch))
	harness.Until(t, detection, i.Instance+" remembers what it serves", func() error {
		found, err := filepath.Glob(file)
		if err == nil && len(found) != 1 {
			err = fmt.Errorf("%s: %d files", file, len(found))
		}
		return err
	})
}

// everythingAway ends all of etcd and all instances, and starts the instances
// first: they serve from their own disks what they did before (I5).
func everythingAway(how func(w *harness.World) away, lasts time.Duration) func(t *testing.T, w *harness.World) {
	return func(t *testing.T, w *harness.World) {
		was := prelude(t, w)
		untilRemembered(t, w, was)
		a := how(w)
		for _, i := range w.Instances {
			w.Down(i.Instance)
			a.take(t, i.Instance)
		}
		for _, m := range w.Members() {
			a.take(t, m)
		}
		<-time.After(lasts) // how long the fault is
		start := time.Now()
		for _, i := range w.Instances {
			a.bring(t, i.Instance)
		}
		for _, i := range w.Instances {
			w.UntilServes(t, i.Instance)
			w.Back(i.Instance)
		}
		t.Logf("every instance serves from disk after %v", time.Since(start).Round(time.Millisecond))
		unchanged(t, w, was)
		for _, m := range w.Members() {
			a.bring(t, m)
		}
		w.AwaitEtcd(t)
	}
}
