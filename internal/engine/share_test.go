package engine

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"routerd.dev/internal/analysis"
)

// keyForms are the forms of Serving.Key, each with a request head of the i-th
// client.
var keyForms = []struct {
	key  string
	head func(i int) *Head
}{
	{"", func(i int) *Head { return &Head{Client: clientAddr(i)} }},
	{"client", func(i int) *Head {
		return &Head{Client: netip.AddrFrom16([16]byte{0x20, 1, 7: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})}
	}},
	{"header:x-user", func(i int) *Head { return headed("X-User", fmt.Sprint("u", i), "other") }},
	{"cookie:sid", func(i int) *Head { return headed("Cookie", fmt.Sprintf("a=b; sid=%d; c", i)) }},
}

func clientAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 10<<24|uint32(i))))
}

func headed(name string, values ...string) *Head {
	return &Head{Header: http.Header{name: values}, Client: clientAddr(1)}
}

// sharing serves two engines that only have to be told apart.
func sharing(permyriad int, salt, key string) *served {
	return newServed(&Serving{Stable: &Engine{}, Candidate: &Engine{}, Permyriad: permyriad, Salt: salt, Key: key})
}

func (v *served) gives(h *Head) bool { return v.engineFor(h) == v.Candidate }

// within tells whether n of trials is a likely outcome: five standard
// deviations, which is passed by one run in a million.
func within(n, trials int, p float64) bool {
	return math.Abs(float64(n)-float64(trials)*p) <= 5*math.Sqrt(float64(trials)*p*(1-p))
}

// TestShareIsWhatItSays counts 100,000 keys of each form at growing shares:
// the candidate gets as many as it should, and none moves back.
func TestShareIsWhatItSays(t *testing.T) {
	const keys = 100_000
	for _, form := range keyForms {
		had := make([]bool, keys)
		for _, permyriad := range []int{0, 1, 100, 500, 2500, 5000, 9999, 10000} {
			v, n := sharing(permyriad, "rollout-7", form.key), 0
			for i := range keys {
				gets := v.gives(form.head(i))
				if had[i] && !gets {
					t.Fatalf("key %q: number %d moved back at %d", form.key, i, permyriad)
				}
				if had[i] = gets; gets {
					n++
				}
			}
			if !within(n, keys, float64(permyriad)/10000) {
				t.Errorf("key %q: %d of %d at a share of %d", form.key, n, keys, permyriad)
			}
		}
	}
}

// TestShareOnlyGrows takes any salt, keys and growing shares: who has the
// candidate keeps it, and every instance gives the same answer.
func TestShareOnlyGrows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		salt := rapid.String().Draw(t, "salt")
		form := rapid.SampledFrom([]string{"header:x-user", "cookie:sid"}).Draw(t, "form")
		text := rapid.StringMatching(`[!#-+\--:<-~]{1,40}`)
		shares := rapid.SliceOfN(rapid.IntRange(0, 10000), 2, 8).Draw(t, "shares")
		for _, value := range rapid.SliceOfN(text, 1, 50).Draw(t, "keys") {
			h := &Head{Header: http.Header{"X-User": {value}, "Cookie": {"sid=" + value}}}
			most := -1 // the largest share at which it had stable
			least := math.MaxInt
			for _, share := range shares {
				gets := sharing(share, salt, form).gives(h)
				if gets != sharing(share, salt, form).gives(h) {
					t.Fatalf("%q: two instances disagree", value)
				}
				if gets {
					least = min(least, share)
				} else {
					most = max(most, share)
				}
			}
			if most >= least {
				t.Fatalf("%q has the candidate at %d and not at %d", value, least, most)
			}
		}
	})
}

// TestSaltsAreIndependent: of those whom one rollout gives the candidate,
// another gives it to as many as of the others.
func TestSaltsAreIndependent(t *testing.T) {
	const keys = 100_000
	for _, form := range keyForms {
		for _, salts := range [][2]string{{"a", "b"}, {"", "a"}, {"rollout-1", "rollout-2"}, {"r", "rr"}} {
			v, w := sharing(5000, salts[0], form.key), sharing(2500, salts[1], form.key)
			both := 0
			for i := range keys {
				if h := form.head(i); v.gives(h) && w.gives(h) {
					both++
				}
			}
			if !within(both, keys, 0.125) {
				t.Errorf("key %q, salts %q: %d of %d get both", form.key, salts, both, keys)
			}
		}
	}
}

// TestWhoHasNoKeyGetsStable, unless the share is all.
func TestWhoHasNoKeyGetsStable(t *testing.T) {
	for _, c := range []struct {
		name, key string
		head      *Head
	}{
		{"no client", "client", &Head{}},
		{"no header at all", "header:x-user", &Head{Client: clientAddr(1)}},
		{"no such header", "header:x-user", headed("X-Other", "u")},
		{"empty header", "header:x-user", headed("X-User", "")},
		{"no cookies at all", "cookie:sid", &Head{Client: clientAddr(1)}},
		{"no such cookie", "cookie:sid", headed("Cookie", "side=1; Sid=2; xsid=3; sid")},
		{"empty cookie", "cookie:sid", headed("Cookie", "sid=")},
		{"no name", "header:", headed("X-User", "u")},
		{"no cookie's name", "cookie:", headed("Cookie", "u=1")},
	} {
		if sharing(9999, "s", c.key).gives(c.head) {
			t.Errorf("%s: got the candidate at 9999", c.name)
		}
		if !sharing(10000, "s", c.key).gives(c.head) {
			t.Errorf("%s: got stable at 10000", c.name)
		}
	}
}

// TestSameKeySameAnswer: what is not the key changes nothing.
func TestSameKeySameAnswer(t *testing.T) {
	for _, c := range []struct {
		key  string
		a, b func(i int) *Head
	}{
		{
			"client", func(i int) *Head { return &Head{Client: clientAddr(i)} },
			func(i int) *Head {
				return &Head{Client: netip.AddrFrom16(clientAddr(i).As16()), Header: http.Header{"X": {"y"}}}
			},
		},
		{
			"header:x-user", func(i int) *Head { return headed("X-User", fmt.Sprint(i)) },
			func(i int) *Head { return headed("X-User", fmt.Sprint(i), "second") },
		},
		{
			"cookie:sid", func(i int) *Head { return headed("Cookie", fmt.Sprintf("sid=%d", i)) },
			func(i int) *Head { return headed("Cookie", "a=1;sid=", fmt.Sprintf(" sid=%d ;sid=9", i)) },
		},
		{
			"header:host", func(i int) *Head { return &Head{Host: fmt.Sprint(i)} },
			func(i int) *Head { return &Head{Host: fmt.Sprint(i), Client: clientAddr(i)} },
		},
	} {
		v, n := sharing(5000, "s", c.key), 0
		for i := range 1000 {
			a := v.gives(c.a(i))
			if a != v.gives(c.b(i)) {
				t.Fatalf("%s: key %d has two answers", c.key, i)
			}
			if a {
				n++
			}
		}
		if !within(n, 1000, 0.5) {
			t.Errorf("%s: %d of 1000", c.key, n)
		}
	}
}

func TestTesters(t *testing.T) {
	for _, c := range []struct {
		name  string
		match Match
		head  *Head
		want  bool
	}{
		{"none", Match{}, headed("X-Test", "1"), false},
		{"value without a name", Match{Value: "1"}, headed("X-Test", "1"), false},
		{"header", Match{Header: "x-test"}, headed("X-Test", ""), true},
		{"header absent", Match{Header: "x-test"}, headed("X-Other", "1"), false},
		{"no header at all", Match{Header: "x-test"}, &Head{}, false},
		{"header's value", Match{Header: "X-Test", Value: "b"}, headed("X-Test", "a", "b"), true},
		{"another value", Match{Header: "X-Test", Value: "b"}, headed("X-Test", "a", "bb"), false},
		{"host", Match{Header: "host", Value: "t.example"}, &Head{Host: "t.example"}, true},
		{"another host", Match{Header: "Host", Value: "t.example"}, &Head{Host: "example"}, false},
		{"cookie", Match{Cookie: "test"}, headed("Cookie", "a=1; test=; b=2"), true},
		{"cookie absent", Match{Cookie: "test"}, headed("Cookie", "a=test; Test=1; test"), false},
		{"cookie's value", Match{Cookie: "test", Value: "2"}, headed("Cookie", "test=1; test=2"), true},
		{"another cookie's value", Match{Cookie: "test", Value: "2"}, headed("Cookie", "test=1; test=22"), false},
	} {
		for _, permyriad := range []int{0, 5000} {
			v := newServed(&Serving{Stable: &Engine{}, Candidate: &Engine{}, Permyriad: permyriad, Key: "header:absent", Match: c.match})
			if got := v.gives(c.head); got != c.want {
				t.Errorf("%s, at a share of %d: %v", c.name, permyriad, got)
			}
		}
	}
	if v := newServed(&Serving{Stable: &Engine{}, Match: Match{Header: "X-Test"}}); v.engineFor(headed("X-Test", "1")) != v.Stable {
		t.Error("a tester without a candidate")
	}
}

// TestKeysAreThoseAsked: each side's set has the keys it was asked by, and
// nobody else's, and is of the newest Swap.
func TestKeysAreThoseAsked(t *testing.T) {
	s := NewSwitch(FrontOptions{})
	if st, ca := s.Keys(); st != (analysis.KeySet{}) || ca != st {
		t.Error("keys of nobody")
	}
	v := &Serving{Stable: &Engine{}, Candidate: &Engine{}, Permyriad: 500, Salt: "s", Key: "cookie:sid", Match: Match{Header: "X-Test"}}
	s.Swap(v)
	now := s.serving.Load()
	var want [2]analysis.KeySet
	const keys = 4000
	n := 0
	for i := range keys {
		h := headed("Cookie", fmt.Sprintf("sid=%d", i))
		hash, _ := now.keyOf(h)
		for range 3 {
			if now.gives(h) {
				want[1].Add(hash)
			} else {
				want[0].Add(hash)
			}
		}
		if now.gives(h) {
			n++
		}
	}
	now.engineFor(headed("X-Test", "tester"))
	now.engineFor(headed("X-Other", "no key"))
	st, ca := s.Keys()
	if st != want[0] || ca != want[1] {
		t.Error("the sets are not of the keys that asked")
	}
	for _, side := range []struct {
		set  analysis.KeySet
		want int
	}{{st, keys - n}, {ca, n}} {
		if got, full := side.set.Estimate(); full || math.Abs(got-float64(side.want)) > 0.05*float64(side.want) {
			t.Errorf("estimated %.0f keys, there were %d", got, side.want)
		}
	}
	for _, permyriad := range []int{500, 0, 10000} {
		again := *v
		again.Permyriad = permyriad
		s.Swap(&again)
		if permyriad != 500 {
			s.serving.Load().engineFor(headed("Cookie", "sid=1"))
		}
		if st, ca := s.Keys(); st != (analysis.KeySet{}) || ca != st {
			t.Errorf("keys after a swap to %d", permyriad)
		}
	}
}

// TestChoosingAllocatesNothing, however names are written.
func TestChoosingAllocatesNothing(t *testing.T) {
	for _, form := range keyForms {
		h := form.head(12345)
		v := newServed(&Serving{Stable: &Engine{}, Candidate: &Engine{}, Permyriad: 5000, Key: form.key, Match: Match{Header: "x-test", Cookie: "test"}})
		if n := testing.AllocsPerRun(100, func() { v.engineFor(h) }); n != 0 {
			t.Errorf("key %q: %v allocations", form.key, n)
		}
	}
}

func BenchmarkShare(b *testing.B) {
	for _, form := range keyForms[1:] {
		b.Run(form.key, func(b *testing.B) {
			v, h := sharing(5000, "s", form.key), form.head(12345)
			b.ReportAllocs()
			for b.Loop() {
				v.engineFor(h)
			}
		})
	}
}
