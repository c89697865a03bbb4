package redirect

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sealane/sealane/k8s/netlab"
)

// Nothing that a program has said on a redirected connection may leave in plaintext, whatever becomes of the rules and
// the sidecar: these tests take them away in every way and look for a secret in what leaves.

const nobody = 65534

const refused = "connection refused"

// leak watches what leaves the pod for the world.
type leak struct {
	t       *testing.T
	capture *netlab.Capture
}

func (p pod) watch(t *testing.T) leak {
	t.Helper()
	return leak{t, p.world.Capture("eth0")}
}

// wantNone fails if any of what was said has left.
func (l leak) wantNone(said ...string) {
	l.t.Helper()
	l.capture.Stop()
	for _, s := range said {
		if l.capture.Contains([]byte(s)) {
			l.t.Errorf("%q left in plaintext", s)
		}
	}
}

// say sends a line and waits for nothing.
func (c *held) say(line string) { fmt.Fprintln(c.in, line) }

// holdRedirected opens connections of both families that the sidecar gets.
func (p pod) holdRedirected(t *testing.T) []*held {
	t.Helper()
	both := []*held{holdOpen(t, p.Host, world4+":5432"), holdOpen(t, p.Host, "["+world6+"]:5432")}
	for _, c := range both {
		c.Expect("sidecar", 10*time.Second)
	}
	return both
}

// wantCut sees that connections are cut and that nothing said on them leaves.
func wantCut(t *testing.T, l leak, open []*held) {
	t.Helper()
	for _, c := range open {
		c.say("SECRET-TWO")
	}
	for _, c := range open {
		if err := c.Wait(20 * time.Second); err == nil {
			t.Errorf("a connection ended cleanly: %s", c.Output())
		}
	}
	l.wantNone("SECRET-TWO")
}

func TestDownCutsFirst(t *testing.T) {
	prepare(t)
	p := newPod(t)
	p.startListeners(t)
	p.redirect(t, "up")
	// Some programs have IPv6 sockets for IPv4, too.
	mapped := p.hold(t, env("MAPPED=1", as("hold", world4+":5432")))
	mapped.Expect("sidecar", 10*time.Second)
	open := append(p.holdRedirected(t), mapped)
	start(t, p.Host, as("listen", "local", ":22"))
	own, inbound := holdOpen(t, p.Host, pod4+":22"), holdOpen(t, p.world, pod4+":22")
	toSidecar := holdOpen(t, p.Host, "127.0.0.1:15006")
	l := p.watch(t)
	p.redirect(t, "down")
	wantCut(t, l, open)
	for name, c := range map[string]*held{"own": own, "inbound": inbound, "to the sidecar": toSidecar} {
		c.send(t, name+" was not redirected and goes on")
	}
}

// The sidecar is gone, and has told the program so; the program has not looked yet, and speaks when the rules are gone.
func TestDownCutsWhatTheSidecarLeft(t *testing.T) {
	prepare(t)
	p := newPod(t)
	sidecar := p.startListeners(t)
	p.redirect(t, "up", "--ports", "5432")
	open := p.holdRedirected(t)
	p.Run("sysctl", "-qw", "net.ipv4.tcp_fin_timeout=1")
	sidecar.Signal(syscall.SIGKILL)
	sidecar.Wait(10 * time.Second)
	netlab.Eventually(t, 20*time.Second, "the kernel to forget the sidecar's end", func() bool {
		return !strings.Contains(p.Run("cat", "/proc/net/tcp", "/proc/net/tcp6"), ":3A9E ") // port 15006
	})
	l := p.watch(t)
	p.redirect(t, "down")
	wantCut(t, l, open)
}

// Two connections came from one port, so the sidecar sees another one for the second, and the first has ended.
func TestDownCutsWhatHasAnotherPortAtTheSidecar(t *testing.T) {
	prepare(t)
	p := newPod(t)
	p.startListeners(t)
	p.redirect(t, "up")
	start(t, p.Host, as("listen", "local", ":22"))
	inbound := holdOpen(t, p.world, pod4+":22")
	var open []*held
	for _, port := range []string{"5432", "5433"} {
		c := p.hold(t, env("FROM="+pod4+":4040", as("hold", world4+":"+port)))
		c.Expect("sidecar", 10*time.Second)
		open = append(open, c)
	}
	open[0].Signal(syscall.SIGKILL)
	open[0].Wait(10 * time.Second)
	netlab.Eventually(t, 20*time.Second, "the first connection to end", func() bool {
		return !strings.Contains(p.Run("cat", "/proc/net/tcp"), "0200090A:1538 01") // the world's port 5432
	})
	l := p.watch(t)
	p.redirect(t, "down")
	wantCut(t, l, open[1:])
	inbound.send(t, "an inbound one goes on")
}

// The port of the listener has changed since the connection was opened.
func TestDownCutsWhatWentToAnotherPort(t *testing.T) {
	prepare(t)
	p := newPod(t)
	p.startListeners(t)
	p.redirect(t, "up")
	open := p.holdRedirected(t)
	p.redirect(t, "up", "--to", "15001")
	for _, c := range open {
		c.send(t, "goes on")
	}
	l := p.watch(t)
	p.redirect(t, "down")
	wantCut(t, l, open)
}

// The kernel forgets a connection after a time of silence (here one second), and then takes what comes for a new one,
// from whose middle it is, or for none at all.
func TestForgottenConnectionsDoNotLeave(t *testing.T) {
	prepare(t)
	for name, loose := range map[string]string{"new": "1", "invalid": "0"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t)
			p.startListeners(t)
			p.redirect(t, "up")
			p.Run("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_established=1", "net.netfilter.nf_conntrack_tcp_loose="+loose)
			open := p.holdRedirected(t)
			netlab.Eventually(t, 20*time.Second, "the kernel to forget", func() bool {
				return !strings.Contains(p.Run("cat", "/proc/net/nf_conntrack"), "dport=5432")
			})
			l := p.watch(t)
			for _, c := range open {
				c.say("SECRET-TWO")
			}
			netlab.Eventually(t, 20*time.Second, "the packets to be stopped", func() bool {
				return stopped(p.redirect(t, "show")) >= len(open)
			})
			l.wantNone("SECRET-TWO")
		})
	}
}

// Rules that come back after somebody has removed them do not take redirected connections for some from before them.
func TestUpAfterAFlush(t *testing.T) {
	prepare(t)
	p := newPod(t)
	p.startListeners(t)
	p.redirect(t, "up")
	p.Run("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_established=1")
	open := p.holdRedirected(t)
	p.Run("nft", "flush", "ruleset")
	netlab.Eventually(t, 20*time.Second, "the kernel to forget", func() bool {
		return !strings.Contains(p.Run("cat", "/proc/net/nf_conntrack"), "dport=5432")
	})
	p.redirect(t, "up")
	wantCut(t, p.watch(t), open)
}

// stopped counts the packets that the chain for strays has stopped.
func stopped(rules string) (n int) {
	_, rules, _ = strings.Cut(rules, "chain strays")
	rules, _, _ = strings.Cut(rules, "chain listener")
	for line := range strings.Lines(rules) {
		if _, count, ok := strings.Cut(line, "counter packets "); ok {
			var packets int
			fmt.Sscan(count, &packets)
			n += packets
		}
	}
	return n
}

// Other tables translate addresses too, or keep connections from being tracked.
func TestOtherTables(t *testing.T) {
	prepare(t)
	t.Run("translation", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		p.startListeners(t)
		p.Run("nft", "add table ip other; add chain ip other out { type nat hook output priority -190; }; "+
			"add rule ip other out tcp dport 5432 dnat to "+world4+":5433")
		wantAnswer(t, p.Host, as("dial", world4+":5432"), "world")
		p.redirect(t, "up", "--ports", "5432")
		wantAnswer(t, p.Host, as("dial", world4+":5432"), "sidecar")
	})
	t.Run("no tracking", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		p.startListeners(t)
		p.redirect(t, "up")
		p.Run("nft", "add table inet other; add chain inet other out { type filter hook output priority raw; }; "+
			"add rule inet other out tcp dport 5432 notrack; add rule inet other out tcp sport 22 notrack")
		start(t, p.Host, as("listen", "local", ":22"))
		wantAnswer(t, p.world, as("dial", pod4+":22"), "local")
		for _, world := range []string{world4, "[" + world6 + "]"} {
			wantAnswer(t, p.Host, as("dial", world+":5432"), refused)
		}
	})
	t.Run("no tracking from now on", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		p.startListeners(t)
		p.redirect(t, "up", "--ports", "5432")
		open := p.holdRedirected(t)
		start(t, p.Host, as("listen", "local", ":22"))
		l := p.watch(t)
		p.Run("nft", "add table inet other; add chain inet other out { type filter hook output priority raw; }; "+
			"add rule inet other out notrack")
		wantAnswer(t, p.world, as("dial", pod4+":22"), "local")
		wantCut(t, l, open)
	})
}

// While the sidecar is down, another user who listens in its place gets nothing.
func TestImpostor(t *testing.T) {
	prepare(t)
	for name, addrs := range map[string][]string{
		"loopback": {"127.0.0.1:15006", "[::1]:15006"}, "every address": {":15006"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t)
			p.redirect(t, "up")
			impostor := start(t, p.Host, asUser(nobody, as("listen", append([]string{"impostor"}, addrs...)...)))
			var dials sync.WaitGroup
			for _, to := range []string{world4 + ":5432", "[" + world6 + "]:5432", "127.0.0.1:15006", "[::1]:15006"} {
				dials.Go(func() { wantAnswer(t, p.Host, as("dial", to), "i/o timeout") })
			}
			dials.Wait()
			if strings.Contains(impostor.Output(), "accepted") {
				t.Errorf("another user was sent what a program says: %s", impostor.Output())
			}
			// Nor may he be taken for the sidecar, or keep the rules from being what they were.
			before := p.ruleset()
			out, err := p.Try(as("redirect", "up", "--ports", "5432")...)
			if err == nil || !strings.Contains(out, "runs as user 65534, which is not the sidecar's") {
				t.Errorf("up gave %v and printed\n%s", err, out)
			}
			if after := p.ruleset(); after != before {
				t.Errorf("before\n%s\nafter\n%s", before, after)
			}
		})
	}
	t.Run("ahead of the answer", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		const warning = "a user who listens on its port gets the first bytes of programs that use TCP Fast Open"
		for setting, dangerous := range map[string]bool{"1": false, "3": true, "0": false, "1026": true} {
			p.Run("sysctl", "-qw", "net.ipv4.tcp_fastopen="+setting)
			if out := p.redirect(t, "up"); strings.Contains(out, warning) != dangerous {
				t.Errorf("with %s, up printed\n%s", setting, out)
			}
		}
	})
	// Two ends that open a connection to each other at once need no answer.
	t.Run("opening from the port", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		p.redirect(t, "up")
		start(t, p.Host, as("listen", "local", ":22"))
		dial := env("FROM=127.0.0.1:15006", as("dial", pod4+":22"))
		wantAnswer(t, p.Host, asUser(nobody, dial), "i/o timeout")
		wantAnswer(t, p.Host, asUser(DefaultUID, dial), "local")
	})
	t.Run("another address", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		p.redirect(t, "up")
		start(t, p.Host, asUser(nobody, as("listen", "mine", "127.0.0.2:15006")))
		wantAnswer(t, p.Host, as("dial", "127.0.0.2:15006"), "mine")
		if out := p.redirect(t, "up", "--ports", "5432"); !strings.Contains(out, "IPv4: verified") {
			t.Errorf("up printed\n%s", out)
		}
	})
	t.Run("a sidecar that is named", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		p.redirect(t, "up", "--except-uid", "100", "--mark", "7", "--sidecar-uid", "7423")
		p.startListeners(t)
		p.redirect(t, "up", "--except-uid", "100", "--mark", "7", "--sidecar-uid", "7423")
		wantAnswer(t, p.Host, as("dial", world4+":5432"), "sidecar")
		if out, err := p.Try(as("redirect", "up", "--except-uid", "100", "--mark", "7")...); err == nil {
			t.Errorf("a listener that nobody named was taken: %s", out)
		}
	})
}

// breakLoopback makes every proof fail.
func (p pod) breakLoopback() {
	p.Run("nft", "add table inet broken; add chain inet broken in { type filter hook input priority 0; }; "+
		"add rule inet broken in tcp dport { 15001, 15006 } drop")
}

// table is what nft makes of the table, in an order of its own: the kernel's is the one in which things came.
func (p pod) table() string {
	lines := strings.Split(plain(p.Run("nft", "-s", "list", "table", "inet", "sealane")), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func plain(rules string) string { return otherNames.ReplaceAllString(withoutCounts(rules), "$1") }

// However an up fails, the rules that were there are there again, to the letter.
func TestFailedUpKeepsTheRules(t *testing.T) {
	prepare(t)
	before := map[string][]string{"default": nil, "every option": everyOption, "guard": {"--ports", "5432", "--guard-inbound", "5432"}}
	for name, args := range before {
		for how, fails := range map[string]func(p pod) (string, error){
			"wrong user":  func(p pod) (string, error) { return p.Try(as("redirect", "up", "--except-uid", "1234")...) },
			"no redirect": func(p pod) (string, error) { p.breakLoopback(); return p.Try(as("redirect", "up")...) },
			"interrupted": func(p pod) (string, error) {
				p.breakLoopback()
				return p.Try("timeout", "-s", "TERM", "1", "env", "REDIRECT_TEST_AS=redirect", self, "up", "--ports", "1")
			},
		} {
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				p := newPod(t)
				start(t, p.world, as("listen", "world", ":5432"))
				old := holdOpen(t, p.Host, world4+":5432")
				p.redirect(t, append([]string{"up"}, args...)...)
				start(t, p.Host, asUser(DefaultUID, as("listen", "sidecar", "127.0.0.1:15006", "[::1]:15006")))
				want := p.redirect(t, "show")
				if !strings.Contains(want, "before4") {
					t.Errorf("the open connection is not in the rules:\n%s", want)
				}
				table := p.table()
				out, err := fails(p)
				if err == nil || !strings.Contains(out, "the rules that were there are in force") {
					t.Errorf("up gave %v and printed\n%s", err, out)
				}
				if got := p.redirect(t, "show"); plain(got) != plain(want) {
					t.Errorf("before\n%s\nafter\n%s", want, got)
				}
				if got := p.table(); got != table {
					t.Errorf("nft, before\n%s\nafter\n%s", table, got)
				}
				old.send(t, "a connection from before the rules goes on")
			})
		}
	}
}

// If there were no rules, what would be caught is refused, and what would be guarded is.
func TestFirstUpFails(t *testing.T) {
	prepare(t)
	p := newPod(t)
	p.startListeners(t)
	start(t, p.Host, as("listen", "local", ":5433"))
	old := holdOpen(t, p.Host, world4+":5432")
	p.breakLoopback()
	out, err := p.Try(as("redirect", "up", "--ports", "5432", "--guard-inbound", "5433")...)
	if err == nil || !strings.Contains(out, "connections that the rules would catch are refused") {
		t.Errorf("up gave %v and printed\n%s", err, out)
	}
	for _, world := range []string{world4, "[" + world6 + "]"} {
		wantAnswer(t, p.Host, as("dial", world+":5432"), refused)
		wantAnswer(t, p.Host, as("dial", world+":5433"), "world")
		wantAnswer(t, p.Host, asUser(DefaultUID, as("dial", world+":5432")), "world")
	}
	wantAnswer(t, p.world, as("dial", pod4+":5433"), "i/o timeout")
	old.send(t, "a connection from before goes on")
	p.Run("nft", "delete table inet broken")
	p.redirect(t, "up", "--ports", "5432")
	wantAnswer(t, p.Host, as("dial", world4+":5432"), "sidecar")
	old.send(t, "and on")
	p.redirect(t, "down")
	wantAnswer(t, p.Host, as("dial", world4+":5432"), "world")
}

// Whenever an up is killed, the old rules, the new ones or those that refuse are in force: no connection gets out. They
// are dialed without a pause while ups succeed, fail and are killed.
func TestNoMomentWithoutRules(t *testing.T) {
	prepare(t)
	p := newPod(t)
	world := start(t, p.world, as("listen", "world", ":5432"))
	start(t, p.Host, asUser(DefaultUID, as("listen", "sidecar", "127.0.0.1:15006", "[::1]:15006")))
	p.redirect(t, "up")
	dialer := p.Start(as("hammer", world4+":5432", "["+world6+"]:5432")...)
	dialer.Expect("dialed", 10*time.Second)
	rounds := 8
	if os.Getenv("CI") != "" {
		rounds = 40
	}
	for i := range rounds {
		args := []string{"up", "--ports", []string{"5432", "1-65535"}[i%2]}
		if i%3 == 0 {
			args = append(args, "--except-uid", "1234")
		}
		up := p.Start(as("redirect", args...)...)
		time.Sleep(time.Duration(i) * 2 * time.Millisecond) // any moment will do
		if i%4 != 0 {
			up.Signal(syscall.SIGKILL)
		}
		up.Wait(20 * time.Second)
	}
	if strings.Contains(world.Output(), "accepted") {
		t.Errorf("a connection got out: %s", world.Output())
	}
	if strings.Contains(dialer.Output(), "world") {
		t.Errorf("a program reached the world: %s", dialer.Output())
	}
}

// Of two ups at once, both succeed, and what the later one said to be in force is.
func TestUpsAtOnce(t *testing.T) {
	prepare(t)
	p := newPod(t)
	p.startListeners(t)
	options := [][]string{{"up", "--ports", "5432"}, {"up", "--ports", "5433", "--guard-inbound", "9000", "--cidrs", "10.0.0.0/8"}}
	var possible []string
	for _, o := range options {
		p.redirect(t, o...)
		possible = append(possible, p.table())
	}
	for range 6 {
		var ups []*netlab.Process
		for _, o := range options {
			ups = append(ups, p.Start(as("redirect", o...)...))
		}
		for i, up := range ups {
			if err := up.Wait(time.Minute); err != nil {
				t.Errorf("%v: %v, it printed\n%s", options[i], err, up.Output())
			}
		}
		if now := p.table(); !slices.Contains(possible, now) {
			t.Errorf("what is in force is neither's:\n%s", now)
		}
	}
}

// Any user may hold the lock that keeps ups apart. That makes an up slow, and no more.
func TestLockHeldByAnotherUser(t *testing.T) {
	prepare(t)
	p := newPod(t)
	holder := p.Start(asUser(nobody, []string{"flock", "--no-fork", "/proc/self/ns/net", "sh", "-c", "echo held; exec sleep 300"})...)
	holder.Expect("held", 10*time.Second)
	interrupted := p.Start(as("redirect", "up")...)
	time.Sleep(time.Second) // it waits by now
	interrupted.Signal(syscall.SIGTERM)
	if err := interrupted.Wait(10 * time.Second); err == nil {
		t.Errorf("an up that was interrupted printed\n%s", interrupted.Output())
	}
	if out := p.ruleset(); out != "" {
		t.Errorf("an up that was interrupted while another one may have been at work installed\n%s", out)
	}
	t.Run("patience has an end", func(t *testing.T) {
		if os.Getenv("CI") == "" {
			t.Skip("skips here: takes 20 s; runs where CI is set")
		}
		p.redirect(t, "up", "--ports", "5432")
	})
}

// A reload of another program's rules flushes ours, a watch puts them back, and an up renews them at the same moment.
func TestUpBesideAWatch(t *testing.T) {
	prepare(t)
	p := newPod(t)
	p.startListeners(t)
	watch := p.Start(as("redirect", "watch")...)
	watch.Expect("watching", 10*time.Second)
	p.redirect(t, "up", "--ports", "5432")
	for i := range 12 {
		up := p.Start(as("redirect", "up", "--ports", []string{"5432", "5432-5433"}[i%2])...)
		time.Sleep(time.Duration(i) * 2 * time.Millisecond) // any moment will do
		p.Run("nft", "flush", "ruleset")
		if err := up.Wait(time.Minute); err != nil {
			t.Errorf("up: %v, it printed\n%s", err, up.Output())
		}
		// The flush may have come last, and the watch needs a moment.
		netlab.Eventually(t, 20*time.Second, "the rules to redirect", func() bool {
			return strings.Count(p.redirect(t, "show"), "redirect to :15006") == 1
		})
	}
}

// A process that was killed may have left sets that no rule looks into.
func TestLeftoverSets(t *testing.T) {
	prepare(t)
	p := newPod(t)
	p.startListeners(t)
	p.redirect(t, "up", "--ports", "5432")
	p.Run("nft", "add set inet sealane catch_ports_ { type inet_service; flags interval; elements = { 1 }; }")
	if out, err := p.Try(as("redirect", "up", "--except-uid", "1234")...); err == nil {
		t.Errorf("up printed\n%s", out)
	}
	p.redirect(t, "up", "--ports", "5433")
	if got := p.redirect(t, "show"); strings.Count(got, "set catch_ports") != 1 || !strings.Contains(got, "{ 5433 }") {
		t.Errorf("show printed\n%s", got)
	}
	p.Run("nft", "add set inet sealane catch_ports { type inet_service; flags interval; elements = { 1 }; }")
	p.breakLoopback()
	if out, err := p.Try(as("redirect", "up", "--ports", "1")...); err == nil {
		t.Errorf("up printed\n%s", out)
	}
	if got := p.redirect(t, "show"); strings.Count(got, "set catch_ports") != 1 || !strings.Contains(got, "{ 5433 }") {
		t.Errorf("a failed up left\n%s", got)
	}
}

// Whoever flushes all tables takes ours as well. A watch puts it back, and the connections go on, unless the kernel has
// sent an acknowledgement for them meanwhile, which the real destination answers with a reset.
func TestWatch(t *testing.T) {
	prepare(t)
	p := newPod(t)
	p.startListeners(t)
	watch := p.Start(as("redirect", "watch")...)
	watch.Expect("watching", 10*time.Second)
	p.redirect(t, "up", "--ports", "5432", "--guard-inbound", "1")
	l := p.watch(t)
	for i, remove := range []string{"flush ruleset", "delete table inet sealane", "delete chain inet sealane strays", "flush chain inet sealane output"} {
		open := p.holdRedirected(t)
		before := p.table()
		p.Run("nft", remove)
		netlab.Eventually(t, 20*time.Second, "the rules to be back", func() bool {
			return strings.Count(watch.Output(), "they are back") == i+1 && p.table() == before
		})
		for _, c := range open {
			c.say("SECRET-TWO")
			netlab.Eventually(t, 20*time.Second, "the connection to go on or to be cut", func() bool {
				return strings.Contains(c.Output(), "SECRET-TWO") || strings.Contains(c.Output(), "error:")
			})
		}
	}
	l.wantNone("SECRET-TWO")

	// What is removed or replaced on purpose is not put back.
	p.redirect(t, "up", "--ports", "5433")
	p.redirect(t, "down")
	p.redirect(t, "up", "--ports", "5432")
	p.Run("nft", "flush", "ruleset")
	netlab.Eventually(t, 20*time.Second, "the rules to be back", func() bool {
		return strings.Contains(p.redirect(t, "show"), "{ 5432 }")
	})
	p.redirect(t, "down")
	watch.Signal(syscall.SIGTERM)
	if err := watch.Wait(20 * time.Second); err != nil {
		t.Errorf("the watch ended with %v", err)
	}
	if out := p.ruleset(); out != "" {
		t.Errorf("what was removed on purpose is back:\n%s", out)
	}
	if got := strings.Count(watch.Output(), "they are back"); got != 5 {
		t.Errorf("the rules were put back %d times, want 5:\n%s", got, watch.Output())
	}
}

// What the kernel has is compared with what was installed, to the letter.
func TestConfirm(t *testing.T) {
	prepare(t)
	p := newPod(t)
	options := []string{"--ports", "5432", "--guard-inbound", "5433"}
	for _, change := range []string{"", "delete chain inet sealane input", "flush chain inet sealane strays",
		"add element inet sealane guard_ports { 1 }", "insert rule inet sealane output return"} {
		p.redirect(t, append([]string{"up"}, options...)...)
		if change == "" {
			p.Run(as("confirm", options...)...)
			continue
		}
		p.redirect(t, "down")
		p.redirect(t, append([]string{"up"}, options...)...)
		p.Run("nft", change)
		if out, err := p.Try(as("confirm", options...)...); err == nil || !strings.Contains(out, "the kernel does not have the rules") {
			t.Errorf("%s: %v: %s", change, err, out)
		}
	}
}

// hammer dials without a pause.
func hammer(addrs []string) error {
	fmt.Println("dialed")
	for {
		for _, a := range addrs {
			if err := dialAndPrint(a); err != nil {
				continue
			}
		}
	}
}

// Rules that an older version has installed come back after a failure, too, and their connections are cut before they go.
func TestRulesOfAnOlderVersion(t *testing.T) {
	prepare(t)
	p := newPod(t)
	p.startListeners(t)
	file := filepath.Join(t.TempDir(), "old.nft")
	if err := os.WriteFile(file, []byte(olderRules), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Run("nft", "-f", file)
	open := p.holdRedirected(t)
	before := p.ruleset()
	if out, err := p.Try(as("redirect", "up", "--except-uid", "1234")...); err == nil {
		t.Errorf("up printed\n%s", out)
	}
	if after := p.ruleset(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	p.redirect(t, "up")
	for _, c := range open {
		c.send(t, "goes on under the new rules")
	}
	p.Run("nft", "-f", file)
	l := p.watch(t)
	p.redirect(t, "down")
	wantCut(t, l, open)
}

const olderRules = `
table inet sealane
delete table inet sealane
table inet sealane {
	set except4 { type ipv4_addr; flags interval; elements = { 127.0.0.0/8 } }
	set except6 { type ipv6_addr; flags interval; elements = { ::1 } }
	chain output {
		type nat hook output priority -110; policy accept;
		tcp flags & (fin | syn | rst | ack) != syn return
		oifname "lo" return
		ip daddr @except4 return
		ip6 daddr @except6 return
		meta skuid 7423 return
		meta l4proto tcp counter redirect to :15006
	}
}
`
