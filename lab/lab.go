// Package lab starts real processes for tests: servers and clients as Debian
// packages them, and sealane sidecars built from this tree. Its tests are in
// the folders below: servers carries real protocols, faults kills links while
// data flows.
//
// SEALANE_LAB=long gives the tests their full sizes; otherwise they take a few
// seconds each, and fewer still where CI is not set. What is missing is a reason
// to skip, except where CI is set.
package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
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

// Long reports whether the tests run at their full sizes.
func Long() bool { return os.Getenv("SEALANE_LAB") == "long" }

// Quick reports whether somebody waits for the tests while they work, so that
// what takes long is left to CI.
func Quick() bool { return os.Getenv("CI") == "" && !Long() }

// Need finds programs. Debian keeps PostgreSQL's and nginx's servers outside
// the search path.
func Need(t *testing.T, names ...string) {
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

// FreePort is a TCP port on loopback that nothing uses and that no other test
// gets while this one runs. It is below those that the system gives to clients,
// so that none takes it before its server does, or while its server is down.
func FreePort(t *testing.T) int {
	t.Helper()
	for range 1000 {
		port := 15000 + rand.IntN(15000)
		// A socket in the abstract namespace is a lock among all processes that
		// ends with its holder.
		lock, err := net.Listen("unix", fmt.Sprintf("@sealane-lab-port-%d", port))
		if err != nil {
			continue
		}
		if free(port) {
			t.Cleanup(func() { lock.Close() })
			return port
		}
		lock.Close()
	}
	t.Fatal("no free port")
	return 0
}

func free(port int) bool {
	// A process that another test starts now would hold the listener, too, until
	// its exec.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// Eventually polls a condition for up to 30 s.
func Eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// Accepts reports whether something listens at a TCP address.
func Accepts(address string) bool {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// An Output collects a process's output.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *Output) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *Output) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// A Process is a server or a sidecar that ends with the test.
type Process struct {
	*exec.Cmd
	Out *Output
}

// Start runs a program until the test ends. asUser, if not empty and this is
// root, is whom it runs as.
func Start(t *testing.T, asUser string, name string, args ...string) *Process {
	t.Helper()
	p := &Process{exec.Command(name, args...), &Output{}}
	p.Stdout, p.Stderr = p.Out, p.Out
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
			t.Logf("%s: %s", filepath.Base(name), tail(p.Out.String()))
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

// Run runs a client to its end and returns what it printed.
func Run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	out, err := Try(t, env, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, tail(out))
	}
	return out
}

// Try is Run for a client that may fail.
func Try(t *testing.T, env []string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TempDir is a folder that servers under other users may enter, with a name
// short enough for unix sockets.
func TempDir(t *testing.T, owner string) string {
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

// Build compiles sealane, once per test binary.
func Build(t *testing.T) string {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// moduleRoot is where tests in the folders below this one find the module.
const moduleRoot = "../.."

var buildDir string // made by build, removed by Main

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sealane")
	if err != nil {
		return "", err
	}
	buildDir = dir
	// The test cache knows which files a test has looked at, but not what a
	// compiler that it runs reads: look at every source, so that a result is
	// never taken from the cache for another binary.
	err = filepath.WalkDir(moduleRoot, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") {
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "sealane")
	out, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "github.com/sealane/sealane/cmd/sealane").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %v\n%s", err, out)
	}
	return bin, nil
})

// Main runs a package's tests and removes what Build made.
func Main(m *testing.M) {
	code := m.Run()
	os.RemoveAll(buildDir)
	os.Exit(code)
}

// Key makes a node key and returns its public name.
func Key(t *testing.T, file string) string {
	t.Helper()
	return strings.TrimSpace(Run(t, nil, Build(t), "keygen", "-o", file))
}

// Sidecar writes a config to dir/name.yaml and runs sealane with it until the
// test ends.
func Sidecar(t *testing.T, dir, name, config string) *Process {
	t.Helper()
	file := filepath.Join(dir, name+".yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return Start(t, "", Build(t), "run", "-c", file)
}

// Ready waits until the sidecar with this admin address says it is ready.
func Ready(t *testing.T, admin string) {
	t.Helper()
	Eventually(t, "ready at "+admin, func() bool {
		resp, err := http.Get("http://" + admin + "/ready")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// Resident is a process's resident memory in KiB.
func Resident(t *testing.T, p *Process) int { return status(t, p, "VmRSS:") }

// PeakResident is the most that a process's resident memory was, in KiB.
func PeakResident(t *testing.T, p *Process) int { return status(t, p, "VmHWM:") }

func status(t *testing.T, p *Process, key string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == key {
			n, _ := strconv.Atoi(fields[1])
			return n
		}
	}
	t.Fatal("no " + key)
	return 0
}

// Address is a loopback address with a port that nothing uses.
func Address(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", FreePort(t))
}

// Metric is a metric's value at the sidecar with this admin address, by the
// name and the labels as /metrics writes them; -1 if there is none or nothing
// answers.
func Metric(admin, name string) float64 {
	resp, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		return -1
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			if v, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err == nil {
				return v
			}
		}
	}
	return -1
}
