package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// A Stream carries one app connection. It is a net.Conn with half-close and
// reset:
//
// Read returns io.EOF only after the peer's END, whose count of bytes was
// right. After the peer's RESET it returns a *ResetError, and after any other
// end an error that wraps ErrTruncated.
//
// CloseWrite ends this direction. Close, unless both directions have ended,
// aborts both, as Reset does. Neither Close nor Reset ever waits.
//
// A write deadline that passes in the middle of a write aborts the stream.
type Stream struct {
	ys     *yamux.Stream
	flow   *flow
	link   *link
	opener bool
	open   Open // where it leads; set once OPEN was sent or read

	// Reading. readMu protects what follows. A read that a deadline cuts short
	// goes on where it was.
	readMu    sync.Mutex
	in        frameOrder
	header    [frameHeaderLen]byte
	headerLen int
	control   byte // END or RESET while its body is read, else 0
	body      [endBody]byte
	bodyLen   int
	left      int // bytes left of the current DATA frame

	// Writing. writeMu protects sent, begun and torn.
	writeMu sync.Mutex
	sent    uint64 // bytes of DATA
	begun   bool   // OPEN or OPENED was sent, so that RESET may be
	torn    bool   // a frame was sent in part: nothing may follow

	mu       sync.Mutex
	ending   bool // END is being sent, or was
	endSent  bool
	endRead  bool
	cause    error // why the stream was aborted
	finished bool  // both directions ended, or it was aborted
	ready    bool  // the peer's first frame was read: readRest may read
	rest     bool  // readRest runs
	linkDead bool  // what is there may be read, nothing more comes
	onAbort  []func()
	cancel   context.CancelFunc // of the Inbound's context
}

func newStream(l *link, ys *yamux.Stream, opener bool) *Stream {
	return &Stream{ys: ys, link: l, opener: opener, in: frameOrder{accepter: opener}}
}

// Peer returns the name of the peer at the other end.
func (s *Stream) Peer() string { return s.link.peerName }

// Err returns why the stream was aborted, nil if it was not.
func (s *Stream) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// OnAbort calls f in its own goroutine when the stream is aborted: by RESET
// from either end, by the death of its link, by the peer giving it up. It does
// so although nobody reads or writes at that time. A stream that has both its
// ENDs is never aborted.
func (s *Stream) OnAbort(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.cause != nil:
		go f()
	case !s.finished:
		s.onAbort = append(s.onAbort, f)
	}
}

// Read reads app bytes.
func (s *Stream) Read(p []byte) (int, error) {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	if err := s.nextData(); err != nil {
		return 0, err
	}
	return s.readBody(p)
}

// nextData reads frames until there are app bytes to read.
func (s *Stream) nextData() error {
	for {
		if err := s.readState(); err != nil || s.left > 0 {
			return err
		}
		if err := s.nextFrame(); err != nil {
			return err
		}
	}
}

func (s *Stream) readState() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.cause != nil:
		return s.cause
	case s.endRead:
		return io.EOF
	}
	return nil
}

// nextFrame reads a frame, of DATA only the header.
func (s *Stream) nextFrame() error {
	if s.control == 0 {
		kind, length, err := s.readHeader()
		if err != nil {
			return err
		}
		if kind == frameData {
			s.left = length
			return nil
		}
		s.control, s.bodyLen = kind, 0
	}
	length := endBody
	if s.control == frameReset {
		length = resetBody
	}
	for s.bodyLen < length {
		n, err := s.readRaw(s.body[s.bodyLen:length])
		s.bodyLen += n
		if err != nil {
			return err
		}
	}
	kind := s.control
	s.control = 0
	if kind == frameEnd {
		return s.gotEnd()
	}
	s.abort(&ResetError{Code: parseReset(s.body[0]), Remote: true}, false)
	return s.Err()
}

// readHeader reads a frame's header and checks that it may come here.
func (s *Stream) readHeader() (kind byte, length int, err error) {
	for s.headerLen < frameHeaderLen {
		n, err := s.readRaw(s.header[s.headerLen:])
		s.headerLen += n
		if err != nil {
			return 0, 0, err
		}
	}
	s.headerLen = 0
	kind, length, err = parseFrameHeader(s.header)
	if err == nil {
		err = s.in.next(kind, length)
	}
	if err != nil {
		return 0, 0, s.violated(err)
	}
	return kind, length, nil
}

// readBody reads a part of the current DATA frame.
func (s *Stream) readBody(p []byte) (int, error) {
	n, err := s.readRaw(p[:min(len(p), s.left)])
	s.left -= n
	return n, err
}

func (s *Stream) gotEnd() error {
	if err := s.in.end(s.body[:]); err != nil {
		return s.violated(err)
	}
	s.mu.Lock()
	s.endRead = true
	done := s.finishLocked()
	s.mu.Unlock()
	if done {
		s.finish()
	} else if s.link.guard.endSeen(s.flow) {
		s.wake(true)
	}
	return nil
}

// readFirst reads the peer's first frame, whole. An error is final.
func (s *Stream) readFirst() ([]byte, error) {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	_, length, err := s.readHeader()
	if err != nil {
		return nil, err
	}
	body := make([]byte, length)
	for n := 0; n < length; {
		m, err := s.readRaw(body[n:])
		if n += m; err != nil {
			return nil, err
		}
	}
	return body, nil
}

// setReady lets readRest read, now that the peer's first frame was.
func (s *Stream) setReady() {
	s.mu.Lock()
	s.ready = true
	dead := s.linkDead
	s.mu.Unlock()
	if dead || s.link.guard.finished(s.flow) {
		s.wake(false)
	}
}

// readRaw reads from yamux. It returns either bytes or an error.
func (s *Stream) readRaw(p []byte) (int, error) {
	n, err := s.ys.Read(p)
	if n > 0 {
		s.link.guard.consumed(s.flow, n)
		return n, nil
	}
	return 0, s.readError(err)
}

// readError turns yamux's error into the stream's. yamux calls every end EOF.
func (s *Stream) readError(err error) error {
	if cause := s.Err(); cause != nil {
		return cause
	}
	s.mu.Lock()
	timeout := errors.Is(err, yamux.ErrTimeout) && !s.linkDead
	s.mu.Unlock()
	if timeout {
		return os.ErrDeadlineExceeded
	}
	s.abort(s.truncated(), false)
	if cause := s.Err(); cause != nil {
		return cause
	}
	return io.EOF // both directions have ended
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

// Write writes app bytes, in DATA frames.
func (s *Stream) Write(p []byte) (int, error) {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if len(p) == 0 {
		return 0, s.writeState()
	}
	buf := getBuffer()
	defer putBuffer(buf)
	total := 0
	for total < len(p) {
		n := copy(buf[frameHeaderLen:], p[total:])
		if err := s.writeData(buf[:frameHeaderLen+n]); err != nil {
			return total, err
		}
		total += n
	}
	return total, nil
}

// writeData sends a DATA frame, whose header it fills in.
func (s *Stream) writeData(frame []byte) error {
	if err := s.writeState(); err != nil {
		return err
	}
	frame[0] = frameData
	putLength(frame, len(frame)-frameHeaderLen)
	if err := s.writeRaw(frame); err != nil {
		return err
	}
	s.sent += uint64(len(frame) - frameHeaderLen)
	return nil
}

func (s *Stream) writeState() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.cause != nil:
		return s.cause
	case s.endSent:
		return fmt.Errorf("write after CloseWrite: %w", net.ErrClosed)
	}
	return nil
}

// writeRaw writes one frame.
func (s *Stream) writeRaw(frame []byte) error {
	if s.torn {
		return s.writeError(nil)
	}
	n, err := s.ys.Write(frame)
	if err == nil {
		return nil
	}
	if n == 0 && errors.Is(err, yamux.ErrTimeout) && !s.deserted() {
		return os.ErrDeadlineExceeded
	}
	// yamux does not say how much of what it was sending when a link died
	// has left.
	s.torn = true
	return s.writeError(err)
}

// deserted tells that nobody will ever grant what a write waits for.
func (s *Stream) deserted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause != nil || s.linkDead || s.ending && s.link.guard.finished(s.flow)
}

func (s *Stream) writeError(err error) error {
	switch {
	case errors.Is(err, yamux.ErrTimeout) && !s.deserted():
		s.abort(fmt.Errorf("%w: %w", ErrTruncated, os.ErrDeadlineExceeded), true)
	case errors.Is(err, yamux.ErrConnectionWriteTimeout):
		// The stream, and with it the link, is in no known state.
		s.link.fail(errStuck)
		s.abort(s.truncated(), false)
	default:
		s.abort(s.truncated(), false)
	}
	return s.Err()
}

// CloseWrite ends this direction with END. It waits for a Write in progress.
func (s *Stream) CloseWrite() error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if err := s.writeState(); err != nil {
		return err
	}
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	var b [frameHeaderLen + endBody]byte
	err := s.writeRaw(appendEnd(b[:0], s.sent))
	s.mu.Lock()
	s.endSent = err == nil
	s.ending = s.endSent
	done := s.finishLocked()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if done {
		s.finish()
	}
	return nil
}

// Close ends the stream. Unless both directions have ended, that is a reset.
func (s *Stream) Close() error {
	s.abort(net.ErrClosed, true)
	return nil
}

// Reset aborts both directions and tells the peer why.
func (s *Stream) Reset(code ResetCode) {
	s.abort(&ResetError{Code: code}, true)
}

// finishLocked tells, once, that both directions have ended.
func (s *Stream) finishLocked() bool {
	if !s.endSent || !s.endRead || s.finished {
		return false
	}
	s.finished = true
	return true
}

// finish closes the yamux stream of a stream whose directions have ended.
func (s *Stream) finish() {
	s.ys.Close()
	s.release()
}

// abort ends the stream with an error, once, and wakes whoever reads or
// writes. With tell, the peer gets a RESET.
func (s *Stream) abort(cause error, tell bool) {
	s.mu.Lock()
	if s.finished {
		s.mu.Unlock()
		return
	}
	s.finished = true
	s.cause = cause
	callbacks := s.onAbort
	s.onAbort = nil
	s.ys.SetDeadline(past)
	s.mu.Unlock()
	s.link.guard.abandon(s.flow)
	for _, f := range callbacks {
		go f()
	}
	go s.tearDown(cause, tell)
}

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// tearDown sends RESET if that can be done without waiting for the peer,
// closes the yamux stream, which means the same, and frees what was not read.
// It has its own goroutine because a congested link makes even Close wait.
func (s *Stream) tearDown(cause error, tell bool) {
	var code ResetCode
	if r := (*ResetError)(nil); errors.As(cause, &r) {
		code = r.Code
	}
	s.drain()
	s.writeMu.Lock()
	if tell && s.begun && !s.torn && s.link.guard.canSend(s.flow, frameHeaderLen+resetBody) {
		var b [frameHeaderLen + resetBody]byte
		s.ys.Write(appendReset(b[:0], code))
	}
	s.writeMu.Unlock()
	s.ys.Close()
	s.drain() // of what was on its way to yamux
	s.release()
}

// drain reads and drops what yamux holds; the guard lets no more come in. The
// deadline, in the past since abort, ends it, and whoever reads now. It must
// wait for that: yamux can dead-lock when two goroutines read one stream.
func (s *Stream) drain() {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	buf := getBuffer()
	defer putBuffer(buf)
	for {
		n, err := s.ys.Read(buf[:])
		s.link.guard.consumed(s.flow, n)
		if err != nil {
			break
		}
	}
	s.ys.Shrink()
}

// release gives the stream's place back.
func (s *Stream) release() {
	s.mu.Lock()
	cancel := s.cancel
	s.cancel = nil
	s.onAbort = nil
	s.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	s.link.remove(s)
}

// wake is called when the peer has finished the stream, and when something
// came after its END. It never blocks.
//
// A peer closes its yamux stream only once it has both ENDs, or to abort: if
// this node has not begun to send END, it is an abort.
func (s *Stream) wake(afterEnd bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.finished || s.rest || !s.ready:
	case afterEnd || !s.ending:
		s.rest = true
		go s.readRest()
	case !s.endSent:
		// An END that waits for a grant will wait in vain; one that is on its
		// way already is not stopped by this.
		s.ys.SetWriteDeadline(past)
	}
}

// readRest reads a stream that its peer has aborted, or has sent something
// after END, to its very end: for a RESET's code, and for frames that have no
// place. No app byte is read after that.
func (s *Stream) readRest() {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	buf := getBuffer()
	defer putBuffer(buf)
	for {
		var err error
		if s.left > 0 {
			_, err = s.readBody(buf[:])
		} else {
			err = s.nextFrame()
		}
		if err != nil {
			s.abort(s.truncated(), false) // unless it already was
			return
		}
	}
}

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	return s.setDeadline(t, s.ys.SetDeadline)
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error {
	return s.setDeadline(t, s.ys.SetReadDeadline)
}

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	return s.setDeadline(t, s.ys.SetWriteDeadline)
}

// setDeadline leaves the deadlines of an aborted stream in the past.
func (s *Stream) setDeadline(t time.Time, set func(time.Time) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return s.cause
	}
	if s.linkDead {
		return nil
	}
	return set(t)
}

// LocalAddr implements net.Conn.
func (s *Stream) LocalAddr() net.Addr { return streamAddr("sealane") }

// RemoteAddr implements net.Conn. It is the peer's name.
func (s *Stream) RemoteAddr() net.Addr { return streamAddr(s.link.peerName) }

type streamAddr string

func (streamAddr) Network() string  { return "sealane" }
func (a streamAddr) String() string { return string(a) }
