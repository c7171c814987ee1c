package version

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"routerd.dev/internal/route"
)

// Compose returns base with mods in place of their namesakes, or only mods
// when all is set. Base may be nil. Of two mods with one name the later counts.
// The modules are shared with base and mods, which stay as they are.
func Compose(base *route.Table, mods []*route.Module, all bool) *route.Table {
	byName := map[string]*route.Module{}
	if base != nil && !all {
		for _, m := range base.Modules {
			byName[m.Name] = m
		}
	}
	for _, m := range mods {
		byName[m.Name] = m
	}
	t := &route.Table{}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		t.Modules = append(t.Modules, byName[name])
	}
	return t
}

// Shrink returns why going from a to b asks for --allow-shrink, none when it
// does not: it takes away every route, more than a third of them, or all
// routes of a host. A route is taken away when neither its name nor what it
// matches is left, so renaming takes nothing away. Nil stands for the empty
// table.
func Shrink(a, b *route.Table) []string {
	left := survey(b)
	total, gone := 0, 0
	hosts := map[string]int{}
	for m, rt := range routesOf(a) {
		total++
		if !left.names[routeName(m, rt)] && !left.matches[matchOf(rt)] {
			gone++
		}
		for _, h := range hostsOf(rt) {
			hosts[h]++
		}
	}
	var why []string
	switch {
	case total > 0 && left.routes == 0:
		return []string{fmt.Sprintf("it removes every route (%d)", total)}
	case 3*gone > total:
		why = append(why, fmt.Sprintf("it removes %d of %d routes, more than a third", gone, total))
	}
	for _, h := range slices.Sorted(maps.Keys(hosts)) {
		switch {
		case left.hosts[h]:
		case h == "":
			why = append(why, fmt.Sprintf("it removes all %d routes for any host", hosts[h]))
		default:
			why = append(why, fmt.Sprintf("it removes all %d routes of host %s", hosts[h], h))
		}
	}
	return why
}

type tableSurvey struct {
	routes                int
	names, matches, hosts map[string]bool
}

func survey(t *route.Table) tableSurvey {
	s := tableSurvey{names: map[string]bool{}, matches: map[string]bool{}, hosts: map[string]bool{}}
	for m, rt := range routesOf(t) {
		s.routes++
		s.names[routeName(m, rt)] = true
		s.matches[matchOf(rt)] = true
		for _, h := range hostsOf(rt) {
			s.hosts[h] = true
		}
	}
	return s
}

func routesOf(t *route.Table) func(yield func(*route.Module, *route.Route) bool) {
	return func(yield func(*route.Module, *route.Route) bool) {
		if t == nil {
			return
		}
		for _, m := range t.Modules {
			for i := range m.Routes {
				if !yield(m, &m.Routes[i]) {
					return
				}
			}
		}
	}
}

func routeName(m *route.Module, rt *route.Route) string { return m.Name + "/" + rt.Name }

// matchOf is what a route matches by host, method and path.
func matchOf(rt *route.Route) string {
	return strings.Join(rt.Hosts, ",") + " " + strings.Join(rt.Methods, ",") + " " + rt.Path + " " + rt.Prefix
}

// hostsOf gives one empty host for a route of any.
func hostsOf(rt *route.Route) []string {
	if len(rt.Hosts) == 0 {
		return []string{""}
	}
	return rt.Hosts
}
