//go:build linux

package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Segment is a TCP segment between pods, as it was on the wire.
type Segment struct {
	Src, Dst netip.AddrPort
	Seq      uint32
	SYN      bool
	Payload  []byte
}

// Capture collects every TCP segment that crosses the pods' bridge.
type Capture struct {
	fd       int
	done     chan struct{}
	mu       sync.Mutex
	segments []Segment
	err      error
}

// Capture starts one on all interfaces of the node, among them each end of the
// bridge: so a segment is seen more than once.
func (c *Cluster) Capture() (*Capture, error) {
	fd, err := c.packetSocket()
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	p := &Capture{fd: fd, done: make(chan struct{})}
	go p.run()
	return p, nil
}

// packetSocket opens a socket in the cluster's network. A thread enters it for
// that and is given up after.
func (c *Cluster) packetSocket() (int, error) {
	type result struct {
		fd  int
		err error
	}
	opened := make(chan result)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		fd, err := func() (int, error) {
			ns, err := os.Open(c.NetNS())
			if err != nil {
				return -1, err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return -1, err
			}
			all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
			if err != nil {
				return -1, err
			}
			return fd, errors.Join(
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
				unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
		}()
		opened <- result{fd, err}
	}()
	r := <-opened
	return r.fd, r.err
}

func (p *Capture) run() {
	buf := make([]byte, 128<<10) // segments may be as large as offloading makes them
	for {
		select {
		case <-p.done:
			return
		default:
		}
		n, _, err := unix.Recvfrom(p.fd, buf, 0)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			p.mu.Lock()
			p.err = err
			p.mu.Unlock()
			return
		}
		if s, ok := parseSegment(buf[:n]); ok {
			p.mu.Lock()
			p.segments = append(p.segments, s)
			p.mu.Unlock()
		}
	}
}

// Stop ends the capture and gives what it saw.
func (p *Capture) Stop() ([]Segment, error) {
	time.Sleep(200 * time.Millisecond) // what is in the socket's buffer
	close(p.done)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.segments, errors.Join(p.err, syscall.Close(p.fd))
}

// parseSegment reads an Ethernet frame that holds IPv4 and TCP.
func parseSegment(frame []byte) (Segment, bool) {
	const ethernet = 14
	if len(frame) < ethernet+20 || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IP {
		return Segment{}, false
	}
	ip := frame[ethernet:]
	header, total := int(ip[0]&0x0f)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if ip[0]>>4 != 4 || ip[9] != unix.IPPROTO_TCP || total > len(ip) || total < header+20 {
		return Segment{}, false
	}
	tcp := ip[header:total]
	offset := int(tcp[12]>>4) * 4
	if offset < 20 || offset > len(tcp) {
		return Segment{}, false
	}
	address := func(b []byte, port []byte) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), binary.BigEndian.Uint16(port))
	}
	return Segment{
		Src:     address(ip[12:16], tcp[0:2]),
		Dst:     address(ip[16:20], tcp[2:4]),
		Seq:     binary.BigEndian.Uint32(tcp[4:]),
		SYN:     tcp[13]&0x02 != 0,
		Payload: append([]byte(nil), tcp[offset:]...),
	}, true
}
