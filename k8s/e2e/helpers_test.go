//go:build linux

package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealane/sealane/k8s/e2e/cluster"
)

var (
	keep   = flag.Bool("keep", false, "use the cluster that is up, and leave it up")
	images = flag.Bool("images", true, "build the images and load them; without, those that -keep kept are used")
)

// c is the cluster of all tests; bin has the sealane command.
var (
	c   *cluster.Cluster
	bin string
)

func TestMain(m *testing.M) {
	cluster.Node()
	flag.Parse()
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	ctx := context.Background()
	if c, err = theCluster(); err != nil {
		return 1, err
	}
	bin = filepath.Join(c.Dir(), "bin", "sealane")
	if _, up := c.Running(); !up || !*keep {
		before := folders()
		if err := c.Up(ctx); err != nil {
			return 1, err
		}
		if !*keep {
			defer func() {
				if e := c.Down(); e != nil {
					code, err = 1, e
				}
				left := leftovers()
				for _, folder := range folders() {
					if !slices.Contains(before, folder) {
						left = append(left, folder)
					}
				}
				if len(left) > 0 {
					code, err = 1, fmt.Errorf("the cluster left behind:\n%s", strings.Join(left, "\n"))
				}
			}()
		}
	}
	if *images {
		start := time.Now()
		if err := loadImages(ctx); err != nil {
			return 1, err
		}
		fmt.Printf("%-32s %6.1f s\n", "build and load the images", time.Since(start).Seconds())
	}
	return m.Run(), nil
}

// folders are those that there are of the ones that a node of Kubernetes has.
func folders() []string {
	return slices.DeleteFunc([]string{
		"/etc/cni", "/etc/kubernetes", "/opt/cni", "/opt/containerd", "/usr/libexec/kubernetes",
		"/var/lib/cni", "/var/lib/containerd", "/var/lib/kubelet", "/var/log/pods", "/var/log/containers",
	}, func(folder string) bool {
		_, err := os.Stat(folder)
		return err != nil
	})
}

// leftovers is what a cluster could leave on the machine.
func leftovers() []string {
	var found []string
	lines := func(what, text string, words ...string) {
		for line := range strings.Lines(text) {
			if slices.ContainsFunc(words, func(w string) bool { return strings.Contains(line, w) }) {
				found = append(found, what+": "+strings.TrimSpace(line))
			}
		}
	}
	for _, args := range [][]string{{"ip", "-o", "link"}, {"nft", "list", "tables"}} {
		out, err := output(exec.Command(args[0], args[1:]...))
		if err != nil {
			found = append(found, err.Error())
		}
		lines(args[0], out, "cni0", "node0", "kube-proxy")
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		found = append(found, err.Error())
	}
	lines("mount", string(mounts), c.Dir())
	for _, pattern := range []string{"/sys/fs/cgroup/sealane-e2e", "/sys/fs/cgroup/*/sealane-e2e", c.Dir()} {
		paths, _ := filepath.Glob(pattern)
		found = append(found, paths...)
	}
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range commands {
		if text, err := os.ReadFile(name); err == nil && strings.Contains(string(text), c.Dir()) { // else it has ended
			found = append(found, fmt.Sprintf("%s: %q", name, text))
		}
	}
	return found
}

// loadImages builds the images from the Dockerfile, and those of the apps, and
// gives them to the node.
func loadImages(ctx context.Context) error {
	out, err := output(exec.CommandContext(ctx, "../images/build"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		image, built := strings.CutPrefix(strings.TrimSpace(line), "built ")
		if !built {
			continue
		}
		if err := loadFromDocker(ctx, image); err != nil {
			return err
		}
		name, _, _ := strings.Cut(image, ":")
		if err := c.Tag(ctx, "docker.io/library/"+image, "docker.io/library/"+name+":dev"); err != nil {
			return err
		}
	}
	const files, image = "sealane-e2e-postgres-files", "postgres:15"
	if _, err := output(exec.CommandContext(ctx, "../images/from-packages", files, "postgresql-15", "postgresql-client-15", "dash", "coreutils")); err != nil {
		return err
	}
	defer exec.Command("docker", "rmi", files, image).Run() // an image in use stays
	if _, err := output(exec.CommandContext(ctx, "docker", "build", "--quiet", "--build-arg", "FILES="+files, "--tag", image, "postgres")); err != nil {
		return err
	}
	if err := loadFromDocker(ctx, image); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(c.Dir(), "bin")+"/", "./app")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if _, err := output(build); err != nil {
		return err
	}
	if err := c.LoadProgram(ctx, "sealane.test/app:e2e", filepath.Join(c.Dir(), "bin", "app")); err != nil {
		return err
	}
	build = exec.CommandContext(ctx, "go", "build", "-o", bin, "./cmd/sealane")
	build.Dir = "../.."
	_, err = output(build)
	return err
}

func loadFromDocker(ctx context.Context, image string) error {
	archive := filepath.Join(c.Dir(), "image.tar")
	defer os.Remove(archive)
	if _, err := output(exec.CommandContext(ctx, "docker", "save", "--output", archive, image)); err != nil {
		return err
	}
	return c.LoadImage(ctx, archive)
}

func output(cmd *exec.Cmd) (string, error) {
	out, err := cmd.Output()
	if err != nil {
		stderr := ""
		if exit, ok := err.(*exec.ExitError); ok {
			stderr = string(exit.Stderr)
		}
		return "", fmt.Errorf("%s: %w: %s%s", strings.Join(cmd.Args, " "), err, out, stderr)
	}
	return string(out), nil
}

// kubectl runs kubectl, which must succeed.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), "", args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// apply applies manifests as strictly as the API server can.
func apply(t *testing.T, manifest string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), manifest, "apply", "--validate=strict", "-f", "-")
	if err != nil {
		t.Fatalf("%v\n%s", err, manifest)
	}
	return out
}

// applyFolder applies a kustomization of this repository.
func applyFolder(t *testing.T, dir string) {
	t.Helper()
	kubectl(t, "apply", "--validate=strict", "-k", "../"+dir)
}

// namespace makes one that ends with the test.
func namespace(t *testing.T, name string, labels ...string) {
	t.Helper()
	kubectl(t, "create", "namespace", name)
	t.Cleanup(func() { removeNamespace(t, name) })
	for _, label := range labels {
		kubectl(t, "label", "namespace", name, label)
	}
	waitFor(t, time.Minute, "the namespace's service account", func() bool {
		_, err := c.Kubectl(t.Context(), "", "get", "serviceaccount", "default", "-n", name)
		return err == nil
	})
}

// removeNamespace shows the pods of a failed test before it removes them.
func removeNamespace(t *testing.T, name string) {
	ctx := context.Background()
	if t.Failed() {
		out, _ := c.Kubectl(ctx, "", "get", "pods,events", "-o", "wide", "-n", name)
		t.Log(out)
		for _, pod := range podNames(ctx, name, "") {
			out, _ := c.Kubectl(ctx, "", "logs", pod, "--all-containers", "--prefix", "--tail=25", "-n", name)
			t.Log(out)
		}
	}
	if *keep && t.Failed() {
		return
	}
	if out, err := c.Kubectl(ctx, "", "delete", "namespace", name, "--wait", "--timeout=2m"); err != nil {
		t.Errorf("%v %s", err, out)
	}
}

// waitFor polls a condition that something outside of the test brings about.
func waitFor(t *testing.T, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", limit, what)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// pod is a Pod as far as the tests look at it.
type pod struct {
	Metadata struct {
		Name              string
		DeletionTimestamp string
	}
	Spec   map[string]any
	Status struct {
		Phase                 string
		PodIP                 string
		InitContainerStatuses []containerStatus
		ContainerStatuses     []containerStatus
	}
}

type containerStatus struct {
	Name         string
	ContainerID  string
	Ready        bool
	Started      bool
	RestartCount int
	State        struct {
		Waiting *struct{ Reason string }
		Running *struct{ StartedAt time.Time }

		Terminated *struct{ StartedAt, FinishedAt time.Time }
	}
}

func (p pod) container(name string) containerStatus {
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if s.Name == name {
			return s
		}
	}
	return containerStatus{}
}

// pods gives those of a namespace that a selector selects and that are not
// being deleted, the oldest first.
func pods(t *testing.T, namespace, selector string) []pod {
	t.Helper()
	var list struct{ Items []pod }
	text := kubectl(t, "get", "pods", "-n", namespace, "-l", selector, "-o", "json", "--sort-by=.metadata.creationTimestamp")
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(list.Items, func(p pod) bool { return p.Metadata.DeletionTimestamp != "" })
}

// onePod gives the only pod that a selector selects.
func onePod(t *testing.T, namespace, selector string) pod {
	t.Helper()
	list := pods(t, namespace, selector)
	if len(list) != 1 {
		t.Fatalf("%d pods are %s in %s, want 1", len(list), selector, namespace)
	}
	return list[0]
}

func (p pod) address(t *testing.T) netip.Addr {
	t.Helper()
	a, err := netip.ParseAddr(p.Status.PodIP)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func podNames(ctx context.Context, namespace, selector string) []string {
	out, _ := c.Kubectl(ctx, "", "get", "pods", "-n", namespace, "-l", selector, "-o", "jsonpath={.items[*].metadata.name}")
	return strings.Fields(out)
}

// rollout waits for a workload to be what its manifest says.
func rollout(t *testing.T, namespace, workload string) {
	t.Helper()
	kubectl(t, "rollout", "status", workload, "-n", namespace, "--timeout=3m")
}

// nodeKeys makes a key for each node and a Secret for each with what its peers
// need to know.
func nodeKeys(t *testing.T, namespace string, peers map[string][]string) {
	t.Helper()
	dir := t.TempDir()
	for node := range peers {
		key := filepath.Join(dir, node+".key")
		public, err := output(exec.CommandContext(t.Context(), bin, "keygen", "-o", key))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, node+".pub"), []byte(public), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for node, known := range peers {
		args := []string{"create", "secret", "generic", node + "-key", "-n", namespace, "--from-file=node.key=" + filepath.Join(dir, node+".key")}
		for _, peer := range known {
			args = append(args, "--from-file="+filepath.Join(dir, peer+".pub"))
		}
		kubectl(t, args...)
	}
}
