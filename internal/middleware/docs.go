package middleware

import (
	"encoding"
	"reflect"
)

// A Page describes a kind for readers: the reference page and completion are
// made of it.
type Page struct {
	Name       string  `json:"name"`
	Doc        string  `json:"doc"`
	Capability string  `json:"capability"`
	Fields     []Field `json:"fields"`
}

// A Field describes one field of a config by its path, such as request.set.
type Field struct {
	Path     string `json:"path"`
	Type     string `json:"type"` // string, number, integer, boolean, duration, list of T, map of T
	Required bool   `json:"required,omitempty"`
	Doc      string `json:"doc"`
}

// Reference describes every kind, in the order of Kinds.
func Reference() []Page {
	var pages []Page
	for _, k := range Kinds() {
		p := Page{Name: k.Name, Doc: k.Doc, Capability: k.Capability}
		describe("", reflect.TypeOf(k.Config), &p.Fields)
		pages = append(pages, p)
	}
	return pages
}

func describe(path string, t reflect.Type, into *[]Field) {
	for i := range t.NumField() {
		f := t.Field(i)
		at := join(path, fieldName(f))
		*into = append(*into, Field{
			Path:     at,
			Type:     typeName(f.Type),
			Required: f.Tag.Get("jsonschema") == "required",
			Doc:      f.Tag.Get("jsonschema_description"),
		})
		if f.Type.Kind() == reflect.Struct {
			describe(at, f.Type, into)
		}
	}
}

func typeName(t reflect.Type) string {
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return "duration"
	}
	switch t.Kind() {
	case reflect.Slice:
		return "list of " + typeName(t.Elem())
	case reflect.Map:
		return "map of " + typeName(t.Elem())
	case reflect.Struct:
		return "object"
	case reflect.Float64:
		return "number"
	case reflect.Int:
		return "integer"
	case reflect.Bool:
		return "boolean"
	default:
		return "string"
	}
}
