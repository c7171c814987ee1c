package route

import (
	"errors"
	"fmt"
	"strings"
)

// A Pattern is what a path must look like, read by ParsePattern or
// ParsePrefix. All its text is in the canonical form of CanonicalPath, and so
// is the text it is matched against.
//
// What follows the segments is told by at most one of CatchAll, IsPrefix and
// TrailingSlash; with none of them nothing may follow.
type Pattern struct {
	Segments     []Segment
	CatchAll     bool   // "/" and then anything follows: /static/{name...}
	CatchAllName string // the parameter that takes it, without its leading slash

	IsPrefix      bool // nothing follows, or "/" and then anything
	TrailingSlash bool // "/" follows. The pattern "/" is this and no segment
}

// A Segment is the text between two slashes: one literal, one parameter, or
// a mix of both, in which no parameter follows another.
type Segment struct {
	Parts []Part
}

// A Part is literal text or a parameter: exactly one field is set.
type Part struct {
	Literal string // canonical
	Param   string // its name
}

// Kind says what a segment consists of. A lower kind is more specific and wins.
type Kind uint8

// The kinds of segments.
const (
	Literal   Kind = iota // one literal
	Mixed                 // literals and parameters
	Parameter             // one parameter
)

// Kind returns the segment's kind.
func (s *Segment) Kind() Kind {
	switch {
	case len(s.Parts) > 1:
		return Mixed
	case s.Parts[0].Param != "":
		return Parameter
	default:
		return Literal
	}
}

// LiteralLen is how many octets of literal text the segment has, an escape
// counted as the one it stands for. Of two mixed segments the one with more wins.
func (s *Segment) LiteralLen() int {
	n := 0
	for _, p := range s.Parts {
		n += len(p.Literal) - 2*strings.Count(p.Literal, "%")
	}
	return n
}

// ParsePattern reads a path pattern: "/"-separated segments of literal text,
// {name}, or a mix; {name...} as the last one takes the rest. Gin's :name and *name
// are read as whole segments. Literals are brought to canonical form. The
// error says the way out.
func ParsePattern(s string) (Pattern, error) { return parsePattern(s, false) }

// ParsePrefix reads the pattern of a prefix, which stands for the path itself
// and everything under it. It may hold parameters, but neither a catch-all nor,
// "/" aside, a slash at its end.
func ParsePrefix(s string) (Pattern, error) { return parsePattern(s, true) }

// Pattern returns the pattern of the route's Path or Prefix.
func (r *Route) Pattern() (Pattern, error) {
	if r.Prefix != "" {
		return ParsePrefix(r.Prefix)
	}
	return ParsePattern(r.Path)
}

func parsePattern(s string, prefix bool) (Pattern, error) {
	p := Pattern{IsPrefix: prefix}
	switch {
	case s == "":
		return p, errors.New("is empty: write / for the root")
	case s[0] != '/':
		return p, errors.New("must begin with /")
	case len(s) > 3*MaxPatternBytes: // an escape is three bytes at most
		return p, fmt.Errorf("is longer than %d bytes", MaxPatternBytes)
	}
	rest := s[1:]
	n := strings.Count(s, "/")
	if rest == "" {
		p.TrailingSlash = !prefix
		return p, nil
	}
	if n > MaxSegments+1 {
		return p, fmt.Errorf("has more than %d segments", MaxSegments)
	}
	p.Segments = make([]Segment, 0, n)
	parts := make([]Part, 0, n+2) // shared by the segments, one each as a rule
	for more := true; more; {
		var text string
		text, rest, more = strings.Cut(rest, "/")
		if text == "" {
			switch {
			case more:
				return p, errors.New("has an empty segment: no path that is served has //, write one slash")
			case prefix:
				return p, errors.New("ends with a slash: a prefix stands for the path itself and all under it, " +
					"write it without, or path: with {rest...} for only what is under it")
			}
			p.TrailingSlash = true
			break
		}
		if name, ok := catchAll(text); ok {
			if err := p.catchAll(name, more); err != nil {
				return p, err
			}
			break
		}
		from := len(parts)
		var err error
		if parts, err = parseSegment(parts, text); err != nil {
			return p, err
		}
		p.Segments = append(p.Segments, Segment{Parts: parts[from:len(parts):len(parts)]})
	}
	if len(p.Segments) > MaxSegments {
		return p, fmt.Errorf("has more than %d segments", MaxSegments)
	}
	return p, p.check()
}

// catchAll reads the segment {name...} or Gin's *name.
func catchAll(text string) (name string, ok bool) {
	if text[0] == '*' && !strings.ContainsAny(text, "{}") {
		return text[1:], true
	}
	if inner, found := strings.CutSuffix(text, "...}"); found && text[0] == '{' && !strings.Contains(inner, "}") {
		return inner[1:], true
	}
	return "", false
}

func (p *Pattern) catchAll(name string, more bool) error {
	switch {
	case p.IsPrefix:
		return errors.New("has a catch-all: a prefix takes everything under it, leave the catch-all out or write it as path")
	case more:
		return fmt.Errorf("has a catch-all before its end: {%s...} takes all the rest, it must be the last segment", name)
	}
	p.CatchAll, p.CatchAllName = true, name
	return checkParam(name)
}

// check holds what only the whole pattern tells.
func (p *Pattern) check() error {
	size := 0
	var names [8]string
	seen := names[:0]
	for _, seg := range p.Segments {
		size++
		for _, part := range seg.Parts {
			size += len(part.Literal) + len(part.Param)
			if part.Param != "" {
				seen = append(seen, part.Param)
			}
		}
	}
	if p.CatchAll {
		seen = append(seen, p.CatchAllName)
	}
	for i, name := range seen {
		for _, other := range seen[:i] {
			if name == other {
				return fmt.Errorf("names the parameter %s twice: give each a name of its own", name)
			}
		}
	}
	if size > MaxPatternBytes {
		return fmt.Errorf("is longer than %d bytes", MaxPatternBytes)
	}
	return nil
}

// parseSegment appends the parts of one segment, which is not empty and not a
// catch-all.
func parseSegment(parts []Part, text string) ([]Part, error) {
	if text[0] == ':' && !strings.ContainsAny(text, "{}") {
		if err := checkParam(text[1:]); err != nil {
			return nil, fmt.Errorf("has the segment %q, which reads as a parameter: %w; write %%3A for a literal colon", text, err)
		}
		return append(parts, Part{Param: text[1:]}), nil
	}
	first := len(parts)
	for rest := text; rest != ""; {
		open := strings.IndexByte(rest, '{')
		lit := rest
		if open >= 0 {
			lit = rest[:open]
		}
		if strings.IndexByte(lit, '}') >= 0 {
			return nil, fmt.Errorf("has a } without its { in %q: write %%7D for a literal one", text)
		}
		if lit != "" {
			canonical, err := canonicalLiteral(lit)
			if err != nil {
				return nil, fmt.Errorf("has the text %q, which no path that is served has: %w", lit, err)
			}
			parts = append(parts, Part{Literal: canonical})
		}
		if open < 0 {
			break
		}
		rest = rest[open+1:]
		end := strings.IndexByte(rest, '}')
		if end < 0 {
			return nil, fmt.Errorf("has a { without its } in %q: write %%7B for a literal one", text)
		}
		name := rest[:end]
		rest = rest[end+1:]
		if strings.HasSuffix(name, "...") {
			return nil, fmt.Errorf("has {%s} within a segment: a catch-all is a whole segment, the last", name)
		}
		if err := checkParam(name); err != nil {
			return nil, err
		}
		if n := len(parts); n > first && parts[n-1].Param != "" {
			return nil, fmt.Errorf("has {%s}{%s}: two parameters need literal text between them", parts[n-1].Param, name)
		}
		parts = append(parts, Part{Param: name})
	}
	if lead := parts[first].Literal; lead != "" {
		whole := len(parts) == first+1
		if dotSegment(lead) && (whole || strings.IndexByte(lead, ';') > 0) || whole && nestedDots("/"+lead) {
			return nil, fmt.Errorf("has the dot segment %q, which no path that is served has: write the path it leads to", text)
		}
	}
	return parts, nil
}

// canonicalLiteral brings a piece of a segment to the form it has in a
// canonical path. %2F is let through: a listener may allow it.
func canonicalLiteral(text string) (string, error) {
	o := PathOptions{AllowEncodedSlash: true}
	canonical, fault := scan(text, o, false)
	if fault == 0 && canonical {
		return text, nil
	}
	if fault == 0 {
		var out []byte
		if out, fault = rewrite(nil, text, false); fault == 0 {
			text = string(out)
			_, fault = scan(text, o, false)
		}
	}
	if fault != 0 {
		return "", fault
	}
	return text, nil
}

// checkParam holds the rules of a parameter's name: letters, digits, "_" and
// "-", not beginning with a digit or "-".
func checkParam(name string) error {
	if name == "" {
		return errors.New("has a parameter without a name: write {name}")
	}
	if strings.ContainsAny(name, ":") {
		return fmt.Errorf("has the parameter {%s}: a path holds no expressions, write {%s}", name, name[:strings.IndexByte(name, ':')])
	}
	if len(name) > MaxNameBytes {
		return fmt.Errorf("has a parameter's name longer than %d bytes", MaxNameBytes)
	}
	for i := range len(name) {
		c := name[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c != '-' && (c < '0' || c > '9')) {
			return fmt.Errorf("has the parameter name %q: a name is letters, digits, _ and -, and begins with a letter or _", name)
		}
	}
	return nil
}

// String gives the pattern with braces, as ParsePattern or ParsePrefix reads it
// back.
func (p Pattern) String() string {
	if len(p.Segments) == 0 && !p.CatchAll {
		return "/"
	}
	var b strings.Builder
	for _, seg := range p.Segments {
		b.WriteByte('/')
		seg.write(&b)
	}
	switch {
	case p.CatchAll:
		b.WriteString("/{" + p.CatchAllName + "...}")
	case p.TrailingSlash:
		b.WriteByte('/')
	}
	return b.String()
}

// String gives the segment as it stands in a pattern.
func (s Segment) String() string {
	var b strings.Builder
	s.write(&b)
	return b.String()
}

func (s *Segment) write(b *strings.Builder) {
	for i, part := range s.Parts {
		lit := part.Literal
		if i == 0 && len(s.Parts) == 1 && lit != "" {
			// Raw, these two would read as one of Gin's forms.
			switch lit[0] {
			case ':':
				b.WriteString("%3A")
				lit = lit[1:]
			case '*':
				b.WriteString("%2A")
				lit = lit[1:]
			}
		}
		b.WriteString(lit)
		if part.Param != "" {
			b.WriteString("{" + part.Param + "}")
		}
	}
}

// ParamNames returns the names of the pattern's parameters in the order they
// stand, the catch-all last.
func (p *Pattern) ParamNames() []string {
	var names []string
	for _, seg := range p.Segments {
		for _, part := range seg.Parts {
			if part.Param != "" {
				names = append(names, part.Param)
			}
		}
	}
	if p.CatchAll {
		names = append(names, p.CatchAllName)
	}
	return names
}

// MatchSegment matches the canonical text of one segment and appends what the
// parameters take, still canonical, in their order. Each takes the shortest
// non-empty text that lets the rest match. On a mismatch it returns params as
// it was given. It takes linear time and allocates only when params must grow.
//
// Taking the first place of each literal is enough: an earlier place leaves the
// rest more text, never less, so where any choice matches, this one does. Only the
// last literal has no choice, it stands at the end.
func (s *Segment) MatchSegment(text string, params []string) ([]string, bool) {
	was := len(params)
	parts := s.Parts
	if lead := parts[0].Literal; lead != "" {
		if len(parts) == 1 {
			return params, text == lead
		}
		if !strings.HasPrefix(text, lead) {
			return params, false
		}
		text, parts = text[len(lead):], parts[1:]
	}
	for len(parts) > 0 { // parts[0] is a parameter
		if text == "" {
			return params[:was], false
		}
		if len(parts) == 1 {
			return append(params, text), true
		}
		lit := parts[1].Literal
		var at int
		if len(parts) == 2 {
			at = len(text) - len(lit)
			if at < 1 || text[at:] != lit || withinEscape(text, at) {
				return params[:was], false
			}
		} else if at = indexLiteral(text, lit); at < 0 {
			return params[:was], false
		}
		params = append(params, text[:at])
		text, parts = text[at+len(lit):], parts[2:]
	}
	return params, text == ""
}

// indexLiteral finds lit in text, not at its beginning and not from within an
// escape: the 20 of %20 is not text.
func indexLiteral(text, lit string) int {
	for from := 1; from < len(text); {
		i := strings.Index(text[from:], lit)
		if i < 0 {
			return -1
		}
		i += from
		if !withinEscape(text, i) {
			return i
		}
		from = i + 1
	}
	return -1
}

// withinEscape tells whether text[i] is a digit of an escape.
func withinEscape(text string, i int) bool {
	return i >= 1 && text[i-1] == '%' || i >= 2 && text[i-2] == '%'
}

// AppendMatch matches a canonical path and appends what the parameters take,
// still canonical, in the order of ParamNames. On a mismatch it returns params
// as it was given.
func (p *Pattern) AppendMatch(path string, params []string) ([]string, bool) {
	was := len(params)
	for i := range p.Segments {
		if path == "" || path[0] != '/' {
			return params[:was], false
		}
		text := path[1:]
		if end := strings.IndexByte(text, '/'); end >= 0 {
			text = text[:end]
		}
		var ok bool
		if params, ok = p.Segments[i].MatchSegment(text, params); !ok {
			return params[:was], false
		}
		path = path[1+len(text):]
	}
	switch {
	case p.IsPrefix:
		return params, true // path is empty or begins with "/"
	case p.CatchAll:
		if path == "" {
			return params[:was], false
		}
		return append(params, path[1:]), true
	case p.TrailingSlash:
		if path != "/" {
			return params[:was], false
		}
		return params, true
	}
	if path != "" {
		return params[:was], false
	}
	return params, true
}

// Match matches a canonical path and returns the parameters, decoded, in the
// order they stand.
func (p *Pattern) Match(path string) ([]Param, bool) {
	values, ok := p.AppendMatch(path, nil)
	if !ok {
		return nil, false
	}
	names := p.ParamNames()
	params := make([]Param, len(names))
	for i, name := range names {
		params[i] = Param{Name: name, Value: DecodeParam(values[i])}
	}
	return params, true
}
