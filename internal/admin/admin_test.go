package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"routerd.dev/internal/agent"
	"routerd.dev/internal/engine"
	"routerd.dev/internal/rollout"
	"routerd.dev/internal/route"
	"routerd.dev/internal/routefile"
	"routerd.dev/internal/version"
)

// known is an Agent and a Server that a test fills.
type known struct {
	ready   agent.Readiness
	status  agent.Status
	serving *engine.Serving
}

func (k *known) Ready() agent.Readiness   { return k.ready }
func (k *known) Status() agent.Status     { return k.status }
func (k *known) Serving() *engine.Serving { return k.serving }

const shop = `
apiVersion: routerd/v1
module: shop
routes:
  - {name: item, hosts: [shop.example], methods: [GET], path: "/items/{id}", respond: {body: item}}
  - {name: beta, path: /beta, headers: [{name: X-Beta, equal: "1"}], respond: {body: beta}}
  - {name: inside, path: /inside, respond: {body: in}, clients: [192.0.2.0/24]}
`

func compiled(t *testing.T, number int64, file string) *engine.Engine {
	t.Helper()
	mods, problems := routefile.Parse([]routefile.File{{Name: "shop.yaml", Data: []byte(file)}})
	table := &route.Table{Modules: mods}
	if err := append(problems, engine.Check(table)...).Err(); err != nil {
		t.Fatal(err)
	}
	snap, err := version.Encode(table)
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.Compile(t.Context(), version.Ref{Number: number, Digest: snap.Digest}, table, nil, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func serving(t *testing.T) *known {
	return &known{serving: &engine.Serving{Epoch: 9, Stable: compiled(t, 4, shop)}}
}

func options(k *known) Options {
	return Options{Agent: k, Server: k, Metrics: http.NotFoundHandler(), Version: "v1", Local: true}
}

func get(t *testing.T, h http.Handler, target string, header ...string) (int, map[string]any, string) {
	t.Helper()
	r := httptest.NewRequest("GET", target, nil)
	if strings.HasPrefix(target, "/") {
		r.Host = "127.0.0.1:9080"
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var body map[string]any
	_ = json.Unmarshal(w.Body.Bytes(), &body)
	return w.Code, body, w.Body.String()
}

func TestReadyz(t *testing.T) {
	for _, c := range []struct {
		name  string
		ready agent.Readiness
		code  int
		want  map[string]any
	}{
		{"etcd", agent.Readiness{Ready: true, Why: "serving a committed epoch", Source: agent.SourceEtcd, Epoch: 3}, 200, map[string]any{"ready": true, "source": "etcd", "epoch": 3.0}},
		{"disk", agent.Readiness{Ready: true, Why: "serving an epoch remembered on disk", Source: agent.SourceDisk, Epoch: 2}, 200, map[string]any{"ready": true, "source": "disk", "epoch": 2.0}},
		{"nothing", agent.Readiness{Why: "nothing is served yet"}, 503, map[string]any{"ready": false, "why": "nothing is served yet", "source": nil}},
		{"evicted", agent.Readiness{Why: "evicted: too slow", Source: agent.SourceEtcd, Epoch: 4}, 503, map[string]any{"ready": false, "why": "evicted: too slow", "epoch": 4.0}},
		{"draining", agent.Readiness{Why: "draining"}, 503, map[string]any{"ready": false, "why": "draining"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := New(options(&known{ready: c.ready}))
			code, body, text := get(t, h, "/readyz")
			if code != c.code {
				t.Errorf("status %d, want %d", code, c.code)
			}
			for k, v := range c.want {
				if body[k] != v {
					t.Errorf("%s is %v, want %v in %s", k, body[k], v, text)
				}
			}
			if code, _, text := get(t, h, "/healthz"); code != 200 || text != "ok\n" {
				t.Errorf("/healthz: %d %q; it is about the process only", code, text)
			}
		})
	}
}

func TestStatusIsTheAgents(t *testing.T) {
	k := &known{status: agent.Status{Group: "main", Instance: "a", Frozen: "store-went-back", HighestEpoch: 7}}
	code, body, text := get(t, New(options(k)), "/v1/status")
	if code != 200 || body["group"] != "main" || body["instance"] != "a" || body["frozen"] != "store-went-back" || body["highestEpoch"] != 7.0 {
		t.Errorf("%d %s", code, text)
	}
}

// TestStatusShowsWhatIsOutOfTheOrdinary: a candidate with its share, an
// eviction and a pin, each under its name, and none of it when there is none.
func TestStatusShowsWhatIsOutOfTheOrdinary(t *testing.T) {
	ref := version.Ref{Number: 5, Digest: version.DigestOf([]byte("5"))}
	k := &known{status: agent.Status{
		Serving: &agent.Serving{Candidate: &rollout.Candidate{Ref: ref, Permyriad: 250, Match: &rollout.Match{Cookie: "beta"}}},
		Evicted: true, Pinned: ref.Digest, Pin: &agent.Pin{Ref: ref, By: "op", Why: "it hurts"},
	}}
	_, body, text := get(t, New(options(k)), "/v1/status")
	candidate, _ := body["serving"].(map[string]any)["candidate"].(map[string]any)
	pin, _ := body["pin"].(map[string]any)
	if candidate["number"] != 5.0 || candidate["permyriad"] != 250.0 || candidate["match"].(map[string]any)["cookie"] != "beta" ||
		body["evicted"] != true || body["pinned"] != ref.Digest.String() || pin["number"] != 5.0 || pin["by"] != "op" || pin["why"] != "it hurts" {
		t.Errorf("%s", text)
	}
	k.status = agent.Status{Serving: &agent.Serving{}}
	if _, _, text := get(t, New(options(k)), "/v1/status"); strings.Contains(text, "pin") || strings.Contains(text, "evicted") || strings.Contains(text, "candidate") {
		t.Errorf("%s", text)
	}
}

func TestRoutes(t *testing.T) {
	h := New(options(serving(t)))
	code, body, text := get(t, h, "/v1/routes")
	if code != 200 || body["epoch"] != 9.0 || body["revision"] != 4.0 || len(body["routes"].([]any)) != 3 {
		t.Fatalf("%d %s", code, text)
	}
	first := body["routes"].([]any)[0].(map[string]any)
	if first["route"] != "shop/item" || first["path"] != "/items/{id}" || first["hosts"].([]any)[0] != "shop.example" {
		t.Errorf("%v", first)
	}
	if _, body, text := get(t, h, "/v1/routes?module=other"); len(body["routes"].([]any)) != 0 {
		t.Errorf("another module's routes: %s", text)
	}
}

func TestNothingServed(t *testing.T) {
	h := New(options(&known{}))
	for _, path := range []string{"/v1/routes", "/v1/explain?url=/", "/v1/holding"} {
		if code, body, text := get(t, h, path); code != 503 || body["error"] == nil {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
}

func TestExplain(t *testing.T) {
	k := serving(t)
	k.serving.Candidate = compiled(t, 5, strings.Replace(shop, "name: item", "name: article", 1))
	h := New(options(k))
	for _, c := range []struct{ query, route string }{
		{"url=http://shop.example/items/7", "shop/item"},
		{"method=get&url=http://shop.example/items/7", "shop/item"},
		{"revision=5&url=http://shop.example/items/7", "shop/article"},
		{"url=/beta&header=x-beta:%201", "shop/beta"},
		{"url=/beta", ""},
		{"url=/inside&client=192.0.2.7", "shop/inside"},
		{"url=/inside&client=::ffff:192.0.2.7", "shop/inside"},
		{"url=/inside&client=203.0.113.7", ""},
		{"method=POST&url=http://shop.example/items/7", ""},
	} {
		code, body, text := get(t, h, "/v1/explain?"+c.query)
		got, _ := body["route"].(string)
		if code != 200 || got != c.route || body["considered"] == nil {
			t.Errorf("%s: %d route %q, want %q\n%s", c.query, code, got, c.route, text)
		}
	}
	for _, c := range []struct {
		query string
		code  int
		says  string
	}{
		{"", 400, "url is missing"},
		{"method=G%20T&url=/", 400, "method=G T"},
		{"url=/a%0ab", 400, "as a client sends it"},
		{"url=/a%20b", 400, "as a client sends it"},
		{"url=/&header=nocolon", 400, "header=nocolon: want Name:Value"},
		{"url=/&header=bad%20name:v", 400, "want Name:Value"},
		{"url=/&header=n:v%0d%0ax", 400, "want Name:Value"},
		{"url=/&client=home", 400, "client=home: want an address"},
		{"url=/&revision=9", 404, "serves revision 4 and, as a candidate, 5"},
		{"url=/&revision=x", 404, "revision=x"},
	} {
		code, body, text := get(t, h, "/v1/explain?"+c.query)
		if said, _ := body["error"].(string); code != c.code || !strings.Contains(said, c.says) {
			t.Errorf("%s: %d %s, want %d with %q", c.query, code, text, c.code, c.says)
		}
	}
}

// TestExplainReadsPathsAsTheDataPlane: what the listeners allow, explain does.
func TestExplainReadsPathsAsTheDataPlane(t *testing.T) {
	o := options(serving(t))
	const ask = "/v1/explain?url=http://shop.example//items/a%252Fb"
	if _, body, text := get(t, New(o), ask); body["status"] != 400.0 {
		t.Errorf("by default: %s", text)
	}
	o.Paths = route.PathOptions{MergeSlashes: true, AllowEncodedSlash: true}
	if _, body, text := get(t, New(o), ask); body["route"] != "shop/item" {
		t.Errorf("where the data plane takes it: %s", text)
	}
}

// TestHoldingProvesItself: what an instance gives back is the snapshot it
// serves, piece by piece by its digest.
func TestHoldingProvesItself(t *testing.T) {
	k := serving(t)
	k.status = agent.Status{Fleet: "f", Group: "main", Instance: "a", HighestEpoch: 12, HighestRevision: 6}
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/v1/holding", nil)
	r.Host = "localhost"
	New(options(k)).ServeHTTP(w, r)
	var got Holding
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 {
		t.Fatalf("%d %v", w.Code, err)
	}
	want := k.serving.Stable.Ref()
	if got.Serving != want || version.DigestOf(got.Manifest) != want.Digest {
		t.Errorf("serving %v with a manifest of digest %v, want %v", got.Serving, version.DigestOf(got.Manifest), want)
	}
	if got.Fleet != "f" || got.Group != "main" || got.Instance != "a" || got.HighestEpoch != 12 || got.HighestRevision != 6 {
		t.Errorf("%+v", got)
	}
	manifest, err := version.ParseManifest(want.Digest, got.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range manifest.Modules {
		for _, c := range m.Chunks {
			if got.Chunks[c.Digest.String()] == nil {
				t.Errorf("chunk %v of module %s is missing", c.Digest, m.Name)
			}
		}
	}
}

func TestHoldingOfAnotherBuildIsRefused(t *testing.T) {
	k := serving(t)
	table := k.serving.Stable.Table()
	ref := version.Ref{Number: 4, Digest: version.DigestOf([]byte("what another build made of it"))}
	e, err := engine.Compile(t.Context(), ref, table, nil, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	k.serving = &engine.Serving{Stable: e}
	if code, body, text := get(t, New(options(k)), "/v1/holding"); code != 500 || body["error"] == nil || body["manifest"] != nil {
		t.Errorf("%d %s", code, text)
	}
}

// held is a Server that is asked, and answers once it may.
type held struct {
	Server
	asked, answer chan struct{}
}

func (h held) Serving() *engine.Serving {
	h.asked <- struct{}{}
	<-h.answer
	return h.Server.Serving()
}

// TestOneWholeTableAtATime: each takes memory for all routes. Who has gone does
// not wait.
func TestOneWholeTableAtATime(t *testing.T) {
	for _, path := range []string{"/v1/routes", "/v1/holding"} {
		k := serving(t)
		h := held{k, make(chan struct{}), make(chan struct{})}
		o := options(k)
		o.Server = h
		pages := New(o)
		var wg sync.WaitGroup
		wg.Go(func() { get(t, pages, "/v1/routes") })
		<-h.asked
		gone, leave := context.WithCancel(t.Context())
		leave()
		r := httptest.NewRequestWithContext(gone, "GET", path, nil)
		r.Host = "localhost"
		done := make(chan struct{})
		wg.Go(func() { pages.ServeHTTP(httptest.NewRecorder(), r); close(done) })
		select {
		case <-h.asked:
			t.Errorf("%s: a second table is made beside the first", path)
		case <-done:
		}
		close(h.answer)
		wg.Wait()
	}
}

func TestPprofIsOffByDefault(t *testing.T) {
	o := options(serving(t))
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/heap"} {
		if code, _, _ := get(t, New(o), path); code != 404 {
			t.Errorf("%s: %d by default", path, code)
		}
	}
	o.Pprof = true
	h := New(o)
	if code, _, text := get(t, h, "/debug/pprof/"); code != 200 || !strings.Contains(text, "goroutine") {
		t.Errorf("with --admin-pprof: %d", code)
	}
	if code, _, _ := get(t, h, "/debug/pprof/cmdline", "Sec-Fetch-Site", "cross-site"); code != 403 {
		t.Errorf("a profile for another site's page: %d", code)
	}
}

func TestOnLoopbackOnlyLocalNames(t *testing.T) {
	o := options(serving(t))
	for host, local := range map[string]bool{
		"127.0.0.1:9080": true, "localhost:9080": true, "LOCALHOST": true, "localhost.": true, "shop.localhost:9080": true,
		"[::1]:9080": true, "::1": true, "10.1.2.3:9080": true, "": true,
		"evil.example:9080": false, "localhost.evil.example": false, "127.0.0.1.nip.example": false, "notlocalhost": false,
	} {
		for _, loopback := range []bool{true, false} {
			o.Local = loopback
			r := httptest.NewRequest("GET", "/v1/holding", nil)
			r.Host = host
			w := httptest.NewRecorder()
			New(o).ServeHTTP(w, r)
			want := 200
			if loopback && !local {
				want = 421
			}
			if w.Code != want {
				t.Errorf("Host %q, listener on loopback %v: %d, want %d", host, loopback, w.Code, want)
			}
		}
	}
}

func TestOnlyReads(t *testing.T) {
	h := New(options(serving(t)))
	var open []string
	for _, path := range []string{"/", "/healthz", "/readyz", "/metrics", "/v1/status", "/v1/routes", "/v1/explain", "/v1/holding"} {
		for _, method := range []string{"POST", "PUT", "DELETE", "PATCH"} {
			r := httptest.NewRequest(method, path, nil)
			r.Host = "localhost"
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, r); w.Code != 405 {
				open = append(open, method+" "+path)
			}
		}
	}
	if len(open) > 0 {
		t.Errorf("taken: %v", open)
	}
	if code, _, text := get(t, h, "/"); code != 200 || !strings.Contains(text, "/v1/explain") {
		t.Errorf("index: %d %s", code, text)
	}
	if code, _, _ := get(t, h, "/nowhere"); code != 404 {
		t.Errorf("/nowhere: %d", code)
	}
}
