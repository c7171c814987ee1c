package token

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of a key file.
const (
	MinKeyBytes = 32
	MaxKeys     = 8
	maxFile     = 64 << 10
)

// Keys are a key file's, as it is now.
type Keys struct {
	path string
	ring atomic.Pointer[ring]
	next atomic.Int64 // not before this instant (Unix nanoseconds) is the file looked at again

	mu   sync.Mutex  // held while the file is looked at
	file fs.FileInfo // as it was when it was read last, also without success
	err  atomic.Pointer[error]
}

// lookEvery is how often the file is looked at, at most.
const lookEvery = time.Second

// Load reads a key file. The keys follow the file from then on: see Generation.
func Load(path string) (*Keys, error) {
	k := &Keys{path: path}
	if err := k.read(); err != nil {
		return nil, err
	}
	return k, nil
}

// Generation is a number that changes whenever the keys do: what was signed
// with those before should be signed anew. Now and then, at most once a second, it
// looks whether the file has changed; Verify does the same.
func (k *Keys) Generation(now time.Time) uint64 {
	k.look(now)
	return k.ring.Load().generation
}

// Err tells why the file, as it stands now, is not in use; nil when it is.
func (k *Keys) Err() error {
	if err := k.err.Load(); err != nil {
		return *err
	}
	return nil
}

// look reads the file again if it has changed. Only one caller at a time does,
// and nobody waits for it.
func (k *Keys) look(now time.Time) {
	at := now.UnixNano()
	next := k.next.Load()
	if at < next && next-at <= int64(lookEvery) || !k.mu.TryLock() {
		return
	}
	defer k.mu.Unlock()
	k.next.Store(at + int64(lookEvery))
	info, err := os.Stat(k.path)
	if err == nil && same(info, k.file) {
		return
	}
	if err == nil {
		err = k.read()
	} else {
		k.file, err = nil, fmt.Errorf("look at the token keys, those before stay in use: %w", err)
	}
	k.err.Store(&err)
}

func same(a, b fs.FileInfo) bool {
	return b != nil && os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && a.Mode() == b.Mode()
}

// read puts the file's keys in use. k.mu is held, or nobody has k yet.
func (k *Keys) read() error {
	fail := func(err error) error { return fmt.Errorf("load token keys: %w", err) }
	f, err := os.Open(k.path)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fail(err)
	}
	k.file = info
	switch {
	case !info.Mode().IsRegular():
		return fail(fmt.Errorf("%s is not a file", k.path))
	case info.Mode().Perm()&0o077 != 0:
		return fail(fmt.Errorf("%s is open to others than its owner (mode %04o): chmod 600 it, and make new keys if others could read it", k.path, info.Mode().Perm()))
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		k.file = nil // try again
		return fail(err)
	}
	keys, err := parseKeys(text)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", k.path, err))
	}
	old := k.ring.Load()
	if old == nil {
		k.ring.Store(newRing(keys, 1))
	} else if !slices.EqualFunc(old.keys, keys, bytes.Equal) {
		k.ring.Store(newRing(keys, old.generation+1))
	}
	return nil
}

// parseKeys reads the lines of a key file. No error shows anything of a key.
func parseKeys(text []byte) ([][]byte, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("larger than %d KiB: not a key file", maxFile>>10)
	}
	var keys [][]byte
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, err := decodeKey(line)
		switch {
		case err != nil:
			return nil, fmt.Errorf("line %d is not base64: make a key with openssl rand -base64 %d", n, MinKeyBytes)
		case len(key) < MinKeyBytes:
			return nil, fmt.Errorf("line %d: a key of %d bytes, at least %d are needed: make one with openssl rand -base64 %d", n, len(key), MinKeyBytes, MinKeyBytes)
		case len(keys) == MaxKeys:
			return nil, fmt.Errorf("line %d: more than %d keys: remove the oldest, which are last", n, MaxKeys)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("has no key: make one with openssl rand -base64 32")
	}
	return keys, nil
}

// decodeKey takes both alphabets of base64, with or without padding.
func decodeKey(s string) ([]byte, error) {
	s = strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(s), "=")
	return base64.RawStdEncoding.DecodeString(s)
}

// A ring is the keys of one reading of the file, and tokens that were verified
// with them.
type ring struct {
	keys       [][]byte // the first signs
	generation uint64
	seed       maphash.Seed
	slots      [256]atomic.Pointer[verified]
}

// verified is a token that was verified. All clients of a group have the same
// few, so that a small table spares nearly every request the cryptography.
// Comparing with it gives nothing away: whoever asks is given these tokens.
type verified struct {
	text   string
	claims Claims
}

func newRing(keys [][]byte, generation uint64) *ring {
	return &ring{keys: keys, generation: generation, seed: maphash.MakeSeed()}
}

func (r *ring) slot(text string) *atomic.Pointer[verified] {
	return &r.slots[maphash.String(r.seed, text)%uint64(len(r.slots))]
}

func (r *ring) verified(text string) (Claims, bool) {
	if len(text) > MaxBytes {
		return Claims{}, false
	}
	if v := r.slot(text).Load(); v != nil && v.text == text {
		return v.claims, true
	}
	return Claims{}, false
}

// remember keeps a token for the next time. One that is still valid is not
// pushed out: two that share a slot would have every request write it.
func (r *ring) remember(text string, c Claims, now time.Time) {
	at := r.slot(text)
	if v := at.Load(); v == nil || !now.Before(v.claims.Expires) {
		at.CompareAndSwap(v, &verified{strings.Clone(text), c})
	}
}
