package route

import "time"

// Limits of a table. They bound what one snapshot can ask of an instance, so
// that nothing in a snapshot can wedge it; Validate checks all of them.
const (
	MaxModules        = 4096    // modules of a table
	MaxRoutes         = 1 << 20 // routes of a table
	MaxHostPatterns   = 1 << 16 // distinct host patterns of a table
	MaxUpstreams      = 4096    // upstreams of a module
	MaxMiddlewares    = 4096    // named middlewares of a module
	MaxTests          = 1 << 16 // tests of a module
	MaxNameBytes      = 128     // bytes of any name
	MaxModuleName     = 63      // bytes of a module's name, which is part of keys
	MaxSegments       = 64      // segments of a pattern; a request path may have more, for a prefix or catch-all
	MaxPatternBytes   = 2048    // bytes of a pattern in canonical form
	MaxPathBytes      = 8192    // bytes of a request path, as it came and in canonical form
	MaxRouteHosts     = 256     // hosts of a route
	MaxRoutesOnHosts  = 1 << 22 // routes of a table, each as often as it has hosts
	MaxRouteMethods   = 32      // methods of a route
	MaxConditions     = 32      // header, query and cookie conditions of a route together
	MaxConditionValue = 4096    // bytes of a condition's value
	MaxRegexpBytes    = 1024    // bytes of a regular expression
	MaxRegexpProgram  = 1536    // instructions of a compiled regular expression, about: at worst each octet is looked at by all of them
	MaxMatchedValue   = 8192    // bytes of a request's value that an expression is tried on; none matches a longer one
	MaxClients        = 1024    // address ranges of a route

	MaxRouteMiddlewares = 32      // middlewares of a route
	MaxConfigBytes      = 1 << 16 // bytes of a middleware's config
	MaxConfigDepth      = 32      // nested values of a middleware's config

	// MaxCandidates is how many routes may compete for one request: what a
	// leaf of the engine may hold. Validate counts the routes of one host whose
	// patterns differ in nothing but the text of mixed segments.
	MaxCandidates = 1024

	MaxRespondBody = 64 << 10 // bytes of a respond action's body
	MaxHeaders     = 64       // headers of a respond action or a test
	MaxHeaderValue = 8192     // bytes of a header's value
	MaxRedirectTo  = 4096     // bytes of a redirect's template

	MaxTargets      = 256  // targets of an upstream
	MaxTargetWeight = 1000 // weight of a target; the least is 1
	MaxMaxIdle      = 65536

	MaxPriority = 1_000_000  // the highest priority of a route
	MinPriority = -1_000_000 // the lowest

	// MaxTimeout bounds every duration of a route or an upstream, and
	// MinTimeout those that are given.
	MaxTimeout = 24 * time.Hour
	MinTimeout = time.Millisecond

	// MaxProblems is how many problems Validate reports one by one; one more
	// says how many were left out.
	MaxProblems = 10_000

	// MaxContested is how many warnings Validate gives about traffic that one
	// module takes from another, and maxContestSteps how long it looks for them.
	MaxContested    = 1000
	maxContestSteps = 2_000_000
)

// What an absent field of a module stands for. Normalize writes it out, so
// that a snapshot does not depend on the build that reads it.
const (
	DefaultConnectTimeout  = time.Second
	DefaultResponseTimeout = 60 * time.Second
	DefaultIdleTimeout     = 60 * time.Second
	DefaultMaxIdle         = 256
	DefaultWeight          = 1
	DefaultRespondStatus   = 200
	DefaultRedirectStatus  = 302
)
