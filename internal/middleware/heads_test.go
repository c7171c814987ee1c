package middleware

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"routerd.dev/internal/route"
)

func TestHeadersRemovesThenSetsThenAdds(t *testing.T) {
	h := head(t, "headers", `{"request":{"add":{"x-a":"added","X-New":"n"},"remove":["X-Gone","x-a"],"set":{"X-B":"set"}},"response":{"set":{"X-R":"r"}}}`, Env{})
	x := exchange()
	x.Header = http.Header{"X-A": {"client"}, "X-B": {"1", "2"}, "X-Gone": {"g"}, "X-Kept": {"k"}}
	if a := h.Request(x); a != nil {
		t.Fatal(a)
	}
	want := http.Header{"X-A": {"added"}, "X-B": {"set"}, "X-New": {"n"}, "X-Kept": {"k"}}
	if !reflect.DeepEqual(x.Header, Headers(want)) {
		t.Errorf("request header %v, want %v", x.Header, want)
	}
	h.Response(x)
	if got := x.ResponseHeader.Get("X-R"); got != "r" {
		t.Errorf("X-R is %q", got)
	}
}

// An http.Header and any other Headers end up with the same fields, and what
// one request does to its header is not seen by the next.
func TestHeadersLaw(t *testing.T) {
	name := rapid.SampledFrom([]string{"X-A", "X-B", "X-C"})
	rapid.Check(t, func(t *rapid.T) {
		edits := headerEdits{
			Remove: rapid.SliceOfN(name, 0, 2).Draw(t, "remove"),
			Set:    rapid.MapOfN(name, rapid.SampledFrom([]string{"s", ""}), 0, 3).Draw(t, "set"),
			Add:    rapid.MapOfN(name, rapid.SampledFrom([]string{"a", ""}), 0, 3).Draw(t, "add"),
		}
		var ps problems
		steps := edits.compile("request", Env{}.withDefaults(), &ps)
		if len(ps) > 0 {
			t.Fatal(ps)
		}
		start := rapid.MapOfN(name, rapid.SliceOfN(rapid.SampledFrom([]string{"1", "2"}), 1, 2), 0, 3).Draw(t, "header")
		var last http.Header
		for range 2 {
			std, lean := http.Header{}, &leanHeader{}
			for n, vs := range start {
				for _, v := range vs {
					std.Add(n, v)
					lean.Add(n, v)
				}
			}
			apply(steps, std)
			apply(steps, lean)
			for _, n := range []string{"X-A", "X-B", "X-C"} {
				if !reflect.DeepEqual(append([]string{}, std.Values(n)...), append([]string{}, lean.Values(n)...)) {
					t.Fatalf("%s: http.Header has %q, another %q", n, std.Values(n), lean.Values(n))
				}
			}
			if last != nil && !reflect.DeepEqual(last, std) {
				t.Fatalf("the second request got %v, the first %v", std, last)
			}
			last = std.Clone()
			for n := range std {
				std.Add(n, "later") // must not reach the next request
			}
		}
	})
}

func TestReferencesAreResolvedOnTheInstanceAndNeverPrinted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	vars := map[string]string{"TOKEN": "t0ken", "BAD": "bad\x01value"}
	env := Env{Lookup: func(n string) (string, bool) { v, ok := vars[n]; return v, ok }}
	config := func(values ...string) string {
		set := map[string]string{}
		for i, v := range values {
			set["X-"+string(rune('A'+i))] = v
		}
		b, _ := json.Marshal(map[string]any{"request": map[string]any{"set": set}})
		return string(b)
	}
	h := head(t, "headers", config("Bearer ${env:TOKEN}", "${file:"+file+"}:${env:TOKEN}!"), env)
	x := exchange()
	h.Request(x)
	if a, b := x.Header.Get("X-A"), x.Header.Get("X-B"); a != "Bearer t0ken" || b != "s3cret:t0ken!" {
		t.Errorf("resolved to %q and %q", a, b)
	}

	bad := config("${env:MISSING}", "${file:"+file+".missing}", "${env:BAD}", "${file:"+filepath.Dir(file)+"}")
	if ps := Check("headers", bad); len(ps) != 0 {
		t.Errorf("what only an instance knows is no problem to Check: %v", ps)
	}
	k := registered["headers"]
	h, ps := k.New(bad, env)
	if h != nil || len(ps) != 4 {
		t.Fatalf("head %v, problems %v", h, ps)
	}
	for i, want := range []string{"environment variable MISSING is not set", "no such file", "control character", "not a regular file"} {
		if !strings.Contains(ps[i].Message, want) {
			t.Errorf("problem %d is %v, want %q", i, ps[i], want)
		}
		for _, secret := range []string{"t0ken", "s3cret", "bad\x01"} {
			if strings.Contains(ps[i].Error(), secret) {
				t.Errorf("problem prints a secret: %v", ps[i])
			}
		}
	}

	big := Env{ReadFile: func(string) ([]byte, error) { return make([]byte, maxReference+1), nil }}
	if _, ps := k.New(config("${file:x}"), big); len(ps) != 1 || !strings.Contains(ps[0].Message, "more than") {
		t.Errorf("a large file is let in: %v", ps)
	}
	failing := Env{ReadFile: func(string) ([]byte, error) { return nil, errors.New("disk is gone") }}
	if _, ps := k.New(config("${file:x}"), failing); len(ps) != 1 || !strings.Contains(ps[0].Message, "disk is gone") {
		t.Errorf("a failed read gives %v", ps)
	}
}

func TestRequestID(t *testing.T) {
	for _, c := range []struct {
		config, header, sent string
		kept                 bool
	}{
		{`{}`, "X-Request-Id", "", false},
		{`{}`, "X-Request-Id", "abc", false},
		{`{"trust":true}`, "X-Request-Id", "abc-1", true},
		{`{"trust":true}`, "X-Request-Id", "a b", false},
		{`{"trust":true}`, "X-Request-Id", strings.Repeat("a", 129), false},
		{`{"header":"x-trace","trust":true}`, "X-Trace", "a/b", true},
	} {
		for _, lean := range []bool{false, true} {
			h, x := head(t, "requestID", c.config, Env{}), exchange()
			if lean {
				x.Header, x.ResponseHeader = &leanHeader{}, &leanHeader{}
			}
			if c.sent != "" {
				x.Header.Set(c.header, c.sent)
			}
			h.Request(x)
			id := x.Header.Get(c.header)
			if c.kept != (id == c.sent) || !c.kept && len(id) != 32 {
				t.Errorf("%s: %q sent, %q forwarded", c.config, c.sent, id)
			}
			h.Response(x)
			if got := x.ResponseHeader.Values(c.header); len(got) != 1 || got[0] != id {
				t.Errorf("%s: response has %q, request %q", c.config, got, id)
			}
		}
	}
	seen := map[string]bool{}
	for range 10_000 {
		if id := newRequestID(); seen[id] {
			t.Fatalf("%s came twice", id)
		} else {
			seen[id] = true
		}
	}
}

func TestStripPrefix(t *testing.T) {
	for _, c := range []struct{ prefix, path, want string }{
		{"/api", "/api/users", "/users"},
		{"/api", "/api", "/"},
		{"/api", "/api/", "/"},
		{"/api", "/apis/users", "/apis/users"},
		{"/api", "/v1/api", "/v1/api"},
		{"/api", "/%61pi/us%65rs", "/us%65rs"},
		{"/%61pi", "/api/users", "/users"},
		{"/api/v1", "/api/v1/x/", "/x/"},
		{"/api/v1", "/api", "/api"},
		{"/a b", "/a%20b/c", "/c"},
		{"/api", "//api//users", "/users"}, // where slashes are merged
		{"/api", "/api//evil.example.com", "/evil.example.com"},
	} {
		if c.prefix == "/a b" {
			c.prefix = "/a%20b"
		}
		config, _ := json.Marshal(stripPrefixConfig{Prefix: c.prefix})
		h, x := head(t, "stripPrefix", string(config), Env{}), exchange()
		x.Path = c.path
		if a := h.Request(x); a != nil || x.Path != c.want {
			t.Errorf("%s off %s: %s, want %s", c.prefix, c.path, x.Path, c.want)
		}
	}
}

// I8: what is stripped is what was matched: in canonical form, prefix and rest
// together are the path; and what is left is a path.
func TestI8_StripPrefixLaw(t *testing.T) {
	segment := rapid.SampledFrom([]string{"a", "%61", "b", "%7e", "~", "%20", "a%2fb", "ab"})
	rapid.Check(t, func(t *rapid.T) {
		options := route.PathOptions{AllowEncodedSlash: true}
		raw := "/" + strings.Join(rapid.SliceOfN(segment, 0, 4).Draw(t, "path"), "/")
		prefix := "/" + strings.Join(rapid.SliceOfN(segment, 1, 2).Draw(t, "prefix"), "/")
		path, err := route.CanonicalPath(raw, options)
		if err != nil {
			t.Skip(err)
		}
		config, _ := json.Marshal(stripPrefixConfig{Prefix: prefix})
		k := registered["stripPrefix"]
		h, ps := k.New(string(config), Env{})
		if len(ps) > 0 {
			t.Fatal(ps)
		}
		x := &Exchange{Path: raw}
		h.Request(x)
		want := path
		canonical, _ := route.CanonicalPath(prefix, options)
		if rest, ok := strings.CutPrefix(path+"/", canonical+"/"); ok {
			want = "/" + strings.TrimSuffix(rest, "/")
		}
		if got, err := route.CanonicalPath(x.Path, options); err != nil || got != want {
			t.Fatalf("%s off %s leaves %s (%v), want %s", prefix, raw, x.Path, err, want)
		}
	})
}

func TestRewritePath(t *testing.T) {
	for _, c := range []struct {
		config, path, param string
		options             route.PathOptions
		want                string
		status              int
	}{
		{config: `{"to":"/v2/{id}/x"}`, path: "/v1/a", param: "a%2Db", want: "/v2/a%2Db/x"},
		{config: `{"to":"/v2 ü/{id...}"}`, path: "/v1", param: "a/b", want: "/v2%20%C3%BC/a/b"},
		{config: `{"to":"/v2/{id}"}`, path: "/v1", param: "..", status: 400},
		{config: `{"to":"/v2/.{id}"}`, path: "/v1", param: ".", status: 400},
		{config: `{"to":"/v2/{id}"}`, path: "/v1", param: "a%2Fb", status: 400},
		{config: `{"to":"/v2/{id}"}`, path: "/v1", param: "a%2Fb", options: route.PathOptions{AllowEncodedSlash: true}, want: "/v2/a%2Fb"},
		{config: `{"to":"/v2/{id}/x"}`, path: "/v1", param: "", status: 400},
		{config: `{"to":"/v2/{id}/x"}`, path: "/v1", param: "", options: route.PathOptions{MergeSlashes: true}, want: "/v2//x"},
		{config: `{"to":"/v2/{other}"}`, path: "/v1", param: "", status: 500},
		{config: `{"regex":"/old/(.*)","replace":"/new/$1"}`, path: "/old/a%62c", want: "/new/abc"},
		{config: `{"regex":"/old/(?P<rest>.*)","replace":"/new/${rest}/$$"}`, path: "/%6Fld/a", want: "/new/a/$"},
		{config: `{"regex":"/old/(.*)","replace":"/new/$1"}`, path: "/x/old/a", want: "/x/old/a"},
		{config: `{"regex":"/a|/b","replace":"/c"}`, path: "/ax", want: "/ax"},
		{config: `{"regex":"/(.*)","replace":"/$1/.."}`, path: "/a", status: 400},
		{config: `{"regex":"/(.*)","replace":"$1"}`, path: "/a", status: 400},
	} {
		h, x := head(t, "rewritePath", c.config, Env{Path: c.options}), exchange()
		x.Path, x.Params = c.path, []Param{{Name: "id", Raw: c.param, Value: "decoded"}}
		a := h.Request(x)
		switch {
		case c.status != 0 && (a == nil || a.Status != c.status || x.Path != c.path):
			t.Errorf("%s of %s: answer %+v, path %s; want status %d and the path untouched", c.config, c.path, a, x.Path, c.status)
		case c.status == 0 && (a != nil || x.Path != c.want):
			t.Errorf("%s of %s: answer %+v, path %s, want %s", c.config, c.path, a, x.Path, c.want)
		}
	}
	if got := Params("rewritePath", `{"to":"/{b}/{a...}/{b}"}`); !reflect.DeepEqual(got, []string{"a", "b"}) {
		t.Errorf("params %v", got)
	}
	if got := Params("rewritePath", `{"to":"/{"}`); got != nil {
		t.Errorf("params of what is refused: %v", got)
	}
}

// A short config and a long path make no path of megabytes, only to refuse it.
func TestRewritePathIsBoundedBeforeItIsMade(t *testing.T) {
	long := "/" + strings.Repeat("a", route.MaxPathBytes-1)
	for name, config := range map[string]string{
		"template": `{"to":"/` + strings.Repeat("{id}", 5000) + `"}`,
		"number":   `{"regex":"/(.*)","replace":"/` + strings.Repeat("$1", 5000) + `"}`,
		"name":     `{"regex":"/(?P<all>.*)","replace":"/` + strings.Repeat("${all}", 5000) + `"}`,
		"whole":    `{"regex":"/.*|(x)","replace":"` + strings.Repeat("$1$0", 5000) + `"}`,
	} {
		h, x := head(t, "rewritePath", config, Env{}), exchange()
		x.Path, x.Params = long, []Param{{Name: "id", Raw: long[1:]}}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		a := h.Request(x)
		runtime.ReadMemStats(&after)
		if a == nil || a.Status != 400 || !strings.Contains(a.Body, "too long") || x.Path != long {
			t.Errorf("%s: %+v", name, a)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%s: %d bytes to refuse it", name, n)
		}
	}
	h, x := head(t, "rewritePath", `{"regex":"/(.*)","replace":"/$1"}`, Env{}), exchange()
	if x.Path = long; h.Request(x) != nil || x.Path != long {
		t.Error("the longest path is refused")
	}
}

// A list answers the same by scan and by trie, and as netip says.
func TestClientListsLaw(t *testing.T) {
	addr := rapid.Custom(func(t *rapid.T) netip.Addr {
		b := rapid.SliceOfN(rapid.ByteRange(0, 3), 4, 4).Draw(t, "octets")
		a := netip.AddrFrom4([4]byte(b))
		switch rapid.IntRange(0, 2).Draw(t, "family") {
		case 1:
			a = netip.AddrFrom16(a.As16()) // mapped
		case 2:
			a = netip.AddrFrom16([16]byte{0x20, 1, 15: b[3]})
		}
		return a
	})
	rapid.Check(t, func(t *rapid.T) {
		var clients []string
		var prefixes []netip.Prefix
		for range rapid.IntRange(1, 20).Draw(t, "n") {
			a := addr.Draw(t, "addr").Unmap()
			p, err := a.Prefix(rapid.IntRange(0, a.BitLen()).Draw(t, "bits"))
			if err != nil {
				t.Fatal(err)
			}
			prefixes = append(prefixes, p)
			clients = append(clients, p.String())
		}
		var ps problems
		l := newIPList(clients, &ps)
		if len(ps) > 0 {
			t.Fatal(ps)
		}
		for range 20 {
			a := addr.Draw(t, "client")
			want := false
			for _, p := range prefixes {
				want = want || p.Contains(a.Unmap())
			}
			if l.contains(a) != want {
				t.Fatalf("%v in %v: %v", a, clients, !want)
			}
		}
	})
}

func TestAllowAndDeny(t *testing.T) {
	const list = `{"clients":["192.0.2.0/24","2001:db8::1"]}`
	for _, c := range []struct {
		client string
		listed bool
	}{{"192.0.2.9", true}, {"192.0.3.9", false}, {"::ffff:192.0.2.9", true}, {"2001:db8::1", true}, {"2001:db8::1%eth0", true}, {"2001:db8::2", false}} {
		x := exchange()
		x.Client = netip.MustParseAddr(c.client)
		if a := head(t, "ipAllow", list, Env{}).Request(x); (a == nil) != c.listed {
			t.Errorf("ipAllow %s: %+v", c.client, a)
		}
		if a := head(t, "ipDeny", list, Env{}).Request(x); (a != nil) != c.listed {
			t.Errorf("ipDeny %s: %+v", c.client, a)
		}
	}
	x := exchange()
	x.Client = netip.Addr{}
	for _, kind := range []string{"ipAllow", "ipDeny"} {
		if a := head(t, kind, list, Env{}).Request(x); a == nil || a.Status != 403 {
			t.Errorf("%s lets pass who has no address: %+v", kind, a)
		}
	}
}
