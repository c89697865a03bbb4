//go:build !linux

package proxy

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// leadsHere asks the kernel by binding: only local addresses can be bound.
func leadsHere(a netip.Addr) bool {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: a.AsSlice()})
	if err == nil {
		c.Close()
		return true
	}
	return !errors.Is(err, syscall.EADDRNOTAVAIL)
}
