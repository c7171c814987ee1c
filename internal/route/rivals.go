package route

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// An entry is one route on one of its host patterns.
type entry struct {
	ix    *moduleIndex
	route int
	host  string
	next  int32 // the next entry of the same group, in the order of the table; 0 for none
}

func (e *entry) r() *Route         { return &e.ix.module.Routes[e.route] }
func (e *entry) pattern() *Pattern { return &e.ix.patterns[e.route] }
func (e *entry) String() string    { return e.ix.module.Name + "/" + e.r().Name }
func (e *entry) field() string     { return fmt.Sprintf("routes[%d]", e.route) }
func (e *entry) key() Key {
	return NewKey(e.r(), e.pattern(), e.host, e.ix.module.Name, e.route)
}

// described names the route with what it matches and, where known, its place.
func (e *entry) described() string {
	what := e.r().Path
	if e.r().Prefix != "" {
		what = "prefix " + e.r().Prefix
	}
	if p := e.ix.module.Source.Place(e.field()).String(); p != "" {
		what += ", " + p
	}
	return e.String() + " (" + what + ")"
}

// entries calls f for each valid route with each of its hosts, in the order
// of the table.
func (v *validator) entries(f func(entry)) {
	for _, ix := range v.indexes {
		for i := range ix.module.Routes {
			if !ix.valid[i] {
				continue
			}
			hosts := ix.module.Routes[i].Hosts
			if len(hosts) == 0 {
				f(entry{ix: ix, route: i})
			}
			for _, h := range hosts {
				f(entry{ix: ix, route: i, host: h})
			}
		}
	}
}

// checkRivals finds routes of which one can never win, or none should: the
// exact duplicates within a module, and ties between modules. It groups routes
// by host and by their pattern with mixed segments taken for parameters: those
// of different groups are told apart by rules 1 to 3 or have no path in common.
// A group over MaxCandidates is an error of its own and looked at no further,
// so the time is bounded.
func (v *validator) checkRivals() {
	type groupKey struct{ host, shape string }
	type group struct{ first, last, size int32 }
	size := 0
	for _, ix := range v.indexes {
		size += len(ix.valid)
	}
	groups := make(map[groupKey]int32, size)
	list := make([]group, 0, size)
	entries := make([]entry, 1, 1+size) // 0 is none
	hosts := make(map[string]bool)
	var buf []byte
	shape, of := "", [2]int{-1, -1}
	v.entries(func(e entry) {
		hosts[e.host] = true
		if at := [2]int{e.ix.number, e.route}; at != of {
			buf = appendShape(buf[:0], e.pattern())
			shape, of = string(buf), at
		}
		key := groupKey{e.host, shape}
		id, ok := groups[key]
		if !ok {
			id = int32(len(list)) // bounded by MaxRoutesOnHosts
			groups[key] = id
			list = append(list, group{first: int32(len(entries))})
		}
		g := &list[id]
		if g.size > 0 {
			entries[g.last].next = int32(len(entries))
		}
		g.last = int32(len(entries))
		g.size++
		entries = append(entries, e)
	})
	if n := len(hosts); n > MaxHostPatterns {
		v.add(Problem{Message: fmt.Sprintf("the table has %d host patterns, more than %d", n, MaxHostPatterns), Hint: "use wildcards"})
	}
	reported := make(map[[4]int]bool)
	for _, g := range list {
		switch {
		case g.size > MaxCandidates:
			e := &entries[g.first]
			v.add(Problem{
				Place: e.ix.module.Source.Place(e.field()), Module: e.ix.module.Name, Route: e.r().Name, Field: e.field(),
				Message: fmt.Sprintf("%d routes compete for the same requests as %s, more than %d", g.size, e, MaxCandidates),
				Hint:    "tell them apart by literal segments or hosts",
			})
		case g.size > 1:
			members := make([]*entry, 0, g.size)
			for at := g.first; at != 0; at = entries[at].next {
				members = append(members, &entries[at])
			}
			v.checkGroup(members, reported)
		}
	}
}

// appendShape appends a pattern with its literals, without names and with
// mixed segments as parameters. Braces never stand in a canonical literal.
func appendShape(b []byte, p *Pattern) []byte {
	for i := range p.Segments {
		b = append(b, '/')
		if seg := &p.Segments[i]; seg.Kind() == Literal {
			b = append(b, seg.Parts[0].Literal...)
		} else {
			b = append(b, '{')
		}
	}
	switch {
	case p.CatchAll, p.IsPrefix:
		b = append(b, '}')
	case p.TrailingSlash:
		b = append(b, '/')
	}
	return b
}

// rank is all of a Key that two routes of one group can differ in before they
// tie, with the method left out, about which only a request decides.
type rank struct {
	priority                int
	path                    string
	headers, query, cookies int
	client, method          bool
}

// checkGroup compares the routes of one group that tie, pair by pair. Of the
// routes that one is a rival of, only the first is named.
func (v *validator) checkGroup(members []*entry, reported map[[4]int]bool) {
	ranks := make(map[rank][]*entry, len(members))
	for _, e := range members {
		k := e.key()
		r := rank{k.Priority, k.Path, k.Headers, k.Query, k.Cookies, k.Client, k.NamesMethod}
		for _, other := range ranks[r] {
			if v.rivals(other, e, reported) {
				break
			}
		}
		ranks[r] = append(ranks[r], e)
	}
}

// rivals reports b if it is an exact duplicate of a in one module, or ties
// with a of another, and tells whether it did, now or for another host.
func (v *validator) rivals(a, b *entry, reported map[[4]int]bool) bool {
	ra, rb := a.r(), b.r()
	same := a.ix == b.ix
	var message, hint string
	switch {
	case same && !duplicate(a, b), !same && !tie(a, b):
		return false
	case same:
		message = fmt.Sprintf("asks the same as %s, which comes first, so it can never win", a.described())
		hint = "take one out, or give them different conditions"
	default:
		message = "ties with " + a.described()
		if request := exampleRequest(a, b); request != "" {
			message += " for " + request
		}
		hint = "which of two modules wins must be told by host, priority, path, methods or conditions"
		if len(ra.Methods) == 0 && len(rb.Methods) == 0 {
			hint = "name methods, or " + hint
		}
	}
	pair := [4]int{a.ix.number, a.route, b.ix.number, b.route}
	if !reported[pair] {
		reported[pair] = true
		v.add(Problem{
			Place: b.ix.module.Source.Place(b.field()), Module: b.ix.module.Name, Route: rb.Name, Field: b.field(),
			Message: message, Hint: hint,
		})
	}
	return true
}

// duplicate tells whether two routes of one module ask exactly the same, names
// of parameters aside.
func duplicate(a, b *entry) bool {
	ra, rb := a.r(), b.r()
	return slices.Equal(ra.Hosts, rb.Hosts) && slices.Equal(ra.Methods, rb.Methods) &&
		slices.Equal(ra.Headers, rb.Headers) && slices.Equal(ra.Query, rb.Query) &&
		slices.Equal(ra.Cookies, rb.Cookies) && slices.Equal(ra.Clients, rb.Clients) &&
		samePattern(a.pattern(), b.pattern())
}

// samePattern tells whether two patterns of one group and rank match the same paths.
func samePattern(a, b *Pattern) bool {
	if a.IsPrefix != b.IsPrefix {
		return false
	}
	for i := range a.Segments {
		pa, pb := a.Segments[i].Parts, b.Segments[i].Parts
		if !slices.EqualFunc(pa, pb, func(x, y Part) bool { return x.Literal == y.Literal }) {
			return false
		}
	}
	return true
}

// tie tells whether two routes of one group and rank could both match some
// request.
func tie(a, b *entry) bool {
	ra, rb := a.r(), b.r()
	if len(ra.Methods) > 0 && commonName(ra.Methods, rb.Methods) == "" {
		return false
	}
	pa, pb := a.pattern(), b.pattern()
	for i := range pa.Segments {
		if !overlap(&pa.Segments[i], &pb.Segments[i]) {
			return false
		}
	}
	return !exclude(ra, rb)
}

// exclude tells whether no request is known to meet the conditions of both:
// they ask for equality of the same name with different values.
func exclude(a, b *Route) bool {
	return excludeList(a.Headers, b.Headers) || excludeList(a.Query, b.Query) || excludeList(a.Cookies, b.Cookies)
}

func excludeList(as, bs []Condition) bool {
	for _, a := range as {
		for _, b := range bs {
			if a.Op == OpEqual && b.Op == OpEqual && a.Name == b.Name && a.Value != b.Value {
				return true
			}
		}
	}
	return false
}

// commonName returns the first name in both of two sorted lists.
func commonName(a, b []string) string {
	for len(a) > 0 && len(b) > 0 {
		switch c := strings.Compare(a[0], b[0]); {
		case c == 0:
			return a[0]
		case c < 0:
			a = a[1:]
		default:
			b = b[1:]
		}
	}
	return ""
}

// overlap tells whether some text of one segment matches both.
//
// Of two mixed segments that is so exactly when one's leading literal begins
// the other's, and one's trailing literal ends the other's: what is in between
// can be laid end to end, as commonText does.
func overlap(a, b *Segment) bool {
	switch ka, kb := a.Kind(), b.Kind(); {
	case ka == Parameter || kb == Parameter:
		return true
	case ka == Literal && kb == Literal:
		return a.Parts[0].Literal == b.Parts[0].Literal
	case ka == Literal:
		return b.takes(a.Parts[0].Literal)
	case kb == Literal:
		return a.takes(b.Parts[0].Literal)
	}
	la, lb := a.lead(), b.lead()
	ta, tb := a.trail(), b.trail()
	return (strings.HasPrefix(la, lb) || strings.HasPrefix(lb, la)) && (endsWith(ta, tb) || endsWith(tb, ta))
}

// takes is MatchSegment without its parameters.
func (s *Segment) takes(text string) bool {
	var buf [8]string
	_, ok := s.MatchSegment(text, buf[:0])
	return ok
}

func (s *Segment) lead() string  { return s.Parts[0].Literal }
func (s *Segment) trail() string { return s.Parts[len(s.Parts)-1].Literal }

// endsWith is strings.HasSuffix in canonical text: 0 does not end %20.
func endsWith(s, suffix string) bool {
	return strings.HasSuffix(s, suffix) && !withinEscape(s, len(s)-len(suffix))
}

// commonText returns a text that two segments which overlap both match.
func commonText(a, b *Segment) string {
	const filler = "x"
	ka, kb := a.Kind(), b.Kind()
	switch {
	case ka == Literal:
		return a.Parts[0].Literal
	case kb == Literal:
		return b.Parts[0].Literal
	case ka == Parameter && kb == Parameter:
		return filler
	}
	lead, trail := longer(a.lead(), b.lead()), longer(a.trail(), b.trail())
	var t strings.Builder
	t.WriteString(lead + filler)
	for _, s := range [...]*Segment{a, b} {
		for i, part := range s.Parts {
			if part.Literal != "" && i > 0 && i < len(s.Parts)-1 {
				t.WriteString(part.Literal + filler)
			}
		}
	}
	t.WriteString(trail)
	return t.String()
}

func longer(a, b string) string {
	if len(a) > len(b) {
		return a
	}
	return b
}

// exampleRequest describes a request that both routes match, empty when none
// can be told.
func exampleRequest(a, b *entry) string {
	ra, rb := a.r(), b.r()
	method := "GET"
	switch {
	case len(ra.Methods) > 0 && len(rb.Methods) > 0:
		method = commonName(ra.Methods, rb.Methods)
	case len(ra.Methods) > 0:
		method = ra.Methods[0]
	case len(rb.Methods) > 0:
		method = rb.Methods[0]
	}
	host := a.host
	if suffix, ok := strings.CutPrefix(host, "*"); ok {
		host = "x" + suffix
	}
	path, ok := commonPath(a.pattern(), b.pattern())
	if !ok {
		return ""
	}
	query, with, ok := exampleConditions(ra, rb)
	if !ok {
		return ""
	}
	if len(ra.Clients) > 0 && len(rb.Clients) > 0 {
		client := commonClient(ra, rb)
		if client == "" {
			return ""
		}
		with = append(with, "client "+client)
	}
	request := method + " "
	if host != "" {
		request += "http://" + host
	}
	request += path
	if len(query) > 0 {
		request += "?" + strings.Join(slices.Compact(query), "&")
	}
	slices.Sort(with)
	if with = slices.Compact(with); len(with) > 0 {
		request += " with " + strings.Join(with, ", ")
	}
	return request
}

// exampleConditions returns query parameters and, in words, headers and cookies
// that meet the conditions of both routes; not ok when an expression is among them.
func exampleConditions(a, b *Route) (query, with []string, ok bool) {
	for _, r := range [...]*Route{a, b} {
		for _, l := range [...]struct {
			kind       string
			conditions []Condition
		}{{"header ", r.Headers}, {"", r.Query}, {"cookie ", r.Cookies}} {
			for _, c := range l.conditions {
				value := c.Value
				switch {
				case c.Op == OpRegexp:
					return nil, nil, false
				case c.Op == OpPresent && l.kind != "":
					value = "x"
				}
				if l.kind == "" {
					query = append(query, url.QueryEscape(c.Name)+"="+url.QueryEscape(value))
				} else {
					with = append(with, fmt.Sprintf("%s%s=%q", l.kind, c.Name, value))
				}
			}
		}
	}
	return query, with, true
}

// commonPath returns a canonical path that both patterns of one group match.
func commonPath(a, b *Pattern) (string, bool) {
	var s strings.Builder
	for i := range a.Segments {
		s.WriteString("/" + commonText(&a.Segments[i], &b.Segments[i]))
	}
	switch {
	case a.CatchAll || b.CatchAll:
		s.WriteString("/x")
	case a.TrailingSlash || s.Len() == 0:
		s.WriteString("/")
	}
	path := s.String()
	if _, err := CanonicalPath(path, PathOptions{AllowEncodedSlash: true}); err != nil {
		return "", false
	}
	return path, true
}

// commonClient returns an address that both routes' clients conditions hold.
func commonClient(a, b *Route) string {
	for _, pa := range a.Clients {
		for _, pb := range b.Clients {
			if pa.Overlaps(pb) {
				if pa.Bits() < pb.Bits() {
					pa = pb
				}
				return pa.Addr().String()
			}
		}
	}
	return ""
}
