package middleware

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"routerd.dev/internal/route"
)

// maxConfigDepth is more than any config struct needs, and bounds what a
// snapshot made by someone else can cost.
const maxConfigDepth = 8

// Duration is a span of time in configs, written as Go writes it: "1s",
// "250ms", "1h30m".
type Duration time.Duration

// UnmarshalText reads Go's form.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("want a duration such as 1s or 250ms, got %.40q", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes Go's form.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// decode reads a JSON object into a struct, strictly: unknown and repeated
// fields, nulls, wrong types and what follows the object are problems, each
// with its path. Fields match their json names exactly.
func decode(config string, into any, ps *problems) {
	if len(config) > route.MaxConfigBytes {
		ps.add("", "", "config has %d bytes, at most %d are allowed", len(config), route.MaxConfigBytes)
		return
	}
	d := json.NewDecoder(strings.NewReader(config))
	d.UseNumber()
	v, err := readValue(d, 0)
	if err == nil {
		_, err = d.Token()
		switch {
		case err == nil:
			err = errors.New("more than one value")
		case errors.Is(err, io.EOF):
			err = nil
		}
	}
	if err != nil {
		ps.add("", "", "config is not valid JSON: %v", err)
		return
	}
	assign("", v, reflect.ValueOf(into).Elem(), ps)
}

// An object keeps its fields in the order read, and the names read twice.
type object struct {
	names    []string
	values   map[string]any
	repeated []string
}

func readValue(d *json.Decoder, depth int) (any, error) {
	t, err := d.Token()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return t, nil
	}
	if depth >= maxConfigDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxConfigDepth)
	}
	if delim == '[' {
		list := []any{}
		for d.More() {
			v, err := readValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, err
	}
	o := &object{values: map[string]any{}}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, ok := t.(string)
		if !ok {
			return nil, fmt.Errorf("object key %v is not a string", t)
		}
		v, err := readValue(d, depth+1)
		if err != nil {
			return nil, err
		}
		if _, twice := o.values[name]; twice {
			o.repeated = append(o.repeated, name)
			continue
		}
		o.names = append(o.names, name)
		o.values[name] = v
	}
	_, err = d.Token()
	return o, err
}

func assign(path string, v any, into reflect.Value, ps *problems) {
	if u, ok := into.Addr().Interface().(encoding.TextUnmarshaler); ok {
		s, ok := v.(string)
		if !ok {
			ps.add(path, "", "want a string, got %s", jsonType(v))
		} else if err := u.UnmarshalText([]byte(s)); err != nil {
			ps.add(path, "", "%v", err)
		}
		return
	}
	switch into.Kind() {
	case reflect.Struct:
		assignStruct(path, v, into, ps)
	case reflect.Map: // of string to string
		o, ok := v.(*object)
		if !ok {
			ps.add(path, "", "want an object, got %s", jsonType(v))
			return
		}
		reportRepeated(path, o, ps)
		m := reflect.MakeMapWithSize(into.Type(), len(o.names))
		for _, name := range o.names {
			e := reflect.New(into.Type().Elem()).Elem()
			assign(join(path, name), o.values[name], e, ps)
			m.SetMapIndex(reflect.ValueOf(name), e)
		}
		into.Set(m)
	case reflect.Slice:
		list, ok := v.([]any)
		if !ok {
			ps.add(path, "", "want a list, got %s", jsonType(v))
			return
		}
		s := reflect.MakeSlice(into.Type(), len(list), len(list))
		for i := range list {
			assign(path+"["+strconv.Itoa(i)+"]", list[i], s.Index(i), ps)
		}
		into.Set(s)
	case reflect.String:
		if s, ok := v.(string); ok {
			into.SetString(s)
		} else {
			ps.add(path, "", "want a string, got %s", jsonType(v))
		}
	case reflect.Bool:
		if b, ok := v.(bool); ok {
			into.SetBool(b)
		} else {
			ps.add(path, "", "want true or false, got %s", jsonType(v))
		}
	case reflect.Int:
		n, ok := v.(json.Number)
		i, err := strconv.ParseInt(string(n), 10, 64)
		if !ok || err != nil {
			ps.add(path, "", "want a whole number, got %s", jsonType(v))
			return
		}
		into.SetInt(i)
	case reflect.Float64:
		n, ok := v.(json.Number)
		f, err := n.Float64()
		if !ok || err != nil {
			ps.add(path, "", "want a number, got %s", jsonType(v))
			return
		}
		into.SetFloat(f)
	default:
		// A config struct of ours with a field of another type; the test that
		// walks Kinds finds it.
		ps.add(path, "", "config fields of type %s are not supported", into.Type())
	}
}

func assignStruct(path string, v any, into reflect.Value, ps *problems) {
	o, ok := v.(*object)
	if !ok {
		ps.add(path, "", "want an object, got %s", jsonType(v))
		return
	}
	reportRepeated(path, o, ps)
	fields := map[string]int{}
	for i := range into.NumField() {
		fields[fieldName(into.Type().Field(i))] = i
	}
	for _, name := range o.names {
		i, ok := fields[name]
		if !ok {
			known := make([]string, 0, len(fields))
			for f := range fields {
				known = append(known, f)
			}
			slices.Sort(known)
			ps.add(join(path, name), "known are "+strings.Join(known, ", "), "unknown field")
			continue
		}
		assign(join(path, name), o.values[name], into.Field(i), ps)
	}
}

func reportRepeated(path string, o *object, ps *problems) {
	for _, name := range o.repeated {
		ps.add(join(path, name), "", "stands twice")
	}
}

func fieldName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func jsonType(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return strconv.FormatBool(v)
	case json.Number:
		return string(bytes.TrimSpace([]byte(v)))
	case string:
		return "a string"
	case []any:
		return "a list"
	default:
		return "an object"
	}
}
