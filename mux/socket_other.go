//go:build !linux

package mux

import (
	"net"
	"time"
)

// tuneSocket tells the kernel what limit, the LinkTimeout, means for a link.
func tuneSocket(c net.Conn, limit time.Duration) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetKeepAliveConfig(keepAlive(limit))
	}
}

// tcpAcked would return how many bytes the peer's kernel has acknowledged, and
// how many segments.
func tcpAcked(net.Conn) (uint64, uint32, bool) { return 0, 0, false }
