package token

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"routerd.dev/internal/version"
)

// Claims are what a token says: a client was served Digest at Epoch of Group.
type Claims struct {
	Fleet, Group string // of MaxName bytes at most each
	Epoch        int64
	Digest       version.Digest
	Expires      time.Time // in whole seconds
}

// Limits of a token.
const (
	MaxBytes = 1024 // of a token's text; a longer one is not looked at
	MaxName  = 255  // of a fleet's id or a group's name
)

// DefaultLife is how long a token is valid, unless somebody chooses otherwise.
const DefaultLife = time.Hour

// Why a token is not believed.
var (
	ErrForged  = errors.New("token is malformed or signed with no key that is known here")
	ErrExpired = errors.New("token has expired")
)

const (
	format    = 1
	macBytes  = 16 // half of SHA-256, as RFC 2104 asks for at least
	separator = "routerd token\n"
)

// encoding has one text for each token: it refuses bits after the last byte.
var encoding = base64.RawURLEncoding.Strict()

// Sign returns the token of c, whose Expires is cut to the second. It is empty
// when a name is longer than MaxName: then there is no token.
func (k *Keys) Sign(c Claims) string {
	if len(c.Fleet) > MaxName || len(c.Group) > MaxName {
		return ""
	}
	b := appendClaims(make([]byte, 0, 256), c)
	b = append(b, mac(k.ring.Load().keys[0], b)...)
	return encoding.EncodeToString(b)
}

// Verify returns what a token says, if it was signed with one of the keys and
// has not expired. The error is ErrForged or ErrExpired.
func (k *Keys) Verify(text string, now time.Time) (Claims, error) {
	k.look(now)
	ring := k.ring.Load()
	c, known := ring.verified(text)
	if !known {
		var err error
		if c, err = ring.verify(text); err != nil {
			return Claims{}, err
		}
	}
	if !now.Before(c.Expires) {
		return Claims{}, ErrExpired
	}
	if !known {
		ring.remember(text, c, now)
	}
	return c, nil
}

func (r *ring) verify(text string) (Claims, error) {
	var room [MaxBytes * 3 / 4]byte
	if len(text) > MaxBytes {
		return Claims{}, ErrForged
	}
	n, err := encoding.Decode(room[:], []byte(text))
	if err != nil || n <= macBytes || encoding.EncodedLen(n) != len(text) { // the decoder skips line ends
		return Claims{}, ErrForged
	}
	body, sum := room[:n-macBytes], room[n-macBytes:n]
	genuine := false
	for _, key := range r.keys { // all of them, so that time does not tell which
		genuine = hmac.Equal(mac(key, body), sum) || genuine
	}
	if !genuine {
		return Claims{}, ErrForged
	}
	c, err := parseClaims(body)
	if err != nil { // of a build that writes more than this one reads
		return Claims{}, ErrForged
	}
	return c, nil
}

func mac(key, body []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(separator))
	h.Write(body)
	return h.Sum(nil)[:macBytes]
}

func appendClaims(b []byte, c Claims) []byte {
	b = append(b, format)
	b = binary.AppendVarint(b, c.Epoch)
	b = binary.AppendVarint(b, c.Expires.Unix())
	b = append(b, c.Digest[:]...)
	b = append(append(b, byte(len(c.Fleet))), c.Fleet...)
	return append(append(b, byte(len(c.Group))), c.Group...)
}

// parseClaims reads what appendClaims writes, and all of it.
func parseClaims(b []byte) (c Claims, err error) {
	r := reader{b: b}
	if v := r.byte(); v != format {
		return c, fmt.Errorf("parse token: format %d, this build reads %d", v, format)
	}
	c.Epoch = r.varint()
	c.Expires = time.Unix(r.varint(), 0)
	copy(c.Digest[:], r.take(len(c.Digest)))
	c.Fleet, c.Group = r.name(), r.name()
	if r.short || len(r.b) > 0 {
		return Claims{}, errors.New("parse token: not as long as it says")
	}
	return c, nil
}

// A reader takes bytes from the front and notes when there are too few.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.short, r.b = true, nil
		return nil
	}
	taken := r.b[:n]
	r.b = r.b[n:]
	return taken
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.short, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) name() string { return string(r.take(int(r.byte()))) }
