package proxy

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sealane/sealane/internal/dial"
	"github.com/sealane/sealane/mux"
)

// askExit opens a stream from peer at the exit and returns the answer.
func askExit(t *testing.T, n *node, peer, to string) *mux.OpenError {
	t.Helper()
	l := &fakeLink{self: peer, exits: map[string]*Proxy{"x": n.Proxy}}
	s, err := l.Open(t.Context(), "x", mux.Open{To: to, Via: "socks5"})
	if err == nil {
		s.Reset(mux.ResetApp)
		return &mux.OpenError{Status: mux.StatusOK}
	}
	return err.(*mux.OpenError)
}

// dialLog is a dialer that connects to nothing and notes what it was asked.
type dialLog struct {
	mu     sync.Mutex
	dialed []string
}

func (d *dialLog) dial(_ context.Context, _, address string) (net.Conn, error) {
	d.mu.Lock()
	d.dialed = append(d.dialed, address)
	d.mu.Unlock()
	c, other := net.Pipe()
	other.Close()
	return addressed{c, address}, nil
}

func (d *dialLog) take() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := strings.Join(d.dialed, " ")
	d.dialed = nil
	return s
}

type addressed struct {
	net.Conn
	addr string
}

func (a addressed) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(a.addr))
}

func TestEgress(t *testing.T) {
	dns := &fakeDNS{}
	for host, addrs := range map[string]string{
		"db.internal":        "10.0.0.1",
		"loop.internal":      "127.0.0.1",
		"meta.internal":      "169.254.169.254",
		"mapped.internal":    "::ffff:127.0.0.1",
		"nat64.internal":     "64:ff9b::7f00:1",
		"sixtofour.internal": "2002:7f00:1::1",
		"rebind.internal":    "127.0.0.1 10.0.0.2",
		"other.example":      "10.9.0.1",
		"elsewhere.example":  "192.0.2.1",
		"zone.internal":      "fe80::1",
		"none.internal":      "",
	} {
		dns.set(host, strings.Fields(addrs)...)
	}
	dials := &dialLog{}
	n := newNode(t, Config{
		Egress: []EgressRule{
			egressFor(t, "web", "*.internal:443", "10.0.0.0/8:5432", "127.0.0.5:80", "[::1]:80", "224.1.0.0/16:80", "[64:ff9b::7f00:9]:80"),
			egressFor(t, "all", "*:*", "0.0.0.0/0:*", "[::/0]:*"),
			egressFor(t, "loop", "127.0.0.0/8:*"),
			egressFor(t, "cloud", "168.63.129.16:80", "192.0.0.192/26:80", "[fd00:ec2::254]:80", "[64:ff9b:1::/48]:443", "[64:ff9b:1::7f00:2]:443",
				"[::ffff:0:0a00:1]:1", "[64:ff9b::6464:64c8]:80"),
		},
		Resolve: dns.resolve, Dial: dials.dial,
	}, &fakeLink{})
	for _, tt := range []struct {
		peer, to, dialed string
		status           mux.Status
	}{
		{"web", "db.internal:443", "10.0.0.1:443", mux.StatusOK},
		{"web", "DB.Internal:443", "10.0.0.1:443", mux.StatusOK},
		{"web", "db.internal:5432", "10.0.0.1:5432", mux.StatusOK}, // by the address it has
		{"web", "db.internal:80", "", mux.StatusDenied},
		{"web", "other.example:5432", "10.9.0.1:5432", mux.StatusOK},
		{"web", "elsewhere.example:5432", "", mux.StatusDenied},
		{"web", "elsewhere.example:443", "", mux.StatusDenied},
		{"web", "10.2.3.4:5432", "10.2.3.4:5432", mux.StatusOK},
		{"web", "[::ffff:10.2.3.4]:5432", "10.2.3.4:5432", mux.StatusOK},
		{"web", "10.2.3.4:443", "", mux.StatusDenied},
		{"web", "loop.internal:443", "", mux.StatusDenied},
		{"web", "meta.internal:443", "", mux.StatusDenied},
		{"web", "mapped.internal:443", "", mux.StatusDenied},
		{"web", "nat64.internal:443", "", mux.StatusDenied},
		{"web", "sixtofour.internal:443", "", mux.StatusDenied},
		{"web", "rebind.internal:443", "10.0.0.2:443", mux.StatusOK},
		{"web", "zone.internal:443", "", mux.StatusDenied},
		{"web", "none.internal:443", "", mux.StatusNameNotFound},
		{"web", "gone.internal:443", "", mux.StatusNameNotFound},
		{"web", "127.0.0.5:80", "127.0.0.5:80", mux.StatusOK},
		{"web", "127.0.0.6:80", "", mux.StatusDenied},
		{"web", "[::1]:80", "[::1]:80", mux.StatusOK},
		{"web", "224.1.2.3:80", "224.1.2.3:80", mux.StatusOK},
		{"web", "[64:ff9b::7f00:9]:80", "[64:ff9b::7f00:9]:80", mux.StatusOK},
		{"web", "127.1:80", "", mux.StatusDenied},
		{"web", "2130706433:80", "", mux.StatusDenied},
		{"web", "a..internal:443", "", mux.StatusDenied},
		{"all", "192.0.2.1:1", "192.0.2.1:1", mux.StatusOK},
		{"all", "[2001:db8::1]:1", "[2001:db8::1]:1", mux.StatusOK},
		{"all", "127.0.0.1:1", "", mux.StatusDenied},
		{"all", "0.0.0.0:1", "", mux.StatusDenied},
		{"all", "0.1.2.3:1", "", mux.StatusDenied},
		{"all", "169.254.169.254:80", "", mux.StatusDenied},
		{"all", "224.0.0.1:1", "", mux.StatusDenied},
		{"all", "255.255.255.255:1", "", mux.StatusDenied},
		{"all", "[::]:1", "", mux.StatusDenied},
		{"all", "[::1]:1", "", mux.StatusDenied},
		{"all", "[fe80::1]:1", "", mux.StatusDenied},
		{"all", "[ff02::1]:1", "", mux.StatusDenied},
		{"all", "[::ffff:127.0.0.1]:1", "", mux.StatusDenied},
		{"all", "[::127.0.0.1]:1", "", mux.StatusDenied},
		{"all", "[64:ff9b::a9fe:a9fe]:1", "", mux.StatusDenied},
		{"all", "[2002:a9fe:a9fe::]:1", "", mux.StatusDenied},
		{"all", "[64:ff9b:1::a00:1]:1", "", mux.StatusDenied},
		{"all", "[64:ff9b:1:2::a00:1]:1", "", mux.StatusDenied},
		{"all", "[::ffff:0:a00:1]:1", "", mux.StatusDenied},
		{"all", "[::ffff:0:7f00:1]:1", "", mux.StatusDenied},
		{"all", "[2001:0:808:808::f5ff:fffe]:1", "", mux.StatusDenied},
		{"all", "100.100.100.200:80", "", mux.StatusDenied},
		{"all", "168.63.129.16:80", "", mux.StatusDenied},
		{"all", "192.0.0.192:80", "", mux.StatusDenied},
		{"all", "[fd00:ec2::254]:80", "", mux.StatusDenied},
		{"all", "[fd00:ec2::23]:80", "", mux.StatusDenied},
		{"all", "[fd20:ce::254]:80", "", mux.StatusDenied},
		{"all", "[fd00:42::42]:80", "", mux.StatusDenied},
		{"all", "[::ffff:100.100.100.200]:80", "", mux.StatusDenied},
		{"all", "[64:ff9b::6464:64c8]:80", "", mux.StatusDenied},
		{"all", "[2002:a83f:8110::1]:80", "", mux.StatusDenied},
		{"all", "100.100.100.201:80", "100.100.100.201:80", mux.StatusOK},
		{"all", "[fd00:ec3::254]:80", "[fd00:ec3::254]:80", mux.StatusOK},
		{"all", "[64:ff9b::808:808]:80", "[64:ff9b::808:808]:80", mux.StatusOK},
		{"all", "[64:ff9b:2::1]:80", "[64:ff9b:2::1]:80", mux.StatusOK},
		{"cloud", "168.63.129.16:80", "168.63.129.16:80", mux.StatusOK},
		{"cloud", "192.0.0.192:80", "192.0.0.192:80", mux.StatusOK},
		{"cloud", "[fd00:ec2::254]:80", "[fd00:ec2::254]:80", mux.StatusOK},
		{"cloud", "[64:ff9b:1::a00:1]:443", "[64:ff9b:1::a00:1]:443", mux.StatusOK},
		{"cloud", "[64:ff9b:1::7f00:1]:443", "", mux.StatusDenied}, // the range is named, loopback is not
		{"cloud", "[64:ff9b:1::7f00:2]:443", "[64:ff9b:1::7f00:2]:443", mux.StatusOK},
		{"cloud", "[::ffff:0:a00:1]:1", "[::ffff:0:a00:1]:1", mux.StatusOK},
		{"cloud", "[64:ff9b::6464:64c8]:80", "[64:ff9b::6464:64c8]:80", mux.StatusOK},
		{"loop", "127.8.9.10:7", "127.8.9.10:7", mux.StatusOK},
		{"loop", "loop.internal:7", "127.0.0.1:7", mux.StatusOK},
		{"stranger", "10.2.3.4:5432", "", mux.StatusDenied},
		{"stranger", "db.internal:443", "", mux.StatusDenied},
	} {
		asked := dns.asked("")
		got := askExit(t, n, tt.peer, tt.to)
		if dialed := dials.take(); got.Status != tt.status || dialed != tt.dialed {
			t.Errorf("%s to %s: %v (%s), dialed %q; want %v, %q", tt.peer, tt.to, got.Status, got.Text, dialed, tt.status, tt.dialed)
		}
		if tt.peer == "stranger" && dns.asked("") != asked {
			t.Errorf("%s to %s: a peer that may reach nothing caused a lookup", tt.peer, tt.to)
		}
		// The peer learns nothing of what this node resolves.
		if strings.Contains(got.Text, "127.0.0.1") || strings.Contains(got.Text, "10.0.0") {
			t.Errorf("%s to %s: the text %q tells too much", tt.peer, tt.to, got.Text)
		}
	}
	n.log.want(t, "target=meta.internal:443", "reason=169.254.169.254:443 is link-local and no egress rule for peer \"web\" names it literally")
	n.log.want(t, "target=10.2.3.4:443", "reason=no egress rule lets peer \"web\" reach 10.2.3.4:443")
}

func TestServices(t *testing.T) {
	target := newTarget(t, "", echo)
	n := newNode(t, Config{Services: serviceAt(t, target)}, &fakeLink{})
	for _, tt := range []struct {
		peer, to string
		want     mux.Status
	}{
		{"web", "app", mux.StatusOK}, {"eve", "app", mux.StatusDenied}, {"web", "missing", mux.StatusUnknownService},
	} {
		if got := askExit(t, n, tt.peer, tt.to); got.Status != tt.want {
			t.Errorf("%s to %s: %v", tt.peer, tt.to, got)
		}
	}
	n.log.want(t, "result=denied", "reason=service \"app\" does not allow peer \"eve\"")
}

// A service that leads back into this process is refused when it is dialed,
// if only that tells.
func TestServicesReachNothingOwn(t *testing.T) {
	dir := t.TempDir()
	admin, link := filepath.Join(dir, "admin.sock"), filepath.Join(dir, "link.sock")
	newTarget(t, admin, echo)
	own, other := newTarget(t, "", echo), newTarget(t, filepath.Join(dir, "other.sock"), echo)
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	dns := &fakeDNS{}
	dns.set("self.internal", "127.0.0.1")
	dns.set("both.internal", "127.0.0.1", "192.0.2.1")
	dials := &dialLog{}
	cfg := Config{
		Listeners:  []Listener{listenOn(t, KindForward, "127.0.0.1:0"), listenOn(t, KindForward, "unix:"+link), listenOn(t, KindForward, "unix:@"+link)},
		Own:        []uint16{portOf(t, own)},
		OwnSockets: []string{admin},
		Resolve:    dns.resolve,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if network == "unix" {
				return (&net.Dialer{}).DialContext(ctx, network, address)
			}
			return dials.dial(ctx, network, address)
		},
	}
	n := newNode(t, cfg, &fakeLink{})
	_, ownPort, _ := net.SplitHostPort(own)
	_, listenerPort, _ := net.SplitHostPort(n.addr(0))
	for address, want := range map[string]mux.Status{
		own:                                mux.StatusDenied,
		"127.0.0.1:" + listenerPort:        mux.StatusDenied,
		"127.0.0.9:" + listenerPort:        mux.StatusDenied,
		"[::1]:" + ownPort:                 mux.StatusDenied,
		"self.internal:" + ownPort:         mux.StatusDenied,
		"both.internal:" + ownPort:         mux.StatusOK, // at the other address
		"192.0.2.1:" + ownPort:             mux.StatusOK,
		"unix:" + admin:                    mux.StatusDenied,
		"unix:" + dir + "/link/admin.sock": mux.StatusDenied,
		"unix:" + dir + "/link/link.sock":  mux.StatusDenied,
		"unix:@" + link:                    mux.StatusDenied,
		"unix:@none" + link:                mux.StatusRefused,
		other:                              mux.StatusOK,
	} {
		cfg.Services = serviceAt(t, address)
		if err := n.update(cfg); err != nil {
			t.Fatal(err)
		}
		if got := askExit(t, n, "web", "app"); got.Status != want {
			t.Errorf("%s: %v, want %v", address, got, want)
		}
		if d := dials.take(); d != "" && d != "192.0.2.1:"+ownPort {
			t.Errorf("%s: dialed %s", address, d)
		}
	}
	n.log.want(t, "via=service", "reason="+own+" is this process's own port")
	n.log.want(t, "via=service", "reason=unix:"+admin+" is this process's own socket")
}

// This process's own ports are out of reach on every local address, whatever
// the rules say.
func TestOwnPorts(t *testing.T) {
	own := newTarget(t, "", echo)
	cfg := Config{
		Listeners: []Listener{listenOn(t, KindSOCKS5, "127.0.0.1:0")},
		Own:       []uint16{portOf(t, own)},
		Egress:    []EgressRule{egressFor(t, "web", "*:*", "127.0.0.0/8:*", "[::1]:*", "0.0.0.0/8:*", "[64:ff9b::7f00:0/112]:*", "[::]:*")},
		Routes:    []Route{routeTo(t, "*:*", Target{Direct: true})},
	}
	dials := &dialLog{}
	cfg.Dial = dials.dial
	n := newNode(t, cfg, &fakeLink{})
	addrs := []string{"127.0.0.1", "127.0.0.77", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[::]"}
	if ifs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range ifs {
			if ip, ok := netip.AddrFromSlice(a.(*net.IPNet).IP); ok && ip.Unmap().Is4() {
				addrs = append(addrs, ip.Unmap().String())
			}
		}
	}
	_, socksPort, _ := net.SplitHostPort(n.addr(0))
	_, ownPort, _ := net.SplitHostPort(own)
	for _, a := range addrs {
		for _, port := range []string{socksPort, ownPort} {
			if got := askExit(t, n, "web", a+":"+port); got.Status != mux.StatusDenied {
				t.Errorf("egress to own port %s:%s: %v", a, port, got)
			}
		}
	}
	if got := askExit(t, n, "web", "192.0.2.1:"+ownPort); got.Status != mux.StatusOK {
		t.Errorf("the same port of another host: %v", got)
	}
	if d := dials.take(); d != "192.0.2.1:"+ownPort {
		t.Errorf("dialed %q", d)
	}
	if code, _ := exchange(t, n.addr(0), socksRequest(1, "127.0.0.1", portOf(t, own))); code != 2 {
		t.Errorf("direct to an own port: reply %d", code)
	}
	if code, _ := exchange(t, n.addr(0), socksRequest(1, "127.0.0.1", portOf(t, n.addr(0)))); code != 2 {
		t.Errorf("direct to the listener itself: reply %d", code)
	}
}

func TestDirect(t *testing.T) {
	target := newTarget(t, "", echo)
	n := newNode(t, Config{
		Listeners: []Listener{listenOn(t, KindSOCKS5, "127.0.0.1:0")},
		Routes:    []Route{routeTo(t, "127.0.0.0/8:*", Target{Direct: true})},
	}, &fakeLink{})
	code, c := exchange(t, n.addr(0), socksRequest(1, "127.0.0.1", portOf(t, target)))
	if code != 0 {
		t.Fatalf("reply %d", code)
	}
	roundTrip(t, c, "in the clear")
	n.log.want(t, "peer=direct", "result=ok", "dialed="+target)
	if n.tally.get(n.tally.bytes, "direct out") != 12 {
		t.Errorf("counted %v", n.tally.bytes)
	}
	if code, _ := exchange(t, n.addr(0), socksRequest(1, "127.0.0.1", closedPort(t))); code != 5 {
		t.Errorf("reply %d", code)
	}
	// A target that resets resets the app.
	reset := newTarget(t, "", func(c net.Conn) {
		c.Read(make([]byte, 1))
		c.(*net.TCPConn).SetLinger(0)
	})
	_, c = exchange(t, n.addr(0), socksRequest(1, "127.0.0.1", portOf(t, reset)))
	c.Write([]byte("x"))
	wantReset(t, c)
}

// Through a listener that other hosts reach, direct routes lead to loopback
// and its like only by name.
func TestDirectFromOutside(t *testing.T) {
	l := &listener{local: false}
	st := &state{cfg: Config{Routes: []Route{routeTo(t, "*:*", Target{Direct: true}), routeTo(t, "127.0.0.9:*", Target{Direct: true})}}}
	st.policy.own = func(uint16) bool { return false }
	dials := &dialLog{}
	st.dialer.dial = dials.dial
	for addr, want := range map[string]bool{"127.0.0.1": false, "169.254.169.254": false, "127.0.0.9": true, "192.0.2.1": true} {
		d := Destination{Addr: netip.MustParseAddr(addr), Port: 80}
		_, f := st.direct(t.Context(), &record{}, l, d, 0)
		if (f == nil) != want {
			t.Errorf("%s: %v", addr, f)
		}
	}
}

// Several addresses are tried: a dead first one does not keep the stream from
// the second, whether it refuses or is silent.
func TestSeveralAddresses(t *testing.T) {
	dns := &fakeDNS{}
	dns.set("two.internal", "10.0.0.1", "10.0.0.2")
	for name, first := range map[string]func(ctx context.Context) error{
		"refuses": func(context.Context) error { return os.NewSyscallError("connect", syscall.ECONNREFUSED) },
		"silent":  func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			dials := &dialLog{}
			n := newNode(t, Config{
				Egress:  []EgressRule{egressFor(t, "web", "two.internal:*")},
				Resolve: dns.resolve,
				Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
					if strings.HasPrefix(addr, "10.0.0.1:") {
						return nil, first(ctx)
					}
					return dials.dial(ctx, network, addr)
				},
			}, &fakeLink{})
			if got := askExit(t, n, "web", "two.internal:80"); got.Status != mux.StatusOK {
				t.Errorf("%v", got)
			}
			if d := dials.take(); d != "10.0.0.2:80" {
				t.Errorf("dialed %q", d)
			}
		})
	}
	t.Run("all refuse", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, Config{
			Egress:  []EgressRule{egressFor(t, "web", "two.internal:*")},
			Resolve: dns.resolve,
			Dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
				if strings.HasPrefix(addr, "10.0.0.1:") {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
			},
			Timeouts: Timeouts{Dial: 2 * time.Second}, // the second attempt begins long before that, however loaded the machine
		}, &fakeLink{})
		if got := askExit(t, n, "web", "two.internal:80"); got.Status != mux.StatusRefused {
			t.Errorf("%v", got)
		}
	})
}

// The second address has not to wait where the first refuses, and little
// where it is silent.
func TestDialStagger(t *testing.T) {
	two := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}
	for name, tt := range map[string]struct {
		first func(context.Context) error
		takes time.Duration
	}{
		"refuses": {func(context.Context) error { return syscall.ECONNREFUSED }, 0},
		"silent":  {func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, dial.HeadStart},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dials := &dialLog{}
				d := dialer{dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
					if addr == "10.0.0.1:80" {
						return nil, tt.first(ctx)
					}
					return dials.dial(ctx, network, addr)
				}}
				start := time.Now()
				c, f := d.dialAny(t.Context(), two, 80)
				if f != nil {
					t.Fatal(f)
				}
				c.Close()
				if took := time.Since(start); took != tt.takes {
					t.Errorf("took %v, want %v", took, tt.takes)
				}
			})
		})
	}
}

func TestLookupFailures(t *testing.T) {
	for err, want := range map[error]Result{
		&net.DNSError{Err: "no such host", IsNotFound: true}: ResultNameNotFound,
		&net.DNSError{Err: "i/o timeout", IsTimeout: true}:   ResultTimedOut,
		&net.DNSError{Err: "server misbehaving"}:             ResultUnreachable,
	} {
		d := dialer{resolve: func(context.Context, string, string) ([]netip.Addr, error) { return nil, err }}
		if _, f := d.lookup(t.Context(), Destination{Name: "db.internal", Port: 1}); f == nil || f.result != want {
			t.Errorf("%v gives %v, want %s", err, f, want)
		}
	}
}

func TestMark(t *testing.T) {
	target := newTarget(t, "", echo)
	d := newDialer(&Config{Mark: 0x5ea})
	c, err := d.dial(t.Context(), "tcp", target)
	if err != nil {
		t.Fatal(err) // a mark that is not allowed is no error
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		mark, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_MARK)
		may := setMark(fd, 0x5ea) == nil
		if err != nil || may != (mark == 0x5ea) {
			t.Errorf("the mark is %#x, %v; may set one: %v", mark, err, may)
		}
	})
}

func TestAlternate(t *testing.T) {
	in := []string{"::1", "::2", "::3", "1.1.1.1", "2.2.2.2"}
	want := "::1 1.1.1.1 ::2 2.2.2.2 ::3"
	var addrs []netip.Addr
	for _, s := range in {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	var got []string
	for _, a := range alternate(addrs) {
		got = append(got, a.String())
	}
	if s := strings.Join(got, " "); s != want {
		t.Errorf("%s, want %s", s, want)
	}
}

func TestPeerGivesUpWhileDialing(t *testing.T) {
	dialing := make(chan struct{})
	n := newNode(t, Config{
		Egress: []EgressRule{egressFor(t, "web", "10.0.0.1:*")},
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			close(dialing)
			<-ctx.Done()
			return nil, ctx.Err()
		},
	}, &fakeLink{})
	ctx, cancel := context.WithCancel(t.Context())
	l := &fakeLink{self: "web", exits: map[string]*Proxy{"x": n.Proxy}}
	go func() {
		<-dialing
		cancel()
	}()
	if _, err := l.Open(ctx, "x", mux.Open{To: "10.0.0.1:80"}); err == nil {
		t.Error("it was opened")
	}
	n.log.want(t, "target=10.0.0.1:80", "message=connection refused")
}

// A peer has only those names looked up that it could be let to: a lookup is
// word to whoever runs the name's servers.
func TestNamesThatNoRuleHasAreNotLookedUp(t *testing.T) {
	dns := &fakeDNS{}
	n := newNode(t, Config{
		Egress:  []EgressRule{egressFor(t, "web", "*.internal:443", "db.example:5432", "10.0.0.0/8:8080")},
		Resolve: dns.resolve, Dial: (&dialLog{}).dial,
	}, &fakeLink{})
	for to, want := range map[string]int{
		"secret.attacker.example:443": 0, "db.example:443": 0, "x.internal:5432": 0, "other.example:5432": 0, "db.internal:80": 0,
		"x.internal:443": 1, "db.example:5432": 1,
		"any.example:8080": 1, // its address may be in the range
	} {
		before := dns.asked("")
		askExit(t, n, "web", to)
		if asked := dns.asked("") - before; asked != want {
			t.Errorf("%s: %d lookups, want %d", to, asked, want)
		}
	}
}

// Of a service's addresses all that are this process's own are left out, also
// behind one that is not, and does not answer.
func TestServiceFallsBackToNothingOwn(t *testing.T) {
	dns := &fakeDNS{}
	dns.set("svc.internal", "192.0.2.1", "127.0.0.1", "::1")
	var mu sync.Mutex
	var dialed []string
	n := newNode(t, Config{
		Services: serviceAt(t, "svc.internal:7423"), Own: []uint16{7423}, Resolve: dns.resolve,
		Dial: func(_ context.Context, _, address string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			dialed = append(dialed, address)
			return nil, syscall.ECONNREFUSED
		},
	}, &fakeLink{})
	if got := askExit(t, n, "web", "app"); got.Status != mux.StatusRefused {
		t.Errorf("%v", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if text := strings.Join(dialed, " "); text != "192.0.2.1:7423" {
		t.Errorf("dialed %s", text)
	}
}
