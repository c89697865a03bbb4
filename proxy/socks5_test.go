package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	xproxy "golang.org/x/net/proxy"

	"github.com/sealane/sealane/mux"
)

// socksNodes has an exit that lets web reach everything that dns knows, and
// 127.0.0.1 by literal rule.
func socksNodes(t *testing.T, dns *fakeDNS, egress ...string) *pairOfNodes {
	if dns == nil {
		dns = &fakeDNS{}
	}
	if egress == nil {
		egress = []string{"*:*", "127.0.0.1:*"}
	}
	return newNodes(t,
		Config{
			Listeners: []Listener{listenOn(t, KindSOCKS5, "127.0.0.1:0"), listenOn(t, KindConnect, "127.0.0.1:0")},
			Routes: []Route{
				routeTo(t, "nolink.test:*", Target{Peer: "nobody"}),
				routeTo(t, "service.test:*", Target{Peer: "db", Service: "missing"}),
				routeTo(t, "*.test:*", Target{Peer: "db"}),
				routeTo(t, "0.0.0.0/0:*", Target{Peer: "db"}),
				routeTo(t, "[::/0]:*", Target{Peer: "db"}),
			},
			Timeouts: Timeouts{Dial: time.Second},
		},
		Config{Egress: []EgressRule{egressFor(t, "web", egress...)}, Resolve: dns.resolve, Timeouts: Timeouts{Dial: 500 * time.Millisecond}})
}

// request is a CONNECT request for a name.
func socksRequest(command byte, host string, port uint16) []byte {
	b := []byte{5, command, 0, 3, byte(len(host))}
	b = append(b, host...)
	return binary.BigEndian.AppendUint16(b, port)
}

// exchange greets without authentication, sends a request, and returns the
// reply's code and whether the connection then ended cleanly.
func exchange(t *testing.T, addr string, request []byte) (code byte, c net.Conn) {
	t.Helper()
	c = dialTo(t, "tcp", addr)
	c.Write([]byte{5, 1, 0})
	hear(t, c, "\x05\x00")
	c.Write(request)
	reply := make([]byte, 10)
	if _, err := io.ReadFull(c, reply); err != nil {
		t.Fatalf("no reply: %v", err)
	}
	if reply[0] != 5 || reply[2] != 0 || reply[3] != 1 {
		t.Fatalf("reply % x", reply)
	}
	return reply[1], c
}

func wantEOF(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after the reply came %d bytes, %v, want the end", n, err)
	}
}

func TestSOCKS5RealClient(t *testing.T) {
	dns := &fakeDNS{}
	dns.set("app.test", "127.0.0.1")
	n := socksNodes(t, dns)
	target := newTarget(t, "", echo)
	d, err := xproxy.SOCKS5("tcp", n.web.addr(0), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	port := fmt.Sprint(portOf(t, target))
	for _, to := range []string{"app.test:" + port, "APP.test:" + port, "127.0.0.1:" + port, "[::ffff:127.0.0.1]:" + port} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		c, err := d.(xproxy.ContextDialer).DialContext(ctx, "tcp", to)
		cancel()
		if err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		io.WriteString(c, "through socks")
		hear(t, c, "through socks")
		c.Close()
		if o := n.link.lastOpen(t); o.Via != "socks5" || strings.HasPrefix(to, "app") && o.To != to {
			t.Errorf("%s opened %+v", to, o)
		}
	}
}

func TestSOCKS5IPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here")
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			echo(c)
			c.Close()
		}
	}()
	n := socksNodes(t, nil, "[::1]:*")
	request := append([]byte{5, 1, 0, 4}, net.IPv6loopback...)
	request = binary.BigEndian.AppendUint16(request, portOf(t, l.Addr().String()))
	code, c := exchange(t, n.web.addr(0), request)
	if code != 0 {
		t.Fatalf("reply %d", code)
	}
	roundTrip(t, c, "over six")
}

// Every way to fail has its reply, byte for byte, and a clean end after it.
func TestSOCKS5Replies(t *testing.T) {
	dns := &fakeDNS{}
	dns.set("refused.test", "127.0.0.1")
	dns.set("denied.test", "127.0.0.2")
	closed := closedPort(t)
	n := socksNodes(t, dns)
	for _, tt := range []struct {
		name    string
		request []byte
		want    byte
		result  Result
	}{
		{"refused", socksRequest(1, "refused.test", closed), 5, ResultRefused},
		{"denied", socksRequest(1, "denied.test", 80), 2, ResultDenied},
		{"name not found", socksRequest(1, "missing.test", 80), 4, ResultNameNotFound},
		{"unknown service", socksRequest(1, "service.test", 80), 1, ResultUnknownService},
		{"no route", socksRequest(1, "elsewhere", 80), 2, ResultNoRoute},
		{"no link", socksRequest(1, "nolink.test", 80), 1, ResultNoLink},
		{"bind", socksRequest(2, "a.test", 80), 7, ResultBadRequest},
		{"udp associate", socksRequest(3, "a.test", 80), 7, ResultBadRequest},
		{"unknown command", socksRequest(9, "a.test", 80), 7, ResultBadRequest},
		{"bind to an address", []byte{5, 2, 0, 1, 127, 0, 0, 1, 0, 80}, 7, ResultBadRequest},
		{"address type", []byte{5, 1, 0, 2, 0, 0}, 8, ResultBadRequest},
		{"empty name", socksRequest(1, "", 80), 2, ResultDenied},
		{"name with NUL", socksRequest(1, "a\x00.test", 80), 2, ResultDenied},
		{"name with a line end", socksRequest(1, "a\r\n.test", 80), 2, ResultDenied},
		{"address in disguise", socksRequest(1, "127.1", 80), 2, ResultDenied},
		{"port 0", socksRequest(1, "a.test", 0), 2, ResultDenied},
		{"brackets in a name", socksRequest(1, "x]:22", 80), 2, ResultDenied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, c := exchange(t, n.web.addr(0), tt.request)
			if code != tt.want {
				t.Errorf("reply %d, want %d", code, tt.want)
			}
			wantEOF(t, c)
			n.web.log.want(t, "result="+string(tt.result), "from="+c.LocalAddr().String())
		})
	}
}

// What the peer says in OPENED decides the reply, as the design has it.
func TestSOCKS5ReplyPerStatus(t *testing.T) {
	n := socksNodes(t, nil)
	for status, want := range map[mux.Status]byte{
		mux.StatusDenied: 2, mux.StatusUnknownService: 1, mux.StatusRefused: 5, mux.StatusUnreachable: 4,
		mux.StatusTimedOut: 6, mux.StatusNameNotFound: 4, mux.StatusOverloaded: 1,
	} {
		n.link.set(func(l *fakeLink) {
			l.fail = &mux.OpenError{Status: status, Text: "the network is unreachable and refused"}
		})
		if code, _ := exchange(t, n.web.addr(0), socksRequest(1, "a.test", 80)); code != want {
			t.Errorf("status %v gives reply %d, want %d", status, code, want)
		}
	}
	for err, want := range map[error]byte{mux.ErrNoLink: 1, mux.ErrUnknownPeer: 1, mux.ErrTruncated: 1} {
		n.link.set(func(l *fakeLink) { l.fail = err })
		if code, _ := exchange(t, n.web.addr(0), socksRequest(1, "a.test", 80)); code != want {
			t.Errorf("%v gives reply %d, want %d", err, code, want)
		}
	}
}

func TestSOCKS5TimedOut(t *testing.T) {
	t.Parallel()
	dns := &fakeDNS{}
	dns.set("slow.test", "192.0.2.1")
	n := socksNodes(t, dns)
	st := n.db.state.Load().cfg
	st.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err := n.db.update(st); err != nil {
		t.Fatal(err)
	}
	if code, _ := exchange(t, n.web.addr(0), socksRequest(1, "slow.test", 80)); code != 6 {
		t.Errorf("reply %d, want 6", code)
	}
}

// What the client sends right behind its request is part of the stream.
func TestSOCKS5Pipelined(t *testing.T) {
	n := socksNodes(t, nil)
	target := newTarget(t, "", echo)
	for _, size := range []int{1, 100, 4000, 200_000} {
		payload := bytes.Repeat([]byte("pipelined "), size/10+1)[:size]
		c := dialTo(t, "tcp", n.web.addr(0))
		all := []byte{5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1}
		all = binary.BigEndian.AppendUint16(all, portOf(t, target))
		all = append(all, payload...)
		go func() {
			c.Write(all)
			c.(*net.TCPConn).CloseWrite()
		}()
		want := append([]byte{5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0}, payload...)
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got %d back, %v, want %d", size, len(got), err, len(want))
		}
	}
}

func TestSOCKS5HalfCloseAndReset(t *testing.T) {
	n := socksNodes(t, nil)
	target := newTarget(t, "", func(c net.Conn) {
		got, _ := io.ReadAll(c)
		c.Write(got)
	})
	code, c := exchange(t, n.web.addr(0), socksRequest(1, "127.0.0.1", portOf(t, target)))
	if code != 0 {
		t.Fatalf("reply %d", code)
	}
	roundTrip(t, c, "answered only after the end")
	_, c = exchange(t, n.web.addr(0), socksRequest(1, "127.0.0.1", portOf(t, target)))
	n.link.lastPair().kill()
	wantReset(t, c)
}

func TestSOCKS5Users(t *testing.T) {
	l := listenOn(t, KindSOCKS5, "127.0.0.1:0")
	l.Users = []User{{"ann", "secret"}, {"bob", "other"}}
	n := newNodes(t, Config{Listeners: []Listener{l}, Routes: []Route{routeTo(t, "*:*", Target{Peer: "db"})}},
		Config{Egress: []EgressRule{egressFor(t, "web", "127.0.0.1:*")}})
	target := newTarget(t, "", echo)
	for _, tt := range []struct {
		user, password string
		ok             bool
	}{{"ann", "secret", true}, {"bob", "other", true}, {"ann", "other", false}, {"eve", "", false}, {"", "", false}} {
		d, err := xproxy.SOCKS5("tcp", n.web.addr(0), &xproxy.Auth{User: tt.user, Password: tt.password}, nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := d.Dial("tcp", target)
		if (err == nil) != tt.ok {
			t.Errorf("%q %q: %v", tt.user, tt.password, err)
		}
		if err == nil {
			io.WriteString(c, "hi")
			hear(t, c, "hi")
			c.Close()
		}
	}
	c := dialTo(t, "tcp", n.web.addr(0))
	c.Write([]byte{5, 1, 0})
	hear(t, c, "\x05\xff")
	wantEOF(t, c)
}

// Garbage ends quietly: no panic, one log line, none of the bytes raw in it.
func TestSOCKS5Garbage(t *testing.T) {
	n := socksNodes(t, nil)
	for _, in := range []string{"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", "GET / HTTP/1.1\r\n\r\n", "\x05", "\x05\x00", "\x05\x01\x00\x05\x01", "\x05\x01\x00\x06\x01\x00\x01\x7f\x00\x00\x01\x00\x50"} {
		c := dialTo(t, "tcp", n.web.addr(0))
		io.WriteString(c, in)
		halfClose(t, c)
		io.Copy(io.Discard, c)
		n.web.log.want(t, "from="+c.LocalAddr().String(), "result=bad_request")
	}
}

func TestSilentClientIsDropped(t *testing.T) {
	n := socksNodes(t, nil)
	for i := range 2 {
		c := dialTo(t, "tcp", n.web.addr(i))
		eventually(t, "the connection is served", func() bool { return n.web.Status()[i].Open == 1 })
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if i == 1 {
			// What has not said where it wants to go does not hold a drain up.
			if cut := n.web.Drain(ctx); cut != 0 {
				t.Errorf("%d cut", cut)
			}
			if ctx.Err() != nil {
				t.Error("the drain waited for a silent client")
			}
			_, err := c.Read(make([]byte, 1))
			if err == nil || isTimeout(err) {
				t.Errorf("the silent client saw %v", err)
			}
		} else {
			c.Close()
			eventually(t, "the connection is gone", func() bool { return n.web.Status()[i].Open == 0 })
		}
		cancel()
	}
}

func closedPort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return portOf(t, l.Addr().String())
}

func TestNonLoopbackNeedsUsers(t *testing.T) {
	for _, kind := range []Kind{KindSOCKS5, KindConnect} {
		for addr, ok := range map[string]bool{
			"127.0.0.1:0": true, "[::1]:0": true, "localhost:0": true,
			"0.0.0.0:0": false, ":0": false, "[::]:0": false, "192.0.2.1:1080": false,
		} {
			l := listenOn(t, kind, addr)
			p, err := newProxy(Config{Listeners: []Listener{l}}, &fakeLink{})
			if err == nil {
				err = p.Start()
				p.Close()
			}
			if refused := errors.Is(err, errNeedsUsers); refused == ok {
				t.Errorf("%s on %s: %v", kind, addr, err)
			}
			if !ok {
				l.Users = []User{{"ann", "secret"}}
				if _, err := newProxy(Config{Listeners: []Listener{l}}, &fakeLink{}); err != nil {
					t.Errorf("%s on %s with users: %v", kind, addr, err)
				}
			}
		}
	}
}
