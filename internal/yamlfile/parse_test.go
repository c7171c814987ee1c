package yamlfile

import (
	"fmt"
	"strings"
	"testing"

	"github.com/goccy/go-yaml/lexer"
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
		{"unseen characters", "a: \x7f", "f:1:4: has the control character U+007F here (write it as an escape in double quotes)"},
		{"unseen characters in JSON", "{\"a\": \"\u202e\"}", "f:1:8: has the control character U+202E here (write it as an escape in double quotes)"},
		{"unseen characters as escapes", `["\x7f", "\u009b", "\u202e"]`, "[\"\x7f\",\"\u009b\",\"\u202e\"]"},
		{"text from right to left", "a: שלום \u200f!", "{\"a\":\"שלום \u200f!\"}"},
		{
			"unseen characters in a key", `{"\u001b]0;x\u0007": {"\u009b": 1, "\u009b": 2}}`,
			`f:1:36: \x1b]0;x\a.\u009b: the key "\u009b" stands twice (first at line 1)`,
		},
		{"a long number", "a: " + strings.Repeat("1", 401), `line 1: "` + strings.Repeat("1", 40) + `"… is a number of more than 400 characters`},
		{
			"entries in brackets", "[? a : b, c: d, {? e : f, g: http://h:80/i:j, ? k}, &m !!str n, *m : o]",
			`[{"a":"b"},{"c":"d"},{"e":"f","g":"http://h:80/i:j","k":null},"n",{"n":"o"}]`,
		},
		{"long key", strings.Repeat("k", MaxKey+1) + ": 1", "f:1:1026: has a key of more than 1024 bytes"},
		{"long key in JSON", `{"a": {"` + strings.Repeat("k", MaxKey+1) + `": 1}}`, "f:1:8: a: has a key of more than 1024 bytes"},
		{"long key with a question mark", "? !!str &a " + strings.Repeat("k", MaxKey+1) + "\n: 1", "f:1:1: has a key of more than 1024 bytes"},
		{"long key by an alias", "a: &a " + strings.Repeat("k", MaxKey+1) + "\n*a : 1", "f:1:7: has a key of more than 1024 bytes"},
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
	long := strings.Repeat("x", 64<<10)
	for name, text := range map[string]string{
		"values": text,
		"text":   "a: &a " + long + "\nb: [" + strings.Repeat("*a, ", 64) + "]",
		"keys":   "a: &a {" + strings.Repeat("k", MaxKey) + ": 1}\nb: [" + strings.Repeat("*a, ", 4096) + "]",
		"merges": "a: &a {" + strings.Repeat("k", MaxKey) + ": 1}\nb: [" + strings.Repeat("{<<: *a}, ", 4096) + "]",
		"tags":   "a: &a !!str " + strings.Repeat("1", 64<<10) + "\nb: [" + strings.Repeat("*a, ", 64) + "]",
	} {
		if got, want := read("f", text), "aliases expand to more than 65536 values"; !strings.Contains(got, want) || strings.Count(got, "\n") > 0 {
			t.Errorf("%s: got %.300s, want one problem with: %s", name, got, want)
		}
	}
	if got := read("f", "a: &a "+long+"\nb: ["+strings.Repeat("*a, ", 60)+"]"); strings.Contains(got, "expand") {
		t.Errorf("60 times the longest body: %.300s", got)
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
		"lists":             {strings.Repeat("[", n), "nested deeper"},
		"maps":              {strings.Repeat("{a: ", n), "nested deeper"},
		"dashes":            {strings.Repeat("- ", n), "nested deeper"},
		"questions":         {strings.Repeat("? ", n), "nested deeper"},
		"tags":              {strings.Repeat("!!seq ", n), "nested deeper"},
		"anchors":           {strings.Repeat("&a ", n), "nested deeper"},
		"merges":            {strings.Repeat("{<<: ", n), "nested deeper"},
		"lines":             {strings.Repeat("[\n", n), "nested deeper"},
		"indentation":       {indents.String(), "nested deeper"},
		"keys":              {keys.String(), "more than 10000 keys"},
		"deep keys":         {"a:\n  - b: |\n" + strings.ReplaceAll("\n"+keys.String(), "\n", "\n    "), "more than 10000 keys"},
		"no values":         {strings.Repeat("-\n", n), "more than 10000 empty values"},
		"documents":         {strings.Repeat("--- a\n", n), "more than 1000 documents"},
		"flow dashes":       {"[" + strings.Repeat("- ", n), "a dash cannot begin"},
		"flow anchors":      {"[" + strings.Repeat("&a ", n), "nested deeper"},
		"flow tags":         {"[" + strings.Repeat("!a ", n), "nested deeper"},
		"flow questions":    {"{" + strings.Repeat("? ", n), "a question mark must"},
		"flow keys":         {"[" + strings.Repeat("\na: 1", n), "two colons in one entry"},
		"flow lists":        {strings.Repeat("[1,&a !!seq ", n), "nested deeper"},
		"anchors on lines":  {strings.Repeat("&a # x\n", n), "nested deeper"},
		"tags on lines":     {strings.Repeat("!a\n", n), "nested deeper"},
		"tagged maps":       {strings.Repeat("a: !!map\n b: !!map\n", n), "nested deeper"},
		"wrong bracket":     {strings.Repeat("{k: [a: 1\n },k: ", n), "found } without its other half"},
		"swallowed bracket": {"[" + strings.Repeat("{k:\n \"a\": 1\n },k: ", n), "two colons in one entry"},
		"swallowed after ?": {"[" + strings.Repeat("{k:\n ? a\n },k: ", n), "a question mark must"},
		"problems":          {strings.Repeat("- !a b\n", 2*MaxProblems), "and 1000 problems more"},
	} {
		if name == "deep keys" {
			c.text = strings.Replace(c.text, "b: |", "b: 1", 1)
		}
		if got := read("f", c.text); !strings.Contains(got, c.want) {
			t.Errorf("%s: got %.300s, want: %s", name, got, c.want)
		}
	}
}

// Each value has a path, so long keys around many values are refused.
func TestPathsAreBounded(t *testing.T) {
	key := strings.Repeat("k", MaxKey)
	deep := func(open, shut string) string {
		return strings.Repeat(open, 40) + "[" + strings.Repeat("0,", 20_000) + "0]" + strings.Repeat(shut, 40)
	}
	var block strings.Builder
	for i := range 40 {
		block.WriteString(strings.Repeat(" ", i) + key + ":\n")
	}
	block.WriteString(strings.Repeat(strings.Repeat(" ", 40)+"- 0\n", 20_000))
	const want = "has keys that are too long for so many values"
	if got := read("f", deep("{"+key+": ", "}")); !strings.Contains(got, want) {
		t.Errorf("flow: got %.100s", got)
	}
	if got := read("f", block.String()); !strings.Contains(got, want) {
		t.Errorf("block: got %.100s", got)
	}
	docs, ps := Parse("f", []byte(deep(`{"`+key+`":`, "}")))
	if len(ps) > 0 {
		t.Fatalf("%.300s", ps)
	}
	docs[0].Walk(func(field string, _ Position, _ *Node) {
		if len(field) > 2*maxPath {
			t.Fatalf("JSON: a path of %d bytes", len(field))
		}
	})
	p := &parser{paths: maxPaths - 4}
	if roots := p.parseJSON([]byte(`{"kk": [1]}`)); roots != nil || len(p.problems) != 1 || !strings.Contains(p.problems[0].Message, want) {
		t.Errorf("JSON: %v", p.problems)
	}
}

func TestValuesAreBounded(t *testing.T) {
	p := &parser{values: MaxValues - 3}
	if roots := p.parseJSON([]byte(`[1, 2]`)); len(roots) != 1 || len(p.problems) != 0 {
		t.Errorf("as many as are allowed: %v", p.problems)
	}
	if roots := p.parseJSON([]byte(`[1, 2]`)); roots != nil || len(p.problems) != 1 || !strings.Contains(p.problems[0].Message, "more than 2097152 values") {
		t.Errorf("JSON: %v", p.problems)
	}
	c := counter{keys: map[int]int{}, levels: make([]level, 1)}
	tokens := lexer.Tokenize("a: [1, {b: 2, c: 3}]\nd:\n  - 4\n  - 5\n")
	for i := range tokens {
		c.count(tokens, i)
	}
	if c.values != 8 {
		t.Errorf("YAML: counted %d values, want 8", c.values)
	}
}

func TestMessagesAreShort(t *testing.T) {
	long := strings.Repeat("9", 1<<20)
	for _, value := range []string{long, `"` + strings.Repeat("x", 1<<20) + `"`} {
		for _, field := range []string{"text", "whole", "natural", "number", "bool", "duration", "list", "map"} {
			docs, ps := Parse("f", []byte(field+": "+value))
			if len(ps) > 0 {
				t.Fatalf("%.300s", ps)
			}
			if got := Decode(docs[0], new(everything)).Error(); len(got) > 1000 {
				t.Errorf("%s: %d bytes: %.300s", field, len(got), got)
			}
		}
	}
	if got := read("f", "%YAML "+long+"\n---\na"); len(got) > 1000 {
		t.Errorf("%d bytes: %.300s", len(got), got)
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
