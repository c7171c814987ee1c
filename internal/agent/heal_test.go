package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
	"routerd.dev/internal/version"
)

// chunkKeys are the chunks of a table that others lack.
func chunkKeys(t *testing.T, tb *route.Table, others ...*route.Table) (keys []string) {
	t.Helper()
	known := map[version.Digest]bool{}
	for _, o := range others {
		for d := range mustEncode(t, o).Chunks() {
			known[d] = true
		}
	}
	for d := range mustEncode(t, tb).Chunks() {
		if !known[d] {
			keys = append(keys, "chunks/"+d.String())
		}
	}
	if len(keys) == 0 {
		t.Fatal("the table has no chunk of its own")
	}
	return keys
}

// An instance that cannot serve what is committed takes itself out, as far as
// the group's floor allows, and comes back by itself once it can.
func TestWhoCannotServeTakesItselfOut(t *testing.T) {
	t.Parallel()
	f := initFleet(t, shared)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(1, "n1", one)
	var ms []*member
	for _, name := range []string{"a", "b", "c"} {
		o := f.options(name)
		o.LeaseTTL = 10 * time.Second // who loses it makes room for another
		ms = append(ms, f.start(o))
	}
	for i, m := range ms {
		m.awaitEpoch(1)
		f.awaitReady([]string{"a", "b", "c"}[i], "n1")
	}
	lost := map[string]string{}
	for _, k := range chunkKeys(t, table("two"), table("one")) {
		lost[k] = f.get(k)
		f.put(k, []byte("damaged"))
	}
	f.commit(2, "n2", two, one) // by an override, say
	out := func() (names []string) {
		for _, m := range ms {
			if r := m.Ready(); !r.Ready {
				names = append(names, m.o.Who.Instance)
			}
		}
		return names
	}
	eventually(t, func() string {
		if o := out(); len(o) != 1 {
			return fmt.Sprintf("out of traffic: %v", o)
		}
		return ""
	})
	// The others ask again, and have to stay.
	eventually(t, func() string {
		for _, m := range ms {
			if s := m.Status(); s.Stale == "" || s.Serving.Epoch != 1 || !strings.Contains(s.Stale, "epoch 2 is committed") {
				return fmt.Sprintf("%s says %+v", s.Instance, s)
			}
		}
		return ""
	})
	deadline := time.Now().Add(2 * outAgain)
	for time.Now().Before(deadline) {
		if o := out(); len(o) != 1 {
			t.Fatalf("out of traffic: %v", o)
		}
		<-time.After(10 * time.Millisecond)
	}
	gone := out()[0]
	if got := f.get("ready/g/" + gone); got != "evicted n2 "+two.Digest.String() {
		t.Errorf("%s says %q", gone, got)
	}
	for _, m := range ms {
		if s := m.Status(); (s.Out != "") != (s.Instance == gone) || s.Evicted != (s.Instance == gone) {
			t.Errorf("%s: out %q, evicted %v", s.Instance, s.Out, s.Evicted)
		}
	}
	for k, v := range lost {
		f.put(k, []byte(v))
	}
	began := time.Now()
	for i, m := range ms {
		m.awaitEpoch(2)
		f.awaitReady([]string{"a", "b", "c"}[i], "n2")
		m.await("in traffic", func(s Status) bool { return !s.Evicted && s.Out == "" && m.Ready().Ready })
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("%s from the chunk's return to serving", took)
	}
}

// An instance whose epoch's revision is lost takes the next one with the others,
// without anybody's override, and the one after that; what it lacks it says.
func TestTheNextRevisionIsTheCure(t *testing.T) {
	t.Parallel()
	f := initFleet(t, shared)
	one, two, three, four := f.publish(table("one")), f.publish(table("two")), f.publish(table("three")), f.publish(table("four"))
	f.commit(1, "n1", one)
	ms := []*member{f.join("a"), f.join("b")}
	for i, m := range ms {
		m.awaitEpoch(1)
		f.awaitReady([]string{"a", "b"}[i], "n1")
	}
	key := chunkKeys(t, table("two"), table("one"), table("three"), table("four"))[0]
	lost := f.get(key)
	f.delete(key)
	f.commit(2, "n2", two, one)
	says := func(nonce string, outs int) {
		t.Helper()
		eventually(t, func() string {
			out := 0
			for _, name := range []string{"a", "b"} {
				switch got := f.get("ready/g/" + name); got {
				case "evicted " + nonce + " " + two.Digest.String():
					out++
				case "lacks " + nonce + " " + two.Digest.String():
				default:
					return fmt.Sprintf("%s says %q", name, got)
				}
			}
			if out != outs {
				return fmt.Sprintf("%d say that they are out of traffic", out)
			}
			return ""
		})
	}
	says("n2", 1) // and the other has to stay
	f.prepare("n3", "", three, two, one)
	says("n3", 1) // the floor holds
	f.commit(3, "n3", three, two, one)
	f.delete("prepare/g")
	for _, m := range ms {
		m.awaitEpoch(3)
		m.await("in traffic, saying what it lacks", func(s Status) bool {
			return m.Ready().Ready && s.Stale == "" && len(s.Lacks) == 1 && s.Lacks[0].Ref == two && s.Ready == "lacks n3"
		})
	}
	says("n3", 0)
	eventually(t, func() string {
		if r := f.report("a"); len(r.Lacks) != 1 || r.Lacks[0].Why == "" || r.Nonce != "" {
			return fmt.Sprintf("report %+v", r)
		}
		return ""
	})
	f.prepare("n4", "", four, three, two)
	says("n4", 0)
	f.put(key, []byte(lost)) // it comes back
	f.awaitReady("a", "n4")
	f.awaitReady("b", "n4")
	for _, m := range ms {
		m.await("lacking nothing", func(s Status) bool { return len(s.Lacks) == 0 })
	}
}

// The last one in traffic stays, whatever it serves.
func TestTheLastOneStays(t *testing.T) {
	t.Parallel()
	f := initFleet(t, shared)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(1, "n1", one)
	m := f.join("a")
	m.awaitEpoch(1)
	for _, k := range chunkKeys(t, table("two"), table("one")) {
		f.delete(k)
	}
	f.commit(2, "n2", two, one)
	m.await("asking", func(Status) bool { // it asked, and was refused
		var denied bool
		_ = m.do(t.Context(), func(p *loop) { denied = !p.core.notBefore.IsZero() })
		return denied
	})
	if r := m.Ready(); !r.Ready || m.body() != "one" {
		t.Errorf("readiness %+v, serves %q", r, m.body())
	}
}

// A chunk that is damaged in etcd is refused also where the cache knows its
// module, and nothing damaged comes onto the disk as good.
func TestDamagedInEtcdIsNotKept(t *testing.T) {
	t.Parallel()
	f := initFleet(t, shared)
	one := table("one")
	both := table("one", route.Route{Name: "more", Path: "/more", Action: route.Action{Respond: &route.Respond{Body: "x"}}})
	both.Modules = append(slices.Clone(one.Modules), both.Modules[0])
	both.Modules[1].Name = "other"
	both.Modules[1].Routes[0].Hosts = []string{"other.example"}
	both.Modules[1].Routes[1].Hosts = []string{"other.example"}
	route.Normalize(both)
	ref := f.publish(one)
	f.commit(1, "n1", ref)
	o := f.options("a")
	o.StateDir, o.ScrubEvery = t.TempDir(), time.Hour
	m := f.start(o)
	m.awaitEpoch(1)
	awaitFile(t, o.StateDir, "*/g/good-*") // it is written last
	key := chunkKeys(t, one)[0]
	path := onlyFile(t, o.StateDir, "*/g/chunks/*")
	good := f.get(key)
	f.put(key, []byte(good[:len(good)-1]+"!"))
	must(t, os.Remove(path))
	two := f.publish(both)
	f.put(key, []byte(good[:len(good)-1]+"!")) // whatever publishing makes of it
	f.prepare("n2", "", two, ref)
	eventually(t, func() string { return hasPrefix(f.get("ready/g/a"), "refused n2 fetch chunk") })
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is damaged in etcd is on disk: %v", err)
	}
	f.put(key, []byte(good))
	f.prepare("n3", "", two, ref)
	f.awaitReady("a", "n3")
}

// What the disk has and etcd has not is taken from the disk, and the other way
// round, also where only the contents tell.
func TestEitherHasIt(t *testing.T) {
	t.Parallel()
	f := initFleet(t, shared)
	one := f.publish(table("one"))
	f.commit(1, "n1", one)
	o := f.options("a")
	o.StateDir, o.ScrubEvery = t.TempDir(), time.Hour
	restart := func() *member {
		m := f.start(o)
		m.awaitEpoch(1)
		f.awaitReady("a", "n1")
		return m
	}
	m := restart()
	awaitFile(t, o.StateDir, "*/g/good-*")
	m.stop()
	keys := append(chunkKeys(t, table("one")), "manifests/"+one.Digest.String())
	had := map[string]string{}
	for _, k := range keys {
		had[k] = f.get(k)
		f.put(k, []byte("damaged"))
	}
	restart().stop() // from disk
	for _, k := range keys {
		f.put(k, []byte(had[k]))
	}
	for _, sum := range []bool{false, true} { // with a checksum that fits, too
		for _, pattern := range []string{"*/g/chunks/*", "*/g/manifests/*"} {
			b := []byte("damaged")
			if sum && strings.Contains(pattern, "chunks") {
				s := sha256.Sum256(b)
				b = append(s[:], b...)
			}
			must(t, os.WriteFile(onlyFile(t, o.StateDir, pattern), b, 0o600))
		}
		restart().stop() // from etcd
	}
}

// What is damaged on disk while the process runs is written again: a restart
// may have nothing else.
func TestDamagedOnDiskIsMended(t *testing.T) {
	t.Parallel()
	e := ownEtcd(t)
	f := initFleet(t, e)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(1, "n1", one)
	o := f.options("a")
	o.StateDir, o.ScrubEvery = t.TempDir(), 20*time.Millisecond
	m := f.start(o)
	m.awaitEpoch(1)
	f.prepare("n2", "", two, one)
	f.awaitReady("a", "n2")
	f.commit(2, "n2", two, one)
	m.awaitEpoch(2)
	if _, err := m.Pin(t.Context(), "2", "me", "because"); err != nil {
		t.Fatal(err)
	}
	patterns := []string{"*/g/seen", "*/g/good-*", "*/g/chunks/*", "*/g/manifests/*", ".pins/g"}
	before := map[string][]byte{}
	eventually(t, func() string {
		clear(before)
		for _, p := range patterns {
			files, err := filepath.Glob(filepath.Join(o.StateDir, p))
			must(t, err)
			if len(files) == 0 {
				return "no " + p
			}
			for _, name := range files {
				b, err := os.ReadFile(name)
				must(t, err)
				before[name] = b
			}
		}
		if len(before) < 8 {
			return fmt.Sprintf("%d files", len(before))
		}
		return ""
	})
	whole := func(name string) bool {
		b, err := os.ReadFile(name)
		if err != nil {
			return false
		}
		if strings.HasSuffix(name, seenFile) { // it bears the time it was saved at
			return readSealed(name, new(memory)) == nil
		}
		return string(b) == string(before[name])
	}
	for name, b := range before {
		must(t, os.WriteFile(name, b[:len(b)/2], 0o600))
		eventually(t, func() string {
			if !whole(name) {
				return name + " stays damaged"
			}
			return ""
		})
		must(t, os.Remove(name))
		eventually(t, func() string {
			if !whole(name) {
				return name + " stays away"
			}
			return ""
		})
	}
	m.await("content", func(s Status) bool { return s.Disk == "" })

	// Without etcd the pieces cannot be had: that is said, until they are.
	e.stop()
	var chunk string
	for name := range before {
		if strings.Contains(name, "/chunks/") {
			chunk = name
		}
	}
	must(t, os.WriteFile(chunk, []byte("damaged"), 0o600))
	m.await("saying that the disk is damaged", func(s Status) bool { return strings.Contains(s.Disk, "damaged") })
	must(t, e.start())
	m.await("content again", func(s Status) bool { return s.Disk == "" && whole(chunk) })
}

func onlyFile(t *testing.T, dir, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) != 1 {
		t.Fatalf("%s: %v %v", pattern, files, err)
	}
	return files[0]
}

func awaitFile(t *testing.T, dir, pattern string) {
	t.Helper()
	eventually(t, func() string {
		if files, err := filepath.Glob(filepath.Join(dir, pattern)); err != nil || len(files) == 0 {
			return fmt.Sprintf("no %s: %v", pattern, err)
		}
		return ""
	})
}

// deaf is a store whose watches pass nothing on but what there is at first, and
// do not say so.
type deaf struct {
	*store.Store
	watches *atomic.Int64
}

func (d deaf) WatchGroup(ctx context.Context, group string, _ store.WatchOptions, fn func(store.GroupState)) error {
	d.watches.Add(1)
	if st, err := d.Group(ctx, group); err == nil {
		fn(st)
	}
	<-ctx.Done()
	return ctx.Err()
}

// A watch that says nothing is found out, said, and made anew; meanwhile the
// group is read.
func TestStuckWatchIsMadeAnew(t *testing.T) {
	t.Parallel()
	f := initFleet(t, shared)
	one, two := f.publish(table("one")), f.publish(table("two"))
	f.commit(1, "n1", one, two)
	o := f.options("a")
	o.Heard = 500 * time.Millisecond
	var d deaf
	f.wrap = func(s *store.Store) Store {
		d = deaf{s, new(atomic.Int64)}
		return d
	}
	m := f.start(o)
	m.awaitEpoch(1)
	for epoch := int64(2); epoch < 5; epoch++ {
		before := d.watches.Load()
		f.commit(epoch, "n1", []version.Ref{two, one}[epoch%2], one, two)
		m.awaitEpoch(epoch)
		eventually(t, func() string {
			if d.watches.Load() <= before {
				return "the watch is the same"
			}
			return ""
		})
	}
}

// stuck hangs in a digest's chunks, whatever its context says.
type stuck struct {
	Snapshots
	on     map[version.Digest]bool
	asked  chan struct{}
	resume chan struct{}
}

func (s stuck) Chunk(ctx context.Context, d version.Digest) ([]byte, error) {
	if s.on[d] {
		select {
		case s.asked <- struct{}{}:
		default:
		}
		<-s.resume
	}
	return s.Snapshots.Chunk(ctx, d)
}

// A build that hangs is given up, and another is not kept waiting.
func TestHungBuildIsGivenUp(t *testing.T) {
	t.Parallel()
	f := initFleet(t, shared)
	one, two, three := f.publish(table("one")), f.publish(table("two")), f.publish(table("three"))
	f.commit(1, "n1", one)
	s := stuck{on: map[version.Digest]bool{}, asked: make(chan struct{}, 1), resume: make(chan struct{})}
	for d := range mustEncode(t, table("two")).Chunks() {
		s.on[d] = true
	}
	f.slow = func(sn Snapshots) Snapshots { s.Snapshots = sn; return s }
	m := f.join("a")
	m.awaitEpoch(1)
	f.prepare("n2", "", two, one)
	<-s.asked
	f.prepare("n3", "", three, one) // n2 was withdrawn, and its build does not hear that
	began := time.Now()
	f.awaitReady("a", "n3")
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("%s until the next one was built", took)
	}
	// In this process it is not tried again.
	f.prepare("n4", "", two, one)
	eventually(t, func() string { return hasPrefix(f.get("ready/g/a"), "refused n4 ") })
	close(s.resume)
	f.commit(2, "n3", three, one)
	m.awaitEpoch(2)
}

// A compile that hangs keeps the loop from nothing: another is prepared and
// served, and what is no longer used is let go of.
func TestHungCompileIsGivenUp(t *testing.T) {
	t.Parallel()
	f := initFleet(t, shared)
	one, two, three, four := f.publish(table("one")), f.publish(hanging(t, "two")), f.publish(table("three")), f.publish(table("four"))
	f.commit(1, "n1", one)
	m := f.join("a")
	m.awaitEpoch(1)
	f.awaitReady("a", "n1")
	f.prepare("n2", "", two, one)
	m.await("compiling", func(s Status) bool {
		return s.Preparing != nil && s.Preparing.Stage == StageCompiling && s.Preparing.Digest == two.Digest
	})
	f.prepare("n3", "", three, one)
	f.awaitReady("a", "n3")
	f.commit(2, "n3", three, one)
	m.awaitEpoch(2)
	f.prepare("n4", "", four)
	f.awaitReady("a", "n4")
	f.commit(3, "n4", four) // all others are dropped
	f.delete("prepare/g")
	m.awaitEpoch(3)
	m.await("holding one", func(s Status) bool { return len(s.Holds) == 1 })
	if got := m.body(); got != "four" {
		t.Errorf("serves %q", got)
	}
}

// What a worker that was given up does is not told of the build that followed.
func TestGivenUpSaysNothing(t *testing.T) {
	f := &fleet{t: t}
	p := bareLoop(t, f.options("a"))
	first := &work{job: job{Ref: ref(1), nonce: "n1"}}
	first.ctx, first.cancel = context.WithCancel(t.Context())
	p.hung = mostHung // no worker that would have to end
	p.building = first
	first.stage(p, StageFetching)
	p.giveUp(t.Context(), first, time.Now())
	first.stage(p, StageCompiling)
	if pr := p.progress.Load(); pr != nil {
		t.Errorf("nothing is built, and it is said: %+v", pr)
	}
	p.progress.Store(progressOf(job{Ref: ref(2), nonce: "n2"}, StageFetching))
	first.stage(p, StageTesting)
	if pr := p.progress.Load(); pr == nil || pr.Digest != ref(2).Digest || pr.Stage != StageFetching {
		t.Errorf("said: %+v", pr)
	}
}

// What failed before and is tried again does not keep what is prepared from being built.
func TestFailedBeforeDoesNotPreempt(t *testing.T) {
	f := &fleet{t: t}
	p := bareLoop(t, f.options("a"))
	p.core.target = second()
	bad, next := job{Ref: ref(2), nonce: "n2"}, job{Ref: ref(3), nonce: "n3"}
	if p.worthwhile(&work{job: next}, []job{bad, next}) {
		t.Error("what is in force has to wait")
	}
	p.core.lacks(bad, "it is not there", time.Unix(1000, 0))
	if !p.worthwhile(&work{job: next}, []job{bad, next}) {
		t.Error("given up for what failed before")
	}
}

// Looks are counted: a process that was stopped gives nothing up.
func TestSignsOfLife(t *testing.T) {
	f := &fleet{t: t}
	o := f.options("a")
	newWork := func(p *loop) *work {
		w := &work{job: job{Ref: version.Ref{Number: 1, Digest: version.Digest{1}}}}
		w.ctx, w.cancel = context.WithCancel(t.Context())
		p.building = w
		return w
	}
	p := bareLoop(t, o)
	p.hire(t.Context())
	w, now := newWork(p), time.Now()
	for i := range hangAfter - 1 {
		now = now.Add(time.Duration(1+i*i) * hangLook) // far more than hangAfter looks
		p.checkBuild(t.Context(), now)
	}
	if p.building != w {
		t.Fatal("given up too early")
	}
	w.beats.Add(1)
	for range hangAfter {
		now = now.Add(hangLook)
		p.checkBuild(t.Context(), now)
	}
	if p.building != w {
		t.Fatal("given up although it lives")
	}
	p.checkBuild(t.Context(), now.Add(hangLook))
	if p.building != nil || w.ctx.Err() == nil || p.worker == nil {
		t.Fatal("not given up")
	}
	// One that waits for etcd is not hung, until it was told to end.
	w = newWork(p)
	w.patient.Store(true)
	for range 3 * hangAfter {
		now = now.Add(2 * hangLook)
		p.checkBuild(t.Context(), now)
	}
	if p.building != w {
		t.Fatal("given up while it waits")
	}
	w.cancel()
	for range hangAfter + 1 {
		now = now.Add(2 * hangLook)
		p.checkBuild(t.Context(), now)
	}
	if p.building != nil || p.worker != nil {
		t.Fatal("the second one that hangs ends building")
	}
	if left := p.giveBack([]job{w.job}, now); left != nil || !p.core.failed[w.Digest].permanent {
		t.Error("nobody is there to build, and that is not said")
	}
}
