package strategyfile

import (
	"fmt"
	"slices"
	"strings"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/yamlfile"
)

// APIVersion is the version that a strategy file names in its first line.
const APIVersion = "routerd/v1"

// A Problem is one thing that is wrong with a file, with its place.
type Problem = yamlfile.Problem

// plan is embedded under a name of its own, so that a document can have a
// field Strategy.
type plan = rollout.Strategy

// A document is a strategy as it stands in a file.
type document struct {
	APIVersion string `json:"apiVersion" jsonschema:"required"`
	Strategy   string `json:"strategy" jsonschema:"required"`
	Name       string `json:"-"` // hides the strategy's own: in files it is called strategy
	plan
}

// Read reads the strategies of one file, which is YAML or JSON; name is what
// problems call it. It returns every problem of every document, in their order,
// and the strategies of those documents that have none.
func Read(name string, data []byte) ([]rollout.Strategy, []Problem) {
	docs, broken := yamlfile.Parse(name, data)
	problems := []Problem(broken)
	var all []rollout.Strategy
	first := map[string]yamlfile.Position{}
	for _, doc := range docs {
		s, wrong := readDocument(doc)
		if len(wrong) > 0 {
			problems = append(problems, wrong...)
			continue
		}
		at := doc.Root.Field("strategy").Pos
		if earlier, twice := first[s.Name]; twice {
			problems = append(problems, Problem{
				File: name, Position: at, Field: "strategy",
				Message: fmt.Sprintf("there is another strategy %s at line %d", s.Name, earlier.Line), Hint: "give one of them another name",
			})
			continue
		}
		first[s.Name] = at
		all = append(all, s)
	}
	return all, problems
}

func readDocument(doc *yamlfile.Document) (rollout.Strategy, []Problem) {
	if y, wrong := versionProblem(doc); wrong {
		return rollout.Strategy{}, []Problem{y}
	}
	var read document
	shaped := &yamlfile.Document{File: doc.File, Root: shape(doc.Root, documentType)}
	problems := []Problem(yamlfile.Decode(shaped, &read))
	s := read.plan
	s.Name = read.Strategy
	touched := map[string]bool{}
	for _, p := range problems {
		touched[element(p.Field)] = true
	}
	places := placesOf(doc)
	for _, wrong := range s.Validate() {
		field, message, _ := strings.Cut(wrong, ": ")
		if field == "name" || strings.HasPrefix(field, "name.") {
			field = "strategy"
		}
		// What cannot be read may be why the rest of its wave looks wrong.
		if touched[""] || touched["waves"] && element(field) != "strategy" || touched[element(field)] || field == "waves" && len(problems) > 0 {
			continue
		}
		problems = append(problems, Problem{File: doc.File, Position: places.of(field), Field: field, Message: message})
	}
	slices.SortStableFunc(problems, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return s, problems
}

// element is the part of a document that a field lies in: one wave, or a field
// beside the waves.
func element(field string) string {
	name, _, _ := strings.Cut(field, ".")
	return name
}

// places are where the fields of a document stand.
type places struct {
	root yamlfile.Position
	at   map[string]yamlfile.Position
}

func placesOf(doc *yamlfile.Document) places {
	p := places{root: doc.Root.Pos, at: map[string]yamlfile.Position{}}
	doc.Walk(func(field string, pos yamlfile.Position, _ *yamlfile.Node) {
		if _, ok := p.at[field]; !ok {
			p.at[field] = pos
		}
	})
	return p
}

// of is the place of a field, or of what it would stand in.
func (p places) of(field string) yamlfile.Position {
	for field != "" {
		if pos, ok := p.at[field]; ok {
			return pos
		}
		field = field[:max(0, strings.LastIndexAny(field, ".["))]
	}
	return p.root
}

// versionProblem tells whether a document is no strategy file of a version that
// is read here. Nothing else about one that is not is worth a word.
func versionProblem(doc *yamlfile.Document) (Problem, bool) {
	p := Problem{File: doc.File, Position: doc.Root.Pos, Field: "apiVersion"}
	if doc.Root.Kind != yamlfile.Map {
		p.Field, p.Message, p.Hint = "", "a strategy file is a map, this is "+doc.Root.Kind.String(), "it begins with apiVersion: "+APIVersion
		return p, true
	}
	v := doc.Root.Field("apiVersion")
	switch {
	case v == nil:
		p.Message, p.Hint = "is missing, so this is not a strategy file", "begin it with apiVersion: "+APIVersion
	case v.Kind != yamlfile.String || !strings.HasPrefix(v.Text, "routerd/"):
		p.Position = v.Pos
		p.Message, p.Hint = fmt.Sprintf("%.80q is not the version of a strategy file", v.Text), "begin a strategy file with apiVersion: "+APIVersion
	case v.Text != APIVersion:
		p.Position = v.Pos
		p.Message, p.Hint = fmt.Sprintf("this build does not read version %.80q", v.Text), "it reads "+APIVersion
	case doc.Root.Field("module") != nil && doc.Root.Field("strategy") == nil:
		p.Position, p.Field = doc.Root.Field("module").Pos, "module"
		p.Message, p.Hint = "this is a route file, not a strategy", "routectl validate and publish read those"
	default:
		return p, false
	}
	return p, true
}
