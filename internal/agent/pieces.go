package agent

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"routerd.dev/internal/version"
)

// A packed is one snapshot's pieces, checked.
type packed struct {
	manifest []byte
	needs    []version.Digest          // all its chunks
	chunks   map[version.Digest][]byte // as in etcd; those already on disk, or on their way there, may be missing
}

// saveSnapshot writes the chunks that are given, then the manifest, so that a
// manifest on disk has its chunks. between is called before each file.
func (d *disk) saveSnapshot(fleet string, digest version.Digest, p packed, between func()) error {
	for _, c := range sortedDigests(p.chunks) {
		between()
		if err := d.saveChunk(fleet, c, p.chunks[c]); err != nil {
			return err
		}
	}
	path := filepath.Join(d.dir(fleet), dirMans, digest.String())
	between()
	if !d.isWhole(path) || !isThere(path) {
		if err := d.write(path, p.manifest); err != nil {
			return fmt.Errorf("save manifest %s: %w", digest.Short(), err)
		}
	}
	if p.needs != nil {
		d.mu.Lock()
		put(&d.needs, digest, p.needs)
		d.mu.Unlock()
	}
	return nil
}

func (d *disk) saveChunk(fleet string, c version.Digest, b []byte) error {
	sum := sha256.Sum256(b)
	if err := d.write(d.chunkFile(fleet, c), slices.Concat(sum[:], b)); err != nil {
		return fmt.Errorf("save chunk %s: %w", c.Short(), err)
	}
	return nil
}

func (d *disk) chunkFile(fleet string, c version.Digest) string {
	return filepath.Join(d.dir(fleet), dirChunks, c.String())
}

// write writes a file and knows it to be whole from then on.
func (d *disk) write(path string, b []byte) error {
	err := writeFile(path, b)
	d.setWhole(path, err == nil)
	return err
}

func (d *disk) isWhole(path string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.whole[path]
}

func (d *disk) setWhole(path string, whole bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if whole {
		put(&d.whole, path, true)
	} else {
		delete(d.whole, path)
	}
}

// put sets a key of a map that may be nil.
func put[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[k] = v
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
	path := filepath.Join(d.dir(fleet), dirMans, digest.String())
	b, err := readFile(path)
	if err != nil || version.DigestOf(b) != digest {
		d.setWhole(path, false)
		return nil, errNotOnDisk
	}
	d.setWhole(path, true)
	return b, nil
}

// chunk reads a chunk as it is in etcd; errNotOnDisk also for a damaged one.
func (d *disk) chunk(fleet string, digest version.Digest) ([]byte, error) {
	path := d.chunkFile(fleet, digest)
	b, err := readChunk(path)
	if err != nil {
		d.setWhole(path, false)
		return nil, errNotOnDisk
	}
	d.setWhole(path, true)
	return b, nil
}

// hasChunk tells whether a chunk is there which this process has seen whole.
func (d *disk) hasChunk(fleet string, digest version.Digest) bool {
	path := d.chunkFile(fleet, digest)
	return d.isWhole(path) && isThere(path)
}

// collect removes chunks and manifests that no snapshot of keep needs, and what
// an interrupted write left; awaited are chunks that are needed besides.
// Nothing is removed while a manifest of keep cannot be read: it might need any
// chunk.
func (d *disk) collect(fleet string, keep map[version.Digest]bool, awaited map[version.Digest]bool) error {
	dir := d.dir(fleet)
	chunks := maps.Clone(awaited)
	if chunks == nil {
		chunks = map[version.Digest]bool{}
	}
	for digest := range keep {
		needs, err := d.needsOf(dir, digest)
		if err != nil {
			return err
		}
		for _, c := range needs {
			chunks[c] = true
		}
	}
	err := errors.Join(d.sweep(filepath.Join(dir, dirMans), keep), d.sweep(filepath.Join(dir, dirChunks), chunks))
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.DeleteFunc(d.needs, func(digest version.Digest, _ []version.Digest) bool { return !keep[digest] })
	return err
}

// needsOf returns the chunks that a snapshot on disk needs; none when it is
// not there, or of no use.
func (d *disk) needsOf(dir string, digest version.Digest) ([]version.Digest, error) {
	d.mu.Lock()
	needs, ok := d.needs[digest]
	d.mu.Unlock()
	if ok {
		return needs, nil
	}
	b, err := readFile(filepath.Join(dir, dirMans, digest.String()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // not written yet, or never was
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", digest.Short(), err)
	}
	m, err := version.ParseManifest(digest, b)
	if err != nil {
		return nil, nil // damaged: of no use
	}
	needs = chunksOf(m)
	d.mu.Lock()
	put(&d.needs, digest, needs)
	d.mu.Unlock()
	return needs, nil
}

func chunksOf(m version.Manifest) []version.Digest {
	refs := m.Chunks()
	out := make([]version.Digest, len(refs))
	for i, r := range refs {
		out[i] = r.Digest
	}
	return out
}

// sweep removes from a directory what keep has not.
func (d *disk) sweep(dir string, keep map[version.Digest]bool) error {
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
			path := filepath.Join(dir, f.Name())
			d.setWhole(path, false)
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
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
