package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/sealane/sealane/cmd/sealane/internal/config"
)

// TestPackagedConfig checks the config that the Debian package installs, as it
// is and with all its examples.
func TestPackagedConfig(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "packaging", "sealane.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile(`(?m)^#:`)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "node.key"), string(newKey(t).PEM()), 0o600)
	for name, want := range map[string]struct {
		text                                  string
		peers, listeners, routes, served, out int
	}{
		"as it is":      {string(text), 0, 0, 0, 0, 0},
		"with examples": {examples.ReplaceAllString(string(text), ""), 1, 2, 1, 1, 1},
	} {
		file := filepath.Join(dir, "sealane.yaml")
		write(t, file, want.text, 0o640)
		c, err := config.Load(file, func(string) string { return "" })
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(c.Peers) != want.peers || len(c.Listeners) != want.listeners || len(c.Routes) != want.routes ||
			len(c.Services) != want.served || len(c.Egress) != want.out {
			t.Errorf("%s: got %d peers, %d listeners, %d routes, %d services, %d egress rules, want %+v", name,
				len(c.Peers), len(c.Listeners), len(c.Routes), len(c.Services), len(c.Egress), want)
		}
	}
}
