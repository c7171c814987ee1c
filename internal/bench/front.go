package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/route"
	"routerd.dev/internal/telemetry"
	"routerd.dev/internal/version"
)

// frontSpec is a router with front end 1 and one plain proxy route, as routerd
// wires it without settings.
type frontSpec struct {
	Backend   string `json:"backend"` // host:port
	Path      string `json:"path"`    // of the route that is asked for
	Routes    int    `json:"routes"`  // of other routes beside it
	AccessLog string `json:"accessLog,omitempty"`
	Headers   bool   `json:"headers,omitempty"` // Routerd-* on each answer
	Prepare   int    `json:"prepare,omitempty"` // how many modules of 1,000 routes the other revision has
}

// A router is what serveFront runs.
type router struct {
	sw    *engine.Switch
	lib   *engine.Library
	next  *version.Snapshot // what is prepared when asked to
	from  version.MapFetcher
	table *route.Table // decoded, not compiled yet

	leeway   *engine.Leeway
	giveBack func() // what was taken of it
}

func serveFront(ctx context.Context, spec []byte) (_ *servant, err error) {
	var o frontSpec
	if err := json.Unmarshal(spec, &o); err != nil {
		return nil, err
	}
	ctx, end := context.WithCancel(ctx)
	tele, err := telemetry.New(ctx, telemetry.Config{Version: "bench", LogLevel: slog.LevelError})
	if err != nil {
		end()
		return nil, err
	}
	r := &router{lib: engine.NewLibrary(proxy.Options{}, middleware.Env{})}
	tele.Requests.Add(r.lib.Counters)
	running := make(chan error, 3)
	runs := 0
	start := func(f func() error) { runs++; go func() { running <- f() }() }

	observers := []engine.Observer{tele.Spans(), tele.Panics()}
	if o.AccessLog != "" {
		log, err := telemetry.OpenAccessLog(filepath.Clean(o.AccessLog), tele.Logger)
		if err != nil {
			end()
			return nil, err
		}
		observers = append(observers, log)
		start(func() error { return log.Run(ctx) })
	}
	r.sw = engine.NewSwitch(engine.FrontOptions{ResponseHeaders: o.Headers, Observer: telemetry.Observers(observers...)})
	if err := r.load(ctx, o); err != nil {
		end()
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		end()
		return nil, err
	}
	server := &http.Server{ // the limits are routerd's defaults
		Handler: tele.Traced(r.sw), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		DisableGeneralOptionsHandler: true,
	}
	start(func() error { return server.Serve(l) })
	start(func() error { return r.lib.Upstreams.Run(ctx) })
	stop := func() error {
		errs := []error{server.Close()}
		end()
		for range runs {
			if err := <-running; !errors.Is(err, http.ErrServerClosed) {
				errs = append(errs, err)
			}
		}
		return errors.Join(append(errs, r.lib.Upstreams.Close())...)
	}
	return &servant{address: l.Addr().String(), answer: r.answer, stop: stop}, nil
}

// load serves the table that o asks for, and makes ready what it will prepare.
func (r *router) load(ctx context.Context, o frontSpec) error {
	action := route.Action{Proxy: &route.Proxy{Upstream: "backend"}}
	t := oneHost(append(restPaths(o.Routes), o.Path), action)
	t.Modules[0].Upstreams = []route.Upstream{{Name: "backend", Targets: []route.Target{{URL: "http://" + o.Backend}}}}
	route.Normalize(t)
	e, err := compile(ctx, t, r.lib, nil)
	if err != nil {
		return err
	}
	r.sw.Swap(&engine.Serving{Group: "main", Instance: "bench", Epoch: 1, Stable: e})
	if o.Prepare == 0 {
		return nil
	}
	if r.next, err = version.Encode(manyTeams(o.Prepare, 10, 1000)); err != nil {
		return err
	}
	r.leeway = engine.NewLeeway(compileLeeway)
	r.from = version.MapFetcher{}
	for d, p := range r.next.Chunks() {
		r.from[d] = p
	}
	return nil
}

// answer prepares a revision of which nothing is known, as an agent does with
// the daemon's budget: "decode" first, and then "compile", which tests too.
func (r *router) answer(ctx context.Context, question string) (string, error) {
	began := time.Now()
	switch {
	case question == "decode" && r.next != nil:
		r.giveBack = r.leeway.Take()
		t, _, err := version.Load(ctx, r.next.Digest, r.next.ManifestBytes, r.from, nil)
		if err != nil {
			return "", err
		}
		r.table = t
	case question == "compile" && r.table != nil:
		defer r.giveBack()
		e, err := engine.Compile(ctx, version.Ref{Number: 2, Digest: r.next.Digest}, r.table, r.lib, engine.Options{
			Previous: r.sw.Serving().Stable, Budget: engine.Budget{Memory: compileMemory, Percent: compilePercent},
		})
		if err != nil {
			return "", err
		}
		defer e.Release()
		if err := e.RunTests().Err(); err != nil {
			return "", err
		}
		r.table = nil
	default:
		return "", errors.New(strconv.Quote(question) + ": nobody knows")
	}
	return fmt.Sprint(ms(time.Since(began))), nil
}

// serveBackend answers everything with 1 KiB.
func serveBackend(context.Context, []byte) (*servant, error) {
	body := make([]byte, 1<<10)
	for i := range body {
		body[i] = 'x'
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1024")
		_, _ = w.Write(body) // a client that went away is not our concern
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	return &servant{address: l.Addr().String(), stop: func() error {
		err := server.Close()
		<-ended
		return err
	}}, nil
}
