package servers

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// long reports whether the tests run at their full sizes.
func long() bool { return os.Getenv("SEALANE_LAB") == "long" }

// need finds programs. Debian keeps PostgreSQL's and nginx's servers outside
// the search path.
func need(t *testing.T, names ...string) {
	t.Helper()
	path := os.Getenv("PATH") + ":/usr/sbin"
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	t.Setenv("PATH", strings.Join(append(dirs, path), ":"))
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%s is missing, and CI must not skip", name)
			}
			t.Skipf("needs %s (a Debian package)", name)
		}
	}
}

// freePort is a TCP port on loopback that nothing uses.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// eventually polls a condition for up to 30 s.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

func accepts(address string) bool {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// A syncBuffer collects a process's output.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// A process is a server or a sidecar that ends with the test.
type process struct {
	*exec.Cmd
	out *syncBuffer
}

// start runs a program until the test ends. asUser, if not empty and this is
// root, is whom it runs as.
func start(t *testing.T, asUser string, name string, args ...string) *process {
	t.Helper()
	p := &process{exec.Command(name, args...), &syncBuffer{}}
	p.Stdout, p.Stderr = p.out, p.out
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: credential(t, asUser)}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(10*time.Second, func() { p.Process.Kill() })
		p.Wait()
		timer.Stop()
		if t.Failed() {
			t.Logf("%s: %s", filepath.Base(name), tail(p.out.String()))
		}
	})
	return p
}

func tail(s string) string { return s[max(0, len(s)-3000):] }

func credential(t *testing.T, name string) *syscall.Credential {
	t.Helper()
	if name == "" || os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// run runs a client to its end and returns what it printed.
func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	out, err := try(t, env, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, tail(out))
	}
	return out
}

func try(t *testing.T, env []string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// tempDir is a folder that servers under other users may enter, with a name
// short enough for unix sockets.
func tempDir(t *testing.T, owner string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if c := credential(t, owner); c != nil {
		if err := os.Chown(dir, int(c.Uid), int(c.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// build compiles sealane once per test binary.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sealane")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "sealane")
	out, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "../../cmd/sealane").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %v\n%s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if bin, err := build(); err == nil {
		os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

// A pair is two sidecars: near listens for apps, far reaches the targets.
type pair struct {
	bin                   string
	near, far             *process
	nearAdmin             string
	forward, socks, other string // near's listeners; other forwards to "other"
}

// startPair starts two sidecars whose far side offers service at target, other
// at otherTarget, and egress to each of egress.
func startPair(t *testing.T, service, target, other, otherTarget string, egress ...string) *pair {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	dir := tempDir(t, "")
	key := func(name string) string {
		return strings.TrimSpace(run(t, nil, bin, "keygen", "-o", filepath.Join(dir, name)))
	}
	nearKey, farKey := key("near.key"), key("far.key")
	address := func() string { return fmt.Sprintf("127.0.0.1:%d", freePort(t)) }
	link, farAdmin := address(), address()
	p := &pair{bin: bin, nearAdmin: address(), forward: address(), socks: address(), other: address()}
	p.far = p.sidecar(t, dir, "far", farAdmin, fmt.Sprintf(`
identity: far.key
listen: %s
admin: %s
peers: [{name: near, keys: [%q]}]
services:
  - {name: %s, address: "%s", allow: [near]}
  - {name: %s, address: "%s", allow: [near]}
egress: [{allow: [near], match: ["%s"]}]
`, link, farAdmin, nearKey, service, target, other, otherTarget, strings.Join(egress, `", "`)))
	p.near = p.sidecar(t, dir, "near", p.nearAdmin, fmt.Sprintf(`
identity: near.key
admin: %s
peers: [{name: far, keys: [%q], address: "%s"}]
listeners:
  - {forward: "%s", to: {peer: far, service: %s}}
  - {forward: "%s", to: {peer: far, service: %s}}
  - socks5: %s
routes: [{match: "*:*", to: {peer: far}}]
`, p.nearAdmin, farKey, link, p.forward, service, p.other, other, p.socks))
	return p
}

func (p *pair) sidecar(t *testing.T, dir, name, admin, config string) *process {
	t.Helper()
	file := filepath.Join(dir, name+".yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	side := start(t, "", p.bin, "run", "-c", file)
	eventually(t, name+" is ready", func() bool {
		resp, err := http.Get("http://" + admin + "/ready")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return side
}

// resident is a process's resident memory in KiB.
func resident(t *testing.T, p *process) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "VmRSS:" {
			n, _ := strconv.Atoi(fields[1])
			return n
		}
	}
	t.Fatal("no VmRSS")
	return 0
}
