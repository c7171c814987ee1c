package engine

import (
	"bytes"
	"cmp"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"routerd.dev/internal/route"
)

// This is the reference matcher: design/matching.md once more, as literally
// and slowly as it can be written, and without a line of what it is there to check.

// refAnswer is what came of a request.
type refAnswer struct {
	status int // 0 when a route won
	name   string
	params []refParam
	allow  []string
}

type refParam struct{ name, value, raw string }

// refOctet is one octet of a path: its canonical form and as it came. Merged
// slashes are one octet.
type refOctet struct{ canon, raw string }

type refText []refOctet

func (t refText) canon() string {
	var b strings.Builder
	for _, o := range t {
		b.WriteString(o.canon)
	}
	return b.String()
}

func (t refText) raw() string {
	var b strings.Builder
	for _, o := range t {
		b.WriteString(o.raw)
	}
	return b.String()
}

func (t refText) decoded() string {
	var b strings.Builder
	for _, o := range t {
		if o.canon[0] == '%' {
			b.WriteByte(refHex(o.canon[1])<<4 | refHex(o.canon[2]))
		} else {
			b.WriteString(o.canon)
		}
	}
	return b.String()
}

func refHex(c byte) byte {
	i := strings.IndexByte("0123456789ABCDEF", c)
	if i < 0 {
		i = strings.IndexByte("0123456789abcdef", c)
	}
	return byte(i)
}

// refOctets reads a path's octets; false for what is a 400.
func refOctets(raw string, o route.PathOptions) (refText, bool) {
	if raw == "" || raw[0] != '/' {
		return nil, false
	}
	const pchar = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=:@"
	const digits = "0123456789ABCDEFabcdef"
	var text refText
	var decoded []byte
	for i := 0; i < len(raw); {
		n, c := 1, raw[i]
		switch {
		case c == '%':
			if i+2 >= len(raw) || !strings.Contains(digits, raw[i+1:i+2]) || !strings.Contains(digits, raw[i+2:i+3]) {
				return nil, false
			}
			n, c = 3, refHex(raw[i+1])<<4|refHex(raw[i+2])
			if c == '/' && !o.AllowEncodedSlash {
				return nil, false
			}
		case c == ' ' || c == '?' || c == '#':
			return nil, false
		case c == '/':
			if len(text) > 0 && text[len(text)-1].canon == "/" {
				if !o.MergeSlashes {
					return nil, false
				}
				text[len(text)-1].raw += "/"
				i++
				continue
			}
			text = append(text, refOctet{"/", "/"})
			decoded = append(decoded, '/')
			i++
			continue
		}
		if c < ' ' || c == 0x7F || c == '\\' {
			return nil, false
		}
		decoded = append(decoded, c)
		canon := "%" + string("0123456789ABCDEF"[c>>4]) + string("0123456789ABCDEF"[c&15])
		if strings.IndexByte(pchar, c) >= 0 {
			canon = string(c)
		}
		text = append(text, refOctet{canon, raw[i : i+n]})
		i += n
	}
	if !utf8.Valid(decoded) || bytes.ContainsFunc(decoded, unicode.IsControl) { // also those beyond ASCII
		return nil, false
	}
	return text, !refHasDots(string(decoded))
}

// refHasDots tells whether a path has a dot segment, however often it is
// decoded.
func refHasDots(path string) bool {
	for _, seg := range strings.FieldsFunc(path, func(r rune) bool { return r == '/' || r == '\\' }) {
		seg, _, _ = strings.Cut(seg, ";")
		if seg == "." || seg == ".." {
			return true
		}
	}
	escape := regexp.MustCompile("%[0-9A-Fa-f]{2}")
	next := escape.ReplaceAllStringFunc(path, func(s string) string {
		return string([]byte{refHex(s[1])<<4 | refHex(s[2])})
	})
	return next != path && refHasDots(next)
}

// refSplit gives the segments between slashes: the first is what follows the
// first slash; the last is empty after a trailing one.
func refSplit(text refText) []refText {
	var segs []refText
	for _, o := range text {
		if o.canon == "/" {
			segs = append(segs, nil)
		} else {
			segs[len(segs)-1] = append(segs[len(segs)-1], o)
		}
	}
	return segs
}

// refSeg is one segment of a pattern: texts and parameters in turn.
type refSeg []refPiece

type refPiece struct {
	text  refText
	param string
}

func (s refSeg) kind() int {
	switch {
	case len(s) == 1 && s[0].param == "":
		return 0 // literal
	case len(s) > 1:
		return 1 // mixed
	case len(s) == 1:
		return 2 // parameter
	default:
		return 0 // nothing, after a trailing slash
	}
}

func (s refSeg) literal() int {
	n := 0
	for _, p := range s {
		n += len(p.text)
	}
	return n
}

// match tells whether the segment takes a text: each parameter the shortest
// that lets the rest match.
func (s refSeg) match(text refText) ([]refParam, bool) {
	if len(s) == 0 {
		return nil, len(text) == 0
	}
	p := s[0]
	if p.param == "" {
		if len(text) < len(p.text) || text[:len(p.text)].canon() != p.text.canon() {
			return nil, false
		}
		return s[1:].match(text[len(p.text):])
	}
	for n := 1; n <= len(text); n++ {
		if rest, ok := s[1:].match(text[n:]); ok {
			return append([]refParam{{p.param, text[:n].decoded(), text[:n].raw()}}, rest...), true
		}
	}
	return nil, false
}

// refPattern is a route's path: segments, and whether it is a prefix or ends
// in a catch-all of that name.
type refPattern struct {
	segs     []refSeg
	prefix   bool
	catchAll string
}

func refParse(r *route.Route) refPattern {
	var p refPattern
	text := r.Path
	if r.Prefix != "" {
		p.prefix, text = true, r.Prefix
		if text == "/" {
			return p
		}
	}
	for _, seg := range strings.Split(text[1:], "/") {
		if name, ok := strings.CutSuffix(seg, "...}"); ok {
			p.catchAll = name[1:]
			break
		}
		var s refSeg
		for seg != "" {
			if seg[0] == '{' {
				name, rest, _ := strings.Cut(seg[1:], "}")
				s, seg = append(s, refPiece{param: name}), rest
				continue
			}
			n := strings.IndexByte(seg+"{", '{')
			lit, _ := refOctets("/x"+seg[:n], route.PathOptions{AllowEncodedSlash: true})
			s, seg = append(s, refPiece{text: lit[2:]}), seg[n:]
		}
		p.segs = append(p.segs, s)
	}
	return p
}

func (p refPattern) match(path refText) ([]refParam, bool) {
	segs := refSplit(path)
	if len(segs) < len(p.segs) {
		return nil, false
	}
	var params []refParam
	for i, s := range p.segs {
		found, ok := s.match(segs[i])
		if !ok || p.catchAll == "" && !p.prefix && len(segs) != len(p.segs) {
			return nil, false
		}
		params = append(params, found...)
	}
	switch {
	case p.prefix:
		return params, true
	case p.catchAll != "":
		if len(segs) == len(p.segs) {
			return nil, false // no slash follows
		}
		var rest refText
		slashes := 0
		for _, o := range path {
			if slashes > len(p.segs) {
				rest = append(rest, o)
			}
			if o.canon == "/" {
				slashes++
			}
		}
		return append(params, refParam{p.catchAll, rest.decoded(), rest.raw()}), true
	}
	return params, len(segs) == len(p.segs)
}

// comparePaths is rule 3, for patterns that take the same path.
func (p refPattern) compare(o refPattern) int {
	for i := 0; ; i++ {
		a, b := p.at(i), o.at(i)
		if a[0] != b[0] || a[1] != b[1] {
			return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(b[1], a[1]))
		}
		if a[0] >= 3 || a[0] < 0 {
			return 0
		}
	}
}

// at is the kind of a segment and how much literal text a mixed one has. The
// end comes before everything: an exact path before its prefix.
func (p refPattern) at(i int) [2]int {
	switch {
	case i < len(p.segs):
		k := p.segs[i].kind()
		if k == 1 {
			return [2]int{1, p.segs[i].literal()}
		}
		return [2]int{k, 0}
	case p.prefix || p.catchAll != "":
		return [2]int{3, 0}
	default:
		return [2]int{-1, 0}
	}
}

// refHost tells whether a pattern takes a host, and how specific it is.
func refHost(pattern, host string) (rank int, ok bool) {
	switch {
	case pattern == "":
		return 1 << 20, true
	case strings.HasPrefix(pattern, "*."):
		return 1<<10 - len(pattern), strings.HasSuffix(host, pattern[1:]) && len(host) >= len(pattern)
	default:
		return 0, pattern == host
	}
}

func refCondition(c route.Condition, values []string) bool {
	return slices.ContainsFunc(values, func(v string) bool {
		switch c.Op {
		case route.OpPresent:
			return true
		case route.OpEqual:
			return v == c.Value
		case route.OpPrefix:
			return strings.HasPrefix(v, c.Value)
		default:
			return regexp.MustCompile("^(?:" + c.Value + ")$").MatchString(v)
		}
	})
}

func refConditions(r *route.Route, h *Head) bool {
	req := http.Request{Header: h.Header.(http.Header)}
	for _, c := range r.Headers {
		if !refCondition(c, req.Header[c.Name]) {
			return false
		}
	}
	for _, c := range r.Query {
		var values []string
		for _, pair := range strings.Split(h.RawQuery, "&") {
			if k, v, _ := strings.Cut(pair, "="); k == c.Name {
				values = append(values, v)
			}
		}
		if !refCondition(c, values) {
			return false
		}
	}
	for _, c := range r.Cookies {
		var values []string
		for _, k := range req.CookiesNamed(c.Name) {
			values = append(values, k.Value)
		}
		if !refCondition(c, values) {
			return false
		}
	}
	return len(r.Clients) == 0 || slices.ContainsFunc(r.Clients, func(p netip.Prefix) bool { return p.Contains(h.Client) })
}

// refCandidate is a route with one of its hosts that takes the request, the
// method left aside.
type refCandidate struct {
	route   *route.Route
	pattern refPattern
	params  []refParam
	host    int
	module  string
	index   int
}

func refMethodRank(r *route.Route, method string) int {
	switch {
	case len(r.Methods) == 0:
		return 2
	case slices.Contains(r.Methods, method):
		return 0
	case method == "HEAD" && slices.Contains(r.Methods, "GET"):
		return 1
	default:
		return -1
	}
}

// refWinner gives the first of the candidates for a method.
func refWinner(cs []refCandidate, method string) *refCandidate {
	var best *refCandidate
	for i := range cs {
		c := &cs[i]
		if refMethodRank(c.route, method) < 0 {
			continue
		}
		if best == nil || refCompare(c, best, method) < 0 {
			best = c
		}
	}
	return best
}

func refCompare(a, b *refCandidate, method string) int {
	one := func(n int) int { return min(n, 1) }
	return cmp.Or(
		cmp.Compare(a.host, b.host),
		cmp.Compare(b.route.Priority, a.route.Priority),
		a.pattern.compare(b.pattern),
		cmp.Compare(refMethodRank(a.route, method), refMethodRank(b.route, method)),
		cmp.Compare(len(b.route.Headers), len(a.route.Headers)),
		cmp.Compare(len(b.route.Query), len(a.route.Query)),
		cmp.Compare(len(b.route.Cookies), len(a.route.Cookies)),
		cmp.Compare(one(len(b.route.Clients)), one(len(a.route.Clients))),
		cmp.Compare(a.module, b.module), // a mistake that validate reports
		cmp.Compare(a.index, b.index),
	)
}

// reference answers a request by a table. patterns holds what was parsed.
func reference(t *route.Table, patterns map[*route.Route]refPattern, h *Head) refAnswer {
	path, ok := refOctets(h.Path, h.Paths)
	if !ok || h.Method == "CONNECT" {
		return refAnswer{status: 400}
	}
	var cs []refCandidate
	for _, m := range t.Modules {
		for i := range m.Routes {
			r := &m.Routes[i]
			p, known := patterns[r]
			if !known {
				p = refParse(r)
				patterns[r] = p
			}
			params, ok := p.match(path)
			if !ok || !refConditions(r, h) {
				continue
			}
			hosts := r.Hosts
			if len(hosts) == 0 {
				hosts = []string{""}
			}
			for _, host := range hosts {
				if rank, ok := refHost(host, h.Host); ok {
					cs = append(cs, refCandidate{r, p, params, rank, m.Name, i})
				}
			}
		}
	}
	if w := refWinner(cs, h.Method); w != nil {
		return refAnswer{name: w.module + "/" + w.route.Name, params: w.params}
	}
	var allow []string
	for _, method := range []string{"DELETE", "GET", "HEAD", "POST", "PURGE"} {
		if refWinner(cs, method) != nil {
			allow = append(allow, method)
		}
	}
	if allow == nil {
		return refAnswer{status: 404}
	}
	return refAnswer{status: 405, allow: allow}
}
