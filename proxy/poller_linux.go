package proxy

import (
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A poller waits for sockets to become readable, with one goroutine for all of
// them. It is an epoll instance of its own, which Go's poller watches in turn.
type poller struct {
	file *os.File
	raw  syscall.RawConn

	mu     sync.Mutex
	lastID uint64
	wake   map[uint64]func()
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	p := &poller{file: os.NewFile(uintptr(fd), "epoll"), wake: make(map[uint64]func())}
	if p.raw, err = p.file.SyscallConn(); err != nil {
		p.file.Close()
		return nil, err
	}
	return p, nil
}

// run calls the wakes until close.
func (p *poller) run() {
	events := make([]unix.EpollEvent, 128)
	for {
		n := 0
		err := p.raw.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events, 0)
			return n > 0
		})
		if err != nil {
			return
		}
		for _, e := range events[:n] {
			p.mu.Lock()
			wake := p.wake[uint64(uint32(e.Fd))|uint64(uint32(e.Pad))<<32]
			p.mu.Unlock()
			if wake != nil {
				wake()
			}
		}
	}
}

func (p *poller) close() { p.file.Close() }

func (p *poller) register(wake func()) (id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastID++
	p.wake[p.lastID] = wake
	return p.lastID
}

func (p *poller) unregister(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.wake, id)
}

// arm makes the next of events of fd call id's wake. An error and a full end
// always are such events.
func (p *poller) arm(op int, events uint32, fd uintptr, id uint64) error {
	e := unix.EpollEvent{
		Events: events | unix.EPOLLONESHOT,
		Fd:     int32(uint32(id)), Pad: int32(uint32(id >> 32)), // the 64 bits that come back
	}
	var err error
	if cerr := p.raw.Control(func(ep uintptr) { err = unix.EpollCtl(int(ep), op, int(fd), &e) }); cerr != nil {
		return cerr
	}
	return err
}

// watch calls gone once the app has gone, until stop is called or a little
// later. A nil poller watches nothing.
func (p *poller) watch(app net.Conn, gone func()) (stop func()) {
	sc, ok := app.(syscall.Conn)
	if p == nil || !ok {
		return func() {}
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return func() {}
	}
	id := p.register(func() {
		if hasGone(raw) {
			gone()
		}
	})
	err = raw.Control(func(fd uintptr) { p.arm(unix.EPOLL_CTL_ADD, 0, fd, id) })
	return func() {
		p.unregister(id)
		if err == nil {
			raw.Control(func(fd uintptr) { p.disarm(fd) })
		}
	}
}

// hasGone reports whether a connection has failed, or, on a unix socket, was
// closed with nothing left to deliver.
func hasGone(raw syscall.RawConn) (gone bool) {
	raw.Control(func(fd uintptr) {
		events := polled(fd, 0)
		queued, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ)
		gone = events&unix.POLLERR != 0 || events&unix.POLLHUP != 0 && err == nil && queued == 0
	})
	return gone
}

// disarm takes fd out, for others to arm.
func (p *poller) disarm(fd uintptr) {
	p.raw.Control(func(ep uintptr) { unix.EpollCtl(int(ep), unix.EPOLL_CTL_DEL, int(fd), nil) })
}

// A sleeper is a conn's part in a poller.
type sleeper struct {
	poller *poller // nil: the conn never sleeps
	id     uint64  // 0 before the first sleep
	armed  bool    // the poller was told of the socket
}

// canSleep reports whether the socket can be left to the poller. In a unix
// socket there is always something to read: the byte that sockReader leaves.
func (c *conn) canSleep() bool { return c.nap.poller != nil && c.rd.raw != nil && !c.isUnix }

// register prepares to sleep.
func (c *conn) register(wake func()) {
	if c.nap.id == 0 {
		c.nap.id = c.nap.poller.register(wake)
	}
}

// sleep arranges that wake is called once there is something to read, the
// socket has ended or failed. It returns false if that cannot be done.
func (c *conn) sleep() bool {
	op := unix.EPOLL_CTL_ADD
	if c.nap.armed {
		op = unix.EPOLL_CTL_MOD
	}
	// Once the poller is armed, another goroutine may have the conn.
	c.nap.armed = true
	var armErr error
	err := c.rd.raw.Control(func(fd uintptr) { armErr = c.nap.poller.arm(op, unix.EPOLLIN|unix.EPOLLRDHUP, fd, c.nap.id) })
	return err == nil && armErr == nil
}

// unregister is for a conn that sleeps no more. The kernel has forgotten its
// socket with its close.
func (c *conn) unregister() {
	if c.nap.id != 0 {
		c.nap.poller.unregister(c.nap.id)
	}
}
