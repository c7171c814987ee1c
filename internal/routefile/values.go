package routefile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"routerd.dev/internal/route"
	"routerd.dev/internal/yamlfile"
)

// How the values that have more than one form are read and written.

func (t *target) UnmarshalNode(d *yamlfile.Decoder, n *yamlfile.Node) {
	if n.Kind == yamlfile.String {
		t.URL = n.Text
		return
	}
	textOrMap(d, n, "a URL, or a map with url and weight", (*targetSpec)(t))
}

func (t target) MarshalNode() any {
	if t.Weight == 0 {
		return t.URL
	}
	return targetSpec(t)
}

func (r *respond) UnmarshalNode(d *yamlfile.Decoder, n *yamlfile.Node) {
	if n.Kind == yamlfile.String {
		r.Body = n.Text
		return
	}
	if n.Kind == yamlfile.Number {
		d.Want(n, "the body as text, or a map", fmt.Sprintf("for a status alone write {status: %.40s}", n.Text))
		return
	}
	textOrMap(d, n, "the body as text, or a map with status, headers and body", (*respondSpec)(r))
}

func (r respond) MarshalNode() any {
	if r.Status == 0 && len(r.Headers) == 0 {
		return r.Body
	}
	return respondSpec(r)
}

func (r *request) UnmarshalNode(d *yamlfile.Decoder, n *yamlfile.Node) {
	if n.Kind != yamlfile.String {
		textOrMap(d, n, "METHOD URL, or a map with method and url", (*requestSpec)(r))
		return
	}
	words := strings.Fields(n.Text)
	if len(words) != 2 {
		d.Fail(n.Pos, "", fmt.Sprintf("want METHOD URL, got %.80q", n.Text), "such as GET https://example.com/users/7")
		return
	}
	r.Method, r.URL = words[0], words[1]
}

func (r request) MarshalNode() any {
	if len(r.Headers) == 0 && !netip.Addr(r.Client).IsValid() &&
		slices.Equal(strings.Fields(r.Method+" "+r.URL), []string{r.Method, r.URL}) {
		return r.Method + " " + r.URL
	}
	return requestSpec(r)
}

// textOrMap decodes the map form of a value whose text form was not given.
func textOrMap(d *yamlfile.Decoder, n *yamlfile.Node, want string, spec any) {
	if n.Kind != yamlfile.Map {
		d.Want(n, want, "")
		return
	}
	d.Decode("", n, spec)
}

// headers is a map from name to a value or to a list of values, in order.
type headers []route.Header

func (h *headers) UnmarshalNode(d *yamlfile.Decoder, n *yamlfile.Node) {
	if n.Kind != yamlfile.Map {
		d.Want(n, "a map from header names to values", "")
		return
	}
	for _, f := range n.Fields {
		if f.Value.Kind == yamlfile.List {
			var values []string
			d.Decode(f.Key, f.Value, &values)
			for _, v := range values {
				*h = append(*h, route.Header{Name: f.Key, Value: v})
			}
			continue
		}
		var v string
		d.Decode(f.Key, f.Value, &v)
		*h = append(*h, route.Header{Name: f.Key, Value: v})
	}
}

func (h headers) MarshalNode() any {
	out := map[string]any{}
	for i, f := range h {
		if _, ok := out[f.Name]; ok {
			continue
		}
		values := []string{f.Value}
		for _, g := range h[i+1:] {
			if g.Name == f.Name {
				values = append(values, g.Value)
			}
		}
		if len(values) == 1 {
			out[f.Name] = f.Value
		} else {
			out[f.Name] = values
		}
	}
	return out
}

// prefix is a range of addresses; a single address is the range of itself.
type prefix netip.Prefix

func (p *prefix) UnmarshalNode(d *yamlfile.Decoder, n *yamlfile.Node) {
	const want = "an address such as 10.1.2.3, or a range such as 10.0.0.0/8"
	if n.Kind != yamlfile.String {
		d.Want(n, want, "")
		return
	}
	if a, err := netip.ParseAddr(n.Text); err == nil && a.Zone() == "" {
		*p = prefix(netip.PrefixFrom(a, a.BitLen()))
		return
	}
	v, err := netip.ParsePrefix(n.Text)
	if err != nil {
		d.Fail(n.Pos, "", fmt.Sprintf("want %s, got %.80q", want, n.Text), "")
		return
	}
	*p = prefix(v)
}

func (p prefix) MarshalNode() any { return netip.Prefix(p).String() }

// address is one client's address.
type address netip.Addr

func (a *address) UnmarshalNode(d *yamlfile.Decoder, n *yamlfile.Node) {
	if n.Kind != yamlfile.String {
		d.Want(n, "an address", "")
		return
	}
	v, err := netip.ParseAddr(n.Text)
	if err != nil || v.Zone() != "" {
		d.Fail(n.Pos, "", fmt.Sprintf("want an address such as 10.1.2.3, got %.80q", n.Text), "")
		return
	}
	*a = address(v)
}

func (a address) MarshalNode() any { return netip.Addr(a).String() }

// UnmarshalNode reads {kind: config}. A kind without settings may be left
// without a value.
func (m *definition) UnmarshalNode(d *yamlfile.Decoder, n *yamlfile.Node) {
	if n.Kind != yamlfile.Map {
		d.Want(n, "a map with one key, the kind of the middleware", "")
		return
	}
	if len(n.Fields) != 1 {
		d.Fail(n.Pos, "", fmt.Sprintf("want one key, the kind of the middleware, got %d%s", len(n.Fields), keys(n)), "give each middleware an entry of its own")
		return
	}
	f := n.Fields[0]
	m.Kind = f.Key
	switch f.Value.Kind {
	case yamlfile.Null:
		m.Config = "{}"
	case yamlfile.Map:
		b, err := f.Value.JSON()
		if err != nil {
			d.Fail(f.Pos, f.Key, err.Error(), "")
			return
		}
		m.Config = string(b)
	default:
		d.Fail(f.Pos, f.Key, "want a map of settings, got "+f.Value.Kind.String(), "")
	}
}

// keys names the keys of a map in brackets, nothing when there are none.
func keys(n *yamlfile.Node) string {
	if len(n.Fields) == 0 {
		return ""
	}
	var names []string
	for _, f := range n.Fields {
		names = append(names, f.Key)
	}
	return fmt.Sprintf(" (%.200s)", strings.Join(names, ", "))
}

func (m definition) MarshalNode() any {
	config, err := yamlfile.ParseJSON([]byte(m.Config))
	if err != nil {
		return unsayable{fmt.Errorf("the settings of %s: %w", m.Kind, err)}
	}
	return map[string]*yamlfile.Node{m.Kind: config}
}

// UnmarshalNode reads {use: name} or {kind: config}.
func (l *link) UnmarshalNode(d *yamlfile.Decoder, n *yamlfile.Node) {
	switch {
	case n.Kind == yamlfile.String:
		d.Want(n, "a map with use or a kind", fmt.Sprintf("write {use: %.80s}", n.Text))
	case n.Kind == yamlfile.Map && n.Field("use") != nil:
		var use struct {
			Use string `json:"use"`
		}
		d.Decode("", n, &use)
		l.Use = use.Use
		if f := n.Field("use"); f.Kind == yamlfile.String && f.Text == "" {
			d.Fail(f.Pos, "use", "is empty", "give it the name of a middleware of this module")
		}
	default:
		l.definition.UnmarshalNode(d, n)
	}
}

func (l link) MarshalNode() any {
	if l.Use != "" {
		return map[string]string{"use": l.Use}
	}
	return l.definition.MarshalNode()
}

// unsayable makes Encode fail: it stands for a value that a route file cannot
// express.
type unsayable struct{ err error }

func (u unsayable) MarshalText() ([]byte, error) { return nil, u.err }

// UnmarshalNode reads a condition and asks for exactly one operator.
func (c *cond) UnmarshalNode(d *yamlfile.Decoder, n *yamlfile.Node) {
	type plain cond
	if n.Kind != yamlfile.Map {
		d.Want(n, "a map with name and one of present, equal, prefix, regex", "")
		return
	}
	d.Decode("", n, (*plain)(c))
	var ops []string
	for _, op := range []string{"present", "equal", "prefix", "regex"} {
		if n.Field(op) != nil {
			ops = append(ops, op)
		}
	}
	switch {
	case len(ops) == 0 && len(n.Fields) > 1:
		// Of the fields that are unknown here, one was meant as the operator.
	case len(ops) == 0:
		d.Fail(n.Pos, "", "want one of present, equal, prefix, regex, got none", "write present: true for any value")
	case len(ops) > 1:
		d.Fail(n.Pos, "", "want one of present, equal, prefix, regex, got "+strings.Join(ops, " and "), "write a condition for each")
	case c.Present != nil && !*c.Present:
		d.Fail(n.Field("present").Pos, "present", "cannot be false", "absence cannot be asked for: give what may lack it a route without the condition")
	}
}

// condition turns a condition without mistakes into route's form.
func (c cond) condition() route.Condition {
	out := route.Condition{Name: c.Name}
	switch {
	case c.Present != nil:
		out.Op = route.OpPresent
	case c.Equal != nil:
		out.Op, out.Value = route.OpEqual, *c.Equal
	case c.Prefix != nil:
		out.Op, out.Value = route.OpPrefix, *c.Prefix
	case c.Regex != nil:
		out.Op, out.Value = route.OpRegexp, *c.Regex
	}
	return out
}

func condOf(c route.Condition) (cond, error) {
	out := cond{Name: c.Name}
	switch c.Op {
	case route.OpPresent:
		present := true
		out.Present = &present
	case route.OpEqual:
		out.Equal = &c.Value
	case route.OpPrefix:
		out.Prefix = &c.Value
	case route.OpRegexp:
		out.Regex = &c.Value
	default:
		return out, fmt.Errorf("the condition on %q has operator %d", c.Name, c.Op)
	}
	return out, nil
}
