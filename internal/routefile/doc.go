// Package routefile turns route files, YAML or JSON, into modules of a
// route.Table, every problem with file, line and field, and writes modules as
// route files.
//
// The shape of a route file is said once, by the structs of file.go: their tags
// give the names, the rules, the JSON Schema (Schema) and the reference page
// (Reference).
//
// # Invariants
//
//   - For a normalized module m without mistakes, Parse(Encode(m)) equals m.
//   - Parse never panics, and reports all problems of all files, each placed.
//   - An empty source is a problem: nothing is ever read as "delete all".
//
// # Concurrency
//
// All functions may be called at once.
package routefile
