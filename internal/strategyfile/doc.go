// Package strategyfile reads strategies from YAML, and reports every problem
// with file, line and field, and writes them as YAML.
//
// A file has one or several documents. Each begins with apiVersion:
// routerd/v1 and strategy: NAME; what follows are the fields of rollout.Strategy by
// their JSON names. There is no second list of them: what that type gets, files
// have.
//
// # Invariants
//
//   - For a strategy s that Validate finds no problem with, Read(Format(s)) is s.
//   - Read never panics, and what it returns without a problem Validate accepts.
//   - A number is no duration: 10 is a problem, 10s is not.
//
// # Concurrency
//
// All functions may be called at once.
package strategyfile
