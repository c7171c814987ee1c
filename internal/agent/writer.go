package agent

import (
	"cmp"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"routerd.dev/internal/version"
)

const (
	// tryDiskAgain is how often a disk that failed is tried.
	tryDiskAgain = 5 * time.Second

	// calm is how long nothing new must have come before what can wait is written:
	// a switch is over by then, and the writes of instances that share a disk or
	// processors fall apart. longestCalm bounds the wait.
	calm        = 100 * time.Millisecond
	longestCalm = time.Second
)

// A writer is the one goroutine that writes to the disk, so that a slow one
// delays nobody: what is to be written waits here, newest wins, bounded by
// what the agent holds.
//
// Two things are written at once, and between two files of all else: that a
// trial begins, for a crash may come next, and what was received, which is to
// be on disk before the instant. The rest is written after the switch. What is
// to be and what is on disk are two sets of fields; a write that failed is made
// good by comparing them again.
type writer struct {
	disk  *disk
	build string
	log   *slog.Logger
	note  func(*os.File) error // has the runtime write its last words there; nil for nobody
	boot  string               // which start of the machine this is
	wake  chan struct{}
	done  chan struct{} // closed

	mu        sync.Mutex
	hurry     bool      // something is to be written at once
	due       time.Time // when the rest is; zero: there is none
	latest    time.Time // due is never put off beyond it
	newest    memory    // the last that was to be remembered
	next      *memory   // newest, until it is on disk
	saved     time.Time // of the newest memory; only grows
	fleet     string
	keep      map[version.Digest]bool
	sweep     bool                                // something on disk may be needed no more
	manifests map[version.Digest][]byte           // to be written
	chunks    map[version.Digest][]byte           // to be written
	needs     map[version.Digest][]version.Digest // the chunks of what is held or fetched
	trials    map[version.Digest]trial            // of this build, as they are to be
	onDisk    map[version.Digest]trial            // as they are
	waiting   chan struct{}                       // nil, or closed once it was tried to have the trials that are open on disk
	proven    map[version.Digest]bool
	recorded  map[version.Digest]bool // proven, and on disk as such
	ending    bool
	failing   string
	held      map[version.Digest]bool // pieces were to be written
	looking   bool                    // whether the states are whole is to be found out
	damaged   string                  // what is not, and cannot be mended
}

func newWriter(d *disk, build string, log *slog.Logger) *writer {
	done := make(chan struct{})
	close(done)
	return &writer{
		disk: d, build: build, log: log, boot: BootID(), wake: make(chan struct{}, 1), done: done,
		manifests: map[version.Digest][]byte{}, chunks: map[version.Digest][]byte{}, needs: map[version.Digest][]version.Digest{},
		trials: map[version.Digest]trial{}, onDisk: map[version.Digest]trial{},
		proven: map[version.Digest]bool{}, recorded: map[version.Digest]bool{}, held: map[version.Digest]bool{},
	}
}

// load reads what a former life left: its memory and the digests that crashed
// it too often.
func (w *writer) load() (memory, []version.Digest) {
	if w == nil {
		return memory{}, nil
	}
	m, trials := w.disk.load(), w.disk.reckon(w.build)
	if err := w.disk.arm(w.note); err != nil {
		w.log.Warn("a crash of this process will leave no note: it will not count against what it tried", "err", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trials, w.onDisk = trials, maps.Clone(trials)
	if m.Build == w.build {
		for _, d := range m.Proven {
			w.proven[d], w.recorded[d] = true, true
		}
	}
	w.newest, w.fleet, w.saved = m, m.Fleet, m.Saved
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

// later has what there is written when it is calm. w.mu is held.
func (w *writer) later() {
	now := time.Now()
	if w.due.IsZero() {
		w.latest = now.Add(longestCalm)
	}
	w.due = now.Add(jitter(calm))
	if w.due.After(w.latest) {
		w.due = w.latest
	}
	w.poke()
}

// remember has m written: at once when it says what was received, else soon.
// keep are the digests whose snapshots stay.
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
	w.sweep = w.sweep || !maps.Equal(keep, w.keep)
	w.keep, w.fleet = keep, m.Fleet
	w.forget()
	w.renew(m)
	w.hurry = w.hurry || m.Received != nil
	w.later()
}

// renew makes m the newest memory. w.mu is held.
func (w *writer) renew(m memory) {
	// After a recovery the newest memory is of another fleet than the one before:
	// that is told by this time, so a clock that was set back must not lower it.
	if now := time.Now().UTC(); now.After(w.saved) {
		w.saved = now
	} else {
		w.saved = w.saved.Add(1)
	}
	m.Build, m.Proven, m.Saved = w.build, sortedDigests(w.proven), w.saved
	w.newest, w.next = m, &m
}

// forget lets go of what no digest that is kept needs. w.mu is held.
func (w *writer) forget() {
	gone := func(d version.Digest) bool { return !w.keep[d] }
	maps.DeleteFunc(w.manifests, func(d version.Digest, _ []byte) bool { return gone(d) })
	maps.DeleteFunc(w.needs, func(d version.Digest, _ []version.Digest) bool { return gone(d) })
	maps.DeleteFunc(w.held, func(d version.Digest, _ bool) bool { return gone(d) })
	maps.DeleteFunc(w.proven, func(d version.Digest, _ bool) bool { return gone(d) })
	maps.DeleteFunc(w.recorded, func(d version.Digest, _ bool) bool { return gone(d) })
	if len(w.chunks) == 0 {
		return
	}
	needed := w.needed()
	maps.DeleteFunc(w.chunks, func(c version.Digest, _ []byte) bool { return !needed[c] })
}

// needed returns the chunks of what is held or fetched. w.mu is held.
func (w *writer) needed() map[version.Digest]bool {
	all := map[version.Digest]bool{}
	for _, cs := range w.needs {
		for _, c := range cs {
			all[c] = true
		}
	}
	return all
}

// expect says that a digest that is being fetched needs these chunks: what
// there is of them stays.
func (w *writer) expect(d version.Digest, chunks []version.Digest) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.needs[d] = chunks
}

// hold has a checked snapshot written soon.
func (w *writer) hold(d version.Digest, p packed) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.manifests[d], w.needs[d], w.held[d] = p.manifest, p.needs, true
	maps.Copy(w.chunks, p.chunks)
	w.sweep = w.sweep || !w.keep[d]
	w.later()
}

// try says which digests are being tried now: what is compiled, is about to be
// served or is served for the first time, and which of them are compiled. Their
// trials are opened, all others closed; those that have proven themselves have
// none. The channel is closed when all that are open are on disk as such, or
// the disk would not take them.
func (w *writer) try(now map[version.Digest]bool, compiling ...version.Digest) <-chan struct{} {
	if w == nil {
		done := make(chan struct{})
		close(done)
		return done
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for d := range now {
		if !w.proven[d] {
			w.trials[d] = trial{
				Build: w.build, Crashes: w.trials[d].Crashes, Open: true, Compiling: slices.Contains(compiling, d), Machine: w.boot,
			}
		}
	}
	open := true
	for d, t := range w.trials {
		switch {
		case t.Open && !now[d]:
			t.Open = false
			w.trials[d] = t
			w.later()
		case t.Open && w.onDisk[d] != t:
			open = false
		}
	}
	if open {
		return w.done
	}
	if w.waiting == nil {
		w.waiting = make(chan struct{})
	}
	w.hurry = true
	w.poke()
	return w.waiting
}

// prove ends the trials of digests that were served well; false when they had
// none. They end on disk once it is there that they are proven.
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
		}
	}
	if !some {
		return false
	}
	if w.newest.Fleet != "" {
		w.renew(w.newest)
	}
	w.later()
	return true
}

// stop ends every trial but those of quarantined digests: the process ends of
// its own will.
func (w *writer) stop() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ending = true
	maps.DeleteFunc(w.trials, func(_ version.Digest, t trial) bool { return t.Crashes < maxCrashes })
	for d, t := range w.trials { // tried where nothing else could serve
		t.Open, t.Compiling = false, false
		w.trials[d] = t
	}
	w.later()
}

// crashes tells how often a digest crashed the process.
func (w *writer) crashes(d version.Digest) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.trials[d].Crashes
}

// forgive has no crash count any more.
func (w *writer) forgive() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for d, t := range w.trials {
		t.Crashes = 0
		w.trials[d] = t
	}
	w.hurry = true
	w.later()
}

// trouble tells why the disk does not remember; empty when it does.
func (w *writer) trouble() string {
	if w == nil {
		return ""
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return cmp.Or(w.failing, w.damaged)
}

// chunk and manifest read what is on disk or on its way there.
func (w *writer) chunk(d version.Digest) ([]byte, error) {
	if w == nil {
		return nil, errNotOnDisk
	}
	w.mu.Lock()
	fleet, b := w.fleet, w.chunks[d]
	w.mu.Unlock()
	if b != nil {
		return b, nil
	}
	return w.disk.chunk(fleet, d)
}

// hasChunk tells whether chunk would find a chunk, without reading it.
func (w *writer) hasChunk(d version.Digest) bool {
	if w == nil {
		return false
	}
	w.mu.Lock()
	fleet, b := w.fleet, w.chunks[d]
	w.mu.Unlock()
	return b != nil || w.disk.hasChunk(fleet, d)
}

func (w *writer) manifest(d version.Digest) ([]byte, error) {
	if w == nil {
		return nil, errNotOnDisk
	}
	w.mu.Lock()
	fleet, b := w.fleet, w.manifests[d]
	w.mu.Unlock()
	if b != nil {
		return b, nil
	}
	return w.disk.manifest(fleet, d)
}
