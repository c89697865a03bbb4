package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func stateConfig(n *node) Config { return n.state.Load().cfg }

// What a new config no longer allows is reset at once; the rest is not touched.
func TestUpdateRevokes(t *testing.T) {
	target := newTarget(t, "", echo)
	other := newTarget(t, "", echo)
	n := newNodes(t,
		Config{
			Peers:     []string{"db"},
			Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0"), listenOn(t, KindSOCKS5, "127.0.0.1:0")},
			Routes:    []Route{routeTo(t, "*:*", Target{Peer: "db"})},
		},
		Config{
			Peers:    []string{"web", "spare"},
			Services: serviceAt(t, target),
			Egress:   []EgressRule{egressFor(t, "web", "127.0.0.1:*")},
		})
	service := dialTo(t, "tcp", n.web.addr(0))
	say(t, service, "service")
	_, egress := exchange(t, n.web.addr(1), socksRequest(1, "127.0.0.1", portOf(t, target)))
	say(t, egress, "egress")
	_, egress2 := exchange(t, n.web.addr(1), socksRequest(1, "127.0.0.1", portOf(t, other)))
	say(t, egress2, "egress")

	// Nothing that matters to these streams changes.
	cfg := stateConfig(n.db)
	cfg.Services = append(serviceAt(t, other), Service{Name: "more", Address: cfg.Services[0].Address, Allow: []string{"spare"}})
	if err := n.db.update(cfg); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{service, egress, egress2} {
		say(t, c, "untouched")
	}

	// Egress is narrowed to the port of one of the two.
	cfg.Egress = []EgressRule{egressFor(t, "web", "127.0.0.1:"+strconv.Itoa(int(portOf(t, other))))}
	if err := n.db.update(cfg); err != nil {
		t.Fatal(err)
	}
	wantReset(t, egress)
	say(t, egress2, "untouched")
	n.db.log.want(t, "via=egress", "result=cut", "reason=no longer allowed by the config")

	// The service goes to another peer.
	cfg.Services[0].Allow = []string{"spare"}
	if err := n.db.update(cfg); err != nil {
		t.Fatal(err)
	}
	wantReset(t, service)
	say(t, egress2, "untouched")

	// The entry drops the peer.
	entry := stateConfig(n.web)
	entry.Peers = []string{"another"}
	entry.Listeners, entry.Routes = nil, nil
	if err := n.web.update(entry); err != nil {
		t.Fatal(err)
	}
	wantReset(t, egress2)
	n.web.log.want(t, "result=cut", "reason=peer removed from the config")
}

func TestUpdateExitDropsPeer(t *testing.T) {
	n := newNodes(t, Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}},
		Config{Peers: []string{"web"}, Services: serviceAt(t, newTarget(t, "", echo))})
	c := dialTo(t, "tcp", n.web.addr(0))
	say(t, c, "x")
	if err := n.db.update(Config{Peers: []string{"other"}}); err != nil {
		t.Fatal(err)
	}
	wantReset(t, c)
	n.db.log.want(t, "result=cut", "reason=peer removed from the config")
}

// Taking a listener away closes its port; its connections go on.
func TestUpdateListeners(t *testing.T) {
	target := newTarget(t, "", echo)
	n := newNodes(t, Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0"), listenOn(t, KindForward, "[::1]:0")}},
		Config{Services: serviceAt(t, target)})
	keeps, goes := n.web.addr(0), n.web.addr(1)
	c := dialTo(t, "tcp", goes)
	say(t, c, "before")
	cfg := stateConfig(n.web)
	path := socketPath(t)
	cfg.Listeners = []Listener{listenOn(t, KindForward, "unix:"+path), cfg.Listeners[0]}
	if err := n.web.update(cfg); err != nil {
		t.Fatal(err)
	}
	say(t, c, "after")
	if c, err := net.Dial("tcp", goes); err == nil {
		c.Close()
		t.Error("the old listener still accepts")
	}
	roundTrip(t, dialTo(t, "tcp", keeps), "kept")
	roundTrip(t, dialTo(t, "unix", path), "new")
	if got := n.web.Status(); len(got) != 2 || got[0].Bound[0] != path || got[1].Bound[0] != keeps {
		t.Errorf("status %+v", got)
	}

	cfg.Listeners = cfg.Listeners[1:]
	if err := n.web.update(cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket's file is still there: %v", err)
	}
}

// A listener's config changes while its socket stays.
func TestUpdateListenerInPlace(t *testing.T) {
	target := newTarget(t, "", echo)
	l := listenOn(t, KindSOCKS5, "127.0.0.1:0")
	cfg := Config{Listeners: []Listener{l}, Routes: []Route{routeTo(t, "*:*", Target{Peer: "db"})}}
	n := newNodes(t, cfg, Config{Services: serviceAt(t, target), Egress: []EgressRule{egressFor(t, "web", "127.0.0.1:*")}})
	addr := n.web.addr(0)
	l.Users = []User{{"ann", "secret"}}
	cfg.Listeners = []Listener{l}
	if err := n.web.update(cfg); err != nil {
		t.Fatal(err)
	}
	c := dialTo(t, "tcp", addr)
	c.Write([]byte{5, 1, 0})
	hear(t, c, "\x05\xff")
	forward := listenOn(t, KindForward, "127.0.0.1:0")
	cfg.Listeners = []Listener{forward}
	if err := n.web.update(cfg); err != nil {
		t.Fatal(err)
	}
	roundTrip(t, dialTo(t, "tcp", addr), "now a forward")
}

// A port that is taken changes nothing, and says which listener it was.
func TestUpdateFailureChangesNothing(t *testing.T) {
	target := newTarget(t, "", echo)
	n := newNodes(t, Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}}, Config{Services: serviceAt(t, target)})
	before := n.web.addr(0)
	c := dialTo(t, "tcp", before)
	say(t, c, "x")
	path := socketPath(t)
	_, port, _ := net.SplitHostPort(before)
	cfg := stateConfig(n.web)
	cfg.Listeners = []Listener{
		listenOn(t, KindForward, "unix:"+path), // would work
		listenOn(t, KindForward, "127.0.0.2:"+port),
		listenOn(t, KindForward, target),
	}
	cfg.Peers = []string{"db"}
	err := n.web.update(cfg)
	if err == nil || !strings.Contains(err.Error(), "listener forward "+target) || !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("%v", err)
	}
	say(t, c, "y")
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a socket was left behind: %v", err)
	}
	if got := n.web.Status(); len(got) != 1 || got[0].Bound[0] != before {
		t.Errorf("status %+v", got)
	}
	roundTrip(t, dialTo(t, "tcp", before), "as before")

	bad := stateConfig(n.db)
	bad.Services[0].Allow = nil
	if err := n.db.Update(bad); err == nil {
		t.Error("a service without allow was taken")
	}
}

// The same port on another address has to displace the old listener first;
// if the rest of the config fails then, it comes back.
func TestUpdateSamePortOtherAddress(t *testing.T) {
	target := newTarget(t, "", echo)
	port := fixedPort(t)
	n := newNodes(t, Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:"+port)}}, Config{Services: serviceAt(t, target)})
	cfg := stateConfig(n.web)
	wide := listenOn(t, KindForward, "0.0.0.0:"+port)
	cfg.Listeners = []Listener{wide, listenOn(t, KindForward, target)}
	if err := n.web.update(cfg); err == nil {
		t.Fatal("a port that is taken was bound")
	}
	roundTrip(t, dialTo(t, "tcp", "127.0.0.1:"+port), "as before")
	cfg.Listeners = []Listener{wide}
	if err := n.web.update(cfg); err != nil {
		t.Fatal(err)
	}
	roundTrip(t, dialTo(t, "tcp", "127.0.0.2:"+port), "wider")
	cfg.Listeners = []Listener{listenOn(t, KindForward, "127.0.0.1:"+port)}
	if err := n.web.update(cfg); err != nil {
		t.Fatal(err)
	}
	roundTrip(t, dialTo(t, "tcp", "127.0.0.1:"+port), "narrow again")
	if c, err := net.Dial("tcp", "127.0.0.2:"+port); err == nil {
		c.Close()
		t.Error("still bound to every address")
	}
}

// Where room was made for one listener and another then fails, both old ones
// come back.
func TestUpdateRestoresDisplaced(t *testing.T) {
	target := newTarget(t, "", echo)
	p1, p2 := fixedPort(t), fixedPort(t)
	n := newNodes(t,
		Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:"+p1), listenOn(t, KindForward, "127.0.0.1:"+p2)}},
		Config{Services: serviceAt(t, target)})
	other, err := net.Listen("tcp", "127.0.0.2:"+p2)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	cfg := stateConfig(n.web)
	cfg.Listeners = []Listener{listenOn(t, KindForward, "0.0.0.0:"+p1), listenOn(t, KindForward, "0.0.0.0:"+p2)}
	if err := n.web.update(cfg); err == nil || !strings.Contains(err.Error(), "listener forward 0.0.0.0:"+p2) {
		t.Fatalf("%v", err)
	}
	for _, p := range []string{p1, p2} {
		roundTrip(t, dialTo(t, "tcp", "127.0.0.1:"+p), "as before")
	}
	if c, err := net.Dial("tcp", "127.0.0.3:"+p1); err == nil {
		c.Close()
		t.Error("the new listener is still there")
	}
	if got := n.web.Status(); len(got) != 2 || got[0].Bound[0] != "127.0.0.1:"+p1 {
		t.Errorf("status %+v", got)
	}
}

// fixedPort finds a port that is free on every address and that no client's
// socket may take meanwhile: below those that the kernel hands out.
func fixedPort(t *testing.T) string {
	t.Helper()
	for {
		port := strconv.Itoa(10000 + rand.IntN(20000))
		if l, err := net.Listen("tcp", "0.0.0.0:"+port); err == nil {
			l.Close()
			return port
		}
	}
}

// Reloads under traffic cost no connection.
func TestUpdateUnderLoad(t *testing.T) {
	n := newNodes(t, Config{Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}}, Config{Services: serviceAt(t, newTarget(t, "", echo))})
	addr := n.web.addr(0)
	stop := make(chan struct{})
	errs := make(chan error, 8)
	payload := bytes.Repeat([]byte("x"), 8<<10)
	for range 8 {
		go func() {
			errs <- func() error {
				for {
					select {
					case <-stop:
						return nil
					default:
					}
					c, err := net.Dial("tcp", addr)
					if err != nil {
						return err
					}
					c.Write(payload)
					c.(*net.TCPConn).CloseWrite()
					got, err := io.ReadAll(c)
					c.Close()
					if err != nil || len(got) != len(payload) {
						return errors.Join(err, errors.New("short answer"))
					}
				}
			}()
		}()
	}
	for i := range 20 {
		cfg := stateConfig(n.web)
		cfg.Timeouts.Idle = time.Hour + time.Duration(i)
		if err := n.web.update(cfg); err != nil {
			t.Error(err)
		}
		if err := n.db.update(stateConfig(n.db)); err != nil {
			t.Error(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	close(stop)
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestDrain(t *testing.T) {
	n := forwardNodes(t, newTarget(t, "", echo), Timeouts{})
	addr := n.web.addr(0)
	c := dialTo(t, "tcp", addr)
	say(t, c, "before")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	done := make(chan int)
	go func() { done <- n.web.Drain(ctx) }()
	eventually(t, "the listener closes", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	say(t, c, "still served")
	select {
	case <-done:
		t.Fatal("the drain ended before the connection")
	default:
	}
	roundTrip(t, c, "to its end")
	if cut := <-done; cut != 0 {
		t.Errorf("%d cut", cut)
	}
}

func TestDrainCuts(t *testing.T) {
	n := forwardNodes(t, newTarget(t, "", echo), Timeouts{})
	var conns []net.Conn
	for range 3 {
		c := dialTo(t, "tcp", n.web.addr(0))
		say(t, c, "x")
		conns = append(conns, c)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if cut := n.web.Drain(ctx); cut != 3 {
		t.Errorf("%d cut, want 3", cut)
	}
	for _, c := range conns {
		wantReset(t, c)
		n.web.log.want(t, "from="+c.LocalAddr().String(), "result=cut", "reason=cut: the drain's deadline passed")
	}
	n.db.log.want(t, "result=cut")
}

// Out of descriptors, waiting connections are refused, running ones live, and
// it recovers.
func TestDescriptorExhaustion(t *testing.T) {
	n := forwardNodes(t, newTarget(t, "", echo), Timeouts{})
	c := dialTo(t, "tcp", n.web.addr(0))
	say(t, c, "x")
	// This client's descriptor must exist before there are none left.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Sec: int64(patience / time.Second)})

	release := exhaustDescriptors(t)
	defer release()
	to := &syscall.SockaddrInet4{Port: int(portOf(t, n.web.addr(0))), Addr: [4]byte{127, 0, 0, 1}}
	if err := syscall.Connect(fd, to); err == nil {
		_, err = syscall.Read(fd, make([]byte, 1))
		if err != syscall.ECONNRESET {
			t.Errorf("the waiting client saw %v, not a reset", err)
		}
	} else if err != syscall.ECONNRESET {
		t.Error(err)
	}
	say(t, c, "alive")
	release()
	eventually(t, "it recovers", func() bool {
		c, err := net.Dial("tcp", n.web.addr(0))
		if err != nil {
			return false
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("recovered")); err != nil {
			return false
		}
		_, err = io.ReadFull(c, make([]byte, 9))
		return err == nil
	})
	say(t, c, "alive")
	if e := n.web.Status()[0].LastError; !strings.Contains(e, "too many open files") {
		t.Errorf("the status tells %q", e)
	}
}

// exhaustDescriptors takes every descriptor that is left.
func exhaustDescriptors(t *testing.T) (release func()) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	low := old
	low.Cur = min(old.Cur, 256)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	var taken []int
	for {
		fd, err := syscall.Dup(0)
		if err != nil {
			break
		}
		taken = append(taken, fd)
	}
	return sync.OnceFunc(func() {
		for _, fd := range taken {
			syscall.Close(fd)
		}
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old)
	})
}

// A stream is kept or cut by the address that it was dialed at, which is not
// always the first that its name has.
func TestUpdateGoesByTheDialedAddress(t *testing.T) {
	target := newTarget(t, "", echo)
	dns := &fakeDNS{}
	dns.set("two.internal", "10.0.0.1", "10.0.0.2")
	cfg := Config{
		Egress:  []EgressRule{egressFor(t, "web", "10.0.0.1:80", "10.0.0.2:80")},
		Resolve: dns.resolve,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "10.0.0.1:80" {
				return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
			}
			c, err := (&net.Dialer{}).DialContext(ctx, network, target)
			return addressed{c, addr}, err
		},
	}
	n := newNodes(t, Config{
		Listeners: []Listener{listenOn(t, KindSOCKS5, "127.0.0.1:0")},
		Routes:    []Route{routeTo(t, "*:*", Target{Peer: "db"})},
	}, cfg)
	open := func() net.Conn {
		code, c := exchange(t, n.web.addr(0), socksRequest(1, "two.internal", 80))
		if code != 0 {
			t.Fatalf("reply %d", code)
		}
		say(t, c, "before")
		return c
	}
	keep := open()
	cfg.Egress = []EgressRule{egressFor(t, "web", "10.0.0.2:80")}
	if err := n.db.update(cfg); err != nil {
		t.Fatal(err)
	}
	say(t, keep, "after")
	cfg.Egress = []EgressRule{egressFor(t, "web", "10.0.0.1:80")}
	if err := n.db.update(cfg); err != nil {
		t.Fatal(err)
	}
	wantReset(t, keep)
}

// What a reload takes away is cut even if it is only just being opened: by
// the rules before, and after the reload has looked at what is open.
func TestUpdateWhileOpening(t *testing.T) {
	target := newTarget(t, "", echo)
	dialing, dial := make(chan struct{}), make(chan struct{})
	cfg := Config{
		Peers:  []string{"web"},
		Egress: []EgressRule{egressFor(t, "web", "10.0.0.1:*")},
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			close(dialing)
			<-dial
			c, err := (&net.Dialer{}).DialContext(ctx, network, target)
			return addressed{c, addr}, err
		},
	}
	n := newNodes(t, Config{
		Listeners: []Listener{listenOn(t, KindSOCKS5, "127.0.0.1:0")},
		Routes:    []Route{routeTo(t, "*:*", Target{Peer: "db"})},
	}, cfg)
	c := dialTo(t, "tcp", n.web.addr(0))
	io.WriteString(c, "\x05\x01\x00"+string(socksRequest(1, "10.0.0.1", 80)))
	<-dialing
	cfg.Egress = nil
	if err := n.db.update(cfg); err != nil {
		t.Fatal(err)
	}
	close(dial)
	hear(t, c, "\x05\x00") // the method; a reply may come, then the end
	wantReset(t, c)
	n.db.log.want(t, "target=10.0.0.1:80", "result=cut", "reason=no longer allowed by the config")
}

// The same at the end of the app, whose peer the reload removes.
func TestUpdateWhileOpeningHere(t *testing.T) {
	dialing, dial := make(chan struct{}), make(chan struct{})
	target := newTarget(t, "", echo)
	cfg := Config{Peers: []string{"db"}, Listeners: []Listener{listenOn(t, KindForward, "127.0.0.1:0")}}
	n := newNodes(t, cfg, Config{
		Services: serviceAt(t, target),
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			close(dialing)
			<-dial
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
	})
	c := dialTo(t, "tcp", n.web.addr(0))
	<-dialing
	if err := n.web.update(Config{Peers: []string{"other"}}); err != nil {
		t.Fatal(err)
	}
	close(dial)
	wantReset(t, c)
	n.web.log.want(t, "result=cut", "reason=peer removed from the config")
}

// A reload that seals what is about to go direct is in time as long as no byte
// has left. One that does not seal it is no obstacle.
func TestUpdateWhileGoingDirect(t *testing.T) {
	plain := newTarget(t, "", echo)
	dialing, dial := make(chan struct{}), make(chan struct{})
	cfg := Config{
		Listeners: []Listener{listenOn(t, KindSOCKS5, "127.0.0.1:0")},
		Routes:    []Route{routeTo(t, "*:*", Target{Direct: true})},
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			dialing <- struct{}{}
			<-dial
			return (&net.Dialer{}).DialContext(ctx, network, plain)
		},
	}
	n := newNodes(t, cfg, Config{Services: serviceAt(t, newTarget(t, "", func(c net.Conn) { io.WriteString(c, "sealed") }))})
	dialed := func() {
		t.Helper()
		select {
		case <-dialing:
		case <-time.After(patience):
			t.Fatal("nothing was dialed")
		}
	}
	for _, sealed := range []bool{false, true} {
		c := dialTo(t, "tcp", n.web.addr(0))
		io.WriteString(c, "\x05\x01\x00"+string(socksRequest(1, "10.0.0.1", 80)))
		dialed()
		if sealed {
			cfg.Routes = []Route{routeTo(t, "10.0.0.1:80", Target{Peer: "db", Service: "app"}), cfg.Routes[0]}
		}
		if err := n.web.update(cfg); err != nil {
			t.Fatal(err)
		}
		dial <- struct{}{}
		hear(t, c, "\x05\x00")
		if sealed {
			hear(t, c, "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00sealed")
			continue
		}
		dialed()
		dial <- struct{}{}
		hear(t, c, "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
		say(t, c, "direct")
	}
}

// A stream that outlives reloads leaves the gauge of open ones where it found it.
func TestGaugeOverReloads(t *testing.T) {
	n := forwardNodes(t, newTarget(t, "", echo), Timeouts{})
	c := dialTo(t, "tcp", n.web.addr(0))
	say(t, c, "before")
	for _, node := range []*node{n.web, n.db} {
		if err := node.update(node.state.Load().cfg); err != nil {
			t.Fatal(err)
		}
	}
	say(t, c, "after")
	for what, count := range map[string]func() int{
		"app's":    func() int { return n.web.tally.get(n.web.tally.open, "db forward") },
		"target's": func() int { return n.db.tally.get(n.db.tally.open, "web service") },
	} {
		if count() != 1 {
			t.Errorf("the %s node has %d open", what, count())
		}
	}
	roundTrip(t, c, "end")
	eventually(t, "the gauges are at zero", func() bool {
		return n.web.tally.get(n.web.tally.open, "db forward") == 0 && n.db.tally.get(n.db.tally.open, "web service") == 0
	})
}

// A socket that a reload takes away still serves what the kernel had taken for it.
func TestLastCallsAreServed(t *testing.T) {
	n := forwardNodes(t, newTarget(t, "", echo), Timeouts{})
	sock, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newBound(sock, "x")
	s.owner.Store(n.web.listeners[0])
	var waiting []net.Conn
	for range 3 {
		waiting = append(waiting, dialTo(t, "tcp", sock.Addr().String()))
	}
	close(s.stopped) // before any was accepted
	s.accept()
	sock.Close()
	for _, c := range waiting {
		roundTrip(t, c, "still served")
	}
}

// Apps that connect without a pause keep no socket from closing.
func TestLastCallsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, taken := time.Now(), 0
		takeLast(&steady{every: lastCall / 2}, func(net.Conn) { taken++ })
		if took := time.Since(begun); took > 2*lastCalls || taken < 2 {
			t.Errorf("%d connections in %s", taken, took)
		}
	})
}

// steady is a socket to which somebody connects again and again.
type steady struct {
	net.Listener
	every    time.Duration
	deadline time.Time
}

func (l *steady) SetDeadline(t time.Time) error {
	l.deadline = t
	return nil
}

func (l *steady) Accept() (net.Conn, error) {
	if time.Until(l.deadline) < l.every {
		time.Sleep(time.Until(l.deadline))
		return nil, os.ErrDeadlineExceeded
	}
	time.Sleep(l.every)
	return nil, nil
}
