// Package redirect installs, removes and shows the nftables rules that send an unmodified app's TCP connections to the
// sidecar's transparent listener, and, where asked, the rules that keep plaintext from reaching the app's own ports.
//
// The usual path is Up with an Options value, in an init container that has CAP_NET_ADMIN, before the sidecar starts;
// the sidecar itself needs no capability.
//
// All rules live in one table, "inet sealane", which is replaced in a single netlink batch: there is no moment without
// rules while they change, and nothing outside the table is ever touched. The inet family holds IPv4 and IPv6 rules
// together, so that neither can be installed, replaced or removed without the other; its nat chains need Linux 5.2.
//
// Only connections that this network namespace opens itself are caught, and of those only the ones that leave it:
// whatever goes to loopback or to an own address is left alone. A connection that was open before the rules came is
// left alone too, because only a packet that opens a connection is caught.
package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

const (
	// DefaultPort is where a transparent listener usually waits.
	DefaultPort = 15006
	// DefaultUID is the user of the container image. Its connections are not caught, which is what keeps the
	// sidecar's own dials from coming back to it.
	DefaultUID = 7423
)

// Options says what is caught. The zero value of every field but To means "no restriction" or "nothing".
type Options struct {
	To           uint16         // port of the transparent listener on 127.0.0.1 and [::1]
	Ports        []PortRange    // destination ports to catch; if empty, all
	CIDRs        []netip.Prefix // destinations to catch; if empty, all
	ExceptPorts  []PortRange
	ExceptCIDRs  []netip.Prefix
	ExceptUIDs   []uint32 // users whose connections are not caught
	SidecarUIDs  []uint32 // users who may answer on the port; if empty, ExceptUIDs
	Mark         uint32   // connections with this packet mark are not caught; if 0, marks are not looked at
	GuardInbound []PortRange
	ProbeSources []netip.Prefix // may reach the guarded ports from outside
}

// PortRange is the ports from Lo to Hi, both included.
type PortRange struct{ Lo, Hi uint16 }

func (r PortRange) contains(p uint16) bool { return r.Lo <= p && p <= r.Hi }

// Validate reports the first reason why o cannot be installed.
func (o Options) Validate() error {
	switch {
	case o.To == 0:
		return errors.New("the port of the transparent listener is missing")
	case len(o.ExceptUIDs) == 0 && o.Mark == 0:
		return errors.New("nothing exempts the sidecar's own connections, they would come back to it: name its user or its mark")
	case len(o.sidecarUIDs()) == 0:
		return errors.New("nothing says who may answer on the port of the transparent listener: name the sidecar's user")
	case o.Mark == 0 && !slices.ContainsFunc(o.sidecarUIDs(), func(u uint32) bool { return slices.Contains(o.ExceptUIDs, u) }):
		return errors.New("the sidecar's own connections are not exempt, they would come back to it: except its user, or name its mark")
	case len(o.ProbeSources) > 0 && len(o.GuardInbound) == 0:
		return errors.New("probe sources mean nothing without guarded inbound ports")
	case o.testPort() == 0:
		return errors.New("nothing is left to catch: every port is excepted")
	}
	return nil
}

// sidecarUIDs lists the users who may answer on the port.
func (o Options) sidecarUIDs() []uint32 {
	if len(o.SidecarUIDs) > 0 {
		return o.SidecarUIDs
	}
	return o.ExceptUIDs
}

// catches reports whether a connection to dst is redirected, if it leaves the namespace and nobody exempt opened it.
func (o Options) catches(dst netip.AddrPort) bool {
	return (len(o.CIDRs) == 0 || anyPrefix(o.CIDRs, dst.Addr())) && !anyPrefix(o.ExceptCIDRs, dst.Addr()) &&
		o.catchesPort(dst.Port())
}

func (o Options) catchesPort(p uint16) bool {
	return (len(o.Ports) == 0 || anyPort(o.Ports, p)) && !anyPort(o.ExceptPorts, p)
}

// testPort is a port that is caught, or 0 if there is none.
func (o Options) testPort() uint16 {
	ranges := o.Ports
	if len(ranges) == 0 {
		ranges = []PortRange{{1, 65535}}
	}
	for _, r := range ranges {
		for p := int(r.Lo); p <= int(r.Hi); p++ {
			if o.catchesPort(uint16(p)) {
				return uint16(p)
			}
		}
	}
	return 0
}

func anyPrefix(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func anyPort(ranges []PortRange, port uint16) bool {
	return slices.ContainsFunc(ranges, func(r PortRange) bool { return r.contains(port) })
}

// ParsePorts reads "5432,8000-8999".
func ParsePorts(s string) ([]PortRange, error) {
	var ranges []PortRange
	for item := range items(s) {
		lo, hi, isRange := strings.Cut(item, "-")
		if !isRange {
			hi = lo
		}
		from, err1 := strconv.ParseUint(lo, 10, 16)
		to, err2 := strconv.ParseUint(hi, 10, 16)
		if err1 != nil || err2 != nil || from == 0 || from > to {
			return nil, fmt.Errorf("%q is neither a port nor a range of ports such as 8000-8999", item)
		}
		ranges = append(ranges, PortRange{uint16(from), uint16(to)})
	}
	return ranges, nil
}

// ParseCIDRs reads "10.0.0.0/8,fd00::/8,192.0.2.1"; an address without a length is that address alone.
func ParseCIDRs(s string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for item := range items(s) {
		p, err := netip.ParsePrefix(item)
		if err != nil {
			a, aerr := netip.ParseAddr(item)
			if aerr != nil || a.Zone() != "" {
				return nil, fmt.Errorf("%q is neither an address nor a CIDR such as 10.0.0.0/8", item)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		switch {
		case p.Addr().Is4In6():
			return nil, fmt.Errorf("%q is an IPv4 address written as IPv6: write it as IPv4", item)
		case p != p.Masked():
			return nil, fmt.Errorf("%q has bits set beyond its length: is %s meant?", item, p.Masked())
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, nil
}

// items yields the parts of a comma-separated list; an empty string has none.
func items(s string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		if s == "" {
			return
		}
		for part := range strings.SplitSeq(s, ",") {
			if !yield(strings.TrimSpace(part)) {
				return
			}
		}
	}
}

// State is what became of one address family.
type State string

const (
	// Verified: a connection was made and the kernel redirected it.
	Verified State = "verified"
	// Absent: the namespace has no address of the family that could leave it.
	Absent State = "absent"
	// NotCaught: the options leave the family alone.
	NotCaught State = "not caught"
)

// Family is the report on one address family.
type Family struct {
	Name   string // "IPv4" or "IPv6"
	State  State
	Detail string
}

// Report is what Up found.
type Report struct {
	Families []Family
	Warnings []string
}
