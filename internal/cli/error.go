package cli

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"routerd.dev/internal/printable"
	"routerd.dev/internal/route"
	"routerd.dev/internal/store"
)

// explain says on standard error what went wrong and what to do about it.
func (e Env) explain(err error) {
	if errors.Is(err, errQuiet) {
		return
	}
	var problems route.Problems
	if errors.As(err, &problems) {
		problems = inOrder(problems)
		for _, p := range problems.Warnings() {
			fmt.Fprintf(e.Stderr, "warning: %s\n", p.Error())
		}
		for _, p := range problems.Errors() {
			fmt.Fprintf(e.Stderr, "error: %s\n", p.Error())
		}
		fmt.Fprintf(e.Stderr, "routectl: %s\n", plural(len(problems.Errors()), "problem"))
		return
	}
	fmt.Fprintf(e.Stderr, "routectl: %s\n", plainError(err))
	if hint := hintFor(err); hint != "" {
		fmt.Fprintf(e.Stderr, "hint: %s\n", printable.Text(hint))
	}
}

// plainError is an error's text for a terminal. Joined errors have a line each,
// which is indented, so that none passes for a word of routectl's own.
func plainError(err error) string {
	lines := strings.Split(err.Error(), "\n")
	for i := range lines {
		lines[i] = printable.Text(lines[i])
	}
	return strings.Join(lines, "\n  ")
}

// inOrder sorts problems by their places; those without one come last.
func inOrder(ps route.Problems) route.Problems {
	ps = slices.Clone(ps)
	slices.SortStableFunc(ps, func(a, b route.Problem) int {
		if (a.Place.File == "") != (b.Place.File == "") {
			return strings.Compare(b.Place.File, a.Place.File)
		}
		return cmp.Or(strings.Compare(a.Place.File, b.Place.File), cmp.Compare(a.Place.Line, b.Place.Line), cmp.Compare(a.Place.Column, b.Place.Column))
	})
	return ps
}

// hintFor says the way out, where there is one that the error does not name
// itself.
func hintFor(err error) string {
	var coded *codedError
	switch {
	case errors.As(err, &coded) && coded.hint != "":
		return coded.hint
	case errors.Is(err, store.ErrNotInitialized):
		return "routectl init makes the fleet; --prefix and --endpoints say where it is"
	case errors.Is(err, store.ErrUnavailable) && tlsHint(err.Error()) != "":
		return tlsHint(err.Error())
	case errors.Is(err, store.ErrUnavailable):
		return "--endpoints or ROUTECTL_ENDPOINTS says where etcd is; what is served does not depend on it"
	case errors.Is(err, store.ErrDenied):
		return "routectl etcd show, as root, says who may do what; docs/operations.md has the roles"
	case errors.Is(err, store.ErrConflict):
		return "somebody changed it meanwhile: look again, and repeat the command"
	case errors.Is(err, store.ErrBusy):
		return "try again in a moment"
	}
	return ""
}

// sorted returns a map's keys in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
