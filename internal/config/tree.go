package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds on one document, so that a small file cannot become a large object: an
// alias costs a few bytes and may stand for as much as its author likes.
const (
	maxDocument = 8 << 20 // bytes; the API server takes 1.5 MiB
	maxNodes    = 200_000 // after aliases are expanded
	maxDepth    = 100
)

// form is what a value is, before anyone knows what it should be.
type form uint8

const (
	nullForm form = iota
	boolForm
	intForm
	floatForm
	textForm
	listForm
	mapForm
)

// tree is a document with aliases and merge keys expanded, each node with its
// line. YAML and JSON both become one.
type tree struct {
	form  form
	line  int
	text  string // scalars: canonical for JSON, except that a float may be ".nan"
	raw   string // scalars: as written
	plain bool   // a text without quotes
	list  []*tree
	keys  []entry // maps: in the order of the document, no name twice
}

type entry struct {
	name  string
	line  int
	value *tree
}

func (t *tree) get(name string) *tree {
	if t == nil {
		return nil
	}
	for i := range t.keys {
		if t.keys[i].name == name {
			return t.keys[i].value
		}
	}
	return nil
}

// found describes the value for a message.
func (t *tree) found() string {
	const most = 40
	raw := t.raw
	if len(raw) > most {
		raw = raw[:most] + "…"
	}
	switch t.form {
	case nullForm:
		return "nothing"
	case boolForm:
		return "the boolean " + raw
	case intForm, floatForm:
		return "the number " + raw
	case textForm:
		return "the text " + strconv.Quote(raw)
	case listForm:
		return "a list"
	}
	return "a map"
}

// document is a part of a file, before it is parsed.
type document struct {
	line int // of its first byte
	data []byte
}

// split cuts a file at YAML's document markers, so that a syntax error in one
// document does not hide the others. "---" or "..." at the start of a line can
// be nothing else (YAML 1.2, 9.1.2: c-forbidden).
func split(data []byte) []document {
	var docs []document
	cur := document{line: 1}
	start := 0
	line := 0
	flush := func(end int) {
		cur.data = data[start:end]
		if !blank(cur.data) {
			docs = append(docs, cur)
		}
	}
	for at := 0; at < len(data); {
		line++
		end := bytes.IndexByte(data[at:], '\n')
		if end < 0 {
			end = len(data)
		} else {
			end += at + 1
		}
		switch text := data[at:end]; {
		case marker(text, "---"):
			flush(at)
			start, cur = at, document{line: line}
		case marker(text, "..."):
			flush(at)
			start, cur = end, document{line: line + 1}
		}
		at = end
	}
	flush(len(data))
	return docs
}

func marker(line []byte, mark string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(mark))
	return ok && (len(rest) == 0 || strings.IndexByte(" \t\r\n", rest[0]) >= 0)
}

// blank reports whether a document holds nothing: white space, comments, a
// marker, directives.
func blank(data []byte) bool {
	for line := range bytes.Lines(data) {
		if marker(line, "---") {
			line = line[3:]
		}
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && line[0] != '%' {
			return false
		}
	}
	return true
}

// syntax is an error of the text itself.
type syntax struct {
	line    int
	problem string
	hint    string
}

// parse reads one document. A document with errors has no tree.
func parse(d document) (*tree, []syntax) {
	if len(d.data) > maxDocument {
		return nil, []syntax{{d.line, fmt.Sprintf("the document has %d bytes", len(d.data)), fmt.Sprintf("the limit is %d", maxDocument)}}
	}
	b := builder{first: d.line}
	if trimmed := bytes.TrimSpace(d.data); len(trimmed) > 0 && trimmed[0] == '{' && json.Valid(trimmed) {
		// JSON has its own reader: YAML knows no surrogate pairs in escapes.
		t := b.fromJSON(d.data)
		return b.result(t)
	}
	var root yaml.Node
	if err := yaml.Unmarshal(d.data, &root); err != nil {
		return nil, []syntax{yamlError(err, d.line)}
	}
	if root.Kind != yaml.DocumentNode || len(root.Content) == 0 {
		return nil, nil
	}
	return b.result(b.fromYAML(root.Content[0], 0))
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

func yamlError(err error, first int) syntax {
	text := err.Error()
	s := syntax{line: first}
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		text = text[len(m[0]):]
		if n, err := strconv.Atoi(m[1]); err == nil {
			s.line = first + n - 1
			if strings.HasPrefix(text, "did not find expected") {
				s.line++ // the library counts these, and no others, from zero
			}
		}
	}
	s.problem = "not YAML: " + text
	if strings.Contains(text, "found character that cannot start any token") {
		s.hint = "tabs cannot indent YAML; use spaces"
	}
	return s
}

// builder makes one tree.
type builder struct {
	first int // line of the document's first line in its file
	nodes int
	full  bool // a limit was hit: said once
	errs  []syntax
}

func (b *builder) result(t *tree) (*tree, []syntax) {
	if len(b.errs) > 0 {
		return nil, b.errs
	}
	return t, nil
}

func (b *builder) fail(line int, problem, hint string) {
	b.errs = append(b.errs, syntax{line, problem, hint})
}

// room counts a node, and reports whether there is room for it.
func (b *builder) room(line, depth int) bool {
	b.nodes++
	switch {
	case b.full:
	case b.nodes > maxNodes:
		b.full = true
		b.fail(line, fmt.Sprintf("the document has more than %d values once its aliases are expanded", maxNodes), "use fewer aliases")
	case depth > maxDepth:
		b.full = true
		b.fail(line, fmt.Sprintf("values are nested more than %d deep", maxDepth), "an alias may not stand inside what it names")
	}
	return !b.full
}

// fromYAML returns nil after an error that leaves nothing to look at.
func (b *builder) fromYAML(n *yaml.Node, depth int) *tree {
	line := b.first + n.Line - 1
	if !b.room(line, depth) {
		return nil
	}
	switch n.Kind {
	case yaml.AliasNode:
		return b.fromYAML(n.Alias, depth+1)
	case yaml.SequenceNode:
		t := &tree{form: listForm, line: line}
		for _, c := range n.Content {
			v := b.fromYAML(c, depth+1)
			if v == nil {
				return nil
			}
			t.list = append(t.list, v)
		}
		return t
	case yaml.MappingNode:
		return b.fromMapping(n, line, depth)
	}
	return b.fromScalar(n, line)
}

func (b *builder) fromMapping(n *yaml.Node, line, depth int) *tree {
	t := &tree{form: mapForm, line: line}
	seen := make(map[string]int, len(n.Content)/2)
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		keyLine := b.first + key.Line - 1
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			b.fail(keyLine, "a list or map stands as a key", "a key is a text")
			continue
		}
		if key.Tag == "!!merge" {
			merges = append(merges, value)
			continue
		}
		if first, dup := seen[key.Value]; dup {
			b.fail(keyLine, fmt.Sprintf("key %q stands twice in one map", key.Value), fmt.Sprintf("first in line %d", first))
			continue
		}
		seen[key.Value] = keyLine
		v := b.fromYAML(value, depth+1)
		if v == nil {
			return nil
		}
		t.keys = append(t.keys, entry{key.Value, keyLine, v})
	}
	for _, m := range merges {
		if !b.merge(t, seen, m, depth+1) {
			return nil
		}
	}
	return t
}

// merge adds the keys of "<<": those of the map itself win, then those of the
// first map in a list (https://yaml.org/type/merge.html).
func (b *builder) merge(t *tree, seen map[string]int, n *yaml.Node, depth int) bool {
	v := b.fromYAML(n, depth)
	if v == nil {
		return false
	}
	from := []*tree{v}
	if v.form == listForm {
		from = v.list
	}
	for _, f := range from {
		if f.form != mapForm {
			b.fail(f.line, "<< merges a map, not "+f.found(), "")
			continue
		}
		for _, e := range f.keys {
			if _, have := seen[e.name]; !have {
				seen[e.name] = e.line
				t.keys = append(t.keys, e)
			}
		}
	}
	return true
}

func (b *builder) fromScalar(n *yaml.Node, line int) *tree {
	t := &tree{line: line, text: n.Value, raw: n.Value, form: textForm}
	quoted := n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
	switch n.ShortTag() {
	case "!!null":
		t.form = nullForm
	case "!!bool":
		t.form = boolForm
		t.text = strings.ToLower(n.Value)
	case "!!int":
		t.number(true)
	case "!!float":
		t.number(false)
	case "!!str", "!!timestamp", "!!binary", "!!merge":
		t.plain = !quoted
	default:
		b.fail(line, fmt.Sprintf("tag %s is unknown", n.ShortTag()), "write the value without a tag")
	}
	return t
}

// number sets a number's canonical text; what is no number after all stays text.
func (t *tree) number(whole bool) {
	s := strings.ReplaceAll(t.raw, "_", "")
	if whole {
		if i, err := strconv.ParseInt(s, 0, 64); err == nil {
			t.form, t.text = intForm, strconv.FormatInt(i, 10)
			return
		}
		if u, err := strconv.ParseUint(strings.TrimPrefix(s, "+"), 0, 64); err == nil {
			t.form, t.text = intForm, strconv.FormatUint(u, 10)
			return
		}
	}
	switch strings.ToLower(strings.TrimLeft(s, "+-")) {
	case ".nan", ".inf":
		t.form, t.text = floatForm, ".nan"
		return
	}
	if f, err := strconv.ParseFloat(s, 64); err == nil && !math.IsInf(f, 0) && !math.IsNaN(f) {
		t.form, t.text = floatForm, strconv.FormatFloat(f, 'g', -1, 64)
		return
	}
	t.form, t.plain = textForm, true
}

// fromJSON reads a document that is known to be one valid JSON value.
func (b *builder) fromJSON(data []byte) *tree {
	j := jsonReader{builder: b, dec: json.NewDecoder(bytes.NewReader(data))}
	j.dec.UseNumber()
	for i, c := range data {
		if c == '\n' {
			j.newlines = append(j.newlines, i)
		}
	}
	tok, err := j.dec.Token()
	if err != nil && err != io.EOF {
		b.fail(b.first, "not JSON: "+err.Error(), "")
		return nil
	}
	return j.value(tok, 0)
}

type jsonReader struct {
	*builder
	dec      *json.Decoder
	newlines []int
}

// line of the token that was read last.
func (j *jsonReader) line() int {
	end := int(j.dec.InputOffset())
	return j.first + sort.SearchInts(j.newlines, end)
}

func (j *jsonReader) value(tok json.Token, depth int) *tree {
	t := &tree{line: j.line()}
	if !j.room(t.line, depth) {
		return nil
	}
	switch v := tok.(type) {
	case nil:
		t.raw, t.text = "null", "null"
	case bool:
		t.form, t.text = boolForm, strconv.FormatBool(v)
		t.raw = t.text
	case json.Number:
		t.raw = v.String()
		t.number(!strings.ContainsAny(t.raw, ".eE"))
	case string:
		t.form, t.text, t.raw = textForm, v, v
	case json.Delim:
		if v == '[' {
			return j.array(t, depth)
		}
		return j.object(t, depth)
	}
	return t
}

func (j *jsonReader) next() json.Token {
	tok, err := j.dec.Token()
	if err != nil {
		j.full = true
		j.fail(j.line(), "not JSON: "+err.Error(), "")
	}
	return tok
}

func (j *jsonReader) array(t *tree, depth int) *tree {
	t.form = listForm
	for j.dec.More() {
		tok := j.next()
		if j.full {
			return nil
		}
		v := j.value(tok, depth+1)
		if v == nil {
			return nil
		}
		t.list = append(t.list, v)
	}
	j.next()
	return t
}

func (j *jsonReader) object(t *tree, depth int) *tree {
	t.form = mapForm
	seen := map[string]int{}
	for j.dec.More() {
		key, _ := j.next().(string)
		line := j.line()
		if j.full {
			return nil
		}
		tok := j.next()
		if j.full {
			return nil
		}
		v := j.value(tok, depth+1)
		if v == nil {
			return nil
		}
		if first, dup := seen[key]; dup {
			j.fail(line, fmt.Sprintf("key %q stands twice in one map", key), fmt.Sprintf("first in line %d", first))
			continue
		}
		seen[key] = line
		t.keys = append(t.keys, entry{key, line, v})
	}
	j.next()
	return t
}

// json appends the value as JSON, whatever its type should be.
func (t *tree) json(out []byte) []byte {
	switch t.form {
	case nullForm:
		return append(out, "null"...)
	case boolForm:
		return append(out, t.text...)
	case intForm:
		return append(out, t.text...)
	case floatForm:
		if t.text == ".nan" {
			return append(out, "null"...)
		}
		return append(out, t.text...)
	case textForm:
		return appendText(out, t.text)
	case listForm:
		out = append(out, '[')
		for i, v := range t.list {
			if i > 0 {
				out = append(out, ',')
			}
			out = v.json(out)
		}
		return append(out, ']')
	}
	out = append(out, '{')
	for i, e := range t.keys {
		if i > 0 {
			out = append(out, ',')
		}
		out = appendText(out, e.name)
		out = append(out, ':')
		out = e.value.json(out)
	}
	return append(out, '}')
}

func appendText(out []byte, s string) []byte {
	b, err := json.Marshal(s)
	if err != nil { // a string always marshals
		return append(out, `""`...)
	}
	return append(out, b...)
}
