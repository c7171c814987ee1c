package middleware

import (
	"strings"

	"routerd.dev/internal/route"
)

type stripPrefixConfig struct {
	Prefix string `json:"prefix" jsonschema:"required" jsonschema_description:"Path that is taken off the front, whole segments, without a slash at its end: with /api, /api/users becomes /users and /api becomes /. A path that does not begin with it is left as it is."`
}

var _ = register(stripPrefixKind())

func stripPrefixKind() Kind {
	return newKind("stripPrefix",
		"Takes a prefix off the path that is forwarded.",
		func(c *stripPrefixConfig, _ Env, ps *problems) *Head {
			if c.Prefix == "" {
				ps.add("prefix", "write a path such as /api", "is required")
				return nil
			}
			prefix, err := route.CanonicalPath(c.Prefix, route.PathOptions{AllowEncodedSlash: true})
			switch {
			case err != nil:
				ps.add("prefix", "", "%v", err)
			case strings.HasSuffix(prefix, "/"):
				ps.add("prefix", "leave the last slash out", "ends with a slash")
			}
			segments := strings.Count(prefix, "/")
			return &Head{Request: func(x *Exchange) *Answer {
				x.Path = strip(x.Path, prefix, segments)
				return nil
			}}
		})
}

// strip compares in canonical form, so that /%61pi is /api here as it was when
// the route was matched, and cuts the path as it came.
func strip(path, prefix string, segments int) string {
	end := afterSegments(path, segments)
	if head := path[:end]; head != prefix {
		canonical, err := route.CanonicalPath(head, route.PathOptions{AllowEncodedSlash: true, MergeSlashes: true})
		if err != nil || canonical != prefix {
			return path
		}
	}
	rest := path[end:]
	for strings.HasPrefix(rest, "//") { // only where the listener merges them
		rest = rest[1:]
	}
	if rest == "" {
		return "/"
	}
	return rest
}

// afterSegments returns where the first n segments of a path end, a run of
// slashes counted as one.
func afterSegments(path string, n int) int {
	i := 0
	for ; n > 0; n-- {
		for i < len(path) && path[i] == '/' {
			i++
		}
		j := strings.IndexByte(path[i:], '/')
		if j < 0 {
			return len(path)
		}
		i += j
	}
	return i
}
