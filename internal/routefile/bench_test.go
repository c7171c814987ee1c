package routefile

import (
	"fmt"
	"testing"

	"routerd.dev/internal/route"
)

// BenchmarkParse reads a module of 10,000 routes.
func BenchmarkParse(b *testing.B) {
	m := &route.Module{Name: "big", Upstreams: []route.Upstream{{Name: "u", Targets: []route.Target{{URL: "http://u"}}}}}
	for i := range 10_000 {
		m.Routes = append(m.Routes, route.Route{
			Hosts: []string{"a.example.com"}, Methods: []string{"GET"}, Path: fmt.Sprintf("/users/%d/{id}", i),
			Action: route.Action{Proxy: &route.Proxy{Upstream: "u"}},
		})
	}
	route.NormalizeModule(m)
	for name, encode := range map[string]func(*route.Module) ([]byte, error){"yaml": Encode, "json": EncodeJSON} {
		data, err := encode(m)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if _, ps := Parse([]File{{Name: "big." + name, Data: data}}); len(ps) > 0 {
					b.Fatal(ps)
				}
			}
		})
	}
}
