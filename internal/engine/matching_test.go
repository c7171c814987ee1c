package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"routerd.dev/internal/route"
	"routerd.dev/internal/version"
)

// dice makes random tables and requests of small alphabets, so that routes
// collide in every way there is.
type dice struct{ *rand.Rand }

func (d dice) pick(from ...string) string { return from[d.IntN(len(from))] }
func (d dice) one(in int) bool            { return d.IntN(in) == 0 }

var (
	someHosts    = []string{"a.test", "b.a.test", "*.test", "*.a.test", "c.b.a.test"}
	someLiterals = []string{"a", "b", "ab", "a.b", "a:b", "a*", "b%20", "(a)", "%C3%A9", ".a", "20"}
	someMixes    = []string{"{%}.b", "a{%}", "{%}b{%}", "{%}:a", "a{%}b", "{%}20{%}", "{%}.{%}b", "a{%}.b"}
	someMethods  = [][]string{nil, nil, {"GET"}, {"GET"}, {"HEAD"}, {"POST"}, {"GET", "HEAD"}, {"GET", "POST"}, {"PURGE"}, {"DELETE"}}
)

func (d dice) path(exact bool) string {
	var b strings.Builder
	names := 0
	for n := d.IntN(5); n > 0; n-- {
		seg := d.pick(someLiterals...)
		switch d.IntN(6) {
		case 0, 1:
			seg = "{%}"
		case 2:
			seg = d.pick(someMixes...)
		case 3, 4:
			seg = d.pick("a", "b")
		}
		for strings.Contains(seg, "%}") {
			seg = strings.Replace(seg, "%}", fmt.Sprintf("p%d}", names), 1)
			names++
		}
		b.WriteString("/" + seg)
	}
	switch {
	case exact && d.one(5):
		b.WriteString("/{rest...}")
	case exact && d.one(6), b.Len() == 0:
		b.WriteString("/")
	}
	return b.String()
}

func (d dice) conditions(names ...string) []route.Condition {
	var cs []route.Condition
	for _, name := range names {
		if d.one(9) {
			c := route.Condition{Name: name, Op: route.Op(1 + d.IntN(4))}
			switch c.Op {
			case route.OpEqual, route.OpPrefix:
				c.Value = d.pick("1", "2", "12")
			case route.OpRegexp:
				c.Value = d.pick("[12]", "1.*", "a|12")
			}
			cs = append(cs, c)
		}
	}
	return cs
}

func (d dice) table() *route.Table {
	t := &route.Table{}
	for _, name := range []string{"m", "n", "o"}[:1+d.IntN(3)] {
		m := &route.Module{Name: name}
		for i := range 1 + d.IntN(8) {
			r := route.Route{Name: fmt.Sprintf("r%d", i), Methods: d.methods(), Action: route.Action{Respond: &route.Respond{Status: 200}}}
			if d.one(5) {
				r.Prefix = d.path(false)
			} else {
				r.Path = d.path(true)
			}
			for d.one(2) && len(r.Hosts) < 2 {
				r.Hosts = append(r.Hosts, d.pick(someHosts...))
			}
			slices.Sort(r.Hosts)
			r.Hosts = slices.Compact(r.Hosts)
			if d.one(8) {
				r.Priority = d.IntN(3) - 1
			}
			r.Headers, r.Query, r.Cookies = d.conditions("X-A", "X-B"), d.conditions("q"), d.conditions("c")
			if d.one(12) {
				r.Clients = []netip.Prefix{netip.MustParsePrefix(d.pick("10.0.0.0/8", "10.1.0.0/16"))}
			}
			m.Routes = append(m.Routes, r)
		}
		t.Modules = append(t.Modules, m)
	}
	return t
}

func (d dice) methods() []string { return someMethods[d.IntN(len(someMethods))] }

// request makes a request that some route of the table takes, or nearly.
func (d dice) request(t *route.Table) Head {
	m := t.Modules[d.IntN(len(t.Modules))]
	r := &m.Routes[d.IntN(len(m.Routes))]
	path := r.Path + r.Prefix
	if d.one(8) {
		path = d.path(true)
	}
	h := Head{
		Method: d.pick("GET", "GET", "GET", "HEAD", "HEAD", "POST", "PURGE", "DELETE", "PUT"),
		Host:   d.pick("a.test", "b.a.test", "c.b.a.test", "test", "x.test", ""),
		Client: netip.MustParseAddr(d.pick("10.1.2.3", "10.2.2.3", "192.0.2.1")),
		Path:   d.instance(path),
	}
	if r.Prefix != "" && d.one(2) {
		h.Path = strings.TrimSuffix(h.Path, "/") + d.pick("/", "/a", "/a/b", "/b/", "x")
	}
	header := http.Header{}
	for _, name := range []string{"X-A", "X-B"} {
		for d.one(3) {
			header.Add(name, d.pick("1", "2", "12", "21"))
		}
	}
	if d.one(3) {
		header.Add("Cookie", d.pick("c=1", "d=2; c=12", `c="1"; c=2`, "c="))
	}
	h.Header = header
	if d.one(3) {
		h.RawQuery = d.pick("q=1", "q", "x=1&q=12", "q=2&q=1")
	}
	h.Paths = route.PathOptions{AllowEncodedSlash: d.one(4), MergeSlashes: d.one(4)}
	return h
}

// instance fills a pattern's parameters, changes a little at times, and writes
// some octets in another way.
func (d dice) instance(path string) string {
	path = strings.TrimSuffix(path, "{rest...}") + map[bool]string{true: d.pick("", "a", "a/b", "b/", "a/b/a", "20/ab.b")}[strings.HasSuffix(path, "{rest...}")]
	for strings.Contains(path, "{") {
		i, j := strings.IndexByte(path, '{'), strings.IndexByte(path, '}')
		path = path[:i] + d.pick("a", "b", "ab", "a.b", "x", "20", "a:b", "%20", "b20b", ".b.b", "a.ab", "%2F", "a*") + path[j+1:]
	}
	if d.one(6) {
		path += d.pick("/", "/a", "b")
	}
	if d.one(10) && len(path) > 2 {
		path = path[:1+d.IntN(len(path)-1)]
	}
	if d.one(20) {
		path += d.pick("//", "/..", "/.;a", "%", "%zz", "/%2e", "\\", "%00", "%ff", "//a", "/%252e", " ")
	}
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		c := path[i]
		switch {
		case c != '/' && c != '%' && d.one(25):
			fmt.Fprintf(&b, d.pick("%%%02x", "%%%02X"), c)
		case c == '/' && d.one(60):
			b.WriteString("//")
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// TestMatchesReference holds the engine to the reference matcher over a
// million random pairs of table and request.
func TestI7_MatchesReference(t *testing.T) {
	const requests = 250
	tables := 4400
	if testing.Short() {
		tables = 200
	}
	var pairs, matched, refused, notAllowed atomic.Int64
	t.Run("pairs", func(t *testing.T) {
		const lanes = 4
		for lane := range lanes {
			t.Run(fmt.Sprint(lane), func(t *testing.T) {
				t.Parallel()
				for i := lane; i < tables; i += lanes {
					dice := dice{rand.New(rand.NewPCG(uint64(i), 1))}
					table := dice.table()
					e, err := Compile(context.Background(), version.Ref{}, table, nil, Options{})
					if err != nil {
						t.Fatalf("table %d: %v", i, err)
					}
					patterns := map[*route.Route]refPattern{}
					var d Decision
					for range requests {
						h := dice.request(table)
						e.Decide(&h, &d)
						want := reference(table, patterns, &h)
						if got := answerOf(e, &h, &d); !slices.Equal(got.params, want.params) || got.name != want.name || got.status != want.status || !slices.Equal(got.allow, want.allow) {
							t.Fatalf("table %d: %s\n%+v\nengine    %+v\nreference %+v\n%+v", i, show(table), h, got, want, e.Explain(&h))
						}
						if pairs.Add(1)%16 == 0 {
							checkExplained(t, e, &h, &d)
						}
						switch d.Status {
						case 0:
							matched.Add(1)
						case 400:
							refused.Add(1)
						case 405:
							notAllowed.Add(1)
						}
					}
				}
			})
		}
	})
	t.Logf("%d pairs of table and request agree: %d with a route, %d 405, %d 400", pairs.Load(), matched.Load(), notAllowed.Load(), refused.Load())
	if !testing.Short() && pairs.Load() < 1_000_000 {
		t.Errorf("only %d pairs", pairs.Load())
	}
}

// checkExplained holds what Explain says of a request against what was decided.
func checkExplained(t *testing.T, e *Engine, h *Head, d *Decision) {
	t.Helper()
	x := e.Explain(h)
	var won []string
	for _, c := range x.Considered {
		if c.Verdict == "won" {
			won = append(won, c.Route)
		}
	}
	var want []string
	if d.Status == 0 {
		want = []string{d.Name}
	}
	if x.Route != d.Name || !slices.Equal(won, want) || (x.Path == "") != (d.Status == http.StatusBadRequest) {
		t.Fatalf("%+v\ndecided %q, %d; explained %+v", *h, d.Name, d.Status, x)
	}
}

func answerOf(e *Engine, h *Head, d *Decision) refAnswer {
	a := refAnswer{status: d.Status, name: d.Name}
	for _, p := range d.Params {
		a.params = append(a.params, refParam{p.Name, p.Value, p.Raw})
	}
	if d.Status == 405 {
		a.allow = e.Allow(h, d)
	}
	return a
}

func show(t *route.Table) string {
	var b strings.Builder
	for _, m := range t.Modules {
		for _, r := range m.Routes {
			fmt.Fprintf(&b, "\n%s/%s hosts %v methods %v path %q prefix %q priority %d headers %v query %v cookies %v clients %v",
				m.Name, r.Name, r.Hosts, r.Methods, r.Path, r.Prefix, r.Priority, r.Headers, r.Query, r.Cookies, r.Clients)
		}
	}
	return b.String()
}
