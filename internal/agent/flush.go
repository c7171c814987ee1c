package agent

import (
	"context"
	"errors"
	"maps"
	"time"

	"routerd.dev/internal/version"
)

// run writes until ctx ends, and then what is left.
func (w *writer) run(ctx context.Context) {
	if w == nil {
		return
	}
	again := time.NewTicker(tryDiskAgain)
	defer again.Stop()
	calm := time.NewTimer(longestCalm)
	defer calm.Stop()
	for {
		select {
		case <-w.wake:
			w.write(false)
			w.look()
		case <-calm.C:
			w.write(false)
		case <-again.C:
			if w.fails() {
				w.flush()
			}
		case <-ctx.Done():
			w.flush()
			return
		}
		w.mu.Lock()
		due := w.due
		w.mu.Unlock()
		if !due.IsZero() {
			calm.Reset(time.Until(due))
		}
	}
}

// fails tells whether the disk could not be written when it was tried last.
func (w *writer) fails() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failing != ""
}

// flush writes all there is.
func (w *writer) flush() { w.write(true) }

// write writes what is to be written at once, and the rest when it is due. A
// disk that failed is tried with all there is, or it would not be known whether it
// works again.
func (w *writer) write(all bool) {
	err := w.urgent()
	w.mu.Lock()
	all = all || err != nil || w.failing != "" || !w.due.IsZero() && !time.Now().Before(w.due)
	w.mu.Unlock()
	if all {
		w.report(errors.Join(err, w.rest()))
	}
}

// urgent writes what cannot wait: trials that begin, and what was received.
func (w *writer) urgent() error {
	w.mu.Lock()
	if !w.hurry {
		w.mu.Unlock()
		return nil
	}
	opening := map[version.Digest]trial{}
	for d, t := range w.trials {
		if t.Open && w.onDisk[d] != t {
			opening[d] = t
		}
	}
	m, waiting := w.next, w.waiting
	w.hurry, w.waiting = false, nil
	w.mu.Unlock()

	var errs []error
	for _, d := range sortedDigests(opening) {
		err := w.disk.openTrial(d, opening[d])
		if err == nil {
			w.mu.Lock()
			w.onDisk[d] = opening[d]
			w.mu.Unlock()
		}
		errs = append(errs, err)
	}
	if waiting != nil {
		close(waiting)
	}
	if m != nil && m.Received != nil {
		errs = append(errs, w.disk.saveReceived(*m))
	}
	err := errors.Join(errs...)
	if err != nil {
		w.mu.Lock()
		w.hurry = true
		w.mu.Unlock()
	}
	return err
}

// rest writes all that can wait, so that a crash at any moment finds nothing
// that needs what is not there yet: pieces before the state that names them, that a
// digest is proven before its trial ends.
func (w *writer) rest() error {
	w.mu.Lock()
	w.due = time.Time{}
	w.mu.Unlock()
	errs := []error{w.endTrials(), w.savePieces()}

	w.mu.Lock()
	m := w.next
	w.mu.Unlock()
	if m != nil {
		err := w.disk.save(*m)
		errs = append(errs, err)
		if err == nil {
			w.remembered(m)
			errs = append(errs, w.endTrials())
		}
	}
	errs = append(errs, w.urgent(), w.collect())
	return errors.Join(errs...)
}

// remembered notes that m is on disk.
func (w *writer) remembered(m *memory) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.next == m {
		w.next = nil
	}
	for _, d := range m.Proven {
		w.recorded[d] = true
	}
}

// endTrials closes on disk the trials that have ended. One that never crashed
// the process leaves nothing behind.
func (w *writer) endTrials() error {
	w.mu.Lock()
	was := map[version.Digest]trial{}
	closing := map[version.Digest]trial{} // the zero trial: there is to be none
	for d, old := range w.onDisk {
		t := w.trials[d]
		switch {
		case t.Open, t.Crashes > 0 && t == old, w.proven[d] && !w.recorded[d] && !w.ending:
			continue
		case t.Crashes == 0:
			delete(w.trials, d)
			t = trial{}
		}
		was[d], closing[d] = old, t
		delete(w.onDisk, d) // should it begin again meanwhile
	}
	maps.DeleteFunc(w.trials, func(_ version.Digest, t trial) bool { return !t.Open && t.Crashes == 0 })
	w.mu.Unlock()

	var errs []error
	for _, d := range sortedDigests(closing) {
		now := closing[d]
		if now == (trial{}) {
			w.disk.closeTrial(d)
			continue
		}
		if err := writeSealed(w.disk.trialFile(d), now); err != nil {
			errs, now = append(errs, err), was[d]
		}
		w.mu.Lock()
		w.onDisk[d] = now
		w.mu.Unlock()
	}
	return errors.Join(errs...)
}

// savePieces writes the snapshots that are not on disk, and lets go of their
// bytes.
func (w *writer) savePieces() error {
	var errs []error
	between := func() { errs = append(errs, w.urgent()) }
	w.mu.Lock()
	fleet, ds := w.fleet, sortedDigests(w.manifests)
	w.mu.Unlock()
	if fleet == "" {
		return nil // not known yet
	}
	for _, d := range ds {
		w.mu.Lock()
		p := packed{manifest: w.manifests[d], needs: w.needs[d], chunks: map[version.Digest][]byte{}}
		for _, c := range p.needs {
			if b := w.chunks[c]; b != nil {
				p.chunks[c] = b
			}
		}
		w.mu.Unlock()
		if p.manifest == nil {
			continue // needed no more
		}
		if err := w.disk.saveSnapshot(fleet, d, p, between); err != nil {
			errs = append(errs, err)
			continue
		}
		w.mu.Lock()
		delete(w.manifests, d)
		for c := range p.chunks {
			delete(w.chunks, c)
		}
		w.mu.Unlock()
	}
	return errors.Join(errs...)
}

// collect removes from the disk what is needed no more.
func (w *writer) collect() error {
	w.mu.Lock()
	fleet, keep, awaited, sweep := w.fleet, w.keep, w.needed(), w.sweep
	w.sweep = false
	w.mu.Unlock()
	if !sweep || keep == nil {
		return nil
	}
	err := w.disk.collect(fleet, keep, awaited)
	if err != nil {
		w.mu.Lock()
		w.sweep = true
		w.mu.Unlock()
	}
	return err
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
		w.log.Error("the disk does not remember, serving goes on; a restart without etcd would serve an older state", "err", err)
	case now == "" && was != "":
		w.log.Info("the disk remembers again")
	}
}
