package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// plain are strings that every YAML reader takes as a string without quotes.
var plain = regexp.MustCompile(`^-{0,2}[A-Za-z./][A-Za-z0-9_./-]*(:[A-Za-z0-9_./-]+)*$`)

// renderYAML writes a tree in block style at an indentation, as people write
// manifests: a name first, other keys sorted, the dashes of a list under its key.
func renderYAML(v any, indent int) string {
	var b strings.Builder
	render(&b, v, indent)
	return b.String()
}

func render(b *strings.Builder, v any, indent int) {
	pad := strings.Repeat(" ", indent)
	switch v := v.(type) {
	case map[string]any:
		for _, k := range keys(v) {
			fmt.Fprintf(b, "%s%s:", pad, scalar(k))
			child := indent
			if _, isMap := v[k].(map[string]any); isMap {
				child += 2
			}
			renderChild(b, v[k], child)
		}
	case []any:
		for _, item := range v {
			if isBlock(item) {
				text := renderYAML(item, indent+2)
				fmt.Fprintf(b, "%s- %s", pad, strings.TrimLeft(text, " "))
				continue
			}
			fmt.Fprintf(b, "%s- %s\n", pad, scalar(item))
		}
	default:
		fmt.Fprintf(b, "%s%s\n", pad, scalar(v))
	}
}

func renderChild(b *strings.Builder, v any, indent int) {
	if !isBlock(v) {
		fmt.Fprintf(b, " %s\n", scalar(v))
		return
	}
	b.WriteByte('\n')
	render(b, v, indent)
}

// isBlock reports whether v is a collection with something in it.
func isBlock(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		return len(v) > 0
	case []any:
		return len(v) > 0
	}
	return false
}

func keys(m map[string]any) []string {
	return slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		switch {
		case a == b:
			return 0
		case a == "name" || b != "name" && a < b:
			return -1
		}
		return 1
	})
}

// scalar writes what is not a block. Strings that some YAML reader could take
// for another type are quoted as JSON does, which YAML reads too.
func scalar(v any) string {
	if s, ok := v.(string); ok && plain.MatchString(s) && !reserved(s) {
		return s
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // a decoded tree holds nothing that JSON cannot write
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func reserved(s string) bool {
	switch strings.ToLower(s) {
	case "true", "false", "yes", "no", "on", "off", "y", "n", "null", ".nan", ".inf", ".", "...":
		return true
	}
	return false
}
