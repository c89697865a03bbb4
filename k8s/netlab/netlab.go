//go:build linux

// Package netlab makes hosts out of network namespaces for tests that need several of them: each has its own
// interfaces, addresses, routes and firewall rules, and programs run in it unmodified.
//
// It needs root, with the capabilities that a container's lacks, and iproute2. Elsewhere tests that use it are skipped and say why; with CI=true in the environment,
// where everything is there on purpose, they fail instead.
package netlab

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A Host is a network namespace with loopback up.
type Host struct {
	t    testing.TB
	name string
}

var hosts atomic.Int32

// Unable says why this process cannot make network namespaces, or "". Root of a container usually cannot.
var Unable = sync.OnceValue(func() string {
	if os.Geteuid() != 0 {
		return "making network namespaces needs root"
	}
	probe := exec.Command("ip", "link", "set", "lo", "up")
	probe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if err := probe.Run(); err != nil {
		return "making network namespaces needs the capabilities SYS_ADMIN and NET_ADMIN, and ip: " + err.Error()
	}
	return ""
})

// Need skips the test unless it can make hosts and every program is installed.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	missing := slices.DeleteFunc(slices.Clone(programs), func(p string) bool {
		_, err := exec.LookPath(p)
		return err == nil
	})
	switch {
	case Unable() != "":
		Skip(t, Unable())
	case len(missing) > 0:
		Skip(t, "not installed: "+strings.Join(missing, ", "))
	}
}

// Skip skips the test, or fails it in CI.
func Skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI must be able to run this: %s", reason)
	}
	t.Skip(reason)
}

// NewHost makes a host that is removed when the test ends.
func NewHost(t testing.TB) *Host {
	t.Helper()
	Need(t, "ip")
	h := &Host{t: t, name: fmt.Sprintf("sealane-%d-%d", os.Getpid(), hosts.Add(1))}
	h.add()
	t.Cleanup(func() { ip(t, "netns", "del", h.name) })
	h.Run("ip", "link", "set", "lo", "up")
	return h
}

// add makes the namespace from within another, which lasts as long as the command, to give it a table of connections of
// its own where the kernel can (Linux 6.1). Else whoever lists the host's connections walks the machine's whole table,
// which is most of what tests would do.
func (h *Host) add() {
	h.t.Helper()
	cmd := exec.Command("sh", "-ec", `s=/proc/sys/net/ipv4/tcp_child_ehash_entries; [ ! -w $s ] || echo 16384 >$s; exec ip netns add "$0"`, h.name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("ip netns add %s: %v\n%s", h.name, err, out)
	}
}

// Join puts a cable between two hosts: the interface on each gets the name and addresses given. IPv6 addresses are
// usable at once.
func Join(a *Host, nameA string, addrsA []string, b *Host, nameB string, addrsB []string) {
	a.t.Helper()
	ip(a.t, "-n", a.name, "link", "add", nameA, "type", "veth", "peer", "name", nameB, "netns", b.name)
	a.configure(nameA, addrsA)
	b.configure(nameB, addrsB)
}

func (h *Host) configure(link string, addrs []string) {
	h.t.Helper()
	for _, a := range addrs {
		args := []string{"ip", "addr", "add", a, "dev", link}
		if strings.Contains(a, ":") {
			args = append(args, "nodad")
		}
		h.Run(args...)
	}
	h.Run("ip", "link", "set", link, "up")
}

// Name is the namespace's name, as ip netns knows it.
func (h *Host) Name() string { return h.name }

// Command prepares a program to run on the host.
func (h *Host) Command(args ...string) *exec.Cmd {
	cmd := exec.Command("ip", append([]string{"netns", "exec", h.name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// ResolveBy gives the host a resolv.conf of its own, for the programs that are started from now on.
func (h *Host) ResolveBy(text string) {
	h.t.Helper()
	dir := filepath.Join("/etc/netns", h.name) // ip netns exec binds what is there over /etc
	if err := os.MkdirAll(dir, 0o755); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		os.RemoveAll(dir)
		os.Remove(filepath.Dir(dir)) // unless it holds something
	})
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// Run runs a program on the host to its end and returns what it printed; its failure ends the test.
func (h *Host) Run(args ...string) string {
	h.t.Helper()
	out, err := h.Try(args...)
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Try runs a program on the host to its end and returns what it printed, errors included.
func (h *Host) Try(args ...string) (string, error) {
	out, err := h.Command(args...).CombinedOutput()
	return string(out), err
}

// A Process runs on a host until the test ends or Stop is called.
type Process struct {
	t    testing.TB
	cmd  *exec.Cmd
	out  lockedBuffer
	done chan struct{}
	err  error
}

// Start starts a program on the host.
func (h *Host) Start(args ...string) *Process {
	h.t.Helper()
	return h.StartCommand(h.Command(args...))
}

// StartCommand starts what Command prepared. Its output is kept.
func (h *Host) StartCommand(cmd *exec.Cmd) *Process {
	h.t.Helper()
	p := &Process{t: h.t, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	if err := cmd.Start(); err != nil {
		h.t.Fatalf("%s: %v", strings.Join(cmd.Args, " "), err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	h.t.Cleanup(func() {
		p.Signal(syscall.SIGKILL)
		<-p.done
		if h.t.Failed() {
			h.t.Logf("%s printed:\n%s", strings.Join(cmd.Args, " "), p.Output())
		}
	})
	return p
}

// Output is what the program has printed so far.
func (p *Process) Output() string { return p.out.String() }

// Signal sends a signal. A program that has ended is none the worse.
func (p *Process) Signal(s os.Signal) { p.cmd.Process.Signal(s) }

// Pid is the program's process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Wait waits for the program's end and returns its error, or ends the test after the time given.
func (p *Process) Wait(limit time.Duration) error {
	p.t.Helper()
	select {
	case <-p.done:
		return p.err
	case <-time.After(limit):
		p.t.Fatalf("%s did not end within %v; it printed:\n%s", strings.Join(p.cmd.Args, " "), limit, p.Output())
		return nil
	}
}

// Expect waits until the program has printed text, or ends the test.
func (p *Process) Expect(text string, limit time.Duration) {
	p.t.Helper()
	Eventually(p.t, limit, fmt.Sprintf("%s to print %q", strings.Join(p.cmd.Args, " "), text), func() bool {
		return strings.Contains(p.Output(), text)
	})
}

// Eventually waits until condition holds, or ends the test.
func Eventually(t testing.TB, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain for %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func ip(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

var _ io.Writer = (*lockedBuffer)(nil)

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
