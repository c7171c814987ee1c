package routefile

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"time"

	"github.com/invopop/jsonschema"
)

// A MiddlewareKind describes one kind of middleware for Schema and Reference:
// this package knows none. Config is a zero value of the struct of its
// settings, whose json, jsonschema and jsonschema_description tags are heeded.
type MiddlewareKind struct {
	Name   string
	Doc    string
	Config any
}

// SchemaID is the $id of the schema that Schema returns.
const SchemaID = "https://routerd.dev/schema/route-file.json"

// Schema returns the JSON Schema (draft 2020-12) of one document of a route
// file. With kinds, a middleware must be of one of them; without, any kind with any
// settings passes. The schema is a little wider than Parse: it takes each field by
// itself, and cannot see that a name is missing elsewhere.
func Schema(kinds ...MiddlewareKind) ([]byte, error) {
	s := reflector(false).Reflect(document{})
	s.ID = SchemaID
	s.Title = "routerd route file"
	defs := s.Definitions
	defs["target"] = either(&jsonschema.Schema{Type: "string"}, inline(targetSpec{}))
	defs["respond"] = either(&jsonschema.Schema{Type: "string"}, inline(respondSpec{}))
	defs["request"] = either(&jsonschema.Schema{Type: "string", Pattern: `^\s*\S+\s+\S+\s*$`}, inline(requestSpec{}))
	text := &jsonschema.Schema{Type: "string"}
	defs["headers"] = &jsonschema.Schema{
		Type:                 "object",
		AdditionalProperties: either(text, &jsonschema.Schema{Type: "array", Items: text}),
	}
	defs["middleware"] = kindsSchema(kinds, false)
	defs["middlewareOrUse"] = kindsSchema(kinds, true)

	defs["condition"].OneOf = oneGiven("present", "equal", "prefix", "regex")
	present, _ := defs["condition"].Properties.Get("present")
	present.Const = true
	defs["route"].AllOf = []*jsonschema.Schema{
		{OneOf: oneGiven("path", "prefix")},
		{OneOf: oneGiven("proxy", "respond", "redirect")},
	}
	defs["expect"].OneOf = oneGiven("route", "status")

	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the schema of route files: %w", err)
	}
	return append(b, '\n'), nil
}

// reflector makes schemas of the structs in file.go. The types that read
// themselves refer to definitions that Schema adds.
func reflector(inline bool) *jsonschema.Reflector {
	refs := map[reflect.Type]string{
		reflect.TypeFor[target]():     "target",
		reflect.TypeFor[respond]():    "respond",
		reflect.TypeFor[request]():    "request",
		reflect.TypeFor[headers]():    "headers",
		reflect.TypeFor[definition](): "middleware",
		reflect.TypeFor[link]():       "middlewareOrUse",
	}
	names := map[string]string{"routeSpec": "route", "testSpec": "test", "cond": "condition"}
	return &jsonschema.Reflector{
		Anonymous:                  true,
		ExpandedStruct:             true,
		DoNotReference:             inline,
		RequiredFromJSONSchemaTags: true,
		Namer: func(t reflect.Type) string {
			if n, ok := names[t.Name()]; ok {
				return n
			}
			return t.Name()
		},
		Mapper: func(t reflect.Type) *jsonschema.Schema {
			if name, ok := refs[t]; ok {
				return &jsonschema.Schema{Ref: "#/$defs/" + name}
			}
			switch {
			case isDuration(t):
				return &jsonschema.Schema{Type: "string", Pattern: `^([0-9]+(\.[0-9]*)?|\.[0-9]+)(h|m|s|ms|us|µs|ns)(([0-9]+(\.[0-9]*)?|\.[0-9]+)(h|m|s|ms|us|µs|ns))*$`}
			case t == reflect.TypeFor[prefix](), t == reflect.TypeFor[address]():
				return &jsonschema.Schema{Type: "string", Pattern: `^[0-9a-fA-F:./]+$`}
			case readsText(t):
				return &jsonschema.Schema{Type: "string"}
			}
			return nil
		},
	}
}

// isDuration tells whether a type is a time.Duration, or one like it that
// reads itself from text.
func isDuration(t reflect.Type) bool {
	return t == reflect.TypeFor[time.Duration]() || t.Kind() == reflect.Int64 && readsText(t)
}

func readsText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// inline gives the schema of a struct without the marks of a whole document.
func inline(v any) *jsonschema.Schema {
	s := reflector(true).Reflect(v)
	s.Version = ""
	return s
}

func either(a, b *jsonschema.Schema) *jsonschema.Schema {
	return &jsonschema.Schema{OneOf: []*jsonschema.Schema{a, b}}
}

// oneGiven asks for exactly one of the fields.
func oneGiven(names ...string) []*jsonschema.Schema {
	var out []*jsonschema.Schema
	for _, n := range names {
		out = append(out, &jsonschema.Schema{Required: []string{n}})
	}
	return out
}

// kindsSchema is a map with one key: a kind, or use.
func kindsSchema(kinds []MiddlewareKind, use bool) *jsonschema.Schema {
	one := uint64(1)
	s := &jsonschema.Schema{Type: "object", MinProperties: &one, MaxProperties: &one, Properties: jsonschema.NewProperties()}
	if use {
		s.Properties.Set("use", &jsonschema.Schema{Type: "string", MinLength: &one, Description: "The name of a middleware of this module."})
	}
	nothing := &jsonschema.Schema{Type: "null"}
	for _, k := range kinds {
		config := inline(k.Config)
		s.Properties.Set(k.Name, &jsonschema.Schema{Description: k.Doc, AnyOf: []*jsonschema.Schema{nothing, config}})
	}
	s.AdditionalProperties = jsonschema.FalseSchema
	if len(kinds) == 0 {
		s.AdditionalProperties = either(nothing, &jsonschema.Schema{Type: "object"})
	}
	return s
}
