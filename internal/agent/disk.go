package agent

import (
	"bytes"
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
//
// Names that are none of these are left alone.
const (
	seenFile   = "seen"
	goodPrefix = "good-"
	dirChunks  = "chunks"
	dirMans    = "manifests"
	dirTrials  = ".trials"

	sealMagic = "routerd-state/1 "
	maxState  = 16 << 20 // bytes of any file that is read
)

var errNotOnDisk = errors.New("not on disk")

// A disk is one group's state directory. It is used by one goroutine at a
// time, but for chunk and manifest, which the builder calls meanwhile.
type disk struct {
	root, group string
	log         *slog.Logger
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
		d.log.Warn("state directory cannot be read, starting without a memory", "error", err)
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
		d.log.Warn("remembered numbers cannot be read", "error", err)
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
			d.log.Warn("a remembered state is unusable, going on with the next older", "epoch", epoch, "error", err)
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
	slices.SortFunc(m.Good, func(a, b rollout.Assignment) int { return int(b.Epoch - a.Epoch) })
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
	var errs []error
	have := map[string]bool{}
	for _, a := range m.Good {
		name := goodFile(a.Epoch)
		have[name] = true
		g := goodState{Fleet: m.Fleet, Group: m.Group, Assignment: a}
		errs = append(errs, writeSealed(filepath.Join(dir, name), g))
	}
	errs = append(errs, writeSealed(filepath.Join(dir, seenFile), m))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remember epoch %d: %w", m.Served, err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list states: %w", err)
	}
	for _, f := range files {
		if _, ok := goodEpoch(f.Name()); ok && !have[f.Name()] {
			errs = append(errs, os.Remove(filepath.Join(dir, f.Name())))
		}
	}
	return errors.Join(errs...)
}

// A packed is one snapshot's pieces, checked.
type packed struct {
	manifest []byte
	chunks   map[version.Digest][]byte // as in etcd; those already on disk may be missing
}

// saveSnapshot writes the chunks that are not there, then the manifest, so
// that a manifest on disk has its chunks.
func (d *disk) saveSnapshot(fleet string, digest version.Digest, p packed) error {
	dir := d.dir(fleet)
	for _, c := range sortedDigests(p.chunks) {
		path := filepath.Join(dir, dirChunks, c.String())
		if _, err := readChunk(path); err == nil {
			continue
		}
		sum := sha256.Sum256(p.chunks[c])
		if err := writeFile(path, append(sum[:], p.chunks[c]...)); err != nil {
			return fmt.Errorf("save chunk %s: %w", c.Short(), err)
		}
	}
	if err := writeFile(filepath.Join(dir, dirMans, digest.String()), p.manifest); err != nil {
		return fmt.Errorf("save manifest %s: %w", digest.Short(), err)
	}
	return nil
}

func sortedDigests[V any](m map[version.Digest]V) []version.Digest {
	ds := make([]version.Digest, 0, len(m))
	for d := range m {
		ds = append(ds, d)
	}
	slices.SortFunc(ds, func(a, b version.Digest) int { return bytes.Compare(a[:], b[:]) })
	return ds
}

// manifest reads a snapshot's manifest; errNotOnDisk also for a damaged one.
func (d *disk) manifest(fleet string, digest version.Digest) ([]byte, error) {
	b, err := readFile(filepath.Join(d.dir(fleet), dirMans, digest.String()))
	if err != nil || version.DigestOf(b) != digest {
		return nil, errNotOnDisk
	}
	return b, nil
}

// chunk reads a chunk as it is in etcd; errNotOnDisk also for a damaged one.
func (d *disk) chunk(fleet string, digest version.Digest) ([]byte, error) {
	b, err := readChunk(filepath.Join(d.dir(fleet), dirChunks, digest.String()))
	if err != nil {
		return nil, errNotOnDisk
	}
	return b, nil
}

// collect removes chunks and manifests that no snapshot of keep needs, and
// what an interrupted write left. Nothing is removed while a manifest of keep
// cannot be read: it might need any chunk.
func (d *disk) collect(fleet string, keep map[version.Digest]bool) error {
	dir := d.dir(fleet)
	chunks := map[version.Digest]bool{}
	for digest := range keep {
		b, err := readFile(filepath.Join(dir, dirMans, digest.String()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // not written yet, or never was
		}
		if err != nil {
			return fmt.Errorf("read manifest %s: %w", digest.Short(), err)
		}
		m, err := version.ParseManifest(digest, b)
		if err != nil {
			continue // damaged: of no use
		}
		for _, e := range m.Modules {
			for _, c := range e.Chunks {
				chunks[c.Digest] = true
			}
		}
	}
	return errors.Join(sweep(filepath.Join(dir, dirMans), keep), sweep(filepath.Join(dir, dirChunks), chunks))
}

func sweep(dir string, keep map[version.Digest]bool) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("list %s: %w", filepath.Base(dir), err)
	}
	var errs []error
	for _, f := range files {
		name, half := strings.CutPrefix(f.Name(), ".") // renameio's: .<name><random digits>
		if half {
			name = name[:min(len(name), 2*sha256.Size)]
		}
		if digest, err := version.ParseDigest(name); err == nil && (half || !keep[digest]) {
			errs = append(errs, os.Remove(filepath.Join(dir, f.Name())))
		}
	}
	return errors.Join(errs...)
}

// writeSealed writes v as JSON after a line with its checksum. A file that
// says so already is left as it is.
func writeSealed(path string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	sum := sha256.Sum256(body)
	b := append([]byte(sealMagic+hex.EncodeToString(sum[:])+"\n"), body...)
	if old, err := readFile(path); err == nil && bytes.Equal(old, b) {
		return nil
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
	sum := sha256.Sum256(body)
	if !ok || string(head) != sealMagic+hex.EncodeToString(sum[:]) {
		return fmt.Errorf("read %s: checksum does not match", filepath.Base(path))
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(path), err)
	}
	return nil
}

func readChunk(path string) ([]byte, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	if len(b) < sha256.Size || sha256.Sum256(b[sha256.Size:]) != [sha256.Size]byte(b[:sha256.Size]) {
		return nil, fmt.Errorf("read %s: checksum does not match", filepath.Base(path))
	}
	return b[sha256.Size:], nil
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
