package proxy

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

const (
	soOriginalDst  = 80 // SO_ORIGINAL_DST of linux/netfilter_ipv4.h
	soOriginalDst6 = 80 // IP6T_SO_ORIGINAL_DST
	sockaddrPort   = 2  // where sockaddr_in holds the port
)

// originalDst asks the kernel where a redirected connection was going. The
// socket stays as it is: File would make it blocking.
func originalDst(c *net.TCPConn) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	local := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr()
	var dst netip.AddrPort
	var optErr error
	err = raw.Control(func(fd uintptr) {
		if local.Unmap().Is4() {
			dst, optErr = originalDst4(int(fd))
		} else {
			dst, optErr = originalDst6(int(fd))
		}
	})
	if err == nil {
		err = os.NewSyscallError("getsockopt", optErr)
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("the kernel tells no original destination; was the connection redirected? %w", err)
	}
	return unmapped(dst), nil
}

// originalDst4 reads a sockaddr_in. GetsockoptIPv6Mreq is the one getter with
// room for 16 bytes and more.
func originalDst4(fd int) (netip.AddrPort, error) {
	v, err := unix.GetsockoptIPv6Mreq(fd, unix.IPPROTO_IP, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}, err
	}
	sa := v.Multiaddr[:] // family (2) | port (2) | address (4) | zero (8)
	port := binary.BigEndian.Uint16(sa[sockaddrPort:])
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(sa[4:8])), port), nil
}

// originalDst6 reads a sockaddr_in6, at the start of an ip6_mtuinfo.
func originalDst6(fd int) (netip.AddrPort, error) {
	v, err := unix.GetsockoptIPv6MTUInfo(fd, unix.IPPROTO_IPV6, soOriginalDst6)
	if err != nil {
		return netip.AddrPort{}, err
	}
	// The port is in network order in a field of host order.
	var port [2]byte
	binary.NativeEndian.PutUint16(port[:], v.Addr.Port)
	return netip.AddrPortFrom(netip.AddrFrom16(v.Addr.Addr), binary.BigEndian.Uint16(port[:])), nil
}
