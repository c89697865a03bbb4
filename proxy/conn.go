package proxy

import (
	"io"
	"net"
	"sync"
	"syscall"
)

// socket is a connection to an app or a target: a *net.TCPConn or *net.UnixConn.
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
	ahead  []byte // read before the stream was open; comes first
	rd     sockReader
}

// newConn wraps a socket. ahead holds bytes that were already read from it.
func newConn(c net.Conn, ahead []byte) *conn {
	s, ok := c.(socket)
	if !ok {
		s = plainSocket{c}
	}
	_, isUnix := c.(*net.UnixConn)
	nc := &conn{socket: s, isUnix: isUnix, ahead: ahead}
	nc.rd.init(nc)
	return nc
}

// readChunk waits for bytes without holding a buffer, and returns them in one
// that release takes back. It returns io.EOF and no chunk at the end.
func (c *conn) readChunk() (chunk, error) {
	if len(c.ahead) > 0 {
		b := c.ahead
		c.ahead = nil
		return chunk{b: b}, nil
	}
	return c.rd.next()
}

// reset ends the connection so that the app sees an error, never a clean end.
//
// TCP sends RST. A unix socket has none: its other end sees ECONNRESET only
// if bytes that it wrote are unread when this end closes, so the reader leaves
// the last byte that it has passed on in the socket (see sockReader). An app
// that never wrote anything sees an end of file all the same.
func (c *conn) reset() {
	if t, ok := c.socket.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.Close()
}

// finish closes the connection after both directions ended properly.
func (c *conn) finish() {
	c.rd.release()
	c.Close()
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

// A chunk is bytes in a pooled buffer.
type chunk struct {
	b    []byte
	pool *sync.Pool
	buf  *[]byte
}

func (k chunk) release() {
	if k.pool != nil {
		k.pool.Put(k.buf)
	}
}

// Readers start with small buffers and take large ones while they fill them.
const (
	smallChunk = 4 << 10
	largeChunk = 64 << 10
)

var (
	smallChunks = newChunkPool(smallChunk)
	largeChunks = newChunkPool(largeChunk)
)

func newChunkPool(size int) *sync.Pool {
	return &sync.Pool{New: func() any {
		b := make([]byte, size)
		return &b
	}}
}

// chunkSizer picks a pool by how full the last buffer became.
type chunkSizer struct{ large bool }

func (z *chunkSizer) pool() *sync.Pool {
	if z.large {
		return largeChunks
	}
	return smallChunks
}

func (z *chunkSizer) took(n int) { z.large = n >= smallChunk }

// readPlain reads a chunk the portable way, with the buffer held while it waits.
func readPlain(r io.Reader, z *chunkSizer) (chunk, error) {
	pool := z.pool()
	buf := pool.Get().(*[]byte)
	n, err := r.Read(*buf)
	if n == 0 {
		pool.Put(buf)
		if err == nil {
			err = io.ErrNoProgress
		}
		return chunk{}, err
	}
	z.took(n)
	return chunk{(*buf)[:n], pool, buf}, nil // an error with bytes comes again
}
