package proxy

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/sealane/sealane/mux"
	"github.com/sealane/sealane/session/loan"
)

// socket is a connection to an app or a target: a *net.TCPConn or *net.UnixConn,
// or of Config.Listen or Dial. Those may be a mux.Sink and a mux.LazyReader.
type socket interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// A conn is the plaintext side of a stream: a socket to an app or a target,
// with what is needed to end it properly.
type conn struct {
	socket
	isUnix bool
	ahead  []byte      // read before the stream was open; comes first
	ended  atomic.Bool // CloseWrite was called
	rd     sockReader
	wr     sockWriter
	nap    sleeper
}

// For the first crowd connections the kernel may buffer as it likes, which is
// a little faster. More of them that stand still would take what it has for all
// of TCP, and it would drop what the healthy ones send: it gets limits.
const (
	crowd       = 64
	unsentLimit = 128 << 10 // bytes that are not yet on their way to the app or target
	unreadLimit = 128 << 10 // bytes of an app, which is near, and needs no more to be fast
)

// newConn wraps a socket. ahead holds bytes that were already read from it.
//
// From here on a TCP socket that closes without finish is reset: also when this
// process is killed, which would otherwise look like a proper end to the app.
func newConn(c net.Conn, ahead []byte) *conn {
	s, ok := c.(socket)
	if !ok {
		s = plainSocket{c}
	}
	setLinger(c, 0)
	_, isUnix := c.(*net.UnixConn)
	nc := &conn{socket: s, isUnix: isUnix, ahead: ahead}
	nc.rd.init(nc)
	return nc
}

// CloseWrite ends the direction to the app or target.
func (c *conn) CloseWrite() error {
	c.ended.Store(true)
	return c.socket.CloseWrite()
}

// ReadLazy is mux.LazyReader's: it reads into the buffers that take returns,
// and holds none while it waits.
func (c *conn) ReadLazy(take func() [][]byte, drop func()) (int, error) {
	if len(c.ahead) > 0 {
		n := 0
		if rooms := take(); len(rooms) > 0 {
			n = copy(rooms[0], c.ahead)
			c.ahead = c.ahead[n:]
		}
		return n, nil
	}
	return c.rd.read(take, drop)
}

// TryWrite is mux.Sink's: it writes what the socket takes of the
// pieces without waiting.
func (c *conn) TryWrite(pieces [][]byte) (int, error) {
	if s, ok := c.socket.(mux.Sink); ok {
		return s.TryWrite(pieces)
	}
	return c.wr.write(pieces)
}

// reset ends the connection so that the app sees an error, never a clean end.
//
// TCP sends RST. A unix socket has none: its other end sees ECONNRESET only
// if bytes that it wrote are unread when this end closes, so the reader leaves
// the last byte that it has passed on in the socket (see sockReader). An app
// that never wrote anything sees an end of file all the same.
func (c *conn) reset() { c.Close() }

// finish closes the connection after both directions ended properly.
func (c *conn) finish() {
	c.rd.release()
	setLinger(c.socket, -1)
	c.Close()
}

// setLinger makes a TCP socket's close a reset (0) or a proper end (-1).
func setLinger(c net.Conn, seconds int) {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		t.SetLinger(seconds)
	}
}

// plainSocket makes other conns, from Config.Dial say, look like sockets.
type plainSocket struct{ net.Conn }

func (s plainSocket) SyscallConn() (syscall.RawConn, error) { return nil, syscall.ENOTSUP }

func (s plainSocket) CloseWrite() error {
	if cw, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return syscall.ENOTSUP
}

// chunks holds buffers for copying.
var chunks = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// copyLazy copies from r to w until r's proper end.
func copyLazy(w io.Writer, r mux.LazyReader) error {
	var buf *[64 << 10]byte
	var room [1][]byte
	take := func() [][]byte {
		buf = chunks.Get().(*[64 << 10]byte)
		room[0] = buf[:]
		return room[:]
	}
	drop := func() {
		loan.End(buf[:])
		chunks.Put(buf)
	}
	for {
		n, err := r.ReadLazy(take, drop)
		if n > 0 {
			_, werr := w.Write(buf[:n])
			drop()
			if werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
