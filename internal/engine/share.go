package engine

import (
	"math/bits"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"

	"routerd.dev/internal/analysis"
)

// served is a Serving with what is worked out once, when it is swapped in.
type served struct {
	*Serving

	by      keyKind
	name    string // of the header or cookie that is the key
	salt    uint64 // hash of Salt
	testers Match
	seen    *seenKeys       // nil unless keys tell a share
	issued  [2]issuedTokens // for Stable, for Candidate
}

// A keyKind is what a request's key is.
type keyKind uint8

const (
	keyClient keyKind = iota
	keyHeader
	keyCookie
)

// newServed returns nil for nothing to serve.
func newServed(v *Serving) *served {
	if v == nil || v.Stable == nil {
		return nil
	}
	s := &served{Serving: v, salt: xxhash.Sum64String(v.Salt), testers: v.Match}
	s.testers.Header = http.CanonicalHeaderKey(s.testers.Header)
	if name, ok := strings.CutPrefix(v.Key, "header:"); ok {
		s.by, s.name = keyHeader, http.CanonicalHeaderKey(name)
	} else if name, ok := strings.CutPrefix(v.Key, "cookie:"); ok {
		s.by, s.name = keyCookie, name
	}
	if v.Candidate != nil && v.Permyriad > 0 && v.Permyriad < 10000 {
		s.seen = new(seenKeys)
	}
	return s
}

// engineFor picks the stable or the candidate engine for a request.
func (v *served) engineFor(h *Head) *Engine {
	switch {
	case v.Candidate == nil:
		return v.Stable
	case v.Permyriad >= 10000 || v.testers.takes(h):
		return v.Candidate
	case v.seen == nil:
		return v.Stable
	}
	key, ok := v.keyOf(h)
	if !ok {
		return v.Stable
	}
	if share(key) < uint64(v.Permyriad) {
		v.seen.candidate.add(key)
		return v.Candidate
	}
	v.seen.stable.add(key)
	return v.Stable
}

// keyOf returns the hash of a request's key, if it has one.
func (v *served) keyOf(h *Head) (hash uint64, ok bool) {
	switch v.by {
	case keyClient:
		if !h.Client.IsValid() {
			return 0, false
		}
		b := h.Client.As16() // the same for an IPv4 address however it is written
		return v.mixed(xxhash.Sum64(b[:])), true
	case keyHeader:
		text := headerValue(h, v.name)
		return v.mixed(xxhash.Sum64String(text)), text != ""
	default:
		text, _ := cookieValue(h.Header, v.name, "")
		return v.mixed(xxhash.Sum64String(text)), text != ""
	}
}

// mixed has every bit depend on each of key and salt, so that shares with
// different salts have nothing to do with each other (the finalizer of
// MurmurHash3).
func (v *served) mixed(key uint64) uint64 {
	x := key ^ v.salt
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return x
}

// share is the ten-thousandth of all hashes that a hash is in. It is told by
// the high bits: a KeySet takes the low ones, and each side fills all of its own.
func share(hash uint64) uint64 {
	hi, _ := bits.Mul64(hash, 10000)
	return hi
}

// takes tells whether a request is a tester's.
func (m *Match) takes(h *Head) bool {
	if m.Header != "" {
		if m.Header == "Host" {
			return m.Value == "" || m.Value == h.Host
		}
		if h.Header != nil {
			for _, v := range h.Header.Values(m.Header) {
				if m.Value == "" || m.Value == v {
					return true
				}
			}
		}
	}
	if m.Cookie == "" {
		return false
	}
	_, ok := cookieValue(h.Header, m.Cookie, m.Value)
	return ok
}

// headerValue is a field's first value. net/http keeps Host apart.
func headerValue(h *Head, name string) string {
	if name == "Host" {
		return h.Host
	}
	if h.Header != nil {
		if vs := h.Header.Values(name); len(vs) > 0 {
			return vs[0]
		}
	}
	return ""
}

// seenKeys are the keys that each side was asked by.
type seenKeys struct{ stable, candidate keyBits }

// keyBits is an analysis.KeySet that many goroutines add to.
type keyBits [len(analysis.KeySet{})]atomic.Uint64

// add sets the bit that KeySet.Add does. Nearly every key was seen before:
// then nothing is written.
func (k *keyBits) add(hash uint64) {
	word, bit := &k[hash/64%uint64(len(k))], uint64(1)<<(hash%64)
	if word.Load()&bit == 0 {
		word.Or(bit)
	}
}

func (k *keyBits) copyTo(to *analysis.KeySet) {
	for i := range k {
		to[i] = k[i].Load()
	}
}
