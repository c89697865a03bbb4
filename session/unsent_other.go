//go:build !linux

package session

import "net"

// An unsentQueue is what the kernel holds of a TCP transport and has not sent.
// Nobody tells.
type unsentQueue struct{}

func (*unsentQueue) init(net.Conn) {}
func (*unsentQueue) bytes() int    { return 0 }
func (*unsentQueue) await(int)     {}
func (*unsentQueue) follow(int)    {}
