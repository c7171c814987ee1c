package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"routerd.dev/internal/route"
)

const benchHost = "api.example.com"

// restPaths is n paths such as a fleet of REST services has, a third of them
// without parameters. Gin can hold them all in one tree.
func restPaths(n int) []string {
	paths := make([]string, 0, n+5)
	for i := 0; len(paths) < n; i++ {
		base := fmt.Sprintf("/api/service-%d/v1/resource%d", i/50, i)
		paths = append(paths,
			base, base+"/search",
			base+"/items/{id}", base+"/items/{id}/state", base+"/owners/{owner}/items/{item}", base+"/owners/{owner}/items/{item}/history")
	}
	return paths[:n]
}

// restRequests are 2,048 request paths of one kind, in no order that a
// processor could learn by heart: as from many clients.
func restRequests(paths []string, kind string) []string {
	dice := rand.New(rand.NewPCG(1, 2))
	asked := make([]string, 2048)
	for i := range asked {
		base := paths[dice.IntN(len(paths)/6)*6]
		switch kind {
		case "literal":
			asked[i] = base
		case "parameter":
			asked[i] = base + "/owners/alice/items/12345"
		case "miss":
			asked[i] = base + "/unknown"
		}
	}
	return asked
}

// ginForm writes {name} as :name.
func ginForm(path string) string {
	return strings.NewReplacer("{", ":", "}", "").Replace(path)
}

func respond(body string) route.Action {
	return route.Action{Respond: &route.Respond{Status: 200, Body: body}}
}

// oneHost is a table of one module whose routes are paths on benchHost.
func oneHost(paths []string, action route.Action) *route.Table {
	m := &route.Module{Name: "bench"}
	for i, p := range paths {
		m.Routes = append(m.Routes, route.Route{
			Name: fmt.Sprintf("r%d", i), Hosts: []string{benchHost}, Methods: []string{"GET"}, Path: p, Action: action,
		})
	}
	return normalized(m)
}

func normalized(modules ...*route.Module) *route.Table {
	t := &route.Table{Modules: modules}
	route.Normalize(t)
	return t
}

// manyTeams is a table of modules with hosts of their own and a route test
// each.
func manyTeams(modules, hosts, routes int) *route.Table {
	var all []*route.Module
	for m := range modules {
		mod := &route.Module{Name: fmt.Sprintf("team-%03d", m)}
		for h := range hosts {
			for i, p := range restPaths(routes / hosts) {
				mod.Routes = append(mod.Routes, route.Route{
					Name: fmt.Sprintf("h%d-r%d", h, i), Hosts: []string{fmt.Sprintf("h%d.team%d.example.com", h, m)},
					Methods: []string{"GET"}, Path: p, Action: respond(""),
				})
			}
		}
		mod.Tests = []route.Test{{Name: "first", Method: "GET", URL: fmt.Sprintf("http://h0.team%d.example.com/api/service-0/v1/resource0", m), Route: "h0-r0"}}
		all = append(all, mod)
	}
	return normalized(all...)
}

// withOneChanged is t with the path of one route of one module changed; n makes
// the change another one. All other modules are the same.
func withOneChanged(t *route.Table, n int) *route.Table {
	at := n % len(t.Modules)
	m := *t.Modules[at]
	m.Routes = slices.Clone(m.Routes)
	m.Routes[len(m.Routes)/2].Path += fmt.Sprintf("/changed-%d", n)
	next := &route.Table{Modules: slices.Clone(t.Modules)}
	next.Modules[at] = &m
	route.NormalizeModule(&m)
	return next
}
