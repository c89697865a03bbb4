package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// withEtc makes a command that runs sealane where etc is /etc.
func withEtc(t *testing.T, etc string, args ...string) *exec.Cmd {
	t.Helper()
	shell := `mount --make-rprivate / && mount --bind "$0" /etc && exec sealane "$@"`
	return inMountNamespace(t, exec.Command("sh", append([]string{"-c", shell, etc}, args...)...))
}

// inMountNamespace lets a command see mounts of its own, as root there.
func inMountNamespace(t *testing.T, command *exec.Cmd) *exec.Cmd {
	t.Helper()
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		command.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		command.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		command.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	probe := exec.Command("mount", "--make-rprivate", "/")
	probe.SysProcAttr = command.SysProcAttr
	if err := probe.Run(); err != nil {
		why := "needs a mount namespace, for which this user lacks the permission: " + err.Error()
		if os.Getenv("CI") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	return command
}

// namesItself tells each connection the address that it came to.
func namesItself(t *testing.T, address string) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, l.Addr())
			c.Close()
		}
	}()
	return l.Addr().String()
}

// TestReplacedHosts: in a sandbox, too, lookups go by the /etc/hosts that took
// the place of the one at the start.
func TestReplacedHosts(t *testing.T) {
	t.Parallel()
	first := namesItself(t, "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(first)
	second := namesItself(t, "127.0.0.2:"+port)
	etc := t.TempDir()
	write(t, filepath.Join(etc, "hosts"), "127.0.0.1 app.test\n", 0o644)
	write(t, filepath.Join(etc, "nsswitch.conf"), "hosts: files\n", 0o644)
	write(t, filepath.Join(etc, "resolv.conf"), "nameserver 127.0.0.1\n", 0o644)

	nearKey, farKey := newKey(t), newKey(t)
	dir := folder(t, farKey, `
listen: 127.0.0.1:0
peers: [{name: near, keys: [%q]}]
services: [{name: app, address: "app.test:%s", allow: [near]}]
`, nearKey.Public(), port)
	far := startCommand(t, dir, withEtc(t, etc, "run", "-c", filepath.Join(dir, "sealane.yaml")))
	near := startSidecar(t, folder(t, nearKey, `
peers: [{name: far, keys: [%q], address: %q}]
listeners: [{forward: "127.0.0.1:0", to: {peer: far, service: app}}]
`, farKey.Public(), far.waitFor("started", 1)["listen"]))
	reached := func() string {
		c := dial(t, near.forward())
		c.SetDeadline(time.Now().Add(time.Minute))
		text, err := io.ReadAll(c)
		if err != nil {
			return err.Error()
		}
		return string(text)
	}
	eventually(t, func() string {
		if got := reached(); got != first {
			return fmt.Sprintf("reached %s, want %s:\n%s", got, first, far.text())
		}
		return ""
	})
	write(t, filepath.Join(etc, "hosts"), "127.0.0.2 app.test\n", 0o644) // by a rename
	eventually(t, func() string {                                        // a lookup may use what it read up to 5 s ago
		if got := reached(); got != second {
			return fmt.Sprintf("reached %s, want %s:\n%s", got, second, far.text())
		}
		return ""
	})
}

// TestReplacedFiles: every file that a config names is read anew by a reload
// in the sandbox after it was replaced, by a rename or as Kubernetes updates a
// volume.
func TestReplacedFiles(t *testing.T) {
	dir, peer := t.TempDir(), newKey(t)
	generation := func(name string) {
		t.Helper()
		sub := filepath.Join(dir, ".."+name)
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(sub, "node.key"), string(newKey(t).PEM()), 0o600)
		write(t, filepath.Join(sub, "peer.pub"), peer.Public().String()+"\n", 0o644)
		write(t, filepath.Join(sub, "password"), "password "+name+"\n", 0o600)
		write(t, filepath.Join(sub, "sealane.yaml"), `# `+name+`
identity: node.key
peers: [{name: far, key_files: [peer.pub]}]
listeners: [{socks5: "127.0.0.1:0", users: [{name: app, password_file: password}]}]
`, 0o644)
		if err := errors.Join(os.Symlink(".."+name, filepath.Join(dir, "next")),
			os.Rename(filepath.Join(dir, "next"), filepath.Join(dir, "..data"))); err != nil {
			t.Fatal(err)
		}
	}
	files := []string{"sealane.yaml", "node.key", "peer.pub", "password"}
	generation("1")
	for _, name := range files {
		if err := os.Symlink("..data/"+name, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	s := startSidecar(t, dir)
	revision, reloads := s.waitFor("started", 1)["revision"], 0
	changes := func(what string) {
		t.Helper()
		s.signal(syscall.SIGHUP)
		reloads++
		if next := s.waitFor("config reloaded", reloads)["revision"]; next == revision {
			t.Errorf("%s: the revision is still %v", what, next)
		} else {
			revision = next
		}
	}
	for _, name := range []string{"2", "3"} {
		generation(name)
		if err := os.RemoveAll(filepath.Join(dir, "..1")); err != nil {
			t.Fatal(err)
		}
		changes("a volume's update")
	}
	for _, name := range files {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		changed := string(text) + "\n"
		if name == "password" {
			changed = strings.Replace(string(text), "password", "another", 1)
		}
		write(t, filepath.Join(dir, name), changed, 0o600)
		changes(name)
	}
}

// TestReplacedFolder: a folder that took the place of the config's own is
// another one to the sandbox, which the refusal says: the permissions are fine.
func TestReplacedFolder(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "etc")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "node.key"), string(newKey(t).PEM()), 0o600)
	write(t, filepath.Join(dir, "sealane.yaml"), "identity: node.key\n", 0o600)
	s := startSidecar(t, dir)
	if strings.Contains(s.text(), "files and ports are not restricted") {
		t.Skip("this kernel has no Landlock")
	}
	if err := errors.Join(os.Rename(dir, dir+".old"), os.CopyFS(dir, os.DirFS(dir+".old"))); err != nil {
		t.Fatal(err)
	}
	s.signal(syscall.SIGHUP)
	line := s.waitFor("reload refused; the old config stays in force", 1)
	for _, want := range []string{"permission denied", "the sandbox was set when sealane started", "restart sealane to let it read " + filepath.Join(dir, "sealane.yaml")} {
		if !strings.Contains(fmt.Sprint(line), want) {
			t.Errorf("the refusal does not say %q: %v\n%s", want, line, s.text())
		}
	}
}
