package proxy

import (
	"bufio"
	"net/http"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// parseAll feeds b to a head parser in pieces, as fill would.
func parseAll(b []byte, cuts ...int) (h *head, n int, err error) {
	h = new(head)
	seen := 0
	for _, c := range append(cuts, len(b)) {
		if n, err = scanHead(b[:c], seen); err != nil || n > 0 {
			break
		}
		seen = c
	}
	if err == nil && n > 0 {
		err = h.parse(string(b[:n]), DefaultMaxHeadFields)
	}
	return h, n, err
}

func TestHeadRefusesWhatIsAmbiguous(t *testing.T) {
	for name, s := range map[string]string{
		"bare LF":                 "HTTP/1.1 200 OK\nA: b\n\n",
		"bare LF within":          "HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n",
		"bare LF at the end":      "HTTP/1.1 200 OK\r\nA: b\r\n\n",
		"bare CR":                 "HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n",
		"NUL":                     "HTTP/1.1 200 OK\r\nA: b\x00\r\n\r\n",
		"folded":                  "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
		"folded first":            "HTTP/1.1 200 OK\r\n A: b\r\n\r\n",
		"space before colon":      "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
		"no colon":                "HTTP/1.1 200 OK\r\nA\r\n\r\n",
		"no name":                 "HTTP/1.1 200 OK\r\n: b\r\n\r\n",
		"name with a space":       "HTTP/1.1 200 OK\r\nA B: c\r\n\r\n",
		"two lengths":             "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
		"list of lengths":         "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
		"signed length":           "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
		"octal length":            "HTTP/1.1 200 OK\r\nContent-Length: 010\r\n\r\n",
		"huge length":             "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
		"empty length":            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
		"length and chunked":      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
		"chunked twice":           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
		"another coding":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
		"identity":                "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
		"chunked in 1.0":          "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		"another version":         "HTTP/1.2 200 OK\r\n\r\n",
		"HTTP/2":                  "HTTP/2 200 OK\r\n\r\n",
		"no status":               "HTTP/1.1 \r\n\r\n",
		"short status":            "HTTP/1.1 20\r\n\r\n",
		"long status":             "HTTP/1.1 2000 OK\r\n\r\n",
		"status below 100":        "HTTP/1.1 099 OK\r\n\r\n",
		"signed status":           "HTTP/1.1 +20 OK\r\n\r\n",
		"control in the reason":   "HTTP/1.1 200 O\x01K\r\n\r\n",
		"white space in front":    " HTTP/1.1 200 OK\r\n\r\n",
		"empty line in front":     "\r\nHTTP/1.1 200 OK\r\n\r\n",
		"something else":          "SSH-2.0-OpenSSH_9\r\n",
		"too many fields":         "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", DefaultMaxHeadFields+1) + "\r\n",
		"garbage without an end":  "\x16\x03\x01",
		"two spaces after status": "HTTP/1.1  200 OK\r\n\r\n",
	} {
		if h, n, err := parseAll([]byte(s)); err == nil {
			t.Errorf("%s: accepted %d bytes as %+v", name, n, h)
		}
	}
}

func TestHeadKeepsWhatIsNotOfTheConnection(t *testing.T) {
	h, _, err := parseAll([]byte("HTTP/1.1 200 OK\r\ncontent-TYPE: \t a b \t\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Authenticate: x\r\nUpgrade: h2c\r\n" +
		"Set-Cookie: a\r\nSet-Cookie: b\r\nTrailer: X-T\r\nContent-Length: 5\r\n\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []field{{"Content-Type", "a b"}, {"Set-Cookie", "a"}, {"Set-Cookie", "b"}}
	if !slices.Equal(h.fields, want) || !h.dup || h.length != 5 || !h.close || h.upgrade != "" || h.trailer != "X-T" || h.reusable() {
		t.Errorf("got %+v", h)
	}
}

// Wherever the bytes of a head are cut, the outcome is the same.
func TestHeadIsTheSameHoweverItArrives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := []string{"HTTP/1.1 200 OK", "HTTP/1.0 404 ", "\r\n", "\n", "\r", "A: b", "Content-Length: 3", " ", "\r\n\r\n", "x"}
		s := "HTTP/1.1 200 OK\r\n" + strings.Join(rapid.SliceOfN(rapid.SampledFrom(parts), 0, 12).Draw(t, "parts"), "")
		whole, n, err := parseAll([]byte(s))
		cuts := rapid.SliceOfN(rapid.IntRange(0, len(s)), 0, 6).Draw(t, "cuts")
		slices.Sort(cuts)
		cut, m, err2 := parseAll([]byte(s), cuts...)
		if n != m || (err == nil) != (err2 == nil) || err == nil && (whole.text != cut.text || !slices.Equal(whole.fields, cut.fields)) {
			t.Fatalf("%q: whole %d %v, cut at %v: %d %v", s, n, err, cuts, m, err2)
		}
	})
}

// FuzzResponseHead: the parser never panics, and where net/http takes the
// head too, both read the same.
func FuzzResponseHead(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
		"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n0\r\n\r\n",
		"HTTP/1.0 301 Moved\r\nlocation:/\r\nConnection: keep-alive, X\r\nx: 1\r\n\r\n",
		"HTTP/1.1 101 Switching\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n",
	} {
		f.Add([]byte(s), 7)
	}
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		if cut = cut % (len(b) + 1); cut < 0 {
			cut = -cut
		}
		h, n, err := parseAll(b, cut)
		if err != nil || n == 0 {
			return
		}
		if strings.Count(h.text, "\n") != strings.Count(h.text, "\r\n") {
			t.Fatalf("a bare LF was accepted in %q", h.text)
		}
		res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(h.text)), &http.Request{Method: "HEAD"})
		if err != nil {
			return
		}
		if res.StatusCode != h.status {
			t.Fatalf("status %d, net/http %d", h.status, res.StatusCode)
		}
		if bodied := h.status >= 200 && h.status != 204 && h.status != 304; bodied && !h.chunked && res.ContentLength != h.length {
			t.Fatalf("length %d, net/http %d", h.length, res.ContentLength)
		}
		if h.chunked && !h.http10 && !slices.Equal(res.TransferEncoding, []string{"chunked"}) && h.status >= 200 && h.status != 204 && h.status != 304 {
			t.Fatalf("chunked, net/http %q", res.TransferEncoding)
		}
		got := http.Header{}
		for _, f := range h.fields {
			got[f.name] = append(got[f.name], f.value)
		}
		for name, values := range got {
			if !slices.Equal(values, res.Header[name]) {
				t.Fatalf("%s: %q, net/http %q", name, values, res.Header[name])
			}
		}
		listed := map[string]bool{"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Proxy-Authenticate": true, "Te": true, "Upgrade": true, "Trailer": true, "Transfer-Encoding": true, "Content-Length": true}
		for _, v := range res.Header["Connection"] {
			for tok := range tokens(v) {
				listed[http.CanonicalHeaderKey(tok)] = true
			}
		}
		for name := range res.Header {
			if got[name] == nil && !listed[name] {
				t.Fatalf("field %s is lost", name)
			}
		}
	})
}
