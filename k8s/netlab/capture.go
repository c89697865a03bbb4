//go:build linux

package netlab

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A Capture keeps every IP packet that crosses an interface, in both directions.
type Capture struct {
	t     testing.TB
	fd    int
	stop  func()
	stops chan struct{} // closed to end the reader once it has taken what is there
	ended chan struct{}

	mu      sync.Mutex
	packets []packet
}

type packet struct {
	src, dst netip.AddrPort // the ports are 0 unless it is TCP or UDP
	proto    byte
	seq      uint32 // of TCP
	syn      bool
	payload  []byte
}

// A Flow is one direction of one TCP connection, put together again.
type Flow struct {
	Src, Dst netip.AddrPort
	Data     []byte
	Lost     int // bytes that the capture did not see; Data has zeros there
}

// captureBuffer must hold what arrives while the reader does not run.
const captureBuffer = 256 << 20

// Capture starts to capture on one of the host's interfaces, until the test ends or Stop is called.
func (h *Host) Capture(link string) *Capture {
	h.t.Helper()
	c := &Capture{t: h.t, stops: make(chan struct{}), ended: make(chan struct{})}
	c.stop = sync.OnceFunc(func() {
		close(c.stops)
		<-c.ended
	})
	if err := inNamespace(h.name, func() error { return c.open(link) }); err != nil {
		h.t.Fatalf("capturing on %s: %v", link, err)
	}
	go c.read()
	h.t.Cleanup(c.stop)
	return c
}

// inNamespace runs f on a thread that is in the namespace for as long. The thread must come back and live on: programs
// that it started would be killed with it, by their Pdeathsig.
func inNamespace(name string, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	ns, err := os.Open("/run/netns/" + name)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the namespace: %w", err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		panic(fmt.Sprintf("a thread is lost in namespace %s: %v", name, back))
	}
	return err
}

func (c *Capture) open(link string) (err error) {
	// A datagram packet socket leaves the Ethernet header out. It hears nothing before it is bound to an interface.
	c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ifreq, err := unix.NewIfreq(link)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(c.fd, unix.SIOCGIFINDEX, ifreq); err != nil {
		return err
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	return errors.Join(
		unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer),
		unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
		unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: int(ifreq.Uint32())}))
}

func (c *Capture) read() {
	defer close(c.ended)
	defer unix.Close(c.fd)
	buf := make([]byte, 128<<10)
	for {
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		switch {
		case err == nil:
			if p, ok := parsePacket(buf[:n]); ok {
				c.mu.Lock()
				c.packets = append(c.packets, p)
				c.mu.Unlock()
			}
		case err == unix.EAGAIN:
			select {
			case <-c.stops:
				return
			default:
			}
		case err != unix.EINTR:
			c.t.Errorf("capturing: %v", err)
			<-c.stops
			return
		}
	}
}

// Stop ends the capture.
func (c *Capture) Stop() { c.stop() }

// snapshot is what was captured so far.
func (c *Capture) snapshot() []packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.packets)
}

// Contains reports whether b crossed the interface, in any TCP stream or any other packet.
func (c *Capture) Contains(b []byte) bool {
	inFlow := func(f Flow) bool { return bytes.Contains(f.Data, b) }
	inPacket := func(p packet) bool { return p.proto != unix.IPPROTO_TCP && bytes.Contains(p.payload, b) }
	return slices.ContainsFunc(c.Flows(), inFlow) || slices.ContainsFunc(c.snapshot(), inPacket)
}

// Others lists the packets that are neither TCP nor ICMP.
func (c *Capture) Others() []string {
	var others []string
	for _, p := range c.snapshot() {
		switch p.proto {
		case unix.IPPROTO_TCP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		default:
			others = append(others, fmt.Sprintf("protocol %d from %s to %s", p.proto, p.src, p.dst))
		}
	}
	return others
}

// Flows puts the TCP streams together, in the order in which they started. Flows without a byte are left out.
func (c *Capture) Flows() []Flow {
	type way struct{ src, dst netip.AddrPort }
	type stream struct {
		way
		first    uint32 // sequence number of the first byte
		segments []packet
	}
	var streams []*stream
	current := make(map[way]*stream)
	for _, p := range c.snapshot() {
		if p.proto != unix.IPPROTO_TCP {
			continue
		}
		w := way{p.src, p.dst}
		first := p.seq
		if p.syn {
			first++
		}
		s := current[w]
		if s == nil || p.syn && s.first != first {
			s = &stream{way: w, first: first}
			current[w] = s
			streams = append(streams, s)
		}
		if len(p.payload) > 0 {
			s.segments = append(s.segments, p)
		}
	}
	var flows []Flow
	for _, s := range streams {
		if len(s.segments) > 0 {
			f := Flow{Src: s.src, Dst: s.dst}
			f.Data, f.Lost = assemble(s.first, s.segments)
			flows = append(flows, f)
		}
	}
	return flows
}

// assemble orders segments by sequence number, which may wrap, and drops what was sent twice.
func assemble(first uint32, segments []packet) (data []byte, lost int) {
	offset := func(p packet) int { return int(p.seq - first) }
	slices.SortStableFunc(segments, func(a, b packet) int { return cmp.Compare(offset(a), offset(b)) })
	for _, p := range segments {
		off := offset(p)
		if gap := off - len(data); gap > 0 {
			lost += gap
			data = append(data, make([]byte, gap)...)
		}
		if known := len(data) - off; known < len(p.payload) {
			data = append(data, p.payload[known:]...)
		}
	}
	return data, lost
}

// parsePacket reads an IP packet and what is in it.
func parsePacket(b []byte) (packet, bool) {
	p, rest, ok := parseIP(b)
	if !ok {
		return p, false
	}
	switch {
	case p.proto == unix.IPPROTO_TCP && len(rest) >= 20:
		header := int(rest[12]>>4) * 4
		if header < 20 || header > len(rest) {
			return p, false
		}
		p.seq = binary.BigEndian.Uint32(rest[4:])
		p.syn = rest[13]&0x02 != 0
		p.withPorts(rest)
		p.payload = bytes.Clone(rest[header:])
	case p.proto == unix.IPPROTO_UDP && len(rest) >= 8:
		p.withPorts(rest)
		p.payload = bytes.Clone(rest[8:])
	default:
		p.payload = bytes.Clone(rest)
	}
	return p, true
}

func (p *packet) withPorts(header []byte) {
	p.src = netip.AddrPortFrom(p.src.Addr(), binary.BigEndian.Uint16(header))
	p.dst = netip.AddrPortFrom(p.dst.Addr(), binary.BigEndian.Uint16(header[2:]))
}

// parseIP reads the IP header and returns what follows it, without the padding of short frames.
func parseIP(b []byte) (p packet, rest []byte, ok bool) {
	if len(b) < 20 {
		return p, nil, false
	}
	var header, total int
	switch b[0] >> 4 {
	case 4:
		header, total = int(b[0]&0x0f)*4, int(binary.BigEndian.Uint16(b[2:]))
		p.proto = b[9]
		p.src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:])), 0)
		p.dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:])), 0)
	case 6:
		if len(b) < 40 {
			return p, nil, false
		}
		header, total = 40, 40+int(binary.BigEndian.Uint16(b[4:]))
		p.proto = b[6]
		p.src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:])), 0)
		p.dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:])), 0)
	}
	if total <= header { // segmentation offload leaves 0 for what is larger than the field
		total = len(b)
	}
	return p, b[min(header, len(b)):min(total, len(b))], p.src.IsValid()
}
