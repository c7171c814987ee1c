package route

import (
	"fmt"
	"strings"

	"routerd.dev/internal/printable"
)

// Severity tells a mistake from a remark.
type Severity uint8

// The severities. The zero value is an error, so that nothing is waved through
// by omission.
const (
	Error Severity = iota
	Warning
)

// A Place is where something was written. Line and Column count from 1; 0 is
// unknown.
type Place struct {
	File   string
	Line   int
	Column int
}

// String gives file:line, as much of it as is known.
func (p Place) String() string {
	switch {
	case p.File == "":
		return ""
	case p.Line == 0:
		return p.File
	default:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	}
}

// A Source finds the place of a field of a module by its path, such as
// "routes[2].middlewares[0].rateLimit.rate".
type Source struct {
	places map[string]Place
	file   string // for what is not in places
}

// NewSource keeps places by field path; file is what is named for a path that
// is not among them.
func NewSource(file string, places map[string]Place) *Source {
	return &Source{places: places, file: file}
}

// Place returns the place of the field, or of the nearest field around it that
// is known. It may be called on a nil Source.
func (s *Source) Place(field string) Place {
	if s == nil {
		return Place{}
	}
	for {
		if p, ok := s.places[field]; ok {
			return p
		}
		i := strings.LastIndexAny(field, ".[")
		if i < 0 {
			return Place{File: s.file}
		}
		field = field[:i]
	}
}

// move gives what stood in a field, or within it, the place under the field's
// new name. Of fields that became one the first place stays. It may be called
// on a nil Source.
func (s *Source) move(moved map[string]string) {
	if s == nil || len(moved) == 0 {
		return
	}
	places := make(map[string]Place, len(s.places))
	for field, place := range s.places {
		to := movedField(field, moved)
		if first, ok := places[to]; ok && (first.Line < place.Line || first.Line == place.Line && first.Column < place.Column) {
			continue
		}
		places[to] = place
	}
	s.places = places
}

// movedField replaces the one prefix of field that moved, if any. Lists within
// a list that moves are never sorted themselves, so there is at most one.
func movedField(field string, moved map[string]string) string {
	for i := range len(field) {
		if field[i] == ']' {
			if to, ok := moved[field[:i+1]]; ok {
				return to + field[i+1:]
			}
		}
	}
	return field
}

// A Problem is one thing that is wrong, or doubtful, about a table.
type Problem struct {
	Severity Severity `json:"-"`
	Place    Place    `json:"place"`
	Module   string   `json:"module,omitempty"`
	Route    string   `json:"route,omitempty"` // name within Module
	Field    string   `json:"field,omitempty"` // path within the module, such as routes[2].path
	Message  string   `json:"message"`
	Hint     string   `json:"hint,omitempty"` // the way out
}

// Error gives the problem in one line: place: route: field: message (hint).
// What is not printable in it is written as an escape.
func (p Problem) Error() string {
	var b strings.Builder
	if s := p.Place.String(); s != "" {
		b.WriteString(s + ": ")
	} else if p.Module != "" {
		b.WriteString("module " + p.Module + ": ")
	}
	if p.Route != "" {
		b.WriteString(p.Route + ": ")
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

// Errors returns the problems that are not warnings.
func (ps Problems) Errors() Problems { return ps.only(Error) }

// Warnings returns the problems that are only remarks.
func (ps Problems) Warnings() Problems { return ps.only(Warning) }

func (ps Problems) only(s Severity) Problems {
	var out Problems
	for _, p := range ps {
		if p.Severity == s {
			out = append(out, p)
		}
	}
	return out
}

// Err returns the errors among the problems as an error, nil when there are
// none.
func (ps Problems) Err() error {
	if errs := ps.Errors(); len(errs) > 0 {
		return errs
	}
	return nil
}
