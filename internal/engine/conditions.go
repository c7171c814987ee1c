package engine

import (
	"hash/maphash"
	"math/bits"
	"net/netip"
	"regexp"
	"slices"
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

// holds tells whether all conditions hold for the request head, of which d is
// being decided.
func (c *conditions) holds(h *Head, d *Decision) bool {
	return c.fails(h, d) == nil
}

// fails returns the first condition that does not hold, as a value of type
// *condition, or c itself when it is the client's address; nil when all hold.
func (c *conditions) fails(h *Head, d *Decision) any {
	for i := range c.headers {
		if !c.headers[i].inHeader(h) {
			return &c.headers[i]
		}
	}
	for i := range c.query {
		if !c.query[i].among(d.query.ofQuery(h)) {
			return &c.query[i]
		}
	}
	for i := range c.cookies {
		if !c.cookies[i].among(d.cookies.ofCookies(h)) {
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
		return len(value) <= route.MaxMatchedValue && c.expr.MatchString(value)
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

// among tells whether some pair has the condition's name and a value that
// satisfies it.
func (c *condition) among(ps *pairs) bool {
	for i := ps.after(-1, c.Name); i >= 0; i = ps.after(i, c.Name) {
		if c.satisfied(ps.value(i)) {
			return true
		}
	}
	return false
}

// pairs are a request's query parameters or cookies. They are read once,
// however many conditions ask, and looked up when they are many: otherwise one long
// query would cost each condition of each route its whole length.
type pairs struct {
	read  bool
	list  []pair
	heads []int32 // by hash of the name: the last pair with it, -1 for none; nil when pairs are few
}

type pair struct {
	name, value string
	encoded     bool  // value is to be read as a form's
	before      int32 // the pair before this one whose name has the same hash, -1 for none; with pairs.heads
}

// few is how many pairs are looked through one by one.
const few = 16

// pairSeed keeps clients from choosing names of one hash. Never written.
var pairSeed = maphash.MakeSeed()

func (ps *pairs) reset() {
	ps.read, ps.heads = false, nil
	if ps.list = ps.list[:0]; cap(ps.list) > 8*few {
		ps.list = nil
	}
}

// ofQuery reads the query, the first time, as the URL standard reads a form:
// "&" between pairs, "+" for a space, what is not an escape as it stands. Among few
// pairs it allocates only for what has an escape or a "+".
func (ps *pairs) ofQuery(h *Head) *pairs {
	if ps.read {
		return ps
	}
	ps.list = slices.Grow(ps.list, strings.Count(h.RawQuery, "&")+1)
	for query := h.RawQuery; query != ""; {
		var text string
		text, query, _ = strings.Cut(query, "&")
		if text != "" {
			name, value, _ := strings.Cut(text, "=")
			ps.list = append(ps.list, pair{name: formText(name), value: value, encoded: true})
		}
	}
	return ps.done()
}

// ofCookies reads the cookies, the first time.
func (ps *pairs) ofCookies(h *Head) *pairs {
	if ps.read || h.Header == nil {
		return ps
	}
	eachCookie(h.Header, func(name, value string) bool {
		ps.list = append(ps.list, pair{name: name, value: value})
		return true
	})
	return ps.done()
}

func (ps *pairs) done() *pairs {
	ps.read = true
	if len(ps.list) <= few {
		return ps
	}
	ps.heads = make([]int32, 1<<bits.Len(uint(len(ps.list))))
	for i := range ps.heads {
		ps.heads[i] = -1
	}
	for i := range ps.list {
		head := ps.head(ps.list[i].name)
		ps.list[i].before, *head = *head, int32(i)
	}
	return ps
}

func (ps *pairs) head(name string) *int32 {
	return &ps.heads[maphash.String(pairSeed, name)&uint64(len(ps.heads)-1)]
}

// after yields the pairs of a name one after the other, in no order that
// means anything: the next after i, the first after -1; -1 when there is none.
func (ps *pairs) after(i int, name string) int {
	if ps.heads != nil {
		var at int32
		if i >= 0 {
			at = ps.list[i].before
		} else {
			at = *ps.head(name)
		}
		for at >= 0 && ps.list[at].name != name {
			at = ps.list[at].before
		}
		return int(at)
	}
	for i++; i < len(ps.list); i++ {
		if ps.list[i].name == name {
			return i
		}
	}
	return -1
}

func (ps *pairs) value(i int) string {
	p := &ps.list[i]
	if p.encoded {
		p.value, p.encoded = formText(p.value), false
	}
	return p.value
}

func formText(s string) string {
	if strings.IndexByte(s, '+') >= 0 {
		s = strings.ReplaceAll(s, "+", " ")
	}
	return route.DecodeParam(s)
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
