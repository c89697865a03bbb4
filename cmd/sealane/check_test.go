package main

import (
	"bytes"
	"path/filepath"
	"regexp"
	"testing"
)

// TestCheckBrokenConfigs: each broken config ends with 78 and names a line and
// column for each error. What exactly it says is held by the tests of config.
func TestCheckBrokenConfigs(t *testing.T) {
	files, err := filepath.Glob("internal/config/testdata/bad/*.yaml")
	if err != nil || len(files) < 25 {
		t.Fatalf("%d broken configs, %v", len(files), err)
	}
	place := regexp.MustCompile(`^internal/config/testdata/bad/[a-z0-9-]+\.yaml:[1-9][0-9]*:[1-9][0-9]*: `)
	for _, file := range files {
		var stdout, stderr bytes.Buffer
		p := &process{
			args: []string{"check", "-c", file}, stdout: &stdout, stderr: &stderr,
			getenv: func(string) string { return "" },
		}
		if code := execute(p); code != exitConfig || stdout.Len() > 0 {
			t.Errorf("%s: exit code %d, %q on stdout", file, code, stdout.String())
		}
		for line := range bytes.Lines(stderr.Bytes()) {
			if !place.Match(line) {
				t.Errorf("%s: no place in %q", file, line)
			}
		}
	}
}
