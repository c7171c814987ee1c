// Package cli is routectl: one file per command.
//
// Standard output is data, in the form that -o asks for; everything said to a
// person goes to standard error. A command ends with one of the exit codes of
// Exit, and every error says what to do next.
//
// # Concurrency
//
// A command runs in one goroutine; what it starts to watch the fleet ends
// before it returns.
package cli
