//go:build linux

package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const containerdSocket = "/run/containerd/containerd.sock"

// Node does not return if this program was started to be a cluster's node. A
// main function calls it first.
func Node() {
	if os.Args[0] != nodeArg {
		return
	}
	n := node{dir: os.Args[1]}
	fmt.Fprintln(os.Stderr, "node:", n.run())
	os.Exit(1)
}

// node is process 1 of the cluster.
type node struct {
	dir      string
	programs map[int]string // by process id
}

func (n *node) path(elem ...string) string {
	return filepath.Join(append([]string{n.dir}, elem...)...)
}

// run prepares the namespaces, starts the programs and collects every process
// that ends. It returns an error when a program of the cluster ends.
func (n *node) run() error {
	if err := n.mounts(); err != nil {
		return err
	}
	if err := network(); err != nil {
		return err
	}
	n.programs = make(map[int]string)
	for _, p := range programs(n.dir) {
		if err := n.start(p); err != nil {
			return fmt.Errorf("start %s: %w", p.name, err)
		}
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait: %w", err)
		}
		if name, ok := n.programs[pid]; ok {
			return fmt.Errorf("%s ended with status %d, see %s", name, status.ExitStatus(), n.path("logs", name+".log"))
		}
	}
}

// mounts gives the node folders of its own in the places that Kubernetes and
// containerd fix, all below the cluster's folder or in memory.
func (n *node) mounts() error {
	type mount struct {
		source, target, kind string
		flags                uintptr
	}
	list := []mount{
		{"", "/", "", syscall.MS_PRIVATE | syscall.MS_REC}, // nothing reaches the machine
		{"", "/", "", syscall.MS_SHARED | syscall.MS_REC},  // but it does reach the containers
		{"proc", "/proc", "proc", 0},
		{"tmpfs", "/run", "tmpfs", 0},
		{"tmpfs", "/var/lib", "tmpfs", 0},
	}
	bind := func(source, target string) {
		list = append(list, mount{source, target, "", syscall.MS_BIND})
	}
	for source, target := range map[string]string{
		"kubelet": "/var/lib/kubelet", "cni/state": "/var/lib/cni", "logs": "/var/log",
	} {
		if err := os.MkdirAll(n.path(source), 0o755); err != nil {
			return err
		}
		bind(n.path(source), target)
	}
	bind(n.path("hosts"), "/etc/hosts")
	// The kubelet sets these for the whole machine, unless it finds them set:
	// it sees copies.
	for sysctl := range kubeletSysctls {
		bind(n.path("sysctl", sysctl), "/proc/sys/"+sysctl)
	}
	for _, m := range list {
		// What is missing is below a folder that was mounted just before.
		if _, err := os.Stat(m.target); errors.Is(err, fs.ErrNotExist) {
			if err := os.Mkdir(m.target, 0o755); err != nil {
				return err
			}
		}
		if err := syscall.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

// network gives the node an address that its pods reach.
func network() error {
	if err := syscall.Sethostname([]byte(nodeName)); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "node0", "type", "bridge"},
		{"addr", "add", nodeIP + "/24", "dev", "node0"},
		{"link", "set", "node0", "up"},
		{"route", "add", "default", "via", nodeIP},
	} {
		if err := run(exec.Command("ip", args...)); err != nil {
			return err
		}
	}
	for sysctl, value := range map[string]string{
		"net/ipv4/ip_forward":                "1",
		"net/bridge/bridge-nf-call-iptables": "1", // Services between pods on one bridge
	} {
		if err := os.WriteFile("/proc/sys/"+sysctl, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

// program is one of the programs of the cluster.
type program struct {
	name    string
	command []string
	after   func() bool // reports whether it may start
}

func (n *node) start(p program) error {
	deadline := time.Now().Add(2 * time.Minute)
	for p.after != nil && !p.after() {
		if time.Now().After(deadline) {
			return fmt.Errorf("what it needs does not come up, see %s", n.path("logs"))
		}
		time.Sleep(50 * time.Millisecond)
	}
	log, err := os.Create(n.path("logs", p.name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	process, err := os.StartProcess(p.command[0], p.command, &os.ProcAttr{
		Files: []*os.File{nil, log, log},
		Env:   append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin"),
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return err
	}
	n.programs[process.Pid] = p.name
	return process.Release()
}

// listens reports whether something accepts connections there.
func listens(network, address string) func() bool {
	return func() bool {
		conn, err := net.DialTimeout(network, address, time.Second)
		if err != nil {
			return false
		}
		conn.Close()
		return true
	}
}
