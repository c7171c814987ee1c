package routefile

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"

	"routerd.dev/internal/yamlfile"
)

type limitConfig struct {
	Rate  int    `json:"rate" jsonschema:"required,minimum=1" jsonschema_description:"Requests each per."`
	Per   span   `json:"per,omitempty" jsonschema:"default=1s" jsonschema_description:"The time."`
	Burst int    `json:"burst,omitempty"`
	Key   string `json:"key,omitempty" jsonschema:"enum=client,enum=route"`
}

// span is a duration that reads itself, as middlewares have.
type span time.Duration

func (s *span) UnmarshalText(b []byte) error {
	d, err := time.ParseDuration(string(b))
	*s = span(d)
	return err
}

type headersConfig struct {
	Request struct {
		Set map[string]string `json:"set,omitempty" jsonschema_description:"What | replaces."`
	} `json:"request,omitzero"`
}

func kinds() []MiddlewareKind {
	return []MiddlewareKind{
		{Name: "rateLimit", Doc: "Limits.", Config: limitConfig{}},
		{Name: "requestID", Doc: "Names a request.", Config: struct{}{}},
		{Name: "headers", Doc: "Edits.", Config: headersConfig{}},
	}
}

func compileSchema(t *testing.T, kinds ...MiddlewareKind) *jsonschema.Schema {
	t.Helper()
	b, err := Schema(kinds...)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if got := doc.(map[string]any)["$schema"]; got != "https://json-schema.org/draft/2020-12/schema" {
		t.Errorf("is of draft %v", got)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(SchemaID, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(SchemaID)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// check validates the first document of a route file.
func check(t testing.TB, s *jsonschema.Schema, text string) error {
	t.Helper()
	docs, ps := yamlfile.Parse("f", []byte(text))
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	b, err := docs[0].Root.JSON()
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(v)
}

func TestTheSchemaTakesWhatParseTakes(t *testing.T) {
	open, closed := compileSchema(t), compileSchema(t, kinds()...)
	for _, text := range []string{sample, example} {
		if err := check(t, open, text); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
		if err := check(t, closed, text); err != nil {
			t.Errorf("with kinds: %v\n%s", err, text)
		}
	}
}

func TestTheSchemaRefusesWhatParseRefuses(t *testing.T) {
	s := compileSchema(t, kinds()...)
	route := func(fields string) string { return head + "routes: [{" + fields + "}]\n" }
	for _, text := range []string{
		"module: a\n" + tail,
		"apiVersion: routerd/v2\nmodule: a\n" + tail,
		"apiVersion: routerd/v1\n" + tail,
		head + "upstream: {}\n" + tail,
		route("path: /, host: a, respond: x"),
		route("path: /, hosts: a, respond: x"),
		route("path: /, hosts: [], respond: x"),
		route("path: /, respond: {status: 99}"),
		route("path: /, respond: 1"),
		route("path: /, redirect: {status: 302}"),
		route("path: /, redirect: {to: /, status: 200}"),
		route("path: /, proxy: {upstream: u, timeout: 10}"),
		route("path: /, proxy: {upstream: u, timeout: soon}"),
		route("path: /, respond: x, headers: [{name: a}]"),
		route("path: /, respond: x, headers: [{name: a, equal: x, prefix: y}]"),
		route("path: /, respond: x, headers: [{name: a, present: false}]"),
		route("path: /, respond: x, middlewares: [{}]"),
		route("path: /, respond: x, middlewares: [{use: a, requestID: {}}]"),
		route("path: /, respond: x, middlewares: [{rateLimits: {rate: 1}}]"),
		route("path: /, respond: x, middlewares: [{rateLimit: {rate: 0}}]"),
		route("path: /, respond: x, middlewares: [{rateLimit: {rate: 1, brst: 1}}]"),
		route("path: /, respond: x, clients: [here]"),
		head + "upstreams: {u: {targets: []}}\n" + tail,
		head + "upstreams: {u: {targets: [{weight: 1}]}}\n" + tail,
		head + "middlewares: {m: {use: a}}\n" + tail,
		head + tail + "tests: [{request: GET}]\n",
		head + tail + "tests: [{request: GET /, expect: {route: a, status: 404}}]\n",
	} {
		if err := check(t, s, text); err == nil {
			t.Errorf("passes:\n%s", text)
		}
	}
	// What Parse leaves to route.Validate, the schema sees already.
	for _, text := range []string{route("respond: x"), route("path: /, prefix: /, respond: x"), route("path: /"), route("path: /, respond: x, redirect: {to: /}")} {
		if err := check(t, s, text); err == nil {
			t.Errorf("passes:\n%s", text)
		}
	}
}

// Any form of a module that Encode chooses has the right types by the schema;
// what it refuses of a random module are values, not forms.
func TestWhatIsEncodedFitsTheSchema(t *testing.T) {
	s := compileSchema(t)
	rapid.Check(t, func(rt *rapid.T) {
		m := modules().Draw(rt, "module")
		for i := range m.Routes {
			if r := m.Routes[i].Action.Respond; r != nil {
				r.Status = 200
			}
			if r := m.Routes[i].Action.Redirect; r != nil {
				r.Status, r.To = 302, "/"+r.To
			}
			if p := m.Routes[i].Action.Proxy; p != nil {
				p.Upstream += "x"
			}
			m.Routes[i].Path, m.Routes[i].Prefix = "/", ""
			m.Routes[i].Headers, m.Routes[i].Query, m.Routes[i].Cookies = nil, nil, nil
		}
		for i := range m.Tests {
			m.Tests[i].Status, m.Tests[i].Route, m.Tests[i].URL = 0, "r", "/"+m.Tests[i].URL
		}
		m.Name += "m"
		b, err := Encode(m)
		if err != nil {
			rt.Fatal(err)
		}
		if err := check(t, s, string(b)); err != nil {
			rt.Fatalf("%v\n%s", err, b)
		}
	})
}

func TestReference(t *testing.T) {
	a, b := Reference(kinds()...), Reference(kinds()...)
	if !bytes.Equal(a, b) {
		t.Error("two pages of the same kinds differ")
	}
	page := string(a)
	for _, want := range []string{
		"```yaml\n" + example + "```",
		"| `connect` | duration | `1s` | To open a connection. |",
		"| `hosts` | list of text |",
		"| `targets` | list of URL or map | *required* |",
		"### headers\n\nEdits.\n",
		"#### request\n",
		"| `per` | duration | `1s` | The time. |",
		"| `set` | map of text |  | What \\| replaces. |",
		"### rateLimit\n",
		"It has no settings.",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	// Each field of a file is explained.
	b, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Properties map[string]struct{ Description string }
		Defs       map[string]struct {
			Properties map[string]struct{ Description string }
		} `json:"$defs"`
	}
	if err := json.Unmarshal(b, &schema); err != nil {
		t.Fatal(err)
	}
	schema.Defs["file"] = struct {
		Properties map[string]struct{ Description string }
	}{schema.Properties}
	for name, def := range schema.Defs {
		for field, f := range def.Properties {
			if f.Description == "" || !strings.Contains(page, "| `"+field+"` |") && field != "use" {
				t.Errorf("%s.%s is not explained", name, field)
			}
		}
	}
}

func TestTheExampleHasNoMistakes(t *testing.T) {
	mods, ps := parse(example)
	if len(ps) > 0 || len(mods) != 1 {
		t.Fatal(ps)
	}
}
