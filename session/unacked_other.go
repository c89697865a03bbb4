//go:build !linux

package session

import "net"

// unacked is how many bytes the kernel holds that the other end's has not
// acknowledged. Nobody tells.
func unacked(net.Conn) int { return 0 }
