package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMutationsApply: every mutation's text is where it says, once.
func TestMutationsApply(t *testing.T) {
	t.Chdir(filepath.Join("..", ".."))
	mutations, err := load("test/mutate/mutations")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutations {
		if _, err := m.apply(t.TempDir()); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
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
