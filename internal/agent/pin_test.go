package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

func (m *member) pin(to string) PinResult {
	m.t.Helper()
	r, err := m.Pin(m.t.Context(), to, "op", "it hurts")
	if err != nil {
		m.t.Fatal(err)
	}
	return r
}

// ofThree is a fleet with a state directory that served 1, then 2 (holding 1),
// then 3 (holding 2): 1 is on disk only.
func ofThree(t *testing.T, e *etcd) (*fleet, Options, [3]version.Ref) {
	t.Helper()
	f := initFleet(t, e)
	refs := [3]version.Ref{f.publish(table("one")), f.publish(table("two")), f.publish(table("three"))}
	o := f.options("a")
	o.StateDir = t.TempDir()
	return f, o, refs
}

func (f *fleet) commitThree(m *member, refs [3]version.Ref) {
	f.t.Helper()
	f.commit(1, "n1", refs[0])
	m.awaitEpoch(1)
	f.commit(2, "n2", refs[1], refs[0])
	m.awaitEpoch(2)
	f.commit(3, "n3", refs[2], refs[1])
	m.await("holding two", func(s Status) bool { return s.Serving.Epoch == 3 && len(s.Holds) == 2 })
	f.awaitReady("a", "n3")
}

func TestPinServesWhateverIsCommitted(t *testing.T) {
	f, o, refs := ofThree(t, shared)
	m := f.start(o)
	f.commitThree(m, refs)

	r := m.pin("2")
	if s := r.Status; m.body() != "two" || r.Warning != "" || s.Serving.Epoch != 3 || s.Serving.Revision != 2 || s.Pinned != refs[1].Digest || s.Pin.By != "op" || s.Pin.Why != "it hurts" {
		t.Fatalf("serves %q after %+v", m.body(), r)
	}
	if r := m.Ready(); !r.Ready || r.Epoch != 3 || r.Pinned == nil || hasPrefix(r.Why, "PINNED") != "" {
		t.Errorf("readiness %+v", r)
	}
	f.awaitReady("a", "n3")
	eventually(t, func() string {
		if r := f.report("a"); r.Pinned != refs[1].Digest || r.Serving.Revision != 2 || r.Serving.Epoch != 3 {
			return fmt.Sprintf("report %+v", r)
		}
		return ""
	})
	// It prepares, is ready and follows the epochs; the revision stays.
	four := f.publish(table("four"))
	f.prepare("n4", "", four, refs[2])
	f.awaitReady("a", "n4")
	f.commit(4, "n4", four, refs[2])
	f.delete("prepare/g")
	if s := m.awaitEpoch(4); m.body() != "two" || s.Serving.Revision != 2 || s.Pinned != refs[1].Digest {
		t.Errorf("epoch 4 is served by %q: %+v", m.body(), s)
	}
	f.awaitReady("a", "n4")
	for _, s := range m.swapped[len(m.swapped)-2:] {
		if len(s.Held) > 0 {
			t.Errorf("epoch %d: while it is pinned, tokens must not have others served: %d", s.Epoch, len(s.Held))
		}
	}
	res, err := m.Unpin(t.Context())
	if s := res.Status; err != nil || m.body() != "four" || s.Serving.Epoch != 4 || !s.Pinned.IsZero() || s.Pin != nil {
		t.Errorf("unpinned (%v) it serves %q: %+v", err, m.body(), s)
	}
	if got := m.epochs(); !slices.Equal(got, []int64{1, 2, 3, 3, 4, 4}) {
		t.Errorf("epochs %v", got)
	}
	eventually(t, func() string {
		if r := f.report("a"); !r.Pinned.IsZero() {
			return fmt.Sprintf("report %+v", r)
		}
		return ""
	})
	if _, err := m.Unpin(t.Context()); err != nil {
		t.Errorf("unpinned again: %v", err)
	}
}

// TestPinWithoutEtcd: pinned to what is on disk only, started again, unpinned:
// all while etcd is down.
func TestPinWithoutEtcd(t *testing.T) {
	e := ownEtcd(t)
	f, o, refs := ofThree(t, e)
	m := f.start(o)
	f.commitThree(m, refs)
	eventually(t, func() string {
		if found, _ := filepath.Glob(filepath.Join(o.StateDir, "*", "g", "good-*3")); len(found) != 1 {
			return "epoch 3 is not on disk"
		}
		return ""
	})
	e.stop()
	m.pin(refs[0].Digest.String()[:12])
	if s := m.Status(); m.body() != "one" || s.Serving.Epoch != 3 {
		t.Fatalf("serves %q: %+v", m.body(), s)
	}
	m.stop()
	m = f.start(o)
	s := m.awaitEpoch(3)
	if r := m.Ready(); m.body() != "one" || s.Pinned != refs[0].Digest || s.Serving.Source != SourceDisk || !r.Ready || r.Pinned == nil {
		t.Fatalf("after a restart it serves %q: %+v", m.body(), s)
	}
	m.await("holding three", func(s Status) bool { return holdsAll(s, refs[2]) })
	if _, err := m.Unpin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m.body() != "three" {
		t.Errorf("unpinned it serves %q", m.body())
	}
	m.stop()
	m = f.start(o)
	if s := m.awaitEpoch(3); m.body() != "three" || s.Pin != nil {
		t.Errorf("unpinned and started again it serves %q", m.body())
	}
}

func TestPinSurvivesWithEtcd(t *testing.T) {
	f, o, refs := ofThree(t, shared)
	m := f.start(o)
	f.commitThree(m, refs)
	m.pin("1")
	m.stop()
	m = f.start(o)
	if s := m.awaitEpoch(3); m.body() != "one" || s.Pinned != refs[0].Digest {
		t.Errorf("after a restart it serves %q: %+v", m.body(), s)
	}
	f.awaitReady("a", "n3")
	for _, s := range m.swapped {
		if s.Stable.Ref() != refs[0] {
			t.Errorf("before the pin it served %v", s.Stable.Ref())
		}
	}
}

func TestPinNamesWhatThereIs(t *testing.T) {
	f, o, refs := ofThree(t, shared)
	m := f.start(o)
	f.commitThree(m, refs)
	for _, to := range []string{"9", "", "f", "zzzz", refs[0].Digest.String()[:3], "-1"} {
		_, err := m.Pin(t.Context(), to, "", "")
		if !errors.Is(err, ErrNotHeld) || !strings.Contains(err.Error(), "1 ("+refs[0].Digest.Short()+"), 2 ("+refs[1].Digest.Short()+"), 3 (") {
			t.Errorf("%q: %v", to, err)
		}
	}
	if s := m.Status(); m.body() != "three" || s.Pin != nil {
		t.Errorf("it serves %q: %+v", m.body(), s)
	}
	if _, err := pickRef([]version.Ref{{Number: 1, Digest: refs[0].Digest}, {Number: 2, Digest: refs[0].Digest}}, refs[0].Digest.String()[:8]); err == nil || errors.Is(err, ErrNotHeld) {
		t.Errorf("two that begin alike: %v", err)
	}
}

// TestPinToWhatCannotBeHeld changes nothing: neither now nor after a restart.
func TestPinToWhatCannotBeHeld(t *testing.T) {
	f, o, refs := ofThree(t, shared)
	etcd := &noChunks{}
	f.slow = func(s Snapshots) Snapshots { etcd.Snapshots = s; return etcd }
	m := f.start(o)
	f.commitThree(m, refs)
	// Its chunk goes, from etcd and from disk.
	etcd.lost.Store(true)
	raw, err := version.UnpackManifest([]byte(f.get("manifests/" + refs[0].Digest.String())))
	if err != nil {
		t.Fatal(err)
	}
	man, err := version.ParseManifest(refs[0].Digest, raw)
	if err != nil {
		t.Fatal(err)
	}
	var file []string
	eventually(t, func() string {
		file, _ = filepath.Glob(filepath.Join(o.StateDir, "*", "g", dirChunks, man.Modules[0].Chunks[0].Digest.String()))
		if len(file) != 1 {
			return "its chunk is not on disk"
		}
		return ""
	})
	m.stop()
	if err := os.Remove(file[0]); err != nil {
		t.Fatal(err)
	}
	m = f.start(o)
	m.awaitEpoch(3)
	if _, err := m.Pin(t.Context(), "1", "", ""); err == nil {
		t.Fatal("pinned to what is nowhere")
	}
	if s := m.Status(); m.body() != "three" || s.Pin != nil || holdsAll(s, refs[0]) {
		t.Errorf("it serves %q: %+v", m.body(), s)
	}
	if found, _ := filepath.Glob(filepath.Join(o.StateDir, dirPins, "*")); len(found) > 0 {
		t.Errorf("the disk remembers %v", found)
	}
	m.pin("2") // and others can be pinned still
}

// TestPinIsGivenUpInTime: the one who asks does not wait for ever, and what was
// not held in time is not pinned later.
func TestPinIsGivenUpInTime(t *testing.T) {
	now := time.Now()
	c := newCore("me", "g")
	a := &Agent{orders: make(chan func(*loop)), over: make(chan struct{})}
	p := &loop{Agent: a, core: c}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	done := make(chan error)
	go func() { done <- a.hold(ctx, ref(5)) }()
	for {
		select {
		case f := <-a.orders:
			f(p)
			p.answerPin()
			continue
		case err := <-done:
			if !errors.Is(err, context.DeadlineExceeded) || c.pinning != nil {
				t.Fatalf("%v, still wanted: %v", err, c.pinning)
			}
		}
		break
	}
	if p := c.plan(now); len(p.build) > 0 {
		t.Errorf("builds %+v", p.build)
	}
}

// What is in force is remembered, also when the one who asked waits no more.
func TestUnpinIsRemembered(t *testing.T) {
	f := &fleet{t: t}
	o := f.options("a")
	o.StateDir = t.TempDir()
	p := bareLoop(t, o)
	p.core.pin = &Pin{Ref: ref(1), Why: "it hurts"}
	must(t, savePin(o.StateDir, "g", p.core.pin))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		(<-p.orders)(p)
		cancel()
		for range 2 {
			time.Sleep(20 * time.Millisecond) // whoever looks at ctx has seen it
			(<-p.orders)(p)
		}
	}()
	_, err := p.Unpin(ctx)
	if pin, errLoad := loadPin(o.StateDir, "g"); err != nil || p.core.pin != nil || pin != nil || errLoad != nil {
		t.Errorf("unpinned (%v): pinned to %+v, after a restart to %+v (%v)", err, p.core.pin, pin, errLoad)
	}
	must(t, p.do(t.Context(), func(*loop) {}))
}

// What was held for a pin is not held when the pin does not come.
func TestPinThatIsNotOrderedLeavesNoTrace(t *testing.T) {
	f := &fleet{t: t}
	p := bareLoop(t, f.options("a"))
	p.core.target = assigned(1, 1, time.Now()).assignment
	p.core.held[ref(2).Digest] = true
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		(<-p.orders)(p) // what it can be pinned to
		(<-p.orders)(p) // holding it
		p.answerPin()
		time.Sleep(20 * time.Millisecond) // the order waits by now
		cancel()
		time.Sleep(20 * time.Millisecond) // and waits no more
		select {
		case f := <-p.orders:
			f(p)
		case <-time.After(5 * time.Second):
		}
	}()
	_, err := p.Pin(ctx, "2", "op", "it hurts")
	<-ended
	if !errors.Is(err, context.Canceled) || p.core.pinning != nil || p.core.pin != nil {
		t.Errorf("%v; wanted still: %v, pinned: %v", err, p.core.pinning, p.core.pin)
	}
}

// An order that the disk did not take is made good.
func TestOrdersAreMended(t *testing.T) {
	f, o, refs := ofThree(t, shared)
	o.ScrubEvery = 20 * time.Millisecond
	m := f.start(o)
	f.commitThree(m, refs)
	if _, err := m.Unpin(t.Context()); err != nil {
		t.Fatal(err)
	}
	old := &Pin{Ref: refs[1]} // which was taken back, say, or replaced, on a disk that was full
	must(t, savePin(o.StateDir, "g", old))
	eventually(t, func() string {
		if pin, err := loadPin(o.StateDir, "g"); pin != nil || err != nil {
			return fmt.Sprintf("after a restart it is pinned to %+v (%v)", pin, err)
		}
		return ""
	})
	if got := m.body(); got != "three" {
		t.Errorf("serves %q", got)
	}
	m.pin("1")
	must(t, savePin(o.StateDir, "g", old))
	eventually(t, func() string {
		if pin, err := loadPin(o.StateDir, "g"); err != nil || pin == nil || pin.Ref != refs[0] {
			return fmt.Sprintf("after a restart it is pinned to %+v (%v)", pin, err)
		}
		return ""
	})
}

// An order that could not be read for a moment stands: it is obeyed once it can
// be, on disk it stays, and only an operator takes it back.
func TestPinThatIsReadLate(t *testing.T) {
	f, o, refs := ofThree(t, shared)
	o.ScrubEvery = 20 * time.Millisecond
	m := f.start(o)
	f.commitThree(m, refs)
	m.pin("1")
	m.stop()
	file := pinFile(o.StateDir, "g")
	must(t, os.Rename(file, file+".aside"))
	must(t, os.Mkdir(file, 0o700)) // which cannot be read
	m = f.start(o)
	m.awaitEpoch(3)
	f.awaitReady("a", "n3")
	if got := m.body(); got != "three" {
		t.Fatalf("serves %q", got)
	}
	must(t, os.Remove(file))
	must(t, os.Rename(file+".aside", file))
	s := m.await("pinned", func(s Status) bool { return s.Pinned == refs[0].Digest })
	if pin, err := loadPin(o.StateDir, "g"); m.body() != "one" || s.Pin == nil || s.Pin.Why != "it hurts" || err != nil || pin == nil || *pin != *s.Pin {
		t.Errorf("serves %q by %+v, on disk %+v (%v)", m.body(), s.Pin, pin, err)
	}
	if _, err := m.Unpin(t.Context()); err != nil {
		t.Fatal(err)
	}
	must(t, savePin(o.StateDir, "g", s.Pin)) // and the disk did not take that
	eventually(t, func() string {
		if pin, err := loadPin(o.StateDir, "g"); pin != nil || err != nil {
			return fmt.Sprintf("after a restart it is pinned to %+v (%v)", pin, err)
		}
		return ""
	})
	if got := m.body(); got != "three" || m.Status().Pin != nil {
		t.Errorf("unpinned it serves %q", got)
	}
}

// What is read late is held before it is obeyed, so that meanwhile nothing has to
// wait for it; what cannot be held is in force as after any start.
func TestPinThatIsReadLateIsHeldFirst(t *testing.T) {
	f := &fleet{t: t}
	pin := &Pin{Ref: ref(5)}
	for name, can := range map[string]func(*core){
		"held":        func(c *core) { c.built(pin.Digest) },
		"failed":      func(c *core) { c.refused(job{Ref: pin.Ref}, "gone", true, time.Now()) },
		"quarantined": func(c *core) { c.quarantined[pin.Digest] = true },
	} {
		p := bareLoop(t, f.options("a"))
		p.readLate(pin)
		if plan := p.core.plan(time.Now()); p.core.pin != nil || len(plan.build) != 1 || plan.build[0].Ref != pin.Ref {
			t.Errorf("%s: pinned to %+v before, builds %+v", name, p.core.pin, plan.build)
		}
		can(p.core)
		p.readLate(pin)
		if p.core.pin != pin || p.core.pinning != nil || p.core.obeysPin() != (name == "held") {
			t.Errorf("%s: pinned to %+v, obeyed: %v", name, p.core.pin, p.core.obeysPin())
		}
	}
}

func TestPinThatTheDiskDoesNotRemember(t *testing.T) {
	f, o, refs := ofThree(t, shared)
	m := f.start(o)
	f.commitThree(m, refs)
	if err := os.WriteFile(filepath.Join(o.StateDir, dirPins), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := m.pin("2"); m.body() != "two" || !strings.Contains(r.Warning, "a restart would not know") {
		t.Errorf("serves %q, warning %q", m.body(), r.Warning)
	}
}

func TestPinnedButNotToBeHad(t *testing.T) {
	now := time.Unix(1000, 0)
	c := newCore("me", "g")
	c.admitted = true
	c.pin = &Pin{Ref: ref(2)}
	c.saw(record{at: 1, fleet: "f", assignment: first()}, now)
	p := c.plan(now)
	if len(p.build) != 2 || p.build[0].Ref != ref(2) || p.swap != nil {
		t.Fatalf("%+v", p)
	}
	c.built(ref(1).Digest)
	if p := c.plan(now); p.swap != nil {
		t.Fatalf("served before it was known whether the pin can be: %+v", p.swap.choice)
	}
	c.refused(job{Ref: ref(2)}, "gone", true, now)
	if p = c.plan(now); p.swap == nil || p.swap.pinned || p.swap.stable != ref(1) {
		t.Fatalf("what is assigned has to be served: %+v", p.swap)
	}
	c.switched(p.swap, now)
	if p = c.plan(now.Add(time.Minute)); len(p.build) != 1 || p.build[0].Ref != ref(2) {
		t.Fatalf("not tried again: %+v", p.build)
	}
	c.built(ref(2).Digest)
	if p = c.plan(now); p.swap == nil || !p.swap.pinned || p.swap.Epoch != 1 || p.swap.stable != ref(2) {
		t.Fatalf("it is held: %+v", p.swap)
	}
	c.quarantined[ref(2).Digest] = true
	if c.obeysPin() {
		t.Error("a quarantined digest is served")
	}
}

// TestUnpinnedToWhatIsNotHeld: started from disk, pinned, it holds only the
// pin; unpinned it serves that on until it holds what is assigned.
func TestUnpinnedToWhatIsNotHeld(t *testing.T) {
	now := time.Unix(1000, 0)
	c := newCore("me", "g")
	c.remember(memory{Fleet: "f", Good: []rollout.Assignment{*first()}, Served: 1}, nil)
	c.pin = &Pin{Ref: ref(2)}
	c.outOfReach(false)
	c.built(ref(2).Digest)
	c.switched(c.plan(now).swap, now)
	if !c.serving.pinned || c.serving.source != SourceDisk {
		t.Fatalf("%+v", c.serving)
	}
	c.pin = nil
	p := c.plan(now)
	if p.swap != nil || len(p.build) != 1 || p.build[0].Ref != ref(1) || !p.keep[ref(2).Digest] {
		t.Fatalf("swap %+v, build %+v", p.swap, p.build)
	}
	c.built(ref(1).Digest)
	if p := c.plan(now); p.swap == nil || p.swap.pinned || p.swap.stable != ref(1) || p.swap.Epoch != 1 {
		t.Fatalf("%+v", p.swap)
	}
}

func TestPinIsSaidAgainAndAgain(t *testing.T) {
	inBubble(t, func(p *loop, see func(record), sw *swaps) {
		said := &counting{}
		p.tell(context.Background(), func() { p.log = slog.New(said) })
		if err := p.do(context.Background(), func(l *loop) { l.pinned(&Pin{Ref: ref(1)}) }); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5*time.Minute + time.Second)
		said.mu.Lock()
		defer said.mu.Unlock()
		if said.errors != 7 { // the switch, at once and each minute
			t.Errorf("said %d times", said.errors)
		}
		if len(sw.epochs) != 2 || sw.epochs[1] != 1 {
			t.Errorf("epochs %v", sw.epochs)
		}
	})
}

func TestPinFile(t *testing.T) {
	dir := t.TempDir()
	if p, err := loadPin(dir, "g"); p != nil || err != nil {
		t.Errorf("nothing: %v %v", p, err)
	}
	want := &Pin{Ref: ref(3), By: "op", Why: "why", Since: time.Unix(5, 0).UTC()}
	if err := savePin(dir, "g", want); err != nil {
		t.Fatal(err)
	}
	if p, err := loadPin(dir, "g"); err != nil || *p != *want {
		t.Errorf("%+v %v", p, err)
	}
	if p, err := loadPin(dir, "other"); p != nil || err != nil {
		t.Errorf("another group's: %+v %v", p, err)
	}
	b, err := os.ReadFile(pinFile(dir, "g"))
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-3] ^= 1
	if err := os.WriteFile(pinFile(dir, "g"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := loadPin(dir, "g"); p != nil || err == nil {
		t.Errorf("damaged: %+v %v", p, err)
	}
	if err := errors.Join(savePin(dir, "g", nil), savePin(dir, "g", nil)); err != nil {
		t.Errorf("unpinned, twice: %v", err)
	}
	if p, err := loadPin(dir, "g"); p != nil || err != nil {
		t.Errorf("unpinned: %+v %v", p, err)
	}
}

// noChunks is an etcd whose chunks can be lost.
type noChunks struct {
	Snapshots
	lost atomic.Bool
}

func (s *noChunks) Chunk(ctx context.Context, d version.Digest) ([]byte, error) {
	if s.lost.Load() {
		return nil, errors.New("no such chunk")
	}
	return s.Snapshots.Chunk(ctx, d)
}
