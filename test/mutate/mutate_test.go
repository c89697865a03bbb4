package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestMutationsApply: every mutation's text is where it says, once, and what
// it leaves compiles: one that does not would count as found by any test.
func TestMutationsApply(t *testing.T) {
	t.Chdir(filepath.Join("..", ".."))
	check := newChecker(t)
	for _, dir := range []string{"test/mutate/mutations", "test/mutate/slips"} {
		mutations, err := load(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range mutations {
			overlay, err := m.apply(t.TempDir())
			if err == nil {
				err = check.mutated(m, overlay)
			}
			if err != nil {
				t.Errorf("%s: %v", m.name, err)
			}
		}
	}
}

// A checker compiles packages as far as types, against what is built already.
type checker struct {
	packages map[string][]string // a folder's files
	exports  map[string]string   // by import path
	set      *token.FileSet
	imports  types.Importer
}

func newChecker(t *testing.T) *checker {
	cmd := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles", "./...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	c := &checker{packages: make(map[string][]string), exports: make(map[string]string), set: token.NewFileSet()}
	c.imports = importer.ForCompiler(c.set, "gc", func(path string) (io.ReadCloser, error) { return os.Open(c.exports[path]) })
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var p struct {
			ImportPath, Dir, Export string
			GoFiles                 []string
		}
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		c.exports[p.ImportPath] = p.Export
		for _, f := range p.GoFiles {
			c.packages[p.Dir] = append(c.packages[p.Dir], filepath.Join(p.Dir, f))
		}
	}
	return c
}

// mutated checks the packages that a mutation edits, with its overlay.
func (c *checker) mutated(m mutation, overlay string) error {
	var v struct{ Replace map[string]string }
	text, err := os.ReadFile(overlay)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &v); err != nil {
		return err
	}
	for _, dir := range m.packages() {
		dir, err := filepath.Abs(dir)
		if err != nil {
			return err
		}
		var files []*ast.File
		for _, name := range c.packages[dir] {
			f, err := parser.ParseFile(c.set, cmp.Or(v.Replace[name], name), nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			files = append(files, f)
		}
		cfg := types.Config{Importer: c.imports}
		if _, err := cfg.Check(dir, c.set, files, nil); err != nil {
			return err
		}
	}
	return nil
}

func TestApply(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("a.go", []byte("one\ntwo\nthree\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := parse("name", "what\nit is\n-- a.go\none\n==\neins\n-- a.go\nthree\n==\n")
	if err != nil || m.what != "what it is" || len(m.edits) != 2 {
		t.Fatal(m, err)
	}
	if _, err := m.apply(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile("a.go"); err != nil || string(got) != "one\ntwo\nthree\n" {
		t.Fatalf("the tree was touched: %q, %v", got, err)
	}
	m.edits[0].old = "o"
	if _, err := m.apply(t.TempDir()); err == nil {
		t.Fatal("a text that is there twice applies")
	}
	for _, bad := range []string{"", "what", "what\n-- a.go\none\n", "what\n-- a.go\n\n==\nx\n"} {
		if _, err := parse("name", bad); err == nil {
			t.Errorf("%q is a mutation", bad)
		}
	}
}
