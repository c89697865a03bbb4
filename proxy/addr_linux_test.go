package proxy

import (
	"net/netip"
	"os"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sealane/sealane/mux"
)

// Loopback is always the first interface of a network.
const loopbackIndex = 1

// configure sends a request of rtnetlink: a fixed part and attributes.
func configure(t *testing.T, kind netlink.HeaderType, fixed []byte, attributes ...netlink.Attribute) {
	t.Helper()
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	data, err := netlink.MarshalAttributes(attributes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Acknowledge | netlink.Create},
		Data:   append(fixed, data...),
	}); err != nil {
		t.Fatal(err)
	}
}

func familyOf(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// addAddress gives loopback another address.
func addAddress(t *testing.T, s string) {
	t.Helper()
	a := netip.MustParseAddr(s)
	configure(t, unix.RTM_NEWADDR, []byte{familyOf(a), byte(a.BitLen()), unix.IFA_F_NODAD, 0, loopbackIndex, 0, 0, 0},
		netlink.Attribute{Type: unix.IFA_LOCAL, Data: a.AsSlice()}, netlink.Attribute{Type: unix.IFA_ADDRESS, Data: a.AsSlice()})
	// The kernel makes an IPv6 address's route a little later.
	eventually(t, s+" leads here", func() bool { return leadsHere(a) })
}

// addRoute leads a prefix to loopback's interface: as a route of some type.
func addRoute(t *testing.T, prefix string, kind byte) {
	t.Helper()
	p := netip.MustParsePrefix(prefix)
	fixed := make([]byte, unix.SizeofRtMsg)
	fixed[0], fixed[1], fixed[4], fixed[5], fixed[7] = familyOf(p.Addr()), byte(p.Bits()), unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, kind
	if fixed[6] = unix.RT_SCOPE_LINK; kind == unix.RTN_LOCAL {
		fixed[6] = unix.RT_SCOPE_HOST
	}
	configure(t, unix.RTM_NEWROUTE, fixed,
		netlink.Attribute{Type: unix.RTA_DST, Data: p.Addr().AsSlice()}, netlink.Attribute{Type: unix.RTA_OIF, Data: []byte{loopbackIndex, 0, 0, 0}})
}

// What is local is what the kernel delivers here, not what can be bound.
func TestLocalAddresses(t *testing.T) {
	ownNetwork(t)
	for _, name := range []string{"/proc/sys/net/ipv4/ip_nonlocal_bind", "/proc/sys/net/ipv6/ip_nonlocal_bind"} {
		if err := os.WriteFile(name, []byte("1"), 0); err != nil {
			skip(t, "cannot allow foreign addresses: %v", err)
		}
	}
	if isLocal(netip.MustParseAddr("8.8.8.8")) {
		t.Error("an address without a route is local")
	}
	addAddress(t, "203.0.113.7")
	addAddress(t, "2001:db8::7")
	addRoute(t, "8.0.0.0/8", unix.RTN_UNICAST)
	addRoute(t, "2001:db9::/32", unix.RTN_UNICAST)
	addRoute(t, "198.51.100.0/24", unix.RTN_LOCAL)
	for s, want := range map[string]bool{
		"8.8.8.8": false, "2001:db9::8": false, "2002:808:808::1": false, "64:ff9b::808:808": false,
		"203.0.113.7": true, "2001:db8::7": true, "198.51.100.9": true, "127.0.0.9": true, "0.0.0.0": true, "::": true,
		"64:ff9b::cb00:7107": true, "64:ff9b:1::cb00:7107": true, "2002:cb00:7107::1": true, "::ffff:0:cb00:7107": true,
		"::cb00:7107": true, "2001::34ff:8ef8": true, // Teredo, inverted
	} {
		if got := isLocal(netip.MustParseAddr(s)); got != want {
			t.Errorf("%s is local: %v", s, got)
		}
	}
}

// An own port is out of reach on every address of this host, a global one of
// IPv6 among them, and within reach on those of others.
func TestOwnPortsOnGlobalAddresses(t *testing.T) {
	ownNetwork(t)
	addAddress(t, "2001:db8::7")
	addAddress(t, "203.0.113.7")
	addRoute(t, "2001:db9::/32", unix.RTN_UNICAST)
	p := newPolicy(nil, []EgressRule{egressFor(t, "web", "*:*")})
	p.own = func(port uint16) bool { return port == 7423 }
	for to, refused := range map[string]bool{
		"[2001:db8::7]:7423": true, "203.0.113.7:7423": true, "[2001:db8::7]:7424": false, "[2001:db9::7]:7423": false,
	} {
		d := dest(to)
		if _, f := p.allowed("web", d, []netip.Addr{d.Addr}); (f != nil) != refused || refused && f.status() != mux.StatusDenied {
			t.Errorf("%s: %v, want refused: %v", to, f, refused)
		}
	}
}

// Where the kernel cannot be asked, every address may be this host's.
func TestLocalInDoubt(t *testing.T) {
	answer := func(kind byte) []netlink.Message {
		data := make([]byte, unix.SizeofRtMsg)
		data[rtmType] = kind
		return []netlink.Message{{Data: data}}
	}
	for name, tt := range map[string]struct {
		answer []netlink.Message
		err    error
		want   bool
	}{
		"no socket":  {nil, &netlink.OpError{Op: "dial", Err: unix.EAFNOSUPPORT}, true},
		"forbidden":  {nil, &netlink.OpError{Op: "receive", Err: unix.EPERM}, true},
		"no answer":  {nil, nil, true},
		"short":      {[]netlink.Message{{Data: []byte{unix.AF_INET}}}, nil, true},
		"no network": {nil, &netlink.OpError{Op: "receive", Err: unix.ENETUNREACH}, false},
		"no host":    {nil, &netlink.OpError{Op: "receive", Err: unix.EHOSTUNREACH}, false},
		"local":      {answer(unix.RTN_LOCAL), nil, true},
		"anycast":    {answer(unix.RTN_ANYCAST), nil, true},
		"unicast":    {answer(unix.RTN_UNICAST), nil, false},
	} {
		if got := isLocalRoute(tt.answer, tt.err); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
