package version

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// A Digest is the SHA-256 of canonical bytes. It names a snapshot, a module
// or a chunk; which one is said by where it stands. The zero Digest names
// nothing.
type Digest [sha256.Size]byte

// DigestOf returns the digest of b.
func DigestOf(b []byte) Digest { return sha256.Sum256(b) }

// ParseDigest reads 64 lower-case hexadecimal digits.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	if len(s) != 2*len(d) {
		return d, fmt.Errorf("digest %.80q: want %d hexadecimal digits, got %d characters", s, 2*len(d), len(s))
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil {
		return Digest{}, fmt.Errorf("digest %.80q: %w", s, err)
	}
	if d.String() != s {
		return Digest{}, fmt.Errorf("digest %q: want lower-case digits", s)
	}
	return d, nil
}

// String gives 64 lower-case hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Short gives the first 12 digits, for people.
func (d Digest) Short() string { return d.String()[:12] }

// IsZero tells whether d names nothing.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText gives the form of String, and nothing for the zero Digest.
func (d Digest) MarshalText() ([]byte, error) {
	if d.IsZero() {
		return nil, nil
	}
	return []byte(d.String()), nil
}

// UnmarshalText reads what MarshalText wrote.
func (d *Digest) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*d = Digest{}
		return nil
	}
	v, err := ParseDigest(string(b))
	if err != nil {
		return err
	}
	*d = v
	return nil
}
