package routefile

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"routerd.dev/internal/route"
)

// maxTableLine bounds a line of a table: a method and the longest pattern.
const maxTableLine = route.MaxPathBytes + 256

// ParseTable reads a route table of lines such as "GET /users/{id}", in which
// empty lines and what follows # as a word of its own are passed over, into
// routes without hosts and action, for `routectl import table`. Each has a
// unique name, derived from method and path as route.NormalizeModule does.
// Wrong lines and a table without routes are problems; name is the file they
// are placed in.
func ParseTable(name string, r io.Reader) ([]route.Route, route.Problems) {
	m := &route.Module{}
	var problems route.Problems
	fail := func(line int, message, hint string) {
		problems = append(problems, route.Problem{Place: route.Place{File: name, Line: line}, Message: message, Hint: hint})
	}
	first := map[string]int{}
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxTableLine)
	line := 0
	for in.Scan() {
		line++
		words := tableWords(in.Text())
		if len(words) == 0 {
			continue
		}
		if len(words) != 2 {
			fail(line, fmt.Sprintf("want METHOD /path, got %.80q", in.Text()), "")
			continue
		}
		method, path := words[0], words[1]
		if !isMethod(method) {
			fail(line, fmt.Sprintf("%.40q is not a method", method), "a line is METHOD /path, such as GET /users/{id}")
			continue
		}
		pattern, err := route.ParsePattern(path)
		if err != nil {
			fail(line, fmt.Sprintf("path %.200s: %v", path, err), "")
			continue
		}
		key := strings.ToUpper(method) + " " + pattern.String()
		if was, ok := first[key]; ok {
			fail(line, fmt.Sprintf("%.200s stands twice", key), fmt.Sprintf("first at line %d", was))
			continue
		}
		first[key] = line
		m.Routes = append(m.Routes, route.Route{Methods: []string{method}, Path: path})
	}
	if err := in.Err(); err != nil {
		fail(line+1, fmt.Sprintf("cannot be read: %v", err), "")
	}
	if len(m.Routes) == 0 && len(problems) == 0 {
		fail(0, "the table has no routes", "a line is METHOD /path, such as GET /users/{id}")
	}
	route.NormalizeModule(m)
	return m.Routes, problems
}

// tableWords gives the words of a line up to a comment.
func tableWords(line string) []string {
	words := strings.Fields(strings.TrimPrefix(line, "\ufeff"))
	for i, w := range words {
		if strings.HasPrefix(w, "#") {
			return words[:i]
		}
	}
	return words
}

func isMethod(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '-' {
			return false
		}
	}
	return s != ""
}
