package agent

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

func testDisk(t *testing.T) *disk {
	t.Helper()
	return &disk{root: t.TempDir(), group: "g", log: slog.New(slog.DiscardHandler)}
}

func remembered(epochs ...int64) memory {
	m := memory{Fleet: "f1", Group: "g", Saved: time.Unix(100, 0).UTC()}
	for _, e := range epochs {
		a := rollout.Assignment{Group: "g", Epoch: e, Nonce: "n", Stable: ref(int(e)), Set: []version.Ref{ref(int(e))}, Instant: time.Unix(e, 0).UTC()}
		m.Good = append(m.Good, a)
		m.Served = max(m.Served, e)
	}
	m.HighestEpoch, m.HighestRevision = m.Served+2, 7
	return m
}

func mustSave(t *testing.T, d *disk, m memory) {
	t.Helper()
	if err := d.save(m); err != nil {
		t.Fatal(err)
	}
}

func TestDiskRemembersTheLastThreeGoodOnes(t *testing.T) {
	d := testDisk(t)
	if m := d.load(); m.Good != nil || m.Fleet != "" {
		t.Errorf("an empty directory remembers %+v", m)
	}
	mustSave(t, d, remembered(3, 2, 1))
	mustSave(t, d, remembered(4, 3, 2))
	got := d.load()
	if !got.equal(remembered(4, 3, 2)) || got.HighestEpoch != 6 || got.HighestRevision != 7 {
		t.Errorf("remembers %+v", got)
	}
	files, _ := filepath.Glob(filepath.Join(d.dir("f1"), goodPrefix+"*"))
	if len(files) != 3 {
		t.Errorf("%d states on disk", len(files))
	}
}

func TestI3_DamagedStateGoesToTheNextOlder(t *testing.T) {
	d := testDisk(t)
	mustSave(t, d, remembered(3, 2, 1))
	path := filepath.Join(d.dir("f1"), goodFile(3))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		got := d.load()
		if len(got.Good) != 2 || got.Good[0].Epoch != 2 {
			t.Fatalf("%s: %+v", what, got.Good)
		}
		if got.Served != 3 || got.HighestEpoch < 3 {
			t.Fatalf("%s: forgot that epoch 3 was served", what)
		}
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 0x20
		try("flipped", b)
		try("cut", whole[:i])
	}
	try("longer", append(bytes.Clone(whole), '\n'))
	// Of another group, though its checksum is right.
	if err := writeSealed(path, goodState{Fleet: "f1", Group: "other", Assignment: remembered(3).Good[0]}); err != nil {
		t.Fatal(err)
	}
	if got := d.load(); got.Good[0].Epoch != 2 {
		t.Errorf("took another group's state: %+v", got.Good)
	}
	// And the numbers, when theirs is damaged, come from what is there.
	if err := os.WriteFile(filepath.Join(d.dir("f1"), seenFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := d.load(); got.Served != 3 || len(got.Good) != 2 || got.Fleet != "f1" {
		t.Errorf("without numbers: %+v", got)
	}
}

func TestDiskIgnoresWhatIsNotIts(t *testing.T) {
	d := testDisk(t)
	mustSave(t, d, remembered(1))
	dir := d.dir("f1")
	for _, name := range []string{"notes.txt", "good-x", ".seen123", "chunks", "good-00000000000000000009"} {
		p := filepath.Join(dir, name)
		var err error
		if name == "good-00000000000000000009" || name == "chunks" {
			err = os.MkdirAll(p, 0o700)
		} else {
			err = os.WriteFile(p, []byte("hello"), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, dirChunks, "README"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := d.load()
	if len(got.Good) != 1 {
		t.Errorf("remembers %+v", got.Good)
	}
	if err := d.collect("f1", nil, nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, dirChunks, "README")); err != nil {
		t.Error("a foreign file was removed")
	}
}

func TestDiskKeepsFleetsApart(t *testing.T) {
	d := testDisk(t)
	mustSave(t, d, remembered(9))
	m := remembered(2)
	m.Fleet, m.Saved = "../evil fleet", time.Unix(200, 0)
	mustSave(t, d, m)
	if got := d.load(); got.Fleet != m.Fleet || got.Good[0].Epoch != 2 {
		t.Errorf("the newest fleet is %+v", got)
	}
	if rel, err := filepath.Rel(d.root, d.dir(m.Fleet)); err != nil || filepath.Dir(filepath.Dir(rel)) != "." {
		t.Errorf("state outside of the directory: %s", rel)
	}
	other := &disk{root: d.root, group: "h", log: d.log}
	if got := other.load(); got.Good != nil {
		t.Errorf("another group remembers %+v", got)
	}
}

func TestChunksAreVerifiedAndCollected(t *testing.T) {
	d := testDisk(t)
	s, p := packedSnapshot(t, "one")
	if err := d.saveSnapshot("f1", s.Digest, p, func() {}); err != nil {
		t.Fatal(err)
	}
	if m, err := d.manifest("f1", s.Digest); err != nil || !bytes.Equal(m, s.ManifestBytes) {
		t.Errorf("manifest: %v", err)
	}
	for c, want := range p.chunks {
		path := filepath.Join(d.dir("f1"), dirChunks, c.String())
		whole, _ := os.ReadFile(path)
		if b, err := d.chunk("f1", c); err != nil || !bytes.Equal(b, want) {
			t.Fatalf("chunk: %v", err)
		}
		for i := range whole {
			b := bytes.Clone(whole)
			b[i] ^= 1
			_ = os.WriteFile(path, b, 0o600)
			if _, err := d.chunk("f1", c); !errors.Is(err, errNotOnDisk) {
				t.Fatalf("a chunk damaged at %d: %v", i, err)
			}
		}
		if err := d.saveSnapshot("f1", s.Digest, p, func() {}); err != nil { // mends it
			t.Fatal(err)
		}
		if _, err := d.chunk("f1", c); err != nil {
			t.Fatal(err)
		}
		_ = os.WriteFile(filepath.Join(d.dir("f1"), dirChunks, "."+c.String()+"123"), nil, 0o600) // an interrupted write
	}
	other, q := packedSnapshot(t, "two")
	if err := d.saveSnapshot("f1", other.Digest, q, func() {}); err != nil {
		t.Fatal(err)
	}
	if err := d.collect("f1", map[version.Digest]bool{other.Digest: true}, nil); err != nil {
		t.Fatal(err)
	}
	files, _ := os.ReadDir(filepath.Join(d.dir("f1"), dirChunks))
	if len(files) != len(q.chunks) {
		t.Errorf("%d chunk files, want %d", len(files), len(q.chunks))
	}
	if _, err := d.manifest("f1", s.Digest); !errors.Is(err, errNotOnDisk) {
		t.Errorf("manifest of a dropped snapshot: %v", err)
	}
}

func packedSnapshot(t *testing.T, body string) (*version.Snapshot, packed) {
	t.Helper()
	s := mustEncode(t, table(body))
	p := packed{manifest: s.ManifestBytes, chunks: map[version.Digest][]byte{}}
	for d, b := range s.Chunks() {
		p.chunks[d] = b
	}
	return s, p
}

// TestCrashCounting lets a process live and die at random points of what it
// tries.
func TestCrashCounting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		root, err := os.MkdirTemp("", "agent-trials-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(root)
		crashes, proven := 0, false
		d := ref(1).Digest
		for range rapid.IntRange(1, 8).Draw(t, "lives") {
			w := newWriter(&disk{root: root, group: "g", log: slog.New(slog.DiscardHandler)}, "v1", slog.New(slog.DiscardHandler))
			_, bad := w.load()
			if got, want := len(bad) == 1, crashes >= maxCrashes; got != want {
				t.Fatalf("quarantined: %v after %d crashes", got, crashes)
			}
			if len(bad) > 0 {
				return
			}
			ending := rapid.SampledFrom([]string{"killed while compiling", "crash in service", "killed in service", "crash later", "clean stop", "proven"}).Draw(t, "ending")
			done := w.try(map[version.Digest]bool{d: true}, d)
			w.flush()
			<-done
			if ending != "killed while compiling" {
				w.try(map[version.Digest]bool{d: true})
				w.flush()
			}
			switch ending {
			case "killed while compiling":
				if !proven {
					crashes++
				}
			case "crash in service":
				if err := os.WriteFile(w.disk.crashFile(), []byte("panic: x"), 0o600); err != nil {
					t.Fatal(err)
				}
				if !proven {
					crashes++
				}
			case "killed in service":
			case "crash later": // it was held, not served
				w.try(nil)
				w.flush()
			case "clean stop":
				w.stop()
				w.flush()
				crashes = 0
			case "proven":
				w.prove(d)
				w.remember(remembered(1), map[version.Digest]bool{d: true})
				w.flush()
				crashes, proven = 0, true
			}
		}
	})
}

func TestDiskThatFailsIsToldOnceAndTriedAgain(t *testing.T) {
	root := t.TempDir()
	blocked := filepath.Join(root, "state")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil { // a file where the directory should be
		t.Fatal(err)
	}
	log := &counting{}
	w := newWriter(&disk{root: blocked, group: "g", log: slog.New(log)}, "v1", slog.New(log))
	w.load()
	log.errors = 0
	w.remember(remembered(1), map[version.Digest]bool{})
	w.flush()
	w.flush()
	if w.trouble() == "" || log.errors != 1 {
		t.Errorf("trouble %q, told %d times", w.trouble(), log.errors)
	}
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	w.flush()
	if got := w.disk.load(); w.trouble() != "" || len(got.Good) != 1 {
		t.Errorf("trouble %q, remembers %+v", w.trouble(), got)
	}
}

// After a recovery to another fleet the memory of that one counts at the next
// start, also when the clock was a year ahead while the old one was saved.
func TestNewestMemoryIsNotToldByTheClock(t *testing.T) {
	d := testDisk(t)
	old := remembered(3)
	old.Saved = time.Now().AddDate(1, 0, 0).UTC()
	mustSave(t, d, old)

	w := newWriter(d, "build", d.log)
	if m, _ := w.load(); m.Fleet != "f1" {
		t.Fatalf("remembers %+v", m)
	}
	recovered := remembered(4)
	recovered.Fleet = "f2"
	w.remember(recovered, map[version.Digest]bool{})
	w.flush()
	if m := d.load(); m.Fleet != "f2" {
		t.Errorf("the next start takes itself for one of fleet %s", m.Fleet)
	}
}

// A digest is on disk as proven before its trial ends there: a crash between
// the two must not make it untried.
func TestProvenBeforeItsTrialEnds(t *testing.T) {
	d := testDisk(t)
	w := newWriter(d, "v1", d.log)
	w.load()
	digest := ref(1).Digest
	w.try(map[version.Digest]bool{digest: true})
	w.remember(remembered(1), map[version.Digest]bool{digest: true})
	w.flush()
	isOpen := func() bool { _, err := os.Stat(d.trialFile(digest)); return err == nil }
	if !isOpen() {
		t.Fatal("the trial is not on disk")
	}
	// The numbers cannot be written.
	seen := filepath.Join(d.dir("f1"), seenFile)
	if err := os.Remove(seen); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(seen, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.prove(digest)
	w.flush()
	if !isOpen() {
		t.Error("the trial ended while nothing says that the digest is proven")
	}
	if err := os.RemoveAll(seen); err != nil {
		t.Fatal(err)
	}
	w.flush()
	if got := d.load(); isOpen() || len(got.Proven) != 1 || w.trouble() != "" {
		t.Errorf("open %v, proven %v, trouble %q", isOpen(), got.Proven, w.trouble())
	}
}

// What was received is on disk at once, and one file; what was served is told
// by the name of its state, without the numbers being written again.
func TestReceivedAtOnceServedLater(t *testing.T) {
	d := testDisk(t)
	w := newWriter(d, "v1", d.log)
	w.load()
	received := remembered(1)
	received.Received = &rollout.Assignment{Group: "g", Epoch: 2, Nonce: "n", Stable: ref(2)}
	w.remember(received, map[version.Digest]bool{})
	w.write(false)
	var m memory
	path := filepath.Join(d.dir("f1"), seenFile)
	if err := readSealed(path, &m); err != nil || m.Received == nil || m.Received.Epoch != 2 {
		t.Fatalf("received: %+v, %v", m.Received, err)
	}
	if files, _ := filepath.Glob(filepath.Join(d.dir("f1"), goodPrefix+"*")); len(files) != 0 {
		t.Errorf("written before it is calm: %v", files)
	}
	w.flush()
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	served := remembered(2, 1)
	served.HighestEpoch, served.HighestRevision = received.HighestEpoch, received.HighestRevision
	w.remember(served, map[version.Digest]bool{})
	w.flush()
	after, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("the numbers were written though the state's name tells them")
	}
	if got := d.load(); got.Served != 2 || len(got.Good) != 2 || got.HighestEpoch != 3 {
		t.Errorf("remembers %+v", got)
	}
}

// Two snapshots share a chunk that is not on disk yet. The first is dropped:
// what the second needs stays.
func TestSharedChunkOutlivesItsFirstSnapshot(t *testing.T) {
	d := testDisk(t)
	w := newWriter(d, "v1", d.log)
	w.load()
	one, p := packedSnapshot(t, "one")
	p.needs = chunksOf(one.Manifest)
	w.hold(one.Digest, p)
	two := ref(2).Digest
	w.expect(two, p.needs) // it found the chunk on its way to the disk
	w.remember(remembered(1), map[version.Digest]bool{two: true})
	w.hold(two, packed{manifest: []byte("two"), needs: p.needs})
	w.flush()
	for _, c := range p.needs {
		if _, err := d.chunk("f1", c); err != nil {
			t.Errorf("chunk %s: %v", c.Short(), err)
		}
		if len(w.chunks) != 0 || !w.hasChunk(c) {
			t.Error("its bytes are held still, or it is not known to be there")
		}
	}
	if _, err := w.manifest(one.Digest); err == nil {
		t.Error("the first is there")
	}
}

// Trials leave nothing behind but crashes, and one that begins again before its
// end was written stays open.
func TestTrialsLeaveNothingBehind(t *testing.T) {
	d := testDisk(t)
	w := newWriter(d, "v1", d.log)
	w.load()
	for i := range 20 {
		on := map[version.Digest]bool{ref(i).Digest: true}
		w.try(on)
		w.write(false)
		w.try(nil)
		w.try(on)
		w.flush()
		if _, err := os.Stat(d.trialFile(ref(i).Digest)); err != nil {
			t.Fatalf("trial %d: %v", i, err)
		}
	}
	w.try(nil)
	w.flush()
	if files, _ := os.ReadDir(filepath.Dir(d.trialFile(version.Digest{}))); len(files)+len(w.trials)+len(w.onDisk) != 0 {
		t.Errorf("%d trials on disk, %d known", len(files), len(w.trials))
	}
}
