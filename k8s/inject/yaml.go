package inject

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// decodeYAML gives the tree of one YAML document, in the same types that
// decodeJSON gives.
func decodeYAML(text string) (any, error) {
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		return nil, err
	}
	return normal(v), nil
}

// normal turns the number types of a decoded YAML tree into int64 and float64.
func normal(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = normal(v[k])
		}
	case []any:
		for i := range v {
			v[i] = normal(v[i])
		}
	case int:
		return int64(v)
	case uint64:
		if int64(v) >= 0 {
			return int64(v)
		}
		return float64(v)
	}
	return v
}

// patchYAML applies the operations to the text of a YAML document and leaves
// every other line as it is: comments, order, quoting and indentation. The
// text is then read again, and must say what the operations say.
func patchYAML(text string, ops []Op) (string, error) {
	crlf := strings.Contains(text, "\r\n")
	text = strings.ReplaceAll(text, "\r\n", "\n") // the parser counts a line twice otherwise
	tree, err := decodeYAML(text)
	if err != nil {
		return "", err
	}
	for _, op := range ops {
		if tree, err = apply(tree, op); err != nil {
			return "", err
		}
		if text, err = editYAML(text, op, tree); err != nil {
			return "", err
		}
	}
	got, err := decodeYAML(text)
	if err != nil || !reflect.DeepEqual(got, normal(tree)) {
		return "", errors.New("the manifest's YAML cannot be edited in place (does an alias repeat a part of the pod?): write it without anchors or as JSON")
	}
	if crlf {
		text = strings.ReplaceAll(text, "\n", "\r\n")
	}
	return text, nil
}

// editor changes the lines of one document, each with its line end.
type editor struct{ lines []string }

func newEditor(text string) *editor {
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return &editor{lines: slices.Collect(strings.Lines(text))}
}

// editYAML does one operation. after is the tree that results from it.
func editYAML(text string, op Op, after any) (string, error) {
	file, err := parser.ParseBytes([]byte(text), 0)
	if err != nil {
		return "", err
	}
	if len(file.Docs) != 1 {
		return "", errors.New("more than one YAML document where one was expected")
	}
	e := newEditor(text)
	path := strings.Split(op.Path, "/")[1:]
	if err := e.edit(value{node: file.Docs[0].Body, tree: after}, path, op); err != nil {
		return "", err
	}
	return strings.Join(e.lines, ""), nil
}

// value is a node of the document with the place that it has in its parent.
type value struct {
	node   ast.Node
	tree   any // what it must become
	indent int // of the parent's keys or dashes
	line   int // index of the line with the parent's key or dash
	inList bool
}

// edit walks down to the parent of what op changes. A collection on the way
// that is not written in block style is written anew in it.
func (e *editor) edit(v value, path []string, op Op) error {
	switch node := unwrap(v.node).(type) {
	case *ast.MappingNode:
		if !node.IsFlowStyle {
			return e.editMapping(node, v, path, op)
		}
	case *ast.SequenceNode:
		if !node.IsFlowStyle {
			return e.editSequence(node, v, path, op)
		}
	}
	return e.rewrite(v)
}

func unwrap(n ast.Node) ast.Node {
	for {
		switch w := n.(type) {
		case *ast.AnchorNode:
			n = w.Value
		case *ast.TagNode:
			n = w.Value
		default:
			return n
		}
	}
}

func (e *editor) editMapping(node *ast.MappingNode, v value, path []string, op Op) error {
	tree, ok := v.tree.(map[string]any)
	if !ok {
		return fmt.Errorf("line %d: cannot be edited in place", node.GetToken().Position.Line)
	}
	indent := node.Values[0].Key.GetToken().Position.Column - 1
	for _, kv := range node.Values {
		key := kv.Key.GetToken()
		if key.Value != path[0] {
			continue
		}
		child := value{node: kv.Value, tree: tree[path[0]], indent: indent, line: key.Position.Line - 1}
		if len(path) == 1 { // replace
			return e.rewrite(child)
		}
		return e.edit(child, path[1:], op)
	}
	last := node.Values[len(node.Values)-1].Key.GetToken().Position.Line - 1
	text := renderYAML(map[string]any{path[0]: op.Value}, indent)
	e.insert(e.endOfBlock(last, indent, true)+1, text)
	return nil
}

func (e *editor) editSequence(node *ast.SequenceNode, v value, path []string, op Op) error {
	i, err := strconv.Atoi(path[0])
	tree, ok := v.tree.([]any)
	if err != nil || !ok {
		return fmt.Errorf("line %d: cannot be edited in place", node.Start.Position.Line)
	}
	dash := func(i int) int { return node.Entries[i].Start.Position.Line - 1 }
	indent := node.Start.Position.Column - 1
	switch {
	case len(path) > 1:
		return e.edit(value{node: node.Values[i], tree: tree[i], indent: indent, line: dash(i), inList: true}, path[1:], op)
	case op.Op == "remove":
		e.lines = slices.Delete(e.lines, dash(i), e.endOfBlock(dash(i), indent, false)+1)
	case i == 0:
		// A comment above the first item is that item's.
		e.insert(v.line+1, renderYAML([]any{op.Value}, indent))
	default:
		e.insert(e.endOfBlock(dash(i-1), indent, false)+1, renderYAML([]any{op.Value}, indent))
	}
	return nil
}

// rewrite replaces a value that is empty or in flow style by a block. What
// follows it on its last line, a comment, stays on the line of its key.
func (e *editor) rewrite(v value) error {
	var first, end struct{ line, col int } // end is past the last character
	token := v.node.GetToken()
	switch node := unwrap(v.node).(type) {
	case *ast.NullNode:
		first.line, first.col = token.Position.Line-1, token.Position.Column-1
		end = first
		if rest := e.lines[first.line][e.offset(first.line, first.col):]; strings.HasPrefix(rest, "null") {
			end.col += len("null")
		} else if strings.HasPrefix(rest, "~") {
			end.col++
		}
	case *ast.MappingNode:
		if !node.IsFlowStyle {
			return fmt.Errorf("line %d: cannot be edited in place", token.Position.Line)
		}
		first.line, first.col = node.Start.Position.Line-1, node.Start.Position.Column-1
		end.line, end.col = node.End.Position.Line-1, node.End.Position.Column
	case *ast.SequenceNode:
		if !node.IsFlowStyle {
			return fmt.Errorf("line %d: cannot be edited in place", token.Position.Line)
		}
		first.line, first.col = node.Start.Position.Line-1, node.Start.Position.Column-1
		end.line, end.col = node.End.Position.Line-1, node.End.Position.Column
	default:
		return fmt.Errorf("line %d: cannot be edited in place: write this part out", token.Position.Line)
	}
	head := strings.TrimRight(e.lines[first.line][:e.offset(first.line, first.col)], " ")
	tail := strings.TrimSpace(e.lines[end.line][e.offset(end.line, end.col):])
	indent := v.indent
	if _, isMap := v.tree.(map[string]any); isMap && head != "" {
		indent += 2
	}
	block := renderYAML(v.tree, indent)
	if v.inList && tail == "" {
		block, head = head+" "+strings.TrimLeft(block, " "), ""
	}
	if tail != "" {
		head += " " + tail
	}
	e.lines = slices.Delete(e.lines, first.line, end.line+1)
	e.insert(first.line, block)
	if head != "" {
		e.insert(first.line, head+"\n")
	}
	return nil
}

// offset turns a column, which counts characters, into an index of the line.
func (e *editor) offset(line, col int) int {
	for i := range e.lines[line] {
		if col == 0 {
			return i
		}
		col--
	}
	return len(strings.TrimRight(e.lines[line], "\n"))
}

func (e *editor) insert(at int, text string) {
	e.lines = slices.Insert(e.lines, at, slices.Collect(strings.Lines(text))...)
}

// endOfBlock gives the last line of what starts at line with this indentation.
// In a mapping the dashes of a list may stand under its key. Blank lines and
// comments after the block are not part of it.
func (e *editor) endOfBlock(line, indent int, mapping bool) int {
	end := line
	for i := line + 1; i < len(e.lines); i++ {
		text := strings.TrimRight(e.lines[i], " \t\n")
		trimmed := strings.TrimLeft(text, " ")
		depth := len(text) - len(trimmed)
		switch {
		case trimmed == "":
		case depth > indent, mapping && depth == indent && (trimmed == "-" || strings.HasPrefix(trimmed, "- ")):
			end = i
		case strings.HasPrefix(trimmed, "#"):
		default:
			return end
		}
	}
	return end
}
