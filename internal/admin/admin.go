package admin

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/net/http/httpguts"

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
	// Local: the listener is on loopback, so a browser on this machine is the
	// only way in from outside; see guard.
	Local bool
}

type handler struct {
	Options
	encoding chan struct{} // one whole table at a time: it takes memory and time
}

// New returns the pages.
func New(o Options) http.Handler {
	h := handler{o, make(chan struct{}, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", h.index)
	mux.HandleFunc("GET /healthz", h.healthz)
	mux.HandleFunc("GET /readyz", h.readyz)
	mux.Handle("GET /metrics", o.Metrics)
	mux.HandleFunc("GET /v1/status", h.status)
	mux.HandleFunc("GET /v1/routes", h.alone(h.routes))
	mux.HandleFunc("GET /v1/explain", h.explain)
	mux.HandleFunc("GET /v1/holding", h.alone(h.holding))
	if o.Pprof {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return guard(o.Local, mux)
}

// alone lets one request at a time through to what shows a whole table, until
// its answer was taken.
func (h handler) alone(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case h.encoding <- struct{}{}:
			defer func() { <-h.encoding }()
			next(w, r)
		case <-r.Context().Done():
		}
	}
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
	} else if s := h.Agent.Status(); !s.Joined && s.Etcd.Reachable && s.Etcd.Error != "" {
		// It serves, and that is what is asked; but a commit may come without it.
		r.Why += "; NOT REGISTERED, so no switch waits for it: " + s.Etcd.Error
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
	by, err := pick(s, q.Get("revision"))
	if err != nil {
		problem(w, http.StatusNotFound, err.Error())
		return
	}
	head, err := headOf(q)
	if err != nil {
		problem(w, http.StatusBadRequest, err.Error())
		return
	}
	head.Paths = h.Paths
	reply(w, http.StatusOK, by.Explain(&head))
}

// pick finds the engine of a revision among those that serve; stable without
// one.
func pick(s *engine.Serving, revision string) (*engine.Engine, error) {
	switch revision {
	case "", strconv.FormatInt(s.Stable.Ref().Number, 10):
		return s.Stable, nil
	}
	serving := fmt.Sprintf("revision %d", s.Stable.Ref().Number)
	if s.Candidate != nil {
		number := s.Candidate.Ref().Number
		if revision == strconv.FormatInt(number, 10) {
			return s.Candidate, nil
		}
		serving += fmt.Sprintf(" and, as a candidate, %d", number)
	}
	return nil, fmt.Errorf("revision=%s: this instance serves %s; routectl explain --revision looks at any", revision, serving)
}

// headOf reads the request that is asked about.
func headOf(q url.Values) (engine.Head, error) {
	method, target := cmp.Or(q.Get("method"), http.MethodGet), q.Get("url")
	if target == "" {
		return engine.Head{}, errors.New("url is missing: /v1/explain?method=GET&url=http://host/path, with header=Name:Value and client=ADDRESS if they matter")
	}
	if !httpguts.ValidHeaderFieldName(method) { // a method is such a token, too
		return engine.Head{}, fmt.Errorf("method=%s: want a method, such as GET", method)
	}
	if strings.ContainsFunc(target, unicode.IsControl) || strings.Contains(target, " ") {
		return engine.Head{}, fmt.Errorf("url=%s: want it as a client sends it: spaces and control characters as %%20 and so on", target)
	}
	head := engine.HeadOf(strings.ToUpper(method), target)
	header := http.Header{}
	for _, kv := range q["header"] {
		name, value, ok := strings.Cut(kv, ":")
		value = strings.TrimSpace(value)
		if !ok || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return engine.Head{}, fmt.Errorf("header=%s: want Name:Value", kv)
		}
		header.Add(name, value)
	}
	head.Header = header
	if c := q.Get("client"); c != "" {
		addr, err := netip.ParseAddr(c)
		if err != nil {
			return engine.Head{}, fmt.Errorf("client=%s: want an address", c)
		}
		head.Client = addr.Unmap().WithZone("")
	}
	return head, nil
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
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(append(b, '\n'))
}
