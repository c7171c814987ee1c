package yamlfile

import (
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	yamlparser "github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// A yamlReader builds the nodes of one document from the library's tree.
type yamlReader struct {
	*parser
	anchors map[string]*anchor
	aliased int  // values that aliases added so far
	overrun bool // that MaxAliased was passed was said
}

type anchor struct {
	node *Node // nil while its own value is being read
}

func (p *parser) parseYAML(data []byte) (roots []*Node) {
	// The library is large and its input is anyone's: a mistake in it must
	// not take a process down that has other work to do.
	defer func() {
		if r := recover(); r != nil {
			roots = nil
			p.fail(Position{}, "", fmt.Sprintf("cannot be read: %v", r), "")
		}
	}()
	tokens := lexer.Tokenize(string(data))
	if !p.bearable(tokens) {
		return nil
	}
	file, err := yamlparser.Parse(tokens, 0, yamlparser.AllowDuplicateMapKey())
	if err != nil {
		p.syntax(err)
		return nil
	}
	for _, doc := range file.Docs {
		if d, ok := doc.Body.(*ast.DirectiveNode); ok {
			if v := directive(d); v != "YAML 1.2" {
				p.fail(position(d), "", fmt.Sprintf("the directive %%%.40s is not read", v), "leave it out")
			}
			continue
		}
		if doc.Body == nil {
			continue
		}
		r := &yamlReader{parser: p, anchors: map[string]*anchor{}}
		roots = append(roots, r.node(doc.Body, "", 0))
	}
	return roots
}

func directive(d *ast.DirectiveNode) string {
	words := []string{d.Name.GetToken().Value}
	for _, v := range d.Values {
		words = append(words, v.GetToken().Value)
	}
	return strings.Join(words, " ")
}

func (p *parser) syntax(err error) {
	var e yaml.Error
	if !errors.As(err, &e) {
		p.fail(Position{}, "", fmt.Sprintf("is not YAML: %.200s", err), "")
		return
	}
	var pos Position
	var hint string
	if t := e.GetToken(); t != nil {
		pos = Position{Line: t.Position.Line, Column: t.Position.Column}
	}
	if strings.Contains(e.GetMessage(), "\t") {
		hint = "indent with spaces: YAML takes no tabs"
	}
	p.fail(pos, "", fmt.Sprintf("is not YAML: %.200s", strings.ReplaceAll(e.GetMessage(), "\t", `\t`)), hint)
}

// bearable tells whether the library's parser can be let loose on tokens. It
// recurses over nesting and over the keys of a block map, takes time with
// the square of the keys, of the empty values and of the documents, and keeps
// the path of each value. Nesting is counted generously here, and exactly by
// node.
func (p *parser) bearable(tokens token.Tokens) bool {
	const mostColumns, mostOpeners = 1024, 2 * MaxDepth
	c := counter{keys: map[int]int{}, levels: make([]level, 1)}
	for i, t := range tokens {
		pos := Position{Line: t.Position.Line, Column: t.Position.Column}
		c.count(tokens, i)
		var too string
		switch {
		case c.wrong != "":
			p.fail(pos, "", "is not YAML: "+c.wrong, "")
			return false
		case len(c.levels)-1 > MaxDepth, c.level().openers > mostOpeners, c.indent > mostColumns:
			p.tooDeep(pos, "")
			return false
		case c.longest > MaxKey:
			p.longKey(pos, "")
			return false
		case c.values > MaxValues:
			too = tooMany
		case c.paths > maxPaths:
			too = longPaths
		case c.keys[c.indent] > maxKeys:
			too = fmt.Sprintf("has a map of more than %d keys", maxKeys)
		case c.empty > maxEmpty:
			too = fmt.Sprintf("has more than %d empty values", maxEmpty)
		case c.documents > maxDocuments:
			too = fmt.Sprintf("has more than %d documents", maxDocuments)
		default:
			continue
		}
		p.fail(pos, "", too, "")
		return false
	}
	return true
}

// Limits on YAML in the forms that its library is slow on.
const (
	maxKeys      = 10_000 // of a map in block style
	maxEmpty     = 10_000 // values left out
	maxDocuments = 1_000
)

// A counter measures tokens.
type counter struct {
	documents, empty, values int

	levels  []level // outside of brackets, and in each that is open
	longest int     // bytes of a key
	paths   int     // bytes of keys around all tokens
	wrong   string  // what can be no YAML

	line   int
	indent int         // column of the line's first token
	keys   map[int]int // lines that begin at a column, since one began further left
	block  []blockKey  // around what is outside of brackets

	last    token.Type // but of a comment
	pending bool       // an anchor or tag waits for its value
}

// A level is what counts between two commas in a pair of brackets, and in
// one line outside of them.
type level struct {
	open    token.Type
	openers int  // of lists, keys and so on, which each may nest
	colon   bool // stood there
	around  int  // bytes of keys around the brackets
	path    int  // bytes of keys, with those around
}

type blockKey struct{ column, path int }

func (c *counter) level() *level { return &c.levels[len(c.levels)-1] }

func (c *counter) count(tokens token.Tokens, i int) {
	t := tokens[i]
	if t.Type == token.CommentType {
		return
	}
	flow := len(c.levels) > 1
	content := c.last == token.LiteralType || c.last == token.FoldedType
	if t.Position.Line != c.line && !content {
		c.line = t.Position.Line
		if !flow {
			c.begin(t)
		}
	}
	c.pending = t.Type == token.TagType || t.Type == token.AnchorType || c.last == token.AnchorType
	before := c.last
	c.last = t.Type
	switch t.Type {
	case token.SequenceStartType, token.MappingStartType:
		if t.Type == token.SequenceStartType {
			c.values++ // the first; each comma brings another
		}
		path := c.path()
		c.levels = append(c.levels, level{open: t.Type, around: path, path: path})
	case token.SequenceEndType, token.MappingEndType:
		c.close(t)
	case token.CollectEntryType:
		l := c.level()
		if l.open == token.SequenceStartType {
			c.values++
		}
		l.openers, l.colon, l.path = 0, false, l.around
	case token.DocumentHeaderType:
		c.documents++
	case token.SequenceEntryType:
		if flow {
			c.wrong = "a dash cannot begin a value within brackets"
		}
		c.values++
		c.level().openers++
	case token.MappingKeyType:
		if flow && before != c.level().open && before != token.CollectEntryType {
			c.wrong = "a question mark must come first in an entry within brackets"
		}
		c.level().openers++
	case token.AnchorType, token.TagType:
		c.level().openers++
	case token.MappingValueType:
		if flow && c.level().colon {
			c.wrong = "two colons in one entry within brackets"
		}
		c.level().colon = flow
		c.values++
	}
	if key := keyAt(tokens, i); key != nil {
		c.key(key)
	}
	c.paths += c.path()
	if i+1 < len(tokens) && leftOut(tokens, i) {
		c.empty++
	}
}

// path gives the bytes of keys around the last token.
func (c *counter) path() int {
	switch {
	case len(c.levels) > 1:
		return c.level().path
	case len(c.block) > 0:
		return c.block[len(c.block)-1].path
	}
	return 0
}

// close ends a level. The parser passes over some brackets that close what is
// not open, and would then nest deeper than is counted here. So it does with
// the closing bracket of a map that holds one without brackets: hence an entry
// has one colon.
func (c *counter) close(t *token.Token) {
	want := token.SequenceEndType
	if c.level().open == token.MappingStartType {
		want = token.MappingEndType
	}
	if len(c.levels) == 1 || t.Type != want {
		c.wrong = "found " + t.Value + " without its other half"
		return
	}
	c.levels = c.levels[:len(c.levels)-1]
}

// keyAt gives the key that the colon or question mark at i belongs to, nil
// when it is none or not a scalar.
func keyAt(tokens token.Tokens, i int) *token.Token {
	switch tokens[i].Type {
	case token.MappingValueType:
		for i--; i >= 0; i-- {
			if tokens[i].Type != token.CommentType {
				return tokens[i]
			}
		}
	case token.MappingKeyType:
		for i++; i < len(tokens); i++ {
			switch tokens[i].Type {
			case token.AnchorType:
				i++
			case token.TagType, token.CommentType:
			default:
				return tokens[i]
			}
		}
	}
	return nil
}

// key notes a key, which is part of the path of all that it holds.
func (c *counter) key(t *token.Token) {
	size := len(t.Value)
	c.longest = max(c.longest, size)
	if len(c.levels) > 1 {
		c.level().path += size
		return
	}
	for len(c.block) > 0 && c.block[len(c.block)-1].column >= t.Position.Column {
		c.block = c.block[:len(c.block)-1]
	}
	if len(c.block) > 0 {
		size += c.block[len(c.block)-1].path
	}
	c.block = append(c.block, blockKey{t.Position.Column, size})
}

// begin notes the first token of a line outside of brackets. What an anchor or
// tag at the end of the line before waits for nests in it.
func (c *counter) begin(t *token.Token) {
	if !c.pending {
		c.level().openers = 0
	}
	c.indent = t.Position.Column
	for column := range c.keys {
		if column > c.indent {
			delete(c.keys, column)
		}
	}
	if t.Type != token.SequenceEntryType {
		c.keys[c.indent]++
	}
}

// leftOut tells whether the value that should follow the colon or dash at i is
// not there.
func leftOut(tokens token.Tokens, i int) bool {
	t, next := tokens[i], tokens[i+1]
	if next.Position.Line == t.Position.Line {
		return false
	}
	switch t.Type {
	case token.SequenceEntryType:
		return next.Position.Column <= t.Position.Column
	case token.MappingValueType:
		key := t
		if i > 0 {
			key = tokens[i-1]
		}
		return next.Position.Column < key.Position.Column ||
			next.Position.Column == key.Position.Column && next.Type != token.SequenceEntryType
	}
	return false
}

// position gives the first character of a node; the library gives a block
// map the place of its first colon.
func position(n ast.Node) Position {
	switch v := n.(type) {
	case *ast.MappingNode:
		if !v.IsFlowStyle && len(v.Values) > 0 {
			return position(v.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return position(v.Key)
	}
	t := n.GetToken()
	if t == nil {
		return Position{}
	}
	return Position{Line: t.Position.Line, Column: max(t.Position.Column, 1)}
}

// node never returns nil: where something is wrong it says so and returns Null.
func (r *yamlReader) node(n ast.Node, field string, depth int) *Node {
	out := &Node{Pos: position(n), written: 1}
	if depth > MaxDepth {
		r.tooDeep(out.Pos, field)
		return out
	}
	switch v := n.(type) {
	case *ast.MappingNode:
		out.Kind = Map
		r.fields(out, v.Values, field, depth)
	case *ast.MappingValueNode:
		out.Kind = Map
		r.fields(out, []*ast.MappingValueNode{v}, field, depth)
	case *ast.SequenceNode:
		out.Kind = List
		for i, it := range v.Values {
			item := r.node(it, index(field, i), depth+1)
			out.Items = append(out.Items, item)
			out.holds("", item)
		}
	case *ast.AnchorNode:
		return r.anchor(v, field, depth)
	case *ast.AliasNode:
		return r.alias(v, field, depth)
	case *ast.TagNode:
		return r.tagged(v, field, depth)
	case *ast.LiteralNode:
		out.Kind, out.Text = String, v.Value.Value
	case *ast.StringNode:
		if v.Token.Type == token.SingleQuoteType || v.Token.Type == token.DoubleQuoteType {
			out.Kind, out.Text = String, v.Value
			break
		}
		out.Kind, out.Text = plainKind(v.Value)
	case ast.ScalarNode:
		out.Kind, out.Text = plainKind(v.GetToken().Value)
	case nil:
		out.Kind = Null
	default:
		r.fail(out.Pos, field, fmt.Sprintf("has YAML that is not read here (%s)", n.Type()), "")
	}
	out.written += weight(out.Text)
	return out
}

func (r *yamlReader) fields(out *Node, values []*ast.MappingValueNode, field string, depth int) {
	seen := make(map[string]Position, len(values))
	var merged []*Node
	for _, v := range values {
		if _, ok := v.Key.(*ast.MergeKeyNode); ok {
			merged = append(merged, r.merges(v.Value, join(field, "<<"), depth)...)
			continue
		}
		k := r.node(keyOf(v.Key), field, depth)
		if k.Kind == List || k.Kind == Map || k.Kind == Null {
			r.fail(k.Pos, field, "a key must be text, got "+k.Kind.String(), "")
			continue
		}
		if len(k.Text) > MaxKey {
			r.longKey(k.Pos, field)
			continue
		}
		value := r.node(v.Value, join(field, k.Text), depth+1)
		out.holds(k.Text, value)
		if first, ok := seen[k.Text]; ok {
			r.duplicate(k.Pos, join(field, k.Text), k.Text, first)
			continue
		}
		seen[k.Text] = k.Pos
		out.Fields = append(out.Fields, Field{Key: k.Text, Pos: k.Pos, Value: value})
	}
	// What is written in the map itself wins over what is merged into it, and
	// an earlier merge over a later one.
	for _, m := range merged {
		for _, f := range m.Fields {
			if _, ok := seen[f.Key]; !ok {
				seen[f.Key] = f.Pos
				out.Fields = append(out.Fields, f)
				out.holds(f.Key, f.Value)
			}
		}
	}
}

// keyOf takes the value of a key written with a question mark.
func keyOf(k ast.MapKeyNode) ast.Node {
	if q, ok := k.(*ast.MappingKeyNode); ok && q.Value != nil {
		return q.Value
	}
	return k
}

// merges returns the maps that a merge key names.
func (r *yamlReader) merges(v ast.Node, field string, depth int) []*Node {
	n := r.node(v, field, depth+1)
	maps := []*Node{n}
	if n.Kind == List {
		maps = n.Items
	}
	for _, m := range maps {
		if m.Kind != Map && !r.overrun {
			r.fail(position(v), field, "can merge only maps, got "+m.Kind.String(), "")
			return nil
		}
	}
	return maps
}

func (r *yamlReader) anchor(v *ast.AnchorNode, field string, depth int) *Node {
	a := &anchor{}
	r.anchors[v.Name.GetToken().Value] = a
	a.node = r.node(v.Value, field, depth)
	return a.node
}

func (r *yamlReader) alias(v *ast.AliasNode, field string, depth int) *Node {
	nothing := &Node{Pos: position(v), written: 1}
	name := v.Value.GetToken().Value
	a, ok := r.anchors[name]
	switch {
	case !ok:
		names := make([]string, 0, len(r.anchors))
		for n := range r.anchors {
			names = append(names, n)
		}
		var hint string
		if s := Suggest(name, names); s != "" {
			hint = fmt.Sprintf("did you mean *%s?", s)
		}
		r.fail(nothing.Pos, field, fmt.Sprintf("there is no anchor &%.80s before this alias", name), hint)
		return nothing
	case a.node == nil:
		r.fail(nothing.Pos, field, fmt.Sprintf("the alias *%.80s stands within its own anchor", name), "")
		return nothing
	case depth+a.node.height > MaxDepth:
		r.tooDeep(nothing.Pos, field)
		return nothing
	}
	if r.aliased += a.node.written; r.aliased > MaxAliased {
		if !r.overrun {
			r.fail(nothing.Pos, field, fmt.Sprintf("aliases expand to more than %d values", MaxAliased), "")
		}
		r.overrun = true
		return nothing
	}
	return a.node
}

// tagged takes the tags of the core schema as assertions, !!str also as a
// conversion.
func (r *yamlReader) tagged(v *ast.TagNode, field string, depth int) *Node {
	n := r.node(v.Value, field, depth)
	tag := v.Start.Value
	want, ok := map[string]Kind{
		"!!str": String, "!!int": Number, "!!float": Number, "!!bool": Bool, "!!null": Null, "!!seq": List, "!!map": Map,
	}[tag]
	if !ok {
		r.fail(position(v), field, fmt.Sprintf("the tag %.40s is not read", tag), "leave it out")
		return n
	}
	if scalar, isScalar := v.Value.(ast.ScalarNode); isScalar && want == String && n.Kind != String {
		text := scalar.GetToken().Value
		return &Node{Kind: String, Text: text, Pos: n.Pos, written: 1 + weight(text)}
	}
	if n.Kind != want {
		r.fail(position(v), field, fmt.Sprintf("the tag %s wants %s, got %s", tag, want, n.Kind), "")
	}
	return n
}
