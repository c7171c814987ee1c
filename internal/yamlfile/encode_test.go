package yamlfile

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// texts draws what text may hold, with a liking for what YAML finds special.
func texts() *rapid.Generator[string] {
	special := []string{
		"", " ", "\n", "\t", "\r", "a", "b", "0", "1", "-", "- ", ": ", ":", " #", "#", "?", "? ", "{", "}", "[", "]", ",", "&a", "*a", "!", "!!str ", "|", ">", "'", "\"", "%", "@", "`", "\\",
		"~", "null", "true", "yes", "0x1f", "1e3", "1_000", ".inf", ".", "..", "---", "...", "<<", "=", "é", "\u0085", "\u2028", "\u00a0", "\ufeff", "😀", "\x00", "\x07", "\x7f", "\ufffd", "/users/{id}", "2024-01-01", "12:30",
	}
	return rapid.OneOf(
		rapid.String(),
		rapid.Custom(func(t *rapid.T) string {
			return strings.Join(rapid.SliceOfN(rapid.SampledFrom(special), 0, 6).Draw(t, "parts"), "")
		}),
	)
}

func values(depth int) *rapid.Generator[any] {
	scalars := []*rapid.Generator[any]{
		rapid.Map(texts(), func(s string) any { return s }),
		rapid.Map(rapid.Int64(), func(i int64) any { return i }),
		rapid.Map(rapid.Bool(), func(b bool) any { return b }),
		rapid.Just[any](nil),
	}
	if depth == 0 {
		return rapid.OneOf(scalars...)
	}
	return rapid.OneOf(append(scalars,
		rapid.Map(rapid.SliceOfN(values(depth-1), 0, 5), func(s []any) any { return s }),
		rapid.Map(rapid.MapOfN(texts(), values(depth-1), 0, 5), func(m map[string]any) any { return m }),
	)...)
}

func TestWhatIsEncodedReadsBackEqual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := values(4).Draw(t, "value")
		want, err := NodeOf(v)
		if err != nil {
			t.Fatal(err)
		}
		wantJSON, err := want.JSON()
		if err != nil {
			t.Fatal(err)
		}
		for name, encode := range map[string]func(any) ([]byte, error){"YAML": Encode, "JSON": EncodeJSON} {
			b, err := encode(v)
			if err != nil {
				t.Fatal(err)
			}
			docs, ps := Parse("x", b)
			if len(ps) > 0 || len(docs) != 1 {
				t.Fatalf("%s: %d documents, %v, of:\n%s", name, len(docs), ps, b)
			}
			got, err := docs[0].Root.JSON()
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(wantJSON) {
				t.Fatalf("%s:\n%s\nreads as %s\nwant     %s", name, b, got, wantJSON)
			}
		}
	})
}

type everything struct {
	Text     string               `json:"text,omitempty"`
	Pointer  *string              `json:"pointer,omitempty"`
	Whole    int16                `json:"whole,omitempty"`
	Natural  uint32               `json:"natural,omitempty"`
	Number   float64              `json:"number,omitempty"`
	Bool     bool                 `json:"bool,omitempty"`
	Duration time.Duration        `json:"duration,omitempty"`
	List     []string             `json:"list,omitempty"`
	Map      map[string][]int     `json:"map,omitempty"`
	Inner    *everything          `json:"inner,omitempty"`
	Byname   map[string]innermost `json:"byname,omitempty"`
}

type innermost struct {
	A string `json:"a"`
}

func TestStructsReadBackEqual(t *testing.T) {
	gen := rapid.Custom(func(t *rapid.T) everything {
		e := everything{
			Text:     texts().Draw(t, "text"),
			Whole:    rapid.Int16().Draw(t, "whole"),
			Natural:  rapid.Uint32().Draw(t, "natural"),
			Number:   rapid.Float64().Draw(t, "number"),
			Bool:     rapid.Bool().Draw(t, "bool"),
			Duration: time.Duration(rapid.Int64().Draw(t, "duration")),
			Byname:   map[string]innermost{texts().Draw(t, "key"): {A: texts().Draw(t, "a")}},
			Inner:    &everything{List: rapid.SliceOfN(texts(), 1, 3).Draw(t, "list"), Map: map[string][]int{"a": {1}, "b": {}}},
		}
		s := texts().Draw(t, "pointed")
		e.Pointer = &s
		return e
	})
	rapid.Check(t, func(t *rapid.T) {
		want := gen.Draw(t, "struct")
		b, err := Encode(want)
		if err != nil {
			t.Fatal(err)
		}
		docs, ps := Parse("x", b)
		if len(ps) > 0 {
			t.Fatalf("%v\n%s", ps, b)
		}
		var got everything
		if ps := Decode(docs[0], &got); len(ps) > 0 {
			t.Fatalf("%v\n%s", ps, b)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("%s\n%s", d, b)
		}
	})
}

func TestEncodeIsNiceToRead(t *testing.T) {
	s := "x"
	b, err := Encode(everything{
		Text: "/users/{id}", Pointer: &s, Whole: 3, Duration: time.Minute, List: []string{"a", "1", "*.example.com"},
		Inner: &everything{Text: "line one\nline two\n", Map: map[string][]int{"b": {1, 2}, "a": nil}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `text: /users/{id}
pointer: x
whole: 3
duration: 1m
list: [a, "1", "*.example.com"]
inner:
  text: |
    line one
    line two
  map:
    a: []
    b: [1, 2]
`
	if d := cmp.Diff(want, string(b)); d != "" {
		t.Error(d)
	}
	b, err = Encode(map[string]any{"raw": json.RawMessage(`{"b": 1, "a": [2]}`), "time": time.Unix(0, 0).UTC(), "duration": 90 * time.Minute})
	if want := "duration: 1h30m\nraw:\n  b: 1\n  a: [2]\ntime: 1970-01-01T00:00:00Z\n"; err != nil || string(b) != want {
		t.Errorf("got %s, %v", b, err)
	}
	if _, err := Encode("\xff"); err == nil {
		t.Error("text that is not UTF-8 was written")
	}
	if _, err := Encode(make(chan int)); err == nil {
		t.Error("a channel was written")
	}
}

// What a file may not hold as it is, the encoders write as escapes.
func TestUnseenCharactersAreWrittenAsEscapes(t *testing.T) {
	want := map[string]string{"a\u202e\x7f": "\u009b]0;x\u2066"}
	for name, encode := range map[string]func(any) ([]byte, error){"YAML": Encode, "JSON": EncodeJSON} {
		b, err := encode(want)
		if err != nil {
			t.Fatal(err)
		}
		docs, ps := Parse("f", b)
		if len(ps) > 0 {
			t.Fatalf("%s: %s: %v", name, b, ps)
		}
		got := map[string]string{}
		if ps := Decode(docs[0], &got); len(ps) > 0 {
			t.Fatal(ps)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	canonical, err := (&Node{Kind: String, Text: "\u202e\x7f"}).JSON()
	if err != nil || string(canonical) != "\"\u202e\x7f\"" {
		t.Errorf("canonical JSON changed: %q, %v", canonical, err)
	}
	if n, err := ParseJSON(canonical); err != nil || n.Text != "\u202e\x7f" {
		t.Errorf("canonical JSON is not read: %v", err)
	}
}
