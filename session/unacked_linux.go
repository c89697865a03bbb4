package session

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unacked is how many bytes the kernel holds that the other end's has not
// acknowledged: 0 where that is not known.
func unacked(c net.Conn) (n int) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) {
		if n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err != nil {
			n = 0
		}
	})
	return n
}
