package yamlfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// A jsonReader builds nodes from JSON that is known to be well formed.
type jsonReader struct {
	*parser
	data []byte
	dec  *json.Decoder

	// Where the last position was computed, so that all of them together cost
	// one pass over data.
	at  int
	pos Position
}

func (p *parser) parseJSON(data []byte) []*Node {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil
	}
	var raw json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		var syntax *json.SyntaxError
		at := 0
		if errors.As(err, &syntax) {
			at = int(syntax.Offset) - 1
		}
		p.fail(positionAt(data, at), "", "is not JSON: "+err.Error(), "")
		return nil
	}
	r := &jsonReader{parser: p, data: data, dec: json.NewDecoder(bytes.NewReader(data)), pos: Position{Line: 1, Column: 1}}
	r.dec.UseNumber()
	n := r.value("", 0)
	if n == nil {
		return nil
	}
	return []*Node{n}
}

// next returns the next token and where it begins.
func (r *jsonReader) next() (json.Token, Position, string) {
	start := int(r.dec.InputOffset())
	for start < len(r.data) && strings.IndexByte(" \t\r\n,:", r.data[start]) >= 0 {
		start++
	}
	t, err := r.dec.Token()
	if err != nil {
		// json.Unmarshal accepted the same bytes.
		panic(fmt.Sprintf("yamlfile: read a token of valid JSON: %v", err))
	}
	return t, r.position(start), string(r.data[start:r.dec.InputOffset()])
}

func (r *jsonReader) position(offset int) Position {
	for r.at < offset {
		c, size := utf8.DecodeRune(r.data[r.at:])
		r.at += size
		if c == '\n' {
			r.pos.Line++
			r.pos.Column = 1
		} else {
			r.pos.Column++
		}
	}
	return r.pos
}

// value reads one value; nil once nesting is too deep, which ends the reading.
func (r *jsonReader) value(field string, depth int) *Node {
	t, pos, raw := r.next()
	n := &Node{Pos: pos, written: 1}
	if !r.bears(pos, field) {
		return nil
	}
	switch v := t.(type) {
	case nil:
		n.Kind = Null
	case bool:
		n.Kind, n.Text = Bool, raw
	case json.Number:
		n.Kind, n.Text = Number, v.String()
	case string:
		n.Kind, n.Text = String, r.text(v, raw, pos, field)
	case json.Delim:
		if depth >= MaxDepth {
			r.tooDeep(pos, field)
			return nil
		}
		if v == '[' {
			return r.list(n, field, depth)
		}
		return r.object(n, field, depth)
	}
	return n
}

func (r *jsonReader) list(n *Node, field string, depth int) *Node {
	n.Kind = List
	for r.dec.More() {
		it := r.value(index(field, len(n.Items)), depth+1)
		if it == nil {
			return nil
		}
		n.Items = append(n.Items, it)
	}
	r.next()
	return n
}

func (r *jsonReader) object(n *Node, field string, depth int) *Node {
	n.Kind = Map
	seen := map[string]Position{}
	for r.dec.More() {
		t, pos, raw := r.next()
		key := r.text(t.(string), raw, pos, field)
		if len(key) > MaxKey {
			r.longKey(pos, field)
			return nil
		}
		v := r.value(join(field, key), depth+1)
		if v == nil {
			return nil
		}
		if first, ok := seen[key]; ok {
			r.duplicate(pos, join(field, key), key, first)
			continue
		}
		seen[key] = pos
		n.Fields = append(n.Fields, Field{Key: key, Pos: pos, Value: v})
	}
	r.next()
	return n
}

// text returns the string, and reports a \u escape of half a character, which
// encoding/json replaces without a word.
func (r *jsonReader) text(s, raw string, pos Position, field string) string {
	if strings.ContainsRune(s, utf8.RuneError) && !strings.ContainsRune(raw, utf8.RuneError) && !strings.Contains(strings.ToLower(raw), `\ufffd`) {
		r.fail(pos, field, "has an escape of half a surrogate pair", "")
	}
	return s
}
