package engine

import (
	"context"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"routerd.dev/internal/route"
)

// A Serving is what an instance serves from one switch to the next. It never
// changes once it was swapped in.
type Serving struct {
	Fleet, Group, Instance string
	Epoch                  int64

	Stable    *Engine
	Candidate *Engine // nil for none

	// Permyriad is the share of requests that Candidate gets, in 1/10000. Who
	// is in it is told by a hash of Salt and of what Key names, so that it only grows with
	// the share, and is the same on every instance: "client" (the default), "header:NAME" or
	// "cookie:NAME"; a request without the header or cookie counts by its client.
	Permyriad int
	Salt, Key string
}

// FrontOptions are what a front end may be told. The zero value works.
type FrontOptions struct {
	// TrustedProxies are peers whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix

	// ResponseHeaders adds Routerd-Route, -Revision, -Epoch and -Instance to
	// every answer.
	ResponseHeaders bool

	Path    route.PathOptions
	MaxBody int64 // bytes of a request's body, 413 beyond; 0 for no limit

	Observer Observer // nil for none

	// Propagate returns what adds the trace context of a recording span to the
	// request that is sent upstream, and nil when none is recording. It may be nil
	// itself: then what the client sent goes through.
	Propagate func(context.Context) func(http.Header)
}

// A Switch is the front end on net/http: it serves every request by what was
// swapped in when the request came.
//
// An http.Server in front of it must have DisableGeneralOptionsHandler set, or
// it answers "OPTIONS *" itself.
type Switch struct {
	options  FrontOptions
	serving  atomic.Pointer[Serving]
	states   sync.Pool
	shards   atomic.Uint32
	unserved atomic.Uint64 // requests that no engine counted: nothing was served yet
	patience time.Duration // for a client to take an answer of ours, and to send what is left of its body
}

// patience is a Switch's, but in tests: enough for an honest client with the
// slowest line, as such answers are small.
const patience = 15 * time.Second

// NewSwitch makes a front end that serves nothing yet: it answers 503.
func NewSwitch(o FrontOptions) *Switch {
	s := &Switch{options: o, patience: patience}
	s.states.New = func() any {
		return newState(s, int(s.shards.Add(1)-1))
	}
	return s
}

// Swap serves by v from the next request on; nil serves nothing. Requests that
// have begun end by what they began with. v must have a Stable engine.
func (s *Switch) Swap(v *Serving) { s.serving.Store(v) }

// Serving returns what is served now, nil when nothing is.
func (s *Switch) Serving() *Serving { return s.serving.Load() }

// Unserved is how many requests came while nothing was served.
func (s *Switch) Unserved() uint64 { return s.unserved.Load() }

// engineFor picks the stable or the candidate engine for a request.
func (v *Serving) engineFor(h *Head) *Engine {
	if v.Candidate == nil || v.Permyriad <= 0 {
		return v.Stable
	}
	if v.Permyriad >= 10000 || v.bucket(h) < uint64(v.Permyriad) {
		return v.Candidate
	}
	return v.Stable
}

// bucket is the ten-thousandth of all keys that the request's is in.
func (v *Serving) bucket(h *Head) uint64 {
	key := v.key(h)
	x := uint64(fnvOffset)
	for i := range len(v.Salt) {
		x = (x ^ uint64(v.Salt[i])) * fnvPrime
	}
	x = (x ^ 0xFF) * fnvPrime // Salt "a" and key "b" are not salt "ab"
	if key != "" {
		for i := range len(key) {
			x = (x ^ uint64(key[i])) * fnvPrime
		}
	} else {
		for _, c := range h.Client.Unmap().As16() {
			x = (x ^ uint64(c)) * fnvPrime
		}
	}
	// FNV-1a leaves the high bits of short keys alike; this spreads them
	// (the finalizer of MurmurHash3).
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return x % 10000
}

const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

// key is the text a request is counted by; empty for its client's address.
func (v *Serving) key(h *Head) string {
	const header, cookie = "header:", "cookie:"
	switch {
	case h.Header == nil:
	case len(v.Key) > len(header) && v.Key[:len(header)] == header:
		if vs := h.Header.Values(v.Key[len(header):]); len(vs) > 0 {
			return vs[0]
		}
	case len(v.Key) > len(cookie) && v.Key[:len(cookie)] == cookie:
		var found string
		eachCookie(h.Header, func(name, value string) bool {
			if name == v.Key[len(cookie):] {
				found = value
			}
			return found == ""
		})
		return found
	}
	return ""
}
