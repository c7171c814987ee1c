package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	"routerd.dev/internal/engine"
	"routerd.dev/internal/middleware"
	"routerd.dev/internal/proxy"
	"routerd.dev/internal/route"
)

// head is a middleware as many would configure it.
type head struct{ kind, config string }

func usualHeads() []head {
	return []head{
		{"headers", `{"request":{"set":{"X-A":"1","X-B":"2"}},"response":{"set":{"X-C":"3"}}}`},
		{"ipAllow", `{"clients":["127.0.0.0/8","192.0.2.0/24"]}`},
		{"ipDeny", `{"clients":["10.0.0.0/8","192.168.0.0/16"]}`},
		{"rateLimit", `{"burst":1000000,"key":"client","rate":9000000}`},
		{"requestID", `{}`},
		{"rewritePath", `{"to":"/v2/users/{id}"}`},
		{"stripPrefix", `{"prefix":"/api"}`},
	}
}

// measureHeads serves one request after the other by a Switch, without a
// network, with and without each middleware, taking turns.
func measureHeads(ctx context.Context, b *bench) ([]Figure, error) {
	plain, err := serverWith(ctx, nil)
	if err != nil {
		return nil, err
	}
	fs := []func(){plain}
	heads := usualHeads()
	for _, h := range heads {
		f, err := serverWith(ctx, []route.Middleware{{Kind: h.kind, Config: h.config}})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", h.kind, err)
		}
		fs = append(fs, f)
	}
	took := takeTurns(b.of(200, 20), fs...)
	micros := func(s float64) float64 { return s * 1e6 / requestsARound }
	base := each(took[0], micros)
	all := []Figure{figure("a route that answers itself, no middleware", median(base), "µs")}
	for i, h := range heads {
		var extra []float64
		for round, v := range each(took[i+1], micros) {
			extra = append(extra, v-base[round])
		}
		all = append(all, figure(h.kind, median(extra), "µs").atMost(1).note("%s", h.config))
	}
	return all, nil
}

const requestsARound = 500

// serverWith returns what serves requestsARound requests through a chain.
func serverWith(ctx context.Context, chain []route.Middleware) (func(), error) {
	m := &route.Module{Name: "bench", Routes: []route.Route{{
		Name: "r", Hosts: []string{benchHost}, Methods: []string{"GET"}, Path: "/api/users/{id}", Middlewares: chain, Action: respond("ok"),
	}}}
	e, err := compile(ctx, normalized(m), engine.NewLibrary(proxy.Options{}, middleware.Env{}), nil)
	if err != nil {
		return nil, err
	}
	s := engine.NewSwitch(engine.FrontOptions{})
	s.Swap(&engine.Serving{Group: "main", Instance: "bench", Epoch: 1, Stable: e})
	r := httptest.NewRequest(http.MethodGet, "http://"+benchHost+"/api/users/12345", nil)
	r.RemoteAddr, r.RequestURI = "127.0.0.1:54321", "/api/users/12345"
	w := &nowhere{header: http.Header{}}
	one := func() {
		clear(w.header)
		clear(r.Header)
		s.ServeHTTP(w, r)
	}
	check := httptest.NewRecorder()
	if s.ServeHTTP(check, r); check.Code != http.StatusOK {
		return nil, fmt.Errorf("answered %d: %s", check.Code, check.Body)
	}
	return func() {
		for range requestsARound {
			one()
		}
	}, nil
}
