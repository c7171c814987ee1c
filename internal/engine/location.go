package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"routerd.dev/internal/middleware"
	"routerd.dev/internal/route"
)

// A location is the template of a redirect: text and parameters in turn.
type location struct {
	parts []route.Part
	local bool // a path: stays with the host that was asked
}

// newLocation reads a template such as "https://example.com/{path}".
func newLocation(to string, params []param) (*location, error) {
	parts, err := route.ParseTemplate(to)
	if err != nil {
		return nil, err
	}
	l := &location{parts: parts, local: strings.HasPrefix(to, "/") && !strings.HasPrefix(to, "//")}
	for _, p := range parts {
		if p.Param != "" && !slices.ContainsFunc(params, func(o param) bool { return o.name == p.Param }) {
			return nil, fmt.Errorf("names the parameter {%s}, which the route's path has not", p.Param)
		}
	}
	if _, rest, ok := strings.Cut(to, "//"); !l.local {
		end := strings.IndexAny(rest, "/?#")
		if end < 0 {
			end = len(rest)
		}
		if !ok || strings.Contains(to[:len(to)-len(rest)+end], "{") {
			return nil, errors.New("must begin with / or with a URL's host, in which no parameter stands")
		}
	}
	return l, nil
}

// build inserts the parameters as they came. False says that the result would
// lead to another host than the template says.
func (l *location) build(params []middleware.Param) (string, bool) {
	var b strings.Builder
	for _, p := range l.parts {
		writeEscaped(&b, p.Literal)
		if p.Param == "" {
			continue
		}
		for _, given := range params {
			if given.Name == p.Param {
				writeEscaped(&b, given.Raw)
			}
		}
	}
	to := b.String()
	// "//" and "/\" begin a host, not a path.
	if l.local && len(to) > 1 && (to[1] == '/' || to[1] == '\\') {
		return "", false
	}
	return to, true
}

// writeEscaped writes what may not stand raw in a header field as escapes.
func writeEscaped(b *strings.Builder, s string) {
	const hex = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7F {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
}
