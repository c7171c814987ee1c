// Package yamlfile reads and writes YAML and JSON documents strictly, and
// knows the place of every value: each problem names file, line, column and
// field, and all problems of a document are reported, not the first. It is the
// one home of the YAML library.
//
// Parse makes documents out of bytes, Decode puts a document into Go values by
// the names in their json tags, Encode writes Go values as YAML.
//
// # What is read
//
// Scalars follow the YAML 1.2 core schema: yes and 017 are what they look like,
// not a bool and an octal. Text is never guessed from a number: version: 1.10
// for a text field is a problem that tells to quote it. Anchors, aliases and
// merge keys (<<) are read. Refused are duplicate keys, unknown fields, keys
// that are not text or longer than MaxKey, tags other than those of the core
// schema, an empty value where one is wanted, and, unless as escapes, control
// characters and those that turn the direction of text: what a reviewer sees is
// what is read.
//
// # Invariants
//
//   - What Encode writes, Parse reads back as equal values, whatever text
//     is in them.
//   - Nothing that is read makes the package panic, nest deeper than MaxDepth or
//     grow beyond MaxBytes of text, MaxValues values and MaxAliased that came by
//     aliases.
//   - A problem is a line of printable text, however long what it is about.
//   - A number keeps all its digits up to where a Go type is asked for.
//
// # Concurrency
//
// Nodes are immutable once parsed, and aliases share them; all functions may be
// called at once.
package yamlfile
