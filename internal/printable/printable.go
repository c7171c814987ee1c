// Package printable shows text of others as text: what a file, etcd or a server gave
// must not steer the terminal of whoever reads it.
package printable

import (
	"strconv"
	"strings"
)

var unquote = strings.NewReplacer(`\\`, `\`, `\"`, `"`)

// Text is s with what does not print as Go writes it in a string: `\n`, `\x1b`,
// `\u202e`. A backslash of s is left alone, so it cannot be taken back.
func Text(s string) string {
	q := strconv.Quote(s)
	return unquote.Replace(q[1 : len(q)-1])
}
