package engine

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"routerd.dev/internal/route"
)

func cost(t *testing.T, what string, e *Engine, h *Head) {
	var d Decision
	e.Decide(h, &d)
	n := 0
	began := time.Now()
	for time.Since(began) < 300*time.Millisecond {
		e.Decide(h, &d)
		n++
	}
	t.Logf("%-40s %10v status %d %s", what, time.Since(began)/time.Duration(n), d.Status, d.Name)
}

func build(t *testing.T, routes ...route.Route) *Engine {
	m := &route.Module{Name: "m", Routes: routes}
	table := &route.Table{Modules: []*route.Module{m}}
	route.Normalize(table)
	began := time.Now()
	ps := route.Validate(table).Errors()
	t.Logf("validate %v", time.Since(began))
	if len(ps) > 0 {
		t.Log(ps[0])
	}
	began = time.Now()
	e, err := Compile(context.Background(), testRef(1), table, nil, Options{})
	t.Logf("compile %v", time.Since(began))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

type hdr map[string][]string

func (h hdr) Values(n string) []string { return h[n] }

func TestMeasure(t *testing.T) {
	// host of dots
	e := build(t, route.Route{Name: "w", Hosts: []string{"*.test"}, Path: "/", Action: respond("")})
	cost(t, "host of dots 60k", e, &Head{Method: "GET", Host: strings.Repeat("a.", 30000) + "x", Path: "/"})

	// queries
	for _, n := range []int{100, 1000} {
		var rs []route.Route
		for i := range n {
			rs = append(rs, route.Route{Name: fmt.Sprint("r", i), Path: "/x", Query: []route.Condition{{Name: fmt.Sprint("q", i), Op: route.OpEqual, Value: "1"}}, Action: respond("")})
		}
		e = build(t, rs...)
		cost(t, fmt.Sprintf("%d query conditions, 60k query", n), e, &Head{Method: "GET", Path: "/x", RawQuery: strings.Repeat("a&", 30000)})
	}
	// regexps
	for _, expr := range []string{`.*(a|b|c|d|e|f)*x.{0,900}y`, `(x+x+)+y`, strings.Repeat("(.*)", 100) + "z", `[a-z]*(?i:[a-m]{1,300}[n-z]{1,300}){1,3}q`} {
		if _, _, err := route.CompileRegexp(expr); err != nil {
			t.Log(expr[:10], err)
			continue
		}
		e = build(t, route.Route{Name: "r", Path: "/x", Headers: []route.Condition{{Name: "X", Op: route.OpRegexp, Value: expr}}, Action: respond("")})
		for _, l := range []int{4 << 10, 60 << 10} {
			cost(t, fmt.Sprintf("regexp %.20s on %d", expr, l), e, &Head{Method: "GET", Path: "/x", Header: hdr{"X": {strings.Repeat("x", l)}}})
		}
	}
	// trees
	var rs []route.Route
	for n := 10; n <= 64; n++ {
		for mask := range 64 {
			p := ""
			for i := range n {
				if i < 6 && mask>>i&1 == 1 {
					p += fmt.Sprintf("/{p%d}", i)
				} else {
					p += "/a"
				}
			}
			rs = append(rs, route.Route{Name: fmt.Sprintf("r%d-%d", n, mask), Prefix: p, Action: respond("")})
		}
	}
	e = build(t, rs...)
	cost(t, "3520 trees, 64 segments miss", e, &Head{Method: "GET", Path: strings.Repeat("/a", 9) + "/b" + strings.Repeat("/a", 54)})
	cost(t, "3520 trees, 64 segments miss late", e, &Head{Method: "POST", Path: strings.Repeat("/b", 64)})

	// mixed
	rs = nil
	for i := range 1024 {
		p := "/"
		for j := range 40 {
			p += fmt.Sprintf("{p%d}a", j)
		}
		rs = append(rs, route.Route{Name: fmt.Sprint("m", i), Path: p + fmt.Sprintf("z%d", i), Action: respond("")})
	}
	e = build(t, rs...)
	cost(t, "1024 mixed", e, &Head{Method: "GET", Path: "/" + strings.Repeat("xa", 4000)})
	cost(t, "1024 mixed, escapes", e, &Head{Method: "GET", Path: "/" + strings.Repeat("%C3%AA", 1300)})
	cost(t, "deep path", e, &Head{Method: "GET", Path: strings.Repeat("/a", 4000)})
	cost(t, "nested", e, &Head{Method: "GET", Path: "/" + strings.Repeat("%25", 2700)})
}
