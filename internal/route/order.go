package route

import (
	"cmp"
	"slices"
	"strings"
)

// A Key is where a route stands in the order of matching: of the routes whose
// every condition holds for a request, the least Key wins. A route with several
// hosts has one for each of them.
type Key struct {
	Host     string // the host pattern this key is for; empty for any
	Priority int
	Path     string // Pattern.PathKey

	NamesMethod bool // some method is named
	NamesHead   bool // HEAD is among them
	Headers     int  // how many conditions of the kind
	Query       int
	Cookies     int
	Client      bool // asks something of the client's address

	Module string
	Index  int // of the route in its module
}

// NewKey returns the key of a route for one of its hosts, or for "" when it
// names none. p is the route's pattern, module and index say where it was written.
func NewKey(r *Route, p *Pattern, host, module string, index int) Key {
	return Key{
		Host:        host,
		Priority:    r.Priority,
		Path:        p.PathKey(),
		NamesMethod: len(r.Methods) > 0,
		NamesHead:   slices.Contains(r.Methods, "HEAD"),
		Headers:     len(r.Headers),
		Query:       len(r.Query),
		Cookies:     len(r.Cookies),
		Client:      len(r.Clients) > 0,
		Module:      module,
		Index:       index,
	}
}

// Compare puts the route that wins first, for a request with the given method:
// a negative result says a wins. It is a total order over keys of one table,
// but for the keys of one route; between routes that cannot match one request
// it means nothing.
//
// Only whether the method is HEAD matters, as a route naming GET takes HEAD
// after those naming HEAD.
func Compare(method string, a, b *Key) int {
	if c := CompareTie(method, a, b); c != 0 {
		return c
	}
	return cmp.Or(strings.Compare(a.Module, b.Module), cmp.Compare(a.Index, b.Index))
}

// CompareTie is Compare without its last rule, the order written: routes of
// different modules that could both match a request may not tie in it.
func CompareTie(method string, a, b *Key) int {
	return cmp.Or(
		CompareHosts(a.Host, b.Host),
		cmp.Compare(b.Priority, a.Priority),
		strings.Compare(a.Path, b.Path),
		cmp.Compare(a.methodRank(method), b.methodRank(method)),
		cmp.Compare(b.Headers, a.Headers),
		cmp.Compare(b.Query, a.Query),
		cmp.Compare(b.Cookies, a.Cookies),
		trueFirst(a.Client, b.Client),
	)
}

func (k *Key) methodRank(method string) int {
	switch {
	case !k.NamesMethod:
		return 2
	case method == "HEAD" && !k.NamesHead:
		return 1
	default:
		return 0
	}
}

func trueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	default:
		return 1
	}
}

// CompareHosts puts host patterns in the order they are tried: exact ones,
// then wildcards with the longest first, then any, which is "".
func CompareHosts(a, b string) int {
	if c := cmp.Compare(hostRank(a), hostRank(b)); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(len(b), len(a)), strings.Compare(a, b))
}

func hostRank(h string) int {
	switch {
	case h == "":
		return 2
	case strings.HasPrefix(h, "*."):
		return 1
	default:
		return 0
	}
}

// MatchHost tells whether a host pattern takes a host, which is folded as
// FoldHost does.
func MatchHost(pattern, host string) bool {
	if pattern == "" {
		return true
	}
	if suffix, ok := strings.CutPrefix(pattern, "*"); ok { // ".example.com"
		return len(host) > len(suffix) && strings.HasSuffix(host, suffix) && host[0] != '.'
	}
	return pattern == host
}

// FoldHost brings the host of a request to the form that hosts of routes have:
// lower case, without port and without the dot at its end. An IPv6 address
// keeps its brackets. It allocates nothing for a host that is in lower case.
func FoldHost(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.IndexByte(host[i:], ']') < 0 {
		if host[0] == '[' || strings.IndexByte(host[:i], ':') < 0 {
			host = host[:i]
		}
	}
	return lowerASCII(strings.TrimSuffix(host, "."))
}

// lowerASCII leaves what is not ASCII alone: in Unicode the Kelvin sign folds
// to k, and a host that no route names would become one that some route does.
func lowerASCII(s string) string {
	for i := range len(s) {
		if s[i]-'A' < 26 {
			b := []byte(s)
			for ; i < len(b); i++ {
				if b[i]-'A' < 26 {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

// The octets of a path key: what a segment, or what follows the last one, is.
// In their order they win.
const (
	keyLiteral = 'a' + iota
	keyMixed   // followed by two octets, the less the more literal text
	keyParameter
	keyEnd   // nothing follows
	keySlash // a slash follows
	keyRest  // catch-all or prefix
)

// PathKey is rule 3 of matching as text: of two patterns that match one path, the
// one with the lesser key wins, and equal keys are a tie. Literals are not part of
// it, as two that differ match no path in common.
func (p *Pattern) PathKey() string {
	var buf [3*MaxSegments + 1]byte
	b := buf[:0]
	for i := range p.Segments {
		switch seg := &p.Segments[i]; seg.Kind() {
		case Literal:
			b = append(b, keyLiteral)
		case Parameter:
			b = append(b, keyParameter)
		case Mixed:
			less := 0xffff - seg.LiteralLen() // patterns are far shorter
			b = append(b, keyMixed, byte(less>>8), byte(less))
		}
	}
	switch {
	case p.CatchAll, p.IsPrefix:
		b = append(b, keyRest)
	case p.TrailingSlash:
		b = append(b, keySlash)
	default:
		b = append(b, keyEnd)
	}
	return string(b)
}
