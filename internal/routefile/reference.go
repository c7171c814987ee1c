package routefile

import (
	"bytes"
	_ "embed"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"routerd.dev/internal/yamlfile"
)

//go:embed example.yaml
var example string

// Reference returns the page about route files in Markdown: an example, then
// every field with its type, its default and what it means, and the settings of
// kinds. It is made from what Parse reads by, and has the same bytes for the
// same kinds.
func Reference(kinds ...MiddlewareKind) []byte {
	var b bytes.Buffer
	b.WriteString(referenceHead)
	fmt.Fprintf(&b, "## Example\n\n```yaml\n%s```\n\n", example)
	for _, s := range []struct {
		title, text string
		shape       any
	}{
		{"A route file", "A file may hold several documents, parted by `---`, and several files may add to one module.", document{}},
		{"upstreams.NAME", "", upstream{}},
		{"upstreams.NAME.targets[]", "A URL alone stands for a map with it.", targetSpec{}},
		{"upstreams.NAME.timeouts", "", timeouts{}},
		{"upstreams.NAME.tls", "", tls{}},
		{"routes[]", "All conditions that are given must hold. Exactly one of `path` and `prefix` is given, and exactly one of `proxy`, `respond` and `redirect`.", routeSpec{}},
		{"routes[].headers[], query[], cookies[]", "Exactly one of `present`, `equal`, `prefix` and `regex` is given. Of repeated values any may do.", cond{}},
		{"routes[].proxy", "", proxy{}},
		{"routes[].respond", "Text alone stands for a map with it as `body`.", respondSpec{}},
		{"routes[].redirect", "", redirect{}},
		{"tests[]", "", testSpec{}},
		{"tests[].request", "`METHOD URL` stands for a map with these two.", requestSpec{}},
		{"tests[].expect", "Exactly one of `route` and `status` is given.", expect{}},
	} {
		fmt.Fprintf(&b, "## %s\n\n", s.title)
		if s.text != "" {
			b.WriteString(s.text + "\n\n")
		}
		fieldTable(&b, reflect.TypeOf(s.shape))
	}
	if len(kinds) > 0 {
		b.WriteString("## Middlewares\n\nA middleware is a map with one key, its kind, over its settings; within `routes[].middlewares` also `use` over the name of one under `middlewares`.\n\n")
	}
	for _, k := range slices.SortedFunc(slices.Values(kinds), func(x, y MiddlewareKind) int { return strings.Compare(x.Name, y.Name) }) {
		fmt.Fprintf(&b, "### %s\n\n%s\n\n", k.Name, strings.TrimSpace(k.Doc))
		sections(&b, "", reflect.TypeOf(k.Config), 0)
	}
	return append(bytes.TrimRight(b.Bytes(), "\n"), '\n')
}

const referenceHead = `# Route file

<!-- Generated from the code that reads route files; do not edit. -->

A route file is YAML or JSON. Unknown fields, duplicate keys and empty lists or
values are problems, and all problems are reported with file, line and field. Text that looks
like a number or a bool is quoted; durations are text such as ` + "`10s`" + ` or ` + "`1m30s`" + `. YAML's anchors, aliases and merge keys are read.

`

// sections writes the table of a struct, and after it those of the structs
// within it, each under its path.
func sections(b *bytes.Buffer, path string, t reflect.Type, depth int) {
	t = indirect(t)
	if t == nil || t.Kind() != reflect.Struct || depth > 8 {
		return
	}
	if path != "" {
		fmt.Fprintf(b, "#### %s\n\n", path)
	}
	fieldTable(b, t)
	for _, f := range fields(t) {
		at, inner := f.name, indirect(f.typ)
		for inner.Kind() == reflect.Slice || inner.Kind() == reflect.Map {
			if inner.Kind() == reflect.Slice {
				at += "[]"
			} else {
				at += ".NAME"
			}
			inner = indirect(inner.Elem())
		}
		if path != "" {
			at = path + "." + at
		}
		if inner.Kind() == reflect.Struct && len(fields(inner)) > 0 {
			sections(b, at, inner, depth+1)
		}
	}
}

func indirect(t reflect.Type) reflect.Type {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

func fieldTable(b *bytes.Buffer, t reflect.Type) {
	list := fields(t)
	if len(list) == 0 {
		b.WriteString("It has no settings.\n\n")
		return
	}
	b.WriteString("| field | type | default | meaning |\n|---|---|---|---|\n")
	for _, f := range list {
		standard := f.standard
		switch {
		case f.required:
			standard = "*required*"
		case standard != "":
			standard = "`" + standard + "`"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", f.name, typeText(f.typ), standard, strings.ReplaceAll(f.doc, "|", `\|`))
	}
	b.WriteString("\n")
}

// A fieldDoc is what a struct's tags say about one field.
type fieldDoc struct {
	name, standard, doc string
	required            bool
	typ                 reflect.Type
}

func fields(t reflect.Type) []fieldDoc {
	var out []fieldDoc
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" || !f.IsExported() {
			continue
		}
		d := fieldDoc{name: name, doc: f.Tag.Get("jsonschema_description"), typ: f.Type}
		for rule := range strings.SplitSeq(f.Tag.Get("jsonschema"), ",") {
			switch key, value, _ := strings.Cut(rule, "="); key {
			case "required":
				d.required = true
			case "default":
				d.standard = value
			case "description":
				d.doc = value
			}
		}
		out = append(out, d)
	}
	return out
}

func typeText(t reflect.Type) string {
	switch indirect(t) {
	case reflect.TypeFor[target]():
		return "URL or map"
	case reflect.TypeFor[respond]():
		return "text or map"
	case reflect.TypeFor[request]():
		return "`METHOD URL` or map"
	case reflect.TypeFor[headers]():
		return "map of text or lists of text"
	case reflect.TypeFor[definition](), reflect.TypeFor[link]():
		return "middleware"
	case reflect.TypeFor[prefix](), reflect.TypeFor[netip.Prefix]():
		return "address or range"
	case reflect.TypeFor[address](), reflect.TypeFor[netip.Addr]():
		return "address"
	case reflect.TypeFor[yamlfile.Node]():
		return "any"
	}
	t = indirect(t)
	switch {
	case isDuration(t):
		return "duration"
	case readsText(t):
		return "text"
	}
	switch t.Kind() {
	case reflect.Slice:
		return "list of " + typeText(t.Elem())
	case reflect.Map:
		return "map of " + typeText(t.Elem())
	case reflect.Bool:
		return "bool"
	case reflect.String:
		return "text"
	case reflect.Struct:
		return "map"
	case reflect.Float32, reflect.Float64:
		return "number"
	default:
		return "whole number"
	}
}
