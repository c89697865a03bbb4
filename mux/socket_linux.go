package mux

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tuneSocket tells the kernel what limit, the LinkTimeout, means for a link.
func tuneSocket(c net.Conn, limit time.Duration) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	t.SetKeepAliveConfig(keepAlive(limit))
	if raw, err := t.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout(limit)/time.Millisecond))
		})
	}
}

// tcpAcked returns how many bytes the peer's kernel has acknowledged, and how
// many segments: also those behind one that was lost.
func tcpAcked(c net.Conn) (n uint64, segments uint32, ok bool) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return 0, 0, false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return 0, 0, false
	}
	ok = false
	raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			n, segments, ok = info.Bytes_acked, info.Delivered, true
		}
	})
	return n, segments, ok
}
