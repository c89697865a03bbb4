package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// A sandbox cannot be left, so the tests run this binary again as the process
// that enters one and then does what it is told.
const asPrisoner = "SANDBOX_TEST_PRISONER"

// privateEtc names a folder that the prisoner sees as /etc.
const privateEtc = "SANDBOX_TEST_ETC"

func TestMain(m *testing.M) {
	if os.Getenv(asPrisoner) != "" {
		if err := prisoner(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// An order is one thing for the prisoner to do; a reply says how it went.
type order struct {
	Do    string // harden, enter, covers, describe, or a deed
	Path  string
	Port  int
	Needs Needs
}

type reply struct {
	Error string
	Text  string
}

func prisoner(in io.Reader, out io.Writer) error {
	if etc := os.Getenv(privateEtc); etc != "" {
		if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount(etc, "/etc", "", unix.MS_BIND, "")); err != nil {
			return err
		}
	}
	var s *Sandbox
	decoder, encoder := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var o order
		if err := decoder.Decode(&o); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		var r reply
		var err error
		switch o.Do {
		case "harden":
			err = Harden()
		case "enter":
			s, err = Enter(o.Needs)
		case "covers":
			err = s.Covers(o.Needs)
		case "awaits":
			r.Text = strings.Join(s.Awaits(o.Needs.Room), " and ")
		case "describe":
			r.Text = s.String()
		default:
			r.Text, err = onThreads(8, func() (string, error) { return deed(o) })
		}
		if err != nil {
			r.Error = err.Error()
		}
		if err := encoder.Encode(r); err != nil {
			return err
		}
	}
}

// onThreads runs f on so many threads at the same time; all must agree.
func onThreads(n int, f func() (string, error)) (string, error) {
	type outcome struct {
		text string
		err  error
	}
	start, results := make(chan struct{}), make(chan outcome)
	for range n {
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			<-start
			text, err := f()
			results <- outcome{text, err}
		}()
	}
	close(start)
	first := <-results
	for range n - 1 {
		if r := <-results; fmt.Sprint(r.err) != fmt.Sprint(first.err) {
			return "", fmt.Errorf("the threads disagree: %v, %v", first.err, r.err)
		}
	}
	return first.text, first.err
}

func deed(o order) (string, error) {
	switch o.Do {
	case "read":
		b, err := os.ReadFile(o.Path)
		return string(b), err
	case "list":
		_, err := os.ReadDir(o.Path)
		return "", err
	case "write":
		return "", os.WriteFile(o.Path, nil, 0o600)
	case "run":
		return "", exec.Command(o.Path).Run()
	case "connect":
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", o.Port))
		if err != nil {
			return "", err
		}
		return "", c.Close()
	case "listen":
		// Each thread has an address of its own; the port is what counts.
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(context.Background(), "tcp", fmt.Sprintf("127.%d.0.1:%d", syscall.Gettid()%250+1, o.Port))
		if err != nil {
			return "", err
		}
		return "", l.Close()
	case "socket":
		l, err := net.Listen("unix", fmt.Sprintf("%s.%d", o.Path, syscall.Gettid()))
		if err != nil {
			return "", err
		}
		return "", l.Close()
	case "kill":
		return "", syscall.Kill(o.Port, 0)
	case "dumpable":
		v, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		return fmt.Sprint(v), err
	case "core":
		var v unix.Rlimit
		err := unix.Getrlimit(unix.RLIMIT_CORE, &v)
		return fmt.Sprint(v), err
	case "privileges":
		v, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
		return fmt.Sprint(v), err
	}
	return "", fmt.Errorf("%s is no deed", o.Do)
}

// A cell is a running prisoner.
type cell struct {
	t       *testing.T
	encoder *json.Encoder
	decoder *json.Decoder
}

func newCell(t *testing.T) *cell {
	t.Helper()
	return startCell(t, prisonerCommand(t))
}

// newCellWithEtc starts a prisoner in namespaces where etc is /etc.
func newCellWithEtc(t *testing.T, etc string) *cell {
	t.Helper()
	cmd := prisonerCommand(t)
	cmd.Env = append(cmd.Env, privateEtc+"="+etc)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	probe := exec.Command("/bin/true")
	probe.SysProcAttr = cmd.SysProcAttr
	if err := probe.Run(); err != nil {
		skip(t, "needs a mount namespace, for which this user lacks the permission: "+err.Error())
	}
	return startCell(t, cmd)
}

func prisonerCommand(t *testing.T) *exec.Cmd {
	t.Helper()
	needLandlock(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), asPrisoner+"=1")
	cmd.Stderr = os.Stderr
	return cmd
}

func startCell(t *testing.T, cmd *exec.Cmd) *cell {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the sandboxed process: %v", err)
		}
	})
	return &cell{t, json.NewEncoder(in), json.NewDecoder(bufio.NewReader(out))}
}

// needLandlock skips where the kernel lacks what the tests are about, but not
// where they are counted on.
func needLandlock(t *testing.T) {
	t.Helper()
	abi, err := ll.LandlockGetABIVersion()
	if err == nil && abi >= 4 {
		return
	}
	skip(t, fmt.Sprintf("needs Landlock ABI 4 or newer (Linux 6.7); this kernel has ABI %d, %v", abi, err))
}

func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func (c *cell) order(o order) reply {
	c.t.Helper()
	if err := c.encoder.Encode(o); err != nil {
		c.t.Fatal(err)
	}
	var r reply
	if err := c.decoder.Decode(&r); err != nil {
		c.t.Fatal(err)
	}
	return r
}

// may says that the prisoner can do something; text is what came of it.
func (c *cell) may(o order) (text string) {
	c.t.Helper()
	r := c.order(o)
	if r.Error != "" {
		c.t.Errorf("%s %s%d: %s", o.Do, o.Path, o.Port, r.Error)
	}
	return r.Text
}

// mayNot says that the kernel keeps the prisoner from it.
func (c *cell) mayNot(o order) {
	c.t.Helper()
	if r := c.order(o); !strings.Contains(r.Error, "permission denied") && !strings.Contains(r.Error, "operation not permitted") {
		c.t.Errorf("%s %s%d ended with error %q, want a denial", o.Do, o.Path, o.Port, r.Error)
	}
}

// target is a TCP server that accepts, and its port.
func target(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().(*net.TCPAddr).Port
}

// freePort is one that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func port(p int, what string) Ports { return Ports{uint16(p), uint16(p), what} }

func TestFilesAreRestricted(t *testing.T) {
	dir := t.TempDir()
	file, outside := filepath.Join(dir, "conf", "sealane.yaml"), filepath.Join(dir, "other", "secret")
	write(t, file, "config")
	write(t, outside, "secret")
	c := newCell(t)
	c.may(order{Do: "read", Path: outside}) // so that the denial below means something
	c.may(order{Do: "enter", Needs: Needs{Read: []string{file}}})

	if got := c.may(order{Do: "read", Path: file}); got != "config" {
		t.Errorf("read %q", got)
	}
	c.may(order{Do: "read", Path: "/etc/hosts"})
	c.may(order{Do: "read", Path: "/proc/self/stat"})
	c.may(order{Do: "read", Path: "/proc/stat"})
	c.mayNot(order{Do: "read", Path: outside})
	c.mayNot(order{Do: "list", Path: "/etc"})
	c.mayNot(order{Do: "list", Path: filepath.Dir(file)})
	c.mayNot(order{Do: "write", Path: "/etc/hosts"})
	c.mayNot(order{Do: "read", Path: fmt.Sprintf("/proc/%d/environ", os.Getpid())})
	c.mayNot(order{Do: "write", Path: file})
	c.mayNot(order{Do: "write", Path: filepath.Join(dir, "conf", "new")})
	c.mayNot(order{Do: "run", Path: "/bin/true"})
	c.mayNot(order{Do: "socket", Path: filepath.Join(dir, "conf", "sock")})
	c.mayNot(order{Do: "kill", Port: os.Getpid()})
}

func TestPortsAreRestricted(t *testing.T) {
	listed, unlisted := target(t), target(t)
	ours, theirs := freePort(t), freePort(t)
	c := newCell(t)
	c.may(order{Do: "connect", Port: unlisted})
	c.may(order{Do: "enter", Needs: Needs{Connect: []Ports{port(listed, "service a")}, Bind: []Ports{port(ours, "listen")}}})

	c.may(order{Do: "connect", Port: listed})
	c.mayNot(order{Do: "connect", Port: unlisted})
	c.may(order{Do: "listen", Port: ours})
	c.mayNot(order{Do: "listen", Port: theirs})
	c.mayNot(order{Do: "listen", Port: 0})
	text := c.may(order{Do: "describe"})
	for _, want := range []string{"Landlock ABI ", fmt.Sprintf("listens on TCP ports %d;", ours), fmt.Sprintf("connects to TCP ports %d", listed)} {
		if !strings.Contains(text, want) {
			t.Errorf("the description lacks %q: %s", want, text)
		}
	}
}

func TestAnyPort(t *testing.T) {
	c := newCell(t)
	c.may(order{Do: "enter", Needs: Needs{Connect: []Ports{{1, 65535, `egress "*:*"`}}}})
	c.may(order{Do: "connect", Port: target(t)})
	c.mayNot(order{Do: "listen", Port: freePort(t)})
	if text := c.may(order{Do: "describe"}); !strings.Contains(text, `connects to any TCP port: egress "*:*" needs it`) {
		t.Errorf("the description does not say why ports are open: %s", text)
	}
}

func TestSocketFolder(t *testing.T) {
	dir, conf := t.TempDir(), filepath.Join(t.TempDir(), "sealane.yaml")
	write(t, conf, "")
	c := newCell(t)
	c.may(order{Do: "enter", Needs: Needs{Read: []string{conf}, Sockets: []string{dir}}})
	c.may(order{Do: "socket", Path: filepath.Join(dir, "sock")})
	c.mayNot(order{Do: "write", Path: filepath.Join(dir, "file")})
}

// A new file in the place of the old one, or a symbolic link to a new folder
// as in a Kubernetes volume, is what a reload finds.
func TestReplacedFiles(t *testing.T) {
	dir := t.TempDir()
	plain, mounted := filepath.Join(dir, "etc", "node.key"), filepath.Join(dir, "volume", "sealane.yaml")
	write(t, plain, "old")
	write(t, filepath.Join(dir, "volume", "..1", "sealane.yaml"), "old")
	data := filepath.Join(dir, "volume", "..data")
	for link, to := range map[string]string{data: "..1", mounted: "..data/sealane.yaml"} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	c := newCell(t)
	needs := Needs{Read: []string{plain, mounted}}
	c.may(order{Do: "enter", Needs: needs})

	write(t, plain+".new", "new")
	write(t, filepath.Join(dir, "volume", "..2", "sealane.yaml"), "new")
	if err := os.Rename(plain+".new", plain); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..2", data+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(data+".new", data); err != nil {
		t.Fatal(err)
	}
	for _, path := range needs.Read {
		if got := c.may(order{Do: "read", Path: path}); got != "new" {
			t.Errorf("%s reads %q after it was replaced", path, got)
		}
	}
	c.may(order{Do: "covers", Needs: needs})
}

// A link further up the path may be the one that is swapped.
func TestReplacedLink(t *testing.T) {
	dir, releases := t.TempDir(), t.TempDir()
	file := filepath.Join(dir, "node.key")
	write(t, filepath.Join(releases, "1", "conf", "node.key"), "old")
	write(t, filepath.Join(releases, "2", "conf", "node.key"), "new")
	if err := errors.Join(os.Symlink("1", filepath.Join(releases, "current")),
		os.Symlink(filepath.Join(releases, "current", "conf", "node.key"), file)); err != nil {
		t.Fatal(err)
	}
	c := newCell(t)
	c.may(order{Do: "enter", Needs: Needs{Read: []string{file}}})
	if err := errors.Join(os.Symlink("2", filepath.Join(releases, "next")),
		os.Rename(filepath.Join(releases, "next"), filepath.Join(releases, "current"))); err != nil {
		t.Fatal(err)
	}
	if got := c.may(order{Do: "read", Path: file}); got != "new" {
		t.Errorf("reads %q after the link was swapped", got)
	}
}

// What sed -i, Ansible and resolvconf do to the files that lookups read: a new
// file comes in the place of the old one, in /etc or where a link in it leads,
// or a link in the place of a file.
func TestReplacedSystemFiles(t *testing.T) {
	etc, resolver := t.TempDir(), filepath.Join(t.TempDir(), "resolver")
	conf := filepath.Join(t.TempDir(), "sealane.yaml")
	for _, name := range []string{"hosts", "nsswitch.conf", "passwd", "group"} {
		write(t, filepath.Join(etc, name), "old")
	}
	write(t, filepath.Join(resolver, "resolv.conf"), "old")
	write(t, filepath.Join(resolver, "stub.conf"), "stub")
	write(t, conf, "")
	if err := os.Symlink(filepath.Join(resolver, "resolv.conf"), filepath.Join(etc, "resolv.conf")); err != nil {
		t.Fatal(err)
	}
	c := newCellWithEtc(t, etc)
	c.may(order{Do: "enter", Needs: Needs{Read: []string{conf}}})
	for _, name := range []string{"hosts", "nsswitch.conf", "passwd", "group"} {
		write(t, filepath.Join(etc, "sedXYZ"), "new")
		if err := os.Rename(filepath.Join(etc, "sedXYZ"), filepath.Join(etc, name)); err != nil {
			t.Fatal(err)
		}
		if got := c.may(order{Do: "read", Path: "/etc/" + name}); got != "new" {
			t.Errorf("/etc/%s reads %q after it was replaced", name, got)
		}
	}
	write(t, filepath.Join(resolver, "new"), "new")
	if err := os.Rename(filepath.Join(resolver, "new"), filepath.Join(resolver, "resolv.conf")); err != nil {
		t.Fatal(err)
	}
	if got := c.may(order{Do: "read", Path: "/etc/resolv.conf"}); got != "new" {
		t.Errorf("/etc/resolv.conf reads %q after what it leads to was replaced", got)
	}
	if err := errors.Join(os.Symlink(filepath.Join(resolver, "stub.conf"), filepath.Join(etc, "new")),
		os.Rename(filepath.Join(etc, "new"), filepath.Join(etc, "resolv.conf"))); err != nil {
		t.Fatal(err)
	}
	if got := c.may(order{Do: "read", Path: "/etc/resolv.conf"}); got != "stub" {
		t.Errorf("/etc/resolv.conf reads %q after it was led elsewhere", got)
	}
	c.mayNot(order{Do: "write", Path: "/etc/hosts"})
	c.mayNot(order{Do: "list", Path: "/etc"})
}

// In a folder of many programs the file alone is granted. One that takes its
// place is another, and Covers knows.
func TestSharedFolder(t *testing.T) {
	f, err := os.CreateTemp("", "sandbox-test-*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	defer os.Remove(f.Name())
	if !shared(filepath.Dir(f.Name())) {
		t.Skipf("%s is not one of the shared folders", filepath.Dir(f.Name()))
	}
	beside := f.Name() + ".beside"
	write(t, beside, "")
	defer os.Remove(beside)
	c := newCell(t)
	needs := Needs{Read: []string{f.Name()}}
	c.may(order{Do: "enter", Needs: needs})
	c.may(order{Do: "read", Path: f.Name()})
	c.may(order{Do: "covers", Needs: needs})
	c.mayNot(order{Do: "read", Path: beside})
	if err := os.Rename(beside, f.Name()); err != nil {
		t.Fatal(err)
	}
	c.mayNot(order{Do: "read", Path: f.Name()})
	if r := c.order(order{Do: "covers", Needs: needs}); !strings.Contains(r.Error, "read "+f.Name()) {
		t.Errorf("covers says %q of a file that was replaced", r.Error)
	}
}

func TestCovers(t *testing.T) {
	dir := t.TempDir()
	conf, key := filepath.Join(dir, "etc", "sealane.yaml"), filepath.Join(dir, "elsewhere", "node.key")
	write(t, conf, "")
	write(t, key, "")
	write(t, filepath.Join(dir, "etc", "next.key"), "")
	c := newCell(t)
	c.may(order{Do: "enter", Needs: Needs{
		Read: []string{conf}, Sockets: []string{dir},
		Bind: []Ports{port(7423, "listen")}, Connect: []Ports{port(53, "DNS"), {8000, 8010, "egress"}},
	}})
	rooms := map[string]string{
		"read " + key:                                               "sandbox.paths",
		"listen on TCP port 7424 (admin)":                           "sandbox.ports",
		"connect to TCP port 8009-8011 (egress x)":                  "sandbox.ports",
		"make a unix socket in /":                                   "sandbox.paths",
		"read " + key + ", connect to TCP port 5432 (service post)": "sandbox.ports and sandbox.paths",
	}
	for what, n := range map[string]Needs{
		"": {
			Read: []string{conf, filepath.Join(dir, "etc", "next.key"), filepath.Join(dir, "none")}, Sockets: []string{filepath.Join(dir, "etc")},
			Bind: []Ports{port(7423, "listen")}, Connect: []Ports{{8001, 8004, "egress"}},
		},
		"read " + key:                                               {Read: []string{conf, key}},
		"listen on TCP port 7424 (admin)":                           {Bind: []Ports{port(7423, "listen"), port(7424, "admin")}},
		"connect to TCP port 8009-8011 (egress x)":                  {Connect: []Ports{{8009, 8011, "egress x"}}},
		"make a unix socket in /":                                   {Sockets: []string{"/"}},
		"connect to a unix socket without a path (service y)":       {Abstract: "service y"},
		"read " + key + ", connect to TCP port 5432 (service post)": {Read: []string{key}, Connect: []Ports{port(5432, "service post")}},
	} {
		r := c.order(order{Do: "covers", Needs: n})
		want := ""
		if what != "" {
			want = "the sandbox was set when sealane started and cannot be widened; restart sealane to let it " + what
			if keys := rooms[what]; keys != "" {
				want += "; for a reload to have room for it, add it to " + keys + " and restart once"
			}
		}
		if r.Error != want {
			t.Errorf("covers says %q, want %q", r.Error, want)
		}
	}
}

// TestRoom: what was granted in advance can be used, and is asked for once.
func TestRoom(t *testing.T) {
	dir := t.TempDir()
	conf, room, other := filepath.Join(dir, "conf", "sealane.yaml"), filepath.Join(dir, "room"), filepath.Join(dir, "other")
	write(t, conf, "")
	write(t, filepath.Join(room, "sub", "next.key"), "next")
	write(t, filepath.Join(other, "file"), "one file")
	write(t, filepath.Join(other, "beside"), "")
	first, second := target(t), freePort(t)
	grant := Room{Ports: []Ports{port(first, "sandbox.ports"), port(second, "sandbox.ports")}, Paths: []string{room, filepath.Join(other, "file")}}
	c := newCell(t)
	c.may(order{Do: "enter", Needs: Needs{Read: []string{conf}, Room: grant}})
	c.may(order{Do: "connect", Port: first})
	c.may(order{Do: "listen", Port: second})
	c.may(order{Do: "read", Path: filepath.Join(room, "sub", "next.key")})
	c.may(order{Do: "socket", Path: filepath.Join(room, "sock")})
	c.may(order{Do: "read", Path: filepath.Join(other, "file")})
	c.mayNot(order{Do: "read", Path: filepath.Join(other, "beside")})
	c.mayNot(order{Do: "connect", Port: target(t)})
	needs := Needs{
		Read: []string{conf, filepath.Join(room, "sub", "next.key")}, Sockets: []string{room},
		Bind: []Ports{port(second, "admin")}, Connect: []Ports{port(first, "service x")},
	}
	c.may(order{Do: "covers", Needs: needs})
	needs.Room = Room{Ports: []Ports{{1, 1000, "sandbox.ports"}}, Paths: []string{dir}}
	c.may(order{Do: "covers", Needs: needs}) // more room is no need of this config
	for want, r := range map[string]Room{
		"":                                grant,
		"sandbox.ports":                   {Ports: []Ports{{1, 1000, "sandbox.ports"}}},
		"sandbox.ports and sandbox.paths": {Ports: []Ports{{1, 1000, "sandbox.ports"}}, Paths: []string{dir}},
	} {
		if got := c.may(order{Do: "awaits", Needs: Needs{Room: r}}); got != want {
			t.Errorf("a restart is awaited for %q, want %q", got, want)
		}
	}
}

func TestHarden(t *testing.T) {
	c := newCell(t)
	c.may(order{Do: "harden"})
	for what, want := range map[string]string{"dumpable": "0", "core": "{0 0}", "privileges": "1"} {
		if got := c.may(order{Do: what}); got != want {
			t.Errorf("%s is %s, want %s", what, got, want)
		}
	}
	c.may(order{Do: "enter"})
	c.may(order{Do: "read", Path: "/proc/self/stat"})
}
