package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

func hasIPv6() bool {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// reached holds the probed addresses that a listener on each host serves.
var reached = map[string][]string{
	"127.0.0.1": {"127.0.0.1"},
	"127.0.0.2": {"127.0.0.2"},
	"0.0.0.0":   {"127.0.0.1", "127.0.0.2"},
	"::1":       {"::1"},
	"::":        {"127.0.0.1", "127.0.0.2", "::1"},
	"":          {"127.0.0.1", "127.0.0.2", "::1"},
	"localhost": {"127.0.0.1", "::1"},
}

var probes = []string{"127.0.0.1", "127.0.0.2", "::1"}

// reaches lists the probed addresses on which the port takes connections.
func reaches(t testing.TB, port string) (list []string) {
	t.Helper()
	for _, host := range probes {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(host, port), patience)
		if err == nil {
			c.Close()
			list = append(list, host)
		} else if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v", host, err)
		}
	}
	return list
}

func needIPv6(t testing.TB) {
	t.Helper()
	if !hasIPv6() {
		t.Skip("no IPv6 here")
	}
}

// 0.0.0.0 is IPv4 alone, and names of several families are all of them, on one
// port also where the kernel picks it.
func TestListenFamilies(t *testing.T) {
	needIPv6(t)
	for host, want := range reached {
		for _, port := range []string{"0", fixedPort(t)} {
			socks, err := Listen(t.Context(), Endpoint{"tcp", net.JoinHostPort(host, port)}, nil)
			if err != nil {
				t.Fatalf("%q: %v", host, err)
			}
			_, bound, _ := net.SplitHostPort(socks[0].Addr().String())
			if got := reaches(t, bound); !slices.Equal(got, want) {
				t.Errorf("%q on port %s is reached on %q, want %q", host, port, got, want)
			}
			for _, s := range socks {
				s.Close()
			}
		}
	}
}

func TestListenMappedIsIPv4(t *testing.T) {
	for _, host := range []string{"::ffff:0.0.0.0", "::ffff:127.0.0.1"} {
		socks, err := Listen(t.Context(), Endpoint{"tcp", net.JoinHostPort(host, "0")}, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(socks[0].Addr().String())
		if got := reaches(t, port); slices.Contains(got, "::1") || len(got) == 0 {
			t.Errorf("%s is reached on %q", host, got)
		}
		socks[0].Close()
	}
}

// A family that is taken is an error, whichever it is, and leaves nothing bound.
func TestListenTakenFamily(t *testing.T) {
	needIPv6(t)
	for _, host := range []string{"localhost", "", "::"} {
		for _, taken := range []string{"127.0.0.1", "::1"} {
			port := fixedPort(t)
			other, err := net.Listen("tcp", net.JoinHostPort(taken, port))
			if err != nil {
				t.Fatal(err)
			}
			socks, err := Listen(t.Context(), Endpoint{"tcp", net.JoinHostPort(host, port)}, nil)
			if !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("%q with %s taken: %v, %v", host, taken, socks, err)
			}
			other.Close()
			if got := reaches(t, port); got != nil {
				t.Errorf("%q with %s taken: %q stay bound", host, taken, got)
			}
		}
	}
}

// A family that the system lacks is left out, unless it is all that was asked for.
func TestListenAbsentFamily(t *testing.T) {
	absent := sockAddr{anyIPv6, 0, true}
	absent.host = absent.host.Next().Next() // ::2, which no host has
	socks := make([]net.Listener, 2)
	if err := (binder{listen: listenTCP}).bindMissing(t.Context(), []sockAddr{{loopbackIPv4, 0, true}, absent}, socks); err != nil || socks[0] == nil || socks[1] != nil {
		t.Fatalf("%v, %v", socks, err)
	}
	socks[0].Close()
	if err := (binder{listen: listenTCP}).bindMissing(t.Context(), []sockAddr{absent}, make([]net.Listener, 1)); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("%v", err)
	}
	absent.optional = false
	socks = make([]net.Listener, 2)
	if err := (binder{listen: listenTCP}).bindMissing(t.Context(), []sockAddr{{loopbackIPv4, 0, true}, absent}, socks); !errors.Is(err, syscall.EADDRNOTAVAIL) || socks[0] != nil {
		t.Errorf("%v, %v", socks, err)
	}
}

func TestOverlaps(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"127.0.0.1:7", "127.0.0.1:7", true},
		{"127.0.0.1:7", "127.0.0.1:8", false},
		{"127.0.0.1:7", "127.0.0.2:7", false},
		{"127.0.0.1:7", "0.0.0.0:7", true},
		{"127.0.0.1:7", "[::ffff:127.0.0.1]:7", true},
		{"127.0.0.1:7", "[::]:7", true},
		{"127.0.0.1:7", ":7", true},
		{"127.0.0.1:7", "localhost:7", true},
		{"127.0.0.1:7", "[::1]:7", false},
		{"[::1]:7", "0.0.0.0:7", false},
		{"[::1]:7", "localhost:7", true},
		{"[::]:7", "0.0.0.0:7", true},
		{":0", ":0", false},
		{"name:7", "name:7", true},
		{"name:7", "127.0.0.1:7", false}, // the kernel will tell
		{"unix:/a", "unix:/a", true},
		{"unix:/a", "unix:/b", false},
		{"systemd:a", "systemd:a", true},
		{"systemd:a", ":7", false},
	} {
		a, b := listenOn(t, KindForward, tt.a).Address, listenOn(t, KindForward, tt.b).Address
		ab, ba := a.Overlaps(KindForward, b, ""), b.Overlaps("", a, KindForward)
		if ab != tt.want || ba != tt.want {
			t.Errorf("%s and %s: %v and %v, want %v", tt.a, tt.b, ab, ba, tt.want)
		}
	}
}

// A transparent listener takes both loopback addresses.
func TestOverlapsTransparent(t *testing.T) {
	four, six := listenOn(t, KindTransparent, "127.0.0.1:7").Address, listenOn(t, KindForward, "[::1]:7").Address
	for _, tt := range []struct {
		four, six Kind
		want      bool
	}{
		{KindTransparent, KindForward, true},
		{KindForward, KindTransparent, true},
		{KindTransparent, KindTransparent, true},
		{KindTransparent, "", true},
		{KindForward, KindSOCKS5, false},
	} {
		if ab, ba := four.Overlaps(tt.four, six, tt.six), six.Overlaps(tt.six, four, tt.four); ab != tt.want || ba != tt.want {
			t.Errorf("%s and %s: %v and %v, want %v", tt.four, tt.six, ab, ba, tt.want)
		}
	}
}

func TestCovers(t *testing.T) {
	for _, tt := range []struct {
		a, b   string
		ab, ba bool
	}{
		{"127.0.0.1:7", "127.0.0.1:7", true, true},
		{"0.0.0.0:7", "127.0.0.1:7", true, false},
		{"localhost:7", "127.0.0.1:7", true, false},
		{"localhost:7", "0.0.0.0:7", false, false},
		{"[::]:7", ":7", true, true},
		{":7", "localhost:7", true, false},
		{"127.0.0.1:7", "127.0.0.1:8", false, false},
		{"0.0.0.0:0", "127.0.0.1:0", false, false},
		{"name:7", "127.0.0.1:7", false, false},
		{":7", "name:7", false, false},
		{"unix:/a", "unix:/a", true, true},
		{"unix:/a", ":7", false, false},
	} {
		a, b := listenOn(t, KindForward, tt.a).Address, listenOn(t, KindForward, tt.b).Address
		if a.Covers(b) != tt.ab || b.Covers(a) != tt.ba {
			t.Errorf("%s and %s: %v and %v, want %v and %v", tt.a, tt.b, a.Covers(b), b.Covers(a), tt.ab, tt.ba)
		}
	}
}

// listenerOf makes one that may be bound anywhere.
func listenerOf(t testing.TB, kind Kind, host, port string) Listener {
	t.Helper()
	l := listenOn(t, kind, net.JoinHostPort(host, port))
	if kind == KindSOCKS5 || kind == KindConnect {
		l.Users = []User{{"ann", "secret"}}
	}
	return l
}

// servedAs says what a listener does with a connection.
func servedAs(t testing.TB, addr string) Kind {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return KindTransparent // reset before the dial was over
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "\x05\x01\x02\r\n")
	b := make([]byte, 2)
	n, err := io.ReadFull(c, b)
	switch {
	case err != nil:
		return KindTransparent // nobody redirected it
	case string(b) == "\x05\x02":
		return KindSOCKS5
	case string(b) == "HT":
		return KindConnect
	case string(b) == "\x05\x01":
		return KindForward // an echo
	}
	t.Errorf("%s answers %q", addr, b[:n])
	return ""
}

// boundOf is what a Proxy that starts with the listener is bound to.
func boundOf(t testing.TB, l Listener) []string {
	t.Helper()
	n := newNode(t, Config{Listeners: []Listener{l}}, &fakeLink{})
	defer n.Close()
	return n.Status()[0].Bound
}

// Every change of address or kind on one port is made by a reload, leads to
// what a start would, and costs no connection; and a reload that fails after
// it changes nothing.
func TestReloadTransitions(t *testing.T) {
	needIPv6(t)
	taken := newTarget(t, "", echo)
	kinds := []Kind{KindForward, KindSOCKS5, KindConnect, KindTransparent}
	hosts := []string{"127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::", "", "localhost"}
	port := fixedPort(t)
	n := newNodes(t, Config{}, Config{Services: serviceAt(t, newTarget(t, "", echo))})
	set := func(ls ...Listener) error {
		cfg := stateConfig(n.web)
		cfg.Listeners = ls
		return n.web.update(cfg)
	}
	change := func(from, to Listener) {
		t.Helper()
		what := fmt.Sprintf("%s to %s", from.name(), to.name())
		if err := set(); err != nil {
			t.Fatal(err)
		}
		want := boundOf(t, to)
		if err := set(from); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		before := n.web.Status()[0].Bound
		var c net.Conn
		if from.Kind == KindForward {
			c = dialTo(t, "tcp", before[0])
			say(t, c, "before")
		}
		if err := set(to, listenOn(t, KindForward, taken)); !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatalf("%s and a port that is taken: %v", what, err)
		}
		if got := n.web.Status()[0].Bound; !slices.Equal(got, before) {
			t.Errorf("%s: after a reload that failed it is bound to %q, not %q", what, got, before)
		}
		for _, a := range before {
			if got := servedAs(t, hostless(a)); got != from.Kind {
				t.Errorf("%s: after a reload that failed %s is a %s", what, a, got)
			}
		}
		if err := set(to); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := n.web.Status()[0].Bound; !slices.Equal(got, want) {
			t.Errorf("%s: bound to %q, a start binds %q", what, got, want)
		}
		for _, a := range want {
			if got := servedAs(t, hostless(a)); got != to.Kind {
				t.Errorf("%s: %s is a %s", what, a, got)
			}
		}
		host, _, _ := net.SplitHostPort(to.Address.Address)
		if got := reaches(t, port); to.Kind != KindTransparent && !slices.Equal(got, reached[host]) {
			t.Errorf("%s: reached on %q, want %q", what, got, reached[host])
		}
		if c != nil {
			say(t, c, "after")
			c.Close()
		}
	}
	for _, from := range hosts {
		for _, to := range hosts {
			change(listenerOf(t, KindForward, from, port), listenerOf(t, KindForward, to, port))
		}
	}
	for _, host := range hosts {
		for _, from := range kinds {
			for _, to := range kinds {
				change(listenerOf(t, from, host, port), listenerOf(t, to, host, port))
			}
		}
	}
	change(listenerOf(t, KindForward, "0.0.0.0", port), listenerOf(t, KindTransparent, "127.0.0.1", port))
	change(listenerOf(t, KindTransparent, "::1", port), listenerOf(t, KindForward, "0.0.0.0", port))
}

// hostless puts loopback in the place of a wildcard, to dial it.
func hostless(addr string) string {
	return strings.NewReplacer("0.0.0.0:", "127.0.0.3:", "[::]:", "[::1]:").Replace(addr)
}

// Widening and narrowing an address under traffic costs no connection to what
// both mean.
func TestReloadTransitionsLoseNothing(t *testing.T) {
	needIPv6(t)
	port := fixedPort(t)
	n := newNodes(t, Config{Listeners: []Listener{listenerOf(t, KindForward, "127.0.0.1", port)}}, Config{Services: serviceAt(t, newTarget(t, "", echo))})
	stop := make(chan struct{})
	var rounds atomic.Int64
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := oneRound(t.Context(), "127.0.0.1:"+port); err != nil {
					t.Error(err)
					return
				}
				rounds.Add(1)
			}
		})
	}
	for range 3 {
		for _, host := range []string{"0.0.0.0", "127.0.0.1", "::", "localhost", "", "0.0.0.0", "localhost", "::", "127.0.0.1"} {
			cfg := stateConfig(n.web)
			cfg.Listeners = []Listener{listenerOf(t, KindForward, host, port)}
			if err := n.web.update(cfg); err != nil {
				t.Fatal(err)
			}
			next := rounds.Load() + 8
			eventually(t, "more connections", func() bool { return rounds.Load() >= next || t.Failed() })
		}
	}
	close(stop)
	clients.Wait()
}

func oneRound(ctx context.Context, addr string) error {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err == nil && string(got) != "hello" {
		err = fmt.Errorf("got %q", got)
	}
	return err
}

// One address becomes two listeners, each with a part of its sockets, and back.
func TestReloadSplitsListener(t *testing.T) {
	needIPv6(t)
	port := fixedPort(t)
	both := listenerOf(t, KindForward, "localhost", port)
	four, six := listenerOf(t, KindForward, "127.0.0.1", port), listenerOf(t, KindSOCKS5, "::1", port)
	n := newNodes(t, Config{Listeners: []Listener{both}}, Config{Services: serviceAt(t, newTarget(t, "", echo))})
	c := dialTo(t, "tcp", "[::1]:"+port)
	say(t, c, "before")
	for _, ls := range [][]Listener{{six, four}, {both}} {
		cfg := stateConfig(n.web)
		cfg.Listeners = ls
		if err := n.web.update(cfg); err != nil {
			t.Fatal(err)
		}
		want := KindForward
		if len(ls) == 2 {
			want = KindSOCKS5
		}
		if got := servedAs(t, "[::1]:"+port); got != want {
			t.Errorf("[::1] is a %s, want %s", got, want)
		}
		if got := servedAs(t, "127.0.0.1:"+port); got != KindForward {
			t.Errorf("127.0.0.1 is a %s", got)
		}
	}
	say(t, c, "after")
}

// What the config keeps is in nobody's way: two listeners that overlap fail in
// a reload as they do at a start.
func TestReloadKeepsOverlapOut(t *testing.T) {
	port := fixedPort(t)
	narrow, wide := listenerOf(t, KindForward, "127.0.0.1", port), listenerOf(t, KindForward, "0.0.0.0", port)
	n := newNode(t, Config{Listeners: []Listener{narrow}}, &fakeLink{})
	cfg := stateConfig(n)
	cfg.Listeners = []Listener{narrow, wide}
	if err := n.update(cfg); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v", err)
	}
}

// Ports that a reload has shared are shared with nobody afterwards.
func TestReloadSharesWithNobody(t *testing.T) {
	port := fixedPort(t)
	n := newNode(t, Config{Listeners: []Listener{listenerOf(t, KindForward, "127.0.0.1", port)}}, &fakeLink{})
	cfg := stateConfig(n)
	cfg.Listeners = []Listener{listenerOf(t, KindForward, "0.0.0.0", port)}
	if err := n.update(cfg); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "0.0.0.0"} {
		if l, err := net.Listen("tcp4", net.JoinHostPort(host, port)); err == nil {
			l.Close()
			t.Errorf("another socket was bound to %s", host)
		}
	}
	all := n.listeners[0].all()
	if len(all) != 2 {
		t.Errorf("%d sockets, want the old one and the new", len(all))
	}
	for _, s := range all {
		raw, err := s.Listener.(*net.TCPListener).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			if v, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, unix.SO_REUSEPORT); err != nil || v != 0 {
				t.Errorf("%v still shares its port: %d, %v", s.Addr(), v, err)
			}
		})
	}
}

// A port that the kernel picked stays with the address that it was picked for.
func TestReloadKeepsPickedPort(t *testing.T) {
	ls := []Listener{listenOn(t, KindForward, "localhost:0"), listenOn(t, KindForward, "127.0.0.1:0")}
	n := newNode(t, Config{Listeners: ls}, &fakeLink{})
	before := n.addr(1)
	cfg := stateConfig(n)
	cfg.Listeners = ls[1:]
	if err := n.update(cfg); err != nil {
		t.Fatal(err)
	}
	if got := n.addr(0); got != before {
		t.Errorf("bound to %s, before to %s", got, before)
	}
}

// A listener that counts goes on counting where its address stays.
func TestReloadKeepsCounts(t *testing.T) {
	n := newNodes(t, Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}}, Config{Services: serviceAt(t, newTarget(t, "", echo))})
	c := dialTo(t, "tcp", n.web.addr(0))
	say(t, c, "x")
	cfg := stateConfig(n.web)
	cfg.Listeners = slices.Clone(cfg.Listeners)
	cfg.Listeners[0].To.Service = "other"
	if err := n.web.update(cfg); err != nil {
		t.Fatal(err)
	}
	if st := n.web.Status()[0]; st.Open != 1 || st.Total != 1 {
		t.Errorf("%+v", st)
	}
	c.Close()
	eventually(t, "the connection is gone", func() bool { return n.web.Status()[0].Open == 0 })
}

// A socket that closes first gives out the connections that the kernel has made.
func TestStopTakesWhatWaits(t *testing.T) {
	n := newNodes(t, Config{}, Config{Services: serviceAt(t, newTarget(t, "", echo))})
	st, err := n.web.compile(Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	ls, err := n.web.bindAll(st, nil)
	if err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	for range 50 {
		conns = append(conns, dialTo(t, "tcp", ls[0].socks[0].Addr().String()))
	}
	ls[0].own()
	stopAll(ls[0].socks)
	for _, c := range conns {
		roundTrip(t, c, "served")
	}
}

// A unix socket keeps its file where another kind of listener takes its path,
// with another mode, and where that reload fails.
func TestReloadUnixKinds(t *testing.T) {
	path := socketPath(t)
	n := newNodes(t, Config{}, Config{Services: serviceAt(t, newTarget(t, "", echo))})
	taken := listenOn(t, KindForward, newTarget(t, "", echo))
	answers := map[Kind]string{KindForward: "\x05\x01\x00", KindSOCKS5: "\x05\x00", KindConnect: "HTTP/1.1 400 "}
	var file os.FileInfo
	check := func(kind Kind, mode os.FileMode) {
		t.Helper()
		now, err := os.Lstat(path)
		if err != nil || now.Mode().Perm() != mode || file != nil && !os.SameFile(file, now) {
			t.Errorf("%s: the file is %v, %v", kind, now, err)
		}
		file = now
		c := dialTo(t, "unix", path)
		io.WriteString(c, "\x05\x01\x00")
		hear(t, c, answers[kind])
		c.Close()
	}
	last, lastMode := Kind(""), os.FileMode(0)
	for i, kind := range []Kind{KindForward, KindSOCKS5, KindConnect, KindForward, KindForward} {
		l := listenOn(t, kind, "unix:"+path)
		l.Mode = os.FileMode(0o600 | i<<3)
		cfg := stateConfig(n.web)
		cfg.Listeners = []Listener{l, taken}
		if err := n.web.update(cfg); !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatalf("%v", err)
		}
		if last != "" {
			check(last, lastMode)
		}
		cfg.Listeners = cfg.Listeners[:1]
		if err := n.web.update(cfg); err != nil {
			t.Fatal(err)
		}
		check(kind, l.Mode)
		last, lastMode = kind, l.Mode
	}
}

// A listener's name is looked up when it is bound, and not by later reloads,
// which would fail with the resolver.
func TestReloadLooksNoNameUpAgain(t *testing.T) {
	n := newNodes(t, Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}},
		Config{Services: serviceAt(t, newTarget(t, "", echo))})
	before := n.web.addr(0)
	// As if the name had been known.
	cfg := stateConfig(n.web)
	cfg.Listeners = slices.Clone(cfg.Listeners)
	cfg.Listeners[0].Address.Address = "forgotten.invalid:" + strconv.Itoa(int(portOf(t, before)))
	n.web.listeners[0].cfg.Address = cfg.Listeners[0].Address
	if leaving, err := n.web.Leaving(cfg); err != nil || len(leaving) > 0 {
		t.Errorf("%v, %v", leaving, err)
	}
	if err := n.web.update(cfg); err != nil {
		t.Error(err)
	}
	if got := n.web.addr(0); got != before {
		t.Errorf("bound to %s, before to %s", got, before)
	}
	roundTrip(t, dialTo(t, "tcp", before), "as before")
}
