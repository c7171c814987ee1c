package yamlfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// Parse reads every document of a file, which may be YAML, or JSON with one
// document. Documents without content are left out. Whatever the bytes, it
// returns; with problems, documents are nil.
func Parse(file string, data []byte) ([]*Document, Problems) {
	p := &parser{collector: collector{file: file}}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if !p.readable(data, true) {
		return nil, p.sorted()
	}
	var roots []*Node
	if strings.EqualFold(filepath.Ext(file), ".json") || json.Valid(data) {
		roots = p.parseJSON(data)
	} else {
		roots = p.parseYAML(data)
	}
	if len(p.problems) > 0 {
		return nil, p.sorted()
	}
	docs := make([]*Document, len(roots))
	for i, r := range roots {
		docs[i] = &Document{File: file, Root: r}
	}
	return docs, nil
}

// ParseJSON reads one JSON value, such as Node.JSON wrote, with the same
// strictness as Parse.
func ParseJSON(data []byte) (*Node, error) {
	p := &parser{}
	if p.readable(data, false) {
		if roots := p.parseJSON(data); len(roots) == 1 && len(p.problems) == 0 {
			return roots[0], nil
		}
	}
	if len(p.problems) == 0 {
		return nil, errors.New("is empty")
	}
	return nil, p.sorted()
}

// A parser gathers what is wrong with one file.
type parser struct {
	collector
	values int // that were read of JSON
	paths  int // bytes of their paths
}

// bears counts one value of JSON more and tells whether it is still read.
func (p *parser) bears(pos Position, field string) bool {
	p.values++
	p.paths += len(field)
	switch {
	case p.values > MaxValues:
		p.fail(pos, "", tooMany, splitIt)
	case p.paths > maxPaths:
		p.fail(pos, "", longPaths, "")
	default:
		return true
	}
	return false
}

// maxPaths bounds the bytes of the paths of all values.
const maxPaths = 1 << 29

var tooMany = fmt.Sprintf("has more than %d values", MaxValues)

const (
	longPaths = "has keys that are too long for so many values within them"
	splitIt   = "split it into several files"
)

func (p *parser) longKey(pos Position, field string) {
	p.fail(pos, field, fmt.Sprintf("has a key of more than %d bytes", MaxKey), "")
}

// unseen tells whether r must be an escape in a file: what moves the cursor of
// a terminal, or makes text look to a reviewer as it is not read.
func unseen(r rune) bool {
	return r >= 0x7f && r <= 0x9f || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
}

// readable tells whether data is text of a bearable size. Canonical JSON may
// hold what is unseen, files may not.
func (p *parser) readable(data []byte, isFile bool) bool {
	if len(data) > MaxBytes {
		p.fail(Position{}, "", fmt.Sprintf("is %d bytes long, the limit is %d", len(data), MaxBytes), splitIt)
		return false
	}
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			p.fail(positionAt(data, i), "", "is not UTF-8 text here", "")
			return false
		case r < ' ' && r != '\t' && r != '\n' && r != '\r', isFile && unseen(r):
			p.fail(positionAt(data, i), "", fmt.Sprintf("has the control character %U here", r), `write it as an escape in double quotes`)
			return false
		}
		i += size
	}
	return true
}

// positionAt gives the place of an offset, which may be the end of data.
func positionAt(data []byte, offset int) Position {
	before := data[:min(max(offset, 0), len(data))]
	start := bytes.LastIndexByte(before, '\n') + 1
	return Position{Line: bytes.Count(before, []byte("\n")) + 1, Column: utf8.RuneCount(before[start:]) + 1}
}

// duplicate reports a key that stands twice, with the place of the first.
func (p *parser) duplicate(pos Position, field, key string, first Position) {
	p.fail(pos, field, fmt.Sprintf("the key %.80q stands twice", key), fmt.Sprintf("first at line %d", first.Line))
}

func (p *parser) tooDeep(pos Position, field string) {
	p.fail(pos, field, fmt.Sprintf("is nested deeper than %d", MaxDepth), "")
}
