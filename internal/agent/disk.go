package agent

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/version"
)

// A memory is what outlives the process.
type memory struct {
	Fleet           string               `json:"fleet"`
	Group           string               `json:"group"`
	Build           string               `json:"build,omitempty"`
	Saved           time.Time            `json:"saved"`
	Served          int64                `json:"served"`          // highest epoch served
	HighestEpoch    int64                `json:"highestEpoch"`    // ever seen
	HighestRevision int64                `json:"highestRevision"` // ever seen
	Received        *rollout.Assignment  `json:"received,omitempty"`
	Proven          []version.Digest     `json:"proven,omitempty"` // ran well for a while, under Build
	Good            []rollout.Assignment `json:"-"`                // served, newest first; a file each
}

// equal tells whether two memories say the same of what the core knows.
func (m memory) equal(o memory) bool {
	if m.Fleet != o.Fleet || m.Served != o.Served || m.HighestEpoch != o.HighestEpoch || m.HighestRevision != o.HighestRevision ||
		(m.Received == nil) != (o.Received == nil) || (m.Received != nil && !same(m.Received, o.Received)) {
		return false
	}
	return slices.EqualFunc(m.Good, o.Good, func(a, b rollout.Assignment) bool { return same(&a, &b) })
}

// A goodState is one assignment that was served.
type goodState struct {
	Fleet      string             `json:"fleet"`
	Group      string             `json:"group"`
	Assignment rollout.Assignment `json:"assignment"`
}

// The layout below the state directory:
//
//	<fleet>/<group>/seen                 memory
//	<fleet>/<group>/good-<epoch>         goodState, one for each of the last three
//	<fleet>/<group>/manifests/<digest>   canonical bytes
//	<fleet>/<group>/chunks/<digest>      as in etcd, after a checksum
//	.trials/<group>/<digest>             trial
//	.trials/<group>/crash, crash.last    what the runtime said when it died
//
// Names that are none of these are left alone.
const (
	seenFile   = "seen"
	goodPrefix = "good-"
	dirChunks  = "chunks"
	dirMans    = "manifests"
	dirTrials  = ".trials"

	sealKind  = "routerd-state/"
	sealMagic = sealKind + "1 "
	maxState  = 16 << 20 // bytes of any file that is read
)

var errNotOnDisk = errors.New("not on disk")

// A disk is one group's state directory. It is used by one goroutine at a
// time, but for chunk, hasChunk and manifest, which the builder calls meanwhile.
//
// What this process wrote or has read and checked it knows to be whole: whether
// it is still there is then all that is asked.
type disk struct {
	root, group string
	log         *slog.Logger

	wrote written

	mu    sync.Mutex
	whole map[string]bool // paths of chunks and manifests
	needs map[version.Digest][]version.Digest
}

// written is what save last wrote, so that it is not written again.
type written struct {
	fleet string
	seen  *memory                      // nil: not known
	good  map[int64]rollout.Assignment // the files there are; zero: content not known
}

// dir is where a fleet's state is. Ids that are no plain file names are
// replaced by their hash: they came out of etcd.
func (d *disk) dir(fleet string) string {
	return filepath.Join(d.root, fileName(fleet), fileName(d.group))
}

func fileName(s string) string {
	plain := s != "" && len(s) <= 64 && s[0] != '.' && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}) < 0
	if plain {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return "x-" + hex.EncodeToString(sum[:16])
}

// load reads the newest fleet's memory that has a good state. What cannot be
// read is passed over and told in the log; a missing directory is an empty
// memory.
func (d *disk) load() memory {
	fleets, err := os.ReadDir(d.root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("state directory cannot be read, starting without a memory", "err", err)
	}
	var best memory
	for _, f := range fleets {
		if !f.IsDir() || strings.HasPrefix(f.Name(), ".") {
			continue
		}
		m, ok := d.loadFleet(filepath.Join(d.root, f.Name(), fileName(d.group)))
		if ok && (best.Good == nil || m.Saved.After(best.Saved)) {
			best = m
		}
	}
	return best
}

// loadFleet reads one fleet's memory; false when no state in it is good.
func (d *disk) loadFleet(dir string) (memory, bool) {
	var m memory
	files, err := os.ReadDir(dir)
	if err != nil {
		return m, false
	}
	if err := readSealed(filepath.Join(dir, seenFile), &m); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("remembered numbers cannot be read", "err", err)
		m = memory{}
	}
	for _, f := range slices.Backward(files) {
		epoch, ok := goodEpoch(f.Name())
		if !ok {
			continue
		}
		// Also of a file that cannot be read: it was served.
		m.Served = max(m.Served, epoch)
		var g goodState
		err := readSealed(filepath.Join(dir, f.Name()), &g)
		switch {
		case err == nil && (g.Assignment.Epoch != epoch || g.Group != d.group || fileName(g.Fleet) != filepath.Base(filepath.Dir(dir))):
			err = errors.New("it is of another fleet, group or epoch")
			fallthrough
		case err != nil:
			d.log.Warn("a remembered state is unusable, going on with the next older", "epoch", epoch, "err", err)
			continue
		}
		if len(m.Good) == keep {
			continue
		}
		m.Good = append(m.Good, g.Assignment)
		m.Fleet, m.Group = g.Fleet, g.Group
		if m.Saved.IsZero() {
			if info, err := f.Info(); err == nil {
				m.Saved = info.ModTime()
			}
		}
	}
	slices.SortFunc(m.Good, func(a, b rollout.Assignment) int { return cmp.Compare(b.Epoch, a.Epoch) })
	m.HighestEpoch = max(m.HighestEpoch, m.Served)
	return m, len(m.Good) > 0
}

func goodFile(epoch int64) string { return fmt.Sprintf("%s%020d", goodPrefix, epoch) }

func goodEpoch(name string) (int64, bool) {
	s, ok := strings.CutPrefix(name, goodPrefix)
	if !ok || len(s) != 20 {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n > 0
}

// save writes a memory: the good states first, then the numbers. It goes on
// after a failure and returns them all.
func (d *disk) save(m memory) error {
	dir := d.dir(m.Fleet)
	d.look(m.Fleet, dir)
	var errs []error
	have := map[int64]bool{}
	for i := range m.Good {
		a := &m.Good[i]
		have[a.Epoch] = true
		path := filepath.Join(dir, goodFile(a.Epoch))
		if old, ok := d.wrote.good[a.Epoch]; ok && same(&old, a) && isThere(path) {
			continue
		}
		err := writeSealed(path, goodState{Fleet: m.Fleet, Group: m.Group, Assignment: *a})
		if err == nil {
			d.wrote.good[a.Epoch] = *a
		}
		errs = append(errs, err)
	}
	if seen := d.wrote.seen; seen == nil || m.tellsMoreThan(seen) {
		errs = append(errs, d.saveSeen(m))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remember epoch %d: %w", m.Served, err)
	}
	for epoch := range d.wrote.good {
		if have[epoch] {
			continue
		}
		if err := os.Remove(filepath.Join(dir, goodFile(epoch))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		delete(d.wrote.good, epoch)
	}
	return errors.Join(errs...)
}

// saveReceived has the numbers and what was received on disk, if they are not
// there yet.
func (d *disk) saveReceived(m memory) error {
	d.look(m.Fleet, d.dir(m.Fleet))
	if seen := d.wrote.seen; seen != nil && !m.tellsMoreThan(seen) {
		return nil
	}
	return d.saveSeen(m)
}

// saveSeen writes the numbers and what was received.
func (d *disk) saveSeen(m memory) error {
	dir := d.dir(m.Fleet)
	d.look(m.Fleet, dir)
	if err := writeSealed(filepath.Join(dir, seenFile), m); err != nil {
		return err
	}
	d.wrote.seen = &m
	return nil
}

// look finds out which states there are in a fleet's directory, once.
func (d *disk) look(fleet, dir string) {
	if d.wrote.fleet == fleet && d.wrote.good != nil {
		return
	}
	d.wrote = written{fleet: fleet, good: map[int64]rollout.Assignment{}}
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("remembered states cannot be listed, old ones may stay", "err", err)
	}
	for _, f := range files {
		if epoch, ok := goodEpoch(f.Name()); ok {
			d.wrote.good[epoch] = rollout.Assignment{}
		}
	}
}

// tellsMoreThan tells whether m has to be written where old was. That what
// was received has been served since is told by the name of its state.
func (m memory) tellsMoreThan(old *memory) bool {
	served := old.Served
	for _, a := range m.Good {
		served = max(served, a.Epoch)
	}
	return m.Fleet != old.Fleet || m.Build != old.Build || m.Served > served ||
		m.HighestEpoch != old.HighestEpoch || m.HighestRevision != old.HighestRevision || !slices.Equal(m.Proven, old.Proven) ||
		m.Received != nil && (old.Received == nil || !same(m.Received, old.Received))
}

// sealed is v as JSON after a line with its checksum.
func sealed(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	sum := sha256.Sum256(body)
	return append([]byte(sealMagic+hex.EncodeToString(sum[:])+"\n"), body...), nil
}

// writeSealed writes v so that readSealed knows whether it is whole.
func writeSealed(path string, v any) error {
	b, err := sealed(v)
	if err != nil {
		return err
	}
	return writeFile(path, b)
}

// readSealed reads what writeSealed wrote, and nothing else.
func readSealed(path string, v any) error {
	b, err := readFile(path)
	if err != nil {
		return err
	}
	head, body, ok := bytes.Cut(b, []byte("\n"))
	if layout, ours := bytes.CutPrefix(head, []byte(sealKind)); ok && ours && !bytes.HasPrefix(head, []byte(sealMagic)) {
		if n, _, ok := strings.Cut(string(layout), " "); ok {
			return fmt.Errorf("read %s: it is of layout %.20s, this build knows %s: start the build that wrote it, or a newer one", filepath.Base(path), n, strings.TrimSpace(sealMagic[len(sealKind):]))
		}
	}
	sum := sha256.Sum256(body)
	if !ok || string(head) != sealMagic+hex.EncodeToString(sum[:]) {
		return fmt.Errorf("read %s: checksum does not match", filepath.Base(path))
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(path), err)
	}
	return nil
}

// writeFile replaces a file as a whole or not at all, and makes its directory.
func writeFile(path string, b []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return renameio.WriteFile(path, b, 0o600, renameio.WithTempDir(dir))
}

func readFile(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxState {
		return nil, fmt.Errorf("read %s: not a file of ours", filepath.Base(path))
	}
	return os.ReadFile(path)
}

// CheckFile tells what is wrong with a file of a state directory, by its kind
// and its checksum; nil also for one that has none.
func CheckFile(path string) error {
	name := filepath.Base(path)
	switch filepath.Base(filepath.Dir(path)) {
	case dirChunks:
		_, err := readChunk(path)
		return err
	case dirMans:
		b, err := readFile(path)
		if err == nil && version.DigestOf(b).String() != name {
			err = fmt.Errorf("read %s: it is not the manifest of its name", name)
		}
		return err
	}
	if _, ok := goodEpoch(name); ok || name == seenFile {
		return readSealed(path, new(json.RawMessage))
	}
	return nil
}

// isThere tells whether a file is there, whatever it says.
func isThere(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular()
}
