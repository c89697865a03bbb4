package session

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/sealane/sealane/session/container"
)

// TestRulesAreComplete reads the sources: every constant of type Rule is in
// its package's Rules, and every violation is made from such a constant. With
// TestEveryRuleHasAVector: each rule is triggered and there is no other.
func TestRulesAreComplete(t *testing.T) {
	for dir, listed := range map[string][]Rule{".": Rules(), "container": container.Rules()} {
		want := map[string]bool{}
		for _, rule := range listed {
			want[string(rule)] = true
		}
		names, used := rulesIn(t, dir)
		for name, value := range names {
			if !want[value] {
				t.Errorf("%s: %s (%q) is not in Rules", dir, name, value)
			}
			if !used[name] {
				t.Errorf("%s: nothing violates %s", dir, name)
			}
			delete(want, value)
		}
		for value := range want {
			t.Errorf("%s: Rules lists %q, which is no constant", dir, value)
		}
		for name := range used {
			if names[name] == "" {
				t.Errorf("%s: a violation of %s, which is no constant of this package", dir, name)
			}
		}
	}
}

// rulesIn lists a package's constants of type Rule and the first argument of
// each call of violation.
func rulesIn(t *testing.T, dir string) (names map[string]string, used map[string]bool) {
	t.Helper()
	names, used = map[string]string{}, map[string]bool{}
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no sources in %s: %v", dir, err)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				if id, ok := n.Type.(*ast.Ident); ok && id.Name == "Rule" {
					value, err := strconv.Unquote(n.Values[0].(*ast.BasicLit).Value)
					if err != nil {
						t.Fatal(err)
					}
					names[n.Names[0].Name] = value
				}
			case *ast.CallExpr:
				if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "violation" {
					used[n.Args[0].(*ast.Ident).Name] = true
				}
			case *ast.CompositeLit:
				literal, ok := n.Type.(*ast.Ident)
				selector, ok2 := n.Type.(*ast.SelectorExpr)
				if ok && literal.Name == "Violation" || ok2 && selector.Sel.Name == "Violation" {
					if filepath.Base(path) != "rules.go" && filepath.Base(path) != "violation.go" {
						t.Errorf("%s makes a Violation by itself", path)
					}
				}
			}
			return true
		})
	}
	return names, used
}
