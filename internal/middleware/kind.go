package middleware

import (
	"fmt"
	"os"
	"strings"
	"time"

	"routerd.dev/internal/buildinfo"
	"routerd.dev/internal/route"
)

// A Kind is one sort of middleware: the key by which a route file names it,
// and how its config becomes a Head.
type Kind struct {
	Name       string // as in route files, such as "rateLimit"
	Doc        string // what it does, in one or two sentences
	Capability string // what a build must have to run it: "middleware/<name>/<version>"
	Config     any    // zero value of the config struct, for schema and reference page
	Scoped     bool   // it has state, so each scope has an object of its own

	// New builds a Head of canonical JSON. It reports every problem; with
	// any, the Head is nil.
	New func(config string, env Env) (*Head, []FieldProblem)

	params func(config string) []string // path parameters the config names; may be nil
}

// Env is what a kind may ask of the instance it runs on. The zero Env stands
// for the process itself.
type Env struct {
	// Lookup finds an environment variable; nil for os.LookupEnv.
	Lookup func(name string) (string, bool)
	// ReadFile reads a whole small file; nil for a bounded read of the disk.
	ReadFile func(path string) ([]byte, error)
	// Now tells the time for limiters; nil for time.Now.
	Now func() time.Time
	// Path is how the listener reads paths; results of rewrites are held to it.
	Path route.PathOptions
	// CheckOnly leaves references unresolved: the Head is thrown away.
	CheckOnly bool

	resolved *bool      // set when a reference was resolved
	keys     *keyBudget // of the Library; nil for one of the limiter's own
}

// A FieldProblem is one thing wrong with a config. Field is its path within
// the config, such as "request.set.X-A", and empty for the config as a whole.
type FieldProblem struct {
	Field   string
	Message string
	Hint    string
}

// Error gives field: message (hint).
func (p FieldProblem) Error() string {
	s := p.Message
	if p.Field != "" {
		s = p.Field + ": " + s
	}
	if p.Hint != "" {
		s += " (" + p.Hint + ")"
	}
	return s
}

// Check reports every problem of a config, without what only an instance can
// know: references are checked in form, not resolved. An unknown kind is a
// problem with an empty Field.
func Check(kind, config string) []FieldProblem {
	k, ok := registered[kind]
	if !ok {
		return unknownKind(kind)
	}
	_, ps := k.New(config, Env{CheckOnly: true})
	return ps
}

// Params returns the path parameters that a config names, sorted, so that
// they can be checked against the route's pattern. A config that Check
// refuses has none.
func Params(kind, config string) []string {
	k, ok := registered[kind]
	if !ok || k.params == nil {
		return nil
	}
	return k.params(config)
}

func unknownKind(name string) []FieldProblem {
	return []FieldProblem{{Message: fmt.Sprintf("unknown middleware %.80q", name), Hint: "known are " + strings.Join(registered.names(), ", ")}}
}

// newKind makes a Kind of a config struct and a function that builds a Head
// of it. build reports into ps; what it returns counts only without problems.
func newKind[C any](name, doc string, build func(c *C, env Env, ps *problems) *Head) Kind {
	return Kind{
		Name:       name,
		Doc:        doc,
		Capability: buildinfo.Middleware(name),
		Config:     *new(C),
		New: func(config string, env Env) (*Head, []FieldProblem) {
			var ps problems
			c := new(C)
			decode(config, c, &ps)
			if len(ps) > 0 {
				return nil, ps
			}
			h := build(c, env.withDefaults(), &ps)
			if len(ps) > 0 {
				return nil, ps
			}
			h.Kind = name
			return h, nil
		},
	}
}

func (e Env) withDefaults() Env {
	if e.Lookup == nil {
		e.Lookup = os.LookupEnv
	}
	if e.ReadFile == nil {
		e.ReadFile = readSmallFile
	}
	if e.Now == nil {
		e.Now = time.Now
	}
	return e
}

// problems collects FieldProblems.
type problems []FieldProblem

func (ps *problems) add(field, hint, format string, args ...any) {
	*ps = append(*ps, FieldProblem{Field: field, Message: fmt.Sprintf(format, args...), Hint: hint})
}
