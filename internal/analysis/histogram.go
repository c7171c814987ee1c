package analysis

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"math/bits"
	"time"
)

// A Histogram counts durations in buckets that grow by a quarter of a power of
// two each (by 14 to 25 %): bucket i holds what is at most Bound(i), the last one
// everything longer. Histograms are merged by adding.
type Histogram [Buckets]uint64

// Buckets is how many buckets a Histogram has: from 32 µs to 134 s.
const Buckets = 4*22 + 2

const firstOctave = 5 // the first bucket ends at 2^5 µs

// Bound is the upper end of bucket i; that of the last one is a day.
func (Histogram) Bound(i int) time.Duration {
	if i >= Buckets-1 {
		return 24 * time.Hour
	}
	base := time.Microsecond << (firstOctave + i/4)
	return base + base/4*time.Duration(i%4)
}

// BucketOf tells in which bucket d is counted.
func BucketOf(d time.Duration) int {
	if d <= time.Microsecond<<firstOctave {
		return 0
	}
	us := uint64((d - 1) / time.Microsecond) // what is at a bound belongs to it
	exp := bits.Len64(us) - 1
	quarter := int(us >> (exp - 2) & 3)
	return min(4*(exp-firstOctave)+1+quarter, Buckets-1)
}

// Count is how many durations were counted.
func (h *Histogram) Count() uint64 {
	var n uint64
	for _, v := range h {
		n += v
	}
	return n
}

// Quantile returns a duration that the part q of what was counted does not
// exceed: the end of its bucket. Zero when nothing was counted.
func (h *Histogram) Quantile(q float64) time.Duration {
	n := h.Count()
	if n == 0 {
		return 0
	}
	want := uint64(q * float64(n))
	var seen uint64
	for i, v := range h {
		if seen += v; seen > want || seen == n {
			return h.Bound(i)
		}
	}
	return h.Bound(Buckets - 1)
}

// MarshalJSON writes the buckets that are not empty, as [index, count] pairs.
func (h Histogram) MarshalJSON() ([]byte, error) {
	pairs := make([][2]uint64, 0, 16)
	for i, n := range h {
		if n > 0 {
			pairs = append(pairs, [2]uint64{uint64(i), n})
		}
	}
	return json.Marshal(pairs)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (h *Histogram) UnmarshalJSON(b []byte) error {
	var pairs [][2]uint64
	if err := json.Unmarshal(b, &pairs); err != nil {
		return fmt.Errorf("histogram: want pairs of bucket and count: %w", err)
	}
	*h = Histogram{}
	for _, p := range pairs {
		if p[0] >= Buckets {
			return fmt.Errorf("histogram: bucket %d: there are %d", p[0], Buckets)
		}
		h[p[0]] += p[1]
	}
	return nil
}

// A KeySet estimates how many distinct keys were seen, by linear counting (Whang,
// Vander-Zanden and Taylor, 1990). Sets are merged by or.
type KeySet [keyWords]uint64

const (
	keyWords = 128
	keyBits  = 64 * keyWords
)

// Add counts a key by its hash, which must be uniform.
func (k *KeySet) Add(hash uint64) { k[hash%keyBits/64] |= 1 << (hash % 64) }

// Merge adds the keys of o.
func (k *KeySet) Merge(o *KeySet) {
	for i, w := range o {
		k[i] |= w
	}
}

// Estimate is how many distinct keys were added, and whether the set is too
// full to tell: from about 25,000 keys on.
func (k *KeySet) Estimate() (n float64, full bool) {
	set := 0
	for _, w := range k {
		set += bits.OnesCount64(w)
	}
	if free := keyBits - set; free > keyBits/20 {
		return -keyBits * math.Log(float64(free)/keyBits), false
	}
	return keyBits * math.Log(20), true
}

// MarshalText writes the set in base64.
func (k KeySet) MarshalText() ([]byte, error) {
	b := make([]byte, 0, keyBits/8)
	for _, w := range k {
		for i := range 8 {
			b = append(b, byte(w>>(8*i)))
		}
	}
	return []byte(base64.RawStdEncoding.EncodeToString(b)), nil
}

// UnmarshalText reads what MarshalText writes.
func (k *KeySet) UnmarshalText(text []byte) error {
	b, err := base64.RawStdEncoding.DecodeString(string(text))
	if err != nil || len(b) != keyBits/8 {
		return fmt.Errorf("key set: want %d bytes in base64", keyBits/8)
	}
	for i := range k {
		k[i] = 0
		for j := range 8 {
			k[i] |= uint64(b[8*i+j]) << (8 * j)
		}
	}
	return nil
}
