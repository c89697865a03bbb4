package mux

import (
	"io"
	"net"
	"sync"
	"syscall"
)

// maxChunk is how much of an app's bytes goes into one DATA frame: with the
// headers of frame and yamux before it, it fills the body of one record
// (SPEC.md section 2), and leaves no crumb for a second.
const maxChunk = 65531 - yamuxHeaderLen - frameHeaderLen

// A buffer holds one DATA frame.
type buffer [frameHeaderLen + maxChunk]byte

var buffers = sync.Pool{New: func() any { return new(buffer) }}

func getBuffer() *buffer  { return buffers.Get().(*buffer) }
func putBuffer(b *buffer) { buffers.Put(b) }

// ReadFrom writes what src gives to the stream, until src's io.EOF. It does
// not end the stream then. It holds a buffer only while there is something in
// it, if src is a TCP or Unix connection.
func (s *Stream) ReadFrom(src io.Reader) (total int64, err error) {
	read := readerFor(src)
	for {
		buf, n, err := read()
		if n > 0 {
			s.writeMu.Lock()
			werr := s.writeData(buf[:frameHeaderLen+n])
			s.writeMu.Unlock()
			if werr == nil {
				total += int64(n)
			}
			putBuffer(buf)
			if werr != nil {
				return total, werr
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// readerFor returns a function that reads into a fresh buffer, behind the
// room for a frame's header. The buffer is nil if nothing was read.
func readerFor(src io.Reader) func() (*buffer, int, error) {
	switch c := src.(type) {
	// Only these two: other conns may have buffered what the socket gave.
	case *net.TCPConn:
		if raw, err := c.SyscallConn(); err == nil {
			return (&rawReader{conn: raw}).reader()
		}
	case *net.UnixConn:
		if raw, err := c.SyscallConn(); err == nil {
			return (&rawReader{conn: raw}).reader()
		}
	}
	return func() (*buffer, int, error) {
		buf := getBuffer()
		n, err := src.Read(buf[frameHeaderLen:])
		if n <= 0 {
			putBuffer(buf)
			return nil, 0, err
		}
		return buf, n, err
	}
}

// A rawReader waits for a socket without holding a buffer.
type rawReader struct {
	conn syscall.RawConn
	buf  *buffer
	n    int
	err  error
}

func (r *rawReader) reader() func() (*buffer, int, error) {
	try := r.try // one closure for all reads
	return func() (*buffer, int, error) {
		r.buf, r.n, r.err = nil, 0, nil
		if err := r.conn.Read(try); err != nil {
			return nil, 0, err
		}
		if r.err == nil && r.n == 0 {
			return nil, 0, io.EOF
		}
		return r.buf, r.n, r.err
	}
}

// try reads once. It returns false to wait until the socket is readable.
func (r *rawReader) try(fd uintptr) bool {
	buf := getBuffer()
	var err error
	for {
		r.n, err = syscall.Read(int(fd), buf[frameHeaderLen:])
		if err != syscall.EINTR {
			break
		}
	}
	if r.n > 0 {
		r.buf = buf
		return true
	}
	putBuffer(buf)
	r.n = 0
	if err == syscall.EAGAIN {
		return false
	}
	if err != nil {
		r.err = &net.OpError{Op: "read", Net: "app", Err: err}
	}
	return true
}

// WriteTo writes what the stream carries to dst, until its END. What arrives
// while dst is written to goes into one write. No buffer is held while nothing
// arrives.
func (s *Stream) WriteTo(dst io.Writer) (total int64, err error) {
	for {
		buf, n, err := s.readChunk()
		if n > 0 {
			m, werr := dst.Write(buf[:n])
			total += int64(m)
			putBuffer(buf)
			if werr != nil {
				return total, werr
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// readChunk waits for app bytes and returns what is there of them, up to a
// buffer full. The buffer is nil if there are none.
func (s *Stream) readChunk() (*buffer, int, error) {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	if err := s.nextData(); err != nil {
		return nil, 0, err
	}
	buf := getBuffer()
	n := 0
	for {
		m, err := s.readBody(buf[n:])
		n += m
		if err == nil && n < len(buf) && s.link.guard.waiting(s.flow) {
			if err = s.nextData(); err == nil {
				continue
			}
		}
		if n == 0 {
			putBuffer(buf)
			return nil, 0, err
		}
		return buf, n, err
	}
}
