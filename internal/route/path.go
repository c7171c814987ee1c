package route

import (
	"strings"
	"unicode/utf8"
)

// PathOptions are what a listener may allow in a path. The zero value is the
// strict default.
type PathOptions struct {
	AllowEncodedSlash bool // %2F is data within a segment, not a 400
	MergeSlashes      bool // "//" counts as "/", not as a 400
}

// A PathFault is why a path is refused. All of them answer 400.
type PathFault uint8

// The faults of a path.
const (
	PathNotRooted    PathFault = iota + 1 // does not begin with "/"
	PathTooLong                           // over MaxPathBytes
	PathBadEscape                         // "%" without two hexadecimal digits after it
	PathBadByte                           // a raw space, "?" or "#": not part of a path
	PathBackslash                         // "\" or %5C
	PathControl                           // a control character, %00 among them
	PathEncodedSlash                      // %2F, where the listener does not allow it
	PathEmptySegment                      // "//", where the listener does not merge
	PathDotSegment                        // "." or ".." as a segment, in any encoding, also before ";"
	PathBadUTF8                           // not UTF-8 once decoded
)

// Error says what is wrong in a few words. They hold nothing of the path.
func (f PathFault) Error() string {
	switch f {
	case PathNotRooted:
		return "path does not begin with /"
	case PathTooLong:
		return "path is too long"
	case PathBadEscape:
		return "path has an invalid escape"
	case PathBadByte:
		return "path has a space, ? or # that is not escaped"
	case PathBackslash:
		return "path has a backslash"
	case PathControl:
		return "path has a control character"
	case PathEncodedSlash:
		return "path has an encoded slash"
	case PathEmptySegment:
		return "path has an empty segment"
	case PathDotSegment:
		return "path has a dot segment"
	case PathBadUTF8:
		return "path is not UTF-8"
	default:
		return "path is invalid"
	}
}

// CanonicalPath brings a request's raw path, without its query, to the one
// form that is matched: octets that may stand raw in a path segment (RFC 3986:
// pchar) are decoded, all others are upper-case escapes. The empty path of an
// absolute-form target is "/". A refusal is a PathFault and asks for a 400.
//
// It is idempotent, runs once over a path that is canonical already and then
// allocates nothing and returns raw itself. An accepted path begins with "/", has
// no empty segment but the last, decodes to UTF-8 without control characters, and
// has no dot segment however often it is decoded.
func CanonicalPath(raw string, o PathOptions) (string, error) {
	if raw == "" {
		return "/", nil
	}
	if len(raw) > MaxPathBytes {
		return "", PathTooLong
	}
	if raw[0] != '/' {
		return "", PathNotRooted
	}
	canonical, fault := scan(raw, o, true)
	if fault != 0 {
		return "", fault
	}
	if canonical {
		return raw, nil
	}
	var buf [512]byte
	out, fault := rewrite(buf[:0], raw, o.MergeSlashes)
	if fault != 0 {
		return "", fault
	}
	if len(out) > MaxPathBytes {
		return "", PathTooLong
	}
	path := string(out)
	if _, fault := scan(path, o, true); fault != 0 {
		return "", fault
	}
	return path, nil
}

// MergeSlashes returns a raw path with each run of slashes made one, all else
// as it came: what is forwarded where MergeSlashes is set, so that an upstream
// sees the path that was matched. It allocates nothing when there is no run.
func MergeSlashes(raw string) string {
	at := strings.Index(raw, "//")
	if at < 0 {
		return raw
	}
	b := append(make([]byte, 0, len(raw)), raw[:at+1]...)
	for i := at + 1; i < len(raw); i++ {
		if raw[i] != '/' || raw[i-1] != '/' {
			b = append(b, raw[i])
		}
	}
	return string(b)
}

// CheckRewrite tells whether a path that a rewrite made may be forwarded: it
// must hold what CanonicalPath asks of one that came, and may not be empty. The
// path is forwarded as it is, not in canonical form. The error is a PathFault.
func CheckRewrite(raw string, o PathOptions) error {
	if raw == "" {
		return PathNotRooted
	}
	_, err := CanonicalPath(raw, o)
	return err
}

// The classes of octets. Raw means: may stand raw in a path segment.
const (
	octetEscape = iota // is an escape in canonical form
	octetRaw
	octetSlash
	octetPercent
	octetBad // may not come raw: it would end the path for whoever gets it next
)

// octets is the class of each octet as it stands in a path. Nothing writes to it.
var octets = func() (t [256]uint8) {
	for c := range 256 {
		switch b := byte(c); {
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9',
			strings.IndexByte("-._~!$&'()*+,;=:@", b) >= 0:
			t[c] = octetRaw
		case b == '/':
			t[c] = octetSlash
		case b == '%':
			t[c] = octetPercent
		case b == ' ', b == '?', b == '#':
			t[c] = octetBad
		}
	}
	return t
}()

// scan runs over s until it meets what is not canonical, and then says false
// without a fault. With canonical true and no fault all of s is in canonical form
// and acceptable. With rooted, s is a whole path; else it is a piece of a
// segment, whose dots are not looked at.
func scan(s string, o PathOptions, rooted bool) (canonical bool, fault PathFault) {
	nested := false // has %25, which may hide escapes from a single decoding
	for i := 0; i < len(s); {
		switch octets[s[i]] {
		case octetRaw:
			i++
		case octetSlash:
			i++
			if !rooted {
				continue
			}
			if i < len(s) && s[i] == '/' {
				if o.MergeSlashes {
					return false, 0
				}
				return false, PathEmptySegment
			}
			if dotSegment(s[i:]) {
				return false, PathDotSegment
			}
		case octetPercent:
			c, ok := escape(s, i)
			switch {
			case !ok:
				return false, PathBadEscape
			case octets[c] == octetRaw || !upperEscape(s, i):
				return false, 0
			case c >= utf8.RuneSelf:
				n, fault := scanRune(s[i:])
				if fault != 0 {
					return false, fault
				}
				i += n
				continue
			case c < ' ' || c == 0x7f:
				return false, PathControl
			case c == '\\':
				return false, PathBackslash
			case c == '/' && !o.AllowEncodedSlash:
				return false, PathEncodedSlash
			case c == '/' && rooted && dotSegment(s[i+3:]):
				return false, PathDotSegment
			case c == '%':
				nested = true
			}
			i += 3
		case octetBad:
			return false, PathBadByte
		default:
			return false, 0
		}
	}
	if nested && rooted && nestedDots(s) {
		return false, PathDotSegment
	}
	return true, 0
}

// rewrite appends the canonical form of raw to dst. It refuses only what it
// cannot write; scan judges the result.
func rewrite(dst []byte, raw string, merge bool) ([]byte, PathFault) {
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		switch octets[c] {
		case octetRaw:
			dst = append(dst, c)
			continue
		case octetSlash:
			if !merge || len(dst) == 0 || dst[len(dst)-1] != '/' {
				dst = append(dst, c)
			}
			continue
		case octetBad:
			return nil, PathBadByte
		case octetPercent:
			var ok bool
			if c, ok = escape(raw, i); !ok {
				return nil, PathBadEscape
			}
			i += 2
			if octets[c] == octetRaw {
				dst = append(dst, c)
				continue
			}
		}
		const hex = "0123456789ABCDEF"
		dst = append(dst, '%', hex[c>>4], hex[c&15])
	}
	return dst, 0
}

// dotSegment tells whether s, which follows a slash, begins with a segment
// that some reader takes for "." or "..": its text up to a ";" counts.
func dotSegment(s string) bool {
	n := 0
	for n < len(s) && n < 3 && s[n] == '.' {
		n++
	}
	if n == 0 || n == 3 {
		return false
	}
	s = s[n:]
	return s == "" || s[0] == '/' || s[0] == ';' || strings.HasPrefix(s, "%2F")
}

// scanRune reads one escaped rune beyond ASCII off the front of s.
func scanRune(s string) (n int, fault PathFault) {
	var b [utf8.UTFMax]byte
	k := 0
	for ; k < len(b) && 3*k < len(s) && s[3*k] == '%'; k++ {
		c, ok := escape(s, 3*k)
		if !ok || c < utf8.RuneSelf {
			break
		}
		b[k] = c
	}
	r, size := utf8.DecodeRune(b[:k])
	switch {
	case r == utf8.RuneError && size <= 1:
		// Raw octets that are still to be escaped may follow: a text such as
		// "%C3" and a raw 0xA9 is one rune. rewrite brings them together.
		if k < len(b) && 3*k < len(s) && s[3*k] >= utf8.RuneSelf {
			return 3, 0
		}
		return 0, PathBadUTF8
	case r <= 0x9f: // C1
		return 0, PathControl
	}
	// In lower-case hexadecimal it is not canonical yet; the next round of the
	// caller must see that, so only the escapes known to be upper case are passed.
	for j := 1; j < size; j++ {
		if !upperEscape(s, 3*j) {
			return 3 * j, 0
		}
	}
	return 3 * size, 0
}

// nestedDots tells whether s has a dot segment once it is decoded until there
// is nothing left to decode. Decoding never takes away a dot or a separator, so the
// last text has the dot segments of all texts on the way. It takes linear time:
// each step reduces as soon as an escape is complete.
func nestedDots(s string) bool {
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		b = append(b, s[i])
		for n := len(b); n >= 3 && b[n-3] == '%'; n = len(b) {
			hi, lo := unhex(b[n-2]), unhex(b[n-1])
			if hi > 15 || lo > 15 {
				break
			}
			b = append(b[:n-3], hi<<4|lo)
		}
	}
	for start, i := 0, 0; i <= len(b); i++ {
		if i == len(b) || b[i] == '/' || b[i] == '\\' {
			if dotSegment(string(b[start:i])) {
				return true
			}
			start = i + 1
		}
	}
	return false
}

// escape returns the octet that the escape at s[i] stands for.
func escape(s string, i int) (byte, bool) {
	if i+2 >= len(s) {
		return 0, false
	}
	hi, lo := unhex(s[i+1]), unhex(s[i+2])
	if hi > 15 || lo > 15 {
		return 0, false
	}
	return hi<<4 | lo, true
}

// upperEscape tells whether the escape at s[i] is written in upper case.
func upperEscape(s string, i int) bool { return s[i+1] < 'a' && s[i+2] < 'a' }

// unhex returns the value of a hexadecimal digit, and 255 for anything else.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	default:
		return 255
	}
}

// DecodeParam returns the text that a piece of a canonical path stands for. It
// allocates nothing when there is no escape in it. What is not an escape is kept.
func DecodeParam(canonical string) string {
	i := strings.IndexByte(canonical, '%')
	if i < 0 {
		return canonical
	}
	b := append(make([]byte, 0, len(canonical)), canonical[:i]...)
	for ; i < len(canonical); i++ {
		c := canonical[i]
		if c == '%' {
			if d, ok := escape(canonical, i); ok {
				c = d
				i += 2
			}
		}
		b = append(b, c)
	}
	return string(b)
}

// EncodeParam returns decoded text as it stands in one segment of a canonical
// path, so that DecodeParam gives it back. "/" becomes %2F.
func EncodeParam(text string) string {
	const hex = "0123456789ABCDEF"
	clean := true
	for i := range len(text) {
		clean = clean && octets[text[i]] == octetRaw
	}
	if clean {
		return text
	}
	b := make([]byte, 0, len(text)+8)
	for i := range len(text) {
		c := text[i]
		if octets[c] == octetRaw {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return string(b)
}

// RawPiece returns the piece of raw that became canonical[from:to], with
// canonical the result of CanonicalPath of raw and from and to not within an
// escape. So a rewrite inserts a parameter as it came. It allocates nothing.
func RawPiece(raw, canonical string, from, to int, o PathOptions) string {
	if raw == canonical {
		return raw[from:to]
	}
	start := rawOffset(raw, canonical, 0, 0, from, o)
	end := rawOffset(raw, canonical, from, start, to, o)
	return raw[start:end]
}

// rawOffset goes from the pair of offsets c in canonical and r in raw to the
// offset in raw that belongs to canonical[want:].
func rawOffset(raw, canonical string, c, r, want int, o PathOptions) int {
	for c < want && r < len(raw) {
		slash := canonical[c] == '/'
		c += unit(canonical, c)
		r += unit(raw, r)
		for slash && o.MergeSlashes && r < len(raw) && raw[r] == '/' {
			r++
		}
	}
	return r
}

// unit is the length of the octet at s[i], as it is written.
func unit(s string, i int) int {
	if s[i] == '%' {
		return min(3, len(s)-i)
	}
	return 1
}
