package main

import (
	"fmt"
	"net/http"

	"routerd.dev/internal/route"
)

// teams is a table of modules, each with hosts, upstreams and a test of its
// own. The change-th version differs in one route of one module.
func teams(modules, routes, change int) *route.Table {
	t := &route.Table{}
	for n := range modules {
		m := &route.Module{Name: fmt.Sprintf("team-%02d", n)}
		for _, kind := range []string{"read", "write"} {
			u := route.Upstream{Name: kind}
			for target := range 2 {
				u.Targets = append(u.Targets, route.Target{URL: fmt.Sprintf("http://%s-%d.team%d.internal:8080", kind, target, n)})
			}
			m.Upstreams = append(m.Upstreams, u)
		}
		for i := range routes / modules {
			path := fmt.Sprintf("/v1/resource-%d-%d", n, i) + []string{"", "/items/{id}", "/items/{id}/state"}[i%3]
			if i == 0 && n == 0 && change > 0 {
				path += fmt.Sprintf("/changed-%d", change)
			}
			m.Routes = append(m.Routes, route.Route{
				Name: fmt.Sprintf("r%d", i), Hosts: []string{fmt.Sprintf("api-%d.team%d.example.com", i%4, n)}, Methods: []string{http.MethodGet},
				Path: path, Action: route.Action{Proxy: &route.Proxy{Upstream: m.Upstreams[i%2].Name}},
			})
		}
		t.Modules = append(t.Modules, m)
	}
	route.Normalize(t)
	return t
}
