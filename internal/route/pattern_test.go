package route

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParsePattern(t *testing.T) {
	for in, want := range map[string]string{
		"/":                            "/",
		"/a":                           "/a",
		"/a/":                          "/a/",
		"/{a}/b/{c}":                   "/{a}/b/{c}",
		"/:a/b/:c":                     "/{a}/b/{c}",
		"/static/*p":                   "/static/{p...}",
		"/static/{p...}":               "/static/{p...}",
		"/*all":                        "/{all...}",
		"/{sid}.json":                  "/{sid}.json",
		"/{base}...{head}":             "/{base}...{head}",
		"/{op}:cancel":                 "/{op}:cancel",
		"/{repo_name}-issues-{id}.zip": "/{repo_name}-issues-{id}.zip",
		"/%28%61%29":                   "/(a)",
		"/é":                           "/%C3%A9",
		"/%c3%a9":                      "/%C3%A9",
		"/%3Aa":                        "/%3Aa", // a raw colon would read as Gin's
		"/%2aa":                        "/%2Aa",
		"/%3Ax{y}":                     "/:x{y}",
		"/a%7Bb":                       "/a%7Bb",
		"/a%2fb":                       "/a%2Fb",
		"/...":                         "/...",
		"/{enterprise-team}":           "/{enterprise-team}",
	} {
		p, err := ParsePattern(in)
		if err != nil || p.String() != want {
			t.Errorf("ParsePattern(%q) = %q, %v; want %q", in, p, err, want)
		}
	}
	for in, want := range map[string]string{
		"":                             "empty",
		"a":                            "begin with /",
		"//":                           "empty segment",
		"/a//b":                        "empty segment",
		"/{a}{b}":                      "literal text between",
		"/{}":                          "without a name",
		"/:":                           "without a name",
		"/*":                           "without a name",
		"/{...}":                       "without a name",
		"/{a":                          "without its }",
		"/a}":                          "without its {",
		"/{a{b}}":                      "parameter name",
		"/{a...}/b":                    "last segment",
		"/*a/b":                        "last segment",
		"/x{a...}":                     "whole segment",
		"/{a}x{b...}":                  "whole segment",
		"/{a}/{a}":                     "twice",
		"/{a}/{a...}":                  "twice",
		"/{id:[0-9]+}":                 "no expressions",
		"/{1a}":                        "parameter name",
		"/{a b}":                       "parameter name",
		"/:a-b.json":                   "%3A",
		"/a b":                         "space",
		"/a?b=c":                       "?",
		"/a#b":                         "#",
		"/a\\b":                        "backslash",
		"/%zz":                         "invalid escape",
		"/%00":                         "control",
		"/%ff":                         "UTF-8",
		"/.":                           "dot segment",
		"/a/../b":                      "dot segment",
		"/%2e%2e":                      "dot segment",
		"/..;x":                        "dot segment",
		"/..;{x}":                      "dot segment",
		"/%252e":                       "dot segment",
		strings.Repeat("/a", 65):       "segments",
		strings.Repeat("/a", 70) + "/": "segments",
		"/" + strings.Repeat("a", MaxPatternBytes):   "longer",
		"/" + strings.Repeat("a", 4*MaxPatternBytes): "longer",
		"/{" + strings.Repeat("a", 200) + "}":        "longer",
	} {
		if p, err := ParsePattern(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParsePattern(%.40q) = %.40q, %v; want an error with %q", in, p, err, want)
		}
	}
	if _, err := ParsePattern("/a\\b"); !errors.Is(err, PathBackslash) {
		t.Errorf("a literal's fault is not a PathFault: %v", err)
	}
	if p, err := ParsePattern(strings.Repeat("/a", MaxSegments) + "/"); err != nil || len(p.Segments) != MaxSegments {
		t.Errorf("%d segments are refused: %v", MaxSegments, err)
	}
}

func TestParsePrefix(t *testing.T) {
	for in, want := range map[string]string{"/": "/", "/a": "/a", "/{a}/b": "/{a}/b", "/:a": "/{a}"} {
		if p, err := ParsePrefix(in); err != nil || p.String() != want || !p.IsPrefix || p.TrailingSlash {
			t.Errorf("ParsePrefix(%q) = %+v, %v", in, p, err)
		}
	}
	for in, want := range map[string]string{"/a/": "ends with a slash", "/a/{b...}": "catch-all", "/*b": "catch-all", "": "empty"} {
		if _, err := ParsePrefix(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParsePrefix(%q): %v; want an error with %q", in, err, want)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, path, want string // want: values joined with |, "-" for no match
		prefix              bool
	}{
		{pattern: "/", path: "/", want: ""},
		{pattern: "/", path: "/a", want: "-"},
		{pattern: "/a", path: "/a", want: ""},
		{pattern: "/a", path: "/a/", want: "-"},
		{pattern: "/a", path: "/A", want: "-"},
		{pattern: "/a/", path: "/a/", want: ""},
		{pattern: "/a/", path: "/a", want: "-"},
		{pattern: "/a/", path: "/a/b", want: "-"},
		{pattern: "/{x}", path: "/", want: "-"},
		{pattern: "/{x}", path: "/a%20b", want: "a b"},
		{pattern: "/{x}/", path: "/a", want: "-"},
		{pattern: "/static/{p...}", path: "/static", want: "-"},
		{pattern: "/static/{p...}", path: "/static/", want: ""},
		{pattern: "/static/{p...}", path: "/static/a/b/", want: "a/b/"},
		{pattern: "/{p...}", path: "/", want: ""},
		{pattern: "/{sid}.json", path: "/a.b.json", want: "a.b"},
		{pattern: "/{sid}.json", path: "/.json", want: "-"},
		{pattern: "/{a}.{b}", path: "/x.y.z", want: "x|y.z"},
		{pattern: "/{a}.{b}", path: "/..y.z", want: ".|y.z"},
		{pattern: "/{a}.{b}", path: "/x.", want: "-"},
		{pattern: "/{base}...{head}", path: "/main...dev", want: "main|dev"},
		{pattern: "/{base}...{head}", path: "/a....b", want: "a|.b"},
		{pattern: "/{op}:cancel", path: "/7:cancel", want: "7"},
		{pattern: "/v{a}-{b}-z", path: "/v1-2-z-z", want: "1|2-z"},
		{pattern: "/{a}2{b}", path: "/x%20y", want: "-"},
		{pattern: "/{a}20", path: "/x%20", want: "-"},
		{pattern: "/{a}0{b}", path: "/x%20y0z", want: "x y|z"},
		{pattern: "/foo", path: "/foo", prefix: true, want: ""},
		{pattern: "/foo", path: "/foo/", prefix: true, want: ""},
		{pattern: "/foo", path: "/foo/a/b", prefix: true, want: ""},
		{pattern: "/foo", path: "/foobar", prefix: true, want: "-"},
		{pattern: "/", path: "/", prefix: true, want: ""},
		{pattern: "/", path: "/a/b", prefix: true, want: ""},
		{pattern: "/{t}/x", path: "/1/x/y", prefix: true, want: "1"},
	} {
		p, err := parsePattern(c.pattern, c.prefix)
		if err != nil {
			t.Fatal(err)
		}
		got := "-"
		if params, ok := p.Match(c.path); ok {
			var values []string
			for i, param := range params {
				values = append(values, param.Value)
				if param.Name != p.ParamNames()[i] {
					t.Errorf("%s: parameter %d is named %s", c.pattern, i, param.Name)
				}
			}
			got = strings.Join(values, "|")
		}
		if got != c.want {
			t.Errorf("%s (prefix %v) on %s: %q, want %q", c.pattern, c.prefix, c.path, got, c.want)
		}
	}
}

// patterns draws patterns that read back, over a small alphabet so that they
// meet each other and the paths of smallPaths.
func patterns() *rapid.Generator[Pattern] {
	lit := rapid.SampledFrom([]string{"a", "b", "ab", ".", "%20", "0"})
	return rapid.Custom(func(t *rapid.T) Pattern {
		var s strings.Builder
		names := strings.Split("p q r s t u v w x y", " ")
		param := func() string { n := names[0]; names = names[1:]; return "{" + n + "}" }
		for range rapid.IntRange(0, 3).Draw(t, "segments") {
			s.WriteByte('/')
			switch rapid.IntRange(0, 4).Draw(t, "kind") {
			case 0, 1:
				s.WriteString(rapid.SampledFrom([]string{"a", "b", "ab", "a.b"}).Draw(t, "literal"))
			case 2:
				s.WriteString(param())
			default:
				if rapid.Bool().Draw(t, "lead") {
					s.WriteString(lit.Draw(t, "text"))
				}
				s.WriteString(param() + lit.Draw(t, "text"))
				if rapid.Bool().Draw(t, "second") {
					s.WriteString(param())
					if rapid.Bool().Draw(t, "trail") {
						s.WriteString(lit.Draw(t, "text"))
					}
				}
			}
		}
		prefix := false
		switch rapid.IntRange(0, 5).Draw(t, "end") {
		case 0:
			s.WriteString("/{rest...}")
		case 1:
			s.WriteString("/")
		case 2:
			prefix = true
		}
		text := s.String()
		if text == "" {
			text = "/"
		}
		p, err := parsePattern(text, prefix)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		return p
	})
}

func segmentTexts() *rapid.Generator[string] {
	return rapid.Map(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", ".", "%20", "0", "2", "ab", "x"}), 1, 6),
		func(s []string) string { return strings.Join(s, "") })
}

func TestPatternReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := patterns().Draw(t, "pattern")
		again, err := parsePattern(p.String(), p.IsPrefix)
		if err != nil || again.String() != p.String() || again.PathKey() != p.PathKey() || !slices.Equal(again.ParamNames(), p.ParamNames()) {
			t.Fatalf("%q reads back as %q, %v", p, again, err)
		}
	})
}

// FuzzParsePattern holds that what is read is canonical and reads back.
func FuzzParsePattern(f *testing.F) {
	for _, s := range []string{"/", "/a/{b}.c/{d...}", "/:a/*b", "/%3Aa", "/%2e", "/{a}{b}", "/é", "/a//b/"} {
		f.Add(s, false)
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, s string, prefix bool) {
		p, err := parsePattern(s, prefix)
		if err != nil {
			return
		}
		text := p.String()
		again, err := parsePattern(text, prefix)
		if err != nil || again.String() != text || again.PathKey() != p.PathKey() || !slices.Equal(again.ParamNames(), p.ParamNames()) {
			t.Fatalf("%q is %q, which reads back as %q, %v", s, text, again, err)
		}
		for _, seg := range p.Segments {
			for _, part := range seg.Parts {
				if got, err := canonicalLiteral(part.Literal); err != nil || got != part.Literal {
					t.Fatalf("%q: literal %q is not canonical: %q, %v", s, part.Literal, got, err)
				}
			}
		}
	})
}

// slowMatch tries every length of every parameter, the shortest first, over
// units that are single octets or escapes.
func slowMatch(parts []Part, text string) ([]string, bool) {
	if len(parts) == 0 {
		return nil, text == ""
	}
	if lit := parts[0].Literal; lit != "" {
		if !strings.HasPrefix(text, lit) {
			return nil, false
		}
		return slowMatch(parts[1:], text[len(lit):])
	}
	for n := 0; n < len(text); {
		n += unit(text, n)
		if rest, ok := slowMatch(parts[1:], text[n:]); ok {
			return append([]string{text[:n]}, rest...), true
		}
	}
	return nil, false
}

func TestMatchSegmentTakesTheShortest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := segmentTexts().Draw(t, "text")
		p := patterns().Draw(t, "pattern")
		for _, seg := range p.Segments {
			want, wantOK := slowMatch(seg.Parts, text)
			got, ok := seg.MatchSegment(text, []string{"before"})
			if ok != wantOK || !slices.Equal(got[1:], want) {
				t.Fatalf("%s on %q: %q, %v; want %q, %v", seg, text, got[1:], ok, want, wantOK)
			}
		}
	})
}

func TestMatchAllocatesNothing(t *testing.T) {
	p, err := ParsePattern("/repos/{owner}/{repo}/compare/{base}...{head}")
	if err != nil {
		t.Fatal(err)
	}
	params := make([]string, 0, 4)
	if n := testing.AllocsPerRun(100, func() {
		got, ok := p.AppendMatch("/repos/o/r/compare/main...dev", params)
		if !ok || len(got) != 4 {
			t.Fatal("no match")
		}
	}); n != 0 {
		t.Errorf("AppendMatch allocates %v times", n)
	}
}

func TestMatchSegmentIsLinear(t *testing.T) {
	seg := Segment{Parts: []Part{{Param: "a"}, {Literal: "aab"}, {Param: "b"}, {Literal: "aab"}, {Param: "c"}, {Literal: "aab"}, {Param: "d"}, {Literal: "z"}}}
	text := strings.Repeat("a", MaxPathBytes)
	// A backtracking matcher would not come back from this.
	if _, ok := seg.MatchSegment(text, nil); ok {
		t.Fatal("matched")
	}
}

func BenchmarkMatchSegment(b *testing.B) {
	p, _ := ParsePattern("/{base}...{head}")
	params := make([]string, 0, 2)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := p.Segments[0].MatchSegment("feature-branch...main", params); !ok {
			b.Fatal("no match")
		}
	}
}
