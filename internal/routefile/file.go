package routefile

import (
	"time"

	"routerd.dev/internal/yamlfile"
)

// APIVersion is the version that a route file names in its first line.
const APIVersion = "routerd/v1"

// The structs below are the shape of a route file. Fields whose zero value
// stands for a default name it in their tag; a test holds these to what
// route.NormalizeModule does.

type document struct {
	APIVersion  string                `json:"apiVersion" jsonschema:"required,enum=routerd/v1" jsonschema_description:"The version of the format."`
	Module      string                `json:"module" jsonschema:"required,minLength=1" jsonschema_description:"The module these routes belong to: what one team owns and publishes together. Several files may add to one module."`
	Upstreams   map[string]upstream   `json:"upstreams,omitempty" jsonschema_description:"Where requests can be sent, by name. Names belong to the module."`
	Middlewares map[string]definition `json:"middlewares,omitempty" jsonschema_description:"Middlewares that routes refer to, by name. Each is a map with one key, its kind."`
	Routes      []routeSpec           `json:"routes,omitempty" jsonschema_description:"The routes, in the order that breaks the last tie. A module has at least one."`
	Tests       []testSpec            `json:"tests,omitempty" jsonschema_description:"Requests and the route each must be given to. They run at validate, at publish, and before any instance serves the routes."`
}

type upstream struct {
	Targets  []target `json:"targets" jsonschema:"required,minItems=1" jsonschema_description:"The addresses that share the requests: URLs, or maps with a weight."`
	Host     string   `json:"host,omitempty" jsonschema:"default=client" jsonschema_description:"The Host that targets are sent: client for the one the client named, target for the target's own, or a literal host."`
	Timeouts timeouts `json:"timeouts,omitzero" jsonschema_description:"How long to wait for a target."`
	MaxIdle  int      `json:"maxIdle,omitempty" jsonschema:"minimum=1,default=256" jsonschema_description:"Idle connections kept open to each target."`
	TLS      tls      `json:"tls,omitzero" jsonschema_description:"How an https target is checked."`
}

type timeouts struct {
	Connect  time.Duration `json:"connect,omitempty" jsonschema:"default=1s" jsonschema_description:"To open a connection."`
	Response time.Duration `json:"response,omitempty" jsonschema:"default=1m" jsonschema_description:"From the request sent to the head of the response."`
	Idle     time.Duration `json:"idle,omitempty" jsonschema:"default=1m" jsonschema_description:"Until an unused connection is closed, and a body that stalls is given up."`
}

type tls struct {
	ServerName string `json:"serverName,omitempty" jsonschema_description:"The name the certificate must have; the target's host when absent."`
	CAFile     string `json:"caFile,omitempty" jsonschema_description:"A PEM file with the roots to trust, on every instance; the system's roots when absent."`
	Insecure   bool   `json:"insecure,omitempty" jsonschema_description:"Accept any certificate."`
}

// target is its URL alone, or a targetSpec.
type target targetSpec

type targetSpec struct {
	URL    string `json:"url" jsonschema:"required" jsonschema_description:"http:// or https://, a host and perhaps a port."`
	Weight int    `json:"weight,omitempty" jsonschema:"minimum=1,maximum=1000,default=1" jsonschema_description:"The target's share of the requests, against the other targets' weights."`
}

// definition is a middleware by its kind: a map with one key.
type definition struct {
	Kind   string
	Config string // canonical JSON
}

// link is a definition, or use: with the name of one.
type link struct {
	Use string
	definition
}

type routeSpec struct {
	Name     string   `json:"name,omitempty" jsonschema_description:"The route's name within the module; derived from method and path when absent."`
	Hosts    []string `json:"hosts,omitempty" jsonschema:"minItems=1" jsonschema_description:"Exact hosts, or *.example.com for one or more labels more. Any host when absent."`
	Methods  []string `json:"methods,omitempty" jsonschema:"minItems=1" jsonschema_description:"Methods; GET also takes HEAD. Any method when absent."`
	Path     string   `json:"path,omitempty" jsonschema_description:"The pattern of the whole path: /users/{id}, /files/{name}.json, /static/{rest...}. One of path and prefix is given."`
	Prefix   string   `json:"prefix,omitempty" jsonschema_description:"This path itself and everything under it."`
	Headers  []cond   `json:"headers,omitempty" jsonschema:"minItems=1" jsonschema_description:"What the request's headers must be; all must hold."`
	Query    []cond   `json:"query,omitempty" jsonschema:"minItems=1" jsonschema_description:"What the query parameters must be; all must hold."`
	Cookies  []cond   `json:"cookies,omitempty" jsonschema:"minItems=1" jsonschema_description:"What the cookies must be; all must hold."`
	Clients  []prefix `json:"clients,omitempty" jsonschema:"minItems=1" jsonschema_description:"Addresses the client must be one of: 10.0.0.0/8, or a single address. Any client when absent."`
	Priority int      `json:"priority,omitempty" jsonschema_description:"Higher wins before paths are compared; 0 when absent."`

	Middlewares []link    `json:"middlewares,omitempty" jsonschema:"minItems=1" jsonschema_description:"What the request passes through, outermost first: use: with a name of the module, or a kind with its settings."`
	Proxy       *proxy    `json:"proxy,omitempty" jsonschema_description:"Send the request to an upstream. One of proxy, respond and redirect is given."`
	Respond     *respond  `json:"respond,omitempty" jsonschema_description:"Answer without an upstream: text, or a map."`
	Redirect    *redirect `json:"redirect,omitempty" jsonschema_description:"Answer with a Location."`
}

// cond asks something of a header, query parameter or cookie. Exactly one of
// its fields but Name is given.
type cond struct {
	Name    string  `json:"name" jsonschema:"required,minLength=1" jsonschema_description:"Of the header, query parameter or cookie."`
	Present *bool   `json:"present,omitempty" jsonschema:"enum=true" jsonschema_description:"true: it is there, with any value."`
	Equal   *string `json:"equal,omitempty" jsonschema_description:"One of its values is this."`
	Prefix  *string `json:"prefix,omitempty" jsonschema_description:"One of its values begins with this."`
	Regex   *string `json:"regex,omitempty" jsonschema_description:"One of its values as a whole matches this RE2 expression."`
}

type proxy struct {
	Upstream string        `json:"upstream" jsonschema:"required,minLength=1" jsonschema_description:"The name of an upstream of this module."`
	Timeout  time.Duration `json:"timeout,omitempty" jsonschema_description:"For the whole exchange; no limit when absent."`
}

// respond is its body alone, or a respondSpec.
type respond respondSpec

type respondSpec struct {
	Status  int     `json:"status,omitempty" jsonschema:"minimum=200,maximum=599,default=200" jsonschema_description:"The status code."`
	Headers headers `json:"headers,omitempty" jsonschema_description:"Header fields by name; a list of values for a field that repeats."`
	Body    string  `json:"body,omitempty" jsonschema_description:"The body, text/plain unless a Content-Type is given."`
}

type redirect struct {
	To     string `json:"to" jsonschema:"required,minLength=1" jsonschema_description:"The Location. {name} stands for the path parameter as it came."`
	Status int    `json:"status,omitempty" jsonschema:"enum=301,enum=302,enum=303,enum=307,enum=308,default=302" jsonschema_description:"The status code."`
}

type testSpec struct {
	Name    string  `json:"name,omitempty" jsonschema_description:"What the test shows, for its report."`
	Request request `json:"request" jsonschema:"required" jsonschema_description:"METHOD URL as text, or a map."`
	Expect  expect  `json:"expect" jsonschema:"required" jsonschema_description:"What must come of it: a route, or the status of a request that none takes."`
}

// request is "METHOD URL", or a requestSpec.
type request requestSpec

type requestSpec struct {
	Method  string  `json:"method,omitempty" jsonschema:"default=GET" jsonschema_description:"The method."`
	URL     string  `json:"url" jsonschema:"required,minLength=1" jsonschema_description:"An absolute URL, or a path for a request without a host."`
	Headers headers `json:"headers,omitempty" jsonschema_description:"Header fields by name; a list of values for a field that repeats."`
	Client  address `json:"client,omitzero" jsonschema_description:"The address the request comes from."`
}

type expect struct {
	Route  string            `json:"route,omitempty" jsonschema_description:"The route's name in this module, or module/name."`
	Params map[string]string `json:"params,omitempty" jsonschema_description:"The path parameters, decoded; not looked at when absent."`
	Status int               `json:"status,omitempty" jsonschema:"enum=400,enum=404,enum=405" jsonschema_description:"400, 404 or 405, when no route is expected."`
}

var _ yamlfile.Unmarshaler = (*link)(nil)
