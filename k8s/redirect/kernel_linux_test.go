package redirect

import (
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sealane/sealane/k8s/netlab"
	"golang.org/x/sys/unix"
)

// These tests run the command, and small programs that listen and dial, in network namespaces. All of them are this
// test binary itself, told by its environment what to be.
func TestMain(m *testing.M) {
	switch os.Getenv("REDIRECT_TEST_AS") {
	case "redirect":
		os.Exit(Main(os.Args[1:], os.Stdout, os.Stderr))
	case "listen":
		must(listen(os.Args[1], os.Args[2:]))
	case "dial":
		must(dialAndPrint(os.Args[1]))
	case "confirm":
		o, _, err := parseUp(os.Args[1:])
		must(err)
		must(confirm(build(o, nil)))
	case "hammer":
		must(hammer(os.Args[1:]))
	case "hold":
		must(hold(os.Args[1]))
	default:
		os.Exit(runTests(m))
	}
}

// self is a copy of this test binary that every user may run: go test keeps its own where only root may look.
var self string

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "redirect-test-")
	must(err)
	defer os.RemoveAll(dir)
	must(os.Chmod(dir, 0o755))
	binary, err := os.ReadFile("/proc/self/exe")
	must(err)
	self = filepath.Join(dir, "redirect.test")
	must(os.WriteFile(self, binary, 0o755))
	// The tests wait for the kernel's timers, in namespaces of their own, and hardly work. -parallel on the command line
	// still counts: it is read later.
	must(flag.Set("test.parallel", "8"))
	return m.Run()
}

func must(err error) {
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

// listen greets everyone who connects with name, then echoes lines.
func listen(name string, addrs []string) error {
	for _, a := range addrs {
		ln, err := net.Listen("tcp", a)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				fmt.Println("accepted", c.RemoteAddr())
				go func() {
					defer c.Close()
					fmt.Fprintf(c, "%s\n", name)
					io.Copy(c, c)
				}()
			}
		}()
	}
	fmt.Println("listening")
	select {}
}

// dialAndPrint prints the greeting of whoever answers.
func dialAndPrint(addr string) error {
	d := net.Dialer{Timeout: 2 * time.Second, Control: setMark}
	if from := os.Getenv("FROM"); from != "" {
		if !strings.Contains(from, "127.") {
			from = net.JoinHostPort(from, "0")
		}
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))
	}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	var greeting string
	if _, err := fmt.Fscanln(c, &greeting); err != nil {
		return err
	}
	fmt.Println(greeting)
	return nil
}

func setMark(_, _ string, rc syscall.RawConn) error {
	mark, err := strconv.Atoi(os.Getenv("MARK"))
	if err != nil || mark == 0 {
		return nil
	}
	var serr error
	if err := rc.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) }); err != nil {
		return err
	}
	return serr
}

// reuseAddress lets several sockets have one address, for connections to different destinations.
func reuseAddress(_, _ string, rc syscall.RawConn) error {
	var serr error
	if err := rc.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }); err != nil {
		return err
	}
	return serr
}

// hold keeps one connection open and sends a line through it for each line of its input, after the other end's end too.
func hold(addr string) error {
	var d net.Dialer
	if from := os.Getenv("FROM"); from != "" {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))
		d.Control = reuseAddress
	}
	dial := func(addr string) (net.Conn, error) { return d.Dial("tcp", addr) }
	if os.Getenv("MAPPED") != "" {
		dial = dialMapped
	}
	c, err := dial(addr)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, os.Stdin)
		sent <- err
	}()
	if _, err := io.Copy(os.Stdout, c); err != nil {
		return err
	}
	return <-sent
}

// dialMapped dials an IPv4 address by an IPv6 socket.
func dialMapped(addr string) (net.Conn, error) {
	to := netip.MustParseAddrPort(addr)
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "mapped")
	defer file.Close()
	if err := unix.Connect(fd, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}); err != nil {
		return nil, err
	}
	return net.FileConn(file)
}

// A pod is a host under test, joined to another that stands for the rest of the world.
type pod struct {
	*netlab.Host
	world *netlab.Host
}

const (
	pod4, pod6     = "10.9.0.1", "fd09::1"
	world4, world6 = "10.9.0.2", "fd09::2"
)

func newPod(t *testing.T) pod {
	p := pod{netlab.NewHost(t), netlab.NewHost(t)}
	netlab.Join(p.Host, "eth0", []string{pod4 + "/24", pod6 + "/64"}, p.world, "eth0", []string{world4 + "/24", world6 + "/64"})
	return p
}

// as makes the arguments of this test binary in one of its parts.
func as(part string, args ...string) []string {
	return append([]string{"env", "REDIRECT_TEST_AS=" + part, self}, args...)
}

func asUser(uid int, args []string) []string {
	return append([]string{"setpriv", "--reuid", strconv.Itoa(uid), "--clear-groups"}, args...)
}

func env(variable string, args []string) []string { return append([]string{"env", variable}, args...) }

func (p pod) redirect(t *testing.T, args ...string) string {
	t.Helper()
	return p.Run(as("redirect", args...)...)
}

func start(t *testing.T, h *netlab.Host, args []string) *netlab.Process {
	t.Helper()
	proc := h.Start(args...)
	proc.Expect("listening", 10*time.Second)
	return proc
}

// startListeners starts a server in the world and something on the redirect port in the pod that runs as the sidecar.
func (p pod) startListeners(t *testing.T) (sidecar *netlab.Process) {
	t.Helper()
	start(t, p.world, as("listen", "world", ":5432", ":5433"))
	return start(t, p.Host, asUser(DefaultUID, as("listen", "sidecar", "127.0.0.1:15006", "[::1]:15006")))
}

// wantAnswer dials from the host and checks who answers, or that the dial fails as said.
func wantAnswer(t *testing.T, h *netlab.Host, dial []string, want string) {
	t.Helper()
	got, _ := h.Try(dial...)
	if !strings.Contains(got, want) {
		t.Errorf("%s: got %q, want %q", strings.Join(dial[2:], " "), strings.TrimSpace(got), want)
	}
}

func prepare(t *testing.T) {
	t.Helper()
	t.Parallel()
	netlab.Need(t, "ip", "nft", "setpriv")
}

func TestWhatIsCaught(t *testing.T) {
	prepare(t)
	p := newPod(t)
	p.startListeners(t)
	start(t, p.Host, as("listen", "local", "127.0.0.1:5432", "[::1]:5432", pod4+":5432", "["+pod6+"]:5432"))
	p.redirect(t, "up", "--except-ports", "5433", "--mark", "77")

	for _, world := range []string{world4, "[" + world6 + "]"} {
		wantAnswer(t, p.Host, as("dial", world+":5432"), "sidecar")
		wantAnswer(t, p.Host, as("dial", world+":9"), "sidecar")
		wantAnswer(t, p.Host, asUser(65534, as("dial", world+":5432")), "sidecar")
		wantAnswer(t, p.Host, asUser(DefaultUID, as("dial", world+":5432")), "world")
		wantAnswer(t, p.Host, env("MARK=77", as("dial", world+":5432")), "world")
		wantAnswer(t, p.Host, env("MARK=78", as("dial", world+":5432")), "sidecar")
		wantAnswer(t, p.Host, as("dial", world+":5433"), "world")
	}
	for _, own := range []string{"127.0.0.1", "[::1]", pod4, "[" + pod6 + "]"} {
		wantAnswer(t, p.Host, as("dial", own+":5432"), "local")
		wantAnswer(t, p.Host, as("dial", own+":9"), "connection refused")
	}
	// Connections from outside are not the namespace's own: the rules leave them alone.
	wantAnswer(t, p.world, as("dial", pod4+":5432"), "local")
	wantAnswer(t, p.world, as("dial", pod4+":15006"), "connection refused")

	p.redirect(t, "up", "--ports", "5432", "--cidrs", "10.0.0.0/8", "--except-cidrs", world4+","+world6)
	wantAnswer(t, p.Host, as("dial", world4+":5432"), "world")
	p.redirect(t, "up", "--ports", "5432", "--cidrs", "10.0.0.0/8")
	wantAnswer(t, p.Host, as("dial", world4+":5432"), "sidecar")
	wantAnswer(t, p.Host, as("dial", world4+":5433"), "world")
	wantAnswer(t, p.Host, as("dial", "["+world6+"]:5432"), "world")
}

func TestGuardInbound(t *testing.T) {
	prepare(t)
	p := newPod(t)
	const probe4, probe6 = "10.9.0.3", "fd09::3"
	p.world.Run("ip", "addr", "add", probe4+"/24", "dev", "eth0")
	p.world.Run("ip", "addr", "add", probe6+"/64", "dev", "eth0", "nodad")
	start(t, p.Host, as("listen", "local", ":5432", ":5433"))
	if out := p.redirect(t, "up", "--guard-inbound", "5432", "--probe-sources", probe4+","+probe6); !strings.Contains(out, "guard: in force") {
		t.Errorf("up printed\n%s", out)
	}

	for _, way := range []struct{ own, world, probe string }{{pod4, world4, probe4}, {"[" + pod6 + "]", world6, probe6}} {
		wantAnswer(t, p.world, env("FROM="+way.world, as("dial", way.own+":5432")), "i/o timeout")
		wantAnswer(t, p.world, env("FROM="+way.world, as("dial", way.own+":5433")), "local")
		wantAnswer(t, p.world, env("FROM="+way.probe, as("dial", way.own+":5432")), "local")
	}
	for _, own := range []string{"127.0.0.1", "[::1]", pod4, "[" + pod6 + "]"} {
		wantAnswer(t, p.Host, as("dial", own+":5432"), "local")
	}
	// A guard over every port but one leaves the pod's own connections alone.
	start(t, p.world, as("listen", "world", ":5432"))
	p.redirect(t, "up", "--guard-inbound", "1-7422,7424-65535")
	for _, world := range []string{world4, "[" + world6 + "]"} {
		wantAnswer(t, p.Host, asUser(DefaultUID, as("dial", world+":5432")), "world")
	}
	wantAnswer(t, p.world, as("dial", pod4+":5433"), "i/o timeout")
	if got := p.redirect(t, "show"); !regexp.MustCompile(`@guard_ports_? counter packets [1-9]\d* bytes \d+ drop`).MatchString(got) {
		t.Errorf("the drops are not counted:\n%s", got)
	}
}

func (p pod) ruleset() string { return withoutCounts(p.Run("nft", "-s", "list", "ruleset")) }

func TestDownRestoresExactly(t *testing.T) {
	prepare(t)
	p := newPod(t)
	p.Run("nft", "add table inet foreign; add chain inet foreign output { type nat hook output priority -100; }; "+
		"add rule inet foreign output tcp dport 1 counter; add table ip sealane; add chain ip sealane c")
	before := p.ruleset()
	p.redirect(t, append([]string{"up"}, everyOption...)...)
	first := p.redirect(t, "show")
	p.redirect(t, "up")
	if second := p.redirect(t, "show"); second == first || strings.Contains(second, "guard") {
		t.Errorf("the second up did not replace the first:\n%s", second)
	}
	if out := p.redirect(t, "down"); !strings.Contains(out, "cut and the rules removed") {
		t.Errorf("down printed %q", out)
	}
	if after := p.ruleset(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	if out := p.redirect(t, "down"); out != "no rules were installed\n" {
		t.Errorf("the second down printed %q", out)
	}
	if out := p.redirect(t, "show"); out != "no rules are installed\n" {
		t.Errorf("show printed %q", out)
	}
}

// What --dry-run prints, what up installs and what show reads back are the same rules, as nft itself understands them.
func TestDryRunIsWhatIsInstalled(t *testing.T) {
	prepare(t)
	for name, args := range map[string][]string{"default": nil, "every option": everyOption} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			script := p.redirect(t, append([]string{"up", "--dry-run"}, args...)...)
			if out := p.ruleset(); out != "" {
				t.Fatalf("a dry run changed the rules:\n%s", out)
			}
			p.redirect(t, append([]string{"up"}, args...)...)
			installed := p.ruleset()
			shown := withoutCounts(p.redirect(t, "show"))
			if want := script[strings.Index(script, "table inet sealane {"):]; shown != want {
				t.Errorf("show printed\n%s\nwant\n%s", shown, want)
			}
			file := filepath.Join(t.TempDir(), "rules.nft")
			if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
				t.Fatal(err)
			}
			p.Run("nft", "-f", file)
			if loaded := p.ruleset(); loaded != installed {
				t.Errorf("nft made of the script\n%s\nup installed\n%s", loaded, installed)
			}
		})
	}
}

// A connection that was open before, whoever opened it, goes on; so does a redirected one when the rules are renewed.
func TestOpenConnectionsSurvive(t *testing.T) {
	prepare(t)
	p := newPod(t)
	p.startListeners(t)
	start(t, p.Host, as("listen", "local", ":22"))
	inbound := holdOpen(t, p.world, pod4+":22")
	outbound := holdOpen(t, p.Host, world4+":5432")
	p.redirect(t, "up")
	redirected := holdOpen(t, p.Host, "["+world6+"]:5432")
	p.redirect(t, "up", "--guard-inbound", "22")
	// What was open is remembered from one table to the next, and nothing else is.
	if rules := p.redirect(t, "show"); !strings.Contains(rules, world4+" . 5432 }") || strings.Contains(rules, world6+" . 5432") {
		t.Errorf("the connections from before are not known, or others are:\n%s", rules)
	}
	for name, c := range map[string]*held{"inbound": inbound, "outbound": outbound, "redirected": redirected} {
		c.send(t, "still here "+name)
	}

	p.redirect(t, "down")
	for name, c := range map[string]*held{"inbound": inbound, "outbound": outbound} {
		c.send(t, "still here without rules "+name)
	}
	if err := redirected.Wait(10 * time.Second); err == nil {
		t.Errorf("a redirected connection ended cleanly: %s", redirected.Output())
	}
}

// IPv6 to a link-local address is bound to an interface, so the kernel cannot redirect it to loopback. It must not leave.
func TestLinkLocalDoesNotLeave(t *testing.T) {
	prepare(t)
	p := newPod(t)
	p.startListeners(t)
	out := p.world.Run("ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link")
	world := regexp.MustCompile(`fe80::[0-9a-f:]+`).FindString(out)
	dial := as("dial", "["+world+"%eth0]:5432")
	netlab.Eventually(t, 10*time.Second, "the link-local addresses", func() bool {
		out, err := p.Try(dial...)
		return err == nil && strings.Contains(out, "world")
	})
	p.redirect(t, "up")
	if out, err := p.Try(dial...); err == nil || strings.Contains(out, "world") {
		t.Errorf("a connection to a link-local address left: %s", out)
	}
}

type held struct {
	*netlab.Process
	in io.Writer
}

func holdOpen(t *testing.T, h *netlab.Host, addr string) *held {
	t.Helper()
	return pod{Host: h}.hold(t, as("hold", addr))
}

func (p pod) hold(t *testing.T, args []string) *held {
	t.Helper()
	cmd := p.Command(args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	c := &held{p.StartCommand(cmd), in}
	c.send(t, "hello")
	return c
}

func (c *held) send(t *testing.T, line string) {
	t.Helper()
	fmt.Fprintln(c.in, line)
	c.Expect(line, 10*time.Second)
}

// The rules can be renewed beside a running sidecar, which never sees the connection that proves them.
func TestVerifyBesideTheSidecar(t *testing.T) {
	prepare(t)
	p := newPod(t)
	sidecar := p.startListeners(t)
	out := p.redirect(t, "up")
	for _, family := range []string{"IPv4", "IPv6"} {
		if !strings.Contains(out, family+": verified: a connection to ") || !strings.Contains(out, "arrived at the process that listens on port 15006") {
			t.Errorf("up printed\n%s", out)
		}
	}
	if strings.Contains(sidecar.Output(), "accepted") {
		t.Errorf("the sidecar saw the check: %s", sidecar.Output())
	}
	wantAnswer(t, p.Host, as("dial", world4+":5432"), "sidecar")

	before := p.redirect(t, "show")
	if !strings.Contains(before, "meta skuid 7423 return") {
		t.Errorf("show printed\n%s", before)
	}
	out, err := p.Try(as("redirect", "up", "--except-uid", "1234")...)
	if err == nil || !strings.Contains(out, "runs as user 7423, which is not the sidecar's") {
		t.Errorf("a listener whose own dials would come back was accepted: %v\n%s", err, out)
	}
}

func TestVerifyFailsWhereTheRedirectDoesNotWork(t *testing.T) {
	prepare(t)
	for family, rule := range map[string]string{
		"IPv4": "meta nfproto ipv4 iifname lo drop",
		"IPv6": "meta nfproto ipv6 iifname lo drop",
	} {
		for _, beside := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, beside a sidecar: %v", family, beside), func(t *testing.T) {
				t.Parallel()
				p := newPod(t)
				if beside {
					p.startListeners(t)
				}
				p.Run("nft", "add table inet foreign; add chain inet foreign in { type filter hook input priority 0; }; "+
					"add rule inet foreign in "+rule)
				out, err := p.Try(as("redirect", "up")...)
				if err == nil || !strings.Contains(out, "the redirect does not work for "+family) ||
					!strings.Contains(out, "connections that the rules would catch are refused") {
					t.Errorf("up gave %v and printed\n%s", err, out)
				}
			})
		}
	}
}

func TestAbsentFamilies(t *testing.T) {
	prepare(t)
	p := pod{netlab.NewHost(t), netlab.NewHost(t)}
	netlab.Join(p.Host, "eth0", []string{pod4 + "/24"}, p.world, "eth0", []string{world4 + "/24"})
	if out := p.redirect(t, "up"); !strings.Contains(out, "IPv4: verified") || !strings.Contains(out, "IPv6: absent") {
		t.Errorf("up printed\n%s", out)
	}
	if out := p.redirect(t, "up", "--cidrs", "fd00::/8"); !strings.Contains(out, "IPv4: not caught") {
		t.Errorf("up printed\n%s", out)
	}
	alone := pod{Host: netlab.NewHost(t)}
	if out := alone.redirect(t, "up"); !strings.Contains(out, "IPv4: absent") || !strings.Contains(out, "IPv6: absent") {
		t.Errorf("up printed\n%s", out)
	}
}

// An IPv6 address that the kernel still checks for duplicates cannot be used for a second or two. Up waits.
func TestVerifyWaitsForANewAddress(t *testing.T) {
	prepare(t)
	p := newPod(t)
	p.Run("ip", "addr", "del", pod6+"/64", "dev", "eth0")
	p.Run("ip", "addr", "add", pod6+"/64", "dev", "eth0")
	if out := p.redirect(t, "up"); !strings.Contains(out, "IPv6: verified") {
		t.Errorf("up printed\n%s", out)
	}
}

func TestWithoutTheCapability(t *testing.T) {
	prepare(t)
	p := newPod(t)
	for _, args := range [][]string{{"up"}, {"down"}, {"show"}} {
		out, err := p.Try(asUser(65534, as("redirect", args...))...)
		if err == nil || !strings.Contains(out, "NET_ADMIN") {
			t.Errorf("%v gave %v and printed\n%s", args, err, out)
		}
	}
	if out := p.Run(asUser(65534, as("redirect", "up", "--dry-run"))...); !strings.Contains(out, "redirect to :15006") {
		t.Errorf("a dry run printed\n%s", out)
	}
	// NET_ADMIN alone is enough, as in the init container.
	out := p.Run(append([]string{"setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all"}, as("redirect", "up")...)...)
	if !strings.Contains(out, "IPv4: verified") {
		t.Errorf("up printed\n%s", out)
	}
}

func TestExemptUsers(t *testing.T) {
	prepare(t)
	p := newPod(t)
	start(t, p.Host, asUser(DefaultUID, as("listen", "local", "127.0.0.1:7000")))
	out := p.redirect(t, "up")
	if !regexp.MustCompile(`warning: process \d+ \(redirect\.test\) runs as the exempt user 7423`).MatchString(out) {
		t.Errorf("no warning about a program that goes past the sidecar:\n%s", out)
	}
	// The proof is a connection of a user that is caught, even if root is not.
	out = p.redirect(t, "up", "--except-uid", "0")
	if !strings.Contains(out, "IPv4: verified") || !strings.Contains(out, "warning: user 0 is exempt") {
		t.Errorf("up printed\n%s", out)
	}
	out, err := p.Try(append([]string{"setpriv", "--bounding-set=-all,+net_admin"}, as("redirect", "up", "--except-uid", "0")...)...)
	if err == nil || !strings.Contains(out, "its own connection proves nothing") {
		t.Errorf("up gave %v and printed\n%s", err, out)
	}
}
