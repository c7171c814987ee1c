package engine

import (
	"net/http"
	"strings"
)

// cookieValue returns the raw value of the first cookie of that name that is
// not empty, or, with want, the first that equals it; ok tells whether there is
// one of the name at all, or one that is wanted.
func cookieValue(h Header, name, want string) (value string, ok bool) {
	if h == nil {
		return "", false
	}
	for _, line := range h.Values("Cookie") {
		for line != "" {
			var text string
			text, line, _ = strings.Cut(line, ";")
			v, is := cookieNamed(text, name)
			if !is || want != "" && v != want {
				continue
			}
			if ok = true; v != "" {
				return v, true
			}
		}
	}
	return "", ok
}

// cookieNamed returns the raw value of one cookie, what stands between
// semicolons, if it has the name.
func cookieNamed(text, name string) (value string, ok bool) {
	rest, ok := strings.CutPrefix(strings.Trim(text, " \t"), name)
	if !ok || rest == "" || rest[0] != '=' {
		return "", false
	}
	return rest[1:], true
}

// takeCookie takes all cookies of a name out of a request and returns the
// first one's value. The others stay as they came.
func takeCookie(h http.Header, name string) (value string) {
	lines, kept, taken := h["Cookie"], 0, false
	for _, line := range lines {
		rest, v, found := withoutCookie(line, name)
		if found && !taken {
			value, taken = v, true
		}
		if !found || rest != "" {
			lines[kept] = rest
			kept++
		}
	}
	switch {
	case !taken:
	case kept == 0:
		delete(h, "Cookie")
	default:
		h["Cookie"] = lines[:kept]
	}
	return value
}

// withoutCookie cuts the cookies of a name out of a line, and gives the value
// of the first. What is left is byte for byte as it was, but for white space
// that now stands in front. It allocates only when there is something to cut
// out and something left.
func withoutCookie(line, name string) (rest, value string, found bool) {
	others := false
	for text := range strings.SplitSeq(line, ";") {
		v, is := cookieNamed(text, name)
		if is && !found {
			value, found = v, true
		}
		others = others || !is
	}
	if !found {
		return line, "", false
	}
	if !others {
		return "", value, true
	}
	var kept strings.Builder
	kept.Grow(len(line))
	first := true
	for text := range strings.SplitSeq(line, ";") {
		if _, is := cookieNamed(text, name); is {
			continue
		}
		if !first {
			kept.WriteByte(';')
		}
		kept.WriteString(text)
		first = false
	}
	return strings.TrimLeft(kept.String(), " \t"), value, true
}
