package mux

import (
	"fmt"
	"io"
	"os"
)

// A Sink is a Writer that can be written to without waiting.
type Sink interface {
	io.Writer
	// TryWrite writes what it can of the pieces without waiting: n less than
	// all of them without an error says that the rest would have to wait.
	TryWrite(pieces [][]byte) (n int, err error)
}

// parking is how a WriteTo waits: what arrives meanwhile goes straight to its
// sink, from the buffer that the link was read into and without waking it.
type parking struct {
	sink Sink  // nil: nobody waits, or not this way
	n    int64 // bytes that went there
	err  error // its first error
}

// take is receiver's.
func (s *Stream) take(e event) {
	switch e.kind {
	case frameEnd:
		s.takeEnd()
	case frameReset:
		s.rouse()
		s.abort(&ResetError{Code: parseReset(e.body[0]), Remote: true}, false)
	case eventFin:
		s.takeFin()
	default:
		s.takeFirst(e.body)
	}
}

func (s *Stream) takeFirst(body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.first = body
	s.some.Broadcast()
}

// takeData is receiver's.
func (s *Stream) takeData(bodies [][]byte) (freed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		for _, b := range bodies {
			freed += len(b)
		}
		return freed
	}
	if k := &s.parked; k.sink != nil && k.err == nil && s.queue.empty() {
		freed, k.err = k.sink.TryWrite(bodies)
		k.n += int64(freed)
	}
	left := freed // to be skipped
	for _, b := range bodies {
		n := min(left, len(b))
		left -= n
		s.queue.add(b[n:])
	}
	if !s.queue.empty() || s.parked.err != nil {
		s.stir()
	}
	return freed
}

func (s *Stream) takeEnd() {
	s.link.guard.endArrived(s.flow)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endIn = true
	s.stir()
}

// takeFin acts on the end of the yamux stream. A peer closes it only once it
// has both ENDs, or to abort: if this node has not begun to send END, or the
// peer's has not come, it is an abort. An END that waits for a grant now waits
// in vain, which desert tells it; one on its way is not stopped by this.
func (s *Stream) takeFin() {
	s.mu.Lock()
	whole := s.endIn && s.ending
	s.mu.Unlock()
	if !whole {
		s.rouse()
		s.abort(s.truncated(), false)
	}
	s.link.guard.desert(s.flow)
}

// linkEnded is called for each stream when its link has ended. What has come
// whole may still be read, if this side has ended as well.
func (s *Stream) linkEnded() {
	s.mu.Lock()
	s.linkDead = true
	whole := s.endIn && s.endSent
	s.mu.Unlock()
	s.rouse()
	if !whole {
		s.abort(s.truncated(), false)
	}
}

// stir wakes who waits for something to read, with mu held.
func (s *Stream) stir() {
	s.some.Broadcast()
	if s.wake != nil {
		go s.wake()
		s.wake = nil
	}
}

func (s *Stream) rouse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stir()
}

// await waits until there are app bytes in the queue, with mu held. It returns
// io.EOF after the peer's END.
func (s *Stream) await() error {
	for {
		switch {
		case s.cause != nil:
			return s.cause
		case !s.queue.empty():
			return nil
		case s.endIn:
			return io.EOF
		case s.parked.err != nil:
			return s.parked.err
		case s.readBy.passed():
			return os.ErrDeadlineExceeded
		}
		s.some.Wait()
	}
}

// Read reads app bytes.
func (s *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.mu.Lock()
	err := s.await()
	n := 0
	if err == nil {
		n = s.queue.read(p)
	}
	s.mu.Unlock()
	if err == io.EOF {
		s.readEnd()
	}
	s.link.guard.read(s.flow, n)
	return n, err
}

// WriteTo writes what the stream carries to dst, until its END. It holds no
// buffer while nothing arrives.
func (s *Stream) WriteTo(dst io.Writer) (total int64, err error) {
	sink, _ := dst.(Sink)
	for {
		c, direct, err := s.nextChunk(sink)
		total += direct
		if err == io.EOF {
			s.readEnd()
			return total, nil
		}
		if err != nil {
			return total, err
		}
		size := len(c.bytes())
		n, err := dst.Write(c.bytes())
		total += int64(n)
		s.queue.free(c)
		if err != nil {
			return total, err
		}
		s.link.guard.read(s.flow, size)
	}
}

// nextChunk waits for the first chunk of the queue and takes it out. Until
// there is one, bytes go to the sink, if it is not nil, and are counted.
func (s *Stream) nextChunk(sink Sink) (c *chunk, direct int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parked.sink = sink
	err = s.await()
	k := s.parked
	s.parked = parking{}
	if k.err != nil {
		return nil, k.n, k.err
	}
	if err == nil {
		c = s.queue.pop()
	}
	return c, k.n, err
}

// readEnd notes that all before END was read.
func (s *Stream) readEnd() {
	s.mu.Lock()
	s.endRead = true
	done := s.finishLocked()
	s.mu.Unlock()
	if done {
		s.finish()
	}
}

// readFirst waits for the body of the peer's first frame. An error is final.
func (s *Stream) readFirst() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.first == nil {
		if s.cause != nil {
			return nil, s.cause
		}
		if s.readBy.passed() {
			return nil, os.ErrDeadlineExceeded
		}
		s.some.Wait()
	}
	body := s.first
	s.first, s.met = nil, true
	return body, nil
}

// answered tells whether the peer's first frame has come. A peer that is at its
// limit answers a stream before it has read its OPEN.
func (s *Stream) answered() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first != nil || s.met
}

// truncated says that the stream broke off, and why if its link knows.
func (s *Stream) truncated() error {
	if err := s.link.cause(); err != nil {
		return fmt.Errorf("%w: %w", ErrTruncated, err)
	}
	return ErrTruncated
}

// violated ends the link.
func (s *Stream) violated(err error) error {
	s.link.fail(err)
	s.abort(fmt.Errorf("%w: %w", ErrTruncated, err), false)
	return s.Err()
}

// Sleep is for a stream that has been silent. It returns true; from then on
// nobody may read the stream until wake is called, once and in its own
// goroutine, because something came to be read or the link died. It returns
// false, and will not call wake, if that is so already.
//
// What this node does to the stream does not wake: see OnAbort.
func (s *Stream) Sleep(wake func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil || !s.queue.empty() || s.endIn || s.linkDead {
		return false
	}
	s.wake = wake
	return true
}
