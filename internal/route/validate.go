package route

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Validate reports everything that is wrong or doubtful about a normalized
// table, in the order of places, errors before warnings where no place is
// known. It does not change the table, and knows nothing of what the kinds of
// middleware ask of their config.
//
// Each problem names module, route and field. Fields are named as they stand in
// a route file: module; upstreams.NAME.targets[1].url, .timeouts.connect,
// .tls.serverName; middlewares.NAME.KIND.…; routes[2].path, .hosts[0],
// .headers[0].equal, .clients[0], .middlewares[0].KIND.…, .proxy.upstream,
// .respond.headers.NAME, .redirect.to; tests[0].request.url, .expect.route. The
// time it takes grows with the table's size, not with its square.
func Validate(t *Table) Problems {
	v := &validator{table: t, regexps: make(map[string]error), modules: make(map[string]*moduleIndex, len(t.Modules))}
	if !v.tableLimits() {
		return v.problems // the rest would take more time and memory than is allowed for
	}
	for _, m := range t.Modules {
		ix := v.index(m)
		if other := v.modules[m.Name]; other != nil {
			v.module(m, "module", fmt.Sprintf("the module %s stands twice in the table%s", m.Name, seenAt(other.module, "module")),
				"give one of them another name, or put their routes into one module")
		} else {
			v.modules[m.Name] = ix
		}
		v.indexes = append(v.indexes, ix)
	}
	for _, ix := range v.indexes {
		v.checkModule(ix)
	}
	v.checkRivals()
	v.checkContested()
	slices.SortStableFunc(v.problems, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.Place.File, b.Place.File),
			cmp.Compare(a.Place.Line, b.Place.Line), cmp.Compare(a.Place.Column, b.Place.Column))
	})
	if v.left > 0 {
		v.problems = append(v.problems, Problem{
			Message: fmt.Sprintf("%d more problems were found and are not listed", v.left),
			Hint:    "mend those above first",
		})
	}
	return v.problems
}

// validator is the state of one Validate.
type validator struct {
	table    *Table
	modules  map[string]*moduleIndex // by name
	indexes  []*moduleIndex          // as table.Modules
	regexps  map[string]error        // what CompileRegexp said of each expression
	problems Problems
	left     int // problems that were found over MaxProblems
}

// moduleIndex is what checking needs to look up in a module.
type moduleIndex struct {
	module      *Module
	number      int
	upstreams   map[string]bool // defined → used
	middlewares map[string]bool // defined → used
	routes      map[string]int  // index by name, the first of equal ones
	patterns    []Pattern       // of each route
	valid       []bool          // whether the pattern and all else that decides a match could be read
}

func (v *validator) index(m *Module) *moduleIndex {
	ix := &moduleIndex{
		module:      m,
		number:      len(v.indexes),
		upstreams:   make(map[string]bool, len(m.Upstreams)),
		middlewares: make(map[string]bool, len(m.Middlewares)),
		routes:      make(map[string]int, len(m.Routes)),
		patterns:    make([]Pattern, len(m.Routes)),
		valid:       make([]bool, len(m.Routes)),
	}
	for i := range m.Upstreams {
		ix.upstreams[m.Upstreams[i].Name] = false
	}
	for i := range m.Middlewares {
		ix.middlewares[m.Middlewares[i].Name] = false
	}
	for i := range m.Routes {
		if _, ok := ix.routes[m.Routes[i].Name]; !ok {
			ix.routes[m.Routes[i].Name] = i
		}
	}
	return ix
}

// seenAt names the place of a field, if it is known, for the end of a message.
func seenAt(m *Module, field string) string {
	if p := m.Source.Place(field).String(); p != "" {
		return ", first at " + p
	}
	return ""
}

func (v *validator) add(p Problem) {
	if len(v.problems) >= MaxProblems {
		v.left++
		return
	}
	v.problems = append(v.problems, p)
}

// module reports an error of a module's own field.
func (v *validator) module(m *Module, field, message, hint string) {
	v.add(Problem{Place: m.Source.Place(field), Module: m.Name, Field: field, Message: message, Hint: hint})
}

// warn reports a remark on a module's own field.
func (v *validator) warn(m *Module, field, message, hint string) {
	v.add(Problem{Severity: Warning, Place: m.Source.Place(field), Module: m.Name, Field: field, Message: message, Hint: hint})
}

// tableLimits tells whether the table has so few routes that each can be looked at.
func (v *validator) tableLimits() bool {
	routes, onHosts := 0, 0
	for _, m := range v.table.Modules {
		routes += len(m.Routes)
		for i := range m.Routes {
			onHosts += max(1, len(m.Routes[i].Hosts))
		}
	}
	if n := len(v.table.Modules); n > MaxModules {
		v.add(Problem{Message: fmt.Sprintf("the table has %d modules, more than %d", n, MaxModules), Hint: "join modules of one team"})
	}
	if routes > MaxRoutes {
		v.add(Problem{Message: fmt.Sprintf("the table has %d routes, more than %d", routes, MaxRoutes), Hint: "use another fleet for a part of them"})
	}
	if onHosts > MaxRoutesOnHosts {
		v.add(Problem{Message: fmt.Sprintf("the routes of the table have %d hosts together, more than %d", onHosts, MaxRoutesOnHosts), Hint: "use wildcards, or leave hosts out"})
	}
	return routes <= MaxRoutes && onHosts <= MaxRoutesOnHosts
}

func (v *validator) checkModule(ix *moduleIndex) {
	m := ix.module
	switch {
	case m.Name == "":
		v.module(m, "module", "the module has no name", "write module: and a name")
	case len(m.Name) > MaxModuleName || !validName(m.Name):
		v.module(m, "module", fmt.Sprintf("bad name %q", m.Name), nameHint(MaxModuleName))
	}
	for _, l := range []struct {
		field     string
		have, max int
	}{
		{"upstreams", len(m.Upstreams), MaxUpstreams},
		{"middlewares", len(m.Middlewares), MaxMiddlewares},
		{"tests", len(m.Tests), MaxTests},
	} {
		if l.have > l.max {
			v.module(m, l.field, fmt.Sprintf("there are %d, more than %d", l.have, l.max), "split the module")
		}
	}
	for i := range m.Routes {
		c := routeChecker{validator: v, ix: ix, i: i, r: &m.Routes[i]}
		c.check()
	}
	v.checkUpstreams(ix)
	v.checkNamedMiddlewares(ix)
	for i := range m.Tests {
		v.checkTest(ix, i)
	}
}

func (v *validator) checkNamedMiddlewares(ix *moduleIndex) {
	m := ix.module
	for i := range m.Middlewares {
		w := &m.Middlewares[i]
		field := "middlewares." + w.Name
		v.checkName(m, field, "middleware", w.Name, i > 0 && m.Middlewares[i-1].Name == w.Name)
		if w.Kind == "" {
			v.module(m, field, "the middleware has no kind", "name one, such as rateLimit:")
			continue
		}
		checkConfig(w.Config, func(path, message, hint string) {
			v.module(m, field+"."+w.Kind+path, message, hint)
		})
		if !ix.middlewares[w.Name] {
			v.warn(m, field, fmt.Sprintf("no route uses the middleware %s", w.Name), "use it or take it out")
		}
	}
}

// checkName holds the rules of a name in a list that is sorted by name.
func (v *validator) checkName(m *Module, field, what, name string, twice bool) {
	switch {
	case name == "":
		v.module(m, field, "the "+what+" has no name", "give it one")
	case !validName(name):
		v.module(m, field, fmt.Sprintf("bad name %q", name), nameHint(MaxNameBytes))
	case twice:
		v.module(m, field, fmt.Sprintf("the %s %s stands twice", what, name), "give one of them another name")
	}
}

// validName tells whether a name is made of letters, digits, ".", "_" and "-",
// begins with a letter or a digit and is not too long.
func validName(s string) bool {
	if s == "" || len(s) > MaxNameBytes {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !alphanumeric(c) && (i == 0 || c != '-' && c != '_' && c != '.') {
			return false
		}
	}
	return true
}

func nameHint(most int) string {
	return fmt.Sprintf("letters, digits, . _ and -, at most %d, beginning with a letter or digit", most)
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// token tells whether s is a token of RFC 9110, as methods, header and cookie
// names are.
func token(s string) bool {
	for i := range len(s) {
		if !alphanumeric(s[i]) && strings.IndexByte("!#$%&'*+-.^_`|~", s[i]) < 0 {
			return false
		}
	}
	return s != ""
}

// fieldText tells whether s may stand as the value of a header field.
func fieldText(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return strings.Trim(s, " \t") == s
}

// checkTimeout says what is wrong with a duration that is given, and nothing
// when it is in range.
func checkTimeout(d time.Duration) string {
	switch {
	case d < 0:
		return fmt.Sprintf("%s is negative", d)
	case d < MinTimeout:
		return fmt.Sprintf("%s is less than %s", d, MinTimeout)
	case d > MaxTimeout:
		return fmt.Sprintf("%s is more than %s", d, MaxTimeout)
	}
	return ""
}

// CompileRegexp compiles the expression of a condition, anchored at both ends.
// Size is how many instructions it takes, at most MaxRegexpProgram: what it
// costs in memory, and at worst for each octet that it is matched with. The error says
// what is wrong with it, or that it is over a limit.
func CompileRegexp(expr string) (re *regexp.Regexp, size int, err error) {
	if size, err = checkRegexp(expr); err != nil {
		return nil, 0, err
	}
	re, err = regexp.Compile(`\A(?:` + expr + `)\z`)
	return re, size, err
}
