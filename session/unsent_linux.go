package session

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// An unsentQueue is what the kernel holds of a TCP transport and has not sent.
// The zero value is of a transport where that is not known.
type unsentQueue struct {
	raw   syscall.RawConn
	limit int // as the kernel knows it; 0: none

	size  int              // what bytes has found
	look  func(fd uintptr) // sets size; made once, as is ready
	ready func(fd uintptr) bool
}

func (q *unsentQueue) init(c net.Conn) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	q.raw = raw
	q.look = func(fd uintptr) {
		var err error
		if q.size, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQNSD); err != nil {
			q.size = 0
		}
	}
	q.ready = func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, _ := unix.Poll(p, 0)
		return n != 0
	}
}

// bytes is how much that is.
func (q *unsentQueue) bytes() int {
	if q.raw == nil {
		return 0
	}
	q.size = 0
	q.raw.Control(q.look)
	return q.size
}

// await waits until it is less than limit, or the transport's write deadline has
// passed, or the transport was closed.
func (q *unsentQueue) await(limit int) {
	if q.raw == nil {
		return
	}
	if limit < q.limit*3/4 || limit > q.limit*5/4 {
		q.tell(limit)
	}
	q.raw.Write(q.ready) // its error is that of the next Write, too
}

// follow has the kernel, if it knows a limit, take more where that has grown.
func (q *unsentQueue) follow(limit int) {
	if q.limit > 0 && limit > q.limit*5/4 {
		q.tell(limit)
	}
}

func (q *unsentQueue) tell(limit int) {
	q.limit = limit
	q.raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 2*limit) // it wakes at half of that
	})
}
