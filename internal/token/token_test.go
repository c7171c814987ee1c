package token

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"routerd.dev/internal/version"
)

// keyLine is a key that nobody uses.
func keyLine(of string) string {
	sum := sha256.Sum256([]byte(of))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func writeKeys(t testing.TB, path string, lines ...string) {
	t.Helper()
	next := path + ".next"
	if err := os.WriteFile(next, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

func loadKeys(t testing.TB, of ...string) *Keys {
	t.Helper()
	var lines []string
	for _, k := range of {
		lines = append(lines, keyLine(k))
	}
	path := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, path, lines...)
	k, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var noon = time.Unix(1_800_000_000, 0)

func someClaims() Claims {
	return Claims{Fleet: "f-1", Group: "main", Epoch: 7, Digest: version.DigestOf([]byte("x")), Expires: noon.Add(time.Hour)}
}

func drawClaims(t *rapid.T) Claims {
	var d version.Digest
	copy(d[:], rapid.SliceOfN(rapid.Byte(), len(d), len(d)).Draw(t, "digest"))
	name := rapid.StringN(0, 60, MaxName)
	return Claims{
		Fleet: name.Draw(t, "fleet"), Group: name.Draw(t, "group"), Epoch: rapid.Int64().Draw(t, "epoch"), Digest: d,
		Expires: noon.Add(time.Duration(rapid.IntRange(1, 1e6).Draw(t, "life")) * time.Second),
	}
}

// TestVerifyGivesWhatWasSigned, the first time and when it is remembered, by
// every key file that has the key, and alike on each of them.
func TestVerifyGivesWhatWasSigned(t *testing.T) {
	signer, older, other := loadKeys(t, "a"), loadKeys(t, "b", "a"), loadKeys(t, "b")
	rapid.Check(t, func(t *rapid.T) {
		c := drawClaims(t)
		text := signer.Sign(c)
		if len(text) == 0 || len(text) > MaxBytes {
			t.Fatalf("%d bytes", len(text))
		}
		for range 2 {
			for _, k := range []*Keys{signer, older} {
				if got, err := k.Verify(text, noon); err != nil || got != c {
					t.Fatalf("got %+v, %v, want %+v", got, err, c)
				}
				if _, err := k.Verify(text, c.Expires); !errors.Is(err, ErrExpired) {
					t.Fatalf("at its expiry: %v", err)
				}
			}
			if _, err := other.Verify(text, noon); !errors.Is(err, ErrForged) {
				t.Fatalf("with another key: %v", err)
			}
		}
		if again := older.Sign(c); again == text {
			t.Fatal("signed with the second key")
		}
	})
}

// TestNothingAlteredIsBelieved changes one byte, or cuts, or adds.
func TestNothingAlteredIsBelieved(t *testing.T) {
	k := loadKeys(t, "a")
	rapid.Check(t, func(t *rapid.T) {
		text := k.Sign(drawClaims(t))
		b := []byte(text)
		at := rapid.IntRange(0, len(b)-1).Draw(t, "at")
		switch rapid.IntRange(0, 3).Draw(t, "how") {
		case 0:
			b[at] = rapid.Byte().Draw(t, "byte")
		case 1:
			b = b[:at]
		case 2:
			b = append(b[:at:at], append([]byte{rapid.Byte().Draw(t, "byte")}, b[at:]...)...)
		case 3:
			b = append(b, rapid.SampledFrom([]string{"=", "\n", "\r\n", " ", "A"}).Draw(t, "tail")...)
		}
		_, err := k.Verify(string(b), noon)
		if string(b) == text != (err == nil) {
			t.Fatalf("%q: %v", b, err)
		}
	})
}

// TestSignedNonsense has the right key sign what is no token.
func TestSignedNonsense(t *testing.T) {
	k := loadKeys(t, "a")
	good := appendClaims(nil, someClaims())
	sign := func(b []byte) string {
		return encoding.EncodeToString(append(b[:len(b):len(b)], mac(k.ring.Load().keys[0], b)...))
	}
	if _, err := k.Verify(sign(good), noon); err != nil {
		t.Fatal(err)
	}
	bad := map[string][]byte{"longer": append(good[:len(good):len(good)], 0), "version": append([]byte{format + 1}, good[1:]...), "empty": {}}
	for n := range good {
		if _, err := k.Verify(sign(good[:n]), noon); !errors.Is(err, ErrForged) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	for what, b := range bad {
		if _, err := k.Verify(sign(b), noon); !errors.Is(err, ErrForged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := k.Verify(strings.Repeat("A", MaxBytes+1), noon); !errors.Is(err, ErrForged) {
		t.Errorf("too long: %v", err)
	}
	long := someClaims()
	long.Group = strings.Repeat("g", MaxName+1)
	if text := k.Sign(long); text != "" {
		t.Errorf("a name of %d bytes was signed as %q", MaxName+1, text)
	}
}

// TestSignature holds the form that doc.go describes, by other means.
func TestSignature(t *testing.T) {
	k := loadKeys(t, "a")
	b, err := base64.RawURLEncoding.DecodeString(k.Sign(someClaims()))
	if err != nil {
		t.Fatal(err)
	}
	key := sha256.Sum256([]byte("a"))
	h := hmac.New(sha256.New, key[:])
	h.Write([]byte("routerd token\n"))
	h.Write(b[:len(b)-16])
	if !hmac.Equal(h.Sum(nil)[:16], b[len(b)-16:]) {
		t.Error("it does not end in the signature")
	}
}

// TestRememberedTokensAreFewAndStay: a valid token is not pushed out by
// another, and an expired one is.
func TestRememberedTokensAreFewAndStay(t *testing.T) {
	k := loadKeys(t, "a")
	c := someClaims()
	for i := range 4096 {
		c.Epoch = int64(i)
		if _, err := k.Verify(k.Sign(c), noon); err != nil {
			t.Fatal(err)
		}
	}
	before := map[string]bool{}
	r := k.ring.Load()
	for i := range r.slots {
		if v := r.slots[i].Load(); v != nil {
			before[v.text] = true
		}
	}
	if len(before) != len(r.slots) {
		t.Errorf("%d of %d slots are taken", len(before), len(r.slots))
	}
	later := c.Expires.Add(time.Second)
	c.Expires = later.Add(time.Hour)
	for i := range 4096 {
		c.Epoch = int64(i)
		text := k.Sign(c)
		for range 2 {
			if _, err := k.Verify(text, noon); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range r.slots {
		if v := r.slots[i].Load(); !before[v.text] {
			t.Fatal("a token was pushed out while it was valid")
		}
	}
	if _, err := k.Verify(k.Sign(c), later); err != nil {
		t.Fatal(err)
	}
	if _, known := r.verified(k.Sign(c)); !known {
		t.Error("an expired token kept its place")
	}
}

func FuzzVerify(f *testing.F) {
	k := loadKeys(f, "a")
	f.Add(k.Sign(someClaims()))
	f.Add("")
	f.Add("AQ")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := k.Verify(text, noon)
		if err == nil && k.Sign(c) != text {
			t.Fatalf("%q says %+v, whose token is another", text, c)
		}
	})
}

func FuzzParseClaims(f *testing.F) {
	f.Add(appendClaims(nil, someClaims()))
	f.Add([]byte{format})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseClaims(b)
		if err != nil {
			return
		}
		if again, err := parseClaims(appendClaims(nil, c)); err != nil || again != c {
			t.Fatalf("%x says %+v, then %+v, %v", b, c, again, err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	k := loadKeys(b, "a", "b")
	known := k.Sign(someClaims())
	forged := "B" + known[1:]
	for what, text := range map[string]string{"known": known, "forged": forged} {
		b.Run(what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = k.Verify(text, noon)
			}
		})
	}
}
