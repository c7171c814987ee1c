package strategyfile

import (
	"reflect"
	"strings"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/yamlfile"
)

var (
	documentType = reflect.TypeFor[document]()
	durationType = reflect.TypeFor[rollout.Duration]()
	quantityType = reflect.TypeFor[rollout.Quantity]()

	// These say something without a word: commit: alone is a commit.
	bareTypes = [...]reflect.Type{
		reflect.TypeFor[rollout.CommitStep](), reflect.TypeFor[rollout.AnalysisStep](), reflect.TypeFor[rollout.BakeStep](),
	}
)

// shape turns a node that is to become a t into one that decodes: a quantity
// may be written as a number, a step that needs no field without one, and a number
// that stands for a duration must not be taken for nanoseconds.
func shape(n *yamlfile.Node, t reflect.Type) *yamlfile.Node {
	switch {
	case t.Kind() == reflect.Pointer && n.Kind == yamlfile.Null && isBare(t.Elem()):
		return &yamlfile.Node{Kind: yamlfile.Map, Pos: n.Pos}
	case t.Kind() == reflect.Pointer:
		return shape(n, t.Elem())
	case t == durationType && n.Kind == yamlfile.Number:
		// As text it is refused, with its place and what is wanted.
		return &yamlfile.Node{Kind: yamlfile.String, Text: n.Text + " (without a unit)", Pos: n.Pos}
	case t == quantityType && n.Kind == yamlfile.Number:
		return &yamlfile.Node{Kind: yamlfile.String, Text: n.Text, Pos: n.Pos}
	}
	return each(n, t, shape)
}

// unshape makes what was encoded as t look as people write it.
func unshape(n *yamlfile.Node, t reflect.Type) *yamlfile.Node {
	switch {
	case t.Kind() == reflect.Pointer:
		return unshape(n, t.Elem())
	case t == durationType && n.Kind == yamlfile.String:
		if d, err := time.ParseDuration(n.Text); err == nil {
			if nice, err := yamlfile.NodeOf(d); err == nil {
				return nice
			}
		}
		return n
	case t == quantityType && n.Kind == yamlfile.String && n.Text != "" && strings.Trim(n.Text, "0123456789") == "":
		return &yamlfile.Node{Kind: yamlfile.Number, Text: n.Text}
	}
	return each(n, t, unshape)
}

func isBare(t reflect.Type) bool {
	for _, b := range bareTypes {
		if t == b {
			return true
		}
	}
	return false
}

// each applies do to what n holds, which is to become what t holds. Fields
// that t does not have stay as they are.
func each(n *yamlfile.Node, t reflect.Type, do func(*yamlfile.Node, reflect.Type) *yamlfile.Node) *yamlfile.Node {
	out := *n
	switch {
	case t.Kind() == reflect.Slice && n.Kind == yamlfile.List:
		out.Items = make([]*yamlfile.Node, len(n.Items))
		for i, it := range n.Items {
			out.Items[i] = do(it, t.Elem())
		}
	case t.Kind() == reflect.Map && n.Kind == yamlfile.Map:
		out.Fields = make([]yamlfile.Field, len(n.Fields))
		for i, f := range n.Fields {
			f.Value = do(f.Value, t.Elem())
			out.Fields[i] = f
		}
	case t.Kind() == reflect.Struct && n.Kind == yamlfile.Map:
		known := fieldTypes(t)
		out.Fields = make([]yamlfile.Field, len(n.Fields))
		for i, f := range n.Fields {
			if ft, ok := known[f.Key]; ok {
				f.Value = do(f.Value, ft)
			}
			out.Fields[i] = f
		}
	}
	return &out
}

// fieldTypes gives the types of a struct's fields by their names in documents.
func fieldTypes(t reflect.Type) map[string]reflect.Type {
	types := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.IsExported() && name != "-" && name != "" {
			types[name] = f.Type
		}
	}
	return types
}
