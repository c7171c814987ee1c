package route

import (
	"errors"
	"net/url"
	"path"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestCanonicalPath(t *testing.T) {
	slash, merge := PathOptions{AllowEncodedSlash: true}, PathOptions{MergeSlashes: true}
	for _, c := range []struct {
		raw, want string
		fault     PathFault
		o         PathOptions
	}{
		{raw: "/", want: "/"},
		{raw: "", want: "/"},
		{raw: "/a/b/", want: "/a/b/"},
		{raw: "/a-._~!$&'()*+,;=:@b", want: "/a-._~!$&'()*+,;=:@b"},
		{raw: "/%28%61%29", want: "/(a)"},
		{raw: "/%3A%2a", want: "/:*"},
		{raw: "/%3f%25%23", want: "/%3F%25%23"},
		{raw: "/a%20b", want: "/a%20b"},
		{raw: "/\"<>[]^`{|}", want: "/%22%3C%3E%5B%5D%5E%60%7B%7C%7D"},
		{raw: "/é", want: "/%C3%A9"},
		{raw: "/%c3%a9", want: "/%C3%A9"},
		{raw: "/%c3\xa9", want: "/%C3%A9"},
		{raw: "/\xc3%a9", want: "/%C3%A9"},
		{raw: "/%e2%82\xac", want: "/%E2%82%AC"},
		{raw: "/%F0%9F%92%A9/😀", want: "/%F0%9F%92%A9/%F0%9F%98%80"},
		{raw: "/%252f", want: "/%252f"},
		{raw: "/...", want: "/..."},
		{raw: "/.a/..b/a./a..", want: "/.a/..b/a./a.."},
		{raw: "/a;x/.b;y", want: "/a;x/.b;y"},
		{raw: "/%2e%2ea", want: "/..a"},
		{raw: "/a%2Fb", want: "/a%2Fb", o: slash},
		{raw: "/a%2fb", want: "/a%2Fb", o: slash},
		{raw: "//a///b//", want: "/a/b/", o: merge},
		{raw: "/" + strings.Repeat("a", MaxPathBytes-1), want: "/" + strings.Repeat("a", MaxPathBytes-1)},

		{raw: "*", fault: PathNotRooted},
		{raw: "a", fault: PathNotRooted},
		{raw: "%2fa", fault: PathNotRooted, o: slash},
		{raw: "/" + strings.Repeat("a", MaxPathBytes), fault: PathTooLong},
		{raw: "/" + strings.Repeat("|", MaxPathBytes/2), fault: PathTooLong},
		{raw: "/%", fault: PathBadEscape},
		{raw: "/%4", fault: PathBadEscape},
		{raw: "/%4g", fault: PathBadEscape},
		{raw: "/%u002e", fault: PathBadEscape},
		{raw: "/|%zz", fault: PathBadEscape},
		{raw: "/a b", fault: PathBadByte},
		{raw: "/a?b", fault: PathBadByte},
		{raw: "/|#", fault: PathBadByte},
		{raw: "/a\\b", fault: PathBackslash},
		{raw: "/a%5Cb", fault: PathBackslash},
		{raw: "/a%5cb", fault: PathBackslash},
		{raw: "/%00", fault: PathControl},
		{raw: "/a\x00", fault: PathControl},
		{raw: "/%0A", fault: PathControl},
		{raw: "/%7f", fault: PathControl},
		{raw: "/%C2%85", fault: PathControl},
		{raw: "/a%2Fb", fault: PathEncodedSlash},
		{raw: "/a%2fb", fault: PathEncodedSlash},
		{raw: "//", fault: PathEmptySegment},
		{raw: "/a//b", fault: PathEmptySegment},
		{raw: "/.", fault: PathDotSegment},
		{raw: "/..", fault: PathDotSegment},
		{raw: "/a/./b", fault: PathDotSegment},
		{raw: "/a/../b", fault: PathDotSegment},
		{raw: "/a/%2e%2E/b", fault: PathDotSegment},
		{raw: "/a/.%2e", fault: PathDotSegment},
		{raw: "/a/..;x/b", fault: PathDotSegment},
		{raw: "/a/.;", fault: PathDotSegment},
		{raw: "/a/..%3bx", fault: PathDotSegment},
		{raw: "/a/%252e%252e/b", fault: PathDotSegment},
		{raw: "/a/%25252e", fault: PathDotSegment},
		{raw: "/a/%25%32%65", fault: PathDotSegment},
		{raw: "/a/..%252fb", fault: PathDotSegment},
		{raw: "/a/..%255cb", fault: PathDotSegment},
		{raw: "/a/..%2fb", fault: PathDotSegment, o: slash},
		{raw: "/a%2f../b", fault: PathDotSegment, o: slash},
		{raw: "/a%2f%2e", fault: PathDotSegment, o: slash},
		{raw: "//..//", fault: PathDotSegment, o: merge},
		{raw: "/%c0%ae%c0%ae/", fault: PathBadUTF8},
		{raw: "/%ff", fault: PathBadUTF8},
		{raw: "/\xff", fault: PathBadUTF8},
		{raw: "/%C3a", fault: PathBadUTF8},
		{raw: "/%ED%A0%80", fault: PathBadUTF8},
	} {
		got, err := CanonicalPath(c.raw, c.o)
		if c.fault != 0 {
			if !errors.Is(err, c.fault) || got != "" {
				t.Errorf("CanonicalPath(%.40q) = %q, %v; want %v", c.raw, got, err, c.fault)
			}
			continue
		}
		if err != nil || got != c.want {
			t.Errorf("CanonicalPath(%.40q) = %.40q, %v; want %q", c.raw, got, err, c.want)
		}
	}
}

func TestCanonicalPathAllocatesNothing(t *testing.T) {
	for _, raw := range []string{"/", "/users/42/orders", "/a%20b/%C3%A9/x;y=1", "/a/../b", "/%zz"} {
		if n := testing.AllocsPerRun(100, func() { _, _ = CanonicalPath(raw, PathOptions{}) }); n != 0 {
			t.Errorf("CanonicalPath(%q) allocates %v times", raw, n)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _ = DecodeParam("plain;text") }); n != 0 {
		t.Errorf("DecodeParam allocates %v times", n)
	}
}

func TestCheckRewrite(t *testing.T) {
	for raw, want := range map[string]error{
		"/a%61": nil, "": PathNotRooted, "a": PathNotRooted, "/a/../b": PathDotSegment, "/a\r\nb": PathControl, "//a": PathEmptySegment,
	} {
		if err := CheckRewrite(raw, PathOptions{}); !errors.Is(err, want) {
			t.Errorf("CheckRewrite(%q) = %v; want %v", raw, err, want)
		}
	}
}

// rawPaths draws paths that are rich in what is special.
func rawPaths() *rapid.Generator[string] {
	piece := rapid.OneOf(
		rapid.SampledFrom([]string{
			"/", "/", "/", "a", "b", "Z9", ".", "..", ";", "%2e", "%2E", "%2f", "%2F", "%25", "%252e", "%61", "%3b", "%28", "(", "%20",
			"%C3%A9", "%c3%a9", "é", "%5c", "%", "%4", "|", "{", "\xff", "%00", "%e2%82", "%ac", "\xac", ":", "*", "//", "?", "%3F", "%7e",
		}),
		rapid.StringN(0, 3, 6),
	)
	return rapid.Map(rapid.SliceOfN(piece, 0, 10), func(ps []string) string { return "/" + strings.Join(ps, "") })
}

func pathOptions() *rapid.Generator[PathOptions] {
	return rapid.Custom(func(t *rapid.T) PathOptions {
		return PathOptions{AllowEncodedSlash: rapid.Bool().Draw(t, "slash"), MergeSlashes: rapid.Bool().Draw(t, "merge")}
	})
}

func TestCanonicalPathLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		checkPathLaws(t, rawPaths().Draw(t, "raw"), pathOptions().Draw(t, "options"))
	})
}

func FuzzCanonicalPath(f *testing.F) {
	for _, s := range []string{"/", "/a/b", "/%2e%2e/", "/a%2Fb", "/%252e", "//", "/..;/x", "/%C3%A9", "/é|", "/%25%32%65%25%32%65/"} {
		f.Add(s, false, false)
		f.Add(s, true, true)
	}
	f.Fuzz(func(t *testing.T, raw string, slash, merge bool) {
		checkPathLaws(t, raw, PathOptions{AllowEncodedSlash: slash, MergeSlashes: merge})
	})
}

// checkPathLaws holds what CanonicalPath promises against code that is written
// from the same words in another way.
func checkPathLaws(t interface {
	Helper()
	Fatalf(string, ...any)
}, raw string, o PathOptions,
) {
	t.Helper()
	got, err := CanonicalPath(raw, o)
	if want := slowAccepts(raw, o); (err == nil) != want {
		t.Fatalf("CanonicalPath(%q, %+v) = %q, %v; accepted should be %v", raw, o, got, err, want)
	}
	if err != nil {
		var fault PathFault
		if !errors.As(err, &fault) || fault.Error() == "path is invalid" {
			t.Fatalf("CanonicalPath(%q): %v is not a named fault", raw, err)
		}
		return
	}
	if again, err := CanonicalPath(got, o); err != nil || again != got {
		t.Fatalf("not idempotent: %q → %q → %q, %v", raw, got, again, err)
	}
	plain, err := url.PathUnescape(raw)
	if err != nil {
		t.Fatalf("accepted %q, which has a bad escape", raw)
	}
	if o.MergeSlashes {
		for strings.Contains(raw, "//") {
			raw = strings.ReplaceAll(raw, "//", "/")
		}
		plain, _ = url.PathUnescape(raw)
	}
	if raw == "" {
		plain = "/"
	}
	if decoded := DecodeParam(got); decoded != plain {
		t.Fatalf("%q became %q, which decodes to %q instead of %q", raw, got, decoded, plain)
	}
	if want := slowCanonical(plain, raw); got != want {
		t.Fatalf("canonical form of %q is %q, want %q", raw, got, want)
	}
	for _, text := range allDecodings(got) {
		for _, s := range strings.FieldsFunc(text, func(r rune) bool { return r == '/' || r == '\\' }) {
			s, _, _ = strings.Cut(s, ";")
			if s == "." || s == ".." {
				t.Fatalf("%q decodes to %q, which has a dot segment", got, text)
			}
		}
		if clean := path.Clean(text); strings.Contains(text, "/..") && strings.Count(clean, "..") != strings.Count(text, "..") {
			t.Fatalf("%q decodes to %q, which is read as %q", got, text, clean)
		}
	}
}

// slowCanonical writes decoded text in canonical form; where the raw path has
// an escaped slash, so has the result.
func slowCanonical(plain, raw string) string {
	var out, source strings.Builder
	for i := 0; i < len(raw); i++ { // one letter of source for each octet of plain: was it a raw slash?
		if raw[i] == '%' {
			source.WriteByte('e')
			i += 2
		} else {
			source.WriteByte(raw[i])
		}
	}
	for i := range len(plain) {
		c := plain[i]
		switch {
		case c == '/' && (raw == "" || source.String()[i] == '/'),
			c < utf8.RuneSelf && (unicode.IsLetter(rune(c)) || unicode.IsDigit(rune(c)) || strings.ContainsRune("-._~!$&'()*+,;=:@", rune(c))):
			out.WriteByte(c)
		default:
			out.WriteString("%" + strings.ToUpper(string([]byte{"0123456789abcdef"[c>>4], "0123456789abcdef"[c&15]})))
		}
	}
	return out.String()
}

// allDecodings decodes until nothing changes; what is no escape stays.
func allDecodings(s string) []string {
	all := []string{s}
	for {
		next := DecodeParam(s)
		if next == s {
			return all
		}
		all = append(all, next)
		s = next
	}
}

// slowAccepts says by the rules, one after the other, whether a path is good.
func slowAccepts(raw string, o PathOptions) bool {
	if raw == "" {
		return true
	}
	if len(raw) > MaxPathBytes || raw[0] != '/' || strings.ContainsAny(raw, " ?#") {
		return false
	}
	plain, err := url.PathUnescape(raw)
	if err != nil || !utf8.ValidString(plain) || strings.ContainsFunc(plain, unicode.IsControl) || strings.Contains(plain, `\`) {
		return false
	}
	if !o.AllowEncodedSlash && strings.Contains(strings.ToLower(raw), "%2f") {
		return false
	}
	if !o.MergeSlashes && strings.Contains(raw, "//") {
		return false
	}
	for _, text := range allDecodings(raw) {
		for _, s := range strings.FieldsFunc(text, func(r rune) bool { return r == '/' || r == '\\' }) {
			s, _, _ = strings.Cut(s, ";")
			if s == "." || s == ".." {
				return false
			}
		}
	}
	if o.MergeSlashes {
		for strings.Contains(raw, "//") {
			raw = strings.ReplaceAll(raw, "//", "/")
		}
		plain, _ = url.PathUnescape(raw)
	}
	return len(slowCanonical(plain, raw)) <= MaxPathBytes
}

func TestRawPieceIsThePieceAsItCame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw, o := rawPaths().Draw(t, "raw"), pathOptions().Draw(t, "options")
		canonical, err := CanonicalPath(raw, o)
		if err != nil {
			return
		}
		at := 0
		for seg := range strings.SplitSeq(canonical, "/") {
			piece := RawPiece(raw, canonical, at, at+len(seg), o)
			if DecodeParam(piece) != DecodeParam(seg) || !strings.Contains(raw, piece) || strings.Contains(piece, "/") {
				t.Fatalf("piece %q of %q is %q in %q", seg, canonical, piece, raw)
			}
			at += len(seg) + 1
		}
	})
}

// What is forwarded where slashes are merged is canonical to the same path, but
// by the strict rules.
func TestMergeSlashes(t *testing.T) {
	for raw, want := range map[string]string{"": "", "/": "/", "//": "/", "/a//b///c/": "/a/b/c/", "///%2F//%2f": "/%2F/%2f", "/a/b": "/a/b"} {
		if got := MergeSlashes(raw); got != want {
			t.Errorf("%q became %q, want %q", raw, got, want)
		}
	}
	o := PathOptions{AllowEncodedSlash: true, MergeSlashes: true}
	strict := PathOptions{AllowEncodedSlash: true}
	rapid.Check(t, func(t *rapid.T) {
		raw := "/" + strings.Join(rapid.SliceOf(rapid.SampledFrom([]string{"/", "//", "a", "%61", "%2F", ".", "b", "%2e"})).Draw(t, "raw"), "")
		want, err := CanonicalPath(raw, o)
		got, strictErr := CanonicalPath(MergeSlashes(raw), strict)
		if got != want || (err == nil) != (strictErr == nil) {
			t.Fatalf("%q is %q (%v), merged %q (%v)", raw, want, err, got, strictErr)
		}
	})
}

func TestEncodeParamIsUndone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Draw(t, "text")
		piece := EncodeParam(text)
		if DecodeParam(piece) != text || strings.Contains(piece, "/") {
			t.Fatalf("%q became %q, and that %q", text, piece, DecodeParam(piece))
		}
	})
}

func BenchmarkCanonicalPath(b *testing.B) {
	for _, c := range []struct{ name, raw string }{
		{"short", "/users/42"},
		{"canonical", "/repos/octocat/hello-world/pulls/1347/comments"},
		{"escapes", "/files/caf%C3%A9/a%20b"},
		{"rewritten", "/repos/%6Fctocat/hello-world/pulls/1347"},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := CanonicalPath(c.raw, PathOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	worst := "/" + strings.Repeat("%25", MaxPathBytes/3-1)
	b.Run("worst", func(b *testing.B) {
		for b.Loop() {
			_, _ = CanonicalPath(worst, PathOptions{})
		}
	})
}
