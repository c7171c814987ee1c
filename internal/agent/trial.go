package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"routerd.dev/internal/version"
)

// maxCrashes is how many crashes of the process quarantine a digest.
const maxCrashes = 2

// A trial is kept on disk for a digest that has not proven itself: open while
// it is compiled and while it is served for the first time. A process that
// starts and finds one open knows that its former life ended there.
type trial struct {
	Build   string `json:"build"` // counts are of one build: another may do better
	Crashes int    `json:"crashes"`
	Open    bool   `json:"open"`
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
		d.log.Warn("trials cannot be read, crashes of the former process are not counted", "error", err)
	}
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
			t.Crashes, t.Open = t.Crashes+1, false
			if err := writeSealed(d.trialFile(digest), t); err != nil {
				d.log.Warn("a crash cannot be counted on disk", "digest", digest.Short(), "error", err)
			}
			d.log.Warn("the process ended while it tried a digest", "digest", digest.Short(), "crashes", t.Crashes)
		}
		trials[digest] = t
	}
	return trials
}

// closeTrial forgets a digest's trial.
func (d *disk) closeTrial(digest version.Digest) {
	if err := os.Remove(d.trialFile(digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("a trial cannot be closed", "digest", digest.Short(), "error", err)
	}
}
