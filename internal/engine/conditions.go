package engine

import (
	"net/netip"
	"regexp"
	"strings"

	"routerd.dev/internal/route"
)

// Header is the header fields of a request head. http.Header is one.
type Header interface {
	// Values returns the values of a field whose name is in canonical MIME
	// form. They are not written to.
	Values(name string) []string
}

// conditions are what a route asks besides host, method and path.
type conditions struct {
	headers, query, cookies []condition
	clients                 []netip.Prefix
}

type condition struct {
	route.Condition
	expr *regexp.Regexp // of OpRegexp
}

// holds tells whether all conditions hold for the request head.
func (c *conditions) holds(h *Head) bool {
	return c.fails(h) == nil
}

// fails returns the first condition that does not hold, as a value of type
// *condition, or c itself when it is the client's address; nil when all hold.
func (c *conditions) fails(h *Head) any {
	for i := range c.headers {
		if !c.headers[i].inHeader(h) {
			return &c.headers[i]
		}
	}
	for i := range c.query {
		if !c.query[i].inQuery(h.RawQuery) {
			return &c.query[i]
		}
	}
	for i := range c.cookies {
		if !c.cookies[i].inCookies(h) {
			return &c.cookies[i]
		}
	}
	if len(c.clients) > 0 && !contains(c.clients, h.Client) {
		return c
	}
	return nil
}

func contains(clients []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range clients {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// satisfied tells whether a value does what the condition asks.
func (c *condition) satisfied(value string) bool {
	switch c.Op {
	case route.OpPresent:
		return true
	case route.OpEqual:
		return value == c.Value
	case route.OpPrefix:
		return strings.HasPrefix(value, c.Value)
	case route.OpRegexp:
		return c.expr.MatchString(value)
	default:
		return false
	}
}

func (c *condition) inHeader(h *Head) bool {
	if c.Name == "Host" { // net/http keeps it apart from the others
		return c.satisfied(h.Host)
	}
	if h.Header == nil {
		return false
	}
	for _, v := range h.Header.Values(c.Name) {
		if c.satisfied(v) {
			return true
		}
	}
	return false
}

// inQuery reads the query as the URL standard reads a form: "&" between
// pairs, "+" for a space, what is not an escape as it stands. It allocates only for a
// value with an escape or a "+".
func (c *condition) inQuery(query string) bool {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		if formText(name) == c.Name && c.satisfied(formText(value)) {
			return true
		}
	}
	return false
}

func formText(s string) string {
	if strings.IndexByte(s, '+') >= 0 {
		s = strings.ReplaceAll(s, "+", " ")
	}
	return route.DecodeParam(s)
}

func (c *condition) inCookies(h *Head) bool {
	found := false
	if h.Header != nil {
		eachCookie(h.Header, func(name, value string) bool {
			found = name == c.Name && c.satisfied(value)
			return !found
		})
	}
	return found
}

// eachCookie calls f for the cookies of a request until it says false. They
// are read as RFC 6265 sends them: pairs after ";", names exact, one pair of double
// quotes around a value not part of it.
func eachCookie(h Header, f func(name, value string) bool) {
	for _, line := range h.Values("Cookie") {
		for line != "" {
			var pair string
			pair, line, _ = strings.Cut(line, ";")
			name, value, ok := strings.Cut(strings.Trim(pair, " \t"), "=")
			if n := len(value); n > 1 && value[0] == '"' && value[n-1] == '"' {
				value = value[1 : n-1]
			}
			if ok && !f(name, value) {
				return
			}
		}
	}
}
