package admin

import (
	"encoding/json"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"

	"routerd.dev/internal/agent"
	"routerd.dev/internal/engine"
	"routerd.dev/internal/route"
)

// An Agent is who knows how the instance is; *agent.Agent is one.
type Agent interface {
	Ready() agent.Readiness
	Status() agent.Status
}

// A Server is who knows what is served; *engine.Switch is one.
type Server interface {
	Serving() *engine.Serving
}

// Options are what the pages show.
type Options struct {
	Agent   Agent
	Server  Server
	Metrics http.Handler
	Paths   route.PathOptions // of the data plane, so that explain decides alike
	Pprof   bool
	Version string
}

type handler struct{ Options }

// New returns the pages.
func New(o Options) http.Handler {
	h := handler{o}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", h.index)
	mux.HandleFunc("GET /healthz", h.healthz)
	mux.HandleFunc("GET /readyz", h.readyz)
	mux.Handle("GET /metrics", o.Metrics)
	mux.HandleFunc("GET /v1/status", h.status)
	mux.HandleFunc("GET /v1/routes", h.routes)
	mux.HandleFunc("GET /v1/explain", h.explain)
	mux.HandleFunc("GET /v1/holding", h.holding)
	if o.Pprof {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

func (h handler) index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("routerd " + h.Version + "\n\n/healthz\n/readyz\n/metrics\n/v1/status\n/v1/routes\n/v1/explain?method=GET&url=http://host/path\n/v1/holding\n"))
}

func (h handler) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n"))
}

func (h handler) readyz(w http.ResponseWriter, _ *http.Request) {
	r := h.Agent.Ready()
	code := http.StatusOK
	if !r.Ready {
		code = http.StatusServiceUnavailable
	}
	reply(w, code, r)
}

func (h handler) status(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, h.Agent.Status())
}

type shownRoute struct {
	Route    string   `json:"route"` // module/name
	Hosts    []string `json:"hosts,omitempty"`
	Methods  []string `json:"methods,omitempty"`
	Path     string   `json:"path,omitempty"`
	Prefix   string   `json:"prefix,omitempty"`
	Priority int      `json:"priority,omitempty"`
}

func (h handler) routes(w http.ResponseWriter, r *http.Request) {
	type page struct {
		Epoch    int64        `json:"epoch"`
		Revision int64        `json:"revision"`
		Digest   string       `json:"digest"`
		Routes   []shownRoute `json:"routes"`
	}
	s := h.Server.Serving()
	if s == nil || s.Stable == nil {
		problem(w, http.StatusServiceUnavailable, "nothing is served yet; /readyz says why")
		return
	}
	ref := s.Stable.Ref()
	p := page{Epoch: s.Epoch, Revision: ref.Number, Digest: ref.Digest.String(), Routes: []shownRoute{}}
	module := r.URL.Query().Get("module")
	for m, rt := range s.Stable.All() {
		if module == "" || module == m.Name {
			p.Routes = append(p.Routes, shownRoute{
				Route: m.Name + "/" + rt.Name, Hosts: rt.Hosts, Methods: rt.Methods,
				Path: rt.Path, Prefix: rt.Prefix, Priority: rt.Priority,
			})
		}
	}
	reply(w, http.StatusOK, p)
}

func (h handler) explain(w http.ResponseWriter, r *http.Request) {
	s := h.Server.Serving()
	if s == nil || s.Stable == nil {
		problem(w, http.StatusServiceUnavailable, "nothing is served yet; /readyz says why")
		return
	}
	q := r.URL.Query()
	method, url := strings.ToUpper(q.Get("method")), q.Get("url")
	if method == "" {
		method = http.MethodGet
	}
	if url == "" {
		problem(w, http.StatusBadRequest, "url is missing: /v1/explain?method=GET&url=http://host/path, with header=Name:Value and client=ADDRESS if they matter")
		return
	}
	head := engine.HeadOf(method, url)
	head.Paths = h.Paths
	header := http.Header{}
	for _, kv := range q["header"] {
		name, value, ok := strings.Cut(kv, ":")
		if !ok {
			problem(w, http.StatusBadRequest, "header="+kv+": want Name:Value")
			return
		}
		header.Add(name, strings.TrimSpace(value))
	}
	head.Header = header
	if c := q.Get("client"); c != "" {
		addr, err := netip.ParseAddr(c)
		if err != nil {
			problem(w, http.StatusBadRequest, "client="+c+": want an address")
			return
		}
		head.Client = addr
	}
	reply(w, http.StatusOK, s.Stable.Explain(&head))
}

func problem(w http.ResponseWriter, code int, message string) {
	reply(w, code, map[string]string{"error": message})
}

func reply(w http.ResponseWriter, code int, v any) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		code, b = http.StatusInternalServerError, []byte(`{"error": "the answer has no JSON form"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(append(b, '\n'))
}
