package proxy

// A Result is what came of one forwarded request.
type Result struct {
	Status   int     // what the client was sent; 0 when it was sent no head; 499 when it had gone before one
	Target   string  // URL of the target that was tried last; empty when none was
	Err      error   // why it failed; nil when Kind is KindNone
	Kind     ErrKind // what sort of failure Err is
	Attempts int     // targets tried, and stale connections replaced; 1 in the usual case
	BytesIn  int64   // of the request's body, sent upstream
	BytesOut int64   // of the response's body, handed downstream
	Upgraded bool    // the connection became a tunnel; the bytes are the tunnel's
}

// An ErrKind is the sort of a failure, for counters and logs.
type ErrKind uint8

// The kinds of failure. Each says what the client was sent when nothing had
// been sent before; when the head had been, the response is cut off instead.
const (
	KindNone          ErrKind = iota
	KindRequest               // the request cannot be forwarded safely: 400, or 508 when it goes round in a loop
	KindTooLarge              // the request's body went over http.MaxBytesReader's limit: 413
	KindConnect               // no target took a connection: 502
	KindTimeout               // connect, response, idle or overall timeout: 504, or 408 when the client stalled
	KindUpstreamReset         // the upstream closed or broke the connection before its response was whole: 502
	KindBadResponse           // the upstream's response is malformed: 502
	KindClientGone            // the client went away; nothing is sent
	numKinds
)

// String gives the kind's name as counters and logs show it: lower case,
// hyphens, "none" for KindNone.
func (k ErrKind) String() string {
	switch k {
	case KindNone:
		return "none"
	case KindRequest:
		return "bad-request"
	case KindTooLarge:
		return "too-large"
	case KindConnect:
		return "connect"
	case KindTimeout:
		return "timeout"
	case KindUpstreamReset:
		return "upstream-reset"
	case KindBadResponse:
		return "bad-response"
	case KindClientGone:
		return "client-gone"
	default:
		return "unknown"
	}
}
