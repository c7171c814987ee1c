package route

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
)

// Normalize brings a table to its one form, in place: defaults written out,
// what has no order sorted, case folded, patterns and configs canonical, names
// derived where none is given. It is idempotent, and keeps what is wrong for
// Validate to report.
func Normalize(t *Table) {
	for _, m := range t.Modules {
		NormalizeModule(m)
	}
	slices.SortStableFunc(t.Modules, func(a, b *Module) int { return strings.Compare(a.Name, b.Name) })
}

// NormalizeModule is Normalize for one module. Places in its Source follow
// what is moved. A module that is normalized already is not written to but for
// equal values, so it must not be shared yet.
func NormalizeModule(m *Module) {
	moved := moves{}
	slices.SortStableFunc(m.Upstreams, func(a, b Upstream) int { return strings.Compare(a.Name, b.Name) })
	slices.SortStableFunc(m.Middlewares, func(a, b NamedMiddleware) int { return strings.Compare(a.Name, b.Name) })
	for i := range m.Upstreams {
		normalizeUpstream(&m.Upstreams[i])
	}
	for i := range m.Middlewares {
		m.Middlewares[i].Config = canonicalConfig(m.Middlewares[i].Config)
	}
	for i := range m.Routes {
		normalizeRoute(&m.Routes[i], &moved, i)
	}
	nameRoutes(m.Routes)
	for i := range m.Tests {
		normalizeTest(&m.Tests[i])
	}
	m.Upstreams, m.Middlewares = none(m.Upstreams), none(m.Middlewares)
	m.Routes, m.Tests = none(m.Routes), none(m.Tests)
	m.Source.move(moved)
}

func normalizeRoute(r *Route, moved *moves, number int) {
	if len(r.Hosts) == 1 && r.Hosts[0] == "*" {
		r.Hosts = nil
	}
	for i, h := range r.Hosts {
		r.Hosts[i] = strings.ToLower(strings.TrimSuffix(h, "."))
	}
	r.Hosts = sortSet(moved, number, "hosts", r.Hosts, compareStrings)
	for i, method := range r.Methods {
		r.Methods[i] = strings.ToUpper(method)
	}
	r.Methods = sortSet(moved, number, "methods", r.Methods, compareStrings)
	if r.Path != "" {
		if p, err := ParsePattern(r.Path); err == nil {
			r.Path = p.String()
		}
	}
	if r.Prefix != "" {
		if p, err := ParsePrefix(r.Prefix); err == nil {
			r.Prefix = p.String()
		}
	}
	for i := range r.Headers {
		r.Headers[i].Name = textproto.CanonicalMIMEHeaderKey(r.Headers[i].Name)
	}
	r.Headers = sortSet(moved, number, "headers", r.Headers, compareConditions)
	r.Query = sortSet(moved, number, "query", r.Query, compareConditions)
	r.Cookies = sortSet(moved, number, "cookies", r.Cookies, compareConditions)
	for i, c := range r.Clients {
		r.Clients[i] = foldClient(c)
	}
	r.Clients = sortSet(moved, number, "clients", r.Clients, func(a, b *netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	for i := range r.Middlewares {
		if w := &r.Middlewares[i]; w.Kind != "" || w.Config != "" {
			w.Config = canonicalConfig(w.Config)
		}
	}
	r.Middlewares = none(r.Middlewares)
	if a := r.Action.Respond; a != nil {
		if a.Status == 0 {
			a.Status = DefaultRespondStatus
		}
		for i := range a.Headers {
			a.Headers[i].Name = textproto.CanonicalMIMEHeaderKey(a.Headers[i].Name)
		}
		// Stable, by name alone: the order of one name's values has a meaning.
		slices.SortStableFunc(a.Headers, func(a, b Header) int { return strings.Compare(a.Name, b.Name) })
		a.Headers = none(a.Headers)
	}
	if a := r.Action.Redirect; a != nil && a.Status == 0 {
		a.Status = DefaultRedirectStatus
	}
}

// foldClient takes the host bits off, and the IPv4 address out of an IPv6 one.
func foldClient(p netip.Prefix) netip.Prefix {
	if !p.IsValid() {
		return p
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

func normalizeUpstream(u *Upstream) {
	for i := range u.Targets {
		t := &u.Targets[i]
		t.URL = foldTarget(t.URL)
		if t.Weight == 0 {
			t.Weight = DefaultWeight
		}
	}
	u.Targets = none(u.Targets)
	if u.HostMode == HostLiteral {
		u.Host = strings.ToLower(u.Host)
	}
	u.ConnectTimeout = cmp.Or(u.ConnectTimeout, DefaultConnectTimeout)
	u.ResponseTimeout = cmp.Or(u.ResponseTimeout, DefaultResponseTimeout)
	u.IdleTimeout = cmp.Or(u.IdleTimeout, DefaultIdleTimeout)
	u.MaxIdle = cmp.Or(u.MaxIdle, DefaultMaxIdle)
	u.TLS.ServerName = strings.ToLower(u.TLS.ServerName)
}

// foldTarget puts scheme and host in lower case and takes off a lone slash.
// Anything with more to it is left for Validate.
func foldTarget(url string) string {
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok || strings.ContainsAny(strings.TrimSuffix(rest, "/"), "/?#@") {
		return url
	}
	return strings.ToLower(scheme) + "://" + strings.ToLower(strings.TrimSuffix(rest, "/"))
}

func normalizeTest(t *Test) {
	t.Method = strings.ToUpper(cmp.Or(t.Method, "GET"))
	for i := range t.Headers {
		t.Headers[i].Name = textproto.CanonicalMIMEHeaderKey(t.Headers[i].Name)
	}
	t.Headers = none(t.Headers)
	t.Client = t.Client.Unmap()
	slices.SortStableFunc(t.Params, func(a, b Param) int { return strings.Compare(a.Name, b.Name) })
	t.Params = none(t.Params)
}

func compareStrings(a, b *string) int { return strings.Compare(*a, *b) }

func compareConditions(a, b *Condition) int {
	return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.Op, b.Op), strings.Compare(a.Value, b.Value))
}

// none makes an empty list nil, so that there is one form of nothing.
func none[E any](s []E) []E {
	if len(s) == 0 {
		return nil
	}
	return s
}

// moves are the fields that sorting gave another index: old → new, both such
// as "routes[2].hosts[1]". What a route file keys by name is not among them.
type moves map[string]string

// sortSet sorts a list of a route in which an equal value says nothing more,
// drops those that are, and notes where each place went. Places of equal values
// become one.
func sortSet[E comparable](moved *moves, route int, field string, s []E, compare func(a, b *E) int) []E {
	ascending := true
	for i := 1; i < len(s); i++ {
		ascending = ascending && compare(&s[i-1], &s[i]) < 0
	}
	if ascending {
		return none(s)
	}
	type placed struct {
		value E
		was   int
	}
	list := make([]placed, len(s))
	for i, v := range s {
		list[i] = placed{v, i}
	}
	slices.SortStableFunc(list, func(a, b placed) int { return compare(&a.value, &b.value) })
	s = s[:0]
	for i := range list {
		p := &list[i]
		if n := len(s); n == 0 || s[n-1] != p.value {
			s = append(s, p.value)
		}
		if is := len(s) - 1; is != p.was {
			(*moved)[fmt.Sprintf("routes[%d].%s[%d]", route, field, p.was)] = fmt.Sprintf("routes[%d].%s[%d]", route, field, is)
		}
	}
	return s
}

// nameRoutes gives a name to each route without one, from its method and path.
// A name that is taken gets a number, in the order written.
func nameRoutes(routes []Route) {
	unnamed := false
	for i := range routes {
		unnamed = unnamed || routes[i].Name == ""
	}
	if !unnamed {
		return
	}
	taken := make(map[string]bool, len(routes))
	for i := range routes {
		taken[routes[i].Name] = true
	}
	next := make(map[string]int)
	for i := range routes {
		if routes[i].Name != "" {
			continue
		}
		slug := slugOf(&routes[i])
		name := slug
		for n := max(2, next[slug]); taken[name]; n++ {
			name = slug + "-" + strconv.Itoa(n)
			next[slug] = n + 1
		}
		taken[name] = true
		routes[i].Name = name
	}
}

// slugOf makes a route's name of its methods and path: GET /users/{id} is
// get-users-id.
func slugOf(r *Route) string {
	var b strings.Builder
	b.WriteString("any")
	if len(r.Methods) > 0 {
		b.Reset()
		b.WriteString(strings.ToLower(strings.Join(r.Methods, "-")))
	}
	path := r.Path
	if path == "" {
		path = r.Prefix
	}
	if strings.Trim(path, "/") == "" {
		b.WriteString("-root")
	}
	dash := true
	for i := range len(path) {
		c := path[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			dash = true
			continue
		}
		if dash {
			b.WriteByte('-')
			dash = false
		}
		b.WriteByte(c)
	}
	if r.Prefix != "" {
		b.WriteString("-prefix")
	}
	slug := b.String()
	if most := MaxNameBytes - 8; len(slug) > most { // room for a number
		slug = strings.TrimRight(slug[:most], "-")
	}
	return slug
}

// canonicalConfig brings a JSON object to its one form: keys sorted, no white
// space, numbers in their shortest form. None is {}. What is not JSON is kept.
func canonicalConfig(config string) string {
	if strings.TrimSpace(config) == "" {
		return "{}"
	}
	if out, err := canonicalJSON(config); err == nil {
		return out
	}
	return config
}

func canonicalJSON(text string) (string, error) {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return "", err
	}
	if dec.More() {
		return "", fmt.Errorf("more follows the value")
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(shortNumbers(v)); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// shortNumbers gives equal numbers equal text: 1e2 and 100.0 are 100. A whole
// number keeps all its digits.
func shortNumbers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = shortNumbers(v[k])
		}
	case []any:
		for i := range v {
			v[i] = shortNumbers(v[i])
		}
	case json.Number:
		if !strings.ContainsAny(string(v), ".eE") {
			if v == "-0" {
				return json.Number("0")
			}
			return v
		}
		if f, err := v.Float64(); err == nil {
			if i := int64(f); float64(i) == f && -1<<53 < i && i < 1<<53 {
				return json.Number(strconv.FormatInt(i, 10))
			}
			return f
		}
	}
	return v
}
