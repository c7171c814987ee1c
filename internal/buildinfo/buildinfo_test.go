package buildinfo

import (
	"regexp"
	"runtime/debug"
	"slices"
	"testing"
)

func TestCapabilitiesAreSortedAndNumbered(t *testing.T) {
	got := Capabilities()
	if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
		t.Errorf("not sorted, or not each once: %q", got)
	}
	form := regexp.MustCompile(`^[a-z]+(/[a-z]+)?/[1-9][0-9]*$`)
	for _, c := range got {
		if !form.MatchString(c) {
			t.Errorf("%q is not a name with a version", c)
		}
	}
	got[0] = "changed"
	if Capabilities()[0] == "changed" {
		t.Error("callers share one list")
	}
	if got, want := Middleware("rateLimit"), "middleware/rateLimit/1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestBuildInOneWord(t *testing.T) {
	commit := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef0123"}
	modified := debug.BuildSetting{Key: "vcs.modified", Value: "true"}
	for _, c := range []struct {
		version  string
		settings []debug.BuildSetting
		want     string
	}{
		{"", nil, "devel"},
		{"(devel)", []debug.BuildSetting{commit}, "devel-0123456789ab"},
		{"(devel)", []debug.BuildSetting{commit, modified}, "devel-0123456789ab+"},
		{"v1.2.3", []debug.BuildSetting{commit}, "v1.2.3"},
		{"v1.2.4-0.2026+dirty", []debug.BuildSetting{commit, modified}, "v1.2.4-0.2026+dirty"},
	} {
		info := &debug.BuildInfo{Settings: c.settings}
		info.Main.Version = c.version
		if got := read(info).String(); got != c.want {
			t.Errorf("%s %v: got %s, want %s", c.version, c.settings, got, c.want)
		}
	}
	if Version() == "" || Read().Go == "" {
		t.Errorf("this build says nothing of itself: %+v", Read())
	}
}
