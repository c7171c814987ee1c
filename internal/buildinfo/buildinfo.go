// Package buildinfo says which build this is and what it can do: its version,
// and the capabilities that the tables it serves may ask for.
//
// # Invariants
//
//   - A capability's name never changes its meaning. What is matched, carried or
//     stored differently gets a new name, so that an older build refuses what it would
//     get wrong.
package buildinfo

import (
	"runtime"
	"runtime/debug"
	"slices"
)

// The capabilities that lie in no middleware: each is a feature of tables.
// Whoever makes a snapshot names those that its table uses.
const (
	Base        = "route/1"        // hosts, methods, patterns of whole segments, prefixes, priority, http upstreams, tests
	Mixed       = "match/mixed/1"  // segments that mix text and parameters
	MatchHeader = "match/header/1" // conditions on headers
	MatchQuery  = "match/query/1"
	MatchCookie = "match/cookie/1"
	MatchClient = "match/client/1" // conditions on the client's address
	MatchRegexp = "match/regexp/1" // conditions by RE2 expression
	Proxy       = "action/proxy/1"
	Respond     = "action/respond/1"
	Redirect    = "action/redirect/1"
	UpstreamTLS = "upstream/tls/1" // https targets
)

// Capabilities returns what this build can do besides its middlewares, sorted.
// The caller owns the result.
func Capabilities() []string {
	out := []string{
		Base, Mixed, MatchHeader, MatchQuery, MatchCookie, MatchClient, MatchRegexp,
		Proxy, Respond, Redirect, UpstreamTLS,
	}
	slices.Sort(out)
	return out
}

// Middleware returns the capability of carrying a kind of middleware.
func Middleware(kind string) string { return "middleware/" + kind + "/1" }

// A Build tells one build from another.
type Build struct {
	Version  string `json:"version"`            // of the module, or devel
	Commit   string `json:"commit,omitempty"`   // of the source, when it was built from a checkout
	Time     string `json:"time,omitempty"`     // of that commit, RFC 3339
	Modified bool   `json:"modified,omitempty"` // the checkout had changes that were not committed
	Go       string `json:"go"`
	Platform string `json:"platform"` // such as linux/amd64
}

// Read returns the build that is running, from what the Go linker noted in it.
func Read() Build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return read(info)
}

func read(info *debug.BuildInfo) Build {
	b := Build{Version: info.Main.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

// Version returns the build in one word, such as v1.2.3 or devel-1a2b3c4d5e6f.
func Version() string { return Read().String() }

// String gives the build in one word. A build of a checkout without a version
// names its commit, and a + when that is not all of it.
func (b Build) String() string {
	s := b.Version
	if s == "devel" && b.Commit != "" {
		s += "-" + b.Commit[:min(12, len(b.Commit))]
	}
	if b.Modified && s[len(s)-1] != '+' && !hasDirty(s) {
		s += "+"
	}
	return s
}

// hasDirty tells whether the toolchain itself marked the version.
func hasDirty(version string) bool {
	const mark = "+dirty"
	return len(version) >= len(mark) && version[len(version)-len(mark):] == mark
}
