package middleware

import (
	"net/netip"

	"routerd.dev/internal/route"
)

// Headers is a request's or a response's header fields. Names are in canonical
// MIME form. http.Header is one; a front end may have another.
type Headers interface {
	Get(name string) string
	Values(name string) []string
	Set(name, value string)
	Add(name, value string)
	Del(name string)
}

// A Param is one path parameter: Value decoded, Raw as it came.
type Param struct {
	Name, Value, Raw string
}

// An Exchange is one request on its way through a route's head middlewares,
// and later its response's head on the way back. It belongs to one request
// and one goroutine, and may not be kept.
type Exchange struct {
	Method   string
	Scheme   string     // "http" or "https", as the client spoke to routerd
	Host     string     // as the client named it, without port, lower case
	Path     string     // raw path that is forwarded; a rewrite changes it
	RawQuery string     // without "?"
	Client   netip.Addr // who asks: the peer, or what trusted proxies say
	Header   Headers    // of the request
	Params   []Param
	Route    string // module/name

	// Valid in Response only.
	Status         int
	ResponseHeader Headers
}

// Param returns the parameter of that name.
func (x *Exchange) Param(name string) (Param, bool) {
	for _, p := range x.Params {
		if p.Name == name {
			return p, true
		}
	}
	return Param{}, false
}

// An Answer ends the chain: it is sent in place of the action.
type Answer struct {
	Status int
	Header []route.Header
	Body   string // text/plain unless Header names a Content-Type
}

// A Head is a head middleware, ready to run: it sees and edits the request
// head and the response head, or answers instead. Either function may be nil.
// Both are called from many goroutines at once and allocate nothing on their
// usual path.
type Head struct {
	Kind     string
	Request  func(*Exchange) *Answer // nil result: go on
	Response func(*Exchange)         // runs for every response, answers included, innermost first

	release func() // gives back what it holds of its Library; may be nil
}
