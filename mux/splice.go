package mux

import (
	"io"
	"sync"
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

// A LazyReader can wait for bytes without a buffer to put them into.
type LazyReader interface {
	io.Reader
	// ReadLazy is Read into the buffer that take returns, which it calls once
	// there is something to read. If that was an error, and nothing came, it
	// gives the buffer back with drop, and may take one again. With n > 0 it
	// keeps the buffer for its caller.
	ReadLazy(take func() []byte, drop func()) (n int, err error)
}

// ReadFrom writes what src gives to the stream, until src's io.EOF. It does
// not end the stream then. It holds a buffer only while there is something in
// it, if src is a LazyReader.
func (s *Stream) ReadFrom(src io.Reader) (total int64, err error) {
	lazy, ok := src.(LazyReader)
	if !ok {
		lazy = eagerReader{src}
	}
	var buf *buffer
	take := func() []byte {
		buf = getBuffer()
		return buf[frameHeaderLen:]
	}
	drop := func() { putBuffer(buf) }
	for {
		n, err := lazy.ReadLazy(take, drop)
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

// An eagerReader takes a buffer, then waits.
type eagerReader struct{ io.Reader }

func (r eagerReader) ReadLazy(take func() []byte, drop func()) (int, error) {
	n, err := r.Read(take())
	if n <= 0 {
		drop()
	}
	return n, err
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
