package middleware

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestKindsAreWhole asks of every kind what the schema, the reference and the
// capabilities of a build are made of.
func TestKindsAreWhole(t *testing.T) {
	names := registered.names()
	// A kind that route files use may not go away; a new one needs no line here.
	for _, old := range []string{"headers", "ipAllow", "ipDeny", "rateLimit", "requestID", "rewritePath", "stripPrefix"} {
		if !slices.Contains(names, old) {
			t.Errorf("there is no kind %s any more", old)
		}
	}
	pages := Reference()
	if len(pages) != len(names) {
		t.Errorf("%d pages of %d kinds", len(pages), len(names))
	}
	for i, p := range pages {
		if p.Name != names[i] {
			t.Errorf("page %d is of %s, want %s: by name", i, p.Name, names[i])
		}
		if p.Doc == "" || p.Capability != "middleware/"+p.Name+"/1" || len(p.Fields) == 0 {
			t.Errorf("%s: page is not whole: %+v", p.Name, p)
		}
		for _, f := range p.Fields {
			if f.Doc == "" || strings.HasSuffix(f.Path, ".") || f.Path == "" {
				t.Errorf("%s: field %+v lacks its name or doc", p.Name, f)
			}
		}
	}
}

// TestOneFileOneKind reads the package: what makes a kind registers it, in the
// same file, and no file has two.
func TestOneFileOneKind(t *testing.T) {
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	kinds := 0
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") || path == "kind.go" || path == "kinds.go" { // which define both
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		calls := map[string]int{}
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if name, ok := call.Fun.(*ast.Ident); ok {
					calls[name.Name]++
				}
			}
			return true
		})
		kinds += calls["register"]
		if calls["register"] != calls["newKind"] || calls["register"] > 1 {
			t.Errorf("%s makes %d kinds and registers %d: a file makes one and registers it, or none", path, calls["newKind"], calls["register"])
		}
	}
	if kinds != len(Kinds()) {
		t.Errorf("%d files register a kind, and there are %d kinds", kinds, len(Kinds()))
	}
}

func TestRegistryRefuses(t *testing.T) {
	whole := newKind("a", "Does it.", func(*stripPrefixConfig, Env, *problems) *Head { return &Head{} })
	r := registry{}
	if err := r.add(whole); err != nil {
		t.Fatal(err)
	}
	undocumented, nameless := whole, whole
	undocumented.Name, undocumented.Doc = "b", ""
	nameless.Name = ""
	for what, k := range map[string]Kind{
		"two kinds have the name a": whole,
		`kind "b" lacks`:            undocumented,
		`kind "" lacks`:             nameless,
	} {
		if err := r.add(k); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
	if names := r.names(); !slices.Equal(names, []string{"a"}) {
		t.Errorf("the registry has %v", names)
	}
}

// Every config struct consists of what decode can assign.
func TestConfigsAreOfKnownTypes(t *testing.T) {
	for _, k := range Kinds() {
		var check func(path string, ty reflect.Type)
		check = func(path string, ty reflect.Type) {
			if ty == reflect.TypeFor[Duration]() {
				return
			}
			switch ty.Kind() {
			case reflect.Struct:
				for i := range ty.NumField() {
					check(path+"."+fieldName(ty.Field(i)), ty.Field(i).Type)
				}
			case reflect.Slice, reflect.Map:
				check(path+"[]", ty.Elem())
			case reflect.String, reflect.Bool, reflect.Int, reflect.Float64:
			default:
				t.Errorf("%s has type %s, which decode does not know", path, ty)
			}
		}
		check(k.Name, reflect.TypeOf(k.Config))
	}
}

func TestCheckNamesEveryProblem(t *testing.T) {
	for _, c := range []struct {
		kind, config string
		want         []string // field: part of the message
	}{
		{"nope", `{}`, []string{`: unknown middleware "nope"`}},
		{"rateLimit", `{"rate":0,"per":"-1s","burst":-1,"key":"cookie"}`, []string{"rate: must be > 0", "per: must be from", "burst: must be from", "key: \"cookie\" is not known"}},
		{"rateLimit", `{"rate":"x","per":7,"burst":1.5,"nope":1}`, []string{"rate: want a number", "per: want a string", "burst: want a whole number", "nope: unknown field"}},
		{"rateLimit", `{"rate":1,"rate":2}`, []string{"rate: stands twice"}},
		{"rateLimit", `{"rate":1e300}`, []string{"burst: must be"}},
		{"rateLimit", `{"rate":0.001,"per":"24h","burst":1000000}`, []string{"rate: is out of range"}},
		{"rateLimit", `{"rate":null}`, []string{"rate: want a number, got null"}},
		{"rateLimit", `{"rate":1} {}`, []string{": config is not valid JSON"}},
		{"rateLimit", `{"rate":`, []string{": config is not valid JSON"}},
		{"rateLimit", ``, []string{": config is not valid JSON"}},
		{"rateLimit", `[]`, []string{": want an object, got a list"}},
		{"rateLimit", strings.Repeat(`[`, 100_000), []string{": config has"}},
		{"rateLimit", strings.Repeat(`[`, 1000), []string{": config is not valid JSON: nested"}},
		{"headers", `{}`, []string{": no edits"}},
		{"headers", `{"request":{"set":{"a b":"1","X-A":"1","x-a":"2","Host":"h","Upgrade":"h"},"remove":["Content-Length"]}}`, []string{
			"request.remove: Content-Length belongs", "request.set.Host: Host cannot", "request.set.Upgrade: Upgrade belongs", `request.set.a b: "a b" is not`, "request.set.x-a: stands twice",
		}},
		{"headers", `{"response":{"set":{"X-A":"a\nb","X-B":"${env:}","X-C":"${vault:x}","X-D":"${env:x"}}}`, []string{
			"response.set.X-A: value holds", "response.set.X-B: bad reference", "response.set.X-C: bad reference", "response.set.X-D: bad reference",
		}},
		{"headers", `{"request":{"set":{"Authorization":"Bearer abc","X-Any":"sk_live_123"}}}`, []string{"request.set.Authorization: a literal secret", "request.set.X-Any: a literal secret"}},
		{"ipDeny", `{"clients":["::ffff:0:0/95","::ffff:10.0.0.0/104"]}`, []string{"clients[0]: ::ffff:0:0/95 has bits"}},
		{"ipAllow", `{"clients":["10.0.0.1/8","x","::/0","1.2.3.4"]}`, []string{"clients[0]: 10.0.0.1/8 has bits", `clients[1]: "x" is neither`}},
		{"ipDeny", `{}`, []string{"clients: is required"}},
		{"stripPrefix", `{}`, []string{"prefix: is required"}},
		{"stripPrefix", `{"prefix":"/api/"}`, []string{"prefix: ends with"}},
		{"stripPrefix", `{"prefix":"api"}`, []string{"prefix: path does not begin"}},
		{"stripPrefix", `{"prefix":"/a/../b"}`, []string{"prefix: path has a dot segment"}},
		{"rewritePath", `{}`, []string{": needs to"}},
		{"rewritePath", `{"to":"/a","regex":"b"}`, []string{"to: stands beside"}},
		{"rewritePath", `{"to":"/a?b=c"}`, []string{"to: holds one of"}},
		{"rewritePath", `{"to":"/a/{"}`, []string{"to: bad parameter"}},
		{"rewritePath", `{"to":"/a/.."}`, []string{"to: path has a dot segment"}},
		{"rewritePath", `{"to":"{id}"}`, []string{"to: path does not begin"}},
		{"rewritePath", `{"to":"/%2{id}"}`, []string{"to: path has an invalid escape"}},
		{"rewritePath", `{"regex":"(","replace":"/a"}`, []string{"regex: error parsing"}},
		{"rewritePath", `{"regex":"a)(b","replace":"/a"}`, []string{"regex: error parsing"}},
		{"rewritePath", `{"regex":"((a{100}){100}){100}","replace":"/a"}`, []string{"regex: "}},
		{"rewritePath", `{"regex":"/((a+b?c*){50}d){19}","replace":"/a"}`, []string{"regex: is too large"}},
		{"rewritePath", `{"regex":"/(.*)","replace":"/$1x"}`, []string{"replace: regex has no group 1x"}},
		{"rewritePath", `{"regex":"/(.*)","replace":"a/$2?"}`, []string{"replace: does not begin", "replace: holds ?", "replace: regex has no group 2"}},
		{"requestID", `{"header":"a b"}`, []string{`header: "a b" is not`}},
	} {
		var got []string
		for _, p := range Check(c.kind, c.config) {
			got = append(got, p.Field+": "+p.Message)
		}
		ok := len(got) == len(c.want)
		for i := range min(len(got), len(c.want)) {
			ok = ok && strings.HasPrefix(got[i], c.want[i])
		}
		if !ok {
			t.Errorf("%s %.100s:\n got %q\nwant %q", c.kind, c.config, got, c.want)
		}
	}
}

// I6: whatever JSON a snapshot holds, a kind either gives a Head that runs, or
// problems; never both, never neither.
func TestI6_AnyConfigGivesAHeadOrProblems(t *testing.T) {
	words := []string{
		"rate", "per", "burst", "key", "clients", "prefix", "to", "regex", "replace", "header", "trust",
		"request", "response", "set", "add", "remove", "X-A", "1s", "client", "/a/{id}", "(a)", "/$1", "10.0.0.0/8", "${env:HOME}", "",
	}
	var value func(depth int) *rapid.Generator[any]
	value = func(depth int) *rapid.Generator[any] {
		leaves := []*rapid.Generator[any]{
			rapid.SampledFrom(words).AsAny(), rapid.Float64().AsAny(), rapid.IntRange(-5, 5).AsAny(), rapid.Bool().AsAny(),
			rapid.Just[any](nil), rapid.String().AsAny(),
		}
		if depth > 0 {
			leaves = append(leaves,
				rapid.MapOfN(rapid.SampledFrom(words), value(depth-1), 0, 4).AsAny(),
				rapid.SliceOfN(value(depth-1), 0, 3).AsAny())
		}
		return rapid.OneOf(leaves...)
	}
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.SampledFrom(Kinds()).Draw(t, "kind")
		config := rapid.MapOfN(rapid.SampledFrom(words), value(2), 0, 4).Draw(t, "config")
		raw, err := json.Marshal(config)
		if err != nil {
			t.Skip(err) // a NaN, which is not JSON
		}
		h, ps := k.New(string(raw), Env{CheckOnly: true})
		if (h == nil) == (len(ps) == 0) {
			t.Fatalf("%s %s: head %v, problems %v", k.Name, raw, h, ps)
		}
		if h != nil {
			x := exchange()
			if h.Request != nil {
				h.Request(x)
			}
			if h.Response != nil {
				h.Response(x)
			}
		}
	})
}

func FuzzCheck(f *testing.F) {
	f.Add(3, `{"rate":1,"per":"1s"}`)
	f.Add(5, `{"to":"/a/{id}"}`)
	f.Add(0, `{"request":{"set":{"X-A":"${file:/x}"}}}`)
	f.Fuzz(func(t *testing.T, kind int, config string) {
		kinds := Kinds()
		k := kinds[uint(kind)%uint(len(kinds))]
		h, ps := k.New(config, Env{CheckOnly: true})
		if (h == nil) == (len(ps) == 0) {
			t.Fatalf("%s %s: head %v, problems %v", k.Name, config, h, ps)
		}
	})
}

func TestDurationRoundTrips(t *testing.T) {
	d := Duration(90 * time.Second)
	b, err := d.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	var back Duration
	if err := back.UnmarshalText(b); err != nil || back != d {
		t.Errorf("%s reads back as %v, %v", b, back, err)
	}
}
