package proxy

import (
	"net"
	"net/netip"
)

// A special range is one that no pattern admits by accident: addresses in it
// reach this host itself, its cloud's metadata, or more than one host.
type specialRange struct {
	prefix netip.Prefix
	what   string
}

// specialRanges holds the ranges that egress refuses unless a rule names them
// literally, and the NAT64 (RFC 6052), 6to4 (RFC 3056) and IPv4-compatible
// addresses that embed one.
var specialRanges = func() []specialRange {
	v4 := []specialRange{
		{netip.MustParsePrefix("0.0.0.0/8"), "unspecified"},
		{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
		{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
		{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
		{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	}
	ranges := append(v4,
		specialRange{netip.MustParsePrefix("::/128"), "unspecified"},
		specialRange{netip.MustParsePrefix("::1/128"), "loopback"},
		specialRange{netip.MustParsePrefix("fe80::/10"), "link-local"},
		specialRange{netip.MustParsePrefix("ff00::/8"), "multicast"},
	)
	for _, r := range v4 {
		a := r.prefix.Addr().As4()
		for _, e := range embeddings {
			b := e.prefix.Addr().As16()
			copy(b[e.at:], a[:])
			p := netip.PrefixFrom(netip.AddrFrom16(b), 8*e.at+r.prefix.Bits())
			ranges = append(ranges, specialRange{p, r.what + " within " + e.what})
		}
	}
	return ranges
}()

// embeddings are the IPv6 prefixes that hold an IPv4 address from byte at on.
var embeddings = []struct {
	prefix netip.Prefix
	at     int
	what   string
}{
	{netip.MustParsePrefix("64:ff9b::/96"), 12, "NAT64"},
	{netip.MustParsePrefix("2002::/16"), 2, "6to4"},
	{netip.MustParsePrefix("::/96"), 12, "an IPv4-compatible address"},
}

// special returns the special range that holds a, if one does.
func special(a netip.Addr) (specialRange, bool) {
	a = a.Unmap()
	for _, r := range specialRanges {
		if r.prefix.Contains(a) {
			return r, true
		}
	}
	return specialRange{}, false
}

// namesLiterally reports whether the pattern admits an address of a special
// range: it is that single address, or a CIDR that lies within the range.
func (m Match) namesLiterally(a netip.Addr, port uint16, r specialRange) bool {
	return m.kind == matchPrefix && m.matchesAddr(a, port) &&
		m.prefix.Bits() >= r.prefix.Bits() && r.prefix.Contains(m.prefix.Addr())
}

// isLocal reports whether a is an address of this host. Addresses embedded in
// IPv6 count as what they embed. When in doubt it says yes.
func isLocal(a netip.Addr) bool {
	a = a.Unmap()
	if a.IsLoopback() || a.IsUnspecified() {
		return true
	}
	for _, e := range embeddings {
		if e.prefix.Contains(a) {
			b := a.As16()
			if v4 := netip.AddrFrom4([4]byte(b[e.at:])); v4.IsLoopback() || v4.IsUnspecified() || bindable(v4) {
				return true
			}
		}
	}
	return bindable(a)
}

// bindable asks the kernel, which alone knows every local address (those of
// local routes too): only those can be bound.
func bindable(a netip.Addr) bool {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: a.AsSlice()})
	if err == nil {
		c.Close()
		return true
	}
	return !isAddrNotAvailable(err)
}
