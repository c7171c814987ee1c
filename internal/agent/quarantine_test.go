package agent

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// What counts against a digest is evidence that points at it, and it counts once.
func TestOnlyEvidenceCounts(t *testing.T) {
	here := BootID()
	if here == "" {
		t.Skip("the kernel does not name its starts")
	}
	served := trial{Build: "v1", Open: true, Machine: here}
	compiled := trial{Build: "v1", Open: true, Compiling: true, Machine: here}
	before := func(tr trial) trial { tr.Machine = "another start"; return tr }
	for name, c := range map[string]struct {
		left trial
		note string
		want int
	}{
		"killed in service":                    {served, "", 0},
		"crashed in service":                   {served, "panic: x", 1},
		"killed while it was compiled":         {compiled, "", 1},
		"crashed while it was compiled":        {compiled, "fatal error: x", 1},
		"power loss in service":                {before(served), "", 0},
		"power loss while it was compiled":     {before(compiled), "", 0},
		"power loss, by a build without these": {trial{Build: "v1", Open: true}, "", 0},
		"asked for its stacks":                 {served, "SIGQUIT: quit\n", 0},
		"a watchdog's signal":                  {served, "SIGABRT: abort\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			d := testDisk(t)
			digest := ref(1).Digest
			if err := writeSealed(d.trialFile(digest), c.left); err != nil {
				t.Fatal(err)
			}
			if c.note != "" {
				if err := os.WriteFile(d.crashFile(), []byte(c.note), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for life := range 2 {
				w := newWriter(d, "v1", d.log)
				w.load()
				if got := w.crashes(digest); got != c.want {
					t.Fatalf("%d crashes in life %d, want %d", got, life, c.want)
				}
				w.try(map[version.Digest]bool{digest: true}) // and it is killed
				w.flush()
			}
			if b, err := os.ReadFile(filepath.Join(filepath.Dir(d.crashFile()), lastCrash)); string(b) != c.note {
				t.Errorf("the note is kept as %q (%v)", b, err)
			}
		})
	}
}

// The runtime writes the note itself, whatever kills the process. This test runs
// itself as that process.
func TestTheDyingProcessLeavesANote(t *testing.T) {
	const root, how = "AGENT_TEST_DIES_IN", "AGENT_TEST_DIES_OF"
	if dir := os.Getenv(root); dir != "" {
		w := newWriter(&disk{root: dir, group: "g", log: testDisk(t).log}, "v1", testDisk(t).log)
		w.note = func(f *os.File) error { return debug.SetCrashOutput(f, debug.CrashOptions{}) }
		w.load()
		<-w.try(map[version.Digest]bool{})
		done := make(chan bool)
		go func() {
			defer close(done)
			if os.Getenv(how) == "overflow" {
				debug.SetMaxStack(1 << 20)
				t.Log(deeper(1))
				return
			}
			panic("of a test")
		}()
		<-done
		t.Fatal("it lives")
	}
	for _, why := range []string{"panic", "overflow"} {
		dir, err := os.MkdirTemp("", "agent-dies-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		cmd := exec.Command(os.Args[0], "-test.run", "^TestTheDyingProcessLeavesANote$")
		cmd.Env = append(os.Environ(), "TMPDIR="+dir, root+"="+dir, how+"="+why)
		out, err := cmd.CombinedOutput()
		d := &disk{root: dir, group: "g"}
		if err == nil || !d.crashed() {
			t.Errorf("%s: no note (%v):\n%s", why, err, out)
		}
	}
}

// deeper ends long after the stack does.
func deeper(n int) int {
	if n == 1<<40 {
		return n
	}
	return deeper(n+1) + n
}

// An instance with nothing but what crashed it says so, takes what heals it, and
// serves it all the same when it has waited.
func TestTheLastResort(t *testing.T) {
	now := time.Unix(1000, 0)
	start := func() *core {
		c := newCore("me", "g")
		c.quarantined[ref(1).Digest] = true
		c.notYet[ref(1).Digest] = now.Add(time.Second)
		c.saw(record{at: 1, fleet: "f", assignment: first()}, now)
		return c
	}
	t.Run("after a while", func(t *testing.T) {
		c := start()
		p := c.plan(now)
		if len(p.build) > 0 || p.wake != now.Add(time.Second) {
			t.Fatalf("builds %+v, wakes %v", p.build, p.wake)
		}
		if why := c.behind(now); !strings.Contains(why, "quarantined") {
			t.Errorf("says %q", why)
		}
		wantLacks(t, c, now, "n1", true, ref(1).Digest)
		now := now.Add(time.Second)
		if p := c.plan(now); len(p.build) != 1 || p.build[0].Ref != ref(1) {
			t.Fatalf("builds %+v", p.build)
		}
		c.built(ref(1).Digest)
		wantReady(t, c, now, "n1", false)
		c.admitted = true
		if p := c.plan(now); p.swap == nil || p.swap.fallback {
			t.Fatalf("serves %+v", p.swap)
		}
	})
	t.Run("another revision", func(t *testing.T) {
		c := start()
		next := &rollout.Prepare{Group: "g", Nonce: "n2", Set: []version.Ref{ref(2), ref(1)}}
		c.saw(record{at: 2, fleet: "f", assignment: first(), prepare: next}, now)
		p := c.plan(now)
		if len(p.build) != 1 || p.build[0].Ref != ref(2) {
			t.Fatalf("builds %+v", p.build)
		}
		c.built(ref(2).Digest)
		wantLacks(t, c, now, "n2", true, ref(1).Digest)
		c.saw(record{at: 3, fleet: "f", assignment: second()}, now)
		wantReady(t, c, now, "n2", false)
		c.admitted = true
		if p := c.plan(now.Add(time.Second)); p.swap == nil || p.swap.stable != ref(2) || len(p.build) > 0 {
			t.Fatalf("serves %+v, builds %+v", p.swap, p.build)
		}
	})
	t.Run("without etcd", func(t *testing.T) {
		c := newCore("me", "g")
		c.remember(memory{Fleet: "f", Good: []rollout.Assignment{*first()}}, []version.Digest{ref(1).Digest})
		c.outOfReach(false)
		if p := c.plan(now); len(p.build) != 1 {
			t.Fatalf("builds %+v", p.build)
		}
		c.built(ref(1).Digest)
		if p := c.plan(now); p.swap == nil {
			t.Fatal("serves nothing")
		}
	})
	t.Run("not while another can serve", func(t *testing.T) {
		c := newCore("me", "g")
		c.quarantined[ref(2).Digest] = true
		a := second()
		a.Back = []version.Ref{ref(1)}
		c.saw(record{at: 1, fleet: "f", assignment: a}, now)
		if p := c.plan(now); len(p.build) != 1 || p.build[0].Ref != ref(1) {
			t.Fatalf("builds %+v", p.build)
		}
	})
}

func TestLastResortWaitsLonger(t *testing.T) {
	for crashes, want := range map[int]time.Duration{0: time.Second, 2: time.Second, 3: 2 * time.Second, 7: 32 * time.Second, 8: time.Minute, 1 << 40: time.Minute} {
		if got := lastResortPause(crashes); got != want {
			t.Errorf("after %d crashes %v, want %v", crashes, got, want)
		}
	}
}

func crashedBefore(t *testing.T, o Options, d version.Digest, times int) {
	t.Helper()
	if err := writeSealed((&disk{root: o.StateDir, group: "g"}).trialFile(d), trial{Build: "test", Crashes: times}); err != nil {
		t.Fatal(err)
	}
}

// A fleet whose only revision is under quarantine everywhere serves it after a
// while, and that it runs well ends the quarantine.
func TestTheOnlyRevisionIsServedAllTheSame(t *testing.T) {
	t.Parallel()
	f := initFleet(t, shared)
	one := f.publish(table("one"))
	f.commit(1, "n1", one)
	o := f.options("a")
	o.StateDir, o.Healthy = t.TempDir(), 50*time.Millisecond
	crashedBefore(t, o, one.Digest, 2)
	m := f.start(o)
	f.awaitReady("a", "evicted n1 "+one.Digest.String())
	if m.body() != "status 503" || m.Ready().Ready {
		t.Errorf("serves %q before it waited", m.body())
	}
	m.awaitEpoch(1)
	f.awaitReady("a", "n1")
	m.await("free of quarantine", func(s Status) bool { return len(s.Quarantined) == 0 })
	m.stop()
	m = f.start(o)
	if s := m.awaitEpoch(1); len(s.Quarantined) > 0 {
		t.Errorf("the disk still says that it is quarantined: %+v", s)
	}
}

// A publish heals a fleet that serves nothing.
func TestAnotherRevisionHealsWhoServesNothing(t *testing.T) {
	t.Parallel()
	f := initFleet(t, shared)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(1, "n1", one)
	o := f.options("a")
	o.StateDir = t.TempDir()
	crashedBefore(t, o, one.Digest, 20)
	m := f.start(o)
	f.awaitReady("a", "evicted n1 "+one.Digest.String())
	f.prepare("n2", "a", two, one)
	f.awaitReady("a", "evicted n2 "+one.Digest.String())
	f.commit(2, "n2", two, one)
	m.awaitEpoch(2)
	f.awaitReady("a", "n2")
	if m.body() != "two" {
		t.Errorf("serves %q", m.body())
	}
}

// An operator's forgiveness brings the epoch's own revision back at once.
func TestForgive(t *testing.T) {
	t.Parallel()
	f := initFleet(t, shared)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(1, "n1", two, one)
	o := f.options("a")
	o.StateDir = t.TempDir()
	crashedBefore(t, o, two.Digest, 2)
	m := f.start(o)
	if s := m.awaitEpoch(1); !s.Serving.Fallback || m.body() != "one" {
		t.Fatalf("serves %q: %+v", m.body(), s.Serving)
	}
	r, err := m.Forgive(t.Context())
	if err != nil || len(r.Status.Quarantined) > 0 {
		t.Fatalf("forgive (%v): %+v", err, r.Status)
	}
	m.await("serving its own", func(s Status) bool { return s.Serving.Digest == two.Digest && !s.Serving.Fallback })
	if m.body() != "two" {
		t.Errorf("serves %q", m.body())
	}
	f.awaitReady("a", "n1")
	eventually(t, func() string {
		var tr trial
		if err := readSealed((&disk{root: o.StateDir, group: "g"}).trialFile(two.Digest), &tr); err != nil || tr.Crashes > 0 {
			return fmt.Sprintf("on disk: %+v, %v", tr, err)
		}
		return ""
	})
	if _, err := m.Forgive(t.Context()); err != nil {
		t.Errorf("twice: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Forgive(ended); err == nil {
		t.Error("an order that was taken back is obeyed")
	}
}

// Whoever tries what is quarantined and is told to end is none that crashed.
func TestStoppedWhileTryingTheLastResort(t *testing.T) {
	d := testDisk(t)
	digest := ref(1).Digest
	if err := writeSealed(d.trialFile(digest), trial{Build: "v1", Crashes: 2}); err != nil {
		t.Fatal(err)
	}
	w := newWriter(d, "v1", d.log)
	w.load()
	w.try(map[version.Digest]bool{digest: true}, digest)
	w.flush()
	w.stop()
	w.flush()
	w = newWriter(d, "v1", d.log)
	w.load()
	if got := w.crashes(digest); got != 2 {
		t.Errorf("%d crashes", got)
	}
}

// New instances join although a revision that is kept for the way back is lost.
func TestJoinsWithoutTheWayBack(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*fleet, string){
		"gone":    func(f *fleet, key string) { f.delete(key) },
		"garbled": func(f *fleet, key string) { f.put(key, []byte("x")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := initFleet(t, shared)
			one, two, three := f.publish(table("one")), f.publish(table("two")), f.publish(table("three"))
			lose(f, "manifests/"+one.Digest.String())
			f.commit(1, "n1", two, one)
			m := f.join("a")
			m.awaitEpoch(1)
			f.awaitReady("a", "lacks n1 "+one.Digest.String())
			if !m.Ready().Ready || m.body() != "two" {
				t.Errorf("serves %q, %+v", m.body(), m.Ready())
			}
			f.prepare("n2", "", three, two, one)
			f.awaitReady("a", "lacks n2 "+one.Digest.String())
		})
	}
}

// The revision in force is lost everywhere, and the group goes back to one that is not.
func TestGoesBackFromWhatIsLost(t *testing.T) {
	t.Parallel()
	f := initFleet(t, shared)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.delete("manifests/" + two.Digest.String())
	f.commit(1, "n1", two, one)
	m := f.join("a")
	f.awaitReady("a", "evicted n1 "+two.Digest.String())
	if why := m.Ready().Why; !strings.Contains(why, "recover --from") {
		t.Errorf("not ready, and says %q", why)
	}
	a := f.commit(2, "n1", one, two)
	m.awaitEpoch(a.Epoch)
	f.awaitReady("a", "lacks n1 "+two.Digest.String())
}

// A record that cannot be read tells nothing: a start serves what the disk has, as
// when etcd is away, says why, and follows again when it can be read.
func TestUnreadableRecordsAtAStart(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"format", "groups/g"} {
		t.Run(strings.ReplaceAll(key, "/", " "), func(t *testing.T) {
			t.Parallel()
			f := initFleet(t, shared)
			one, two := f.publish(table("one")), f.publish(table("two"))
			f.commit(1, "n1", one)
			o := f.options("a")
			o.StateDir = t.TempDir()
			m := f.start(o)
			m.awaitEpoch(1)
			eventually(t, func() string {
				if got := (&disk{root: o.StateDir, group: "g", log: m.log}).load(); len(got.Good) == 0 {
					return "nothing is remembered"
				}
				return ""
			})
			m.stop()
			was := f.get(key)
			f.put(key, []byte("\xff"))
			m = f.start(o)
			s := m.await("saying "+key, func(s Status) bool {
				return s.Serving != nil && s.Serving.Epoch == 1 && strings.Contains(s.Stale, key)
			})
			if s.Serving.Source != SourceDisk {
				t.Errorf("serving %+v, stale %q", s.Serving, s.Stale)
			}
			f.put(key, []byte(was))
			f.commit(2, "n2", two, one)
			m.awaitEpoch(2)
			m.await("fresh", func(s Status) bool { return s.Stale == "" })

			f.put(key, []byte("\xff"))
			n := f.join("b") // without a disk
			n.await("telling why", func(Status) bool { r := n.Ready(); return !r.Ready && strings.Contains(r.Why, key) })
		})
	}
}

// What a newer build left is not called damaged.
func TestStateOfANewerLayout(t *testing.T) {
	path := filepath.Join(t.TempDir(), seenFile)
	for head, want := range map[string]string{
		"routerd-state/2 abc": "of layout 2, this build knows 1",
		"routerd-state/1 abc": "checksum",
		"routerd-state/2":     "checksum",
		"else":                "checksum",
	} {
		if err := os.WriteFile(path, []byte(head+"\n{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := readSealed(path, new(memory)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", head, err)
		}
	}
}
