package proxy

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestUnixModeAndOwner(t *testing.T) {
	path := socketPath(t)
	l := listenOn(t, KindForward, "unix:"+path)
	n := newNodes(t, Config{Listeners: []Listener{l}}, Config{Services: serviceAt(t, newTarget(t, "", echo))})
	check := func(mode fs.FileMode, gid int) {
		t.Helper()
		st, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != mode || int(st.Sys().(*syscall.Stat_t).Gid) != gid {
			t.Errorf("mode %v, group %d, want %v, %d", st.Mode().Perm(), st.Sys().(*syscall.Stat_t).Gid, mode, gid)
		}
	}
	check(0o600, os.Getgid())

	gid := os.Getgid()
	if os.Getuid() == 0 {
		gid = 12345
	}
	l.Mode, l.Owner = 0o660, strconv.Itoa(os.Getuid())+":"+strconv.Itoa(gid)
	if err := n.web.update(Config{Listeners: []Listener{l}}); err != nil {
		t.Fatal(err)
	}
	check(0o660, gid)
	roundTrip(t, dialTo(t, "unix", path), "same socket")

	// What a reload changed before it failed is undone.
	stricter := l
	stricter.Mode = 0o600
	taken := listenOn(t, KindForward, newTarget(t, "", echo))
	if err := n.web.update(Config{Listeners: []Listener{stricter, taken}}); err == nil {
		t.Error("a taken port was bound")
	}
	check(0o660, gid)

	l.Owner = "no-such-user-here"
	if err := n.web.update(Config{Listeners: []Listener{l}}); err == nil || !strings.Contains(err.Error(), "no-such-user-here") {
		t.Errorf("%v", err)
	}
	check(0o660, gid)
}

func TestUnixStaleFile(t *testing.T) {
	path := socketPath(t)
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	cfg := Config{Listeners: []Listener{listenOn(t, KindForward, "unix:"+path)}}
	n := newNode(t, cfg, &fakeLink{})

	// A live one is left alone, and so is a file that is no socket.
	p, err := newProxy(cfg, &fakeLink{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v", err)
	}
	p.Close()
	n.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err = newProxy(cfg, &fakeLink{}); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("%v", err)
	}
	p.Close()
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestAbstractSocket(t *testing.T) {
	name := "@sealane-test-" + strconv.Itoa(os.Getpid())
	newNodesAndTalk(t, "unix:"+name, "unix", name)
}

func newNodesAndTalk(t *testing.T, listen, network, addr string) {
	t.Helper()
	newNodes(t, Config{Listeners: []Listener{listenOn(t, KindForward, listen)}}, Config{Services: serviceAt(t, newTarget(t, "", echo))})
	roundTrip(t, dialTo(t, network, addr), "hello")
}

// activation makes sockets as systemd would pass them.
func activation(t *testing.T, name string, addrs ...string) (map[string][]*os.File, []string) {
	t.Helper()
	sockets := make(map[string][]*os.File)
	var bound []string
	for _, a := range addrs {
		l, err := net.Listen("tcp", a)
		if err != nil {
			t.Skip(err)
		}
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		bound = append(bound, l.Addr().String())
		l.Close()
		sockets[name] = append(sockets[name], f)
	}
	return sockets, bound
}

func TestSystemdListener(t *testing.T) {
	sockets, bound := activation(t, "app", "127.0.0.1:0", "[::1]:0")
	cfg := Config{Listeners: []Listener{listenOn(t, KindForward, "systemd:app")}, Activated: sockets}
	n := newNodes(t, cfg, Config{Services: serviceAt(t, newTarget(t, "", echo))})
	for _, addr := range bound {
		roundTrip(t, dialTo(t, "tcp", addr), "activated")
	}
	// A reload that changes nothing keeps all sockets of the name.
	if err := n.web.update(cfg); err != nil {
		t.Fatal(err)
	}
	for _, addr := range bound {
		roundTrip(t, dialTo(t, "tcp", addr), "kept")
	}
	if got := n.web.Status()[0].Bound; len(got) != len(bound) {
		t.Errorf("bound to %v, want %v", got, bound)
	}
	// Taken away and brought back by reloads.
	gone := cfg
	gone.Listeners = nil
	for _, c := range []Config{gone, cfg} {
		if err := n.web.update(c); err != nil {
			t.Fatal(err)
		}
	}
	roundTrip(t, dialTo(t, "tcp", bound[0]), "again")
	if !n.web.isOwnPort(portOf(t, bound[1])) {
		t.Error("the passed socket's port is not an own port")
	}
}

func TestSystemdListenerErrors(t *testing.T) {
	wide, _ := activation(t, "app", "0.0.0.0:0")
	for _, tt := range []struct {
		kind Kind
		name string
		want string
	}{
		{KindForward, "other", `passed no socket named "other"`},
		{KindSOCKS5, "app", "add users"},
		{KindConnect, "app", "add users"},
	} {
		p, err := newProxy(Config{Listeners: []Listener{listenOn(t, tt.kind, "systemd:"+tt.name)}, Activated: wide}, &fakeLink{})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Start(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, want %q", err, tt.want)
		}
		p.Close()
	}
}

// Nor does a reload make an open proxy of a wide socket that served something else.
func TestSystemdListenerReloadNeedsUsers(t *testing.T) {
	wide, bound := activation(t, "app", "0.0.0.0:0")
	n := newNodes(t, Config{Listeners: []Listener{listenOn(t, KindForward, "systemd:app")}, Activated: wide},
		Config{Services: serviceAt(t, newTarget(t, "", echo))})
	for _, kind := range []Kind{KindSOCKS5, KindConnect} {
		cfg := stateConfig(n.web)
		cfg.Listeners = []Listener{listenOn(t, kind, "systemd:app")}
		if err := n.web.update(cfg); !errors.Is(err, errNeedsUsers) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	_, port, _ := net.SplitHostPort(bound[0])
	roundTrip(t, dialTo(t, "tcp", "127.0.0.1:"+port), "still a forward")
}

// ActivatedSockets is tested in a process of its own, where descriptors 3 and
// 4 can be what systemd would pass.
func TestActivatedSockets(t *testing.T) {
	if os.Getenv("SEALANE_TEST_ACTIVATED") != "" {
		activatedChild()
		return
	}
	_, bound := activation(t, "x", "127.0.0.1:0")
	sockets, more := activation(t, "y", "127.0.0.1:0")
	first, _ := activation(t, "x", bound[0])
	cmd := exec.Command(os.Args[0], "-test.run=^TestActivatedSockets$")
	cmd.ExtraFiles = append(first["x"], sockets["y"]...)
	cmd.Env = append(os.Environ(), "SEALANE_TEST_ACTIVATED=1", "LISTEN_FDS=2", "LISTEN_FDNAMES=web:admin")
	out, err := cmd.CombinedOutput()
	want := "web " + bound[0] + "\nadmin " + more[0] + "\n"
	if err != nil || string(out) != want {
		t.Errorf("%v: %s, want %s", err, out, want)
	}
	for _, env := range []map[string]string{{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}} {
		got, err := ActivatedSockets(func(k string) string { return env[k] }, os.Getpid())
		if err != nil || len(got) != 0 {
			t.Errorf("%v gives %v, %v", env, got, err)
		}
	}
	self := map[string]string{"LISTEN_PID": strconv.Itoa(os.Getpid()), "LISTEN_FDS": "many"}
	if _, err := ActivatedSockets(func(k string) string { return self[k] }, os.Getpid()); err == nil {
		t.Error("LISTEN_FDS=many was taken")
	}
}

func activatedChild() {
	getenv := func(k string) string {
		if k == "LISTEN_PID" {
			return strconv.Itoa(os.Getpid())
		}
		return os.Getenv(k)
	}
	sockets, err := ActivatedSockets(getenv, os.Getpid())
	if err != nil {
		os.Stdout.WriteString(err.Error())
		os.Exit(1)
	}
	cfg := Config{Activated: sockets}
	for _, name := range []string{"web", "admin"} {
		socks, err := cfg.activated(name)
		if err != nil {
			os.Stdout.WriteString(err.Error())
			os.Exit(1)
		}
		os.Stdout.WriteString(name + " " + socks[0].Addr().String() + "\n")
	}
	os.Exit(0)
}

func TestConfigErrors(t *testing.T) {
	forward := listenOn(t, KindForward, "127.0.0.1:7")
	with := func(change func(l *Listener)) Config {
		l := forward
		change(&l)
		return Config{Peers: []string{"db"}, Listeners: []Listener{l}}
	}
	service := serviceAt(t, "127.0.0.1:1")[0]
	for want, cfg := range map[string]Config{
		"unknown kind":                  with(func(l *Listener) { l.Kind = "udp" }),
		"has no address":                with(func(l *Listener) { l.Address = Endpoint{} }),
		"unknown peer \"web\"":          with(func(l *Listener) { l.To.Peer = "web" }),
		"leads to a peer's service":     with(func(l *Listener) { l.To.Service = "" }),
		"leads to a peer's service; ":   with(func(l *Listener) { l.To = Target{Direct: true} }),
		"users are for":                 with(func(l *Listener) { l.Users = []User{{"a", "b"}} }),
		"mode and owner are for":        with(func(l *Listener) { l.Mode = 0o600 }),
		"more than permission bits":     with(func(l *Listener) { l.Address.Network, l.Mode = "unix", 0o4600 }),
		"is for forward listeners":      with(func(l *Listener) { l.Kind, l.ProxyProtocol = KindSOCKS5, true }),
		"needs a name and a password":   with(func(l *Listener) { l.Kind, l.Users = KindSOCKS5, []User{{"a", ""}} }),
		"at most 255 bytes":             with(func(l *Listener) { l.Kind, l.Users = KindSOCKS5, []User{{"a", strings.Repeat("x", 256)}} }),
		"has no original destination":   with(func(l *Listener) { l.Kind, l.Address = KindTransparent, Endpoint{"unix", "/x"} }),
		"the address is listed twice":   {Listeners: []Listener{forward, forward}},
		"a route has no match":          {Routes: []Route{{To: Target{Direct: true}}}},
		"write either a peer or":        {Routes: []Route{routeTo(t, "*:*", Target{})}},
		"write either a peer or direct": {Routes: []Route{routeTo(t, "*:*", Target{Peer: "db", Direct: true})}},
		"route *:*: unknown peer":       {Peers: []string{"db"}, Routes: []Route{routeTo(t, "*:*", Target{Peer: "web"})}},
		"\"app\" is listed twice":       {Services: []Service{service, service}},
		"allows no peer":                {Services: []Service{{Name: "app", Address: service.Address}}},
		"neither HOST:PORT nor":         {Services: []Service{{Name: "app", Allow: []string{"web"}}}},
		"\"app\": unknown peer":         {Peers: []string{"db"}, Services: []Service{service}},
		"must not be empty":             {Egress: []EgressRule{{Allow: []string{"web"}}}},
		"rule 1: unknown peer":          {Peers: []string{"db"}, Egress: []EgressRule{egressFor(t, "web", "*:*")}},
	} {
		if _, err := newProxy(cfg, &fakeLink{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	ok := Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0"), listenOn(t, KindForward, "127.0.0.1:0")}}
	if _, err := newProxy(ok, &fakeLink{}); err != nil {
		t.Error(err)
	}
}

func TestStartError(t *testing.T) {
	taken := newTarget(t, "", echo)
	path := filepath.Join(t.TempDir(), "s")
	p, err := newProxy(Config{Listeners: []Listener{listenOn(t, KindForward, "unix:"+path), listenOn(t, KindForward, taken)}}, &fakeLink{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Start(); err == nil || !strings.Contains(err.Error(), "listener forward "+taken) {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the first listener's socket was left behind")
	}
}

// REDIRECT sends each family to its own loopback address.
func TestTransparentTakesBothFamilies(t *testing.T) {
	probe, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here")
	}
	probe.Close()
	for host, other := range map[string]string{"127.0.0.1": "::1", "::1": "127.0.0.1"} {
		l := listenOn(t, KindTransparent, net.JoinHostPort(host, "0"))
		n := newNode(t, Config{Listeners: []Listener{l}}, &fakeLink{})
		bound := n.Status()[0].Bound
		_, port, err := net.SplitHostPort(bound[0])
		if err != nil || len(bound) != 2 || bound[1] != net.JoinHostPort(other, port) {
			t.Errorf("%s: bound to %v", host, bound)
		}
		// Nobody redirected these: they were going to the listener itself.
		for _, a := range bound {
			c, err := net.Dial("tcp", a)
			if err == nil {
				_, err = c.Read(make([]byte, 1))
				c.Close()
			}
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: %v", a, err)
			}
		}
	}
}

// A reload that changes the owner of a unix socket alone changes that.
func TestUnixOwnerAlone(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may give a file to another group")
	}
	path := socketPath(t)
	l := listenOn(t, KindForward, "unix:"+path)
	n := newNode(t, Config{Listeners: []Listener{l}}, &fakeLink{})
	for _, gid := range []int{12345, 12346, os.Getgid()} {
		l.Owner = ":" + strconv.Itoa(gid)
		if err := n.update(Config{Listeners: []Listener{l}}); err != nil {
			t.Fatal(err)
		}
		st, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := int(st.Sys().(*syscall.Stat_t).Gid); got != gid {
			t.Errorf("group %d, want %d", got, gid)
		}
	}
}

// Closing a socket leaves what another process has put in its place, a socket
// of the same mode among it.
func TestUnixCloseLeavesAnothersSocket(t *testing.T) {
	path := socketPath(t)
	n := newNode(t, Config{Listeners: []Listener{listenOn(t, KindForward, "unix:"+path)}}, &fakeLink{})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := ListenUnix(path, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	n.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the other's socket: %v", err)
	}
	c.Close()
}
