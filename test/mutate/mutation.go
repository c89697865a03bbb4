package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A mutation is a slip: texts that replace others.
type mutation struct {
	name  string
	what  string // a user would meet
	edits []edit
}

type edit struct{ file, old, new string }

// load reads all mutations of a folder, in the order of their names.
func load(dir string) ([]mutation, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no mutations in %s", dir)
	}
	slices.Sort(files)
	var list []mutation
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		m, err := parse(strings.TrimSuffix(filepath.Base(file), ".txt"), string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		list = append(list, m)
	}
	return list, nil
}

func parse(name, text string) (mutation, error) {
	parts := strings.Split(text, "\n-- ")
	m := mutation{name: name, what: strings.Join(strings.Fields(parts[0]), " ")}
	for _, part := range parts[1:] {
		file, body, ok := strings.Cut(part, "\n")
		old, instead, ok2 := strings.Cut(body, "\n==\n")
		if old == "" {
			ok = false
		}
		if !ok || !ok2 {
			return m, fmt.Errorf("the edit of %q has no text, or no == between the two", file)
		}
		m.edits = append(m.edits, edit{file, old, strings.TrimSuffix(instead, "\n")})
	}
	if len(m.edits) == 0 || m.what == "" {
		return m, fmt.Errorf("says not what it is, or edits nothing")
	}
	return m, nil
}

// packages are the folders whose files the mutation edits.
func (m *mutation) packages() (list []string) {
	for _, e := range m.edits {
		if dir := filepath.Dir(e.file); !slices.Contains(list, dir) {
			list = append(list, dir)
		}
	}
	return list
}

// apply writes the mutation's files, and the overlay that puts them in place of
// the tree's, into a folder. It returns the overlay's name.
func (m *mutation) apply(folder string) (string, error) {
	texts := make(map[string]string)
	for _, e := range m.edits {
		text, ok := texts[e.file]
		if !ok {
			b, err := os.ReadFile(e.file)
			if err != nil {
				return "", err
			}
			text = string(b)
		}
		if n := strings.Count(text, e.old); n != 1 {
			return "", fmt.Errorf("its text is %d times in %s", n, e.file)
		}
		texts[e.file] = strings.Replace(text, e.old, e.new, 1)
	}
	replace := make(map[string]string)
	for file, text := range texts {
		from, err := filepath.Abs(file)
		if err != nil {
			return "", err
		}
		to := filepath.Join(folder, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[from] = to
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(folder, "overlay.json")
	return overlay, os.WriteFile(overlay, b, 0o600)
}
