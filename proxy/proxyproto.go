package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"time"
)

// PROXY protocol version 2, as haproxy's proxy-protocol.txt describes it:
// signature (12) | version and command | family and protocol | length (2) |
// addresses | TLVs.

const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

const (
	proxyHeaderLen = 16

	proxyLocal byte = 0x20
	proxyProxy byte = 0x21

	proxyUnspec byte = 0x00
	proxyTCP4   byte = 0x11
	proxyTCP6   byte = 0x21

	proxyTCP4Len = 2*4 + 2*2
	proxyTCP6Len = 2*16 + 2*2

	// maxProxyBody is far more than any known balancer sends.
	maxProxyBody = 4096

	tlvCRC32C byte = 0x03
	// tlvPeer carries the peer's name. 0xE0 is the first of the types that
	// applications may define for themselves.
	tlvPeer byte = 0xE0
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// writeProxyHeader tells a target where a stream comes from: the app's
// address, if it is known, and the peer's name.
func writeProxyHeader(ctx context.Context, c net.Conn, from, peer string) error {
	src, _ := netip.ParseAddrPort(from)
	dst, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	if deadline, ok := ctx.Deadline(); ok {
		c.SetWriteDeadline(deadline)
		defer c.SetWriteDeadline(time.Time{})
	}
	_, err := c.Write(appendProxyHeader(nil, unmapped(src), unmapped(dst), peer))
	return err
}

// appendProxyHeader appends a header with the peer's name. Without a source
// its family is unspecified: the receiver then uses the connection's own
// addresses.
func appendProxyHeader(b []byte, src, dst netip.AddrPort, peer string) []byte {
	start := len(b)
	b = append(b, proxySignature...)
	b = append(b, proxyProxy, proxyUnspec, 0, 0)
	if src.IsValid() {
		b[start+13] = proxyTCP6
		if src.Addr().Is4() && (dst.Addr().Is4() || !dst.IsValid()) {
			b[start+13] = proxyTCP4
		}
		b = appendProxyAddrs(b, src, dst, b[start+13] == proxyTCP4)
	}
	b = append(b, tlvPeer, byte(len(peer)>>8), byte(len(peer)))
	b = append(b, peer...)
	binary.BigEndian.PutUint16(b[start+14:], uint16(len(b)-start-proxyHeaderLen))
	return b
}

// appendProxyAddrs writes both addresses in one family. An unknown
// destination (a unix socket) is all zero.
func appendProxyAddrs(b []byte, src, dst netip.AddrPort, v4 bool) []byte {
	if !dst.IsValid() {
		dst = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
		if v4 {
			dst = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
		}
	}
	for _, ap := range []netip.AddrPort{src, dst} {
		if v4 {
			b = append(b, ap.Addr().AsSlice()...)
		} else {
			a := ap.Addr().As16()
			b = append(b, a[:]...)
		}
	}
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return binary.BigEndian.AppendUint16(b, dst.Port())
}

// readProxyHeader reads the header that a load balancer puts in front of a
// connection, and nothing after it. It returns the source's address, or the
// zero AddrPort if the header tells none.
func readProxyHeader(r io.Reader) (netip.AddrPort, error) {
	head := make([]byte, proxyHeaderLen)
	if _, err := io.ReadFull(r, head); err != nil {
		return netip.AddrPort{}, fmt.Errorf("no PROXY protocol header: %w", err)
	}
	if string(head[:12]) != proxySignature {
		return netip.AddrPort{}, errors.New("no PROXY protocol v2 header")
	}
	command, family, length := head[12], head[13], int(binary.BigEndian.Uint16(head[14:]))
	if command != proxyLocal && command != proxyProxy {
		return netip.AddrPort{}, fmt.Errorf("PROXY protocol header with version and command %#02x", command)
	}
	if length > maxProxyBody {
		return netip.AddrPort{}, fmt.Errorf("PROXY protocol header of %d bytes", length)
	}
	all := append(head, make([]byte, length)...)
	body := all[proxyHeaderLen:]
	if _, err := io.ReadFull(r, body); err != nil {
		return netip.AddrPort{}, fmt.Errorf("PROXY protocol header ends early: %w", err)
	}
	return parseProxyBody(all, command, family)
}

func parseProxyBody(all []byte, command, family byte) (netip.AddrPort, error) {
	body := all[proxyHeaderLen:]
	if command == proxyLocal {
		return netip.AddrPort{}, nil // the balancer's own check: to be ignored
	}
	addrs := 0
	switch family {
	case proxyUnspec:
		return netip.AddrPort{}, nil // the rest has no known form
	case proxyTCP4:
		addrs = proxyTCP4Len
	case proxyTCP6:
		addrs = proxyTCP6Len
	default:
		return netip.AddrPort{}, fmt.Errorf("PROXY protocol header for family and protocol %#02x, not TCP", family)
	}
	if len(body) < addrs {
		return netip.AddrPort{}, errors.New("PROXY protocol header too short for its addresses")
	}
	if err := checkProxyTLVs(all, proxyHeaderLen+addrs); err != nil {
		return netip.AddrPort{}, err
	}
	half := (addrs - 4) / 2
	a, _ := netip.AddrFromSlice(body[:half])
	port := binary.BigEndian.Uint16(body[2*half:])
	return unmapped(netip.AddrPortFrom(a, port)), nil
}

// checkProxyTLVs checks that the TLVs from byte at on fill the header exactly,
// and their checksum if there is one.
func checkProxyTLVs(all []byte, at int) error {
	for at < len(all) {
		if len(all)-at < 3 {
			return errors.New("PROXY protocol header with a broken TLV")
		}
		kind, n := all[at], int(binary.BigEndian.Uint16(all[at+1:]))
		at += 3
		if n > len(all)-at {
			return errors.New("PROXY protocol header with a broken TLV")
		}
		if kind == tlvCRC32C {
			if n != 4 {
				return errors.New("PROXY protocol header with a broken checksum")
			}
			want := binary.BigEndian.Uint32(all[at:])
			clear(all[at : at+4])
			if crc32.Checksum(all, castagnoli) != want {
				return errors.New("PROXY protocol header with a wrong checksum")
			}
			binary.BigEndian.PutUint32(all[at:], want)
		}
		at += n
	}
	return nil
}
