package yamlfile

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// A Marshaler gives the value to be written in its place.
type Marshaler interface {
	MarshalNode() any
}

// Encode writes v as one YAML document that Parse and Decode read back as an
// equal value. It writes what Decode reads; struct fields in their order, those
// with omitempty or omitzero only when they are not zero, map keys sorted.
// Types that write themselves are heeded: Marshaler, json.Marshaler,
// encoding.TextMarshaler. It fails for text that is not UTF-8 and for types
// that documents do not have.
func Encode(v any) ([]byte, error) {
	n, err := NodeOf(v)
	if err != nil {
		return nil, err
	}
	w := &yamlWriter{}
	w.block(n, 0)
	return w.Bytes(), nil
}

// EncodeJSON is Encode in JSON, indented by two spaces.
func EncodeJSON(v any) ([]byte, error) {
	n, err := NodeOf(v)
	if err != nil {
		return nil, err
	}
	var flat, out bytes.Buffer
	if err := n.writeJSON(&flat, false); err != nil {
		return nil, err
	}
	if err := json.Indent(&out, flat.Bytes(), "", "  "); err != nil {
		return nil, fmt.Errorf("indent JSON: %w", err)
	}
	out.WriteByte('\n')
	return escapeUnseen(out.Bytes()), nil
}

// escapeUnseen makes JSON a file that Parse takes. What is unseen can stand
// only in text.
func escapeUnseen(data []byte) []byte {
	if !bytes.ContainsFunc(data, unseen) {
		return data
	}
	var out []byte
	for _, r := range string(data) {
		if unseen(r) {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return out
}

// NodeOf gives a Go value as a node without places.
func NodeOf(v any) (*Node, error) {
	n, err := structTypes{}.node(reflect.ValueOf(v))
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return n, nil
}

func (types structTypes) node(v reflect.Value) (*Node, error) {
	if !v.IsValid() {
		return &Node{Kind: Null}, nil
	}
	if nilable(v.Kind()) && v.IsNil() && v.Kind() != reflect.Slice && v.Kind() != reflect.Map {
		return &Node{Kind: Null}, nil
	}
	switch x := v.Interface().(type) {
	case *Node:
		return x, nil
	case Marshaler:
		return types.node(reflect.ValueOf(x.MarshalNode()))
	case time.Duration:
		return &Node{Kind: String, Text: durationText(x)}, nil
	case json.Number:
		return &Node{Kind: Number, Text: x.String()}, nil
	case json.Marshaler:
		b, err := x.MarshalJSON()
		if err != nil {
			return nil, err
		}
		return ParseJSON(b)
	case encoding.TextMarshaler:
		b, err := x.MarshalText()
		if err != nil {
			return nil, err
		}
		return textNode(string(b))
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		return types.node(v.Elem())
	case reflect.String:
		return textNode(v.String())
	case reflect.Bool:
		return &Node{Kind: Bool, Text: strconv.FormatBool(v.Bool())}, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return &Node{Kind: Number, Text: strconv.FormatInt(v.Int(), 10)}, nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return &Node{Kind: Number, Text: strconv.FormatUint(v.Uint(), 10)}, nil
	case reflect.Float32, reflect.Float64:
		s, err := canonicalNumber(strconv.FormatFloat(v.Float(), 'g', -1, v.Type().Bits()))
		return &Node{Kind: Number, Text: s}, err
	case reflect.Slice, reflect.Array:
		return types.listNode(v)
	case reflect.Map:
		return types.mapNode(v)
	case reflect.Struct:
		return types.structNode(v)
	}
	return nil, fmt.Errorf("%s is not a type of documents", v.Type())
}

func nilable(k reflect.Kind) bool {
	return k == reflect.Pointer || k == reflect.Interface || k == reflect.Slice || k == reflect.Map
}

func textNode(s string) (*Node, error) {
	if strings.ToValidUTF8(s, "") != s {
		return nil, fmt.Errorf("the text %.40q is not UTF-8", s)
	}
	return &Node{Kind: String, Text: s}, nil
}

func (types structTypes) listNode(v reflect.Value) (*Node, error) {
	n := &Node{Kind: List}
	for i := range v.Len() {
		it, err := types.node(v.Index(i))
		if err != nil {
			return nil, err
		}
		n.Items = append(n.Items, it)
	}
	return n, nil
}

func (types structTypes) mapNode(v reflect.Value) (*Node, error) {
	n := &Node{Kind: Map}
	for _, k := range v.MapKeys() {
		if k.Kind() != reflect.String {
			return nil, fmt.Errorf("%s has keys that are not text", v.Type())
		}
		if _, err := textNode(k.String()); err != nil {
			return nil, err
		}
		it, err := types.node(v.MapIndex(k))
		if err != nil {
			return nil, err
		}
		n.Fields = append(n.Fields, Field{Key: k.String(), Value: it})
	}
	slices.SortFunc(n.Fields, func(a, b Field) int { return strings.Compare(a.Key, b.Key) })
	return n, nil
}

func (types structTypes) structNode(v reflect.Value) (*Node, error) {
	n := &Node{Kind: Map}
	for _, sf := range types.fields(v.Type()) {
		f := v.FieldByIndex(sf.index)
		if sf.omitEmpty && (f.IsZero() || (f.Kind() == reflect.Slice || f.Kind() == reflect.Map) && f.Len() == 0) {
			continue
		}
		it, err := types.node(f)
		if err != nil {
			return nil, err
		}
		n.Fields = append(n.Fields, Field{Key: sf.name, Value: it})
	}
	return n, nil
}

// durationText is Duration.String without the zero units at its end: 1m, not
// 1m0s.
func durationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// A yamlWriter writes nodes as block YAML, small ones in flow style.
type yamlWriter struct{ bytes.Buffer }

// flowWidth is how long a list or map of scalars may be to stand on one line.
const flowWidth = 72

// block writes n where a line begins, indented by so many spaces, and ends the
// line.
func (w *yamlWriter) block(n *Node, indent int) {
	switch {
	case n.Kind == Map && len(n.Fields) > 0:
		for i, f := range n.Fields {
			if i > 0 || indent == 0 {
				w.spaces(indent)
			}
			w.WriteString(keyText(f.Key))
			w.WriteByte(':')
			w.after(f.Value, indent)
		}
	case n.Kind == List && len(n.Items) > 0:
		for i, it := range n.Items {
			if i > 0 || indent == 0 {
				w.spaces(indent)
			}
			w.WriteByte('-')
			if flow, ok := lineText(it); ok && len(it.Fields) <= 2 {
				w.WriteString(" " + flow + "\n")
				continue
			}
			w.WriteByte(' ')
			w.block(it, indent+2)
		}
	default:
		flow, _ := lineText(n)
		w.WriteString(flow + "\n")
	}
}

// after writes a value behind its key.
func (w *yamlWriter) after(n *Node, indent int) {
	if n.Kind == String && literal(n.Text) {
		w.literal(n.Text, indent+2)
		return
	}
	if flow, ok := lineText(n); ok {
		w.WriteString(" " + flow + "\n")
		return
	}
	w.WriteByte('\n')
	w.spaces(indent + 2)
	w.block(n, indent+2)
}

func (w *yamlWriter) spaces(n int) { w.WriteString(strings.Repeat(" ", n)) }

// literal tells whether a text of several lines can stand as it is after a
// bar: printable, and without what a reader could take for indentation or lose.
func literal(s string) bool {
	body, ok := strings.CutSuffix(s, "\n")
	if !ok || !strings.Contains(body, "\n") {
		return false
	}
	for line := range strings.SplitSeq(body, "\n") {
		if line == "" || line[0] == ' ' || line[0] == '#' || line[len(line)-1] == ' ' || strings.HasPrefix(line, "---") || strings.HasPrefix(line, "...") {
			return false
		}
		for _, r := range line {
			if !plainRune(r) {
				return false
			}
		}
	}
	return true
}

func (w *yamlWriter) literal(s string, indent int) {
	w.WriteString(" |\n")
	for line := range strings.Lines(s) {
		w.spaces(indent)
		w.WriteString(line)
	}
}

// lineText gives a value that stands alone on the rest of a line.
func lineText(n *Node) (string, bool) {
	if n.Kind == String {
		return scalarText(n.Text, false), true
	}
	return flowText(n)
}

// flowText gives a value on one line within brackets: a scalar, or a short list
// or map of scalars. The second result is false when n is better written as a
// block.
func flowText(n *Node) (string, bool) {
	var parts []string
	switch n.Kind {
	case List:
		for _, it := range n.Items {
			if it.Kind == List || it.Kind == Map {
				return "", false
			}
			s, _ := flowText(it)
			parts = append(parts, s)
		}
	case Map:
		for _, f := range n.Fields {
			if f.Value.Kind == List || f.Value.Kind == Map && len(f.Value.Fields) > 0 {
				return "", false
			}
			s, _ := flowText(f.Value)
			parts = append(parts, keyText(f.Key)+": "+s)
		}
	case String:
		return scalarText(n.Text, true), true
	case Null:
		return "null", true
	default:
		return n.Text, true
	}
	brackets := "[]"
	if n.Kind == Map {
		brackets = "{}"
	}
	s := brackets[:1] + strings.Join(parts, ", ") + brackets[1:]
	return s, len(s) <= flowWidth || len(parts) == 0
}

// scalarText gives text plain where that reads back as the same text anywhere,
// and in double quotes otherwise. In flow it
// stands within brackets.
func scalarText(s string, flow bool) string {
	if plain(s, flow) {
		return s
	}
	return quoted(s)
}

func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case plainRune(r):
			b.WriteRune(r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			fmt.Fprintf(&b, `\U%08X`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// keyText is scalarText for a key. One with a colon is quoted: readers differ
// about where it ends.
func keyText(s string) string {
	if strings.Contains(s, ":") {
		return quoted(s)
	}
	return scalarText(s, true)
}

func plainRune(r rune) bool { return r == ' ' || unicode.IsGraphic(r) && !unicode.IsSpace(r) }

// plain is narrower than YAML: what it refuses is quoted, which is never
// wrong.
func plain(s string, flow bool) bool {
	if k, _ := plainKind(s); k != String {
		return false
	}
	for i, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '_', r == '/':
		case r >= '0' && r <= '9', r == '.':
			// Readers of YAML 1.1 and the library's scanner see numbers and
			// dates in more texts than the core schema does; three dots end a
			// document.
			if i == 0 && (r == '.' || !letterIn(s)) {
				return false
			}
		case r == '-', r == '+', r == '=', r == '(', r == ')', r == ';', r == '~', r == '$', r == '^':
			if i == 0 {
				return false
			}
		case strings.ContainsRune("{}[],", r):
			if i == 0 || flow {
				return false
			}
		case r == ' ':
			if i == 0 || i == len(s)-1 {
				return false
			}
		case r == ':':
			if i == 0 || i == len(s)-1 || s[i+1] == ' ' {
				return false
			}
		default:
			return false
		}
	}
	switch strings.ToLower(s) {
	case "y", "n", "yes", "no", "on", "off", "true", "false", "null":
		return false // bools of YAML 1.1
	}
	return true
}

func letterIn(s string) bool {
	for _, r := range s {
		if r == '_' {
			return false // 1_000
		}
		if r >= 'g' && r <= 'z' || r >= 'G' && r <= 'Z' || r == '/' {
			return true
		}
	}
	return false
}
