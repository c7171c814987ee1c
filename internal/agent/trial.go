package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"routerd.dev/internal/version"
)

// maxCrashes is how many crashes of the process quarantine a digest.
const maxCrashes = 2

// A trial is kept on disk for a digest that has not proven itself: open while
// it is compiled and while it is served for the first time. A process that
// starts and finds one open knows that its former life ended there, but not
// why. Power fails, and operators and the kernel kill what runs well: that says
// nothing of the digest. So an end counts only if the dying runtime left a
// note, as it does after panics and all its fatal errors, or if the digest was
// being compiled: what then takes all memory is killed without a word. An end
// with the whole machine never counts.
type trial struct {
	Build     string `json:"build"` // counts are of one build: another may do better
	Crashes   int    `json:"crashes"`
	Open      bool   `json:"open"`
	Compiling bool   `json:"compiling,omitempty"` // else it is served, or about to be
	Machine   string `json:"machine,omitempty"`   // which start of the machine it was opened in
}

// The runtime's last words, beside the trials, and those of the crash before.
const (
	crashFile = "crash"
	lastCrash = "crash.last"
)

// BootID names this start of the machine; empty where the kernel does not tell.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if words := strings.Fields(string(b)); err == nil && len(words) == 1 {
		return words[0]
	}
	return ""
}

func (d *disk) crashFile() string {
	return filepath.Join(d.root, dirTrials, fileName(d.group), crashFile)
}

// crashed tells whether the former life left a note of its crash. The stacks
// that SIGQUIT and SIGABRT ask for are somebody's wish, and no crash.
func (d *disk) crashed() bool {
	f, err := os.Open(d.crashFile())
	if err != nil {
		return false
	}
	defer f.Close()
	var b [64]byte
	n, _ := io.ReadFull(f, b[:]) // what there is will do
	return n > 0 && !bytes.HasPrefix(b[:n], []byte("SIGQUIT")) && !bytes.HasPrefix(b[:n], []byte("SIGABRT"))
}

// arm has note write this life's last words. Those of a former one are kept
// for whoever reports the bug, under a name that does not count again.
func (d *disk) arm(note func(*os.File) error) error {
	path := d.crashFile()
	if info, err := os.Lstat(path); err == nil && info.Size() > 0 {
		if err := os.Rename(path, filepath.Join(filepath.Dir(path), lastCrash)); err != nil {
			return fmt.Errorf("keep the note of the last crash: %w", err)
		}
	}
	if note == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return note(f)
}

// lastResortPause is how long after a start a digest that crashed the process
// so often is tried where nothing else can serve: time to prepare another
// revision.
func lastResortPause(crashes int) time.Duration {
	return min(time.Second<<min(max(crashes-maxCrashes, 0), 10), time.Minute)
}

func (d *disk) trialFile(digest version.Digest) string {
	return filepath.Join(d.root, dirTrials, fileName(d.group), digest.String())
}

// reckon counts the crashes of the process's former lives and returns the
// trials of this build, all closed. Only a start calls it.
func (d *disk) reckon(build string) map[version.Digest]trial {
	trials := map[version.Digest]trial{}
	dir := filepath.Dir(d.trialFile(version.Digest{}))
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("trials cannot be read, crashes of the former process are not counted", "err", err)
	}
	crashed, machine := d.crashed(), BootID()
	for _, f := range files {
		digest, err := version.ParseDigest(f.Name())
		if err != nil {
			continue
		}
		var t trial
		if err := readSealed(filepath.Join(dir, f.Name()), &t); err != nil || t.Build != build {
			d.closeTrial(digest)
			continue
		}
		if t.Open {
			counts := t.Machine == machine && (crashed || t.Compiling)
			t.Open, t.Compiling = false, false
			if !counts {
				d.log.Info("the process ended while it tried a digest, and not because of it", "digest", digest.Short(), "crashes", t.Crashes)
				if t.Crashes == 0 {
					d.closeTrial(digest)
					continue
				}
			} else {
				t.Crashes++
				d.log.Warn("the process crashed while it tried a digest", "digest", digest.Short(), "crashes", t.Crashes, "trace", crashed)
			}
			if err := writeSealed(d.trialFile(digest), t); err != nil {
				d.log.Warn("a crash cannot be counted on disk", "digest", digest.Short(), "err", err)
			}
		}
		trials[digest] = t
	}
	return trials
}

// openTrial notes that a digest is tried. The note of one that never crashed
// the process is not synced: it has to outlive the process, not the machine, and a
// compile waits for it.
func (d *disk) openTrial(digest version.Digest, t trial) error {
	path := d.trialFile(digest)
	if t.Crashes > 0 {
		return writeSealed(path, t)
	}
	b, err := sealed(t)
	if err != nil {
		return err
	}
	if err = os.WriteFile(path, b, 0o600); errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			err = os.WriteFile(path, b, 0o600)
		}
	}
	return err
}

// closeTrial forgets a digest's trial.
func (d *disk) closeTrial(digest version.Digest) {
	if err := os.Remove(d.trialFile(digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("a trial cannot be closed", "digest", digest.Short(), "err", err)
	}
}
