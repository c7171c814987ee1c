package engine

import (
	"net/http"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestTakeCookie(t *testing.T) {
	for _, c := range []struct {
		lines []string
		value string
		left  []string
	}{
		{nil, "", nil},
		{[]string{"t=1"}, "1", nil},
		{[]string{"t=1; a=2"}, "1", []string{"a=2"}},
		{[]string{"a=2; t=1"}, "1", []string{"a=2"}},
		{[]string{"a=2; t=1; b=3"}, "1", []string{"a=2; b=3"}},
		{[]string{"a=2;t=1;b=3"}, "1", []string{"a=2;b=3"}},
		{[]string{"t=1; t=2; a=2; t=3"}, "1", []string{"a=2"}},
		{[]string{"t=; a=2"}, "", []string{"a=2"}},
		{[]string{"t=1=2; a=2"}, "1=2", []string{"a=2"}},
		{[]string{`a="x y"; t="1"; b=é`}, `"1"`, []string{`a="x y"; b=é`}},
		{[]string{"a=1", "t=1", "b=2; t=2"}, "1", []string{"a=1", "b=2"}},
		{[]string{"t=1", "t=2"}, "1", nil},
		{[]string{"tt=1; T=2; t; at=3;t ;=t"}, "", []string{"tt=1; T=2; t; at=3;t ;=t"}},
		{[]string{" ;; a=1 ;"}, "", []string{" ;; a=1 ;"}},
		{[]string{"t=1; ;"}, "1", []string{";"}},
	} {
		h := http.Header{"Cookie": slices.Clone(c.lines)}
		if c.lines == nil {
			h = http.Header{}
		}
		if v := takeCookie(h, "t"); v != c.value || !slices.Equal(h["Cookie"], c.left) {
			t.Errorf("%q: got %q, left %q; want %q and %q", c.lines, v, h["Cookie"], c.value, c.left)
		}
		if _, has := h["Cookie"]; has && len(h["Cookie"]) == 0 {
			t.Errorf("%q: left an empty field", c.lines)
		}
	}
}

// checkTakeCookie holds taking a cookie against reading them all.
func checkTakeCookie(t interface {
	Fatalf(string, ...any)
}, lines []string, name string,
) {
	type pair struct{ name, value string }
	read := func(h http.Header) (all []pair) {
		eachCookie(h, func(n, v string) bool { all = append(all, pair{n, v}); return true })
		return all
	}
	h := http.Header{"Cookie": slices.Clone(lines)}
	want := read(h)
	value := takeCookie(h, name)
	if i := slices.IndexFunc(want, func(p pair) bool { return p.name == name }); i < 0 && value != "" {
		t.Fatalf("%q: took %q, which is not there", lines, value)
	} else if i >= 0 && value != want[i].value && value != `"`+want[i].value+`"` { // it is taken raw, and read without its quotes
		t.Fatalf("%q: took %q, want %q", lines, value, want[i].value)
	}
	want = slices.DeleteFunc(want, func(p pair) bool { return p.name == name })
	if got := read(h); !slices.Equal(got, want) {
		t.Fatalf("%q: %q was taken and left %q, want %q", lines, name, got, want)
	}
	if v, ok := cookieValue(h, name, ""); ok {
		t.Fatalf("%q: %q is still there after %q was taken", lines, v, name)
	}
}

func TestTakeCookieDisturbsNoOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lines := rapid.SliceOfN(rapid.StringMatching(`([ ;\t]{0,2}(t|a|tt|T)?( =|=|==)?("[ab;]*"|[ab]{0,3})[ ]?;){0,4}[ ]?(t=1)?`), 0, 3).Draw(t, "lines")
		checkTakeCookie(t, lines, "t")
	})
}

func FuzzTakeCookie(f *testing.F) {
	f.Add("a=1; t=2; b=3", "t=4")
	f.Add(`t="a;b"; c=d`, "")
	f.Add(`t="""`, "0")
	f.Fuzz(func(t *testing.T, one, two string) {
		checkTakeCookie(t, []string{one, two}, "t")
	})
}
