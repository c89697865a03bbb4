package proxy

import (
	"errors"
	"net/netip"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// leadsHere asks the kernel, which alone knows every local address (those of
// local routes too), where its route to a leads. That an address can be bound
// says nothing where net.ipv4.ip_nonlocal_bind is set. An address without a
// route cannot be dialed; any other failure counts as yes.
func leadsHere(a netip.Addr) bool { return isLocalRoute(askRoute(a)) }

func isLocalRoute(answer []netlink.Message, err error) bool {
	switch {
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return false
	case err != nil || len(answer) != 1 || len(answer[0].Data) < unix.SizeofRtMsg:
		return true
	}
	kind := answer[0].Data[rtmType]
	return kind == unix.RTN_LOCAL || kind == unix.RTN_ANYCAST
}

// Where struct rtmsg of linux/rtnetlink.h holds what is used here.
const (
	rtmFamily = 0
	rtmDstLen = 1
	rtmType   = 7
)

// askRoute is "ip route get a".
func askRoute(a netip.Addr) ([]netlink.Message, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	request := make([]byte, unix.SizeofRtMsg)
	request[rtmFamily] = unix.AF_INET6
	if a.Is4() {
		request[rtmFamily] = unix.AF_INET
	}
	request[rtmDstLen] = byte(a.BitLen())
	to, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.RTA_DST, Data: a.AsSlice()}})
	if err != nil {
		return nil, err
	}
	return c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request},
		Data:   append(request, to...),
	})
}
