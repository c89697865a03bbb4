package proxy

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// hastyNodes have listeners of every kind whose waits are over before the
// connections of a test are, and a service that is told where they come from.
func hastyNodes(t *testing.T, w waits, dial time.Duration) (*pairOfNodes, string) {
	target := newTarget(t, "", func(c net.Conn) {
		if _, err := readProxyHeader(c); err == nil {
			echo(c)
		}
	})
	services := serviceAt(t, target)
	services[0].ProxyProtocol = true
	link := &fakeLink{self: "web", exits: make(map[string]*Proxy)}
	db := newNode(t, Config{
		Services: services, Egress: []EgressRule{egressFor(t, "web", "127.0.0.1:*")}, Timeouts: Timeouts{Dial: dial},
	}, link)
	link.exits["db"] = db.Proxy
	proxied := listenOn(t, KindForward, "127.0.0.1:0")
	proxied.ProxyProtocol = true
	web := newNodeThat(t, Config{
		Listeners: []Listener{
			listenOn(t, KindForward, "127.0.0.1:0"), proxied, listenOn(t, KindSOCKS5, "127.0.0.1:0"), listenOn(t, KindConnect, "127.0.0.1:0"),
		},
		Routes:   []Route{routeTo(t, "*:*", Target{Peer: "db"})},
		Timeouts: Timeouts{Dial: dial},
	}, link, func(p *Proxy) { p.waits = w })
	return &pairOfNodes{web: web, db: db, link: link}, target
}

// What bounds a request, its answer or a dial does not bound the connection
// behind it, in either direction.
func TestNothingOutlivesTheHandshake(t *testing.T) {
	t.Parallel()
	const limit = 400 * time.Millisecond
	n, _ := hastyNodes(t, waits{request: limit, linger: limit}, limit)
	plain := newTarget(t, "", echo)
	header := string(appendProxyHeader(nil, addrPort("192.0.2.1:1"), addrPort("192.0.2.2:2"), "lb"))
	conns := make(map[string]net.Conn)
	for i, what := range []string{"forward", "proxy_protocol", "socks5", "connect"} {
		c := dialTo(t, "tcp", n.web.addr(i))
		switch what {
		case "proxy_protocol":
			io.WriteString(c, header)
		case "socks5":
			_, c = exchange(t, n.web.addr(i), socksRequest(1, "127.0.0.1", portOf(t, plain)))
		case "connect":
			io.WriteString(c, "CONNECT "+plain+" HTTP/1.1\r\n\r\n")
			hear(t, c, "HTTP/1.1 200 Connection established\r\n\r\n")
		}
		say(t, c, "within the limit")
		conns[what] = c
	}
	time.Sleep(2 * limit) // so that whatever was set is over
	for what, c := range conns {
		say(t, c, "long after "+what)
		roundTrip(t, c, "to its end")
	}
}

// A connection that ends before its first byte, as a health check does, is no
// refusal: no warning, no entry, no count.
func TestHealthChecksAreQuiet(t *testing.T) {
	n, _ := hastyNodes(t, usualWaits, 0)
	for i, kind := range map[int]Kind{1: KindForward, 2: KindSOCKS5, 3: KindConnect} {
		for _, reset := range []bool{false, true} {
			c := dialTo(t, "tcp", n.web.addr(i))
			if reset {
				c.(*net.TCPConn).SetLinger(0)
			}
			c.Close()
			line := n.web.log.want(t, "from="+c.LocalAddr().String(), "via="+string(kind))
			if line["level"] != "debug" {
				t.Errorf("%s: %v", kind, line)
			}
		}
	}
	if r := n.web.Refusals(); len(r) > 0 {
		t.Errorf("refusals %+v", r)
	}
	if k := n.web.tally.get(n.web.tally.results, "socks5 bad_request") + n.web.tally.get(n.web.tally.results, "connect bad_request"); k > 0 {
		t.Errorf("%d bad requests", k)
	}
	// One byte is a request that broke off.
	for i := 1; i <= 3; i++ {
		c := dialTo(t, "tcp", n.web.addr(i))
		io.WriteString(c, "C")
		c.Close()
		n.web.log.want(t, "from="+c.LocalAddr().String(), "level=warn", "result=bad_request")
	}
	if r := n.web.Refusals(); len(r) != 3 {
		t.Errorf("refusals %+v", r)
	}
}

// Clients that have said nothing, or half of it, do not hold a drain up.
func TestDrainWaitsForNoRequest(t *testing.T) {
	n, _ := hastyNodes(t, waits{request: time.Hour, linger: 50 * time.Millisecond}, 0)
	half := map[int]string{1: "\r\n", 2: "\x05", 3: "CONNECT "}
	for i := range half {
		for _, said := range []string{"", half[i]} {
			io.WriteString(dialTo(t, "tcp", n.web.addr(i)), said)
		}
	}
	eventually(t, "all are served", func() bool {
		var open int64
		for _, l := range n.web.Status() {
			open += l.Open
		}
		return open == 6
	})
	if cut := n.web.Drain(t.Context()); cut != 0 {
		t.Errorf("%d cut", cut)
	}
}

// A conn that tells of its deadlines.
type deadlineConn struct {
	net.Conn
	set func(time.Time)
}

func (c deadlineConn) SetDeadline(t time.Time) error {
	c.set(t)
	return nil
}

// A drain that comes as a request is complete leaves no deadline behind.
func TestDrainSetsNoDeadlineBehindARequest(t *testing.T) {
	n := newNode(t, Config{}, &fakeLink{})
	ending, release := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var last time.Time
	c := deadlineConn{set: func(d time.Time) {
		if d.Equal(time.Unix(1, 0)) {
			close(ending)
			<-release
		}
		mu.Lock()
		defer mu.Unlock()
		last = d
	}}
	done := (&listener{p: n.Proxy}).awaitRequest(c)
	n.drainOnly()
	<-ending
	returned := make(chan struct{})
	go func() {
		done()
		close(returned)
	}()
	select {
	case <-returned:
		t.Error("the request was taken before the drain had set its deadline")
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	<-returned
	mu.Lock()
	defer mu.Unlock()
	if !last.IsZero() {
		t.Errorf("the deadline is %v", last)
	}
}

// A client that is refused sees the end of its answer at once, although it does
// not hang up itself.
func TestRefusedClientSeesTheEnd(t *testing.T) {
	n, _ := hastyNodes(t, waits{request: time.Hour, linger: time.Hour}, 0)
	for i, request := range map[int]string{
		2: "\x05\x01\x00" + string(socksRequest(1, "127.0.0.9", 1)),
		3: "CONNECT 127.0.0.9:1 HTTP/1.1\r\n\r\n",
	} {
		c := dialTo(t, "tcp", n.web.addr(i))
		io.WriteString(c, request)
		if _, err := io.ReadAll(c); err != nil {
			t.Errorf("%q: %v", request, err)
		}
		c.Close()
	}
	c := dialTo(t, "tcp", n.web.addr(3))
	io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	if got, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 405 ") {
		t.Errorf("%q, %v", got, err)
	}
}

// A listener without users takes a client that offers a user and a password
// alone, and no authentication wherever that is offered.
func TestSOCKS5WithoutUsers(t *testing.T) {
	n, _ := hastyNodes(t, usualWaits, 0)
	plain := newTarget(t, "", echo)
	for _, tt := range []struct{ greeting, method, login, reply string }{
		{"\x05\x01\x00", "\x05\x00", "", ""},
		{"\x05\x02\x00\x02", "\x05\x00", "", ""},
		{"\x05\x02\x02\x00", "\x05\x00", "", ""},
		{"\x05\x04\x80\x02\x01\x00", "\x05\x00", "", ""},
		{"\x05\x01\x02", "\x05\x02", "\x01\x03ann\x06secret", "\x01\x00"},
		{"\x05\x02\x01\x02", "\x05\x02", "\x01\x01x\x00", "\x01\x00"},
		{"\x05\x02\x01\x80", "\x05\xff", "", ""},
		{"\x05\x00", "\x05\xff", "", ""},
	} {
		c := dialTo(t, "tcp", n.web.addr(2))
		for _, b := range []byte(tt.greeting) {
			c.Write([]byte{b})
		}
		hear(t, c, tt.method)
		if tt.method == "\x05\xff" {
			wantEOF(t, c)
			continue
		}
		io.WriteString(c, tt.login)
		hear(t, c, tt.reply)
		c.Write(socksRequest(1, "127.0.0.1", portOf(t, plain)))
		hear(t, c, "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
		roundTrip(t, c, "hello")
	}
}
