package proxy

import (
	"net/netip"
	"slices"
)

// A special range is one that no pattern admits by accident: addresses in it
// reach this host itself, its cloud's metadata, more than one host, or an IPv4
// address that the pattern's reader does not see.
type specialRange struct {
	prefix netip.Prefix
	what   string
}

func ranges(what string, prefixes ...string) (out []specialRange) {
	for _, p := range prefixes {
		out = append(out, specialRange{netip.MustParsePrefix(p), what})
	}
	return out
}

// specialRanges holds the ranges that egress refuses unless a rule names them
// literally. The cloud's metadata outside link-local, which may give
// credentials, is Alibaba's, Azure's, that of Amazon with all its host-local
// services, Google's and Scaleway's; Oracle's is a protocol assignment.
var specialRanges = slices.Concat(
	ranges("unspecified", "0.0.0.0/8", "::/128"),
	ranges("loopback", "127.0.0.0/8", "::1/128"),
	ranges("link-local", "169.254.0.0/16", "fe80::/10"),
	ranges("multicast", "224.0.0.0/4", "ff00::/8"),
	ranges("broadcast", "255.255.255.255/32"),
	ranges("cloud metadata", "100.100.100.200/32", "168.63.129.16/32", "fd00:ec2::/32", "fd20:ce::254/128", "fd00:42::42/128"),
	ranges("a protocol assignment", "192.0.0.0/24"),
	ranges("local-use NAT64", "64:ff9b:1::/48"),
	ranges("IPv4-translated", "::ffff:0:0:0/96"),
	ranges("Teredo", "2001::/32"),
)

// embeddings are the IPv6 prefixes that hold an IPv4 address from byte at on:
// NAT64 (RFC 6052, RFC 8215 with its usual /96), 6to4 (RFC 3056), SIIT (RFC
// 2765), the IPv4-compatible addresses, and Teredo (RFC 4380), which inverts it.
var embeddings = []struct {
	prefix netip.Prefix
	at     int
	invert byte
	what   string
}{
	{netip.MustParsePrefix("64:ff9b::/96"), 12, 0, "NAT64"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), 12, 0, "local-use NAT64"},
	{netip.MustParsePrefix("2002::/16"), 2, 0, "6to4"},
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12, 0, "an IPv4-translated address"},
	{netip.MustParsePrefix("::/96"), 12, 0, "an IPv4-compatible address"},
	{netip.MustParsePrefix("2001::/32"), 12, 0xff, "Teredo"},
}

// embedded returns the IPv4 address within a, if there is one, and the index
// of its embedding. "::" and "::1" are themselves.
func embedded(a netip.Addr) (v4 netip.Addr, at int, ok bool) {
	if !a.Is6() || a.IsUnspecified() || a.IsLoopback() {
		return netip.Addr{}, 0, false
	}
	for i, e := range embeddings {
		if e.prefix.Contains(a) {
			b := a.As16()
			v4 := [4]byte(b[e.at:])
			for j := range v4 {
				v4[j] ^= e.invert
			}
			return netip.AddrFrom4(v4), i, true
		}
	}
	return netip.Addr{}, 0, false
}

// special returns the special range that holds a, if one does. An address
// that embeds one of IPv4 is in the range of that one, if it has one.
func special(a netip.Addr) (specialRange, bool) {
	a = a.Unmap()
	if v4, i, ok := embedded(a); ok {
		if r, ok := special(v4); ok {
			e := embeddings[i]
			return specialRange{netip.PrefixFrom(a, 8*e.at+r.prefix.Bits()).Masked(), r.what + " within " + e.what}, true
		}
	}
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
	if v4, _, ok := embedded(a); ok && isLocal(v4) {
		return true
	}
	return leadsHere(a)
}
