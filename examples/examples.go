// Package examples holds route files to learn from. `routerd dev` publishes
// them as revision 1, and the tests parse, compile and run every one.
package examples

import "embed"

// Files holds the examples, one module a file.
//
//go:embed *.yaml
var Files embed.FS

// UpstreamA and UpstreamB are the addresses that the examples' upstreams name.
const (
	UpstreamA = "127.0.0.1:9001"
	UpstreamB = "127.0.0.1:9002"
)
