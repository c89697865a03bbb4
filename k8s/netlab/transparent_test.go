//go:build linux

package netlab_test

import (
	"flag"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sealane/sealane/k8s/netlab"
)

const linkPort = 7423

var idle = flag.Duration("idle", 2*time.Second, "how long half-closed connections stay silent")

// Programs that know nothing of sealane reach servers by their plain addresses, over IPv4 and IPv6, and what crosses
// the router between the pods is sealed.
func TestUnmodifiedClients(t *testing.T) {
	netlab.Need(t, "psql", "redis-cli", "redis-server", "mariadb", "mariadbd", "mariadb-install-db", "timeout")
	l := newLab(t)
	l.startPostgres()
	l.startMariaDB()
	l.startRedis()
	l.startHTTP()

	t.Run("plaintext, to show that the capture sees it", func(t *testing.T) {
		capture := l.router.Capture("app")
		l.askAll(t, true)
		capture.Stop()
		for _, c := range clients {
			if !capture.Contains([]byte(marker(c.name))) {
				t.Errorf("%s: the capture missed the plaintext", c.name)
			}
		}
	})
	for name, dbAddress := range map[string]string{"link over IPv4": db4 + ":7423", "link over IPv6": "[" + db6 + "]:7423"} {
		t.Run(name, func(t *testing.T) { l.throughSidecars(t, dbAddress) })
	}
}

func (l *lab) throughSidecars(t *testing.T, dbAddress string) {
	rulesBefore := l.app.Run("nft", "list", "ruleset") + l.db.Run("nft", "list", "ruleset")
	capture := l.router.Capture("app")

	// In the order of a pod: the rules come first.
	for _, out := range []string{
		l.app.Run(redirect("up")...),
		l.db.Run(redirect("up", "--guard-inbound", "1-7422,7424-65535")...),
	} {
		if !strings.Contains(out, "IPv4: verified") || !strings.Contains(out, "IPv6: verified") {
			t.Errorf("redirect up printed\n%s", out)
		}
	}
	l.askAll(t, false) // before the sidecar runs nothing gets out
	app, db := l.startSidecars(t, dbAddress)
	l.askAll(t, true)
	l.refusals(t, app, db)
	stop(t, app)
	stop(t, db)
	capture.Stop()
	checkSealed(t, capture)

	l.app.Run(redirect("down")...)
	l.db.Run(redirect("down")...)
	if after := l.app.Run("nft", "list", "ruleset") + l.db.Run("nft", "list", "ruleset"); after != rulesBefore {
		t.Errorf("down left the rules\n%s\nwhere there were\n%s", after, rulesBefore)
	}
	l.askAll(t, true) // in plaintext again
}

// askAll runs every client against both addresses: each prints its marker, or fails.
func (l *lab) askAll(t *testing.T, works bool) {
	t.Helper()
	for _, c := range clients {
		for _, addr := range []string{db4, db6} {
			out, err := l.app.Try(c.args(addr)...)
			if got := err == nil && strings.Contains(out, marker(c.name)); got != works {
				t.Errorf("%s to %s works: %v, want %v (%v)\n%s", c.name, addr, got, works, err, out)
			}
		}
	}
}

// refusals tries what must not work while everything runs. Who refused it is in the log of one of the sidecars, unless
// the kernel did.
func (l *lab) refusals(t *testing.T, app, db *netlab.Process) {
	t.Helper()
	kernel := l.app.Start("true") // logs nothing
	const ownPort, noRoute = "%s is this process's own port", "no route matches %s"
	for _, try := range []struct {
		what   string
		from   *netlab.Host
		to     string
		by     *netlab.Process
		reason string
	}{
		{"the listener itself", l.app, "127.0.0.1:15006", app, ownPort},
		{"the listener itself", l.app, "[::1]:15006", app, ownPort},
		{"the redirect port on an own address", l.app, app4 + ":15006", kernel, ""},
		{"the redirect port on an own address", l.app, "[" + app6 + "]:15006", kernel, ""},
		{"the redirect port from outside", l.router, app4 + ":15006", kernel, ""},
		{"a destination without a route", l.app, "10.1.0.1:8080", app, noRoute},
		{"a destination without a route", l.app, "[fd01::1]:8080", app, noRoute},
		{"the peer's link port through the link", l.app, db4 + ":7423", db, ownPort},
		{"the peer's link port through the link", l.app, "[" + db6 + "]:7423", db, ownPort},
		{"the peer's admin port through the link", l.app, db4 + ":7424", db, ownPort},
		{"a port where nobody listens", l.app, db4 + ":9", db, "dial tcp %s: connect: connection refused"},
	} {
		reason := try.reason
		if strings.Contains(reason, "%s") {
			reason = fmt.Sprintf(reason, try.to)
		}
		out, err := try.from.Try("curl", "-sS", "--max-time", "20", "http://"+try.to)
		if err == nil || !slices.Contains(curlRefused, err.Error()) {
			t.Errorf("%s, %s: got %v, want it refused\n%s", try.what, try.to, err, out)
		}
		try.by.Expect(reason, 10*time.Second)
	}
	guarded := map[string]*netlab.Process{}
	for _, to := range []string{db4 + ":8080", "[" + db6 + "]:5432"} {
		guarded[to] = l.router.Start("curl", "-sS", "--connect-timeout", "2", "http://"+to)
	}
	for to, curl := range guarded {
		if err := curl.Wait(20 * time.Second); err == nil || err.Error() != curlTimedOut {
			t.Errorf("plaintext to a guarded port, %s: got %v, want it dropped\n%s", to, err, curl.Output())
		}
	}
}

const curlTimedOut = "exit status 28"

// curlRefused holds curl's ends by a refusal. A connection that is accepted and then reset looks like any of them: curl
// may learn of it as it connects, as it sends, or as it receives.
var curlRefused = []string{"exit status 7", "exit status 55", "exit status 56"}

// The two directions of a link: a share each, and then nothing but sealed containers, in their exact bytes.
var sealed = regexp.MustCompile(`^\{"sdmp":\{"version":"0\.13","schemas":\["shared_key"\]\},` +
	`"shared_key":\{"group":"X25519MLKEM768","share":"[A-Za-z0-9_-]+"\}\}` +
	`(\{"sdmp":\{"version":"0\.13","schemas":\["encrypted"\]\},` +
	`"encrypted":\{"iv":"[A-Za-z0-9_-]{16}","payload":"[A-Za-z0-9_-]+","recipients":\[\]\}\})+$`)

func checkSealed(t *testing.T, capture *netlab.Capture) {
	t.Helper()
	bytes := 0
	for _, f := range capture.Flows() {
		bytes += len(f.Data)
		if f.Src.Port() != linkPort && f.Dst.Port() != linkPort {
			t.Errorf("%d bytes from %s to %s belong to no link: %.80q", len(f.Data), f.Src, f.Dst, f.Data)
		}
		if f.Lost > 0 {
			t.Errorf("the capture lost %d bytes from %s to %s", f.Lost, f.Src, f.Dst)
		}
		if !sealed.Match(f.Data) {
			t.Errorf("the %d bytes from %s to %s are not sealed containers alone: %.80q ... %q",
				len(f.Data), f.Src, f.Dst, f.Data, f.Data[max(0, len(f.Data)-80):])
		}
	}
	if bytes == 0 {
		t.Error("nothing crossed the router")
	}
	t.Logf("%d bytes crossed the router, all of them sealed", bytes)
	for _, c := range clients {
		if capture.Contains([]byte(marker(c.name))) {
			t.Errorf("what %s said crossed the router in plaintext", c.name)
		}
	}
	for _, other := range capture.Others() {
		// The kernel's own multicast listener reports (RFC 3810) carry nothing of an app's.
		if strings.HasPrefix(other, "protocol 0 from [fe80:") && strings.HasSuffix(other, "to [ff02::16]:0") {
			continue
		}
		t.Errorf("unexpected packet: %s", other)
	}
}

// A sidecar whose user is not exempt gets out by its mark: its link and, through that, its app's connections.
func TestMarkGoesPastTheRules(t *testing.T) {
	l := newLab(t)
	l.startHTTP()
	l.mark = "0x1d00"
	l.app.Run(redirect("up", "--except-uid", serverUID, "--mark", l.mark, "--sidecar-uid", sidecarUID)...)
	l.startSidecars(t, db4+":7423")
	for _, addr := range []string{db4, db6} {
		if out, err := l.app.Try(clients[0].args(addr)...); err != nil || !strings.Contains(out, marker("curl")) {
			t.Errorf("%s: %v: %s", addr, err, out)
		}
	}
}

// When the sidecar is gone, so is the way out: nothing falls back to plaintext.
func TestKilledSidecar(t *testing.T) {
	l := newLab(t)
	l.startHTTP()
	l.app.Run(redirect("up")...)
	app, _ := l.startSidecars(t, db4+":7423")
	curl := func() (string, error) { return l.app.Try(clients[0].args(db4)...) }
	if out, err := curl(); err != nil || !strings.Contains(out, marker("curl")) {
		t.Fatalf("%v: %s", err, out)
	}
	capture := l.router.Capture("app")
	app.Signal(syscall.SIGKILL)
	app.Wait(10 * time.Second)
	if out, err := curl(); err == nil || !slices.Contains(curlRefused, err.Error()) {
		t.Errorf("without the sidecar: %v\n%s", err, out)
	}
	capture.Stop()
	for _, f := range capture.Flows() {
		if f.Src.Port() != linkPort && f.Dst.Port() != linkPort {
			t.Errorf("%d bytes from %s to %s left without the sidecar", len(f.Data), f.Src, f.Dst)
		}
	}
	l.startSidecar("app")
	l.awaitLink(t)
	if out, err := curl(); err != nil || !strings.Contains(out, marker("curl")) {
		t.Errorf("with a new sidecar: %v\n%s", err, out)
	}
}

// With a connection open through the sidecars, whatever becomes of the rules: what the app says next is sealed, or it is
// not sent.
func TestRulesEndWhileAnAppSpeaks(t *testing.T) {
	for name, test := range map[string]struct {
		end    func(l *lab, sidecar *netlab.Process)
		goesOn bool
	}{
		"up again":         {func(l *lab, _ *netlab.Process) { l.app.Run(redirect("up", "--ports", "1-65535")...) }, true},
		"an up that fails": {func(l *lab, _ *netlab.Process) { l.app.Try(redirect("up", "--except-uid", serverUID)...) }, true},
		"down":             {func(l *lab, _ *netlab.Process) { l.app.Run(redirect("down")...) }, false},
		"sidecar, then down": {func(l *lab, p *netlab.Process) {
			p.Signal(syscall.SIGKILL)
			p.Wait(10 * time.Second)
			l.app.Run(redirect("down")...)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.db.Start(helper("echo", ":9000")...).Expect("listening", 10*time.Second)
			l.app.Run(redirect("up")...)
			sidecar, _ := l.startSidecars(t, db4+":7423")
			capture := l.router.Capture("app")
			var apps []*netlab.Process
			var inputs []io.Writer
			for _, addr := range []string{db4, brackets(db6)} {
				cmd := l.app.Command(helper("converse", addr+":9000")...)
				in, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				app := l.app.StartCommand(cmd)
				fmt.Fprintln(in, "SECRET-ONE")
				app.Expect("SECRET-ONE", 10*time.Second)
				apps, inputs = append(apps, app), append(inputs, in)
			}
			test.end(l, sidecar)
			for i, app := range apps {
				fmt.Fprintln(inputs[i], "SECRET-TWO")
				if test.goesOn {
					app.Expect("SECRET-TWO", 10*time.Second)
				} else {
					app.Wait(20 * time.Second)
				}
			}
			capture.Stop()
			if capture.Contains([]byte("SECRET")) {
				t.Error("what the app said left in plaintext")
			}
		})
	}
}

// The price of exempting the sidecar by its user, as docs/hosts.md says: whatever else runs as that user goes past it.
func TestExemptUserGoesPastTheSidecar(t *testing.T) {
	l := newLab(t)
	l.startHTTP()
	l.app.Run(redirect("up")...)
	capture := l.router.Capture("app")
	out, err := l.app.Try(asUser(sidecarUID, clients[0].args(db4)...)...)
	capture.Stop()
	if err != nil || !strings.Contains(out, marker("curl")) || !capture.Contains([]byte(marker("curl"))) {
		t.Errorf("%v: %s", err, out)
	}
	sleeper := l.app.Start(asUser(sidecarUID, "sleep", "60")...)
	netlab.Eventually(t, 10*time.Second, "the warning", func() bool {
		return strings.Contains(l.app.Run(redirect("up")...), "(sleep) runs as the exempt user 7423")
	})
	sleeper.Signal(syscall.SIGKILL)
}

// A half-closed connection may be silent for longer than the kernel remembers a redirected one by itself (60 to 120
// seconds), and still its other direction works and both ends learn of the end. .ci/run does this with -idle 130s.
func TestHalfClosedAndIdle(t *testing.T) {
	l := newLab(t)
	l.db.Start(helper("late-answer", ":9001")...).Expect("listening", 10*time.Second)
	early := l.db.Start(helper("early-end", ":9002")...)
	early.Expect("listening", 10*time.Second)
	l.app.Run(redirect("up")...)
	l.startSidecars(t, db4+":7423")

	var askers, hearers []*netlab.Process
	for _, addr := range []string{db4, brackets(db6)} {
		cmd := l.app.Command(helper("ask-and-wait", addr+":9001")...)
		cmd.Stdin = strings.NewReader(idle.String())
		askers = append(askers, l.app.StartCommand(cmd))
		hearers = append(hearers, l.app.Start(helper("hear-and-wait", addr+":9002", idle.String())...))
	}
	limit := *idle + 30*time.Second
	for _, p := range askers {
		if err := p.Wait(limit); err != nil || !strings.Contains(p.Output(), `answered "the late answer\n"`) {
			t.Errorf("a client that ended early: %v: %s", err, p.Output())
		}
	}
	for _, p := range hearers {
		if err := p.Wait(limit); err != nil || !strings.Contains(p.Output(), `heard "hello\n", then <nil>`) {
			t.Errorf("a client of a server that ended early: %v: %s", err, p.Output())
		}
	}
	netlab.Eventually(t, 30*time.Second, "the server to hear both clients to their end", func() bool {
		return strings.Count(early.Output(), `heard "the late word\n", then <nil>`) == len(hearers)
	})
}
