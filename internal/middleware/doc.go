// Package middleware holds the links of a route's chain: one file per kind.
// What survives a switch (limiters) lives in a Library, not in an engine.
//
// All kinds are head middlewares: they see and edit the heads of request and
// response, or answer instead, through Exchange, so they run on every front
// end.
//
// # Adding a kind
//
// Write one file, as stripprefix.go is one: a config struct (json and
// jsonschema_description tags on every field), a function that makes its Kind,
// by newKind, and `var _ = register(…)` over what that returns. Nothing else
// names kinds: what route files may say, the capabilities of a build, and what
// `make docs` writes of both follow.
//
// # Invariants
//
//   - A kind accepts on every instance what Check accepts, but for references
//     (${env:NAME}, ${file:PATH}) that the instance cannot resolve.
//   - No problem's text holds the value of a resolved reference.
//   - Head returns the same object for the same scope, kind and config for as
//     long as Keep keeps it, so that a switch resets no limit (I9). Kinds
//     without state are shared by all scopes.
//
// # Concurrency
//
// A Head runs in many goroutines at once and writes nothing shared, but for
// rateLimit, whose keys are spread over locks held for some ten nanoseconds.
// Everything else may be called concurrently too. No goroutines run here.
//
// # Failure
//
// Bad configuration is reported whole, as FieldProblems with paths within the
// config. At run time a Head answers: 400 for a rewritten path that is not a
// path, 403 and 429 for who may not pass; it never panics.
package middleware
