package engine

import (
	"context"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"routerd.dev/internal/analysis"
	"routerd.dev/internal/route"
	"routerd.dev/internal/token"
	"routerd.dev/internal/version"
)

// A Serving is what an instance serves from one switch to the next. It never
// changes once it was swapped in.
type Serving struct {
	Fleet, Group, Instance string
	Epoch                  int64

	Stable    *Engine
	Candidate *Engine // nil for none

	// Permyriad is the share of keys whose requests Candidate gets, in 1/10000.
	// What a request's key is, Key says: "client" (or nothing), its client's
	// address; "header:NAME", the first value of that field; "cookie:NAME", the
	// raw value of that cookie. Who is in the share is told by Salt and key
	// alone: it is the same on every instance, and who is in it stays in it
	// while it grows. A request without a key gets Stable, unless the share is
	// all.
	Permyriad int
	Salt, Key string

	// Match tells requests of testers, which Candidate gets whatever the share.
	Match Match

	// Held are engines that serve a request whose token says that its client
	// saw a later epoch: by the digest it names. Stable and Candidate need not
	// be among them; one that must not serve, because it is quarantined or
	// another is pinned, must not.
	Held map[version.Digest]*Engine
}

// A Match tells requests by a header field or a cookie that they have, with
// Value when it is not empty. The zero Match tells none.
type Match struct {
	Header, Cookie string
	Value          string
}

// FrontOptions are what a front end may be told. The zero value works.
type FrontOptions struct {
	// TrustedProxies are peers whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix

	// ResponseHeaders adds Routerd-Route, -Revision, -Epoch, -Group and -Instance to
	// every answer.
	ResponseHeaders bool

	Path    route.PathOptions
	MaxBody int64 // bytes of a request's body, 413 beyond; 0 for no limit

	Observer Observer // nil for none

	// Token signs and checks the tokens by which clients do not go back in time
	// when they move between instances; nil for no tokens. They are taken in
	// from, and given in, the header Routerd-Token, and the cookie TokenCookie
	// unless that is empty. No route and no upstream sees those of requests.
	Token       *token.Keys
	TokenCookie string        // a cookie's name, by RFC 6265
	TokenLife   time.Duration // 0 for token.DefaultLife

	// Strict answers 503 to a client that saw a later epoch whose digest is not
	// held. Otherwise it is served what there is.
	Strict bool

	// Behind is called when a client saw a later epoch of this group than is
	// served, at most once in 100 ms. It must not block; it may be nil.
	Behind func()

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
	serving  atomic.Pointer[served]
	states   sync.Pool
	shards   atomic.Uint32
	tokens   tokenCounts
	behind   atomic.Int64  // when Behind was called last, in nanoseconds since made
	made     time.Time     // when the Switch was
	unserved atomic.Uint64 // requests that no engine counted: nothing was served yet
	patience time.Duration // for a client to take an answer of ours, and to send what is left of its body
}

// patience is a Switch's, but in tests: enough for an honest client with the
// slowest line, as such answers are small.
const patience = 15 * time.Second

// NewSwitch makes a front end that serves nothing yet: it answers 503.
func NewSwitch(o FrontOptions) *Switch {
	if o.TokenLife <= 0 {
		o.TokenLife = token.DefaultLife
	}
	s := &Switch{options: o, made: time.Now(), patience: patience}
	s.behind.Store(-int64(behindEvery))
	s.states.New = func() any {
		return newState(s, int(s.shards.Add(1)-1))
	}
	return s
}

// Serving returns what is served now, nil when nothing is.
func (s *Switch) Serving() *Serving {
	if v := s.serving.Load(); v != nil {
		return v.Serving
	}
	return nil
}

// Keys returns which clients' keys each side was asked by since the last Swap,
// where a share is told by them: neither testers nor who came with a token of a
// later epoch are among them.
func (s *Switch) Keys() (stable, candidate analysis.KeySet) {
	if v := s.serving.Load(); v != nil && v.seen != nil {
		v.seen.stable.copyTo(&stable)
		v.seen.candidate.copyTo(&candidate)
	}
	return stable, candidate
}

// Unserved is how many requests came while nothing was served.
func (s *Switch) Unserved() uint64 { return s.unserved.Load() }
