package version

import (
	"context"
	"fmt"
	"maps"
	"testing"
)

var benchSizes = []int{1_000, 10_000, 100_000}

func BenchmarkEncode(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			t := largeTable(n)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Encode(t); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkPack(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, err := Encode(largeTable(n))
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				packed := len(s.PackedManifest())
				for _, p := range s.Chunks() {
					packed += len(p)
				}
				b.ReportMetric(float64(packed), "packed-B")
				b.ReportMetric(float64(len(s.Manifest.Chunks())), "chunks")
			}
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	for _, n := range benchSizes {
		s, err := Encode(largeTable(n))
		if err != nil {
			b.Fatal(err)
		}
		f := MapFetcher(maps.Collect(s.Chunks()))
		b.Run(fmt.Sprintf("cold/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			c := NewCache(0)
			for b.Loop() {
				if _, _, err := Load(context.Background(), s.Digest, s.ManifestBytes, f, c); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("unchanged/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			c := NewCache(1000)
			for b.Loop() {
				if _, _, err := Load(context.Background(), s.Digest, s.ManifestBytes, f, c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDecode is the codec alone: no zstd, no SHA-256.
func BenchmarkDecode(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, err := Encode(largeTable(n))
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				for i := range s.Manifest.Modules {
					e := &s.Manifest.Modules[i]
					d := newModuleReader(e.Name, e.Routes)
					for _, c := range e.Chunks {
						if err := d.chunk(string(s.chunks[c.Digest])); err != nil {
							b.Fatal(err)
						}
					}
					if _, err := d.module(); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
