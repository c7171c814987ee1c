package yamlfile

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"routerd.dev/internal/printable"
)

// A Position is where something was written. Both count from 1, columns in
// characters; 0 is unknown.
type Position struct {
	Line, Column int
}

// A Problem is one thing that is wrong with a document.
type Problem struct {
	File string
	Position
	Field   string // path within the document, such as routes[2].path; empty for the document
	Message string
	Hint    string // the way out
}

// Error gives the problem in one line: file:line:column: field: message (hint).
// What is not printable in it is written as an escape.
func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	if p.Field != "" {
		b.WriteString(p.Field + ": ")
	}
	b.WriteString(p.Message)
	if p.Hint != "" {
		b.WriteString(" (" + p.Hint + ")")
	}
	return printable.Text(b.String())
}

// excerpt is as much of a text as a message holds.
func excerpt(s string) string {
	if utf8.RuneCountInString(s) > maxExcerpt {
		return fmt.Sprintf("%.*s…", maxExcerpt, s)
	}
	return s
}

const maxExcerpt = 40 // characters

// Problems is every problem that was found, in the order of their places.
type Problems []Problem

// Error gives one problem a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Err returns the problems as an error, nil when there are none.
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}

// MaxProblems is how many problems of a file are reported one by one; one more
// says how many were left out.
const MaxProblems = 1000

// A collector gathers the problems of one file.
type collector struct {
	file     string
	problems Problems
	dropped  int
}

func (c *collector) fail(pos Position, field, message, hint string) {
	if len(c.problems) == MaxProblems {
		c.dropped++
		return
	}
	c.problems = append(c.problems, Problem{File: c.file, Position: pos, Field: field, Message: message, Hint: hint})
}

// sorted gives what was gathered in the order of places.
func (c *collector) sorted() Problems {
	ps := c.problems
	ps.sort()
	if c.dropped > 0 {
		ps = append(ps, Problem{File: c.file, Message: fmt.Sprintf("and %d problems more", c.dropped)})
	}
	return ps
}

func (ps Problems) sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
}

// Suggest returns the one of names that word is most likely a slip of, or ""
// when none is near. Of equally near names it is the first in order.
func Suggest(word string, names []string) string {
	if len(word) > longest {
		return ""
	}
	best, bestAt := "", max(1, len(word)/3)+1
	for _, n := range slices.Sorted(slices.Values(names)) {
		if d := distance(strings.ToLower(word), strings.ToLower(n)); d < bestAt {
			best, bestAt = n, d
		}
	}
	return best
}

// longest is how long a word can be to be a slip of a name.
const longest = 64

// distance is the optimal string alignment distance: insertions, deletions,
// substitutions and swaps of neighbours. a is no longer than longest; a
// longer b is never near.
func distance(a, b string) int {
	if len(b) > longest {
		return longest
	}
	var rows [3][longest + 1]int // the row before last, the last one, this one
	for j := range len(b) + 1 {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		rows[2][0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[1][j]+1, rows[2][j-1]+1, rows[1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[0][j-2]+1)
			}
			rows[2][j] = d
		}
		rows[0], rows[1] = rows[1], rows[2]
	}
	return rows[1][len(b)]
}
