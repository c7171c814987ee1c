package telemetry

import (
	"log/slog"

	"routerd.dev/internal/engine"
)

// Observers tells each request to all of them; nil when there are none.
func Observers(all ...engine.Observer) engine.Observer {
	var os observers
	for _, o := range all {
		if o != nil {
			os = append(os, o)
		}
	}
	switch len(os) {
	case 0:
		return nil
	case 1:
		return os[0]
	}
	return os
}

type observers []engine.Observer

// Request implements engine.Observer.
func (os observers) Request(r *engine.Record) {
	for _, o := range os {
		o.Request(r)
	}
}

// Panics is an observer that logs what a middleware panicked with: a defect,
// never an operator's mistake.
func (t *Telemetry) Panics() engine.Observer {
	return panics{t.Logger.With("group", t.group, "instance", t.instance)}
}

type panics struct{ log *slog.Logger }

// Request implements engine.Observer.
func (p panics) Request(r *engine.Record) {
	if r.Panic == nil {
		return
	}
	p.log.ErrorContext(r.Context, "a request panicked", "panic", r.Panic,
		"route", r.Route, "revision", r.Revision.Number, "epoch", r.Epoch, "stack", string(r.Stack))
}
