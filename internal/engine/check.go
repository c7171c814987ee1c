package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"routerd.dev/internal/route"
	"routerd.dev/internal/version"
)

// Check says everything that is wrong or doubtful about a normalized table:
// what route.Validate says, the middlewares' configs, what Compile says, and
// the route tests. It is what validate and publish call, and Compile and
// RunTests, which each instance's prepare calls, are part of it: what it
// accepts is accepted by every instance of the same build (I7), but for what
// only an instance can know, such as files that a definition names.
func Check(t *route.Table) route.Problems {
	problems := route.Validate(t)
	e, err := Compile(context.Background(), version.Ref{}, t, nil, Options{})
	var found route.Problems
	switch {
	case errors.As(err, &found):
		problems = merge(problems, found)
	case err != nil:
		problems = append(problems, route.Problem{Message: err.Error()})
	case len(problems.Errors()) == 0:
		problems = append(problems, e.RunTests()...)
	}
	return problems
}

// merge adds what was found later to the problems, but for what stands under a
// field that has one: it is the same mistake seen twice.
func merge(problems, later route.Problems) route.Problems {
	type place struct{ module, field string }
	known := map[place]bool{}
	for _, p := range problems.Errors() {
		for f := p.Field; f != ""; {
			known[place{p.Module, f}] = true
			i := strings.LastIndexByte(f, '.')
			if i < 0 {
				break
			}
			f = f[:i]
		}
	}
	for _, p := range later {
		if !known[place{p.Module, p.Field}] {
			problems = append(problems, p)
		}
	}
	return problems
}

// RunTests runs the route tests of all modules. A problem stands at its test.
func (e *Engine) RunTests() route.Problems {
	var problems route.Problems
	var d Decision
	for _, p := range e.parts {
		for i := range p.module.Tests {
			t := &p.module.Tests[i]
			field, message, hint := e.runTest(p.module, t, &d)
			if message == "" {
				continue
			}
			at := fmt.Sprintf("tests[%d]", i)
			if field != "" {
				at += "." + field
			}
			name := t.Name
			if name == "" {
				name = t.Method + " " + t.URL
			}
			problems = append(problems, route.Problem{
				Module: p.module.Name, Field: at, Place: p.module.Source.Place(at),
				Message: fmt.Sprintf("test %s: %s", name, message), Hint: hint,
			})
		}
	}
	return problems
}

// runTest says what is not as the test expects, in which field; an empty
// message when all is.
func (e *Engine) runTest(m *route.Module, t *route.Test, d *Decision) (field, message, hint string) {
	h := TestHead(t)
	e.Decide(&h, d)
	want := t.Route
	if want != "" && !strings.Contains(want, "/") {
		want = m.Name + "/" + want
	}
	got := describe(d)
	hint = fmt.Sprintf("routectl explain %s %s says why", t.Method, t.URL)
	switch {
	case want != "" && d.Name != want:
		return "route", fmt.Sprintf("want route %s, got %s", want, got), hint
	case want == "" && t.Status != 0 && d.Status != t.Status:
		return "status", fmt.Sprintf("want status %d, got %s", t.Status, got), hint
	}
	params := map[string]string{}
	for _, p := range d.Params {
		params[p.Name] = p.Value
	}
	for i, p := range t.Params {
		if v, ok := params[p.Name]; !ok {
			return fmt.Sprintf("params[%d]", i), fmt.Sprintf("want parameter %s = %q, %s has %v", p.Name, p.Value, got, slices.Sorted(maps.Keys(params))), ""
		} else if v != p.Value {
			return fmt.Sprintf("params[%d]", i), fmt.Sprintf("want parameter %s = %q, got %q", p.Name, p.Value, v), ""
		}
	}
	return "", "", ""
}

func describe(d *Decision) string {
	if d.Status == 0 {
		return "route " + d.Name
	}
	if d.Fault != nil {
		return fmt.Sprintf("%d, %s", d.Status, d.Fault)
	}
	return fmt.Sprintf("%d", d.Status)
}

// TestHead is the request of a route test.
func TestHead(t *route.Test) Head {
	h := HeadOf(t.Method, t.URL)
	header := http.Header{}
	for _, f := range t.Headers {
		if f.Name == "Host" {
			h.Host = f.Value
			continue
		}
		header.Add(f.Name, f.Value)
	}
	h.Header, h.Client = header, t.Client
	return h
}

// HeadOf makes a Head of a method and a URL: an absolute one, or a path and
// query for a request without a host. A fragment is left out, as clients do.
func HeadOf(method, url string) Head {
	h := Head{Method: method, Header: http.Header{}, Client: netip.Addr{}}
	if i := strings.IndexByte(url, '#'); i >= 0 {
		url = url[:i]
	}
	if scheme, rest, ok := strings.Cut(url, "://"); ok && !strings.Contains(scheme, "/") {
		url = ""
		h.Host = rest
		if i := strings.IndexAny(rest, "/?"); i >= 0 {
			h.Host, url = rest[:i], rest[i:]
		}
	}
	h.Path, h.RawQuery, _ = strings.Cut(url, "?")
	if h.Path == "" {
		h.Path = "/"
	}
	h.Host = route.FoldHost(h.Host)
	return h
}
