package main

import (
	"go/build"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// module is the path that all packages of the project start with.
const module = "github.com/sealane/sealane/"

// layers are the packages of the product, top first. Each may import only those
// below it. internal/dial is for proxy and mux; internal/seam is what the simulator changes in
// them.
var layers = []string{"cmd", "proxy", "mux", "session", "session/container", "session/loan", "internal/dial", "internal/seam"}

// outside lists the packages beside the layers that a program of cmd may build
// on. They import no layer.
var outside = []string{"k8s"}

// TestImportsRunDownwards enforces the import rule of the layout. Test files
// are free to import from the side, not from above.
func TestImportsRunDownwards(t *testing.T) {
	root := filepath.Join("..", "..")
	checked := make(map[string]bool)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if name := d.Name(); name == "testdata" || path != root && strings.HasPrefix(name, ".") && name != ".." {
			return filepath.SkipDir
		}
		dir, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		from := layer(filepath.ToSlash(dir))
		if from == "" {
			return nil
		}
		pkg, err := build.ImportDir(path, 0)
		if _, none := err.(*build.NoGoError); none {
			return nil
		}
		if err != nil {
			return err
		}
		checked[from] = true
		for _, imported := range slices.Concat(pkg.Imports, pkg.TestImports, pkg.XTestImports) {
			if to := layer(strings.TrimPrefix(imported, module)); strings.HasPrefix(imported, module) && !mayImport(from, to) {
				t.Errorf("%s imports %s: imports run downwards only, %s", dir, imported, strings.Join(layers, " -> "))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		if !checked[l] {
			t.Errorf("no package found in layer %s", l)
		}
	}
}

// layer is the layer or outside package that a directory belongs to.
func layer(dir string) string {
	best := ""
	for _, l := range slices.Concat(layers, outside) {
		if (dir == l || strings.HasPrefix(dir, l+"/")) && len(l) > len(best) {
			best = l
		}
	}
	return best
}

func mayImport(from, to string) bool {
	f, t := slices.Index(layers, from), slices.Index(layers, to)
	switch {
	case to == "":
		return false
	case from == to:
		return true
	case slices.Contains(outside, to):
		return from == "cmd"
	}
	return f >= 0 && t > f
}
