package version

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"routerd.dev/internal/route"
)

// Change is what became of a thing between two tables.
type Change string

// The changes.
const (
	Added   Change = "added"
	Removed Change = "removed"
	Changed Change = "changed"
)

// A Difference is what must be done to one table to get another. It is empty
// if and only if the two are equal.
type Difference struct {
	Modules []ModuleDifference `json:"modules"` // sorted by name
}

// A ModuleDifference is what happens to one module. One that is added or
// removed lists its parts as added or removed.
type ModuleDifference struct {
	Module      string           `json:"module"`
	Change      Change           `json:"change"`
	Upstreams   []ItemDifference `json:"upstreams,omitempty"`
	Middlewares []ItemDifference `json:"middlewares,omitempty"`
	Routes      []ItemDifference `json:"routes,omitempty"`
	Tests       []ItemDifference `json:"tests,omitempty"`

	// Reordered tells that parts which are in both stand in another order.
	Reordered bool `json:"reordered,omitempty"`
	// Order has the groups of routes whose order decides which of them wins,
	// and changed.
	Order []OrderChange `json:"order,omitempty"`
}

// An ItemDifference is what happens to one upstream, middleware, route or
// test. Name is its name; a second one of the same name has " (2)" after it.
type ItemDifference struct {
	Name   string        `json:"name"`
	Change Change        `json:"change"`
	Fields []FieldChange `json:"fields"` // sorted as the fields are written
}

// A FieldChange is one field by its path within the item, such as
// "middlewares[0].rateLimit". Old is empty when the field is added, New when
// it is removed.
type FieldChange struct {
	Field string `json:"field"`
	Old   string `json:"old,omitempty"`
	New   string `json:"new,omitempty"`
}

// An OrderChange names routes that can tie, in the old and the new order.
type OrderChange struct {
	Old []string `json:"old"`
	New []string `json:"new"`
}

// Diff compares two normalized tables, from a to b. Nil stands for the empty
// table.
func Diff(a, b *route.Table) Difference {
	d := Difference{Modules: []ModuleDifference{}}
	old, new := modulesByName(a), modulesByName(b)
	names := maps.Clone(old)
	maps.Copy(names, new)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		ma, mb := old[name], new[name]
		if ma == mb {
			continue
		}
		md := ModuleDifference{Module: name, Change: Changed}
		switch {
		case ma == nil:
			md.Change, ma = Added, &route.Module{}
		case mb == nil:
			md.Change, mb = Removed, &route.Module{}
		}
		md.compare(ma, mb)
		if md.Change != Changed || !md.empty() {
			d.Modules = append(d.Modules, md)
		}
	}
	return d
}

func modulesByName(t *route.Table) map[string]*route.Module {
	out := map[string]*route.Module{}
	if t != nil {
		for _, m := range t.Modules {
			out[m.Name] = m
		}
	}
	return out
}

func (d *ModuleDifference) compare(a, b *route.Module) {
	var moved bool
	d.Upstreams, _ = diffItems(a.Upstreams, b.Upstreams, func(u *route.Upstream) string { return u.Name }, upstreamFields)
	d.Middlewares, _ = diffItems(a.Middlewares, b.Middlewares, func(m *route.NamedMiddleware) string { return m.Name }, middlewareFields)
	d.Routes, d.Reordered = diffItems(a.Routes, b.Routes, func(r *route.Route) string { return r.Name }, routeFieldTexts)
	if d.Reordered {
		d.Order = orderChanges(a.Routes, b.Routes)
	}
	d.Tests, moved = diffItems(a.Tests, b.Tests, testName, testFields)
	d.Reordered = d.Reordered || moved
}

func testName(t *route.Test) string {
	if t.Name != "" {
		return t.Name
	}
	return t.Method + " " + t.URL
}

func (d *ModuleDifference) empty() bool {
	return len(d.Upstreams)+len(d.Middlewares)+len(d.Routes)+len(d.Tests) == 0 && !d.Reordered
}

// Empty tells whether the tables are equal.
func (d Difference) Empty() bool { return len(d.Modules) == 0 }

// A field is a path and the text of its value; an item's fields say all that
// it holds.
type field struct{ path, text string }

// diffItems compares two lists by name; items come in b's order, then what
// only a has in a's. moved tells whether those in both changed their order.
func diffItems[T any](a, b []T, name func(*T) string, fields func(*T) []field) (out []ItemDifference, moved bool) {
	old, new := keyed(a, name), keyed(b, name)
	at := make(map[string]int, len(old))
	for i, k := range old {
		at[k] = i
	}
	last := -1
	for j, k := range new {
		i, ok := at[k]
		if !ok {
			out = append(out, ItemDifference{Name: k, Change: Added, Fields: diffFields(nil, fields(&b[j]))})
			continue
		}
		delete(at, k)
		moved = moved || i < last
		last = i
		if !reflect.DeepEqual(&a[i], &b[j]) {
			if fs := diffFields(fields(&a[i]), fields(&b[j])); len(fs) > 0 {
				out = append(out, ItemDifference{Name: k, Change: Changed, Fields: fs})
			}
		}
	}
	for i, k := range old {
		if _, left := at[k]; left {
			out = append(out, ItemDifference{Name: k, Change: Removed, Fields: diffFields(fields(&a[i]), nil)})
		}
	}
	return out, moved
}

// keyed returns each item's name, made unique.
func keyed[T any](list []T, name func(*T) string) []string {
	out := make([]string, len(list))
	times := make(map[string]int, len(list)) // a key that is taken → how often its name came
	for i := range list {
		n := name(&list[i])
		k := n
		for times[k] > 0 {
			times[n]++
			k = fmt.Sprintf("%s (%d)", n, times[n])
		}
		times[k] = 1
		out[i] = k
	}
	return out
}

// diffFields walks two lists of fields, each in writing order.
func diffFields(a, b []field) []FieldChange {
	old := make(map[string]string, len(a))
	for _, f := range a {
		old[f.path] = f.text
	}
	var out []FieldChange
	for _, f := range b {
		text, ok := old[f.path]
		delete(old, f.path)
		if !ok || text != f.text {
			out = append(out, FieldChange{Field: f.path, Old: text, New: f.text})
		}
	}
	for _, f := range a {
		if text, ok := old[f.path]; ok {
			out = append(out, FieldChange{Field: f.path, Old: text})
		}
	}
	return out
}

// orderChanges finds the routes of both lists that can tie by every rule of
// matching but the order written, and whose order changed. It may name routes
// that never match one request; it never misses two that do.
func orderChanges(a, b []route.Route) []OrderChange {
	name := func(r *route.Route) string { return r.Name }
	position := map[string]int{}
	for j, k := range keyed(b, name) {
		position[k] = j
	}
	groups := map[string][]string{} // of old order
	for _, k := range keyed(a, name) {
		j, ok := position[k]
		if !ok {
			continue
		}
		tie := fmt.Sprintf("%d %s", b[j].Priority, pathKey(&b[j]))
		for _, host := range hostsOf(&b[j]) {
			groups[host+" "+tie] = append(groups[host+" "+tie], k)
		}
	}
	var out []OrderChange
	seen := map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		old := groups[key]
		new := slices.Clone(old)
		slices.SortFunc(new, func(x, y string) int { return cmp.Compare(position[x], position[y]) })
		id := strings.Join(new, "\x00")
		if !slices.Equal(old, new) && !seen[id] {
			seen[id] = true
			out = append(out, OrderChange{Old: old, New: new})
		}
	}
	return out
}

// pathKey is equal for patterns that can match one path and tie.
func pathKey(rt *route.Route) string {
	p, err := rt.Pattern()
	if err != nil {
		return rt.Path + rt.Prefix
	}
	key := p.PathKey()
	for i := range p.Segments {
		if seg := &p.Segments[i]; seg.Kind() == route.Literal {
			key += "/" + seg.Parts[0].Literal
		}
	}
	return key
}

// WriteText writes the difference for people: a line for each part, marked +,
// - or ~, with its fields, old → new, below what changed.
func (d Difference) WriteText(w io.Writer) error {
	for i := range d.Modules {
		if _, err := io.WriteString(w, d.Modules[i].text()); err != nil {
			return fmt.Errorf("write difference: %w", err)
		}
	}
	return nil
}

// String gives what WriteText writes.
func (d Difference) String() string {
	var b strings.Builder
	_ = d.WriteText(&b) // a Builder takes everything
	return b.String()
}

func (d *ModuleDifference) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s module %s\n", d.Change.mark(), d.Module)
	for _, part := range []struct {
		kind  string
		items []ItemDifference
	}{{"upstream", d.Upstreams}, {"middleware", d.Middlewares}, {"route", d.Routes}, {"test", d.Tests}} {
		for _, item := range part.items {
			fmt.Fprintf(&b, "  %s %s %s\n", item.Change.mark(), part.kind, item.Name)
			for _, f := range item.Fields {
				f.text(&b, item.Change)
			}
		}
	}
	for _, o := range d.Order {
		fmt.Fprintf(&b, "  ~ order %s → %s\n", strings.Join(o.Old, ", "), strings.Join(o.New, ", "))
	}
	if d.Reordered && len(d.Order) == 0 {
		b.WriteString("  ~ order changed, of what never ties\n")
	}
	return b.String()
}

func (f FieldChange) text(b *strings.Builder, of Change) {
	fmt.Fprintf(b, "      %s: ", f.Field)
	switch {
	case of == Removed:
		b.WriteString(f.Old)
	case of == Added:
		b.WriteString(f.New)
	case f.Old == "":
		b.WriteString("(none) → " + f.New)
	case f.New == "":
		b.WriteString(f.Old + " → (none)")
	default:
		b.WriteString(f.Old + " → " + f.New)
	}
	b.WriteByte('\n')
}

func (c Change) mark() string {
	switch c {
	case Added:
		return "+"
	case Removed:
		return "-"
	default:
		return "~"
	}
}
