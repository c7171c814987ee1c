package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"net/textproto"
	"strings"
)

// A field is one header field, its name in canonical MIME form.
type field struct{ name, value string }

// A head is a parsed response head. Its strings are parts of text.
type head struct {
	text   string // from the status line to the empty line; "" before the first
	status int
	fields []field // without what belongs to the connection, framing included
	dup    bool    // a name stands more than once in fields

	length     int64 // of Content-Length; -1 without
	lengthText string
	chunked    bool
	http10     bool
	close      bool   // Connection: close
	keepAlive  bool   // Connection: keep-alive
	upgrade    string // of Upgrade, when Connection lists it
	trailer    string // of Trailer, joined
}

// maxListed is how many fields a response's Connection may name: each is looked
// for among all others.
const maxListed = 32

var errBareLF = errors.New("line ends in a bare LF")

// scanHead looks for the end of a head in b, of which the first seen bytes were
// looked at by an earlier call. It returns the head's length, 0 when more is
// needed. What can never become a head is an error as early as it shows.
func scanHead(b []byte, seen int) (int, error) {
	const start = "HTTP/1."
	if k := min(len(b), len(start)); string(b[:k]) != start[:k] {
		return 0, fmt.Errorf("begins with %.40q, not a status line", b)
	}
	// The last three bytes may be the beginning of the end.
	for i := max(seen-3, 0); ; {
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			return 0, nil
		}
		i += j + 1
		if i < 2 || b[i-2] != '\r' {
			return 0, errBareLF
		}
		if i >= 4 && b[i-3] == '\n' {
			return i, nil
		}
	}
}

// parse reads text, which scanHead found to be a whole head, into h.
func (h *head) parse(text string, maxFields int) error {
	*h = head{fields: h.fields[:0], length: -1}
	line, rest, _ := strings.Cut(text, "\r\n")
	if err := h.statusLine(line); err != nil {
		return err
	}
	var drop []string // listed by Connection
	for n := 0; ; n++ {
		line, rest, _ = strings.Cut(rest, "\r\n")
		if line == "" {
			break
		}
		if n == maxFields {
			return fmt.Errorf("more than %d fields", maxFields)
		}
		name, value, err := splitField(line)
		if err != nil {
			return err
		}
		if drop, err = h.add(name, value, drop); err != nil {
			return err
		}
	}
	if h.chunked && h.length >= 0 {
		return errors.New("both Content-Length and Transfer-Encoding")
	}
	if h.chunked && h.http10 {
		return errors.New("Transfer-Encoding in HTTP/1.0")
	}
	h.settle(drop)
	h.text = text
	return nil
}

func (h *head) statusLine(s string) error {
	if len(s) < 12 || (s[7] != '0' && s[7] != '1') || s[8] != ' ' || len(s) > 12 && s[12] != ' ' {
		return fmt.Errorf("malformed status line %.80q", s)
	}
	for i := 9; i < 12; i++ {
		if s[i] < '0' || s[i] > '9' {
			return fmt.Errorf("malformed status code %q", s[9:12])
		}
		h.status = 10*h.status + int(s[i]-'0')
	}
	if h.status < 100 || !validValue(s) {
		return fmt.Errorf("malformed status line %.80q", s)
	}
	h.http10 = s[7] == '0'
	return nil
}

// add takes one field in. Those of the connection are read, not kept.
func (h *head) add(name, value string, drop []string) ([]string, error) {
	switch name {
	case "Content-Length":
		n, ok := parseLength(value)
		if !ok {
			return drop, fmt.Errorf("malformed Content-Length %.40q", value)
		}
		if h.length >= 0 && h.length != n {
			return drop, fmt.Errorf("Content-Length both %d and %d", h.length, n)
		}
		h.length, h.lengthText = n, value
	case "Transfer-Encoding":
		if h.chunked || !strings.EqualFold(value, "chunked") {
			return drop, fmt.Errorf("unsupported Transfer-Encoding %.40q", value)
		}
		h.chunked = true
	case "Connection":
		for tok := range tokens(value) {
			switch {
			case strings.EqualFold(tok, "close"):
				h.close = true
			case strings.EqualFold(tok, "keep-alive"):
				h.keepAlive = true
			case len(drop) == maxListed:
				return drop, fmt.Errorf("more than %d fields listed by Connection", maxListed)
			default:
				drop = append(drop, textproto.CanonicalMIMEHeaderKey(tok))
			}
		}
	case "Upgrade":
		h.upgrade = value
	case "Trailer":
		if h.trailer != "" {
			value = h.trailer + ", " + value
		}
		h.trailer = value
	case "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Te":
	default:
		h.fields = append(h.fields, field{name, value})
	}
	return drop, nil
}

// settle applies what could only be known at the end.
func (h *head) settle(drop []string) {
	upgrade := false
	for _, d := range drop {
		upgrade = upgrade || d == "Upgrade"
		kept := h.fields[:0]
		for _, f := range h.fields {
			if f.name != d {
				kept = append(kept, f)
			}
		}
		h.fields = kept
	}
	if !upgrade {
		h.upgrade = ""
	}
	for i, f := range h.fields {
		for _, g := range h.fields[:i] {
			if f.name == g.name {
				h.dup = true
				return
			}
		}
	}
}

// reusable tells whether the upstream keeps the connection open after a
// response with a length of its own.
func (h *head) reusable() bool {
	return !h.close && (!h.http10 || h.keepAlive)
}

// splitField reads one line of a head or of trailers, without its CRLF. The
// name comes back in canonical form. A folded line begins with white space and
// so has no name.
func splitField(line string) (name, value string, err error) {
	canonical, up := true, true
	i := 0
	for ; i < len(line) && tokenTable[line[i]]; i++ {
		b := line[i]
		if up && 'a' <= b && b <= 'z' || !up && 'A' <= b && b <= 'Z' {
			canonical = false
		}
		up = b == '-'
	}
	if i == 0 || i == len(line) || line[i] != ':' {
		return "", "", fmt.Errorf("malformed field line %.80q", line)
	}
	name, value = line[:i], trimOWS(line[i+1:])
	if !validValue(value) {
		return "", "", fmt.Errorf("control character in field %.80q", name)
	}
	if !canonical {
		name = textproto.CanonicalMIMEHeaderKey(name)
	}
	return name, value, nil
}

func trimOWS(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// parseLength reads a Content-Length: digits and nothing else,
// and no needless zeros, which some take for octal.
func parseLength(s string) (int64, bool) {
	if s == "" || len(s) > 18 || s[0] == '0' && len(s) > 1 {
		return 0, false
	}
	var n int64
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = 10*n + int64(s[i]-'0')
	}
	return n, true
}

// validValue tells whether s may stand in a field's value: no control
// characters but HTAB.
func validValue(s string) bool {
	for i := range len(s) {
		if b := s[i]; b < ' ' && b != '\t' || b == 0x7f {
			return false
		}
	}
	return true
}

// validToken tells whether s is a token, as methods and field names are.
func validToken(s string) bool {
	for i := range len(s) {
		if !tokenTable[s[i]] {
			return false
		}
	}
	return s != ""
}

// tokens yields the comma-separated elements of a field's value, empty ones left out.
func tokens(s string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for s != "" {
			var tok string
			tok, s, _ = strings.Cut(s, ",")
			if tok = trimOWS(tok); tok != "" && !yield(tok) {
				return
			}
		}
	}
}

// tokenTable holds the characters of a token (RFC 9110, 5.6.2). Never written.
var tokenTable = func() (t [256]bool) {
	for b := range t {
		t[b] = '0' <= b && b <= '9' || 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' ||
			b < 0x80 && strings.IndexByte("!#$%&'*+-.^_`|~", byte(b)) >= 0
	}
	return t
}()
