package engine

import (
	"context"
	"net/netip"
	"time"

	"routerd.dev/internal/version"
)

// A Record is what became of one request.
type Record struct {
	Context  context.Context // of the request: its span is in it
	Start    time.Time
	Duration time.Duration

	Method   string
	Scheme   string // "http" or "https"
	Host     string // as the client named it
	Path     string // raw, as it came
	Proto    string // such as "HTTP/1.1"
	Client   netip.Addr
	Peer     netip.Addr
	Revision version.Ref // zero while nothing is served
	Route    string      // module/name; empty when no route took it
	Epoch    int64
	Group    string
	Instance string

	Candidate bool   // served by the candidate of the assignment
	Token     string // what came of the token that the request brought: held, missing, refused, current, older, foreign, expired or forged; empty for none. With held, Epoch is the token's

	Status   int    // sent to the client; 0 when no head was sent
	BytesIn  int64  // of the request's body, as far as it was forwarded
	BytesOut int64  // of the response's body
	Upstream string // URL of the target; empty when none was asked
	Attempts int    // targets tried
	Upgraded bool   // became a tunnel
	Kind     string // what sort of failure Err is: a proxy.ErrKind, "bad-path", "no-route", "method", "not-ready", "behind", "panic"; empty for none
	Err      error
	Panic    any    // what a middleware panicked with
	Stack    []byte // where
}

// An Observer is told of each request after it: for the access log, traces and
// metrics. It must not keep the Record or change it, and may be called from
// many goroutines.
type Observer interface {
	Request(*Record)
}
