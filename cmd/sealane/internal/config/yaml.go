package config

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds on the text, checked before it is parsed. The parser recurses, and
// its time grows with the square of the depth.
const (
	maxFile  = 256 << 10
	maxDepth = 10 // of brackets and braces; and no block list starts further right than maxIndent
	// maxIndent bounds the nesting of "- - - x".
	maxIndent = 60
)

type kind int

const (
	null kind = iota
	scalar
	list
	mapping
)

// String is how an error message calls a value of this kind.
func (k kind) String() string {
	return [...]string{"nothing", "a plain value", "a list", "a mapping"}[k]
}

// A node is a YAML value with its place. Scalars stay text: what "0123" or
// "yes" means is up to the key it stands under.
type node struct {
	kind
	at      position
	text    string  // of a scalar
	quoted  bool    // the scalar was quoted, or a block scalar
	items   []*node // of a list
	entries []entry // of a mapping, in order, duplicates included
}

type entry struct {
	key   string
	at    position
	value *node
}

// syntaxError is an error that ends the reading of the file.
type syntaxError struct {
	at      position
	message string
}

func (e *syntaxError) Error() string { return e.message }

const notYAML = "not YAML; check the indentation, the quotes and the space after each colon: "

// parseYAML turns the text into nodes. An empty text is an empty mapping.
func parseYAML(src []byte) (*node, error) {
	src = bytes.TrimPrefix(src, []byte("\ufeff"))
	if err := checkText(src); err != nil {
		return nil, err
	}
	tokens := lexer.Tokenize(string(src))
	if err := checkTokens(tokens); err != nil {
		return nil, err
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var syntax *yaml.SyntaxError
		if errors.As(err, &syntax) {
			return nil, &syntaxError{place(syntax.GetToken()), notYAML + firstLine(syntax.GetMessage())}
		}
		return nil, &syntaxError{position{line: 1, column: 1}, notYAML + firstLine(err.Error())}
	}
	root := &node{kind: mapping, at: position{line: 1, column: 1}}
	if len(file.Docs) > 0 && file.Docs[0].Body != nil {
		if root, err = convert(file.Docs[0].Body); err != nil {
			return nil, err
		}
	}
	return root, nil
}

// checkText refuses what is not text, and tabs where YAML wants spaces.
func checkText(src []byte) error {
	line, column, indent := 1, 1, true
	for rest := src; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		switch {
		case r == utf8.RuneError && n == 1:
			return &syntaxError{position{line: line, column: column}, "this byte is not UTF-8; save the file as UTF-8"}
		case r < ' ' && r != '\n' && r != '\r' && r != '\t' || r == 0x7f:
			return &syntaxError{position{line: line, column: column}, fmt.Sprintf("a control character (%#02x); remove it", r)}
		case r == '\t' && indent:
			return &syntaxError{position{line: line, column: column}, "a tab; indent with spaces"}
		case r == '\n':
			line, column = line+1, 0
		}
		indent = r == '\n' || r == ' ' && indent
		column++
		rest = rest[n:]
	}
	return nil
}

// checkTokens refuses the parts of YAML that a config does not need, most of
// them ways to make a small text large, and bounds the nesting.
func checkTokens(tokens token.Tokens) error {
	depth, content, ended := 0, false, false
	for _, t := range tokens {
		refuse := func(message string) error { return &syntaxError{place(t), message} }
		switch t.Type {
		case token.AliasType:
			return refuse("a YAML alias; put the value in quotes if it begins with *, else write it out")
		case token.AnchorType:
			return refuse("a YAML anchor; put the value in quotes if it begins with &, else write it out where it is needed")
		case token.MergeKeyType:
			return refuse("a YAML merge key; write the keys out")
		case token.TagType:
			return refuse("a YAML tag; put the value in quotes if it begins with !, else remove the tag")
		case token.DirectiveType:
			return refuse("a YAML directive; remove it")
		case token.MappingKeyType:
			return refuse("a YAML complex key; write KEY: VALUE")
		case token.DocumentEndType:
			ended = true
			continue
		case token.CommentType:
			continue
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		}
		if ended || t.Type == token.DocumentHeaderType && content {
			return refuse("a second YAML document; a config is one document")
		}
		if depth > maxDepth || t.Type == token.SequenceEntryType && t.Position.Column > maxIndent {
			return refuse("nested too deeply; no key of a config needs this")
		}
		content = true
	}
	return nil
}

// convert turns the parser's tree into nodes. Its recursion is bounded by
// checkTokens, and by the indentation that block mappings cost.
func convert(n ast.Node) (*node, error) {
	out := &node{at: place(n.GetToken())}
	switch n := n.(type) {
	case *ast.NullNode:
		return out, nil
	case *ast.MappingNode:
		out.kind = mapping
		for _, v := range n.Values {
			if err := out.addEntry(v); err != nil {
				return nil, err
			}
		}
		if !n.IsFlowStyle && len(out.entries) > 0 {
			out.at = out.entries[0].at // the parser gives the first colon's place
		}
		return out, nil
	case *ast.MappingValueNode:
		out.kind = mapping
		if err := out.addEntry(n); err != nil {
			return nil, err
		}
		out.at = out.entries[0].at
		return out, nil
	case *ast.SequenceNode:
		out.kind = list
		for _, v := range n.Values {
			item, err := convert(v)
			if err != nil {
				return nil, err
			}
			out.items = append(out.items, item)
		}
		return out, nil
	case *ast.LiteralNode:
		out.kind, out.text, out.quoted = scalar, n.Value.Value, true
		return out, nil
	case ast.ScalarNode:
		t := n.GetToken()
		out.kind, out.text = scalar, t.Value
		out.quoted = t.Type == token.SingleQuoteType || t.Type == token.DoubleQuoteType
		return out, nil
	}
	return nil, &syntaxError{out.at, "not a mapping, a list or a plain value"}
}

func (m *node) addEntry(v *ast.MappingValueNode) error {
	key, err := convert(v.Key)
	if err != nil {
		return err
	}
	value, err := convert(v.Value)
	if err != nil {
		return err
	}
	if key.kind != scalar {
		return &syntaxError{key.at, "a key must be a word"}
	}
	if value.kind == null {
		value.at = key.at // an implicit null has no place of its own
	}
	m.entries = append(m.entries, entry{key.text, key.at, value})
	return nil
}

func place(t *token.Token) position {
	if t == nil || t.Position == nil {
		return position{line: 1, column: 1}
	}
	return position{line: max(t.Position.Line, 1), column: max(t.Position.Column, 1)}
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}
