package config

import (
	"bytes"
	"encoding/json"
	"flag"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/proxy"
	"github.com/sealane/sealane/session"
)

var update = flag.Bool("update", false, "write the golden files anew")

// fixture makes a folder with the given configs and every file that they name,
// with the permissions that they are about, and makes it the working directory.
func fixture(t *testing.T, configs string) []string {
	t.Helper()
	dir := t.TempDir()
	source, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	link := func(name, from string, mode fs.FileMode) {
		b, err := os.ReadFile(filepath.Join(source, from))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, mode)
		}
		if err == nil {
			err = os.Chmod(filepath.Join(dir, name), mode) // the umask does not count
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	link("node.key", "files/node.key", 0o600)
	link("open.key", "files/node.key", 0o644)
	link("group.key", "files/node.key", 0o640)
	link("writable.key", "files/node.key", 0o620)
	link("password", "files/password", 0o400)
	link("open-password", "files/password", 0o444)
	link("text", "files/text", 0o600)
	link("empty", "files/empty", 0o600)
	link("db.pub", "files/db.pub", 0o644)
	link("web.pub", "files/web.pub", 0o600)
	link("writable.pub", "files/db.pub", 0o666)
	if err := os.WriteFile(filepath.Join(dir, "large"), make([]byte, maxSecret+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A group that this process is not in, or the test would depend on who runs it.
	if err := os.Chown(filepath.Join(dir, "group.key"), -1, 54321); err != nil && os.Getuid() == 0 {
		t.Fatal(err)
	}
	matches, err := filepath.Glob(filepath.Join(source, configs, "*.yaml"))
	if err != nil || len(matches) == 0 {
		t.Fatalf("no configs in testdata/%s: %v", configs, err)
	}
	var names []string
	for _, m := range matches {
		names = append(names, filepath.Base(m))
		link(filepath.Base(m), filepath.Join(configs, filepath.Base(m)), 0o644)
	}
	t.Chdir(dir)
	return names
}

func noEnv(string) string { return "" }

// TestBadConfigs compares every message of every config in testdata/bad with
// the text beside it.
func TestBadConfigs(t *testing.T) {
	source, err := filepath.Abs("testdata/bad")
	if err != nil {
		t.Fatal(err)
	}
	names := fixture(t, "bad")
	if len(names) < 25 {
		t.Errorf("only %d broken configs", len(names))
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			_, err := Load(name, noEnv)
			if err == nil {
				t.Fatal("accepted")
			}
			got := err.Error() + "\n"
			golden := filepath.Join(source, strings.TrimSuffix(name, ".yaml")+".txt")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
			for line := range strings.Lines(got) {
				if !strings.HasPrefix(line, name+":") {
					t.Errorf("no place in %q", line)
				}
			}
		})
	}
}

func TestGoodConfigs(t *testing.T) {
	for _, name := range fixture(t, "good") {
		c, err := Load(name, noEnv)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		checkUsable(t, c)
	}
}

// TestEveryKeyOfTheDesign decodes the two full configs and compares the result
// as a whole, so that no key can be accepted and then ignored.
func TestEveryKeyOfTheDesign(t *testing.T) {
	source, err := filepath.Abs("testdata/good")
	if err != nil {
		t.Fatal(err)
	}
	fixture(t, "good")
	for _, name := range []string{"design", "every-key"} {
		c, err := Load(name+".yaml", noEnv)
		if err != nil {
			t.Fatal(err)
		}
		if c.Key == nil || c.Revision == "" {
			t.Errorf("%s: no key or revision", name)
		}
		c.Revision = "" // follows from the rest
		got := dump(t, c)
		golden := filepath.Join(source, name+".json")
		if *update {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
	}
}

// dump is the config as text, with patterns and keys in their written form.
func dump(t *testing.T, c *Config) []byte {
	t.Helper()
	type route struct {
		Match string
		To    proxy.Target
	}
	type egress struct {
		Allow, Match []string
	}
	type peer struct {
		Name      string
		Keys      []string
		Addresses []string
		Links     int
	}
	var extra struct {
		Peers    []peer
		Routes   []route
		Egress   []egress
		Timeouts map[string]string
	}
	for _, p := range c.Peers {
		out := peer{p.Name, nil, p.Addresses, p.Links}
		for _, k := range p.Keys {
			out.Keys = append(out.Keys, k.String())
		}
		extra.Peers = append(extra.Peers, out)
	}
	for _, r := range c.Routes {
		extra.Routes = append(extra.Routes, route{r.Match.String(), r.To})
	}
	for _, e := range c.Egress {
		out := egress{Allow: e.Allow}
		for _, m := range e.Match {
			out.Match = append(out.Match, m.String())
		}
		extra.Egress = append(extra.Egress, out)
	}
	extra.Timeouts = map[string]string{
		"handshake": c.Timeouts.Handshake.String(), "dial": c.Timeouts.Dial.String(), "link": c.Timeouts.Link.String(),
		"idle": c.Timeouts.Idle.String(), "half_close": c.Timeouts.HalfClose.String(), "drain": c.Timeouts.Drain.String(),
	}
	plain := *c
	plain.Peers, plain.Routes, plain.Egress, plain.Timeouts, plain.Key = nil, nil, nil, Timeouts{}, nil
	b, err := json.MarshalIndent([]any{plain, extra}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

func TestEnvironment(t *testing.T) {
	fixture(t, "good")
	getenv := func(values ...string) func(string) string {
		return func(name string) string {
			for i := 0; i < len(values); i += 2 {
				if values[i] == name {
					return values[i+1]
				}
			}
			return ""
		}
	}
	c, err := Load("design.yaml", getenv(envListen, "127.0.0.1:1", envAdmin, "unix:a.sock", envLogLevel, "warn"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen.String() != "127.0.0.1:1" || c.Admin.String() != "unix:a.sock" || c.LogLevel != "warn" || c.LogFormat != "json" {
		t.Errorf("overrides not taken: %+v", c)
	}
	// A variable takes the place of a key that is missing.
	if err := os.WriteFile("none.yaml", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c, err = Load("none.yaml", getenv(envIdentity, "node.key", envLogLevel, "debug"))
	if err != nil || c.Identity != "node.key" || c.LogLevel != "debug" {
		t.Errorf("Load = %+v, %v", c, err)
	}
	_, err = Load("design.yaml", getenv(envIdentity, "missing", envListen, "x", envAdmin, "0.0.0.0:1", envLogLevel, "loud"))
	if err == nil {
		t.Fatal("broken overrides accepted")
	}
	for _, name := range []string{envIdentity, envListen, envAdmin, envLogLevel} {
		if !strings.Contains("\n"+err.Error(), "\n"+name+": ") {
			t.Errorf("no error for %s in:\n%v", name, err)
		}
	}
}

func TestLoadFileErrors(t *testing.T) {
	fixture(t, "good")
	if err := os.WriteFile("huge.yaml", bytes.Repeat([]byte("# comment\n"), maxFile/10+1), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"missing.yaml": "no such file",
		".":            "not a regular file",
		"pipe":         "not a regular file",
		"huge.yaml":    "larger than",
	} {
		if _, err := Load(name, noEnv); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRevision(t *testing.T) {
	fixture(t, "good")
	revision := func() string {
		c, err := Load("every-key.yaml", noEnv)
		if err != nil {
			t.Fatal(err)
		}
		return c.Revision
	}
	before := revision()
	if again := revision(); again != before {
		t.Errorf("revision changed from %s to %s without a change", before, again)
	}
	if err := os.Chmod("password", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("password", []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	after := revision()
	if after == before {
		t.Error("revision is the same after a password changed")
	}
	// What is public counts as well: a new key of a peer is another config.
	keys, err := os.ReadFile("web.pub")
	if err == nil {
		err = os.WriteFile("web.pub", []byte("\n"+string(keys)+"\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if revision() == after {
		t.Error("revision is the same after a peer's key file changed")
	}
}

// sandbox.ports holds exactly as many ports as its error says.
func TestSandboxRoomLimit(t *testing.T) {
	fixture(t, "good")
	for text, want := range map[string]bool{
		`"10000-14095"`: true, `"10000-14096"`: false,
		`"10000-14094", 1`: true, `"10000-14094", 1, 2`: false,
	} {
		src := "identity: node.key\nsandbox: {ports: [" + text + "]}\n"
		if _, err := parse("room.yaml", []byte(src), noEnv); (err == nil) != want {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestCheckMode is the table of the design's rule for key files.
func TestCheckMode(t *testing.T) {
	for _, c := range []struct {
		mode       fs.FileMode
		want       access
		mayGroup   bool
		acceptable bool
	}{
		{0o600, secret, false, true},
		{0o400, secret, false, true},
		{0o700, secret, false, true},
		{0o640, secret, false, false},
		{0o640, secret, true, true},
		{0o440, secret, true, true},
		{0o660, secret, true, false},
		{0o620, secret, true, false},
		{0o604, secret, true, false},
		{0o644, secret, true, false},
		{0o602, secret, true, false},
		{0o644, public, false, true},
		{0o664, public, true, false},
		{0o646, public, false, false},
		{0o666, anyone, false, true},
	} {
		if err := checkMode("key", c.mode, c.want, c.mayGroup); (err == nil) != c.acceptable {
			t.Errorf("mode %04o, access %d, group %v: %v", c.mode, c.want, c.mayGroup, err)
		}
	}
}

// TestCheckOwner: only root and this process's user may own what it trusts.
func TestCheckOwner(t *testing.T) {
	for _, c := range []struct {
		owner, self int
		want        access
		acceptable  bool
	}{
		{0, 0, secret, true},
		{0, 1000, secret, true},
		{1000, 1000, secret, true},
		{1000, 0, secret, false}, // root trusts nobody's either
		{1000, 1001, secret, false},
		{1000, 0, public, false},
		{1000, 1000, public, true},
		{1000, 0, anyone, true},
	} {
		if err := checkOwner("key", c.owner, c.self, c.want); (err == nil) != c.acceptable {
			t.Errorf("owner %d, process %d, access %d: %v", c.owner, c.self, c.want, err)
		}
	}
}

// TestForeignFiles loads a config whose files a stranger owns.
func TestForeignFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file to another user")
	}
	dir := t.TempDir()
	key, err := session.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	files := []string{"node.key", "peer.pub", "password"}
	for i, text := range []string{string(key.PEM()), "FkbONIRffYhX0ytF32l9MA1Df976PD8qWYLr5yStsQs", "secret"} {
		if err := os.WriteFile(filepath.Join(dir, files[i]), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "sealane.yaml")
	config := "identity: node.key\npeers: [{name: far, key_files: [peer.pub]}]\n" +
		"listeners: [{socks5: \"127.0.0.1:0\", users: [{name: a, password_file: password}]}]\n"
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	load := func() string {
		if _, err := Load(file, func(string) string { return "" }); err != nil {
			return err.Error()
		}
		return ""
	}
	if got := load(); got != "" {
		t.Fatal(got)
	}
	for _, name := range files {
		if err := os.Chown(filepath.Join(dir, name), 4321, 4321); err != nil {
			t.Fatal(err)
		}
		if got := load(); !strings.Contains(got, name+" belongs to another user (number 4321)") {
			t.Errorf("%s of a stranger: %q", name, got)
		}
		if err := os.Chown(filepath.Join(dir, name), 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(dir, "node.key"), 4321, 4321); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKey(filepath.Join(dir, "node.key")); err == nil || !strings.Contains(err.Error(), "belongs to another user") {
		t.Errorf("a key of a stranger: %v", err)
	}
}

// TestSandboxPathToCome: a path that is not there yet is worth a warning.
func TestSandboxPathToCome(t *testing.T) {
	fixture(t, "good")
	text := "identity: node.key\nsandbox: {ports: [\"6000-6999\"], paths: [password, to/come]}\n"
	if err := os.WriteFile("room.yaml", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load("room.yaml", noEnv)
	if err != nil {
		t.Fatal(err)
	}
	want := "room.yaml:2:51: warning: sandbox.paths: to/come: no such file or directory; relative paths start at the folder of the config file; " +
		"only what is there when sealane starts is granted"
	if len(c.Warnings) != 1 || c.Warnings[0].Error() != want {
		t.Errorf("warnings %v, want %s", c.Warnings, want)
	}
}

// TestHostileYAML reads texts made to be slow, deep or large: it would not end
// in a test's time, or overflow the stack, if nothing bounded them.
func TestHostileYAML(t *testing.T) {
	for name, text := range map[string]string{
		"brackets":   strings.Repeat("[", maxFile),
		"braces":     strings.Repeat("{a: ", maxFile/4),
		"dashes":     strings.Repeat("- ", maxFile/2),
		"questions":  strings.Repeat("? ", maxFile/2),
		"items":      strings.Repeat("- a: b\n", 4000),
		"aliases":    "a: &a [x, x]\n" + strings.Repeat("b: [*a, *a]\n", 1000),
		"duplicates": strings.Repeat("identity: x\n", 2000),
		"escapes":    `a: "` + strings.Repeat(`\u0041`, maxFile/6) + `"`,
		"keys":       "peers:\n  - name: a\n    keys: [" + strings.Repeat(`"x", `, 4000) + "]\n",
		"indented":   indented(700),
	} {
		if _, err := parse("f", []byte(text), noEnv); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func indented(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

func FuzzConfig(f *testing.F) {
	paths, err := filepath.Glob("testdata/*/*.yaml")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	dir := f.TempDir()
	for name, mode := range map[string]fs.FileMode{"node.key": 0o600, "password": 0o600, "web.pub": 0o644, "db.pub": 0o644} {
		b, err := os.ReadFile(filepath.Join("testdata", "files", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, mode)
		}
		if err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		if len(src) > maxFile {
			return
		}
		c, err := parse(filepath.Join(dir, "f.yaml"), src, noEnv)
		if err == nil {
			checkUsable(t, c)
			return
		}
		invalid, ok := err.(*Invalid)
		if !ok || len(invalid.Errors) == 0 || len(invalid.Files) == 0 {
			t.Fatalf("not a list of errors: %v", err)
		}
		lines := bytes.Count(src, []byte("\n")) + bytes.Count(src, []byte("\r")) + 1
		for _, e := range invalid.Errors {
			if e.Line < 1 || e.Line > lines || e.Column < 1 || strings.ContainsAny(e.Message, "\r\n") {
				t.Errorf("bad error %#v", e)
			}
		}
	})
}

// checkUsable: what Load accepts, the packages that do the work accept too.
func checkUsable(t *testing.T, c *Config) {
	t.Helper()
	m, err := mux.New(mux.Config{
		Session: session.Config{Key: c.Key, Transform: c.Transform, Padding: c.Padding}, Peers: c.Peers,
		Links: c.Limits.Links, StreamsPerPeer: c.Limits.StreamsPerPeer, Handshakes: c.Limits.Handshakes, Memory: c.Limits.Memory,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	names := []string{}
	for _, p := range c.Peers {
		names = append(names, p.Name)
	}
	p, err := proxy.New(proxy.Config{
		Listeners: c.Listeners, Routes: c.Routes, Services: c.Services, Egress: c.Egress, Peers: names,
	}, m)
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
}

// A service leads into this sidecar by every address of this host.
func TestServiceAtOwnAddress(t *testing.T) {
	addrs, err := net.InterfaceAddrs()
	if err != nil || len(addrs) == 0 {
		t.Skipf("this host has no address: %v", err)
	}
	bound := proxy.Endpoint{Network: "tcp", Address: "0.0.0.0:7423"}
	for _, a := range addrs {
		host := a.(*net.IPNet).IP.String()
		for port, want := range map[string]bool{"7423": true, "7424": false} {
			if got := leadsTo(proxy.Endpoint{Network: "tcp", Address: net.JoinHostPort(host, port)}, bound); got != want {
				t.Errorf("%s port %s: %v", host, port, got)
			}
		}
	}
	if leadsTo(proxy.Endpoint{Network: "tcp", Address: "192.0.2.1:7423"}, bound) {
		t.Error("another host's address is this one's")
	}
}
