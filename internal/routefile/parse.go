package routefile

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"routerd.dev/internal/route"
	"routerd.dev/internal/yamlfile"
)

// Parse reads the modules that files define, sorted by name, normalized, and
// each with its Source. Documents that name the same module add to it, in the
// order of files. It returns every problem of every file; the modules are then
// those that have none of their own, good for looking for more problems, not
// for publishing.
func Parse(files []File) ([]*route.Module, route.Problems) {
	p := &parser{modules: map[string]*draft{}}
	if len(files) == 0 {
		p.problems = append(p.problems, route.Problem{Message: "there are no route files", Hint: "an empty source is never read as \"delete all\""})
	}
	for _, f := range files {
		p.file(f)
	}
	var out []*route.Module
	for _, name := range slices.Sorted(maps.Keys(p.modules)) {
		d := p.modules[name]
		whole := !d.broken
		if len(d.module.Routes) == 0 && whole {
			p.fail(d, d.places["module"], "routes", "the module has no routes", "an empty source is never read as \"delete all\"; a module goes away by publish --all without it")
		}
		d.module.Source = route.NewSource(d.file, d.places)
		route.NormalizeModule(&d.module)
		for i := range d.module.Tests {
			sortHeaders(d.module.Tests[i].Headers)
		}
		if d.broken {
			p.problems = append(p.problems, d.more()...)
		} else {
			out = append(out, &d.module)
		}
	}
	p.sort(files)
	return out, p.problems
}

// more finds what else is wrong with a module that has problems, so that its
// author hears of all at once. It passes over what those may have led to.
func (d *draft) more() route.Problems {
	if d.touched[""] {
		return nil
	}
	var out route.Problems
	for _, p := range route.Validate(&route.Table{Modules: []*route.Module{&d.module}}) {
		if e := element(p.Field); e != "" && !d.touched[e] {
			out = append(out, p)
		}
	}
	return out
}

// element gives the route, test, upstream or middleware that a field lies in:
// routes[2] of routes[2].path. It is empty for a field around several.
func element(field string) string {
	for _, list := range []string{"routes[", "tests["} {
		if strings.HasPrefix(field, list) {
			digits, _, _ := strings.Cut(field, "]")
			return digits + "]"
		}
	}
	list, rest, ok := strings.Cut(field, ".")
	if !ok || list != "upstreams" && list != "middlewares" {
		return ""
	}
	name, _, _ := strings.Cut(rest, ".")
	name, _, _ = strings.Cut(name, "[")
	return list + "." + name
}

// sort orders the problems by file, as files were given, and line.
func (p *parser) sort(files []File) {
	at := map[string]int{}
	for i, f := range files {
		if _, ok := at[f.Name]; !ok {
			at[f.Name] = i
		}
	}
	slices.SortStableFunc(p.problems, func(a, b route.Problem) int {
		return cmp.Or(at[a.Place.File]-at[b.Place.File], a.Place.Line-b.Place.Line, a.Place.Column-b.Place.Column)
	})
}

// sortHeaders brings a test's headers to the order in which Encode can say
// them: by name, the values of one name as they were.
func sortHeaders(hs []route.Header) {
	slices.SortStableFunc(hs, func(a, b route.Header) int { return strings.Compare(a.Name, b.Name) })
}

// A parser gathers modules over files.
type parser struct {
	modules  map[string]*draft
	problems route.Problems
}

// A draft is a module as far as files were read.
type draft struct {
	module route.Module
	file   string // the first that named it
	places map[string]route.Place
	broken bool // has problems

	touched map[string]bool // elements with problems; "" when it may be any
}

func (p *parser) fail(d *draft, at route.Place, field, message, hint string) {
	d.broken = true
	d.touched[element(field)] = true
	p.problems = append(p.problems, route.Problem{
		Place: at, Module: d.module.Name, Route: d.routeName(field), Field: field, Message: message, Hint: hint,
	})
}

// routeName gives the name of the route that a field such as routes[2].path
// belongs to, if it has one.
func (d *draft) routeName(field string) string {
	rest, ok := strings.CutPrefix(field, "routes[")
	if !ok {
		return ""
	}
	digits, _, _ := strings.Cut(rest, "]")
	if i, err := strconv.Atoi(digits); err == nil && i < len(d.module.Routes) {
		return d.module.Routes[i].Name
	}
	return ""
}

func (p *parser) file(f File) {
	docs, problems := yamlfile.Parse(f.Name, f.Data)
	for _, y := range problems {
		p.problems = append(p.problems, problemOf(y))
	}
	if len(docs) == 0 && len(problems) == 0 {
		p.problems = append(p.problems, route.Problem{
			Place: route.Place{File: f.Name}, Message: "the file is empty", Hint: "an empty source is never read as \"delete all\"",
		})
	}
	for _, doc := range docs {
		p.document(doc)
	}
}

func problemOf(y yamlfile.Problem) route.Problem {
	return route.Problem{
		Place: placeOf(y.File, y.Position), Field: y.Field, Message: y.Message, Hint: y.Hint,
	}
}

func placeOf(file string, pos yamlfile.Position) route.Place {
	return route.Place{File: file, Line: pos.Line, Column: pos.Column}
}

// document adds one document to its module.
func (p *parser) document(doc *yamlfile.Document) {
	if y, ok := versionProblem(doc); ok {
		p.problems = append(p.problems, problemOf(y))
		return
	}
	var read document
	problems := yamlfile.Decode(doc, &read)
	d := p.modules[read.Module]
	if d == nil {
		d = &draft{file: doc.File, places: map[string]route.Place{}, touched: map[string]bool{}}
		d.module.Name = read.Module
		p.modules[read.Module] = d
	}
	shift := shifter{routes: len(d.module.Routes), tests: len(d.module.Tests)}
	doc.Walk(func(field string, pos yamlfile.Position, _ *yamlfile.Node) {
		field = shift.field(field)
		if _, ok := d.places[field]; !ok {
			d.places[field] = placeOf(doc.File, pos)
		}
	})
	p.add(d, doc, &read)
	for _, y := range problems {
		p.fail(d, placeOf(y.File, y.Position), shift.field(y.Field), y.Message, y.Hint)
	}
}

// versionProblem tells whether a document says that it is a route file of a
// version that is read here. Nothing else about one that does not is
// worth a word.
func versionProblem(doc *yamlfile.Document) (yamlfile.Problem, bool) {
	y := yamlfile.Problem{File: doc.File, Position: doc.Root.Pos, Field: "apiVersion"}
	if doc.Root.Kind != yamlfile.Map {
		y.Field, y.Message, y.Hint = "", "a route file is a map, this is "+doc.Root.Kind.String(), "it begins with apiVersion: "+APIVersion
		return y, true
	}
	v := doc.Root.Field("apiVersion")
	switch {
	case v == nil:
		y.Message, y.Hint = "is missing, so this is not a route file", "begin it with apiVersion: "+APIVersion
	case v.Kind == yamlfile.String && v.Text == APIVersion:
		return y, false
	case v.Kind == yamlfile.String && strings.HasPrefix(v.Text, "routerd/"):
		y.Position = v.Pos
		y.Message, y.Hint = fmt.Sprintf("this build does not read version %.80q", v.Text), "it reads "+APIVersion
	default:
		y.Position = v.Pos
		y.Message, y.Hint = fmt.Sprintf("%.80q is not the version of a route file", v.Text), "begin a route file with apiVersion: "+APIVersion
	}
	return y, true
}

// A shifter turns field paths of a document into those of the module, whose
// routes and tests may have begun in documents before.
type shifter struct{ routes, tests int }

func (s shifter) field(field string) string {
	for _, list := range []struct {
		name string
		by   int
	}{{"routes[", s.routes}, {"tests[", s.tests}} {
		if rest, ok := strings.CutPrefix(field, list.name); ok && list.by > 0 {
			digits, after, _ := strings.Cut(rest, "]")
			i, _ := strconv.Atoi(digits)
			return list.name + strconv.Itoa(i+list.by) + "]" + after
		}
	}
	return field
}

// add puts what a document says into its module.
func (p *parser) add(d *draft, doc *yamlfile.Document, read *document) {
	m := &d.module
	for _, name := range slices.Sorted(maps.Keys(read.Upstreams)) {
		if slices.ContainsFunc(m.Upstreams, func(u route.Upstream) bool { return u.Name == name }) {
			p.twice(d, doc, "upstreams", name)
			continue
		}
		m.Upstreams = append(m.Upstreams, read.Upstreams[name].upstream(name))
	}
	for _, name := range slices.Sorted(maps.Keys(read.Middlewares)) {
		if slices.ContainsFunc(m.Middlewares, func(w route.NamedMiddleware) bool { return w.Name == name }) {
			p.twice(d, doc, "middlewares", name)
			continue
		}
		def := read.Middlewares[name]
		m.Middlewares = append(m.Middlewares, route.NamedMiddleware{Name: name, Kind: def.Kind, Config: def.Config})
	}
	for i := range read.Routes {
		m.Routes = append(m.Routes, read.Routes[i].route())
	}
	for i := range read.Tests {
		m.Tests = append(m.Tests, read.Tests[i].test())
	}
}

// twice reports a name that another document of the module has taken.
func (p *parser) twice(d *draft, doc *yamlfile.Document, list, name string) {
	field := list + "." + name
	var at yamlfile.Position
	for _, f := range doc.Root.Field(list).Fields {
		if f.Key == name {
			at = f.Pos
		}
	}
	p.fail(d, placeOf(doc.File, at), field, "the module has this name already", "first at "+d.places[field].String())
}

func (u upstream) upstream(name string) route.Upstream {
	out := route.Upstream{
		Name:            name,
		ConnectTimeout:  u.Timeouts.Connect,
		ResponseTimeout: u.Timeouts.Response,
		IdleTimeout:     u.Timeouts.Idle,
		MaxIdle:         u.MaxIdle,
		TLS:             route.TLS(u.TLS),
	}
	for _, t := range u.Targets {
		out.Targets = append(out.Targets, route.Target(t))
	}
	switch u.Host {
	case "", hostClient:
	case hostTarget:
		out.HostMode = route.HostTarget
	default:
		out.HostMode, out.Host = route.HostLiteral, u.Host
	}
	return out
}

// The words for an upstream's host that are not literal hosts.
const (
	hostClient = "client"
	hostTarget = "target"
)

func (r *routeSpec) route() route.Route {
	out := route.Route{
		Name: r.Name, Hosts: r.Hosts, Methods: r.Methods,
		Path: r.Path, Prefix: r.Prefix, Priority: r.Priority,
		Headers: conditions(r.Headers), Query: conditions(r.Query), Cookies: conditions(r.Cookies),
	}
	for _, c := range r.Clients {
		out.Clients = append(out.Clients, netip.Prefix(c))
	}
	for _, l := range r.Middlewares {
		out.Middlewares = append(out.Middlewares, route.Middleware{Use: l.Use, Kind: l.Kind, Config: l.Config})
	}
	if r.Proxy != nil {
		out.Action.Proxy = &route.Proxy{Upstream: r.Proxy.Upstream, Timeout: r.Proxy.Timeout}
	}
	if r.Respond != nil {
		out.Action.Respond = &route.Respond{Status: r.Respond.Status, Headers: r.Respond.Headers, Body: r.Respond.Body}
	}
	if r.Redirect != nil {
		out.Action.Redirect = &route.Redirect{To: r.Redirect.To, Status: r.Redirect.Status}
	}
	return out
}

func conditions(cs []cond) []route.Condition {
	var out []route.Condition
	for _, c := range cs {
		out = append(out, c.condition())
	}
	return out
}

func (t *testSpec) test() route.Test {
	out := route.Test{
		Name: t.Name, Method: t.Request.Method, URL: t.Request.URL,
		Headers: t.Request.Headers, Client: netip.Addr(t.Request.Client),
		Route: t.Expect.Route, Status: t.Expect.Status,
	}
	if out.Method == "" {
		out.Method = "GET"
	}
	for _, name := range slices.Sorted(maps.Keys(t.Expect.Params)) {
		out.Params = append(out.Params, route.Param{Name: name, Value: t.Expect.Params[name]})
	}
	return out
}
