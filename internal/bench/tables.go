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

// words are what the paths of teams are made of.
const words = `account address agent alert archive article asset audit badge balance bank basket batch bill booking branch bucket
budget campaign card carrier cart case catalog category channel charge claim client cluster comment company contact contract coupon course
credit customer device discount dispute document domain draft driver event export feature feed fee file filter folder form fulfilment gallery
gift grant group guest history image import inbox incident index invoice issue item job journal key label lead ledger letter license limit
link location log map market meeting member menu merchant message meter metric mission model module node note notice offer option order
organisation owner package page partner patient payment payout period permission person phone photo pipeline plan point policy portfolio
price product profile project promotion property provider quota quote rate receipt record refund region release reminder report request
reservation review reward role room route rule sale sample schedule scope search segment seller sensor session setting shift shipment shop
signal site slot snapshot source stage statement station status store stream subscription supplier survey tag target task tax team template
tenant territory ticket token topic track transfer trip unit upload user vehicle vendor version visit voucher wallet warehouse webhook zone`

// manyTeams is a table of modules with hosts, upstreams and a route test of
// their own. No two teams have the same paths, as in life.
func manyTeams(modules, hosts, routes int) *route.Table {
	vocabulary := strings.Fields(words)
	var all []*route.Module
	for m := range modules {
		dice := rand.New(rand.NewPCG(uint64(m), 1))
		word := func() string { return vocabulary[dice.IntN(len(vocabulary))] }
		mod := &route.Module{Name: fmt.Sprintf("%s-%03d", word(), m)}
		for _, service := range []string{"read", "write", "batch"} {
			u := route.Upstream{Name: service}
			for target := range 2 {
				u.Targets = append(u.Targets, route.Target{URL: fmt.Sprintf("http://%s-%d.team%d.internal:8080", service, target, m)})
			}
			mod.Upstreams = append(mod.Upstreams, u)
		}
		for h := range hosts {
			host := fmt.Sprintf("%s-%d.team%d.example.com", word(), h, m)
			for i := 0; i < routes/hosts; i++ {
				thing := fmt.Sprintf("%s-%s", word(), word())
				path := fmt.Sprintf("/v%d/%s/%s%d", 1+dice.IntN(3), word(), thing, i)
				at := dice.IntN(4)
				path += []string{"", "/{id}", "/{id}/" + word(), "/{id}/" + word() + "/{" + word() + "}"}[at]
				mod.Routes = append(mod.Routes, route.Route{
					Name: fmt.Sprintf("%s-%d-%d", thing, h, i), Hosts: []string{host}, Methods: []string{[]string{"GET", "POST", "PUT", "DELETE"}[dice.IntN(4)]},
					Path: path, Action: route.Action{Proxy: &route.Proxy{Upstream: mod.Upstreams[dice.IntN(3)].Name}},
				})
			}
		}
		r := &mod.Routes[0]
		mod.Tests = []route.Test{{
			Name: "first", Method: r.Methods[0], URL: "http://" + r.Hosts[0] + strings.NewReplacer("{", "a", "}", "b").Replace(r.Path), Route: r.Name,
		}}
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
