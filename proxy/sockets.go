package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A sockAddr is what one TCP socket is bound to. It is of one family, also
// where the config means both: so two of them overlap only where they are
// equal, or where one is its family's wildcard, and a reload can keep one
// family's socket while it opens or closes the other's.
type sockAddr struct {
	host netip.Addr // unmapped
	port uint16     // 0: the kernel's choice

	// optional allows for a system without the family. Taken is taken, all
	// the same.
	optional bool
}

func (a sockAddr) String() string { return netip.AddrPortFrom(a.host, a.port).String() }

// covers says whether connections to b would reach a socket on a, too.
func (a sockAddr) covers(b sockAddr) bool {
	return a.port == b.port && a.host.Is4() == b.host.Is4() && (a.host == b.host || a.host.IsUnspecified())
}

var (
	anyIPv4      = netip.IPv4Unspecified()
	anyIPv6      = netip.IPv6Unspecified()
	loopbackIPv4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopbackIPv6 = netip.IPv6Loopback()
)

// sockAddrs lists what a TCP endpoint means: 0.0.0.0 IPv4 alone; [::] what the
// kernel takes it for, which is both families unless net.ipv6.bindv6only is
// set; no host at all, and localhost, every family that there is. Another name
// is its first address, IPv4 before IPv6.
//
// The kernel redirects IPv4 connections to 127.0.0.1 and IPv6 ones to ::1, so
// a transparent listener on either takes both.
func (e Endpoint) sockAddrs(ctx context.Context, kind Kind) ([]sockAddr, error) {
	host, portText, err := net.SplitHostPort(e.Address)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, err
	}
	port := uint16(n)
	switch {
	case host == "":
		return []sockAddr{{anyIPv4, port, true}, {anyIPv6, port, true}}, nil
	case isLocalhost(host):
		return []sockAddr{{loopbackIPv4, port, true}, {loopbackIPv6, port, true}}, nil
	}
	a, err := hostAddr(ctx, host)
	if err != nil {
		return nil, err
	}
	switch {
	case a == anyIPv6 && !bindsIPv6Only():
		return []sockAddr{{anyIPv4, port, true}, {anyIPv6, port, false}}, nil
	case kind == KindTransparent && a == loopbackIPv4:
		return []sockAddr{{loopbackIPv4, port, false}, {loopbackIPv6, port, true}}, nil
	case kind == KindTransparent && a == loopbackIPv6:
		return []sockAddr{{loopbackIPv6, port, false}, {loopbackIPv4, port, true}}, nil
	}
	return []sockAddr{{a, port, false}}, nil
}

func isLocalhost(host string) bool { return strings.EqualFold(host, "localhost") }

// hostAddr reads or looks up the host of an address to listen on.
func hostAddr(ctx context.Context, host string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap(), nil
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range found {
		if a.Unmap().Is4() {
			return a.Unmap(), nil
		}
	}
	if len(found) == 0 {
		return netip.Addr{}, &net.DNSError{Err: "no address", Name: host, IsNotFound: true}
	}
	return found[0], nil
}

// Overlaps says whether one process cannot listen on both endpoints, as far as
// that can be told without a look-up. The kinds are those of their listeners,
// "" for what is none: see sockAddrs.
func (e Endpoint) Overlaps(kind Kind, other Endpoint, otherKind Kind) bool {
	if e.Network != "tcp" || other.Network != "tcp" {
		return e == other
	}
	mine, others := e.literal(kind), other.literal(otherKind)
	if mine == nil || others == nil {
		return e == other && !e.anyPort()
	}
	for _, a := range mine {
		for _, b := range others {
			if a.port != 0 && (a.covers(b) || b.covers(a)) {
				return true
			}
		}
	}
	return false
}

// Covers says whether every address of other is one of e's, too, as far as that
// can be told without a look-up.
func (e Endpoint) Covers(other Endpoint) bool {
	if e == other {
		return true
	}
	mine, others := e.literal(""), other.literal("")
	if e.Network != "tcp" || other.Network != "tcp" || len(others) == 0 {
		return false
	}
	for _, b := range others {
		if b.port == 0 || !slices.ContainsFunc(mine, func(a sockAddr) bool { return a.covers(b) }) {
			return false
		}
	}
	return true
}

// literal lists what a TCP endpoint means, nil if it is a name.
func (e Endpoint) literal(kind Kind) []sockAddr {
	host, _, err := net.SplitHostPort(e.Address)
	if err != nil {
		return nil
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && !isLocalhost(host) {
		return nil
	}
	addrs, err := e.sockAddrs(context.Background(), kind)
	if err != nil {
		return nil
	}
	return addrs
}

// anyPort reports whether the kernel picks the port.
func (e Endpoint) anyPort() bool {
	_, port, err := net.SplitHostPort(e.Address)
	return e.Network == "tcp" && err == nil && port == "0"
}

// Listen binds the sockets that a TCP endpoint means, all of them or none.
//
// beside are sockets of this process that the caller closes once all is well:
// they are no obstacle, also where they overlap, and they take connections
// until then.
func Listen(ctx context.Context, e Endpoint, beside []net.Listener) ([]net.Listener, error) {
	addrs, err := e.sockAddrs(ctx, "")
	if err != nil {
		return nil, err
	}
	socks := make([]net.Listener, len(addrs))
	if err := (binder{listenTCP, beside}).bindMissing(ctx, addrs, socks); err != nil {
		return nil, err
	}
	var bound []net.Listener
	for _, s := range socks {
		if s != nil {
			bound = append(bound, s)
		}
	}
	return bound, nil
}

// A binder binds TCP sockets beside others.
type binder struct {
	listen func(ctx context.Context, a sockAddr, share bool) (net.Listener, error)
	beside []net.Listener
}

// portTries is how often a port that the kernel chose for one family may turn
// out to be taken in the other.
const portTries = 20

// bindMissing binds those addrs that have no socket in socks yet, all of them
// on one port. A family that is absent is left out, but not the last. On an
// error, nothing more is bound than before.
func (w binder) bindMissing(ctx context.Context, addrs []sockAddr, socks []net.Listener) (err error) {
	for range portTries {
		var fresh []int
		if fresh, err = w.bindEach(ctx, addrs, socks); err == nil {
			return nil
		}
		for _, i := range fresh {
			socks[i].Close()
			socks[i] = nil
		}
		if len(fresh) == 0 || addrs[0].port != 0 || !errors.Is(err, syscall.EADDRINUSE) {
			return err
		}
	}
	return err
}

// bindEach is one try of bindMissing. It returns the indices of what it bound.
func (w binder) bindEach(ctx context.Context, addrs []sockAddr, socks []net.Listener) (fresh []int, err error) {
	var absent error
	for i, a := range addrs {
		if socks[i] != nil {
			continue
		}
		if a.port == 0 {
			a.port = sharedPort(socks)
		}
		s, err := w.bind(ctx, a)
		switch {
		case err == nil:
			socks[i] = s
			fresh = append(fresh, i)
		case a.optional && familyAbsent(err):
			absent = err
		default:
			return fresh, err
		}
	}
	for _, s := range socks {
		if s != nil {
			return fresh, nil
		}
	}
	return fresh, absent
}

// sharedPort is the port of the first socket that there is, or 0.
func sharedPort(socks []net.Listener) uint16 {
	for _, s := range socks {
		if s != nil {
			return tcpPort(s)
		}
	}
	return 0
}

// tcpPort is the port of a TCP socket, or 0.
func tcpPort(s net.Listener) uint16 {
	if t, ok := s.Addr().(*net.TCPAddr); ok {
		return t.AddrPort().Port()
	}
	return 0
}

func familyAbsent(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// bind binds one address. Where sockets of beside are in the way, it shares their
// port with them for the moment that this takes: the kernel asks all of them, and
// that they are one user's. Its memory is longer: a process of the same user that
// wants to share, too, could join later, as it could end this one and take its
// place.
func (w binder) bind(ctx context.Context, a sockAddr) (net.Listener, error) {
	s, err := w.listen(ctx, a, false)
	if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
		return s, err
	}
	shared := 0
	for _, b := range w.beside {
		if tcpPort(b) == a.port && sharePort(b, true) == nil {
			defer sharePort(b, false)
			shared++
		}
	}
	if shared == 0 {
		return nil, err
	}
	if s, err = w.listen(ctx, a, true); err != nil {
		return nil, err
	}
	if err := sharePort(s, false); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// listenControl prepares a listening socket, which its connections take after:
// an app's urgent byte stays where the app put it, in line.
func listenControl(share bool) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			if err = urgentInLine(fd); err == nil && share {
				err = setSharing(fd, true)
			}
		})
		if cerr != nil {
			return cerr
		}
		return err
	}
}

// prepareListening is listenControl for a socket that listens already. One that
// cannot be prepared, MPTCP's say, does without.
func prepareListening(s *net.TCPListener) {
	if raw, err := s.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { urgentInLine(fd) })
	}
}

func listenTCP(ctx context.Context, a sockAddr, share bool) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive, Control: listenControl(share)}
	lc.SetMultipathTCP(false) // a reset must be a TCP reset, and the sandbox sees nothing of MPTCP
	network := "tcp6"
	if a.host.Is4() {
		network = "tcp4"
	}
	return lc.Listen(ctx, network, a.String())
}

// sharePort lets another socket be bound to a socket's port, or no longer.
func sharePort(s net.Listener, share bool) error {
	sc, ok := s.(syscall.Conn)
	if !ok {
		return fmt.Errorf("a %T cannot share its port", s)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = setSharing(fd, share) }); cerr != nil {
		return cerr
	}
	return err
}
