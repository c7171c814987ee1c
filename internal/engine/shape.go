package engine

import (
	"math/bits"
	"strings"

	"routerd.dev/internal/route"
)

// rest is what a pattern takes after its segments.
type rest uint8

const (
	restNone     rest = iota
	restPrefix        // nothing, or a slash and anything
	restCatchAll      // a slash and anything
)

// Bytes that stand in tree paths for what Gin would read as a wildcard. None
// of them occurs in a canonical path, and wild sorts after every literal.
const (
	wild  = 0xFF
	colon = 0x01
	star  = 0x02
)

// A shape is what a tree sees of a pattern: literals, and places where any
// non-empty segment goes (parameters and mixed segments alike).
type shape struct {
	path    string // "/a/\xff": one byte for each wild segment, no trailing slash
	rank    string // level 3 of the order: the smaller wins
	n       int    // segments, a trailing slash not counted
	slash   bool   // ends in a slash
	rest    rest
	wilds   uint64 // bit i: segment i is not literal
	wildAt  int    // the first segment that is not literal; n when there is none
	mixedTo int    // one more than the last mixed segment; 0 when there is none
	special bool   // a literal holds a byte that Gin would read as a wildcard
}

// A param is where a parameter's value stands in a path: the whole text of a
// segment, the nth parameter of a mixed one, or the rest.
type param struct {
	name  string
	seg   uint16
	nth   int16
	mixed bool
}

// takesRest stands in param.nth for a catch-all's: what follows the slash
// after seg segments.
const takesRest = -1

// A mixed segment is one whose text must be checked after Gin has taken it for
// a parameter.
type mixed struct {
	seg int
	*route.Segment
}

// A shaper takes patterns apart. What many patterns have alike it keeps once.
type shaper struct {
	ranks  map[string]string
	params []param // room for the next
	path   []byte  // scratch
	rank   []byte  // scratch
}

// The octets of a rank: what a segment is, or what follows the last one. In
// their order they win, so that ranks compare as text. Two octets follow
// rankMixed, the smaller the more literal text the segment has.
const (
	rankLiteral = 'a' + iota
	rankMixed
	rankParam
	rankEnd
	rankSlash
	rankRest
)

// shape takes the pattern of a route apart. Mixed segments point into the
// pattern.
func (b *shaper) shape(r *route.Route) (shape, []param, []mixed, error) {
	if s, params, ok := b.plain(r.Path, r.Prefix); ok {
		return s, params, nil, nil
	}
	p, err := r.Pattern()
	if err != nil {
		return shape{}, nil, nil, err
	}
	s, params, mixed := b.parsed(&p)
	return s, params, mixed, nil
}

// parsed is shape for a pattern that was parsed.
func (b *shaper) parsed(p *route.Pattern) (shape, []param, []mixed) {
	s := shape{n: len(p.Segments), slash: p.TrailingSlash}
	var mixes []mixed
	b.path, b.rank = b.path[:0], b.rank[:0]
	first := len(b.params)
	for i := range p.Segments {
		seg := &p.Segments[i]
		kind := seg.Kind()
		b.path = append(b.path, '/')
		switch kind {
		case route.Literal:
			b.path, s.special = appendLiteral(b.path, seg.Parts[0].Literal, s.special)
			b.rank = append(b.rank, rankLiteral)
			continue
		case route.Mixed:
			less := 0xFFFF - seg.LiteralLen() // patterns are far shorter
			b.rank = append(b.rank, rankMixed, byte(less>>8), byte(less))
			s.mixedTo = i + 1
			mixes = append(mixes, mixed{i, seg})
		default:
			b.rank = append(b.rank, rankParam)
		}
		b.path = append(b.path, wild)
		s.wilds |= 1 << i
		nth := int16(0)
		for _, part := range seg.Parts {
			if part.Param != "" {
				first = b.add(first, param{part.Param, uint16(i), nth, kind == route.Mixed})
				nth++
			}
		}
	}
	switch {
	case p.CatchAll:
		s.rest = restCatchAll
		first = b.add(first, param{name: p.CatchAllName, seg: uint16(s.n), nth: takesRest})
	case p.IsPrefix:
		s.rest = restPrefix
	}
	s.path = string(b.path)
	return b.finish(s), b.taken(first), mixes
}

// plain is shape for the patterns that nearly all routes have: no mixed
// segments, no catch-all, nothing that has another canonical form. It says
// false for any other, right or wrong.
func (b *shaper) plain(text, prefix string) (s shape, params []param, ok bool) {
	if prefix != "" {
		text, s.rest = prefix, restPrefix
	}
	if len(text) < 2 || text[0] != '/' || len(text) > route.MaxPatternBytes {
		return s, nil, false
	}
	b.path, b.rank = b.path[:0], b.rank[:0]
	first := len(b.params)
	for at := 1; at <= len(text); s.n++ {
		end := at
		for end < len(text) && text[end] != '/' {
			end++
		}
		seg := text[at:end]
		if seg == "" && at == len(text) && prefix == "" {
			s.slash = true
			break
		}
		name, isParam := paramName(seg)
		switch {
		case s.n == route.MaxSegments:
			return s, nil, false
		case isParam:
			for _, p := range b.params[first:] {
				if p.name == name {
					return s, nil, false
				}
			}
			first = b.add(first, param{name: name, seg: uint16(s.n)})
			b.path = append(b.path, '/', wild)
			b.rank = append(b.rank, rankParam)
			s.wilds |= 1 << s.n
		case isPlain(seg, false):
			b.path = append(append(b.path, '/'), seg...)
			b.rank = append(b.rank, rankLiteral)
		default:
			return s, nil, false
		}
		at = end + 1
	}
	if s.path = text; s.wilds != 0 || s.slash {
		s.path = string(b.path)
	}
	return b.finish(s), b.taken(first), true
}

// paramName reads {name} with a name of letters, digits and _.
func paramName(seg string) (string, bool) {
	if len(seg) < 3 || seg[0] != '{' || seg[len(seg)-1] != '}' {
		return "", false
	}
	name := seg[1 : len(seg)-1]
	for i := range len(name) {
		c := name[i]
		if letter := 'a' <= c|0x20 && c|0x20 <= 'z' || c == '_'; !letter && (i == 0 || c < '0' || c > '9') {
			return "", false
		}
	}
	return name, len(name) <= route.MaxNameBytes
}

// add adds a parameter to those of the pattern that began at first, and
// returns where it begins now: room is made in pieces that many patterns share.
func (b *shaper) add(first int, p param) int {
	if len(b.params) == cap(b.params) {
		room := make([]param, 0, min(512, max(8, 2*cap(b.params)))+len(b.params)-first)
		b.params, first = append(room, b.params[first:]...), 0
	}
	b.params = append(b.params, p)
	return first
}

func (b *shaper) taken(first int) []param {
	if first == len(b.params) {
		return nil
	}
	return b.params[first:len(b.params):len(b.params)]
}

func (b *shaper) finish(s shape) shape {
	switch {
	case s.rest != restNone:
		b.rank = append(b.rank, rankRest)
	case s.slash:
		b.rank = append(b.rank, rankSlash)
	default:
		b.rank = append(b.rank, rankEnd)
	}
	rank, ok := b.ranks[string(b.rank)]
	if !ok {
		if b.ranks == nil {
			b.ranks = map[string]string{}
		}
		rank = string(b.rank)
		b.ranks[rank] = rank
	}
	s.rank = rank
	s.wildAt = min(s.n, bits.TrailingZeros64(s.wilds))
	return s
}

func appendLiteral(path []byte, text string, special bool) ([]byte, bool) {
	for i := range len(text) {
		switch c := text[i]; c {
		case ':':
			path, special = append(path, colon), true
		case '*':
			path, special = append(path, star), true
		default:
			path = append(path, c)
		}
	}
	return path, special
}

// ginPath is the form in which a shape's path is registered.
func ginPath(path string) string {
	n := strings.Count(path, wildText)
	if n == 0 {
		return path
	}
	b := make([]byte, 0, len(path)+n)
	for i := range len(path) {
		if path[i] == wild {
			b = append(b, ':', 'p')
		} else {
			b = append(b, path[i])
		}
	}
	return string(b)
}

const wildText = "\xFF"
