package yamlfile

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// An Unmarshaler reads itself from a node, with the decoder's help for what is
// wrong and for the values in it.
type Unmarshaler interface {
	UnmarshalNode(d *Decoder, n *Node)
}

// Decode puts a document into what v points to, and returns every problem with
// it. Structs take maps, by the names in their json tags. Of their jsonschema
// tags three rules are heeded: "required"; "minItems=1"; and "default=…", which
// refuses a zero that is written out, since zero stands for the default.
// Besides what encoding/json takes, a time.Duration is read from text such as
// 1m30s, a
// *Node is the value as it stands, and Unmarshaler and encoding.TextUnmarshaler
// are called. What a problem concerns is left zero; all else is set.
func Decode(doc *Document, v any) Problems {
	d := &Decoder{collector: collector{file: doc.File}, types: structTypes{}}
	d.decode(doc.Root, reflect.ValueOf(v).Elem())
	return d.sorted()
}

// A Decoder is at one value of a document, and gathers what is wrong with it.
type Decoder struct {
	collector
	field string
	types structTypes
}

// Decode puts n into what v points to. It is for an Unmarshaler: name is the
// key under which n stands in the value it was called for, such as "url" or
// "headers.request", or empty for that value itself.
func (d *Decoder) Decode(name string, n *Node, v any) {
	d.in(name, func() { d.decode(n, reflect.ValueOf(v).Elem()) })
}

// Fail reports a problem at pos with the value under name, as in Decode.
func (d *Decoder) Fail(pos Position, name, message, hint string) {
	d.in(name, func() { d.fail(pos, d.field, message, hint) })
}

// Want reports that n is not of the kind wanted, such as "text or a map".
func (d *Decoder) Want(n *Node, want, hint string) {
	message := "want " + want + ", got " + n.Kind.String()
	switch n.Kind {
	case Null:
		message, hint = "has no value, want "+want, "give it one, or leave the field out"
	case Number, Bool:
		message += " (" + excerpt(n.Text) + ")"
	}
	d.Fail(n.Pos, "", message, hint)
}

func (d *Decoder) in(name string, do func()) {
	outer := d.field
	if name != "" {
		d.field = join(d.field, name)
	}
	do()
	d.field = outer
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	nodeType     = reflect.TypeFor[*Node]()
)

func (d *Decoder) decode(n *Node, v reflect.Value) {
	if v.Type() == nodeType {
		v.Set(reflect.ValueOf(n))
		return
	}
	if v.Kind() == reflect.Pointer {
		p := reflect.New(v.Type().Elem())
		d.decode(n, p.Elem())
		v.Set(p)
		return
	}
	if u, ok := v.Addr().Interface().(Unmarshaler); ok {
		u.UnmarshalNode(d, n)
		return
	}
	switch {
	case v.Type() == durationType:
		d.duration(n, v)
		return
	case n.Kind == String:
		if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
			if err := u.UnmarshalText([]byte(n.Text)); err != nil {
				d.Fail(n.Pos, "", fmt.Sprintf("%.200s", err), "")
			}
			return
		}
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(n, v)
	case reflect.Map:
		d.mapping(n, v)
	case reflect.Slice:
		d.list(n, v)
	default:
		d.scalar(n, v)
	}
}

func (d *Decoder) scalar(n *Node, v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		if n.Kind == String {
			v.SetString(n.Text)
			return
		}
		var hint string
		if n.Kind == Number || n.Kind == Bool {
			hint = fmt.Sprintf("write %q", excerpt(n.Text))
		}
		d.Want(n, "text", hint)
	case reflect.Bool:
		if n.Kind == Bool {
			v.SetBool(n.Text == "true")
			return
		}
		d.Want(n, "true or false", "")
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if s, ok := d.whole(n); ok {
			i, err := strconv.ParseInt(s, 10, v.Type().Bits())
			if err != nil {
				d.Fail(n.Pos, "", excerpt(n.Text)+" is out of range", "")
				return
			}
			v.SetInt(i)
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if s, ok := d.whole(n); ok {
			u, err := strconv.ParseUint(s, 10, v.Type().Bits())
			if err != nil {
				d.Fail(n.Pos, "", excerpt(n.Text)+" is out of range", "")
				return
			}
			v.SetUint(u)
		}
	case reflect.Float32, reflect.Float64:
		if n.Kind != Number {
			d.Want(n, "a number", "")
			return
		}
		s, err := canonicalNumber(n.Text)
		if err != nil {
			d.Fail(n.Pos, "", err.Error(), "")
			return
		}
		f, err := strconv.ParseFloat(s, v.Type().Bits())
		if err != nil || math.IsInf(f, 0) {
			d.Fail(n.Pos, "", excerpt(n.Text)+" is out of range", "")
			return
		}
		v.SetFloat(f)
	default:
		panic(fmt.Sprintf("yamlfile: decode into %s: not a type of documents", v.Type()))
	}
}

// whole gives the decimal digits of a number without a fraction.
func (d *Decoder) whole(n *Node) (string, bool) {
	if n.Kind != Number {
		d.Want(n, "a whole number", "")
		return "", false
	}
	s, err := canonicalNumber(n.Text)
	if err != nil || strings.ContainsAny(s, ".e") {
		d.Fail(n.Pos, "", "want a whole number, got "+excerpt(n.Text), "")
		return "", false
	}
	return s, true
}

func (d *Decoder) duration(n *Node, v reflect.Value) {
	const want = "a duration such as 10s or 1m30s"
	if n.Kind != String {
		var hint string
		if n.Kind == Number && n.Text != "" {
			hint = "write " + excerpt(n.Text) + "s for seconds"
		}
		d.Want(n, want, hint)
		return
	}
	t, err := time.ParseDuration(n.Text)
	if err != nil {
		d.Fail(n.Pos, "", fmt.Sprintf("want %s, got %.40q", want, n.Text), "the units are h, m, s, ms, us, ns")
		return
	}
	v.SetInt(int64(t))
}

func (d *Decoder) list(n *Node, v reflect.Value) {
	if n.Kind != List {
		var hint string
		if n.Kind == String {
			hint = "write [" + excerpt(n.Text) + "]"
		}
		d.Want(n, "a list", hint)
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Items), len(n.Items))
	outer := d.field
	for i, it := range n.Items {
		d.field = index(outer, i)
		d.decode(it, out.Index(i))
	}
	d.field = outer
	v.Set(out)
}

func (d *Decoder) mapping(n *Node, v reflect.Value) {
	if n.Kind != Map {
		d.Want(n, "a map", "")
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(n.Fields))
	for _, f := range n.Fields {
		e := reflect.New(v.Type().Elem()).Elem()
		d.in(f.Key, func() { d.decode(f.Value, e) })
		out.SetMapIndex(reflect.ValueOf(f.Key).Convert(v.Type().Key()), e)
	}
	v.Set(out)
}

func (d *Decoder) structure(n *Node, v reflect.Value) {
	if n.Kind != Map {
		d.Want(n, "a map", "")
		return
	}
	fields := d.types.fields(v.Type())
	for _, f := range n.Fields {
		i := slices.IndexFunc(fields, func(sf structField) bool { return sf.name == f.Key })
		if i < 0 {
			d.unknown(f, fields)
			continue
		}
		d.in(f.Key, func() {
			before := len(d.problems)
			d.decode(f.Value, v.FieldByIndex(fields[i].index))
			switch {
			case len(d.problems) > before:
			case fields[i].minItems && f.Value.Kind == List && len(f.Value.Items) == 0:
				d.Fail(f.Pos, "", "is empty", "name at least one, or leave the field out")
			case fields[i].standard != "" && v.FieldByIndex(fields[i].index).IsZero():
				d.Fail(f.Pos, "", "cannot be "+zeroText(f.Value), "leave it out for the default, "+fields[i].standard)
			}
		})
	}
	for _, sf := range fields {
		if sf.required && n.Field(sf.name) == nil {
			d.Fail(n.Pos, sf.name, "is missing", "")
		}
	}
}

func zeroText(n *Node) string {
	if n.Text == "" {
		return "empty"
	}
	return excerpt(n.Text)
}

func (d *Decoder) unknown(f Field, fields []structField) {
	names := make([]string, len(fields))
	for i, sf := range fields {
		names[i] = sf.name
	}
	slices.Sort(names)
	hint := "the fields here are " + strings.Join(names, ", ")
	if s := Suggest(f.Key, names); s != "" {
		hint = "did you mean " + s + "?"
	}
	d.Fail(f.Pos, f.Key, "unknown field", hint)
}

// A structField is a field of a Go struct as it stands in documents.
type structField struct {
	name      string
	index     []int
	omitEmpty bool
	required  bool
	minItems  bool
	standard  string // the default, when the tag names one
}

// structTypes remembers the fields of the structs of one document.
type structTypes map[reflect.Type][]structField

func (types structTypes) fields(t reflect.Type) []structField {
	if known, ok := types[t]; ok {
		return known
	}
	var out []structField
	for _, f := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "-" || f.Anonymous && name == "" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		rules := strings.Split(f.Tag.Get("jsonschema"), ",")
		var standard string
		for _, r := range rules {
			if v, ok := strings.CutPrefix(r, "default="); ok {
				standard = v
			}
		}
		out = append(out, structField{
			standard:  standard,
			name:      name,
			index:     f.Index,
			omitEmpty: strings.Contains(options, "omit"),
			required:  slices.Contains(rules, "required"),
			minItems:  slices.Contains(rules, "minItems=1"),
		})
	}
	types[t] = out
	return out
}
