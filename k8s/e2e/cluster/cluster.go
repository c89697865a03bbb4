//go:build linux

// Package cluster runs a one-node Kubernetes on this machine, for tests.
//
// Up builds the Kubernetes programs, unpacks etcd and the CNI plugins from
// Debian's packages, and starts the node: one process in mount, network, PID,
// UTS and IPC namespaces of its own, which starts the rest and is process 1 to
// it. Down ends that process. With it the kernel ends every process of the
// cluster and drops every mount, interface and nftables rule, so that nothing
// stays behind but the cgroups, which Down removes, and the folder.
//
// It needs root, containerd, runc and iproute2, and no network but for the Go
// modules and Debian packages of the first build.
package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// version is the Kubernetes that go.mod names.
const version = "v1.34.2"

const (
	nodeIP    = "192.168.77.1"
	nodeName  = "node"
	podCIDR   = "10.244.0.0/24"
	bridge    = "cni0"
	cgroup    = "sealane-e2e" // parent of the pods' cgroups
	nodeArg   = "cluster-node"
	upTimeout = 4 * time.Minute
)

// Cluster is a cluster whose files are in a folder.
type Cluster struct {
	dir    string
	source string // folder of this module
	log    io.Writer
}

// New names a cluster, which need not run yet. source is this module's folder.
func New(dir, source string, log io.Writer) (*Cluster, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return &Cluster{dir: dir, source: source, log: log}, nil
}

func (c *Cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// Running gives the process id of the node.
func (c *Cluster) Running() (int, bool) {
	text, err := os.ReadFile(c.path("node.pid"))
	if err != nil {
		return 0, false
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		return 0, false
	}
	// The id may be another process's by now.
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return pid, err == nil && string(cmdline) == nodeArg+"\x00"+c.dir+"\x00"
}

// Up starts the cluster and returns once its node is ready.
func (c *Cluster) Up(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("the cluster needs root")
	}
	if pid, ok := c.Running(); ok {
		return fmt.Errorf("the cluster runs already, as process %d: take it down first", pid)
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"build the Kubernetes programs", c.build},
		{"unpack Debian's packages", c.unpack},
		{"write the configuration", c.configure},
		{"start the node", c.start},
		{"wait for the node", c.await},
		{"load the pause image", func(ctx context.Context) error {
			return c.LoadProgram(ctx, pauseImage, c.path("bin", "pause"))
		}},
	} {
		start := time.Now()
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Fprintf(c.log, "%-32s %6.1f s\n", step.name, time.Since(start).Seconds())
	}
	return nil
}

// build makes the programs of this module.
func (c *Cluster) build(ctx context.Context) error {
	stamp := "-s -w -X k8s.io/component-base/version.gitVersion=" + version +
		" -X k8s.io/client-go/pkg/version.gitVersion=" + version
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", stamp, "-o", c.path("bin")+"/", "./kube", "./coredns", "./pause")
	cmd.Dir = c.source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	return run(cmd)
}

// unpack takes programs out of Debian packages without installing them, since
// installing etcd-server would start a server.
func (c *Cluster) unpack(ctx context.Context) error {
	debs := c.path("debs")
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return err
	}
	get := exec.CommandContext(ctx, "apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", "etcd-server", "containernetworking-plugins")
	get.Dir = debs
	if err := run(get); err != nil {
		return fmt.Errorf("%w (is apt-get update needed?)", err)
	}
	packages, err := filepath.Glob(debs + "/*.deb")
	if err != nil {
		return err
	}
	for _, p := range packages {
		if err := run(exec.CommandContext(ctx, "dpkg", "-x", p, debs)); err != nil {
			return err
		}
	}
	return nil
}

// start runs this program again as the node, see Node.
func (c *Cluster) start(ctx context.Context) error {
	logFile, err := os.Create(c.path("node.log"))
	if err != nil {
		return err
	}
	defer logFile.Close()
	if err := makeCgroups(); err != nil {
		return err
	}
	cmd := &exec.Cmd{
		Path:   "/proc/self/exe",
		Args:   []string{nodeArg, c.dir},
		Stdout: logFile,
		Stderr: logFile,
		SysProcAttr: &syscall.SysProcAttr{
			Setsid: true,
			Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET |
				syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		},
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := os.WriteFile(c.path("node.pid"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
		return err
	}
	return cmd.Process.Release()
}

func (c *Cluster) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	checks := [][]string{
		{"get", "--raw", "/readyz"},
		{"wait", "--for=condition=Ready", "node/" + nodeName, "--timeout=1s"},
		{"get", "serviceaccount", "default"},
	}
	var last error
	for len(checks) > 0 {
		if _, up := c.Running(); !up {
			return fmt.Errorf("the node ended, see %s: %w", c.path("node.log"), last)
		}
		if _, last = c.Kubectl(ctx, "", checks[0]...); last == nil {
			checks = checks[1:]
			continue
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w, see the logs in %s", last, c.path("logs"))
		case <-time.After(200 * time.Millisecond):
		}
	}
	return nil
}

// Down ends the cluster and removes its files. It is no error if none runs.
func (c *Cluster) Down() error {
	if pid, ok := c.Running(); ok {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
		// The process is gone once the kernel has ended everything in its
		// PID namespace.
		deadline := time.Now().Add(30 * time.Second)
		for ok && time.Now().Before(deadline) {
			reap(pid)
			time.Sleep(50 * time.Millisecond)
			_, ok = c.Running()
		}
		if ok {
			return fmt.Errorf("process %d does not end", pid)
		}
	}
	return errors.Join(removeCgroups(), os.RemoveAll(c.dir))
}

// reap collects the node where it is a child of this process.
func reap(pid int) {
	var status syscall.WaitStatus
	_, _ = syscall.Wait4(pid, &status, syscall.WNOHANG, nil) // not a child: nothing to collect
}

// Enter gives a command that runs in the cluster's network, on this machine's files.
func (c *Cluster) Enter(ctx context.Context, name string, args ...string) *exec.Cmd {
	return c.enter(ctx, []string{"--net"}, name, args)
}

// EnterNode gives a command that runs on the node: in its network, with its
// files and its processes.
func (c *Cluster) EnterNode(ctx context.Context, name string, args ...string) *exec.Cmd {
	return c.enter(ctx, []string{"--net", "--mount", "--pid", "--uts"}, name, args)
}

func (c *Cluster) enter(ctx context.Context, namespaces []string, name string, args []string) *exec.Cmd {
	pid, _ := c.Running()
	full := append([]string{"--target", strconv.Itoa(pid)}, namespaces...)
	full = append(append(full, "--", name), args...)
	return exec.CommandContext(ctx, "nsenter", full...)
}

// KubectlCommand gives a kubectl command as the cluster's administrator.
func (c *Cluster) KubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	return c.Enter(ctx, c.path("bin", "kube"), append([]string{"kubectl", "--kubeconfig", c.path("admin.kubeconfig")}, args...)...)
}

// Kubectl runs kubectl and gives its output.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := c.KubectlCommand(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String() + errs.String(), nil
}

// LoadImage imports an image archive into the node's containerd.
func (c *Cluster) LoadImage(ctx context.Context, archive string) error {
	return run(c.EnterNode(ctx, "ctr", "--address", containerdSocket, "--namespace", "k8s.io", "images", "import", archive))
}

// NetNS is the file of the cluster's network namespace.
func (c *Cluster) NetNS() string {
	pid, _ := c.Running()
	return fmt.Sprintf("/proc/%d/ns/net", pid)
}

// Tag gives an image of the node another name.
func (c *Cluster) Tag(ctx context.Context, image, as string) error {
	return run(c.EnterNode(ctx, "ctr", "--address", containerdSocket, "--namespace", "k8s.io", "images", "tag", "--force", image, as))
}

// Kill ends a container's first process with a signal that it cannot handle.
func (c *Cluster) Kill(ctx context.Context, containerID string) error {
	id := strings.TrimPrefix(containerID, "containerd://")
	return run(c.EnterNode(ctx, "ctr", "--address", containerdSocket, "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", id))
}

// Dir is the folder of the cluster's files.
func (c *Cluster) Dir() string { return c.dir }

// run runs a command that says nothing unless it fails.
func run(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, bytes.TrimSpace(out))
	}
	return nil
}

// cgroupRoots gives where the parent of the pods' cgroups is, or is to be, in
// each hierarchy.
func cgroupRoots() ([]string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var roots []string
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup" || f[2] == "cgroup2" {
			roots = append(roots, filepath.Join(f[1], cgroup))
		}
	}
	return roots, nil
}

func makeCgroups() error {
	roots, err := cgroupRoots()
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := os.MkdirAll(root, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroups removes the pods' cgroups, the innermost first.
func removeCgroups() error {
	roots, err := cgroupRoots()
	if err != nil {
		return err
	}
	for _, root := range roots {
		var dirs []string
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := removeCgroup(dirs[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeCgroup tries for a while, because a cgroup is busy for a moment after
// its last process ended.
func removeCgroup(dir string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := syscall.Rmdir(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
