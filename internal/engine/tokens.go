package engine

import (
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"routerd.dev/internal/token"
)

// tokenHeader carries a token, in requests and in responses.
const tokenHeader = "Routerd-Token"

// behindEvery is how often FrontOptions.Behind is called, at most.
const behindEvery = 100 * time.Millisecond

// TokenCounts are how many requests brought a token, by what came of it. Those
// from Current on changed nothing.
type TokenCounts struct {
	Held    uint64 // of a later epoch: served by the digest it names
	Missing uint64 // of a later epoch, whose digest is not held: served what there was
	Refused uint64 // likewise, but answered 503, and counted nowhere else

	Current uint64 // of the epoch served
	Older   uint64 // of an epoch before
	Foreign uint64 // of another fleet or group
	Expired uint64
	Forged  uint64 // or signed with a key that is not known here
}

// A tokenUse is what came of a request's token.
type tokenUse uint8

const (
	tokenNone tokenUse = iota
	tokenHeld
	tokenMissing
	tokenRefused
	tokenCurrent
	tokenOlder
	tokenForeign
	tokenExpired
	tokenForged
	tokenUses
)

// String gives the word for Record.Token; empty for tokenNone.
func (u tokenUse) String() string {
	return [tokenUses]string{"", "held", "missing", "refused", "current", "older", "foreign", "expired", "forged"}[u]
}

// tokenCounts are spread over shards, each a cache line of its own.
type tokenCounts [maxShards]struct {
	uses [tokenUses]atomic.Uint64
	_    [16 - tokenUses]uint64
}

// TokenCounts returns what came of the tokens that requests brought so far.
func (s *Switch) TokenCounts() TokenCounts {
	var n [tokenUses]uint64
	for i := range s.tokens {
		for u := range n {
			n[u] += s.tokens[i].uses[u].Load()
		}
	}
	return TokenCounts{
		Held: n[tokenHeld], Missing: n[tokenMissing], Refused: n[tokenRefused],
		Current: n[tokenCurrent], Older: n[tokenOlder], Foreign: n[tokenForeign], Expired: n[tokenExpired], Forged: n[tokenForged],
	}
}

// A passport is a request's token and the response's.
type passport struct {
	header, cookie string // as the request brought them; empty for none
	claims         token.Claims
	text           string // the one of both that counts; empty for none
	use            tokenUse
	issue          *issued // what the response brings; nil for nothing, or for text again
}

// takeTokens takes the tokens out of a request, before anything decides by its
// header: what is matched is what is forwarded, and neither has them.
func (st *state) takeTokens() {
	o, h, p := &st.front.options, st.r.Header, &st.passport
	if o.Token == nil {
		return
	}
	if vs, ok := h[tokenHeader]; ok {
		if len(vs) > 0 {
			p.header = vs[0]
		}
		delete(h, tokenHeader)
	}
	if o.TokenCookie != "" {
		p.cookie = takeCookie(h, o.TokenCookie)
	}
}

// examine decides which of both tokens counts: of those that are of this fleet
// and group, the one of the later epoch; if there is none, what the first is worth.
func (st *state) examine(v *served) {
	p := &st.passport
	for _, text := range [...]string{p.header, p.cookie} {
		if text == "" {
			continue
		}
		c, err := st.front.options.Token.Verify(text, st.record.Start)
		use := tokenCurrent
		switch {
		case errors.Is(err, token.ErrExpired):
			use = tokenExpired
		case err != nil:
			use = tokenForged
		case c.Fleet != v.Fleet || c.Group != v.Group:
			use = tokenForeign
		case p.text != "" && c.Epoch <= p.claims.Epoch:
			continue
		case c.Epoch < v.Epoch:
			use = tokenOlder
		case c.Epoch > v.Epoch:
			use = tokenMissing
		}
		if use < tokenForeign {
			p.text, p.claims, p.use = text, c, use
		} else if p.use == tokenNone {
			p.use = use
		}
	}
}

// choose picks the engine that serves the request; nil when it is refused. A
// client that saw a later epoch is served by what it saw then, if that is held.
func (st *state) choose(v *served) *Engine {
	o, p, rec := &st.front.options, &st.passport, &st.record
	if o.Token == nil {
		return v.engineFor(&st.head)
	}
	var e *Engine
	if p.header != "" || p.cookie != "" {
		st.examine(v)
	}
	if p.use == tokenMissing {
		switch e = v.held(&p.claims); {
		case e != nil:
			p.use, rec.Epoch = tokenHeld, p.claims.Epoch
		case o.Strict:
			p.use = tokenRefused
		}
		st.front.callBehind(rec.Start)
	}
	if p.use != tokenNone {
		rec.Token = p.use.String()
		st.front.tokens[st.shard%maxShards].uses[p.use].Add(1)
	}
	switch p.use {
	case tokenHeld, tokenRefused:
		return e
	case tokenMissing: // the client keeps its token: it did see that epoch
		return v.engineFor(&st.head)
	}
	e = v.engineFor(&st.head)
	p.issue = st.front.issueFor(v, e, rec.Start)
	return e
}

// held is the engine of the digest that a token names; nil when there is none.
func (v *served) held(c *token.Claims) *Engine {
	for _, e := range [...]*Engine{v.Stable, v.Candidate} {
		if e != nil && e.ref.Digest == c.Digest {
			return e
		}
	}
	return v.Held[c.Digest]
}

func (s *Switch) callBehind(now time.Time) {
	if s.options.Behind == nil {
		return
	}
	at, last := int64(now.Sub(s.made)), s.behind.Load()
	if at-last >= int64(behindEvery) && s.behind.CompareAndSwap(last, at) {
		s.options.Behind()
	}
}

// refuseBehind answers a client that saw what this instance has not.
func (st *state) refuseBehind() {
	st.record.Kind, st.record.Err = "behind", errBehind
	st.w.Header().Set("Retry-After", "1")
	st.answerError(http.StatusServiceUnavailable, errBehind.Error())
}

const errBehind = fault("this instance is behind what the client has seen")

// issued is a signed token, with what a response brings of it. It is shared
// by responses and never changes.
type issued struct {
	claims     token.Claims
	renew      time.Time // sign a new one from then on
	generation uint64    // of the keys it was signed with
	header     []string
	cookie     []string // Set-Cookie
	secure     []string // Set-Cookie over TLS
}

// issuedTokens keeps the newest for one engine of a Serving.
type issuedTokens struct{ atomic.Pointer[issued] }

// issueFor returns the token for what e serves, nil when there can be none.
// Signing is rare: once for each Serving and engine, and again when a quarter
// of a token's life is over, or the keys changed.
func (s *Switch) issueFor(v *served, e *Engine, now time.Time) *issued {
	slot := &v.issued[0]
	if e != v.Stable {
		slot = &v.issued[1]
	}
	generation := s.options.Token.Generation(now)
	t := slot.Load()
	if t == nil || generation != t.generation || !now.Before(t.renew) {
		t = s.sign(v, e, now)
		t.generation = generation
		slot.Store(t)
	}
	if t.header == nil {
		return nil
	}
	return t
}

// sign makes a token. It expires one life after the last full quarter of a
// life, so that all instances give the same one at the same time, and a client
// that moves between them keeps its.
func (s *Switch) sign(v *served, e *Engine, now time.Time) *issued {
	quarter := s.options.TokenLife / 4
	since := now.Round(0).Truncate(quarter)
	t := &issued{
		claims: token.Claims{Fleet: v.Fleet, Group: v.Group, Epoch: v.Epoch, Digest: e.ref.Digest, Expires: since.Add(s.options.TokenLife)},
		renew:  since.Add(quarter),
	}
	text := s.options.Token.Sign(t.claims)
	if text == "" {
		return t
	}
	t.header = []string{text}
	if name := s.options.TokenCookie; name != "" {
		cookie := name + "=" + text + "; Path=/; HttpOnly; SameSite=Lax"
		t.cookie, t.secure = []string{cookie}, []string{cookie + "; Secure"}
	}
	return t
}

// stamp puts the token into a response's head. A client whose token says the
// same and is good for a while is not sent another cookie; one that saw more
// than it was served now gets its own token back.
func (st *state) stamp(h http.Header) {
	o, p := &st.front.options, &st.passport
	if o.Token == nil {
		return
	}
	delete(h, tokenHeader) // an upstream's, which is not ours
	t := p.issue
	if t == nil {
		if p.text != "" {
			h[tokenHeader] = []string{p.text}
		}
		return
	}
	h[tokenHeader] = t.header
	if o.TokenCookie == "" || p.says(t, o.TokenLife/4) {
		return
	}
	line := t.cookie
	if st.record.Scheme == "https" {
		line = t.secure
	}
	if has := h["Set-Cookie"]; len(has) > 0 {
		line = append(has[:len(has):len(has)], line...)
	}
	h["Set-Cookie"] = line
}

// says tells whether the request's token says what t does and lives not more
// than a quarter less, and is what the cookie has, if there is one.
func (p *passport) says(t *issued, quarter time.Duration) bool {
	return p.text != "" && (p.cookie == "" || p.cookie == p.text) &&
		p.claims.Epoch == t.claims.Epoch && p.claims.Digest == t.claims.Digest && !p.claims.Expires.Before(t.claims.Expires.Add(-quarter))
}
