package yamlfile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Limits on what is read.
const (
	MaxBytes   = 16 << 20 // of one file
	MaxDepth   = 64       // of lists and maps in each other
	MaxAliased = 1 << 16  // values that a document's aliases may add to those written in it; 64 bytes of text count as one more
	MaxValues  = 1 << 21  // in one file
	MaxKey     = 1 << 10  // bytes of a key
)

// A Kind is what a Node is.
type Kind uint8

// The kinds.
const (
	Null Kind = iota
	Bool
	Number
	String
	List
	Map
)

// String gives the kind as it stands in "want a list, got text".
func (k Kind) String() string {
	return [...]string{"nothing", "a bool", "a number", "text", "a list", "a map"}[k]
}

// A Node is one value of a document. It is not changed after it was parsed.
type Node struct {
	Kind Kind
	Pos  Position // of its first character; of the definition for what came by an alias
	Text string   // of a String; the digits of a Number as written; true or false of a Bool

	Items  []*Node // of a List
	Fields []Field // of a Map, in the order written, each key once

	written int // how many values stand here with aliases expanded, itself included and long text weighed
	height  int // how deep lists and maps are nested here; 0 for a scalar
}

// A Field is one entry of a Map.
type Field struct {
	Key   string
	Pos   Position // of the key
	Value *Node
}

// Field returns the value under the key of a Map, nil when there is none.
func (n *Node) Field(key string) *Node {
	for i := range n.Fields {
		if n.Fields[i].Key == key {
			return n.Fields[i].Value
		}
	}
	return nil
}

// holds accounts for a value that n holds, under a key if n is a map.
func (n *Node) holds(key string, v *Node) {
	n.written += v.written + weight(key)
	n.height = max(n.height, v.height+1)
}

// weight is how many values a text counts for beside its own.
func weight(text string) int { return len(text) / 64 }

// A Document is one document of a file.
type Document struct {
	File string
	Root *Node
}

// Walk calls visit for every value with its field path, such as
// "routes[2].path", an outer one before those in it. A value under a key has
// the place of its key. The root's path is empty, and a path that grows past
// maxPath stays that of what is around the value.
func (d *Document) Walk(visit func(field string, pos Position, n *Node)) {
	walk("", d.Root.Pos, d.Root, visit)
}

func walk(field string, pos Position, n *Node, visit func(string, Position, *Node)) {
	visit(field, pos, n)
	for i, it := range n.Items {
		walk(index(field, i), it.Pos, it, visit)
	}
	for _, f := range n.Fields {
		walk(join(field, f.Key), f.Pos, f.Value, visit)
	}
}

// maxPath bounds the path of a field: each value has one, and many may be kept.
const maxPath = 1024

func join(field, key string) string {
	switch {
	case len(field)+len(key) > maxPath:
		return field
	case field == "":
		return key
	}
	return field + "." + key
}

func index(field string, i int) string {
	if len(field) > maxPath {
		return field
	}
	return field + "[" + strconv.Itoa(i) + "]"
}

// JSON returns the value in canonical JSON: keys sorted by their bytes, no
// white space, numbers with all their digits in one form. Equal values have
// equal bytes. It fails for a number that JSON cannot say.
func (n *Node) JSON() ([]byte, error) {
	var b bytes.Buffer
	if err := n.writeJSON(&b, true); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func (n *Node) writeJSON(b *bytes.Buffer, sorted bool) error {
	switch n.Kind {
	case Null:
		b.WriteString("null")
	case Bool:
		b.WriteString(n.Text)
	case Number:
		s, err := canonicalNumber(n.Text)
		if err != nil {
			return fmt.Errorf("line %d: %w", n.Pos.Line, err)
		}
		b.WriteString(s)
	case String:
		writeJSONString(b, n.Text)
	case List:
		b.WriteByte('[')
		for i, it := range n.Items {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := it.writeJSON(b, sorted); err != nil {
				return err
			}
		}
		b.WriteByte(']')
	case Map:
		b.WriteByte('{')
		fields := n.Fields
		if sorted {
			fields = slices.SortedFunc(slices.Values(fields), func(x, y Field) int { return strings.Compare(x.Key, y.Key) })
		}
		for i, f := range fields {
			if i > 0 {
				b.WriteByte(',')
			}
			writeJSONString(b, f.Key)
			b.WriteByte(':')
			if err := f.Value.writeJSON(b, sorted); err != nil {
				return err
			}
		}
		b.WriteByte('}')
	}
	return nil
}

func writeJSONString(b *bytes.Buffer, s string) {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s)       // a string into a buffer cannot fail
	b.Truncate(b.Len() - 1) // the encoder's new line
}
