package route

import (
	"net/netip"
	"time"
)

// A Table is every module's routes and upstreams together: a plain value.
// Normalized, its modules are sorted by name and each name stands once.
type Table struct {
	Modules []*Module
}

// A Module is the routes one team owns and publishes together.
type Module struct {
	Name        string
	Upstreams   []Upstream        // normalized: sorted by name
	Middlewares []NamedMiddleware // normalized: sorted by name
	Routes      []Route           // in the order written, which is the last tie-break of matching
	Tests       []Test

	// Source tells where the module was read. It is not part of a snapshot and
	// is nil for a module that came from one.
	Source *Source
}

// A Route is one rule: match → middlewares → action. All conditions that are
// named must hold. Exactly one of Path and Prefix is set, and exactly one
// field of Action.
type Route struct {
	Name    string
	Hosts   []string // exact, "*.example.com", or none for any; lower case, without port, sorted when normalized
	Methods []string // none for any; upper case, sorted when normalized

	Path   string // pattern; see ParsePattern
	Prefix string // the path itself and everything under it

	Headers  []Condition // names in canonical MIME form
	Query    []Condition
	Cookies  []Condition
	Clients  []netip.Prefix // the client's address is in one of them; none for any
	Priority int            // higher wins before the path is compared; default 0

	Middlewares []Middleware // outermost first
	Action      Action
}

// Op is how a Condition compares.
type Op uint8

// The operators. The zero value is not valid, so that a forgotten one shows.
const (
	OpPresent Op = iota + 1 // the name is there, with any value
	OpEqual                 // one of its values equals Value
	OpPrefix                // one of its values begins with Value
	OpRegexp                // one of its values, of MaxMatchedValue bytes at most, matches Value, an RE2 expression anchored at both ends
)

// A Condition asks something of a header, query parameter or cookie. Of
// repeated values any may satisfy it.
type Condition struct {
	Name  string
	Op    Op
	Value string // empty for OpPresent
}

// A Middleware is one link of a route's chain: either Use, the name of one the
// module defines, or Kind with its Config.
type Middleware struct {
	Use    string
	Kind   string
	Config string // JSON object in canonical form: keys sorted, no white space
}

// A NamedMiddleware is a middleware that routes of the same module refer to.
type NamedMiddleware struct {
	Name   string
	Kind   string
	Config string // as Middleware.Config
}

// An Action is what a route does; exactly one field is set.
type Action struct {
	Proxy    *Proxy
	Respond  *Respond
	Redirect *Redirect
}

// Proxy sends the request to an upstream of the same module.
type Proxy struct {
	Upstream string
	Timeout  time.Duration // for the whole exchange; 0 for none
}

// Respond answers without an upstream.
type Respond struct {
	Status  int      // 200..599; normalized: 200 when absent
	Headers []Header // sorted by name when normalized
	Body    string   // at most MaxRespondBody bytes
}

// Redirect answers with a Location. {name} in To stands for the parameter as
// it came in the path.
type Redirect struct {
	To     string
	Status int // 301, 302, 303, 307 or 308; normalized: 302 when absent
}

// A Header is one header field with its value.
type Header struct {
	Name  string
	Value string
}

// HostMode is which Host an upstream is sent.
type HostMode uint8

// The host modes.
const (
	HostClient  HostMode = iota // the Host the client named
	HostTarget                  // the target's own authority
	HostLiteral                 // Upstream.Host
)

// An Upstream is a named set of targets that a proxy action sends requests to.
// Two upstreams with equal definitions share their connections, also across
// revisions.
type Upstream struct {
	Name     string
	Targets  []Target
	HostMode HostMode
	Host     string // with HostLiteral

	ConnectTimeout  time.Duration // to open a connection; normalized: 1 s when 0
	ResponseTimeout time.Duration // from the request sent to the response head; normalized: 60 s when 0
	IdleTimeout     time.Duration // an unused connection is closed after it, and a body that stalls; normalized: 60 s when 0
	MaxIdle         int           // idle connections kept a target; normalized: 256 when 0

	TLS TLS // for https targets
}

// A Target is one address of an upstream.
type Target struct {
	URL    string // http:// or https://, host and optional port, no path, no user
	Weight int    // 1..1000; normalized: 1 when 0
}

// TLS says how an https target is checked.
type TLS struct {
	ServerName string // normalized: empty stands for the target's host
	CAFile     string // PEM file on each instance; empty for the system's roots
	Insecure   bool   // accept any certificate
}

// A Test is a request and what must come of it. validate, publish and every
// instance's prepare run it.
type Test struct {
	Name    string
	Method  string
	URL     string // absolute, or a path for a request without a host
	Headers []Header
	Client  netip.Addr // zero for none

	Route  string  // "name" of this module or "module/name"; empty when Status says why none
	Params []Param // checked when given; sorted by name when normalized
	Status int     // 404, 405 or 400 when no route is expected; 0 otherwise
}

// A Param is one path parameter with its decoded value.
type Param struct {
	Name  string
	Value string
}
