package analysis

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestBuckets: each duration is at most its bucket's bound and longer than the
// one before, and bounds grow by 14 to 25 %.
func TestBuckets(t *testing.T) {
	var h Histogram
	for i := 1; i < Buckets-1; i++ {
		if grow := float64(h.Bound(i)) / float64(h.Bound(i-1)); grow < 1.14 || grow > 1.2501 {
			t.Errorf("bucket %d is %.3f times as long as the one before", i, grow)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(-5, int64(10*time.Minute)).Draw(t, "d"))
		if rapid.Bool().Draw(t, "at a bound") {
			d = h.Bound(rapid.IntRange(0, Buckets-2).Draw(t, "bucket")) + time.Duration(rapid.IntRange(-1, 1).Draw(t, "off"))
		}
		i := BucketOf(d)
		if d > h.Bound(i) || i > 0 && d <= h.Bound(i-1) {
			t.Fatalf("%d ns is in bucket %d, which ends at %d ns", d, i, h.Bound(i))
		}
	})
}

// TestQuantiles: the estimate lies in the bucket of the true quantile.
func TestQuantiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 300).Draw(t, "n")
		var h Histogram
		for range n {
			h[rapid.IntRange(0, Buckets-1).Draw(t, "bucket")]++
		}
		c := cumulate(&h)
		last := 0.0
		for _, q := range []float64{0.1, 0.5, 0.9, 0.99, 1} {
			s, bucket := c.quantile(q)
			low, high := bounds(bucket)
			if s < low*(1-1e-9) || s > high*(1+1e-9) || s < last*(1-1e-9) {
				t.Fatalf("quantile %g is %g s, bucket %d of %g to %g, the one before %g", q, s, bucket, low, high, last)
			}
			before := 0.0
			if bucket > 0 {
				before = c.upTo[bucket-1]
			}
			if q*c.n < before || q*c.n > c.upTo[bucket] {
				t.Fatalf("quantile %g of %d is not in bucket %d", q, n, bucket)
			}
			last = s
		}
	})
}

// TestLatencyIsAnAverageOverBounds: where one bound tells the sides apart, its
// evidence counts as one of all bounds.
func TestLatencyIsAnAverageOverBounds(t *testing.T) {
	var st, ca Histogram
	st[20], st[21], ca[20], ca[21] = 900, 100, 200, 100
	a, b := cumulate(&st), cumulate(&ca)
	got, bad := slower(&a, &b, 20, 21)
	if want := logEvidence(100, 1000, 100, 300) - math.Log(Buckets-1); math.Abs(got-want) > 1e-9 || bad != 100 {
		t.Errorf("evidence %g of %g slow ones, want %g of 100", got, bad, want)
	}
}

func TestHistogramRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h, back Histogram
		for range rapid.IntRange(0, 10).Draw(t, "buckets") {
			h[rapid.IntRange(0, Buckets-1).Draw(t, "bucket")] = rapid.Uint64().Draw(t, "count")
		}
		text, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		back[3] = 7 // what was there before must go
		if err := json.Unmarshal(text, &back); err != nil || back != h {
			t.Fatalf("%s: %v: %v", text, err, back)
		}
	})
}

func TestKeySetRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var k, back KeySet
		for _, hash := range rapid.SliceOf(rapid.Uint64()).Draw(t, "hashes") {
			k.Add(hash)
		}
		text, err := json.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &back); err != nil || back != k {
			t.Fatalf("%s: %v", text, err)
		}
	})
}

// TestKeySetEstimate: within five times its error, and full when it is.
func TestKeySetEstimate(t *testing.T) {
	for _, n := range []int{0, 1, 100, 3000, 10000, 20000, 23000, 60000} {
		k := keys(n, 3)
		got, full := k.Estimate()
		if full != (n > 25000) {
			t.Errorf("%d keys: full %v", n, full)
		}
		if off := math.Abs(got - float64(n)); !full && off > 1+5*math.Sqrt(countingNoise(float64(n))) {
			t.Errorf("%d keys: estimated %.0f", n, got)
		}
	}
}

func FuzzHistogramUnmarshalJSON(f *testing.F) {
	for _, seed := range []string{`[]`, `[[0,1],[89,2]]`, `[[90,1]]`, `[[3,1],[3,18446744073709551615]]`, `null`, `[[1]]`, `{}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var h, again Histogram
		if json.Unmarshal(b, &h) != nil {
			return
		}
		text, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &again); err != nil || again != h {
			t.Fatalf("%s: %v", text, err)
		}
	})
}

func FuzzKeySetUnmarshalText(f *testing.F) {
	text, err := KeySet{1, 2}.MarshalText()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("AAAA"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var k, again KeySet
		if k.UnmarshalText(b) != nil {
			return
		}
		text, err := k.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		if err := again.UnmarshalText(text); err != nil || again != k {
			t.Fatalf("%s: %v", text, err)
		}
	})
}
