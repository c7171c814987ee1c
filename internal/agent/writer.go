package agent

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"routerd.dev/internal/version"
)

// tryDiskAgain is how often a disk that failed is tried.
const tryDiskAgain = 10 * time.Second

// A writer is the one goroutine that writes to the disk, so that a slow one
// delays nobody: what is to be written waits here, newest wins, bounded by
// what the agent holds.
type writer struct {
	disk  *disk
	build string
	log   *slog.Logger
	wake  chan struct{}

	mu        sync.Mutex
	next      *memory
	fleet     string
	keep      map[version.Digest]bool
	snapshots map[version.Digest]packed
	trials    map[version.Digest]trial // of this build
	changed   []version.Digest         // whose trial is to be written
	waiting   []chan struct{}          // closed once what changed is written
	proven    map[version.Digest]bool
	failing   string
	saved     time.Time // of the newest memory; only grows
}

func newWriter(d *disk, build string, log *slog.Logger) *writer {
	return &writer{
		disk: d, build: build, log: log, wake: make(chan struct{}, 1),
		snapshots: map[version.Digest]packed{}, trials: map[version.Digest]trial{}, proven: map[version.Digest]bool{},
	}
}

// load reads what a former life left: its memory and the digests that crashed
// it too often.
func (w *writer) load() (memory, []version.Digest) {
	if w == nil {
		return memory{}, nil
	}
	m := w.disk.load()
	w.trials = w.disk.reckon(w.build)
	if m.Build == w.build {
		for _, d := range m.Proven {
			w.proven[d] = true
		}
	}
	w.fleet, w.saved = m.Fleet, m.Saved
	var bad []version.Digest
	for _, d := range sortedDigests(w.trials) {
		if w.trials[d].Crashes >= maxCrashes {
			bad = append(bad, d)
		}
	}
	return m, bad
}

func (w *writer) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// remember has m written soon; keep are the digests whose snapshots stay.
func (w *writer) remember(m memory, keep map[version.Digest]bool) {
	if w == nil || m.Fleet == "" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range m.Good {
		for _, r := range a.Set {
			keep[r.Digest] = true
		}
	}
	for d := range w.snapshots {
		if !keep[d] {
			delete(w.snapshots, d)
		}
	}
	maps.DeleteFunc(w.proven, func(d version.Digest, _ bool) bool { return !keep[d] })
	// After a recovery the newest memory is of another fleet than the one before:
	// that is told by this time, so a clock that was set back must not lower it.
	if now := time.Now().UTC(); now.After(w.saved) {
		w.saved = now
	} else {
		w.saved = w.saved.Add(1)
	}
	m.Build, m.Proven, m.Saved = w.build, sortedDigests(w.proven), w.saved
	w.next, w.keep, w.fleet = &m, keep, m.Fleet
	w.poke()
}

// hold has a checked snapshot written soon.
func (w *writer) hold(d version.Digest, p packed) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.snapshots[d] = p
	w.poke()
}

// try says which digests are being tried now: what is compiled, is about to be
// served or is served for the first time. Their trials are opened, all others
// closed; those that have proven themselves have none. The channel is closed
// when that is on disk.
func (w *writer) try(now map[version.Digest]bool) <-chan struct{} {
	done := make(chan struct{})
	if w == nil {
		close(done)
		return done
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for d := range now {
		if t := w.trials[d]; !w.proven[d] && !t.Open {
			w.trials[d] = trial{Build: w.build, Crashes: t.Crashes, Open: true}
			w.changed = append(w.changed, d)
		}
	}
	for d, t := range w.trials {
		if t.Open && !now[d] {
			t.Open = false
			w.trials[d] = t
			w.changed = append(w.changed, d)
		}
	}
	if len(w.changed) == 0 {
		close(done)
		return done
	}
	w.waiting = append(w.waiting, done)
	w.poke()
	return done
}

// prove ends the trials of digests that were served well; false when they had
// none.
func (w *writer) prove(ds ...version.Digest) bool {
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	some := false
	for _, d := range ds {
		if !w.proven[d] {
			w.proven[d], some = true, true
			delete(w.trials, d)
			w.changed = append(w.changed, d)
		}
	}
	if some {
		w.poke()
	}
	return some
}

// stop ends every trial but those of quarantined digests: the process ends of
// its own will.
func (w *writer) stop() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for d, t := range w.trials {
		if t.Crashes < maxCrashes {
			delete(w.trials, d)
			w.changed = append(w.changed, d)
		}
	}
	w.poke()
}

// trouble tells why the disk does not remember; empty when it does.
func (w *writer) trouble() string {
	if w == nil {
		return ""
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failing
}

// chunk and manifest read what is on disk or on its way there.
func (w *writer) chunk(d version.Digest) ([]byte, error) {
	if w == nil {
		return nil, errNotOnDisk
	}
	w.mu.Lock()
	fleet := w.fleet
	for _, p := range w.snapshots {
		if b, ok := p.chunks[d]; ok {
			w.mu.Unlock()
			return b, nil
		}
	}
	w.mu.Unlock()
	return w.disk.chunk(fleet, d)
}

func (w *writer) manifest(d version.Digest) ([]byte, error) {
	if w == nil {
		return nil, errNotOnDisk
	}
	w.mu.Lock()
	fleet := w.fleet
	p, ok := w.snapshots[d]
	w.mu.Unlock()
	if ok {
		return p.manifest, nil
	}
	return w.disk.manifest(fleet, d)
}

// run writes until ctx ends, and then what is left.
func (w *writer) run(ctx context.Context) {
	if w == nil {
		return
	}
	again := time.NewTicker(tryDiskAgain)
	defer again.Stop()
	for {
		select {
		case <-w.wake:
			w.flush()
		case <-again.C:
			if w.trouble() != "" {
				w.flush()
			}
		case <-ctx.Done():
			w.flush()
			return
		}
	}
}

// flush writes what there is: trials first, for a crash may come next.
func (w *writer) flush() {
	w.mu.Lock()
	changed, waiting := w.changed, w.waiting
	w.changed, w.waiting = nil, nil
	trials := map[version.Digest]*trial{}
	for _, d := range changed {
		trials[d] = nil
		if t, ok := w.trials[d]; ok {
			trials[d] = &t
		}
	}
	m, keep, snapshots := w.next, w.keep, maps.Clone(w.snapshots)
	w.next = nil
	fleet := w.fleet
	w.mu.Unlock()

	var failed error
	note := func(err error) {
		if err != nil && failed == nil {
			failed = err
		}
	}
	for _, d := range sortedDigests(trials) {
		if t := trials[d]; t != nil {
			note(writeSealed(w.disk.trialFile(d), t))
		} else {
			w.disk.closeTrial(d)
		}
	}
	for _, ch := range waiting {
		close(ch)
	}
	if fleet != "" {
		for _, d := range sortedDigests(snapshots) {
			err := w.disk.saveSnapshot(fleet, d, snapshots[d])
			note(err)
			if err == nil {
				w.written(d, snapshots[d])
			}
		}
	}
	if m != nil {
		note(w.disk.save(*m))
		note(w.disk.collect(m.Fleet, keep))
	}
	w.report(failed)
	if failed != nil {
		w.again(m)
	}
}

// written lets go of a snapshot's bytes, unless there are newer ones.
func (w *writer) written(d version.Digest, p packed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if q, ok := w.snapshots[d]; ok && &q.manifest[0] == &p.manifest[0] {
		delete(w.snapshots, d)
	}
}

// again keeps what could not be written for the next time there is something
// to write.
func (w *writer) again(m *memory) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.next == nil {
		w.next = m
	}
}

// report logs when the disk stops or starts to work, not each time.
func (w *writer) report(err error) {
	w.mu.Lock()
	was := w.failing
	w.failing = ""
	if err != nil {
		w.failing = line(err.Error())
	}
	now := w.failing
	w.mu.Unlock()
	switch {
	case now != "" && was == "":
		w.log.Error("the disk does not remember, serving goes on; a restart without etcd would serve an older state", "error", err)
	case now == "" && was != "":
		w.log.Info("the disk remembers again")
	}
}
