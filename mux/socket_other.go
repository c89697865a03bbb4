//go:build !linux

package mux

import "net"

// tuneSocket has the kernel notice a dead peer, in case this process is too
// busy to.
func tuneSocket(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount})
	}
}

// tcpAcked would return how many bytes the peer's kernel has acknowledged.
func tcpAcked(net.Conn) (uint64, bool) { return 0, false }
