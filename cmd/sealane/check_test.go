package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sealane/sealane/cmd/sealane/internal/config"
	"github.com/sealane/sealane/proxy"
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

// A route by name or glob ahead of a direct one is allowed, and told of, by
// check and by a sidecar that runs.
func TestCheckWarnsOfDirect(t *testing.T) {
	config := `peers: [{name: db, keys: [%q], address: "127.0.0.1:1"}]
listeners: [{socks5: "127.0.0.1:0"}]
routes:
  - {match: "db.internal:9002", to: {peer: db}}
  - {match: "*.internal:443", to: {peer: db}}
  - {match: "open.example:443", to: direct}
  - {match: "10.0.0.0/8:80", to: direct}
  - {match: "*:*", to: direct}
`
	dir := folder(t, newKey(t), config, newKey(t).Public())
	file := filepath.Join(dir, "sealane.yaml")
	var stdout, stderr bytes.Buffer
	p := &process{args: []string{"check", "-c", file}, stdout: &stdout, stderr: &stderr, getenv: func(string) string { return "" }}
	if code := execute(p); code != exitOK || !strings.Contains(stdout.String(), "is fine") {
		t.Errorf("exit code %d, %q", code, &stdout)
	}
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(src), "\n")
	place := func(pattern string) string {
		i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, pattern) })
		return fmt.Sprintf("%s:%d:%d: warning: route %s ", file, i+1, strings.Index(lines[i], pattern), pattern)
	}
	said := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	if len(said) != 2 || !strings.HasPrefix(said[0], place("db.internal:9002")+"goes by name, and *:* after it is direct") ||
		!strings.HasPrefix(said[1], place("*.internal:443")+"matches names only, and open.example:443 after it is direct") {
		t.Errorf("said:\n%s", &stderr)
	}
	s := startSidecar(t, dir, "--no-sandbox")
	s.waitFor("the config is allowed and may surprise", 2)
}

// What listens for links and the admin is known to the proxy, which lets no
// service lead there.
func TestOwnListenersAreKnown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	admin, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	links, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer links.Close()
	n := &node{metrics: newMetrics()}
	c := n.proxyConfig(config.Default("x"), newDoor(proxy.Endpoint{}, links), newDoor(proxy.Endpoint{}, admin), nil)
	port := uint16(links.Addr().(*net.TCPAddr).Port)
	if !slices.Equal(c.OwnSockets, []string{path}) || !slices.Equal(c.Own, []uint16{port}) {
		t.Errorf("%q, %d", c.OwnSockets, c.Own)
	}
}
