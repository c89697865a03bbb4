package redirect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A connection is a socket as linux/inet_diag.h describes it, and can be ended.
type connection struct {
	socket
	family byte
	id     []byte // inet_diag_sockid: names this very socket, none that takes its place later
}

const (
	sockDiagByFamily = 20
	sockDiagDestroy  = 21
	diagMessage      = 72 // sizeof(inet_diag_msg)

	// Sets of states.
	anyConnection = ^uint32(1<<stateListen | 1<<stateTimeWait)
	anySocket     = ^uint32(1 << stateTimeWait)
)

// connections lists the TCP connections of this network namespace, half-open ones too, and what waits for some.
func connections() ([]connection, error) {
	conn, err := netlink.Dial(unix.NETLINK_INET_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("listing the TCP connections: %w", err)
	}
	defer conn.Close()
	var found []connection
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		replies, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump},
			Data:   diagRequest(family, anySocket, make([]byte, 48)),
		})
		if errors.Is(err, unix.ENOENT) && family == unix.AF_INET6 { // the kernel was started without IPv6
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing the TCP connections: %w", err)
		}
		for _, r := range replies {
			if c, ok := parseDiag(r.Data); ok {
				found = append(found, c)
			}
		}
	}
	return found, nil
}

// diagRequest makes an inet_diag_req_v2:
//
//	family (1) | protocol (1) | extensions (1) | pad (1) | states (4) | socket (48)
func diagRequest(family byte, states uint32, id []byte) []byte {
	return append(binary.NativeEndian.AppendUint32([]byte{family, unix.IPPROTO_TCP, 0, 0}, states), id...)
}

// parseDiag reads an inet_diag_msg:
//
//	family (1) | state (1) | timer (1) | retransmissions (1) | socket (48) | expires (4) | queues (8) | uid (4) | inode (4)
//
// of which the socket is
//
//	source port (2) | destination port (2) | source (16) | destination (16) | interface (4) | cookie (8)
func parseDiag(b []byte) (connection, bool) {
	if len(b) < diagMessage {
		return connection{}, false
	}
	c := connection{family: b[0], id: bytes.Clone(b[4:52])}
	c.state, c.uid = b[1], binary.NativeEndian.Uint32(b[64:])
	address := func(b []byte) netip.Addr {
		if c.family == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b))
		}
		return netip.AddrFrom16([16]byte(b)).Unmap()
	}
	c.local = netip.AddrPortFrom(address(b[8:]), binary.BigEndian.Uint16(b[4:]))
	c.remote = netip.AddrPortFrom(address(b[24:]), binary.BigEndian.Uint16(b[6:]))
	return c, true
}

// destroy ends a connection: its program reads an error, the other end gets a reset, and nothing that the kernel still
// had to send is sent.
func (c connection) destroy(conn *netlink.Conn) error {
	_, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDiagDestroy, Flags: netlink.Request | netlink.Acknowledge},
		Data:   diagRequest(c.family, anyConnection, c.id),
	})
	if errors.Is(err, unix.ENOENT) { // it has ended by itself
		return nil
	}
	return err
}

// redirected tells which of all sockets are programs' ends of connections that the table rs has sent to the sidecar.
func (rs *ruleset) redirected(all []socket) func(socket) bool {
	answered := make(map[netip.AddrPort]netip.AddrPort) // from the program's address to the sidecar's
	near := make(map[netip.AddrPort]bool)               // addresses whose other end is in this namespace
	here, listening := make(map[netip.AddrPort]bool), make(map[uint16]bool)
	for _, s := range all {
		near[s.remote], here[s.local] = true, true
		switch {
		case s.state == stateListen:
			listening[s.local.Port()] = true
		case s.local.Addr().IsLoopback() && s.isConnection() && rs.isSidecars(s):
			answered[s.remote] = s.local
		}
	}
	renumbered := make(map[netip.Addr]bool) // addresses with a port that no program has
	for program := range answered {
		if !here[program] {
			renumbered[program.Addr()] = true
		}
	}
	return func(s socket) bool {
		if sidecar, ok := answered[s.local]; ok {
			return s.isConnection() && s.remote != sidecar // else it was opened to the sidecar itself
		}
		if near[s.local] || !rs.catches(s) {
			return false
		}
		// Of two connections from one port to two destinations, the kernel gives the second another port at the sidecar.
		// Which program's that is it does not tell, so it may be any that is caught and that nobody has opened to here.
		if renumbered[s.local.Addr()] && s.isConnection() && !listening[s.local.Port()] && !slices.Contains(rs.users(listenerChain), s.uid) {
			return true
		}
		// Where the sidecar's end is gone, the program's has been told so: it would be gone as well after a reset.
		return slices.Contains([]byte{stateFinWait1, stateCloseWait, stateLastAck, stateClosing}, s.state)
	}
}

// untouched picks the connections that no rules have had a hand in, for the table rs that comes where there is none.
// Those that a table which somebody has removed had sent to the sidecar are not among them.
func (rs *ruleset) untouched(all []socket) []socket {
	redirected := rs.redirected(all)
	return slices.DeleteFunc(slices.Clone(all), func(s socket) bool {
		return !s.isConnection() || s.remote.Addr().IsLoopback() || s.local.Addr() == s.remote.Addr() || redirected(s)
	})
}

// connections picks what redirected tells of.
func (rs *ruleset) connections(all []connection) []connection {
	sockets := make([]socket, len(all))
	for i, c := range all {
		sockets[i] = c.socket
	}
	redirected := rs.redirected(sockets)
	return slices.DeleteFunc(all, func(c connection) bool { return !redirected(c.socket) })
}

// resetTime bounds how long resetting goes on. It is done at once unless connections come and go all the time.
const resetTime = 10 * time.Second

// reset ends the connections that were redirected by rs, which the kernel still translates but redirects nothing new
// by. When it returns without an error there are none left.
func (rs *ruleset) reset() error {
	conn, err := netlink.Dial(unix.NETLINK_INET_DIAG, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	for deadline := time.Now().Add(resetTime); ; time.Sleep(time.Millisecond) {
		sockets, err := tcpSockets()
		if err != nil || !slices.ContainsFunc(sockets, rs.redirected(sockets)) {
			return err // a kernel that cannot end connections need not, if there are none
		}
		all, err := connections()
		if err != nil {
			return err
		}
		left := rs.connections(all)
		if time.Now().After(deadline) {
			return fmt.Errorf("%d connections came back again and again", len(left))
		}
		for _, c := range left {
			err := c.destroy(conn)
			if errors.Is(err, unix.EOPNOTSUPP) {
				return fmt.Errorf("%d redirected connections are open, and this kernel cannot end them (it lacks INET_DIAG_DESTROY)", len(left))
			}
			if err != nil {
				return fmt.Errorf("ending the connection from %s to %s: %w", c.local, c.remote, err)
			}
		}
	}
}
