package printable

import "testing"

func TestText(t *testing.T) {
	for s, want := range map[string]string{
		"":                      "",
		`say "grün" to C:\dir`:  `say "grün" to C:\dir`,
		"a\nhint: b\tc\r":       `a\nhint: b\tc\r`,
		"\x1b]0;title\a\x7f":    `\x1b]0;title\a\x7f`,
		"\u009b2J \u202egnp":    `\u009b2J \u202egnp`,
		"raw \x9b and \xff\xfe": `raw \x9b and \xff\xfe`,
	} {
		if got := Text(s); got != want {
			t.Errorf("%q: got %s, want %s", s, got, want)
		}
	}
}
