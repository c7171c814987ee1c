package yamlfile

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// read gives the documents of a text as canonical JSON, or its problems, a
// line each.
func read(name, text string) string {
	docs, ps := Parse(name, []byte(text))
	if len(ps) > 0 {
		return ps.Error()
	}
	var out []string
	for _, d := range docs {
		b, err := d.Root.JSON()
		if err != nil {
			return err.Error()
		}
		out = append(out, string(b))
	}
	return strings.Join(out, "\n")
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"scalars", "[a, 1, -0, 1.50, 0x1F, 0o17, 017, 1e3, true, yes, ~, '1', \"\\u00e9\"]", `["a",1,0,1.5,31,15,17,1000,true,"yes",null,"1","é"]`},
		{"what only looks like a number", "[1_000, 0b11, 2024-01-01, 1.2.3, 0x, +-1, 1e, .]", `["1_000","0b11","2024-01-01","1.2.3","0x","+-1","1e","."]`},
		{"digits are kept", "[12345678901234567890.125, 0.1000, 1e-7, 123e20]", `[12345678901234567890.125,0.1,1e-7,1.23e22]`},
		{"a number JSON cannot say", "a: .inf", `line 1: ".inf" cannot be said in JSON`},
		{"blocks", "a: |\n  x\n  y\nb: >-\n  z\n  w\n", `{"a":"x\ny\n","b":"z w"}`},
		{"documents", "---\na: 1\n---\nb: 2\n...\n", "{\"a\":1}\n{\"b\":2}"},
		{"nothing", "", ""},
		{"nothing but a comment", "# x\n", ""},
		{"byte order mark", "\ufeffa: 1", `{"a":1}`},
		{"Windows", "a: 1\r\nb:\r\n  - x\r\n", `{"a":1,"b":["x"]}`},
		{"aliases", "a: &x {k: [1, 2]}\nb: *x", `{"a":{"k":[1,2]},"b":{"k":[1,2]}}`},
		{"merges", "a: &x {k: 1, l: 1}\nb: &y {l: 2, m: 2}\nc: {<<: [*x, *y], k: 3}", `{"a":{"k":1,"l":1},"b":{"l":2,"m":2},"c":{"k":3,"l":1,"m":2}}`},
		{"tags", "[!!str 1, !!int 2, !!map {}]", `["1",2,{}]`},
		{"keys", "1: a\ntrue: b\n? c\n: d", `{"1":"a","c":"d","true":"b"}`},
		{"keys are sorted", `{"b": {"d": 1, "c": 2}, "a": 3}`, `{"a":3,"b":{"c":2,"d":1}}`},
		{"JSON's escapes", `{"a": "\ud83d\ude00\/\u003c"}`, `{"a":"😀/<"}`},

		{"duplicate keys, all of them", "a: 1\nb: {c: 1, c: 2}\na: 3", "f:2:11: b.c: the key \"c\" stands twice (first at line 2)\nf:3:1: a: the key \"a\" stands twice (first at line 1)"},
		{"duplicate keys in JSON", "{\"a\": 1,\n \"a\": 2}", `f:2:2: a: the key "a" stands twice (first at line 1)`},
		{"tabs", "a:\n\tb: 1", "f:2:1: is not YAML: found character '\\t' that cannot start any token (indent with spaces: YAML takes no tabs)"},
		{"unknown anchor", "a: &users 1\nb: *user", "f:2:4: b: there is no anchor &user before this alias (did you mean *users?)"},
		{"alias in its own anchor", "a: &x {b: *x}", "f:1:11: a.b: the alias *x stands within its own anchor"},
		{"anchors end with their document", "a: &x 1\n---\nb: *x", "f:3:4: b: there is no anchor &x before this alias"},
		{"unknown tag", "a: !secret x", "f:1:4: a: the tag !secret is not read (leave it out)"},
		{"tag that does not hold", "a: !!int x", "f:1:4: a: the tag !!int wants a number, got text"},
		{"merge of no map", "<<: 1", "f:1:5: <<: can merge only maps, got a number"},
		{"directive", "%YAML 1.1\n---\na: 1", "f:1:1: the directive %YAML 1.1 is not read (leave it out)"},
		{"not UTF-8", "a: é\nb: \xff", "f:2:4: is not UTF-8 text here"},
		{"control character", "a: \x01", "f:1:4: has the control character U+0001 here (write it as an escape in double quotes)"},
		{"open bracket", "a: [1, 2", "f:1:4: is not YAML: sequence end token ']' not found"},
		{"half a surrogate pair", `{"a": "\ud83d"}`, "f:1:7: a: has an escape of half a surrogate pair"},
		{"nesting in JSON", strings.Repeat("[", 65) + strings.Repeat("]", 65), "f:1:65: " + strings.Repeat("[0]", 64) + ": is nested deeper than 64"},
		{"nesting by aliases", "a: &a " + nested(40, "1") + "\nb: " + nested(30, "*a"), "f:2:34: b" + strings.Repeat("[0]", 30) + ": is nested deeper than 64"},
		{"size", strings.Repeat("#", MaxBytes+1), "f: is 16777217 bytes long, the limit is 16777216 (split it into several files)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, read("f", c.text)); d != "" {
				t.Error(d)
			}
		})
	}
	if got, want := read("f.json", "{\"a\": 1,\n}"), "f.json:2:1: is not JSON: invalid character '}' looking for beginning of object key string"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func nested(depth int, inner string) string {
	return strings.Repeat("[", depth) + inner + strings.Repeat("]", depth)
}

func TestAliasesAreBounded(t *testing.T) {
	text := "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 10; i++ {
		text += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10))
	}
	if got, want := read("f", text), "aliases expand to more than 65536 values"; !strings.Contains(got, want) || strings.Count(got, "\n") > 0 {
		t.Errorf("got %s, want one problem with: %s", got, want)
	}
}

// What would overflow the stack of the library's parser, or keep it busy with
// the square of its input, is refused.
func TestHostileShapesAreRefused(t *testing.T) {
	const n = 30_000
	var keys, indents strings.Builder
	for i := range n {
		fmt.Fprintf(&keys, "a%d: 1\n", i)
	}
	for i := range 1500 {
		indents.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	for name, c := range map[string]struct{ text, want string }{
		"lists":       {strings.Repeat("[", n), "nested deeper"},
		"maps":        {strings.Repeat("{a: ", n), "nested deeper"},
		"dashes":      {strings.Repeat("- ", n), "nested deeper"},
		"questions":   {strings.Repeat("? ", n), "nested deeper"},
		"tags":        {strings.Repeat("!!seq ", n), "nested deeper"},
		"anchors":     {strings.Repeat("&a ", n), "nested deeper"},
		"merges":      {strings.Repeat("{<<: ", n), "nested deeper"},
		"lines":       {strings.Repeat("[\n", n), "nested deeper"},
		"indentation": {indents.String(), "nested deeper"},
		"keys":        {keys.String(), "more than 10000 keys"},
		"deep keys":   {"a:\n  - b: |\n" + strings.ReplaceAll("\n"+keys.String(), "\n", "\n    "), "more than 10000 keys"},
		"no values":   {strings.Repeat("-\n", n), "more than 10000 empty values"},
		"documents":   {strings.Repeat("--- a\n", n), "more than 1000 documents"},
		"problems":    {strings.Repeat("- !a b\n", 2*MaxProblems), "and 1000 problems more"},
	} {
		if name == "deep keys" {
			c.text = strings.Replace(c.text, "b: |", "b: 1", 1)
		}
		if got := read("f", c.text); !strings.Contains(got, c.want) {
			t.Errorf("%s: got %.300s, want: %s", name, got, c.want)
		}
	}
}

func TestWalkGivesThePlaceOfEveryValue(t *testing.T) {
	const text = "a:\n  b:\n    - x\n    - c: 1\n      d: {e: 2}\n"
	for name, text := range map[string]string{
		"YAML": text,
		"JSON": "{\"a\":\n  {\"b\":[\n      \"x\",\n      {\"c\": 1,\n       \"d\": {\"e\": 2}}]}}",
	} {
		docs, ps := Parse("f", []byte(text))
		if len(ps) > 0 {
			t.Fatal(ps)
		}
		got := map[string]int{}
		docs[0].Walk(func(field string, pos Position, _ *Node) { got[field] = pos.Line })
		want := map[string]int{"": 1, "a": 1, "a.b": 2, "a.b[0]": 3, "a.b[1]": 4, "a.b[1].c": 4, "a.b[1].d": 5, "a.b[1].d.e": 5}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestDecodeReportsEveryProblem(t *testing.T) {
	const text = `text: 12
whole: 99999
natural: -1
number: x
bool: "yes"
duration: 10
list: x
map: {a: [1, b, 1.5]}
inner:
  durations: 5s
  list: [a, 2]
`
	docs, ps := Parse("f", []byte(text))
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	var e everything
	want := `f:1:7: text: want text, got a number (12) (write "12")
f:2:8: whole: 99999 is out of range
f:3:10: natural: -1 is out of range
f:4:9: number: want a number, got text
f:5:7: bool: want true or false, got text
f:6:11: duration: want a duration such as 10s or 1m30s, got a number (10) (write 10s for seconds)
f:7:7: list: want a list, got text (write [x])
f:8:14: map.a[1]: want a whole number, got text
f:8:17: map.a[2]: want a whole number, got 1.5
f:10:3: inner.durations: unknown field (did you mean duration?)
f:11:13: inner.list[1]: want text, got a number (2) (write "2")`
	if d := cmp.Diff(want, Decode(docs[0], &e).Error()); d != "" {
		t.Error(d)
	}
}

func TestDecodeHeedsTheTags(t *testing.T) {
	type tagged struct {
		Name   string   `json:"name" jsonschema:"required"`
		Hosts  []string `json:"hosts,omitempty" jsonschema:"minItems=1"`
		Weight int      `json:"weight,omitempty" jsonschema:"default=1"`
		Empty  string   `json:"empty,omitempty"`
	}
	for text, want := range map[string]string{
		"{name: a, hosts: [b], weight: 2}": "",
		"{hosts: []}":                      "f:1:1: name: is missing\nf:1:2: hosts: is empty (name at least one, or leave the field out)",
		"{name: a, weight: 0}":             "f:1:11: weight: cannot be 0 (leave it out for the default, 1)",
		"{name: a, empty: }":               "f:1:17: empty: has no value, want text (give it one, or leave the field out)",
		"{name: a, zzz: 1}":                "f:1:11: zzz: unknown field (the fields here are empty, hosts, name, weight)",
		"[a]":                              "f:1:1: want a map, got a list",
	} {
		docs, ps := Parse("f", []byte(text))
		if len(ps) > 0 {
			t.Fatal(ps)
		}
		if d := cmp.Diff(want, Decode(docs[0], new(tagged)).Error()); d != "" {
			t.Errorf("%s: %s", text, d)
		}
	}
}

func TestSuggest(t *testing.T) {
	names := []string{"hosts", "methods", "path", "prefix", "priority", "headers"}
	for word, want := range map[string]string{
		"host": "hosts", "Hosts": "hosts", "mehtods": "methods", "header": "headers", "pth": "path",
		"zzzzzz": "", "": "", strings.Repeat("x", 200): "",
	} {
		if got := Suggest(word, names); got != want {
			t.Errorf("%s: got %q, want %q", word, got, want)
		}
	}
}

// FuzzParse holds what is read to the law that it can be written and read
// again as the same.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"a: 1", "{\"a\": [1, 2.50]}", "a: &x {b: [*y]}\nc: *x", "- |\n  x\n- >-\n  y\n", "? a\n: b", "<<: {a: 1}", "--- 1\n--- 2", "a: 'x'' y'", "a: \"\\x41\\u2028\"", "%YAML 1.2\n---\n- - - 1"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, ps := Parse("f", data)
		if len(ps) > 0 {
			if docs != nil {
				t.Fatal("documents beside problems")
			}
			_ = ps.Error()
			return
		}
		for _, d := range docs {
			want, err := d.Root.JSON()
			if err != nil {
				continue // a number that JSON cannot say
			}
			b, err := Encode(d.Root)
			if err != nil {
				t.Fatal(err)
			}
			if got := read("f", string(b)); got != string(want) {
				t.Fatalf("%q\nreads as %s\nis written as %q\nwhich reads as %s", data, want, b, got)
			}
		}
	})
}
