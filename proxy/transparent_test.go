//go:build linux

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ownNetwork gives the test's thread a network of its own, with loopback only.
// Sockets made by the test's goroutine stay there.
func ownNetwork(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		skip(t, "needs root for a network namespace")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		skip(t, "no network namespace: %v", err)
	}
	if err := loopbackUp(); err != nil {
		t.Fatal(err)
	}
}

// skip says why a test cannot run here. In CI every test runs.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// redirect sends what this network's programs dial on a port to another.
func redirect(t *testing.T, from, to uint16) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "test"})
	chain := c.AddChain(&nftables.Chain{
		Name: "out" + strconv.Itoa(int(from)), Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(from)},
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(to)},
		&expr.Redir{RegisterProtoMin: 1},
	}})
	if err := c.Flush(); err != nil {
		skip(t, "no NAT here: %v", err)
	}
}

// dialHere dials in the calling goroutine, and so from its thread's network.
func dialHere(addr string) (net.Conn, error) {
	ap := netip.MustParseAddrPort(addr)
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(ap))
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	return c, nil
}

func TestTransparent(t *testing.T) {
	ownNetwork(t)
	const appPort = 5432
	target := newTarget(t, "", echo)
	dns := &fakeDNS{}
	dns.set("orders.default.svc", "127.0.0.8")
	cfg := Config{
		Listeners: []Listener{listenOn(t, KindTransparent, "127.0.0.1:0")},
		Routes: []Route{
			routeTo(t, "orders.default.svc:5432", Target{Peer: "db", Service: "app"}),
			routeTo(t, "127.0.0.9:5432", Target{Peer: "db"}),
			routeTo(t, "[::1]:5432", Target{Peer: "db", Service: "app"}),
		},
		Resolve: dns.resolve,
	}
	n := newNodes(t, cfg, Config{
		Services: serviceAt(t, target),
		Egress:   []EgressRule{egressFor(t, "web", "127.0.0.9:*")},
		Dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
			if !strings.HasPrefix(addr, "127.0.0.9:") && addr != target {
				return nil, fmt.Errorf("%w: %s", syscall.ECONNREFUSED, addr)
			}
			c, other := net.Pipe()
			go func() {
				defer other.Close()
				echo(other)
			}()
			return addressed{c, addr[:strings.LastIndexByte(addr, ':')] + ":5432"}, nil
		},
	})
	listener := portOf(t, n.web.addr(0))
	redirect(t, appPort, listener)

	// By a route's name: the address that the app dialed is the name's.
	c, err := dialHere("127.0.0.8:5432")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	say(t, c, "by name")
	if o := n.link.lastOpen(t); o.To != "app" || o.Via != "transparent" || o.From != c.LocalAddr().String() {
		t.Errorf("opened %+v", o)
	}

	// By address: it travels as it is.
	c2, err := dialHere("127.0.0.9:5432")
	if err != nil {
		t.Fatal(err)
	}
	defer c2.Close()
	say(t, c2, "by address")
	if o := n.link.lastOpen(t); o.To != "127.0.0.9:5432" {
		t.Errorf("opened %+v", o)
	}

	if len(n.web.Status()[0].Bound) == 2 {
		c, err := dialHere("[::1]:5432")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		say(t, c, "over six")
	}
}

func TestTransparentRefuses(t *testing.T) {
	ownNetwork(t)
	dns := &fakeDNS{}
	dns.set("orders.default.svc", "127.0.0.8")
	n := newNode(t, Config{
		Listeners: []Listener{listenOn(t, KindTransparent, "0.0.0.0:0"), listenOn(t, KindForward, "127.0.0.1:0")},
		Routes: []Route{
			routeTo(t, "orders.default.svc:5432", Target{Peer: "db"}),
			routeTo(t, "*:1-5431", Target{Peer: "db"}),
			routeTo(t, "*:5433-65535", Target{Direct: true}),
		},
		Own:     []uint16{7423, 1023}, // one with a direct route, one with a route to a peer
		Resolve: dns.resolve,
	}, &fakeLink{})
	listener, other := portOf(t, n.addr(0)), portOf(t, n.addr(1))
	for _, port := range []uint16{5432, 7423, 1023, other} {
		redirect(t, port, listener)
	}
	for to, result := range map[string]Result{
		"127.0.0.7:5432":                      ResultNoRoute, // not that name's address
		"127.0.0.7:7423":                      ResultDenied,  // the link port, on any local address
		"127.0.0.1:1023":                      ResultDenied,
		fmt.Sprintf("127.0.0.3:%d", other):    ResultDenied, // another listener
		fmt.Sprintf("127.0.0.1:%d", listener): ResultDenied, // the listener itself, not redirected
		fmt.Sprintf("127.0.0.5:%d", listener): ResultDenied,
	} {
		c, err := dialHere(to)
		if err == nil {
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v", to, err)
		}
		n.log.want(t, "result="+string(result), "target="+to)
	}
}
