package routefile

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"routerd.dev/internal/route"
)

const sample = `apiVersion: routerd/v1
module: shop
upstreams:
  users:
    targets: [http://10.0.0.1:8080, {url: "http://10.0.0.2:8080", weight: 2}]
    host: target
    timeouts: {connect: 2s, response: 30s, idle: 60s}
    maxIdle: 16
    tls: {serverName: x, caFile: /etc/x.pem, insecure: false}
middlewares:
  api-limit: {rateLimit: {rate: 100, per: 1s, burst: 20, key: client}}
routes:
  - name: users
    hosts: [api.example.com]
    methods: [GET]
    path: /users/{id}
    headers: [{name: X-Beta, equal: "1"}, {name: x-any, present: true}]
    query: [{name: q, prefix: a}]
    cookies: [{name: c, regex: "a.*"}]
    clients: [10.0.0.0/8, 192.168.1.1, "2001:db8::1"]
    priority: 10
    middlewares: [{use: api-limit}, {headers: {request: {set: {X-A: b}}}}, {requestID: }]
    proxy: {upstream: users, timeout: 10s}
  - name: hello
    path: /hello
    respond: hi
  - name: json
    prefix: /json
    respond:
      status: 201
      headers: {Content-Type: application/json, Set-Cookie: [a=1, b=2]}
      body: |
        {"a": 1}
        {"b": 2}
  - name: old
    path: /old/{id}
    redirect: {to: "https://new.example.com/{id}", status: 308}
tests:
  - name: user by id
    request: GET https://api.example.com/users/7
    expect: {route: users, params: {id: "7"}}
  - request: {method: POST, url: /nope, headers: {X-A: b}, client: 10.0.0.1}
    expect: {status: 404}
`

// parse reads files named a.yaml, b.yaml and so on.
func parse(texts ...string) ([]*route.Module, route.Problems) {
	var files []File
	for i, s := range texts {
		files = append(files, File{Name: fmt.Sprintf("%c.yaml", 'a'+i), Data: []byte(s)})
	}
	return Parse(files)
}

func TestEncodeOfTheSample(t *testing.T) {
	mods, ps := parse(sample)
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	b, err := Encode(mods[0])
	if err != nil {
		t.Fatal(err)
	}
	want := `apiVersion: routerd/v1
module: shop
upstreams:
  users:
    targets:
      - http://10.0.0.1:8080
      - {url: http://10.0.0.2:8080, weight: 2}
    host: target
    timeouts: {connect: 2s, response: 30s}
    maxIdle: 16
    tls: {serverName: x, caFile: /etc/x.pem}
middlewares:
  api-limit:
    rateLimit: {burst: 20, key: client, per: 1s, rate: 100}
routes:
  - name: users
    hosts: [api.example.com]
    methods: [GET]
    path: /users/{id}
    headers:
      - {name: X-Any, present: true}
      - {name: X-Beta, equal: "1"}
    query:
      - {name: q, prefix: a}
    cookies:
      - {name: c, regex: "a.*"}
    clients: [10.0.0.0/8, 192.168.1.1/32, 2001:db8::1/128]
    priority: 10
    middlewares:
      - {use: api-limit}
      - headers:
          request:
            set: {X-A: b}
      - {requestID: {}}
    proxy: {upstream: users, timeout: 10s}
  - name: hello
    path: /hello
    respond: hi
  - name: json
    prefix: /json
    respond:
      status: 201
      headers:
        Content-Type: application/json
        Set-Cookie: [a=1, b=2]
      body: |
        {"a": 1}
        {"b": 2}
  - name: old
    path: /old/{id}
    redirect: {to: "https://new.example.com/{id}", status: 308}
tests:
  - name: user by id
    request: GET https://api.example.com/users/7
    expect:
      route: users
      params: {id: "7"}
  - request:
      method: POST
      url: /nope
      headers: {X-A: b}
      client: "10.0.0.1"
    expect: {status: 404}
`
	if d := cmp.Diff(want, string(b)); d != "" {
		t.Error(d)
	}
}

const (
	head = "apiVersion: routerd/v1\nmodule: shop\n"
	tail = "routes: [{path: /, respond: x}]\n"
)

// Every problem has its file, line and field, and all of them are reported.
func TestProblems(t *testing.T) {
	for _, c := range []struct {
		name  string
		files []string
		want  string
	}{
		{"no files", nil, `there are no route files (an empty source is never read as "delete all")`},
		{"empty file", []string{""}, `a.yaml: the file is empty (an empty source is never read as "delete all")`},
		{"a comment alone", []string{"# later\n"}, `a.yaml: the file is empty (an empty source is never read as "delete all")`},
		{"no routes", []string{head}, `a.yaml:2: routes: the module has no routes (an empty source is never read as "delete all"; a module goes away by publish --all without it)`},
		{"empty routes", []string{head + "routes: []\n"}, `a.yaml:2: routes: the module has no routes (an empty source is never read as "delete all"; a module goes away by publish --all without it)`},
		{"no version", []string{"module: shop\n" + tail}, "a.yaml:1: apiVersion: is missing, so this is not a route file (begin it with apiVersion: routerd/v1)"},
		{"a later version", []string{"apiVersion: routerd/v9\nwhat: ever\n"}, `a.yaml:1: apiVersion: this build does not read version "routerd/v9" (it reads routerd/v1)`},
		{"another kind of file", []string{"apiVersion: apps/v1\nkind: Deployment\n"}, `a.yaml:1: apiVersion: "apps/v1" is not the version of a route file (begin a route file with apiVersion: routerd/v1)`},
		{"no map", []string{"- a\n"}, "a.yaml:1: a route file is a map, this is a list (it begins with apiVersion: routerd/v1)"},
		{"no module", []string{"apiVersion: routerd/v1\n" + tail}, "a.yaml:1: module: is missing"},
		{"unknown fields", []string{head + "routes:\n  - path: /\n    host: a\n    respond: {code: 200}\nupstream: {}\n"}, `a.yaml:5: routes[0].host: unknown field (did you mean hosts?)
a.yaml:6: routes[0].respond.code: unknown field (the fields here are body, headers, status)
a.yaml:7: upstream: unknown field (did you mean upstreams?)`},
		{"zeroes that would be defaults", []string{head + "upstreams:\n  u:\n    targets: [{url: http://a, weight: 0}]\n    timeouts: {connect: 0s}\n" + tail}, `a.yaml:5: upstreams.u.targets[0].weight: cannot be 0 (leave it out for the default, 1)
a.yaml:6: upstreams.u.timeouts.connect: cannot be 0s (leave it out for the default, 1s)`},
		{"conditions that would be none", []string{head + "routes:\n- path: /\n  clients: []\n  hosts:\n  respond: x\n"}, `a.yaml:5: routes[0].clients: is empty (name at least one, or leave the field out)
a.yaml:6: routes[0].hosts: has no value, want a list (give it one, or leave the field out)`},
		{"conditions", []string{head + "routes:\n- path: /\n  respond: x\n  headers:\n  - name: a\n  - {name: a, equal: x, prefix: y}\n  - {name: a, present: false}\n  - {name: a, presnt: true}\n  - {name: a, equal: 1}\n"}, `a.yaml:7: routes[0].headers[0]: want one of present, equal, prefix, regex, got none (write present: true for any value)
a.yaml:8: routes[0].headers[1]: want one of present, equal, prefix, regex, got equal and prefix (write a condition for each)
a.yaml:9: routes[0].headers[2].present: cannot be false (absence cannot be asked for: give what may lack it a route without the condition)
a.yaml:10: routes[0].headers[3].presnt: unknown field (did you mean present?)
a.yaml:11: routes[0].headers[4].equal: want text, got a number (1) (write "1")`},
		{"clients", []string{head + "routes:\n- path: /\n  respond: x\n  clients: [10.0.0.0/33, 10.0.0, 1]\n"}, `a.yaml:6: routes[0].clients[0]: want an address such as 10.1.2.3, or a range such as 10.0.0.0/8, got "10.0.0.0/33"
a.yaml:6: routes[0].clients[1]: want an address such as 10.1.2.3, or a range such as 10.0.0.0/8, got "10.0.0"
a.yaml:6: routes[0].clients[2]: want an address such as 10.1.2.3, or a range such as 10.0.0.0/8, got a number (1)`},
		{"middlewares", []string{head + "middlewares: {a: {}, b: {x: {}, y: {}}, c: {x: 1}}\nroutes:\n- name: r\n  path: /\n  respond: x\n  middlewares:\n  - a\n  - {use: a, x: {}}\n  - {use: \"\"}\n  - {x: {y: .inf}}\n"}, `a.yaml:3: middlewares.a: want one key, the kind of the middleware, got 0 (give each middleware an entry of its own)
a.yaml:3: middlewares.b: want one key, the kind of the middleware, got 2 (x, y) (give each middleware an entry of its own)
a.yaml:3: middlewares.c.x: want a map of settings, got a number
a.yaml:9: r: routes[0].middlewares[0]: want a map with use or a kind, got text (write {use: a})
a.yaml:10: r: routes[0].middlewares[1].x: unknown field (the fields here are use)
a.yaml:11: r: routes[0].middlewares[2].use: is empty (give it the name of a middleware of this module)
a.yaml:12: r: routes[0].middlewares[3].x: line 12: ".inf" cannot be said in JSON`},
		{"tests", []string{head + tail + "tests:\n- request: GET\n  expect: {route: a}\n- expect: {params: {id: 7}}\n- request: {url: /, client: me}\n  expect: {status: 404}\n"}, `a.yaml:5: tests[0].request: want METHOD URL, got "GET" (such as GET https://example.com/users/7)
a.yaml:7: tests[1].request: is missing
a.yaml:7: tests[1].expect.params.id: want text, got a number (7) (write "7")
a.yaml:8: tests[2].request.client: want an address such as 10.1.2.3, got "me"`},
		{"a name in two files", []string{
			head + "upstreams: {u: {targets: [http://a]}}\nmiddlewares: {m: {x: {}}}\n" + tail,
			head + "\nmiddlewares: {m: {x: {}}}\nupstreams:\n  u: {targets: [http://b]}\n",
		}, `b.yaml:4: middlewares.m: the module has this name already (first at a.yaml:4)
b.yaml:6: upstreams.u: the module has this name already (first at a.yaml:3)`},
		{"fields are the module's", []string{head + tail + "---\n" + head + "routes:\n- {path: /a, respond: y}\n- {path: 1, respond: y}\n", head + "routes:\n- {path: /, nme: x, respond: z}\ntests: [{request: 1, expect: {}}]\n"}, `a.yaml:9: routes[2].path: want text, got a number (1) (write "1")
b.yaml:4: routes[3].nme: unknown field (did you mean name?)
b.yaml:5: tests[0].request: want METHOD URL, or a map with method and url, got a number (1)`},
		{"several files", []string{"a: [", head, head + tail, "x\n"}, `a.yaml:1: is not YAML: sequence end token ']' not found
d.yaml:1: a route file is a map, this is text (it begins with apiVersion: routerd/v1)`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, ps := parse(c.files...)
			if d := cmp.Diff(c.want, ps.Error()); d != "" {
				t.Error(d)
			}
			if ps.Err() == nil {
				t.Error("the problems are no error")
			}
		})
	}
}

func TestAModuleOverSeveralFiles(t *testing.T) {
	mods, ps := parse(
		head+"upstreams: {u: {targets: [http://a]}}\n",
		"apiVersion: routerd/v1\nmodule: other\n"+tail,
		head+tail+"---\n"+head+"routes:\n  - {path: /second, proxy: {upstream: u}}\n",
	)
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	if len(mods) != 2 || mods[0].Name != "other" || mods[1].Name != "shop" {
		t.Fatalf("got %v", mods)
	}
	shop := mods[1]
	if len(shop.Routes) != 2 || shop.Routes[1].Path != "/second" || len(shop.Upstreams) != 1 {
		t.Errorf("not merged in order: %+v", shop)
	}
	for field, want := range map[string]string{
		"upstreams.u.targets[0].url": "a.yaml:3",
		"routes[0].respond":          "c.yaml:3",
		"routes[1].proxy.upstream":   "c.yaml:8",
		"module":                     "a.yaml:2",
		"tests[0].request":           "a.yaml",
	} {
		if got := shop.Source.Place(field).String(); got != want {
			t.Errorf("%s: got %s, want %s", field, got, want)
		}
	}
}

// A module with mistakes is not handed out: what is left of it is not what
// was meant.
func TestOnlyModulesWithoutProblemsAreReturned(t *testing.T) {
	mods, ps := parse(head+"routes: [{path: /, respond: x}, {path: 1, respond: y}]\n", "apiVersion: routerd/v1\nmodule: fine\n"+tail)
	if len(ps) != 1 || len(mods) != 1 || mods[0].Name != "fine" {
		t.Errorf("got %v, %v", mods, ps)
	}
}

// A mistake of form does not hide those of meaning elsewhere, and those that it
// may have led to are not reported.
func TestProblemsOfMeaningBesideThoseOfForm(t *testing.T) {
	_, ps := parse(head + `upstreams:
  u: {targets: [http://a], maxIdle: x}
routes:
- {name: a, path: 1, respond: y}
- {name: b, path: /b, proxy: {upstream: nowhere}}
- {name: c, path: /c, proxy: {upstream: u}}
`)
	if len(ps) != 3 || ps[0].Field != "upstreams.u.maxIdle" || ps[1].Field != "routes[0].path" || ps[2].Field != "routes[1].proxy.upstream" || ps[2].Place.Line != 7 {
		t.Errorf("got:\n%v", ps)
	}
	_, ps = parse(head + "upstreams: []\nroutes:\n- {path: /b, proxy: {upstream: u}}\n")
	if len(ps) != 1 || ps[0].Field != "upstreams" {
		t.Errorf("got:\n%v", ps)
	}
}

// The defaults that the tags name are those that normalizing gives.
func TestDefaultsAreThoseOfNormalize(t *testing.T) {
	short := head + "upstreams: {u: {targets: [{url: http://a}]}}\nroutes:\n- {name: a, path: /a, respond: {body: x}}\n- {name: b, path: /b, redirect: {to: /}}\ntests: [{request: {url: /a}, expect: {route: a}}]\n"
	long := head + "upstreams: {u: {targets: [{url: http://a, weight: 1}], host: client, timeouts: {connect: 1s, response: 1m, idle: 1m}, maxIdle: 256}}\nroutes:\n- {name: a, path: /a, respond: {body: x, status: 200}}\n- {name: b, path: /b, redirect: {to: /, status: 302}}\ntests: [{request: {url: /a, method: GET}, expect: {route: a}}]\n"
	for _, standard := range []string{"default | meaning", "`1s`", "`1m`", "`256`", "`1`", "`200`", "`302`", "`client`", "`GET`"} {
		if !strings.Contains(string(Reference()), standard) {
			t.Errorf("the reference names no default %s; does this test still write them all?", standard)
		}
	}
	a, ps := parse(short)
	b, qs := parse(long)
	if len(ps)+len(qs) > 0 {
		t.Fatal(ps, qs)
	}
	if d := same(a[0], b[0]); d != "" {
		t.Error(d)
	}
}

// A problem is one short line of printable text, whatever the file holds.
func TestProblemsAreShortAndPrintable(t *testing.T) {
	long := strings.Repeat("9", 1<<20)
	text := "apiVersion: routerd/v1\nmodule: shop\nroutes:\n  - path: /a\n    respond: " + long +
		"\n    middlewares: [\"" + long + "\"]\n    \"\\e]0;x\\a\": 1\n"
	_, problems := parse(text)
	if len(problems) != 3 {
		t.Errorf("%d problems", len(problems))
	}
	for _, p := range problems {
		if s := p.Error(); len(s) > 500 || strings.ContainsAny(s, "\x1b\a\n") {
			t.Errorf("%d bytes: %.300q", len(s), s)
		}
	}
}
