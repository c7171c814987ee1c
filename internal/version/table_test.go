package version

import (
	"fmt"

	"routerd.dev/internal/route"
)

// largeTable is the table of dataplane.md's figures: 100 modules (or fewer) of
// 1,000 routes on 10 hosts each.
func largeTable(routes int) *route.Table {
	t := &route.Table{}
	for left := routes; left > 0; left -= 1000 {
		m := &route.Module{
			Name:      fmt.Sprintf("team-%03d", len(t.Modules)),
			Upstreams: []route.Upstream{{Name: "api", Targets: []route.Target{{URL: "http://10.0.0.1:8080", Weight: 1}, {URL: "http://10.0.0.2:8080", Weight: 1}}}},
		}
		for i := range min(left, 1000) {
			r := route.Route{
				Name:    fmt.Sprintf("get-resource-%d", i),
				Hosts:   []string{fmt.Sprintf("h%d.team-%03d.example.com", i%10, len(t.Modules))},
				Methods: []string{[]string{"GET", "POST", "PUT", "DELETE"}[i%4]},
				Path:    fmt.Sprintf("/v1/%s/{id}/resource-%d/{sub}", []string{"users", "orders", "carts"}[i%3], i),
				Action:  route.Action{Proxy: &route.Proxy{Upstream: "api"}},
			}
			if i%10 == 0 {
				r.Middlewares = []route.Middleware{{Kind: "rateLimit", Config: `{"burst":20,"key":"client","per":"1s","rate":100}`}}
			}
			m.Routes = append(m.Routes, r)
		}
		t.Modules = append(t.Modules, m)
	}
	route.Normalize(t)
	return t
}
