package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sealane/sealane/session"
)

// waitForLine reads until a line that contains text, and returns it.
func waitForLine(t *testing.T, r io.Reader, text string) string {
	t.Helper()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if strings.Contains(lines.Text(), text) {
			return lines.Text()
		}
	}
	t.Fatalf("no line with %q: %v", text, lines.Err())
	return ""
}

// eventually waits until check returns "", or fails with what it returned.
func eventually(t *testing.T, check func() string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		problem := check()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(problem)
		}
		time.Sleep(10 * time.Millisecond) // between looks at a condition
	}
}

// A sidecar is a "sealane run" process.
type sidecar struct {
	t       *testing.T
	dir     string
	command *exec.Cmd
	exited  chan struct{}

	mu  sync.Mutex
	log bytes.Buffer
}

func (s *sidecar) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

// lines are the log's lines so far with that message.
func (s *sidecar) lines(message string) []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []map[string]any
	for line := range bytes.Lines(s.log.Bytes()) {
		var fields map[string]any
		if json.Unmarshal(line, &fields) == nil && fields["message"] == message {
			out = append(out, fields)
		}
	}
	return out
}

func (s *sidecar) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// waitFor waits for the nth line with the message and returns it.
func (s *sidecar) waitFor(message string, n int) map[string]any {
	s.t.Helper()
	var found map[string]any
	eventually(s.t, func() string {
		lines := s.lines(message)
		if len(lines) < n {
			return fmt.Sprintf("%d lines %q, want %d, in:\n%s", len(lines), message, n, s.text())
		}
		found = lines[n-1]
		return ""
	})
	return found
}

func (s *sidecar) signal(sig os.Signal) {
	s.t.Helper()
	if err := s.command.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// wait waits for the end and returns the exit code.
func (s *sidecar) wait() int {
	s.t.Helper()
	select {
	case <-s.exited:
	case <-time.After(time.Minute):
		s.t.Fatalf("still running:\n%s", s.text())
	}
	return s.command.ProcessState.ExitCode()
}

// startSidecar runs a sidecar with a key of its own in a new folder.
func startSidecar(t *testing.T, dir string, args ...string) *sidecar {
	t.Helper()
	return startCommand(t, dir, exec.Command("sealane", append([]string{"run", "-c", filepath.Join(dir, "sealane.yaml")}, args...)...))
}

// startCommand runs a command that becomes the sidecar with the config in dir.
func startCommand(t *testing.T, dir string, command *exec.Cmd) *sidecar {
	t.Helper()
	s := &sidecar{t: t, dir: dir, command: command, exited: make(chan struct{})}
	s.command.Stderr = s
	if err := s.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s.command.Wait()
		close(s.exited)
	}()
	t.Cleanup(func() {
		s.command.Process.Kill()
		<-s.exited
	})
	s.waitFor("started", 1)
	return s
}

// folder makes a folder with a key and a config.
func folder(t *testing.T, key *session.PrivateKey, config string, args ...any) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "node.key"), string(key.PEM()), 0o600)
	write(t, filepath.Join(dir, "sealane.yaml"), "identity: node.key\n"+fmt.Sprintf(config, args...), 0o644)
	return dir
}

// write replaces a file as a whole.
func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	next := path + ".next"
	if err := os.WriteFile(next, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

func newKey(t *testing.T) *session.PrivateKey {
	t.Helper()
	key, err := session.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// echo answers each connection with what it says, until it ends.
func echo(t *testing.T) string {
	t.Helper()
	return serve(t, func(c net.Conn) { io.Copy(c, c) })
}

// serve has a server on loopback do something with each connection, which it
// closes then, and returns its address.
func serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Wait()
	})
	return l.Addr().String()
}

// pair starts two sidecars, the first of which has a forward to an echo server
// behind the second.
func pair(t *testing.T, extra string, args ...string) (near, far *sidecar) {
	t.Helper()
	return pairTo(t, echo(t), extra, args...)
}

// pairTo is pair with another target than echo.
func pairTo(t *testing.T, target, extra string, args ...string) (near, far *sidecar) {
	t.Helper()
	nearKey, farKey := newKey(t), newKey(t)
	far = startSidecar(t, folder(t, farKey, `
listen: 127.0.0.1:0
peers: [{name: near, keys: [%q]}]
services: [{name: echo, address: %q, allow: [near]}]
`, nearKey.Public(), target))
	near = startSidecar(t, folder(t, nearKey, `
admin: unix:admin.sock
peers: [{name: far, keys: [%q], address: %q}]
listeners:
  - forward: 127.0.0.1:0
    to: {peer: far, service: echo}
%s`, farKey.Public(), far.waitFor("started", 1)["listen"], extra), args...)
	return near, far
}

// forward is where the sidecar's first listener is bound.
func (s *sidecar) forward() string {
	s.t.Helper()
	return s.waitFor("listening", 1)["address"].([]any)[0].(string)
}

// talk sends a line through a connection and reads it back.
func talk(c net.Conn, text string) error {
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("sent %q, read %q", text, got)
	}
	return nil
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (s *sidecar) client() *adminClient {
	c := newAdminClient("unix:" + filepath.Join(s.dir, "admin.sock"))
	s.t.Cleanup(c.http.CloseIdleConnections)
	return c
}

// TestNoRoom: a node whose peer has no room for its link knows that, is not
// ready, dials ever later, and lets no app wait for longer than timeouts.dial.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	nearKey, otherKey, farKey := newKey(t), newKey(t), newKey(t)
	far := startSidecar(t, folder(t, farKey, `
listen: 127.0.0.1:0
limits: {links: 1}
peers: [{name: near, keys: [%q]}, {name: other, keys: [%q]}]
services: [{name: echo, address: %q, allow: [near, other]}]
`, nearKey.Public(), otherKey.Public(), echo(t)))
	start := func(key *session.PrivateKey) *sidecar {
		return startSidecar(t, folder(t, key, `
admin: unix:admin.sock
timeouts: {dial: 1500ms}
peers: [{name: far, keys: [%q], address: %q}]
listeners: [{forward: 127.0.0.1:0, to: {peer: far, service: echo}}]
`, farKey.Public(), far.waitFor("started", 1)["listen"]))
	}
	near := start(nearKey)
	near.waitFor("link up", 1)
	other := start(otherKey)
	begun := time.Now()
	if err := talk(dial(t, other.forward()), "x"); err == nil {
		t.Error("it has a link")
	} else if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("the app was refused after %v", took)
	}
	if err := other.client().ready(t.Context()); err == nil {
		t.Error("it is ready")
	}
	_, text, err := other.client().get(t.Context(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(begun)
	// From 250 ms on the waits double, of which half is drawn.
	n := 0
	for line := range strings.Lines(string(text)) {
		fmt.Sscanf(line, `sealane_links_total{peer="far",result="no_room"} %d`, &n)
		if ok := `sealane_links_total{peer="far",result="ok"} `; strings.HasPrefix(line, ok) && strings.TrimSpace(line) != ok+"0" {
			t.Error(line)
		}
	}
	if n == 0 || n > 6+int(took/(2500*time.Millisecond)) {
		t.Errorf("refused %d times in %v", n, took)
	}
	if err := talk(dial(t, near.forward()), "x"); err != nil {
		t.Error(err)
	}
}

func TestRunAndDrain(t *testing.T) {
	near, far := pair(t, "")
	c := dial(t, near.forward())
	if err := talk(c, "hello\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if err := near.client().ready(context.Background()); err != nil {
			return err.Error()
		}
		return ""
	})
	// A drain waits for the connection that is open, and takes no other.
	near.signal(syscall.SIGTERM)
	near.waitFor("draining", 1)
	if err := near.client().ready(context.Background()); err == nil {
		t.Error("ready while draining")
	}
	eventually(t, func() string {
		if other, err := net.Dial("tcp", near.forward()); err == nil {
			other.Close()
			return "the forward still accepts"
		}
		return ""
	})
	if err := talk(c, "still here\n"); err != nil {
		t.Error(err)
	}
	c.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("read %q, %v", rest, err)
	}
	if code := near.wait(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, near.text())
	}
	far.signal(syscall.SIGINT)
	if code := far.wait(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, far.text())
	}
}

func TestDrainDeadline(t *testing.T) {
	near, _ := pair(t, "timeouts: {drain: 100ms}\n")
	c := dial(t, near.forward())
	if err := talk(c, "hello\n"); err != nil {
		t.Fatal(err)
	}
	near.signal(syscall.SIGTERM)
	if code := near.wait(); code != exitError {
		t.Errorf("exit code %d\n%s", code, near.text())
	}
	if n, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("the app read %d, %v instead of a reset", n, err)
	}
	if cut := near.waitFor("stopped; connections had to be cut", 1)["cut"]; cut != 1.0 {
		t.Errorf("cut %v", cut)
	}
}

func TestSecondSignalForces(t *testing.T) {
	near, _ := pair(t, "timeouts: {drain: 0s}\n")
	c := dial(t, near.forward())
	if err := talk(c, "hello\n"); err != nil {
		t.Fatal(err)
	}
	near.signal(syscall.SIGTERM)
	near.waitFor("draining", 1)
	near.signal(syscall.SIGTERM)
	if code := near.wait(); code != exitError {
		t.Errorf("exit code %d\n%s", code, near.text())
	}
}

// TestReload changes the config under an open connection, with a signal.
func TestReload(t *testing.T) {
	near, _ := pair(t, "", "--no-sandbox") // which would refuse the taken port first
	path := filepath.Join(near.dir, "sealane.yaml")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, near.forward())
	if err := talk(c, "before\n"); err != nil {
		t.Fatal(err)
	}
	// A bad file changes nothing and says so, with every error.
	write(t, path, "peers: x\n", 0o644)
	near.signal(syscall.SIGHUP)
	refused := near.waitFor("reload refused; the old config stays in force", 1)
	if errors := fmt.Sprint(refused["errors"]); !strings.Contains(errors, "sealane.yaml:1:1: identity is missing") ||
		!strings.Contains(errors, "sealane.yaml:1:8: peers is a plain value") {
		t.Errorf("errors: %s", errors)
	}
	if err := talk(c, "after a bad file\n"); err != nil {
		t.Error(err)
	}
	// So does an address that cannot be had.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	write(t, path, string(good)+fmt.Sprintf("  - socks5: %q\n", taken.Addr()), 0o644)
	near.signal(syscall.SIGHUP)
	refused = near.waitFor("reload refused; the old config stays in force", 2)
	if errors := fmt.Sprint(refused["errors"]); !strings.Contains(errors, taken.Addr().String()) {
		t.Errorf("errors: %s", errors)
	}
	// A good one adds a listener, and a log level.
	write(t, path, string(good)+"  - socks5: 127.0.0.1:0\nlog: {level: debug}\nlisten: 127.0.0.1:0\n", 0o644)
	near.signal(syscall.SIGHUP)
	near.waitFor("config reloaded", 1)
	if err := talk(c, "after a good file\n"); err != nil {
		t.Error(err)
	}
	r, _, err := near.client().report(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Listeners) != 2 || r.Listeners[1].Kind != "socks5" || r.Config.Reloads != 1 || r.Config.Failed != 2 || r.Listen == "" {
		t.Errorf("report %+v", r)
	}
	// Without its peer the connection is reset.
	key := near.waitFor("started", 1)["public_key"]
	write(t, path, "identity: node.key\nadmin: unix:admin.sock\n", 0o644)
	near.signal(syscall.SIGHUP)
	near.waitFor("config reloaded", 2)
	if _, err := io.ReadAll(c); err == nil {
		t.Error("the connection of a removed peer ended cleanly")
	}
	if key == "" {
		t.Error("the public key is not logged")
	}
}

// TestReloadInSandbox: what the config did not need at the start is refused by
// name later, where the kernel has Landlock at all.
func TestReloadInSandbox(t *testing.T) {
	near, _ := pair(t, "")
	applied := fmt.Sprint(near.waitFor("sandbox", 1)["applied"])
	if !strings.Contains(applied, "listens on TCP ports") {
		if os.Getenv("CI") != "" {
			t.Fatal("this kernel restricts less: " + applied)
		}
		t.Skip("this kernel restricts less: " + applied)
	}
	path := filepath.Join(near.dir, "sealane.yaml")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(t.TempDir(), "other.key")
	write(t, elsewhere, string(newKey(t).PEM()), 0o600)
	for i, c := range []struct{ config, want string }{
		{string(good) + "  - socks5: 127.0.0.1:1080\n", "restart sealane to let it listen on TCP port 1080 (socks5 listener)"},
		{strings.Replace(string(good), "node.key", elsewhere, 1), "restart sealane to let it read " + elsewhere},
		{string(good) + "egress: [{allow: [far], match: [\"*:25\"]}]\n", `connect to TCP port 25 (egress \"*:25\")`},
	} {
		write(t, path, c.config, 0o644)
		near.signal(syscall.SIGHUP)
		near.waitFor("reload refused; the old config stays in force", i+1)
		if !strings.Contains(near.text(), c.want) {
			t.Errorf("no %s in\n%s", c.want, near.text())
		}
	}
	// What stays within it works.
	write(t, path, strings.Replace(string(good), "service: echo", "service: other", 1), 0o644)
	near.signal(syscall.SIGHUP)
	near.waitFor("config reloaded", 1)
}

// TestReloadInRoom: what sandbox of the config granted at the start, a reload
// may use without a restart.
func TestReloadInRoom(t *testing.T) {
	room, free := t.TempDir(), freePort(t)
	near, _ := pair(t, fmt.Sprintf("sandbox: {ports: [%d], paths: [%s]}\n", free, room))
	c := dial(t, near.forward())
	if err := talk(c, "before\n"); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(room, "other.key"), string(newKey(t).PEM()), 0o600)
	near.edit("listeners:\n", fmt.Sprintf("listeners:\n  - socks5: 127.0.0.1:%d\n  - connect: unix:%s/s\n", free, room))
	near.edit("identity: node.key", "identity: "+room+"/other.key")
	near.reload()
	if err := talk(c, "after\n"); err != nil {
		t.Error(err)
	}
	dial(t, fmt.Sprintf("127.0.0.1:%d", free))
	dialUnix(t, filepath.Join(room, "s"))
	// More room takes a restart, which is said and is no error.
	near.edit(fmt.Sprintf("ports: [%d]", free), fmt.Sprintf("ports: [%d, 1]", free))
	near.reload()
	const said = "the sandbox is as it was set at the start; what these keys add to it takes effect at a restart"
	if keys := near.waitFor(said, 1)["keys"]; fmt.Sprint(keys) != "[sandbox.ports]" {
		t.Errorf("keys %v", keys)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// TestServiceManager runs under a stand-in for systemd.
func TestServiceManager(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	manager.SetReadDeadline(time.Now().Add(time.Minute))
	heard := func(want string) {
		t.Helper()
		for {
			b := make([]byte, 1000)
			n, err := manager.Read(b)
			if err != nil {
				t.Fatalf("no %s: %v", want, err)
			}
			if strings.HasPrefix(string(b[:n]), want) {
				return
			}
		}
	}
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "100000")
	s := startSidecar(t, folder(t, newKey(t), ""))
	heard("READY=1\nSTATUS=0 peers, 0 listeners, config revision ")
	heard("WATCHDOG=1")
	heard("WATCHDOG=1")
	s.signal(syscall.SIGHUP)
	heard("RELOADING=1\nMONOTONIC_USEC=")
	heard("READY=1")
	s.signal(syscall.SIGTERM)
	heard("STOPPING=1")
	if code := s.wait(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, s.text())
	}
}

// TestReloadIdentity gives the node another key while a connection is open:
// the link that runs stays on the old one.
func TestReloadIdentity(t *testing.T) {
	near, _ := pair(t, "")
	c := dial(t, near.forward())
	if err := talk(c, "before\n"); err != nil {
		t.Fatal(err)
	}
	next := newKey(t)
	write(t, filepath.Join(near.dir, "node.key"), string(next.PEM()), 0o600)
	near.signal(syscall.SIGHUP)
	near.waitFor("config reloaded", 1)
	if err := talk(c, "after\n"); err != nil {
		t.Error(err)
	}
	r, _, err := near.client().report(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if r.PublicKey != next.Public().String() {
		t.Errorf("public key %s, want the new one %s", r.PublicKey, next.Public())
	}
}

// TestWatch updates the config as Kubernetes updates a ConfigMap: the files are
// symlinks through a folder that is a symlink, which is swapped.
func TestWatch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key := newKey(t)
	write(t, filepath.Join(dir, "node.key"), string(key.PEM()), 0o600)
	generation := func(name, config string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name, "sealane.yaml"), config, 0o644)
		if err := os.Symlink(name, filepath.Join(dir, "next")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "next"), filepath.Join(dir, "current")); err != nil {
			t.Fatal(err)
		}
	}
	generation("1", "identity: node.key\n")
	if err := os.Symlink("current/sealane.yaml", filepath.Join(dir, "sealane.yaml")); err != nil {
		t.Fatal(err)
	}
	s := startSidecar(t, dir, "--watch")
	first := s.waitFor("started", 1)["revision"]
	generation("2", "identity: node.key\ntransform: gzip\n")
	if second := s.waitFor("config reloaded", 1)["revision"]; second == first {
		t.Errorf("revision %v after the change, too", second)
	}
	// A key file that only the bad config names mends it.
	generation("3", "identity: next.key\n")
	s.waitFor("reload refused; the old config stays in force", 1)
	write(t, filepath.Join(dir, "next.key"), string(newKey(t).PEM()), 0o600)
	s.waitFor("config reloaded", 2)
	s.signal(syscall.SIGTERM)
	if code := s.wait(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, s.text())
	}
}

func TestStartErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, c := range map[string]struct{ config, want string }{
		"links":    {"listen: " + taken.Addr().String(), "listen: cannot listen on " + taken.Addr().String() + ": address already in use; another process has it"},
		"admin":    {"admin: " + taken.Addr().String(), "admin: cannot listen on " + taken.Addr().String() + ": address already in use; another process has it"},
		"listener": {"listeners: [{socks5: \"" + taken.Addr().String() + "\"}]", "address already in use"},
		"address":  {"listen: 192.0.2.1:7423", "this host has no such address"},
		"folder":   {"admin: unix:none/admin.sock", "make the folder first"},
		"systemd":  {"listen: systemd:links", "systemd passed 0 sockets"},
	} {
		dir := folder(t, newKey(t), "%s\n", c.config)
		command := exec.Command("sealane", "run", "-c", filepath.Join(dir, "sealane.yaml"))
		out, _ := command.CombinedOutput()
		if command.ProcessState.ExitCode() != exitError || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: exit code %d, %s", name, command.ProcessState.ExitCode(), out)
		}
	}
}

// TestAdminSocket starts over a socket that a killed process left behind.
func TestAdminSocket(t *testing.T) {
	dir := folder(t, newKey(t), "admin: unix:admin.sock\n")
	first := startSidecar(t, dir)
	first.signal(syscall.SIGKILL)
	first.wait()
	second := startSidecar(t, dir)
	if _, _, err := second.client().report(context.Background()); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(filepath.Join(dir, "admin.sock"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	// A living one's socket is left alone.
	out, err := exec.Command("sealane", "run", "-c", filepath.Join(dir, "sealane.yaml")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another process has it") {
		t.Errorf("%v: %s", err, out)
	}
}
