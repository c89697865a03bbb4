package proxy

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealane/sealane/mux"
)

// A sockReader reads from a conn's socket. It takes a buffer only once the
// socket is readable, so that an idle connection holds none.
//
// On unix sockets it also keeps the last byte that it has passed on in the
// socket's queue, as conn.reset needs it.
type sockReader struct {
	c    *conn
	raw  syscall.RawConn       // nil: not a kernel socket
	lazy mux.LazyReader        // for what is not
	try  func(fd uintptr) bool // made once; RawConn.Read calls it
	held bool                  // the queue starts with a byte that was passed on

	// Of the read that goes on:
	take func() [][]byte
	drop func()
	none bool // take had none to give
	n    int
	err  error
}

func (r *sockReader) init(c *conn) {
	r.c = c
	raw, err := c.SyscallConn()
	if err != nil {
		r.lazy = mux.Lazy(c.socket)
		return
	}
	r.raw = raw
	c.wr.init(raw)
	if c.isUnix {
		r.try = r.tryUnix
	} else {
		r.try = r.tryTCP
	}
}

func (r *sockReader) read(take func() [][]byte, drop func()) (int, error) {
	if r.raw == nil {
		return r.lazy.ReadLazy(take, drop)
	}
	r.take, r.drop, r.none, r.n, r.err = take, drop, false, 0, nil
	err := r.raw.Read(r.try)
	r.take, r.drop = nil, nil // an idle connection keeps nothing for them
	if err != nil {
		return 0, err
	}
	if r.err != nil {
		return 0, os.NewSyscallError("read", r.err)
	}
	if r.n == 0 && !r.none {
		return 0, io.EOF
	}
	return r.n, nil
}

// done notes what a read into a taken buffer gave, and reports whether to
// stop waiting.
func (r *sockReader) done(n int, err error) bool {
	if n <= 0 || err != nil {
		r.drop()
		n = 0
	}
	if err == unix.EAGAIN {
		return false
	}
	r.n, r.err = n, err
	return true
}

func (r *sockReader) tryTCP(fd uintptr) bool {
	b := r.take()
	if r.none = len(b) == 0; r.none {
		return true
	}
	n, err := ignoringEINTR(func() (int, error) {
		if len(b) == 1 {
			return unix.Read(int(fd), b[0])
		}
		return unix.Readv(int(fd), b)
	})
	if n == 0 && err == nil && !r.c.ended.Load() && isClosed(fd) {
		err = unix.ECONNRESET
	}
	return r.done(n, err)
}

// isClosed reports whether the kernel has given a TCP connection up. The error
// of one that was reset is told to one call alone: if that was a write, a read
// finds what looks like a proper end. But after a proper end the connection is
// not closed until this side has ended, too.
func isClosed(fd uintptr) bool {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO)
	return err == nil && info.State == unix.BPF_TCP_CLOSE
}

// tryUnix takes all but the last byte out of the queue, and that one by
// peeking at it.
func (r *sockReader) tryUnix(fd uintptr) bool {
	for {
		// Asked first: if the app ends its side after this, another event comes.
		ended := polled(fd, unix.POLLRDHUP)&unix.POLLRDHUP != 0
		queued, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ)
		held := 0
		if r.held {
			held = 1
		}
		rooms := r.take()
		if r.none = len(rooms) == 0; r.none {
			return true
		}
		b := rooms[0]
		if err == nil && queued <= held {
			// An error of the socket would show only in a read of an empty queue.
			if err = socketError(fd); err == nil && !ended {
				err = unix.EAGAIN
			}
		}
		if err != nil || queued <= held {
			return r.done(0, err)
		}
		n, err := r.takeQueued(fd, b, queued)
		if n == held && err == nil {
			r.held = false // a short read gave the held byte alone
			r.done(0, nil)
			continue
		}
		copy(b, b[held:n])
		return r.done(n-held, err)
	}
}

// takeQueued reads queued bytes, or what fits, and leaves the last in the queue.
func (r *sockReader) takeQueued(fd uintptr, b []byte, queued int) (n int, err error) {
	if queued > 1 {
		if n, err = recv(fd, b[:min(queued-1, len(b))], 0); err != nil {
			return n, err
		}
	}
	if r.held = n == queued-1 && n < len(b); r.held {
		var k int
		k, err = recv(fd, b[n:n+1], unix.MSG_PEEK)
		n += k
	}
	return n, err
}

func socketError(fd uintptr) error {
	n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && n != 0 {
		err = unix.Errno(n)
	}
	return err
}

// A sockWriter writes to a conn's socket what that takes without waiting.
type sockWriter struct {
	raw syscall.RawConn       // nil: not a kernel socket
	try func(fd uintptr) bool // made once; RawConn.Write calls it

	// Of the write that goes on:
	pieces [][]byte
	n      int
	err    error
}

func (w *sockWriter) init(raw syscall.RawConn) {
	w.raw = raw
	w.try = w.tryWrite
}

func (w *sockWriter) write(pieces [][]byte) (int, error) {
	if w.raw == nil {
		return 0, nil
	}
	w.pieces, w.n, w.err = pieces, 0, nil
	err := w.raw.Write(w.try)
	w.pieces = nil
	if err != nil {
		return 0, err
	}
	return w.n, os.NewSyscallError("write", w.err)
}

func (w *sockWriter) tryWrite(fd uintptr) bool {
	n, err := ignoringEINTR(func() (int, error) {
		if len(w.pieces) == 1 {
			return unix.Write(int(fd), w.pieces[0])
		}
		return unix.Writev(int(fd), w.pieces)
	})
	switch {
	case err == nil:
		w.n = n
	case err != unix.EAGAIN:
		w.err = err
	}
	return true
}

// release takes the held byte out of the queue, so that closing is no reset.
func (r *sockReader) release() {
	if r.raw == nil || !r.held {
		return
	}
	r.held = false
	r.raw.Control(func(fd uintptr) {
		var b [1]byte
		recv(fd, b[:], 0)
	})
}

func recv(fd uintptr, b []byte, flags int) (int, error) {
	return ignoringEINTR(func() (int, error) {
		n, _, err := unix.Recvfrom(int(fd), b, flags|unix.MSG_DONTWAIT)
		return n, err
	})
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// polled returns which of events, and of POLLERR and POLLHUP, a socket has.
func polled(fd uintptr, events int16) int16 {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	if _, err := unix.Poll(fds, 0); err != nil {
		return 0
	}
	return fds[0].Revents & (events | unix.POLLERR | unix.POLLHUP)
}

// broken reports whether the socket has failed while nobody read or wrote it:
// it was reset, or its keepalives went unanswered.
func (c *conn) broken() bool {
	broken := false
	if c.rd.raw != nil {
		c.rd.raw.Control(func(fd uintptr) { broken = polled(fd, 0)&unix.POLLERR != 0 })
	}
	return broken
}

// limitKernel has the kernel keep few bytes of a TCP connection: unsentLimit
// and, of an app's, unreadLimit. Where it fails, more are kept.
func (c *conn) limitKernel(app bool) {
	if c.rd.raw == nil || c.isUnix {
		return
	}
	c.rd.raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLimit)
		if app {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, unreadLimit)
		}
	})
}

func setMark(fd uintptr, mark uint32) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)))
}

// resetOnClose makes the socket's close a reset.
func resetOnClose(fd uintptr) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
}

// urgentInLine keeps the byte that a peer marks as urgent among the others.
// Out of line, the kernel would take it out of the stream.
func urgentInLine(fd uintptr) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1))
}

func setSharing(fd uintptr, share bool) error {
	v := 0
	if share {
		v = 1
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, v))
}

// bindsIPv6Only asks the kernel what it takes [::] for, net.ipv6.bindv6only:
// IPv6 alone, or IPv4 as well.
func bindsIPv6Only() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	v, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
	return err == nil && v != 0
}

// A spareDescriptor is held so that connections can still be refused when
// descriptors run out.
type spareDescriptor struct {
	mu   sync.Mutex
	fd   int
	held bool
}

func (s *spareDescriptor) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holdLocked()
}

func (s *spareDescriptor) holdLocked() {
	if s.held {
		return
	}
	// Any descriptor would do; a socket needs no file to be opened.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	s.fd, s.held = fd, err == nil
}

func (s *spareDescriptor) free() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held {
		s.held = false
		unix.Close(s.fd)
	}
}

// refuse resets a connection that waits on l, in place of the spare
// descriptor. It returns false if there is none.
func (s *spareDescriptor) refuse(l net.Listener) bool {
	d, ok := l.(deadliner)
	if !ok {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.holdLocked()
	if s.held {
		s.held = false
		unix.Close(s.fd)
	}
	d.SetDeadline(time.Now().Add(time.Millisecond))
	defer d.SetDeadline(time.Time{})
	c, err := l.Accept()
	if err != nil {
		return false
	}
	newConn(c, nil).reset()
	return true
}

func closeOnExec(fd int) { unix.CloseOnExec(fd) }
